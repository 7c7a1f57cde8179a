"""What a form asks of a home: the contract's columns, with plausible values of a place by SQL. Drawn in ``views``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import pyarrow as pa

from ml.contract import Column, Contract, slug
from ml.dashboard.queries import RANKS
from ml.dashboard.snapshot import Row, Snapshot
from ml.warehouse import quoted

#: Features that the model reads from rows like those of a file.
Read = Callable[[list[Row]], pa.Table]

#: Homes that defaults are taken from are at most so old; older ones say little of today's.
MONTHS_BACK = 24

#: The homes that are nearest: of the locality, else of the area, else of the newest month.
NEAR = """
with newest as (select max(month) as month from training.training_dataset),
near as (
    select t.*, case when t.locality = $locality then 1 when t.area = $area then 2 else 3 end as ring
    from training.training_dataset as t, newest
    where t.month > newest.month - interval {months} month and (t.area = $area or t.month = newest.month)
),
chosen as (select * from near qualify ring = min(ring) over ())
"""
AREAS = "select distinct area from training.training_dataset where area is not null order by area"
LOCALITIES = """
select distinct locality from training.training_dataset where area = $area and locality is not null order by locality
"""
NEWEST_DATE = "select max(observed_on) as newest from training.training_dataset"
#: What stands beside a place in the keys of an encoding (the blocks of a street), with most sales first.
BESIDE = """
select string_split(key_value, chr(31))[$wanted] as value, sum(n) as n from features.encodings
where encoding = $encoding and month = (select max(month) from features.encodings)
    and key_value <> '__unseen__' and string_split(key_value, chr(31))[$given] = $place
group by 1 order by n desc, value
"""

PLACES = "select observation_id, locality from training.training_dataset where list_contains($ids, observation_id)"


@dataclass(frozen=True)
class Field:
    """One input. ``options`` None is free; ``whole`` numbers have no decimals in the data."""

    column: Column
    default: Any
    options: list[str] | None = None
    whole: bool = False
    weight: int = 999
    """Rank of its most important feature: 1 moves prices most."""

    @property
    def label(self) -> str:
        words, unit = self.column.name.split("_"), self.column.unit
        if len(words) > 1 and words[-1] == unit:
            words = words[:-1]
        return " ".join(words).capitalize() + (f", {unit}" if unit and unit not in words else "")


def areas(snapshot: Snapshot) -> list[str]:
    return [r["area"] for r in snapshot.rows(AREAS)]


def localities(snapshot: Snapshot, area: str | None) -> list[str]:
    return [r["locality"] for r in snapshot.rows(LOCALITIES, area=area)]


def newest_date(snapshot: Snapshot) -> date:
    return snapshot.rows(NEWEST_DATE)[0]["newest"]


def placed(contract: Contract, area: str | None, locality: str | None) -> Row:
    """What the choice of a place says already, by column."""
    row: Row = {contract.area: area, contract.locality: locality}
    if _column(contract, contract.area).source is None:
        # the area is derived from a text that every row must have
        row |= {c.name: area for c in contract.columns if c.required and c.type == "text" and c.role == "ignore"}
    asked = {c.name for c in contract.columns if c.source}
    return {name: value for name, value in row.items() if name in asked}


def fields(
    contract: Contract, snapshot: Snapshot, area: str | None, locality: str | None, when: date, *, read: Read
) -> list[Field]:
    """Inputs besides date and place, those that move prices most first."""
    known = placed(contract, area, locality)
    asked = [
        c
        for c in contract.columns
        if c.source and c.role not in {"price", "leak"} and c.name not in {*known, contract.observed_on}
    ]
    derived = [c for c in contract.columns if not c.source and snapshot.has("training.training_dataset", c.name)]
    plausible = _plausible(contract, snapshot, [*asked, *derived], area, locality)
    ranks = {r["feature"]: r["rank"] for r in snapshot.rows(RANKS)}
    out = []
    for c in asked:
        weight = min(
            (rank for name, rank in ranks.items() if name == c.name or name.startswith(f"{c.name}_")), default=999
        )
        if c.values:
            out.append(Field(c, _category(c, plausible), list(c.values), weight=weight))
        elif c.role == "feature" and c.type == "text":
            found = _beside(contract, snapshot, c, area, locality)
            out.append(Field(c, next(iter(found), None), found, weight=weight))
        elif c.role == "feature" and c.type == "number":
            out.append(Field(c, plausible.get(c.name), whole=bool(plausible.get(f"{c.name}?")), weight=weight))
        elif c.role == "key":
            continue
        elif c.required or _example(c):
            out.append(Field(c, _guess(c, when), whole=True, weight=weight))
    row = known | {f.column.name: f.default for f in out if f.default not in (None, "")}
    usual = {c.name: plausible[c.name] for c in derived if plausible.get(c.name) is not None}
    row |= keys(contract, row)
    for i, f in enumerate(out):
        if not f.options and (example := _example(f.column)):
            out[i] = replace(f, default=_fitting(f.column, example, row, usual, read))
    return sorted(out, key=lambda f: f.weight)


def keys(contract: Contract, given: Row) -> Row:
    """A key for a home that is in no file."""
    return {
        c.name: 0 if c.type == "number" else "what-if"
        for c in contract.columns
        if c.role == "key" and c.source and c.name not in given
    }


def _plausible(
    contract: Contract, snapshot: Snapshot, asked: list[Column], area: str | None, locality: str | None
) -> Row:
    """Medians of numbers (``name?`` says whether all are whole) and most common categories of the nearest homes."""
    parts = []
    for c in asked:
        name = quoted(c.name)
        if c.encode == "one_hot":
            parts += [f"avg({quoted(f'{c.name}_is_{slug(v)}')}) as {quoted(f'{c.name}={v}')}" for v in c.values]
        elif c.encode == "ordinal":
            parts.append(f"mode({name}) as {name}")
        elif c.role == "feature" and c.type == "number":
            parts += [
                f"quantile_disc({name}, 0.5) as {name}",
                f"bool_and({name} = round({name})) as {quoted(c.name + '?')}",
            ]
    if not parts:
        return {}
    months = MONTHS_BACK if contract.observed_on else 1
    return snapshot.rows(
        f"{NEAR.format(months=months)} select {', '.join(parts)} from chosen", area=area, locality=locality
    )[0]


def _category(c: Column, plausible: Row) -> str:
    if c.encode == "one_hot":
        return max(c.values, key=lambda v: plausible.get(f"{c.name}={v}") or 0)
    code = plausible.get(c.name)
    return c.values[int(code) - 1] if code else c.values[0]


def _beside(contract: Contract, snapshot: Snapshot, c: Column, area: str | None, locality: str | None) -> list[str]:
    """Values of a text column that are known at the place, from an encoding whose keys hold both."""
    for place, names in ((locality, {contract.locality, "locality"}), (area, {contract.area, "area"})):
        for e in contract.encodings:
            beside = next((k for k in e.keys if k in names), None)
            if c.name in e.keys and beside and place is not None:
                where = {"wanted": e.keys.index(c.name) + 1, "given": e.keys.index(beside) + 1}
                rows = snapshot.rows(BESIDE, encoding=e.name, place=place, **where)
                return [r["value"] for r in rows]
    return []


def _example(c: Column) -> str | None:
    """The example that the column's description names: ``Range of storeys such as 10 TO 12``."""
    _, found, example = c.description.partition("such as ")
    return example.strip() if found and c.type == "text" else None


