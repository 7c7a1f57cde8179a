"""The warehouse's promises about time: increments equal full refreshes, and the future never reaches back."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest

from dagster_project.transform.dbt import DbtError
from ml.warehouse import connect
from tests import factories
from tests.conftest import Home

#: Relations compared row for row; `_loaded_at` is the only column that may differ between two runs.
COMPARED = {
    "intermediate.int_observations_labelled": "_batch, _row",
    "intermediate.int_observations_current": "observation_id",
    "intermediate.int_observations_rejected": "_batch, _row",
    "features.market_index": "month",
    "features.encodings": "encoding, key_value, month",
    "features.features": "observation_id",
}


def rows(home: Home, relation: str, where: str = "true") -> pa.Table:
    volatile = {"_loaded_at", "built_through_batch"}
    table = home.query(f"select * from {relation} where {where} order by {COMPARED[relation]}")
    return table.drop_columns([c for c in table.column_names if c in volatile])


def changed(rows: pa.Table, what: str, where: str = "true") -> pa.Table:
    """The rows with some columns replaced, in SQL."""
    return duckdb.sql(f"select * {what} from rows where {where}").to_arrow_table()


def repriced(rows: pa.Table, factor: float) -> pa.Table:
    return changed(rows, f"replace (cast(round(cast(resale_price as double) * {factor}) as varchar) as resale_price)")


def test_months_added_one_by_one_equal_a_full_refresh_row_for_row(home) -> None:
    every = factories.hdb_rows(
        "2020-06", months=24, per_month=60, duplicates=5, bad_dates=3, null_features=4, outliers=4
    )
    late = factories.hdb_rows("2020-12", months=1, per_month=15, seed=99)
    late = changed(late, "replace ('late-' || _id as _id)")
    corrected = repriced(factories.with_month(every, "2021-03"), 1.25)
    unpriced = changed(factories.with_month(every, "2021-01"), "replace ('' as resale_price)")
    earlier = changed(every, "", "month < '2022-03' or month not similar to '[0-9]{4}-[0-9]{2}'")
    parts = {
        "1_history.csv": earlier,
        "2_march.csv": factories.with_month(every, "2022-03"),
        # a gap of no month, then a late file for an old month and a corrected row for a known key
        "3_april.csv": factories.with_month(every, "2022-04"),
        "4_late.csv": late,
        "5_corrected.csv": corrected,
        # two months without a sale: what is known of places goes on meanwhile
        "6_after_a_gap.csv": changed(factories.with_month(every, "2022-05"), "replace ('2022-07' as month)"),
        "7_unpriced.csv": unpriced,
    }
    stepwise, at_once = home("hdb", "stepwise"), home("hdb", "at_once")
    for name, part in parts.items():
        stepwise.land(name, part)
        stepwise.ingest()
        if name != "4_late.csv":
            stepwise.build()
        at_once.land(name, part)
    at_once.ingest()
    at_once.build("--full-refresh")

    for relation in COMPARED:
        left, right = rows(stepwise, relation), rows(at_once, relation)
        assert left.num_rows > 0, relation
        assert left.equals(right), f"{relation}: increments and full refresh differ"
    # the corrected price counts, the first one is kept with its reason
    reasons = stepwise.query(
        "select reason, count(*) as n from "
        "(select unnest(reasons) as reason from intermediate.int_observations_rejected) group by reason"
    ).to_pylist()
    counts = {r["reason"]: r["n"] for r in reasons}
    assert counts["superseded"] == 5 + corrected.num_rows + unpriced.num_rows
    assert counts["price:taken_back"] == unpriced.num_rows
    assert counts["sold_month:missing"] == 3


def test_editing_a_future_month_changes_no_earlier_feature(home) -> None:
    every = factories.hdb_rows("2021-01", months=14, per_month=60)
    edited = home("hdb")
    edited.land("1_all.csv", every)
    edited.ingest()
    edited.build()
    before = {r: rows(edited, r, "month <= date '2021-10-01'") for r in ("features.features", "features.encodings")}
    later = rows(edited, "features.features", "month > date '2021-10-01'")

    edited.land("2_edited.csv", repriced(factories.with_month(every, "2021-10"), 1.7))
    edited.ingest()
    edited.build()

    # October itself keeps its features: no row sees its own month
    own = ["price"]
    for relation, earlier in before.items():
        now = rows(edited, relation, "month <= date '2021-10-01'")
        drop = [c for c in (*own, "_batch", "_row") if c in earlier.column_names]
        assert earlier.drop_columns(drop).equals(now.drop_columns(drop)), f"{relation}: the future reached back"
    changed = rows(edited, "features.features", "month > date '2021-10-01'")
    assert not later.equals(changed), "the edited prices are history for later months, so these must change"


def test_a_build_asks_for_keys_that_its_load_brought_twice_and_dbt_test_for_all(home) -> None:
    made = home("hdb")
    every = factories.hdb_rows("2021-01", months=4, per_month=20)
    for name, part in {
        "1.csv": changed(every, "", "month < '2021-04'"),
        "2.csv": changed(every, "", "month = '2021-04'"),
    }.items():
        made.land(name, part)
        made.ingest()
        made.build()
    first, last = (
        made.query("select min(built_through_batch), max(built_through_batch) from features.features")
        .to_pylist()[0]
        .values()
    )
    assert first < last
    whole = made.settings.warehouse.read_bytes()

    def found(command: str, batch: int | None = None, like: int | None = None, key: str = "observation_id") -> bool:
        """Does the test of `features` find a row of a batch with the key of another?"""
        made.settings.warehouse.write_bytes(whole)
        if batch:
            with connect(made.settings) as connection:
                connection.execute(
                    f"insert into features.features select * replace ({key} as observation_id, {batch} as "
                    f"built_through_batch) from features.features where built_through_batch = {like} limit 1"
                )
        try:
            made.dbt(command, "--select", "unique_key_features_observation_id__built_through_batch")
        except DbtError:
            return True
        return False

    assert not found("build")
    assert found("build", last, last), "twice in the newest load"
    assert found("build", last, first), "once there and once before"
    assert found("build", last, last, key="null")
    assert not found("build", first, first), "it was asked for when it was new"
    assert found("test", first, first)
    assert found("test", first, first, key="null")

    made.settings.warehouse.write_bytes(whole)
    with connect(made.settings) as connection:
        labelled = "intermediate.int_observations_labelled"
        connection.execute(f"insert into {labelled} from {labelled} order by _batch desc limit 1")
    with pytest.raises(DbtError, match="Got 1 result"):
        made.dbt("build", "--select", "unique_key_int_observations_labelled__batch___row___batch")


# each file is a batch of its own, and the last one alone is not what a run brought
def test_keys_of_all_files_that_land_together_are_asked_for(home) -> None:
    made = home("hdb")
    every = factories.hdb_rows("2021-01", months=3, per_month=20)
    for landed_together in (["2021-01"], ["2021-02", "2021-03"]):
        for month in landed_together:
            made.land(f"{month}.csv", changed(every, "", f"month = '{month}'"))
        made.ingest()
        if landed_together == ["2021-01"]:
            made.build()
    key = "unique_key_stg_hdb__observations__batch___row___batch"
    made.dbt("build", "--select", key)
    with connect(made.settings) as connection:
        raw = "raw.observations"
        connection.execute(f"insert into {raw} from {raw} where _batch = (select max(_batch) - 1 from {raw}) limit 1")
    with pytest.raises(DbtError, match="Got 1 result"):
        made.dbt("build", "--select", key)


def test_every_landed_row_ends_in_exactly_one_place(home) -> None:
    made = home("hdb")
    made.land(
        "all.csv",
        factories.hdb_rows(
            "2021-01",
            months=14,
            per_month=60,
            duplicates=5,
            corrected=4,
            bad_dates=3,
            unseen_area=2,
            null_features=6,
            outliers=5,
            unpriced=7,
        ),
    )
    made.ingest()
    made.build()
    landed = made.one("select count(*) from raw.observations")
    accepted = made.one("select count(*) from training.training_dataset")
    rejected = made.one("select count(*) from intermediate.int_observations_rejected")
    assert isinstance(accepted, int) and isinstance(rejected, int)
    assert landed == accepted + rejected
    assert made.one("select count(*) from training.training_dataset where split = 'to_score'") == 7
    # an unseen area is scored by the means of all areas, not rejected
    unseen = made.query(
        f"select town_3m_to_level, target_offset from training.training_dataset where area = '{factories.UNSEEN_AREA}'"
    )
    assert unseen.num_rows == 2
    assert unseen["town_3m_to_level"].to_pylist() == [None, None]
    assert None not in unseen["target_offset"].to_pylist()
