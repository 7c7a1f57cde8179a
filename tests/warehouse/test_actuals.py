"""Prices that come later: late, corrected, twice, for unknown keys, simulated. Files as such: ``test_ingest.py``."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dagster_project.raw.actuals import ingest_actuals, needs_staging
from dagster_project.raw.landing import FileOutcome, ingest
from dagster_project.simulate import answer, split
from dagster_project.transform.dbt import build_staging
from ml.warehouse import connect
from tests import factories
from tests.conftest import Home

#: Rows of 2021-10 to 2022-06, 10 a month; those from 2022-04 on have no price when they land.
ROWS = factories.hdb_rows("2021-10", months=9, per_month=10).to_pylist()
IDS = {month: [r["_id"] for r in ROWS if r["month"] == month] for month in sorted({r["month"] for r in ROWS})}
PRICES = {r["_id"]: r["resale_price"] for r in ROWS}
UNPRICED = ("2022-04", "2022-05", "2022-06")
LATE = "2022-07"


def unpriced(rows: list[dict[str, str]]) -> pa.Table:
    return pa.Table.from_pylist(
        [{**r, "resale_price": "" if r["month"] in UNPRICED else r["resale_price"]} for r in rows]
    )


def load_all(home: Home) -> dict[str, FileOutcome]:
    """What the asset does, without Dagster."""
    with connect(home.settings) as connection:
        found = ingest(home.settings, home.contract, connection).files
        is_staged = not needs_staging(home.settings, home.contract, connection)
    if not is_staged:
        build_staging(home.settings)
    with connect(home.settings) as connection:
        found += ingest_actuals(home.settings, home.contract, connection).files
    return {f.file: f for f in found}


def put(home: Home, name: str, *rows: dict[str, object]) -> FileOutcome:
    """Drop a file of actuals and load it."""
    home.settings.landed_actuals.mkdir(parents=True, exist_ok=True)
    texts = [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]
    factories.write_csv(pa.Table.from_pylist(texts), home.settings.landed_actuals / name)
    return load_all(home)[f"actuals/{name}"]


def statuses(home: Home) -> list[tuple[str, int, str]]:
    table = home.query("select _file, _row, status from raw.actuals order by _batch, _row")
    return [
        (file.removeprefix("actuals/"), row, status)
        for file, row, status in zip(*table.to_pydict().values(), strict=True)
    ]


def price(home: Home, key: str) -> str | None:
    """Price of the row that was loaded last."""
    found = home.query(f"select resale_price from raw.observations where _id = '{key}' order by _batch desc, _row desc")
    return found["resale_price"][0].as_py()


def count(home: Home) -> object:
    return home.one("select count(*) from raw.observations")


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home whose rows have landed and whose staging views stand."""
    made = Home(tmp_path_factory.mktemp("staged") / "home", "hdb")
    made.land("rows.csv", unpriced(ROWS))
    load_all(made)
    build_staging(made.settings)
    return made


@pytest.fixture
def hdb(staged: Home, tmp_path: Path) -> Home:
    """A copy of it; views name the database by its file, so the name stays."""
    shutil.copytree(staged.settings.home, tmp_path / "home")
    return Home(tmp_path / "home", "hdb")


def test_a_late_price_fills_its_row_and_nothing_else(hdb: Home) -> None:
    key, other = IDS["2022-04"][:2]
    outcome = put(hdb, "may.csv", {"_id": key, "resale_price": 400_000, "reported_at": "2022-05-03", "note": "x"})
    assert (outcome.status, outcome.rows, outcome.extra_columns) == ("loaded", 1, ("note",))
    assert (price(hdb, key), price(hdb, other)) == ("400000", None)
    appended, original = hdb.query(
        f"select * from raw.observations where _id = '{key}' order by _batch desc"
    ).to_pylist()
    assert appended["_file"] == "actuals/may.csv"
    changed = {"resale_price", "_file", "_row", "_batch", "_loaded_at"}
    assert {k: v for k, v in appended.items() if k not in changed} == {
        k: v for k, v in original.items() if k not in changed
    }


