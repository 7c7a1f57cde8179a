"""Where the API keeps its journals and the snapshots that answer. Imports nothing that takes time."""

from __future__ import annotations

from pathlib import Path

from ml.settings import Settings


def journals(settings: Settings, kind: str) -> Path:
    """Folder of the journal of ``predictions`` or ``feedback``."""
    return _online(settings) / kind


def snapshots(settings: Settings) -> Path:
    """Folder of the links that hold snapshots; a name begins with the process that holds it."""
    return _online(settings) / "snapshots"


def remove_leftovers(settings: Settings) -> None:
    """Delete snapshots held by processes that are gone."""
    for path in snapshots(settings).glob("*.duckdb*"):
        holder = path.name.partition("-")[0]
        if holder.isdigit() and not Path(f"/proc/{holder}").exists() and Path("/proc/self").exists():
            path.unlink(missing_ok=True)


def _online(settings: Settings) -> Path:
    return settings.home / "online" / settings.dataset