def _fitting(c: Column, example: str, row: Row, usual: Row, read: Read) -> str:
    """The example with all or the first of its numbers moved, so that what is read from it comes nearest to usual.

    Only moves by which the value changes as much make sense: not ``10 TO 40``, nor months of a year beyond twelve.
    """
    moves = [(by, count) for count in (0, 1) for by in range(-99, 100)]
    texts = [_moved(example, by, count) for by, count in moves]
    found = read([row | {c.name: text} for text in [example, *texts]])
    best, least = example, float("inf")
    for name in usual.keys() & {*found.column_names}:
        first, *values = found[name].to_pylist()
        if first is None or len({*values}) == 1:  # it is not read from this text
            continue
        for (by, _), text, value in zip(moves, texts, values, strict=True):
            is_whole_move = value is not None and abs(value - first - by) < 1e-6
            if is_whole_move and abs(value - usual[name]) < least:
                best, least = text, abs(value - usual[name])
    return best


def _moved(text: str, by: int, count: int) -> str:
    """Its first ``count`` numbers, all for 0, greater by so much and written as wide."""
    return re.sub(r"\d+", lambda m: f"{max(int(m[0]) + by, 0):0{len(m[0])}d}", text, count=count)


def _guess(c: Column, when: date) -> Any:
    """A value for a column that rows must have and no feature keeps: parts of the date, else the least allowed."""
    if c.type == "text":
        return _example(c) or ""
    if c.unit == "year":
        return float(when.year)
    if (c.min, c.max) == (1, 12):
        return float(when.month)
    return c.min or 0.0


def _column(contract: Contract, name: str) -> Column:
    return next(c for c in contract.columns if c.name == name)