def test_an_observation_id_names_a_row_as_its_key_does(hdb: Home) -> None:
    key = IDS["2022-04"][0]
    query = (
        "select c.observation_id from intermediate.int_observations_checked as c "
        f"inner join raw.observations as o on c._batch = o._batch and c._row = o._row where o._id = '{key}'"
    )
    put(hdb, "by_id.csv", {"observation_id": hdb.one(query), "price": 410_000})
    assert price(hdb, key) == "410000"


def test_a_key_is_read_as_that_of_any_row(hdb: Home) -> None:
    key = IDS["2022-04"][0]
    assert put(hdb, "spaces.csv", {"_id": f" {key} ", "price": "420000"}).status == "loaded"
    table = pa.table({"_id": pa.array([float(IDS["2022-04"][1])]), "price": pa.array([430_000.0])})
    pq.write_table(table, hdb.settings.landed_actuals / "numbers.parquet")
    load_all(hdb)
    assert statuses(hdb) == [("spaces.csv", 1, "applied"), ("numbers.parquet", 1, "applied")]


def test_the_same_prices_again_change_nothing(hdb: Home) -> None:
    key = IDS["2022-04"][0]
    put(hdb, "a.csv", {"_id": key, "price": 400_000})
    before = count(hdb)
    assert load_all(hdb)["actuals/a.csv"].status == "unchanged"
    assert put(hdb, "b.csv", {"_id": key, "price": 400_000}).status == "duplicate"
    assert put(hdb, "c.csv", {"_id": key, "price": "400000.0"}).status == "loaded"
    assert count(hdb) == before
    assert statuses(hdb) == [("a.csv", 1, "applied"), ("c.csv", 1, "unchanged")]


def test_of_several_prices_the_one_reported_last_counts_then_the_one_loaded_last(hdb: Home) -> None:
    key = IDS["2022-04"][0]
    put(
        hdb,
        "a.csv",
        {"_id": key, "price": 400_000, "reported_at": "2022-05-01"},
        {"_id": key, "price": 401_000, "reported_at": "2022-05-03T10:00:00+08:00"},
        {"_id": key, "price": 402_000, "reported_at": "2022-05-03 01:59"},
    )
    assert price(hdb, key) == "401000"
    put(hdb, "older.csv", {"_id": key, "price": 403_000, "reported_at": "2022-05-02"})
    assert price(hdb, key) == "401000"
    put(hdb, "correction.csv", {"_id": key, "price": 404_000, "reported_at": "2022-06-01"})
    assert price(hdb, key) == "404000"
    put(hdb, "undated.csv", {"_id": key, "price": 405_000})  # counts from when it landed
    assert price(hdb, key) == "405000"
    assert [s for _, _, s in statuses(hdb)] == [
        *("superseded", "applied", "superseded", "superseded", "applied", "applied")
    ]


def test_a_price_told_to_the_api_fills_and_corrects_its_own_and_changes_no_landed_one(hdb: Home) -> None:
    landed, missing = IDS["2022-03"][0], IDS["2022-04"][0]
    before = price(hdb, landed)
    told = {"price": 400_000, "source": "online"}
    put(hdb, "online-1.csv", {"_id": landed, **told}, {"_id": missing, **told})
    assert (price(hdb, landed), price(hdb, missing)) == (before, "400000")
    put(hdb, "online-2.csv", {"_id": missing, "price": 410_000, "source": "online"})
    assert price(hdb, missing) == "410000"
    # an operator's file counts, though the API is told of another price later
    put(hdb, "file.csv", {"_id": missing, "price": 420_000})
    put(hdb, "online-3.csv", {"_id": missing, "price": 430_000, "source": "online"})
    assert price(hdb, missing) == "420000"
    assert [s for _, _, s in statuses(hdb)] == ["outranked", "applied", "applied", "applied", "outranked"]


