"""Cleaning by contract, in combinations that no shipped dataset has: a number may stand for missing anywhere."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from dagster_project.transform.dbt import read_project
from ml.dataset import DatasetError, select, training_window
from ml.warehouse import connect
from tests import factories
from tests.conftest import Home

#: What is added to columns of the contract of hdb.
CHANGED: dict[str, dict[str, Any]] = {
    # without its bound: what has no logarithm must be seen all the same
    "resale_price": {"missing": [0], "min": -1000},
    "floor_area_sqm": {"required": True, "missing": [0], "min": 1, "outside": "null"},
    "lease_commence_year": {"outside": "reject", "min": 1900, "missing": [0]},
}


def put(rows: pa.Table, column: str, values: dict[int, str]) -> pa.Table:
    texts = rows[column].to_pylist()
    for row, value in values.items():
        texts[row] = value
    return rows.set_column(rows.column_names.index(column), column, [texts])


@pytest.fixture
def built(home, monkeypatch: pytest.MonkeyPatch) -> Home:
    made: Home = home("hdb")
    rows = factories.hdb_rows("2020-01", months=3, per_month=30)
    rows = put(rows, "resale_price", {0: "0", 1: "-5"})
    rows = put(rows, "floor_area_sqm", {2: "0", 3: "-1"})
    rows = put(rows, "lease_commence_date", {4: "0", 5: "7"})
    rows = put(rows, "month", {7: "2203-01", 8: "2203-01"})
    rows = put(rows, "resale_price", {8: ""})
    rows = put(rows, "town", {10: "BO\u0308ZINGEN", 11: "B\u00d6ZINGEN"})
    made.land("rows.csv", rows)
    made.ingest()
    nodes = read_project(made.settings).nodes
    columns = nodes["model.housing.stg_hdb__observations"].config.meta["contract"]["columns"]
    for column in columns:
        for field, value in CHANGED.get(column["name"], {}).items():
            monkeypatch.setitem(column, field, value)
    made.build()
    return made


def test_a_number_that_stands_for_missing_is_none_in_every_role(built: Home) -> None:
    found = {
        row.pop("_row"): row
        for row in built.query(
            "select _row, labels, reasons, price_reasons, price, floor_area_sqm, lease_commence_year, split, "
            "is_price_valid from intermediate.int_observations_labelled where _row <= 7"
        ).to_pylist()
    }
    assert found[1]["price"] is None and found[1]["split"] == "to_score" and not found[1]["price_reasons"]
    assert "resale_price:missing" in found[1]["labels"]
    # no price, whatever the contract allows
    assert found[2]["price_reasons"] == ["resale_price:out_of_range"] and not found[2]["is_price_valid"]
    assert found[3]["reasons"] == ["floor_area_sqm:missing"] and found[3]["floor_area_sqm"] is None
    assert "floor_area_sqm:out_of_range" not in found[3]["labels"]
    assert found[4]["reasons"] == [] and "floor_area_sqm:out_of_range" in found[4]["labels"]
    assert found[5]["reasons"] == [] and found[5]["lease_commence_year"] is None
    assert found[6]["reasons"] == ["lease_commence_year:out_of_range"]
    assert found[7]["labels"] == [] and found[7]["is_price_valid"]


def test_no_price_is_known_of_a_month_after_it_landed(built: Home) -> None:
    """A slip in the year would otherwise make a single price the newest market there is."""
    found = built.query(
        "select _row, price_reasons, is_price_valid, split from intermediate.int_observations_labelled "
        "where month = '2203-01-01' order by _row"
    ).to_pylist()
    assert found == [
        {"_row": 8, "price_reasons": ["sold_month:after_it_landed"], "is_price_valid": False, "split": "holdout"},
        {"_row": 9, "price_reasons": [], "is_price_valid": False, "split": "to_score"},
    ]
    assert str(built.one("select max(month) from features.encodings")) < "2023"


def test_a_place_with_its_accents_apart_is_the_place_it_looks_like(built: Home) -> None:
    towns = built.query("select distinct area from intermediate.int_observations where _row in (11, 12)")
    assert towns["area"].to_pylist() == ["B\u00d6ZINGEN"]


def test_where_nearly_all_rows_are_rejected_nobody_is_sent_for_more(home) -> None:
    made: Home = home("hdb")
    rows = factories.hdb_rows("2020-01", months=3, per_month=30)
    made.land("rows.csv", put(rows, "town", dict.fromkeys(range(3, 90), "")))
    made.ingest()
    made.build()
    with (
        connect(made.settings) as connection,
        pytest.raises(DatasetError, match="of 90 landed rows 87 were rejected, 87 of them as town:"),
    ):
        select(connection, made.contract, training_window(made.contract))
