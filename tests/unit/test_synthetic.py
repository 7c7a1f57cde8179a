"""The generated HouseTS-shaped file: shape, repeatability, and each defect in its stated share."""

from __future__ import annotations

import hashlib
from pathlib import Path

import duckdb
import numpy as np
import pytest

from ml import contract, synthetic
from ml.settings import PROJECT_ROOT

ROWS = 30_000
REAL = PROJECT_ROOT.parent / "shared" / "data" / "housets" / "HouseTS_sample.csv"
HEADER = (
    "date,median_sale_price,median_list_price,median_ppsf,median_list_ppsf,homes_sold,pending_sales,new_listings,"
    "inventory,median_dom,avg_sale_to_list,sold_above_list,off_market_in_two_weeks,city,zipcode,year,bank,bus,hospital,"
    "mall,park,restaurant,school,station,supermarket,Total Population,Median Age,Per Capita Income,"
    "Total Families Below Poverty,Total Housing Units,Median Rent,Median Home Value,Total Labor Force,"
    "Unemployed Population,Total School Age Population,Total School Enrollment,Median Commute Time,price,city_full"
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "HouseTS.csv"
    synthetic.generate(out, ROWS, seed=1)
    return out


@pytest.fixture(scope="module")
def panel(file: Path) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute(f"create table panel as select * from read_csv('{file}')")
    connection.execute(f"create table text as select * from read_csv('{file}', all_varchar = true)")
    return connection


def one(panel: duckdb.DuckDBPyConnection, expression: str, of: str = "panel") -> float:
    row = panel.execute(f"select {expression} from {of}").fetchone()
    assert row
    return float(row[0])


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_file_has_the_published_header_and_the_rows_asked_for(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines[0] == HEADER
    assert set(HEADER.split(",")) == set(contract.load("housets").sources)
    assert len(lines) == ROWS + 1


@pytest.mark.skipif(not REAL.is_file(), reason=f"no real HouseTS sample at {REAL}")
def test_header_types_and_metros_are_those_of_the_real_sample(panel: duckdb.DuckDBPyConnection) -> None:
    real = panel.sql(f"select * from read_csv('{REAL}')")
    assert dict(zip(real.columns, real.types, strict=True)) == dict(
        zip(panel.table("panel").columns, panel.table("panel").types, strict=True)
    )
    names = "select distinct city, trim(city_full) from"
    ours = panel.execute(f"{names} panel where upper(city_full) <> city_full").fetchall()
    assert set(ours) == set(panel.execute(f"{names} read_csv('{REAL}')").fetchall())


def test_the_same_rows_and_seed_give_the_same_bytes_and_another_seed_others(file: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again.csv", tmp_path / "other.csv"
    synthetic.generate(again, ROWS, seed=1)
    synthetic.generate(other, ROWS, seed=2)
    assert digest(again) == digest(file) != digest(other)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.csv", "other.csv"]


def test_every_zip_code_has_each_month_but_one_that_enters_late(panel: duckdb.DuckDBPyConnection) -> None:
    counted = panel.execute("select count(distinct date) n from panel group by zipcode order by n").fetchall()
    months = [n for (n,) in counted]
    assert set(months[1:]) == {142}
    assert one(panel, "count(distinct date)") == 142
    assert one(panel, "count(distinct city)") == 30


# share of rows; None: as stated in DEFECTS
SHARES = {
    "zero_census": '("Total Population" = 0 and "Median Rent" = 0 and "Median Commute Time" = 0)::int',
    "zero_market": "(homes_sold = 0 and inventory = 0 and off_market_in_two_weeks = 0)::int",
    "messy_name": "(city_full <> trim(city_full) or upper(city_full) = city_full)::int",
    "empty_cell": "(median_dom is null)::int",
    "outlier": "(price not between 10 and 5e7 or (median_list_price not between 10 and 5e7 and homes_sold > 0))::int",
}


@pytest.mark.parametrize("defect", SHARES)
def test_each_defect_stands_in_about_its_stated_share_of_rows(defect: str, panel: duckdb.DuckDBPyConnection) -> None:
    stated = synthetic.DEFECTS[defect][0]
    # whole zip-years share a fate, so that their share scatters as that of n/12
    n = ROWS / 12 if defect == "zero_census" else ROWS
    assert abs(one(panel, f"avg({SHARES[defect]})") - stated) < 4.5 * (stated * (1 - stated) / n) ** 0.5


def test_rows_seen_twice_are_as_many_as_stated_equal_or_corrected(panel: duckdb.DuckDBPyConnection) -> None:
    keys, distinct = (
        one(panel, "count(distinct (zipcode, date))"),
        one(panel, "count(*)", "(from text select distinct *)"),
    )
    assert ROWS - distinct == round(ROWS * synthetic.DEFECTS["duplicate"][0])
    assert distinct - keys == round(ROWS * synthetic.DEFECTS["corrected"][0])


def test_census_is_constant_within_a_year(panel: duckdb.DuckDBPyConnection) -> None:
    varied = 'from panel group by zipcode, year having count(distinct "Median Home Value") > 1'
    assert panel.execute(f"select 1 {varied}").fetchall() == []


def test_new_england_zip_codes_lost_their_leading_zero(panel: duckdb.DuckDBPyConnection) -> None:
    boston = panel.execute("select distinct zipcode from text where city = 'BOS'").fetchall()
    assert boston
    assert {len(zipcode) for (zipcode,) in boston} == {4}


def test_prices_surge_to_mid_2022_and_dip_into_2023(panel: duckdb.DuckDBPyConnection) -> None:
    def median(month: str) -> float:
        return one(panel, f"median(price) filter (date = last_day(date '{month}-01'))")

    assert 1.15 < median("2022-06") / median("2020-06") < 1.6
    # the same month of the year, or the season would stand in the way
    assert 0.90 < median("2023-06") / median("2022-06") < 1.0


def test_list_and_sale_prices_follow_the_price_with_the_stated_noise(panel: duckdb.DuckDBPyConnection) -> None:
    def spread(column: str) -> float:
        sane = f"from panel where price between 1e4 and 2e7 and {column} between 1e4 and 3e7"
        return one(panel, "stddev(r)", f"(select ln({column} / price) as r {sane})")

    assert 0.08 < spread("median_list_price") < 0.16  # few listings, rough medians
    assert 0.02 < spread("median_sale_price") < 0.04


def test_defects_can_be_left_out() -> None:
    clean = synthetic.tables(5_000, 1, {})
    for table in clean:
        assert np.array(table["Total Population"]).min() > 0
        assert table["median_dom"].null_count == 0


def test_an_unknown_defect_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no defect named \['typo'\]; known are: zero_census, zero_market"):
        next(synthetic.tables(5_000, 1, {"typo": 0.1}))


@pytest.mark.parametrize(("rows", "sentence"), [(100, "ask for at least 150 rows"), (10**8, "is too many")])
def test_an_impossible_number_of_rows_is_refused_and_leaves_nothing_behind(
    rows: int, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        synthetic.generate(tmp_path / "HouseTS.csv", rows, seed=1)
    assert list(tmp_path.iterdir()) == []


def test_progress_ends_at_the_rows_asked_for(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    synthetic.generate(tmp_path / "few.csv", 1_000, seed=1, progress=lambda done, of: seen.append((done, of)))
    assert seen[-1] == (1_000, 1_000)
    assert seen == sorted(seen)


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a folder; name the file to write, for example .*housets_synthetic\.csv"):
        synthetic.generate(tmp_path, ROWS, seed=1)
    assert not list(tmp_path.parent.glob(".*part"))