def test_a_price_for_an_unknown_key_waits_for_its_row(hdb: Home) -> None:
    late = factories.hdb_rows(LATE, months=1, per_month=3).to_pylist()
    put(hdb, "early.csv", *({"_id": r["_id"], "price": 500_000 + i} for i, r in enumerate(late)))
    assert {s for _, _, s in statuses(hdb)} == {"unknown_key"}
    assert count(hdb) == len(ROWS)
    # two rows land without a price, the third with its own, which is newer
    late[0]["resale_price"] = late[1]["resale_price"] = ""
    hdb.land("late.csv", pa.Table.from_pylist(late))
    load_all(hdb)
    assert [price(hdb, r["_id"]) for r in late] == ["500000", "500001", late[2]["resale_price"]]
    assert [s for _, _, s in statuses(hdb)] == ["applied", "applied", "superseded"]
    files = hdb.query("select file, status, rows from raw.files order by batch").to_pylist()
    assert [tuple(f.values()) for f in files[1:]] == [
        ("actuals/early.csv", "loaded", 3),
        ("late.csv", "loaded", 3),
        ("actuals/early.csv", "resolved", 2),
    ]
    load_all(hdb)
    assert count(hdb) == len(ROWS) + 3 + 2


def test_a_row_that_lands_again_keeps_the_price_it_was_given_unless_it_brings_one(hdb: Home) -> None:
    key = IDS["2022-04"][0]
    put(hdb, "a.csv", {"_id": key, "price": 400_000})
    row = next(r for r in ROWS if r["_id"] == key)
    hdb.land("corrected_area.csv", pa.Table.from_pylist([{**row, "floor_area_sqm": "99", "resale_price": ""}]))
    load_all(hdb)
    newest = "select resale_price, floor_area_sqm from raw.observations order by _batch desc limit 1"
    assert hdb.query(newest).to_pylist() == [{"resale_price": "400000", "floor_area_sqm": "99"}]
    hdb.land("corrected_price.csv", pa.Table.from_pylist([{**row, "resale_price": "390000"}]))
    load_all(hdb)
    assert price(hdb, key) == "390000"


def test_simulated_prices_never_become_rows(hdb: Home) -> None:
    put(hdb, "s.csv", *({"_id": k, "price": 400_000, "source": "simulated"} for k in IDS["2022-04"]))
    assert count(hdb) == len(ROWS)
    assert {s for _, _, s in statuses(hdb)} == {"simulated"}


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (
            [{"_id": "1", "amount": "1"}],
            "a row is named by observation_id or by _id, its price is resale_price or price",
        ),
        ([{"town": "BEDOK", "price": "400000"}], "lacks the required column 'observation_id'"),
        ([{"_id": "", "price": "400000"}], "'_id' is empty"),
        ([{"_id": "1", "price": "much"}], "'price' is not a number"),
        ([{"_id": "1", "price": ""}], "'price' is not a number"),
        ([{"_id": "1", "price": "4"}], "'price' is outside 50,000"),
        ([{"_id": "1", "price": "400000", "reported_at": "soon"}], "'reported_at' is not a time like"),
        ([{"_id": "1", "price": "400000", "source": "dream"}], "'source' is none of reported, online, simulated"),
    ],
)
def test_a_bad_file_is_quarantined_whole(hdb: Home, rows: list[dict[str, object]], why: str) -> None:
    outcome = put(hdb, "bad.csv", *rows)
    assert outcome.status == "quarantined"
    assert why in (outcome.reason or "")
    assert (hdb.settings.quarantine / "actuals" / "bad.csv").exists()
    assert (hdb.settings.quarantine / "actuals" / "bad.csv.report.txt").exists()
    assert not (hdb.settings.landed_actuals / "bad.csv").exists()
    assert hdb.one("select count(*) from raw.actuals") == 0
    assert count(hdb) == len(ROWS)


def test_single_unreadable_prices_are_kept_and_said(hdb: Home) -> None:
    rows: list[dict[str, object]] = [{"_id": key, "price": PRICES[key]} for key in [*PRICES][:60]]
    rows[7]["price"] = "n/a"
    put(hdb, "a.csv", *rows)
    assert hdb.query("select _row, reason from raw.actuals where status = 'invalid'").to_pylist() == [
        {"_row": 8, "reason": "the price is not a number"}
    ]


def test_the_same_file_landed_as_observations_is_no_duplicate(hdb: Home) -> None:
    late = factories.hdb_rows(LATE, months=1, per_month=3)
    factories.write_csv(late, hdb.settings.landed_actuals / "july.csv")
    assert load_all(hdb)["actuals/july.csv"].status == "loaded"
    hdb.land("july.csv", late)
    assert load_all(hdb)["july.csv"].status == "loaded"
    assert {s for _, _, s in statuses(hdb)} == {"unchanged"}


