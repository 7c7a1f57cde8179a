"""Small seeded data with named defects for the other tests: Arrow tables of text, as a landed CSV would hold.

Pure functions: the same arguments give the same rows. Expectations about what the product does with a defect belong in
the tests, files that are broken as files (encodings, truncated lines) in the ingestion tests, the large synthetic file
in ``ml/synthetic.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
import pyarrow as pa
import pyarrow.csv

from ml import contract, synthetic

Numbers = float | np.ndarray

#: SGD per sqm of a flat with a full lease in 2018-01; a town's price grows by ``HDB_GROWTH`` a month (log).
HDB_TOWNS = {"ANG MO KIO": 5200.0, "BEDOK": 4700.0, "PUNGGOL": 5600.0, "QUEENSTOWN": 7200.0}
HDB_GROWTH = 0.004
HDB_FLATS = {"3 ROOM": 67.0, "4 ROOM": 92.0, "5 ROOM": 112.0, "EXECUTIVE": 142.0}
UNSEEN_AREA = "NOWHERE BEFORE"
NEIGHBORHOODS = {"NAmes": 1.0, "CollgCr": 1.2, "OldTown": 0.8, "NridgHt": 1.6}
LOCATIONS = {"Downtown": 1.5, "Rural": 0.7, "Suburb": 1.0, "Waterfront": 2.0}


class Defects(TypedDict, total=False):
    """How many rows carry a defect. The rows are disjoint, so that counts add up exactly."""

    duplicates: int  # a second row, equal in every column, at the end
    corrected: int  # a second row of the same key with a price 10 % higher, at the end: the later one is right
    bad_dates: int  # the date is a text that no format parses
    unseen_area: int  # an area that no other row has, in rows of the last month
    null_features: int  # every feature that is not required, nor part of key, area and locality, is empty
    zero_census: int  # housets: all census columns are 0
    outliers: int  # a price far above the contract's bounds
    unpriced: int  # no price yet


def hdb_price(level: Numbers, month: Numbers, area: Numbers, remaining_lease: Numbers) -> Numbers:
    """Price in SGD without noise; ``month`` counts from 2018-01. Works on arrays, too."""
    return level * np.exp(HDB_GROWTH * month) * area * (0.5 + 0.5 * remaining_lease / 99)


def hdb_rows(
    start: str = "2018-01", months: int = 72, per_month: int = 200, seed: int = 7, **defects: Unpack[Defects]
) -> pa.Table:
    """Resale flats of four towns, ``hdb_price`` with 5 % noise; a month's rows do not depend on the other months."""
    first = _month_number(start)
    table = pa.concat_tables([_hdb_month(number, per_month, seed) for number in range(first, first + months)])
    return with_defects(table, "hdb", seed, **defects)


def housets_rows(zips: int = 30, seed: int = 7, since: str = "2012-03", **defects: Unpack[Defects]) -> pa.Table:
    """Complete series of ``zips`` zip codes from ``since`` to 2023-12, without a defect unless asked for."""
    table = pa.concat_tables(synthetic.tables(zips * synthetic.N_MONTHS, seed, {}))
    table = table.cast(pa.schema([(name, pa.string()) for name in table.column_names]))
    table = table.filter(pa.array(_months(table) >= since))
    return with_defects(table, "housets", seed, **defects)


def ames_rows(rows: int = 600, seed: int = 7, labelled: bool = True, **defects: Unpack[Defects]) -> pa.Table:
    """House sales 2006 to 2010 with every header of the contract; price follows area, quality, neighbourhood."""
    rng = np.random.default_rng([seed, rows])
    area, quality = np.round(rng.lognormal(7.25, 0.3, rows)), rng.integers(2, 11, rows)
    hood = rng.choice(list(NEIGHBORHOODS), rows)
    factor = np.array([NEIGHBORHOODS[name] for name in hood])
    known = {
        "Id": 1 + np.arange(rows) + (0 if labelled else 100_000),
        "GrLivArea": area,
        "OverallQual": quality,
        "Neighborhood": hood,
        "YrSold": rng.integers(2006, 2011, rows),
        "MoSold": rng.integers(1, 13, rows),
        "SalePrice": np.round(55 * area * (0.4 + 0.1 * quality) * factor * np.exp(0.05 * rng.standard_normal(rows))),
    }
    table = with_defects(_contract_rows("ames", rows, rng, known), "ames", seed, **defects)
    return table if labelled else table.drop_columns(["SalePrice"])


