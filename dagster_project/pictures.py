"""Pictures inside an asset's metadata, so that the UI shows them without another server."""

import base64

import dagster as dg


def picture(name: str, content: bytes, kind: str) -> dg.MarkdownMetadataValue:
    """A picture as metadata; ``kind`` is its media type, such as ``image/png``."""
    return dg.MetadataValue.md(f"![{name}](data:{kind};base64,{base64.b64encode(content).decode()})")