# Through dbt ----------------------------------------------------------------------------------------------------------

PREDICTED = """
insert into predictions.predictions by name
select
    observation_id, 'v1' as model_version, 'model' as kind,
    case when price is null then 'to_score' else 'holdout' end as split, observed_on, month, area, locality,
    450000.0 as predicted_price, 1 as built_through_batch, timestamp '2022-07-01' as scored_at, 'r' as run_id
from intermediate.int_observations_checked where month >= date '2022-03-01'
"""
#: Tables that an increment leaves as a full refresh makes them, and the columns that do not tell when.
TABLES = {
    "features.features": "* exclude (built_through_batch)",
    "features.encodings": "* exclude (built_through_batch)",
    "predictions.actuals": "*",
    "predictions.predictions_matched": "*",
    "monitoring.accuracy_by_month": "* exclude (mae, rmse, r2, mape_pct)",  # sums in another order
    "monitoring.reconciliation": "*",
}

Tables = dict[str, list[dict]]


def build(home: Home, *arguments: str) -> Tables:
    """Everything that later prices touch, and what it is then."""
    home.dbt(
        "build",
        "--resource-type",
        "model",
        "--resource-type",
        "seed",
        "--select",
        "+accuracy_by_month",
        "+accuracy",
        "+reconciliation",
        *arguments,
    )
    return {
        table: sorted(home.query(f"select {columns} from {table}").to_pylist(), key=repr)
        for table, columns in TABLES.items()
    }


@pytest.fixture(scope="module")
def story(staged: Home, tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, dict[str, Tables]]:
    """Scored months. April's prices came online; one is corrected when May's come and June's are made up."""
    shutil.copytree(staged.settings.home, folder := tmp_path_factory.mktemp("story") / "home")
    home = Home(folder, "hdb")
    with connect(home.settings) as connection:
        connection.execute(PREDICTED)
    predictions = home.query("from predictions.predictions order by all")
    april, may, june = (IDS[month] for month in UNPRICED)
    put(home, "april.csv", *({"_id": k, "price": PRICES[k], "source": "online"} for k in april))
    states = {"april": build(home)}
    put(home, "simulated.csv", *({"_id": k, "price": 451_000, "source": "simulated"} for k in [*may, *june]))
    put(home, "correction.csv", {"_id": april[0], "price": 900_000})
    put(home, "may.csv", *({"_id": k, "price": PRICES[k]} for k in may))
    states["may"] = build(home)
    states["refreshed"] = build(home, "--full-refresh")
    # nothing of this scores anything again
    assert home.query("from predictions.predictions order by all").equals(predictions)
    return home, states


def by_month(state: Tables) -> dict[str, dict]:
    """What is said of v1 and all real prices, by month."""
    wanted = {"model_version": "v1", "split": "holdout", "population": "all"}
    rows = [r for r in state["monitoring.accuracy_by_month"] if wanted.items() <= r.items()]
    return {r["month"].isoformat()[:7]: r for r in rows}


def test_prices_change_the_accuracy_of_their_own_months(story: tuple) -> None:
    _, states = story
    april, may = by_month(states["april"]), by_month(states["may"])
    assert (sorted(april), sorted(may)) == (["2022-03", "2022-04"], ["2022-03", "2022-04", "2022-05"])
    assert april["2022-03"] == may["2022-03"]
    prices = [float(PRICES[k]) for k in IDS["2022-04"]]
    assert april["2022-04"]["median_ratio"] == pytest.approx(np.median([450_000 / p for p in prices]))
    prices[0] = 900_000
    assert may["2022-04"]["median_ratio"] == pytest.approx(np.median([450_000 / p for p in prices]))
    assert april["2022-04"] != may["2022-04"]
    assert may["2022-05"]["n"] == 10


def test_each_price_says_where_it_came_from(story: tuple) -> None:
    _, states = story
    found = {(r["month"].isoformat()[:7], r["source"]) for r in states["may"]["predictions.actuals"]}
    landed = {(month, "landed") for month in IDS if month not in UNPRICED}
    corrected = {("2022-04", "reported")}  # one of April's, which had come online
    assert found == landed | corrected | {("2022-04", "online"), ("2022-05", "reported"), ("2022-06", "simulated")}


