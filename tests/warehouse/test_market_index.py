"""The market index: a Python twin, blind to what happens to be sold, and a fall that is known the month after."""

from __future__ import annotations

import math
from collections import defaultdict

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from tests import factories
from tests.conftest import Home

FALL, AFTER = 0.8, "2022-07"
WINDOW = 24


def flats(memory: duckdb.DuckDBPyConnection) -> pa.Table:
    """Executive flats sell at half price by area, from 2021-07 on twice as many of them; all prices fall in AFTER."""
    memory.register("base", factories.hdb_rows("2020-01", months=33, per_month=300))
    memory.register("more", factories.hdb_rows("2021-07", months=15, per_month=300, seed=8))
    return memory.sql(f"""
        select * replace (cast(round(
            cast(resale_price as double)
            * case when month >= '{AFTER}' then {FALL} else 1 end
            * case flat_type when 'EXECUTIVE' then 0.5 else 1 end
        ) as varchar) as resale_price)
        from (
            select * from base
            union all
            select * replace (_id || '-more' as _id) from more where flat_type = 'EXECUTIVE'
        )
        order by month, _id""").to_arrow_table()


@pytest.fixture
def built(home, memory) -> Home:
    made = home("hdb")
    made.land("flats.csv", flats(memory))
    made.ingest()
    made.build()
    return made


def twin(rows: list[dict]) -> dict[int, tuple[int, int, float, float]]:
    """Month number to n, n like for like, mean and index, by loops over plain numbers."""
    sales: dict[tuple, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    by_month: dict[int, list[tuple[tuple, float]]] = defaultdict(list)
    for row in rows:
        month, like = row["month"].year * 12 + row["month"].month, (row["street_name"], row["block"], row["flat_type"])
        value = math.log(row["price"] / row["floor_area_sqm"])
        sales[like][month].append(value)
        by_month[month].append((like, value))
    mean = {month: float(np.mean([value for _, value in sold])) for month, sold in by_month.items()}
    out = {}
    for month, sold in by_month.items():
        surprises = []
        for like, value in sold:
            window = range(month - WINDOW, month)
            past = [v - mean[m] for m in window for v in sales[like].get(m, [])]
            if past:
                surprises.append(value - float(np.mean(past)))
        index = float(np.mean(surprises)) if surprises else mean[month]
        out[month] = (len(sold), len(surprises), mean[month], index)
    return out


def test_the_market_is_measured_on_like_homes_and_followed_within_a_month(built: Home) -> None:
    sold = built.query(
        "select month, street_name, block, flat_type, floor_area_sqm, price "
        "from intermediate.int_observations where is_price_valid"
    ).to_pylist()
    expected = twin(sold)
    found = built.query("select * from features.market_index order by month").to_pylist()
    assert len(found) == 33
    for row in found:
        n, n_like, mean, index = expected[row["month"].year * 12 + row["month"].month]
        assert (row["n"], row["n_like_for_like"]) == (n, n_like)
        assert row["micro_mean_log_price"] / 1e6 == pytest.approx(mean, abs=2e-6)
        assert row["micro_index"] / 1e6 == pytest.approx(index, abs=3e-6)

    by_month = {f"{row['month']:%Y-%m}": row for row in found}

    def growth(column: str, first: str, last: str) -> float:
        return (by_month[last][column] - by_month[first][column]) / 1e6

    # the mix changes in 2021-07: the mean falls by several per cent, like for like only the town's growth is left
    assert growth("micro_mean_log_price", "2021-06", "2021-07") < -0.03
    assert growth("micro_index", "2021-06", "2021-07") == pytest.approx(factories.HDB_GROWTH, abs=0.015)
    assert growth("micro_index", "2022-06", AFTER) == pytest.approx(math.log(FALL) + factories.HDB_GROWTH, abs=0.015)

    # what is known in the month after the fall is the fallen market, in every indexed encoding
    level = built.query(
        "select month, mean_log_price from features.encodings where encoding = 'all_3m' "
        "and key_value = 'all' and month between date '2022-06-01' and date '2022-09-01' order by month"
    )["mean_log_price"].to_pylist()
    changes = np.diff(level)
    assert changes[0] == pytest.approx(0, abs=0.02), "in the month of the fall nobody knows of it"
    assert changes[1] == pytest.approx(math.log(FALL), abs=0.02)
    assert changes[2] == pytest.approx(0, abs=0.02)


def test_an_encoding_may_cut_a_number_of_its_key_into_bands(built: Home) -> None:
    (rule,) = [e for e in built.contract.encodings if e.name == "kind_24m"]
    width = rule.bands["storey_mid"]
    index = {row["month"]: row["micro_index"] / 1e6 for row in built.query("from features.market_index").to_pylist()}
    month = max(index)
    before = sorted(index)[-WINDOW - 1 : -1]
    known: dict[str, list[float]] = defaultdict(list)
    for row in built.query("from intermediate.int_observations where is_price_valid").to_pylist():
        if row["month"] in before:
            parts = [row[key] if key not in rule.bands else float(row[key] // width) for key in rule.keys]
            premium = math.log(row["price"] / row["floor_area_sqm"]) - index[row["month"]]
            known["\x1f".join(map(str, parts))].append(premium + index[before[-1]])
    found = built.query(
        f"from features.encodings where encoding = 'kind_24m' and month = date '{month}' and key_value <> '__unseen__'"
    ).to_pylist()
    assert {row["key_value"]: row["n"] for row in found} == {key: len(prices) for key, prices in known.items()}
    assert max(row["n"] for row in found) > 1
    for row in found:
        assert row["mean_log_price"] == pytest.approx(np.mean(known[row["key_value"]]), abs=3e-6)
