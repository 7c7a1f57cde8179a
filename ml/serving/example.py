"""A request that can be priced, made from the snapshot: for the documentation, and to try a new version on."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ml.contract import Contract
from ml.serving.schemas import columns_of
from ml.serving.snapshot import Snapshot


def example_row(contract: Contract, snapshot: Snapshot) -> dict[str, Any]:
    """A request that the snapshot can price, made of a known place and the features of a home there."""
    found = snapshot.rows(
        "from training.training_dataset where price is not null order by month desc, observation_id limit 1"
    )
    home = found[0] if found else {}
    known = _known_keys(contract, snapshot, home)
    # its own day: the month's first is that of another home where the date is part of the key
    when = home.get("observed_on") or home.get("month") or datetime.now(UTC).date()
    row: dict[str, Any] = {}
    for c in columns_of(contract):
        value: Any = None
        if c.type == "date":
            value = when.strftime(c.format or "%Y-%m-%d")
        elif c.name in known:
            value = known[c.name]
        elif c.values:
            code = home.get(c.name)
            value = c.values[int(code) - 1] if c.encode == "ordinal" and code else c.values[0]
        elif c.type == "number":
            value = home.get(c.name)
            value = float(c.min if c.min is not None else 1) if value is None and c.required else value
        elif c.required:
            value = "1"
        if value is not None:
            row[c.name] = value
    return row


def _known_keys(contract: Contract, snapshot: Snapshot, home: dict[str, Any]) -> dict[str, str]:
    """Texts of one place that has history: the parts of the key of the finest encoding, and its area."""
    known = {contract.area: home.get("area"), contract.locality: home.get("locality")}
    if contract.area not in {c.name for c in contract.columns if c.source}:
        # the area is derived from a text that every row must have
        repeats = [c.name for c in contract.columns if c.required and c.type == "text" and c.role == "ignore"]
        known |= dict.fromkeys(repeats, home.get("area"))
    texts = {c.name for c in contract.columns if c.type == "text" and c.source}
    for e in sorted(contract.encodings, key=lambda e: -len(e.keys)):
        if contract.locality in e.keys and texts.issuperset(e.keys) and home:
            rows = snapshot.rows(
                """
                select key_value from features.encodings
                where encoding = $encoding and month = $month
                    and list_contains(string_split(key_value, chr(31)), $place)
                order by n desc, key_value limit 1
                """,
                {"encoding": e.name, "month": home["month"], "place": home["locality"]},
            )
            if rows:
                known |= dict(zip(e.keys, rows[0]["key_value"].split("\x1f"), strict=True))
            break
    return {name: value for name, value in known.items() if value and name in texts}