def house_data_rows(rows: int = 300, seed: int = 7, **defects: Unpack[Defects]) -> pa.Table:
    """The undated teaching file: location in single quotes, price follows area, place and condition."""
    rng = np.random.default_rng([seed, rows])
    sqft = np.round(rng.lognormal(7.4, 0.35, rows))
    place, condition = rng.choice(list(LOCATIONS), rows), rng.integers(0, 4, rows)
    factor = np.array([LOCATIONS[name] for name in place]) * (0.8 + 0.1 * condition)
    known = {
        "sqft": sqft,
        "location": [f"'{name}'" for name in place],
        "condition": np.array(["Poor", "Fair", "Good", "Excellent"])[condition],
        "bedrooms": rng.integers(1, 6, rows),
        "bathrooms": rng.integers(2, 8, rows) / 2,
        "year_built": rng.integers(1900, 2020, rows),
        "price": np.round(250 * sqft * factor * np.exp(0.05 * rng.standard_normal(rows))),
    }
    return with_defects(_contract_rows("house_data", rows, rng, known), "house_data", seed, **defects)


def with_month(table: pa.Table, month: str) -> pa.Table:
    """Only the rows of ``YYYY-MM``, for landing one more month."""
    return table.filter(pa.array(_months(table) == month))


def without_month(table: pa.Table, month: str) -> pa.Table:
    """All rows but those of ``YYYY-MM``, for landing them later."""
    return table.filter(pa.array(_months(table) != month))


def with_defects(table: pa.Table, dataset: str, seed: int = 7, **defects: Unpack[Defects]) -> pa.Table:
    """The table with the named defects in as many rows as asked; see ``Defects``."""
    if unknown := set(defects) - set(Defects.__annotations__):
        raise ValueError(f"no defect named {sorted(unknown)}; known are: {', '.join(Defects.__annotations__)}")
    spec = contract.load(dataset)
    header = {c.name: h for h, c in spec.sources.items()}
    price = header[spec.price]
    dated = header.get(spec.observed_on or "")
    # the file's own area column: housets derives its metro from city_full
    area = header.get(spec.area, "city_full")
    rng = np.random.default_rng([seed, 1])
    free = rng.permutation(table.num_rows)
    columns = {name: table[name].to_numpy(zero_copy_only=False).astype(object) for name in table.column_names}

    if n := defects.get("unseen_area", 0):
        in_time_order = np.arange(table.num_rows) if dated is None else np.argsort(columns[dated], kind="stable")
        last = in_time_order[-n:]
        free = free[~np.isin(free, last)]
        columns[area][last] = UNSEEN_AREA

    def take(name: str) -> np.ndarray:
        nonlocal free
        n = defects.get(name, 0)
        if n > len(free):
            raise ValueError(f"{name}={n}: only {len(free)} rows are free of other defects")
        rows, free = free[:n], free[n:]
        return rows

    if defects.get("bad_dates", 0):
        if dated is None:
            raise ValueError(f"bad_dates: {dataset} has no date column in its file")
        columns[dated][take("bad_dates")] = "the day before yesterday"
    emptied = take("null_features")
    for name, column in spec.sources.items():
        if (
            column.role == "feature"
            and not column.required
            and column.name not in (spec.area, spec.locality, *spec.key)
        ):
            columns[name][emptied] = None
    if defects.get("zero_census", 0):
        no_census = take("zero_census")
        # the census headers are the only capitalised ones
        for name in filter(lambda header: header[0].isupper(), columns):
            columns[name][no_census] = "0.0"
    columns[price][take("outliers")] = "999999999"
    columns[price][take("unpriced")] = None
    duplicates, corrected = take("duplicates"), take("corrected")
    order = np.concatenate([np.arange(table.num_rows), duplicates, corrected])
    columns = {name: values[order] for name, values in columns.items()}
    if n := len(corrected):
        columns[price][-n:] = [str(round(float(value) * 1.1)) for value in columns[price][-n:]]
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def write_csv(table: pa.Table, path: Path) -> Path:
    """Write a CSV with a header, folders created; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.csv.write_csv(table, path, pyarrow.csv.WriteOptions(quoting_style="needed"))
    return path


def write_months(table: pa.Table, folder: Path) -> list[Path]:
    """One CSV a month, ``YYYY-MM.csv``, as hdb is published; rows whose date has no month go into ``other.csv``."""
    months = _months(table)
    months = np.where(np.char.isdigit(np.char.replace(months, "-", "")), months, "other")
    return [write_csv(table.filter(pa.array(months == month)), folder / f"{month}.csv") for month in np.unique(months)]


def _months(table: pa.Table) -> np.ndarray:
    """The first seven characters of each row's date."""
    dates = table["month" if "month" in table.column_names else "date"]
    return np.array(dates.to_pylist(), dtype="U7")


