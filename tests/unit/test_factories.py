"""The test data themselves: what other tests count on."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from ml import contract
from tests import factories

MAKERS = {
    "hdb": lambda **d: factories.hdb_rows("2019-01", 3, 100, **d),
    "housets": lambda **d: factories.housets_rows(4, since="2023-07", **d),
    "ames": lambda **d: factories.ames_rows(120, **d),
    "house_data": lambda **d: factories.house_data_rows(120, **d),
}


@pytest.mark.parametrize("dataset", MAKERS)
def test_rows_have_exactly_the_headers_of_the_contract_and_repeat_with_the_seed(dataset: str) -> None:
    table = MAKERS[dataset]()
    assert set(table.column_names) == set(contract.load(dataset).sources)
    assert table.equals(MAKERS[dataset]())
    assert not table.equals(MAKERS[dataset](seed=8))
    assert set(table.schema.types) == {pa.string()}


@pytest.mark.parametrize("dataset", MAKERS)
def test_defects_add_exactly_the_rows_asked_for(dataset: str) -> None:
    clean, dirty = MAKERS[dataset](), MAKERS[dataset](duplicates=3, corrected=2, outliers=4, unpriced=5)
    price = next(h for h, c in contract.load(dataset).sources.items() if c.role == "price")
    assert dirty.num_rows == clean.num_rows + 5
    assert dirty[price].to_pylist().count("999999999") == 4
    assert dirty[price].null_count == 5
    assert dirty.group_by(dirty.column_names).aggregate([]).num_rows == clean.num_rows + 2


def test_a_month_of_flats_does_not_depend_on_the_months_around_it() -> None:
    # without it, landing "one more month" in a test would change the history, too
    history = factories.hdb_rows("2018-01", 6, 50)
    assert factories.with_month(history, "2018-04").equals(factories.hdb_rows("2018-04", 1, 50))


def test_flats_follow_the_stated_price_formula() -> None:
    table = factories.hdb_rows("2018-01", 24, 100)
    month = np.array([(int(m[:4]) - 2018) * 12 + int(m[5:]) - 1 for m in table["month"].to_pylist()])
    level = np.array([factories.HDB_TOWNS[t] for t in table["town"].to_pylist()])
    lease = np.array([int(t.split()[0]) + int(t.split()[2]) / 12 for t in table["remaining_lease"].to_pylist()])
    area = np.array([float(a) for a in table["floor_area_sqm"].to_pylist()])
    noise = np.log(np.array(table["resale_price"].to_pylist(), float) / factories.hdb_price(level, month, area, lease))
    assert abs(noise.mean()) < 0.005
    assert noise.std() == pytest.approx(0.05, rel=0.1)


def test_an_unseen_area_stands_only_in_the_last_month() -> None:
    table = factories.hdb_rows("2018-01", 6, 50, unseen_area=7)
    towns = zip(table["town"].to_pylist(), table["month"].to_pylist(), strict=True)
    assert [month for town, month in towns if town == factories.UNSEEN_AREA] == ["2018-06"] * 7


def test_an_unknown_defect_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no defect named.*known are: duplicates, corrected"):
        factories.hdb_rows("2018-01", 1, 10, typo=1)  # pyright: ignore[reportCallIssue]