def test_simulated_prices_are_shown_and_never_judged_nor_learned_from(story: tuple) -> None:
    home, states = story
    shown = [r for r in states["may"]["monitoring.accuracy_by_month"] if r["population"] == "simulated"]
    # May has real prices by now; as good as the model looks in June, that is no verdict
    assert {(str(r["month"]), r["status"]) for r in shown} == {("2022-06-01", "insufficient_data")}
    assert any(r["model_version"] == "v1" and r["n"] == 10 and r["mdape_pct"] < 1 for r in shown)
    assert (
        home.one(
            "select count(*) from monitoring.accuracy where population = 'simulated' and status <> 'insufficient_data'"
        )
        == 0
    )
    assert home.one("select count(*) from features.features where month = date '2022-06-01' and price is not null") == 0
    assert home.one("select count(*) from predictions.predictions_matched where month = date '2022-06-01'") == 0
    assert home.one("select count(*) from predictions.actuals where source = 'simulated' and is_price_valid") == 0


def test_matched_months_are_made_again_whatever_changed_in_them(story: tuple) -> None:
    home, _ = story
    folder = home.settings.home.with_name("matched")
    shutil.copytree(home.settings.home, folder)
    copy = Home(folder, "hdb")
    table = "predictions.predictions_matched"
    april = copy.query(f"select observation_id from {table} where month = date '2022-04-01' and model_version = 'v1'")
    said, gone, new = april.column(0).to_pylist()[:3]
    with connect(copy.settings) as connection:
        # another price was said, a row is gone, one is new; what is stored is not what was built, and a month too many
        connection.execute(f"""
            update predictions.predictions set predicted_price = 1 where observation_id = '{said}';
            delete from predictions.predictions where observation_id = '{gone}';
            insert into predictions.predictions by name
            select * replace ('v2' as model_version) from predictions.predictions
            where observation_id = '{new}';
            update {table} set ratio = 9 where month = date '2022-05-01';
            insert into {table} by name select * replace (date '2000-01-01' as month) from {table}
        """)
    increment, refreshed = build(copy), build(copy, "--full-refresh")
    assert increment[table] == refreshed[table]
    told = [r for r in increment[table] if str(r["month"]).startswith("2022-04") and r["model_version"] in {"v1", "v2"}]
    assert (len(told), min(r["predicted_price"] for r in told)) == (10, 1)


def test_loads_of_later_prices_reconcile_and_equal_a_full_refresh(story: tuple) -> None:
    _, states = story
    for row in states["may"]["monitoring.reconciliation"]:
        assert row["status"] == "pass", row
    landed = {
        r["file"]: (r["rows_in_file"], r["actuals"], r["landed"]) for r in states["may"]["monitoring.reconciliation"]
    }
    assert landed == {
        "rows.csv": (90, 0, 90),
        "actuals/april.csv": (10, 10, 10),
        "actuals/simulated.csv": (20, 20, 0),
        "actuals/correction.csv": (1, 1, 1),
        "actuals/may.csv": (10, 10, 10),
    }
    for table in TABLES:
        assert states["may"][table] == states["refreshed"][table], table


def test_a_simulation_splits_what_has_no_price_and_answers_with_predictions_and_noise(
    story: tuple, tmp_path: Path
) -> None:
    home, _ = story
    source = factories.write_csv(unpriced(ROWS), tmp_path / "rows.csv")
    pieces = split(home.contract, source, tmp_path, 4)
    assert [p.name for p in pieces] == [f"rows_{n:02}_of_04.csv" for n in range(1, 5)]
    ids = [line.split(",")[0] for p in pieces for line in p.read_text().splitlines()[1:]]
    assert ids == [k for month in UNPRICED for k in IDS[month]]
    with connect(home.settings) as connection:
        connection.execute("insert into training.model_versions (model_version, status) values ('v1', 'champion')")
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            # April and May have prices by now
            assert answer(connection, "rows.csv", tmp_path / name, seed=seed) == 10
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() != (tmp_path / "c").read_text()
    lines = [line.split(",") for line in (tmp_path / "a").read_text().replace('"', "").splitlines()[1:]]
    assert {source for _, _, source in lines} == {"simulated"}
    assert 0.01 < max(abs(float(price) / 450_000 - 1) for _, price, _ in lines) <= 0.21