def _month_number(month: str) -> int:
    """Months since 2018-01; negative before."""
    date = contract.month_date(month)
    return (date.year - 2018) * 12 + date.month - 1


def _hdb_month(number: int, rows: int, seed: int) -> pa.Table:
    rng = np.random.default_rng([seed, number + 12_000])
    year, month = 2018 + number // 12, number % 12 + 1
    town, flat = rng.choice(list(HDB_TOWNS), rows), rng.choice(list(HDB_FLATS), rows, p=[0.25, 0.4, 0.25, 0.1])
    street_number, block = rng.integers(1, 5, rows), rng.integers(1, 6, rows)
    street = np.char.add(np.char.add(town, " AVE "), street_number.astype(str))
    town_number = np.array([list(HDB_TOWNS).index(name) for name in town])
    storey = 1 + 3 * rng.integers(0, 5, rows)
    area = np.array([HDB_FLATS[name] for name in flat]) + rng.integers(-4, 5, rows)
    # a block has its own year of lease
    commenced = 1975 + (7 * town_number + 5 * street_number + 3 * block) % 42
    left = (99 * 12) - ((year - commenced) * 12 + month - 1)
    level = np.array([HDB_TOWNS[name] for name in town])
    price = hdb_price(level, number, area, left / 12) * np.exp(0.05 * rng.standard_normal(rows))
    name = np.char.add(np.char.add(block.astype(str), " "), street)
    columns = {
        "_id": (number + 12) * 10_000 + 1 + np.arange(rows),
        "month": np.full(rows, f"{year}-{month:02d}"),
        "town": town,
        "flat_type": flat,
        "block": block,
        "street_name": street,
        "storey_range": [f"{low:02d} TO {low + 2:02d}" for low in storey],
        "floor_area_sqm": area,
        "flat_model": np.where(flat == "EXECUTIVE", "Apartment", "Improved"),
        "lease_commence_date": commenced,
        "remaining_lease": [f"{m // 12} years {m % 12:02d} months" for m in left],
        "resale_price": np.round(price),
        "address": name,
        "postal": 500_000 + 1000 * town_number + 10 * street_number + block,
        "latitude": 1.30 + 0.02 * town_number + 0.001 * street_number,
        "longitude": 103.7 + 0.05 * town_number + 0.001 * block,
    }
    return pa.table({name: pa.array(values).cast(pa.string()) for name, values in columns.items()})


def _contract_rows(dataset: str, rows: int, rng: np.random.Generator, known: dict) -> pa.Table:
    """Every header of the contract: ``known`` columns as given, the others drawn from what the contract allows."""
    spec, columns = contract.load(dataset), {}
    for name, column in spec.sources.items():
        if name in known:
            columns[name] = known[name]
        elif column.values:
            columns[name] = rng.choice(column.values, rows)
        elif column.type == "number":
            low = 1950 if column.unit == "year" else 0
            columns[name] = rng.integers(low, low + 60, rows)
        else:
            raise ValueError(f"{dataset}: give the values of {name}, a text without values in the contract")
    return pa.table({name: pa.array(values).cast(pa.string()) for name, values in columns.items()})
