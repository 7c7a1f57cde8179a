"""Versions and their predictions in the warehouse: registered once, promoted by the gate, scored month by month."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import duckdb
import mlflow
import numpy as np
import pytest

from ml.contract import Contract, Gate
from ml.mlflow_store import open_registry
from ml.registry import (
    ModelVersion,
    Outcome,
    champion,
    load_bundle,
    reconcile_registry,
    run_file,
    train_and_register,
    versions,
)
from ml.score import ScoringError, scorable_months, score_month, score_months
from ml.settings import Settings
from ml.train import Progress
from ml.warehouse import connect
from tests import toy
from tests.prepared import forked

STRICT = toy.CONTRACT.model_copy(update={"gate": Gate(min_r2=0.99999)})
JULY, AUGUST, MAY = date(2021, 7, 1), date(2021, 8, 1), date(2021, 5, 1)

#: What two runs of the same command may differ in.
VOLATILE = "exclude (created_at, run_id, model_uri, git_commit)"


@pytest.fixture(scope="module")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store in which nothing is registered: making one takes seconds."""
    settings = Settings(home=tmp_path_factory.mktemp("mlflow"), dataset="toy")
    open_registry(settings).search_experiments()
    return settings.home / "mlflow"


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.warehouse(tmp_path_factory.mktemp("toy")).home / "warehouse"


@pytest.fixture
def settings(tmp_path: Path, empty_registry: Path, untrained: Path) -> Settings:
    return home(tmp_path / "home", empty_registry, untrained)


@pytest.fixture
def warehouse(settings: Settings) -> Iterator[duckdb.DuckDBPyConnection]:
    with connect(settings) as connection:
        yield connection


def home(path: Path, *folders: Path) -> Settings:
    for folder in folders:
        shutil.copytree(folder, path / folder.name)
    return Settings(home=path, dataset="toy")


def train(
    connection: duckdb.DuckDBPyConnection, settings: Settings, contract: Contract = toy.CONTRACT, seed: int = 1, **how
) -> Outcome:
    params = toy.PARAMS.model_copy(update={"seed": seed})
    return train_and_register(connection, settings, contract, params=params, **how)


def alias(settings: Settings) -> str:
    """Version that MLflow calls champion."""
    return f"v{open_registry(settings).get_registered_model(settings.registered_model).aliases['champion']}"


def score(connection: duckdb.DuckDBPyConnection, settings: Settings, *months: date) -> dict[date, int]:
    version = champion(connection)
    assert version
    return score_months(connection, settings, toy.CONTRACT, version, months, run_id="test")


def pending_months(connection: duckdb.DuckDBPyConnection) -> list[date]:
    version = champion(connection)
    return scorable_months(connection, version) if version else []


def count(connection: duckdb.DuckDBPyConnection, where: str = "true") -> int:
    found = connection.execute(f"select count(*) from predictions.predictions where {where}").fetchone()
    return found[0] if found else 0


def state(connection: duckdb.DuckDBPyConnection) -> list[list[tuple]]:
    """Everything that training and scoring wrote, but for clocks and random ids."""
    return [
        connection.execute(f"select * {VOLATILE} from training.model_versions order by model_version").fetchall(),
        connection.execute(
            "select alias, model_version, previous_version from training.model_aliases order by moved_at"
        ).fetchall(),
        connection.execute(
            "select * exclude (scored_at, run_id) from predictions.predictions order by observation_id, model_version"
        ).fetchall(),
    ]


# --- registry --------------------------------------------------------------------------------------------------------


def test_a_home_that_was_moved_serves_and_trains_from_where_it_is(settings: Settings, tmp_path: Path) -> None:
    with connect(settings) as connection:
        train(connection, settings)
    settings.home.rename(tmp_path / "elsewhere")
    moved = Settings(home=tmp_path / "elsewhere", dataset="toy")
    with connect(moved) as connection:
        first = champion(connection)
        assert first and load_bundle(moved, first).features_used
        assert run_file(moved, first, "importance.png").is_relative_to(moved.home)
        score(connection, moved, JULY)
        second = train(connection, moved, seed=2).version
        assert run_file(moved, second, "importance.png").is_relative_to(moved.home)
    client = open_registry(moved)
    for number in ("1", "2"):
        source = client.get_model_version(moved.registered_model, number).source
        assert source and source.startswith(moved.home.as_uri())
        assert mlflow.pyfunc.load_model(source)
    assert not settings.home.exists()


def test_a_version_that_passes_is_champion_in_mlflow_and_in_the_warehouse(
    warehouse: duckdb.DuckDBPyConnection, settings: Settings
) -> None:
    outcome = train(warehouse, settings)
    version = outcome.version
    assert (outcome.trained, version.model_version, version.status, version.reasons) == (True, "v1", "champion", [])
    assert (version.trained_from, version.eval_from) == (date(2020, 2, 1), date(2021, 4, 1))
    assert version.trained_through == date(2021, 6, 1)
    assert (version.n_train, version.n_eval) == (14 * 60, 3 * 60)
    assert version.eval_mae < version.eval_baseline_mae
    assert alias(settings) == "v1"
    assert warehouse.execute("select * exclude moved_at from training.model_aliases").fetchall() == [
        ("champion", "v1", None, "housing", "v1 passed its gate; there was no champion")
    ]
    assert count(warehouse, "split = 'eval' and model_version = 'v1' and kind = 'model'") == 180
    assert count(warehouse, "split = 'eval' and model_version = 'linear_v1' and kind = 'baseline'") == 180
    # the metrics are those of the predictions that stand there
    mae = warehouse.execute(
        "select avg(abs(predicted_price - price)) from predictions.predictions p join features.features "
        "using (observation_id) where model_version = 'v1' and p.split = 'eval'"
    ).fetchone()
    assert mae and mae[0] == pytest.approx(version.eval_mae)


def test_the_run_tells_how_the_version_was_made(warehouse: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    version = train(warehouse, settings).version
    client = open_registry(settings)
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["seed"] == "1"
    assert run.data.tags["data_fingerprint"] == version.data_fingerprint
    assert run.data.metrics["eval_mae"] == pytest.approx(version.eval_mae)
    assert {"eval_linear_mae", "eval_median_mae", "eval_persistence_mae"} <= set(run.data.metrics)
    for name in ("importance.png", "learning_curve.png", "features.json", "gate.json"):
        assert run_file(settings, version, name).stat().st_size > 100


def test_the_same_data_and_parameters_are_not_trained_twice(
    warehouse: duckdb.DuckDBPyConnection, settings: Settings
) -> None:
    first = train(warehouse, settings)
    before = state(warehouse)
    again = train(warehouse, settings)
    assert (again.trained, again.version) == (False, first.version)
    assert state(warehouse) == before
    forced = train(warehouse, settings, force=True)
    assert (forced.trained, forced.version.model_version) == (True, "v2")
    # the same bytes, so that nothing but the name is new
    assert forced.version.model_sha256 == first.version.model_sha256


def test_a_version_below_its_gate_is_registered_with_reasons_and_nothing_is_promoted(
    warehouse: duckdb.DuckDBPyConnection, settings: Settings
) -> None:
    good = train(warehouse, settings).version
    bad = train(warehouse, settings, STRICT).version
    assert (bad.model_version, bad.status) == ("v2", "rejected")
    assert len(bad.reasons) == 1
    assert bad.reasons[0].startswith("R² on the eval window is 0.9")
    assert champion(warehouse) == good
    assert alias(settings) == "v1"
    tags = open_registry(settings).get_model_version(settings.registered_model, "2").tags
    assert tags["gate"] == "rejected"
    assert "0.99999 or more is required" in tags["reasons"]
    # rejected once, it is not tried again
    assert not train(warehouse, settings, STRICT).trained


def test_without_a_champion_nothing_is_to_be_scored(warehouse: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    assert pending_months(warehouse) == []
    train(warehouse, settings, STRICT)
    assert champion(warehouse) is None
    assert pending_months(warehouse) == []


def test_the_next_version_challenges_and_the_one_after_takes_its_place(
    warehouse: duckdb.DuckDBPyConnection, settings: Settings
) -> None:
    train(warehouse, settings)
    train(warehouse, settings, seed=2, actor="somebody")
    assert [(v.model_version, v.status) for v in versions(warehouse)] == [("v1", "champion"), ("v2", "challenger")]
    train(warehouse, settings, seed=3)
    assert [v.status for v in versions(warehouse)] == ["champion", "archived", "challenger"]
    assert warehouse.execute(
        "select alias, model_version, previous_version, actor from training.model_aliases order by moved_at"
    ).fetchall() == [
        ("champion", "v1", None, "housing"),
        ("challenger", "v2", None, "somebody"),
        ("challenger", "v3", "v2", "housing"),
    ]


def test_a_routine_run_never_falls_behind_the_champion(
    warehouse: duckdb.DuckDBPyConnection, settings: Settings
) -> None:
    train(warehouse, settings)
    later = train(warehouse, settings, through="2021-09").version
    assert later.trained_through == date(2021, 9, 1)
    again = train(warehouse, settings)
    assert (again.trained, again.version) == (False, later)


def test_an_alias_moved_by_hand_in_mlflow_is_followed(warehouse: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    train(warehouse, settings)
    train(warehouse, settings, seed=2)
    open_registry(settings).set_registered_model_alias(settings.registered_model, "champion", "2")
    said = reconcile_registry(warehouse, settings, toy.CONTRACT, actor="operator")
    assert said[0] == "champion is v2: the alias was moved to v2 in MLflow"
    assert [(v.model_version, v.status) for v in versions(warehouse)] == [("v1", "archived"), ("v2", "champion")]
    assert reconcile_registry(warehouse, settings, toy.CONTRACT) == []


def test_a_new_warehouse_learns_all_versions_from_mlflow(
    warehouse: duckdb.DuckDBPyConnection, settings: Settings
) -> None:
    train(warehouse, settings)
    train(warehouse, settings, STRICT)
    train(warehouse, settings, seed=2)
    before = state(warehouse)
    for table in ("training.model_versions", "training.model_aliases", "predictions.predictions"):
        warehouse.execute(f"delete from {table}")
    reconcile_registry(warehouse, settings, toy.CONTRACT)
    assert state(warehouse)[0] == before[0]
    assert state(warehouse)[2] == before[2]
    assert [v.status for v in versions(warehouse)] == ["champion", "rejected", "challenger"]


def test_a_number_taken_by_somebody_else_is_left_out(warehouse: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    train(warehouse, settings)
    # a deleted version keeps its number, and is not seen by a search
    client = open_registry(settings)
    client.create_model_version(settings.registered_model, source="file:///nowhere")
    client.delete_model_version(settings.registered_model, "2")
    version = train(warehouse, settings, seed=2).version
    assert version.model_version == "v4"
    assert load_bundle(settings, version).model_version == "v4"
    assert [v.model_version for v in versions(warehouse)] == ["v1", "v4"]


def train_and_score(settings: Settings, told: Progress | None = None) -> None:
    """What a run does with this package."""
    with connect(settings) as connection:
        version = train(connection, settings, progress=told).version
        score_months(
            connection,
            settings,
            toy.CONTRACT,
            version,
            scorable_months(connection, version),
            run_id="test",
            progress=lambda done, total: told("score", done, total) if told else None,
        )


def die(home: Path, stage: str, at: int) -> None:
    """The same in a process that is killed at a point of a stage."""

    def told(task: str, done: int, total: int) -> None:
        if task == stage and done == at:
            os.kill(os.getpid(), signal.SIGKILL)

    train_and_score(Settings(home=home, dataset="toy"), told)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, empty_registry: Path, untrained: Path) -> list[list[tuple]]:
    settings = home(tmp_path_factory.mktemp("undisturbed"), empty_registry, untrained)
    train_and_score(settings)
    with connect(settings, read_only=True) as connection:
        return state(connection)


@pytest.mark.parametrize(
    ("stage", "at"),
    [
        ("train", 7),
        ("log the run", 0),
        # the run and its files stand, no version does
        ("register the version", 0),
        # the version stands in MLflow, the warehouse knows nothing of it
        ("enter the version", 0),
        ("score", 0),
        # all rows are inserted, nothing is committed
        ("score", 360),
    ],
)
def test_killed_anywhere_the_same_command_again_gives_what_an_undisturbed_run_gives(
    settings: Settings, undisturbed: list[list[tuple]], stage: str, at: int
) -> None:
    died = forked(die, settings.home, stage, at)
    died.join()
    assert died.exitcode == -signal.SIGKILL
    train_and_score(settings)
    with connect(settings, read_only=True) as connection:
        assert state(connection) == undisturbed
    client = open_registry(settings)
    experiment = client.get_experiment_by_name(settings.registered_model)
    assert experiment
    runs = sorted(run.info.status for run in client.search_runs([experiment.experiment_id]))
    assert runs in (["FINISHED"], ["FINISHED", "KILLED"])


# --- scoring ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_home(tmp_path_factory: pytest.TempPathFactory, empty_registry: Path, untrained: Path) -> Settings:
    """A home with a champion. Its artifacts are read in place; the warehouse is copied by each test."""
    settings = home(tmp_path_factory.mktemp("trained"), empty_registry, untrained)
    with connect(settings) as connection:
        train(connection, settings)
    return settings


@pytest.fixture
def trained(trained_home: Settings, tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with connect(home(tmp_path / "copy", trained_home.home / "warehouse")) as connection:
        yield connection


def test_areas_that_a_version_learned_from_are_written_down(trained: duckdb.DuckDBPyConnection) -> None:
    written = "select area from training.learned_areas where model_version = 'v1' order by 1"
    learned = "select distinct area from training.training_dataset where month <= '2021-06-01' and is_price_valid"
    before = trained.execute(written).fetchall()
    assert len(before) > 1 and before == trained.execute(f"{learned} and target is not null order by 1").fetchall()
    # a price that comes later was not learned from
    trained.execute("update raw.observations set \"Town\" = 'New' where _row = 1")
    toy.build(trained)
    assert ("New",) in trained.execute(learned).fetchall() and trained.execute(written).fetchall() == before


def test_a_month_is_scored_by_the_champion_and_its_straight_line(
    trained: duckdb.DuckDBPyConnection, trained_home: Settings
) -> None:
    assert score(trained, trained_home, JULY) == {JULY: 60}
    version = champion(trained)
    assert version
    assert count(trained, "split = 'holdout' and month = '2021-07-01' and model_version = 'v1'") == 60
    assert count(trained, "kind = 'baseline' and month = '2021-07-01' and model_version = 'linear_v1'") == 60
    # what the batch path says is what the bundle says of the raw rows
    bundle = load_bundle(trained_home, version)
    raw = trained.execute("select * from raw.observations").to_arrow_table()
    answers = bundle.predict(raw)
    trained.register("answers", answers)
    different = trained.execute(
        "select count(*) from predictions.predictions p join answers a using (observation_id) "
        "where p.model_version = 'v1' and split = 'holdout' and p.predicted_price <> a.predicted_price"
    ).fetchone()
    assert different == (0,)


def test_batches_make_no_difference(
    trained: duckdb.DuckDBPyConnection, trained_home: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(trained, trained_home, JULY)
    whole = state(trained)
    monkeypatch.setattr("ml.score.BATCH_ROWS", 2048)
    score(trained, trained_home, JULY)
    assert state(trained) == whole


def test_scoring_a_month_again_replaces_its_rows(trained: duckdb.DuckDBPyConnection, trained_home: Settings) -> None:
    score(trained, trained_home, JULY, AUGUST)
    trained.execute("delete from features.features where month = '2021-07-01' and size < 100")
    left = trained.execute("select count(*) from features.features where month = '2021-07-01'").fetchone()
    assert left and 0 < left[0] < 60
    assert score(trained, trained_home, JULY) == {JULY: left[0]}
    # gone from the features, gone from the predictions; the other month and the evaluation stand
    assert count(trained, "month = '2021-07-01' and model_version = 'v1'") == left[0]
    assert count(trained, "month = '2021-08-01' and model_version = 'v1'") == 60
    assert count(trained, "split = 'eval' and model_version = 'v1'") == 180


def test_a_priced_month_the_version_was_trained_on_is_refused(
    trained: duckdb.DuckDBPyConnection, trained_home: Settings
) -> None:
    before = state(trained)
    with pytest.raises(
        ScoringError, match=r"^v1 was trained through 2021-06, so the 60 priced rows of 2021-05 in toy are not"
    ):
        score(trained, trained_home, MAY)
    assert state(trained) == before


def test_rows_without_a_price_are_scored_in_any_month(
    trained: duckdb.DuckDBPyConnection, trained_home: Settings
) -> None:
    trained.execute(
        "update features.features set price = null, is_price_valid = false "
        "where month in ('2021-05-01', '2021-07-01') and size < 60"
    )
    assert MAY in pending_months(trained)
    scored = score(trained, trained_home, MAY, JULY)
    assert 0 < scored[MAY] < 60
    assert scored[JULY] == 60
    assert count(trained, "month = '2021-05-01' and split = 'to_score' and model_version = 'v1'") == scored[MAY]
    assert count(trained, "month = '2021-07-01' and split = 'holdout' and model_version = 'v1'") < 60
    assert pending_months(trained)[0] == AUGUST


def test_a_row_that_moved_to_another_month_has_one_prediction(
    trained: duckdb.DuckDBPyConnection, trained_home: Settings
) -> None:
    score(trained, trained_home, JULY, AUGUST)
    one = trained.execute("select min(observation_id) from features.features where month = '2021-07-01'").fetchone()
    assert one
    trained.execute("update features.features set month = '2021-08-01' where observation_id = ?", list(one))
    assert pending_months(trained)[:2] == [JULY, AUGUST]
    assert score(trained, trained_home, AUGUST, JULY) == {AUGUST: 61, JULY: 59}
    months = trained.execute(
        "select month from predictions.predictions where model_version = 'v1' and observation_id = ?", list(one)
    ).fetchall()
    assert months == [(AUGUST,)]


def test_a_row_that_left_a_month_of_training_is_cleared_up_and_stops_nothing(
    trained: duckdb.DuckDBPyConnection, trained_home: Settings
) -> None:
    one = trained.execute(
        """
        update features.features set price = null, is_price_valid = false where observation_id = (
            select min(observation_id) from features.features where month = '2021-05-01'
        )
        returning observation_id
        """
    ).fetchall()[0]
    score(trained, trained_home, *pending_months(trained))
    trained.execute("update features.features set month = '2021-04-01' where observation_id = ?", list(one))
    april = date(2021, 4, 1)
    # all that is left in May has a price and was learned from
    assert pending_months(trained) == [april, MAY]
    assert score(trained, trained_home, april, MAY) == {april: 1, MAY: 0}
    assert pending_months(trained) == []
    assert count(trained, f"observation_id = '{one[0]}' and model_version = 'v1'") == 1
    assert count(trained, f"observation_id = '{one[0]}' and model_version = 'v1' and month = '2021-04-01'") == 1


def test_a_prediction_stays_when_its_price_comes_and_its_neighbours_are_scored_again(
    trained: duckdb.DuckDBPyConnection, trained_home: Settings
) -> None:
    few = "month = '2021-05-01' and size < 60"
    trained.execute(f"update features.features set price = null, is_price_valid = false where {few}")
    score(trained, trained_home, *pending_months(trained))
    scored = count(trained, "month = '2021-05-01' and model_version = 'v1'")
    # half of them get a price; the others are rebuilt with them
    trained.execute(
        f"""
        update features.features set built_through_batch = 2,
            price = case when size < 50 then 1e5 end, is_price_valid = size < 50
        where {few}
        """
    )
    assert pending_months(trained) == [MAY]
    again = score(trained, trained_home, MAY)[MAY]
    assert 0 < again < scored
    assert count(trained, "month = '2021-05-01' and model_version = 'v1'") == scored
    assert count(trained, "month = '2021-05-01' and model_version = 'linear_v1'") == scored
    assert pending_months(trained) == []


def test_a_month_is_pending_until_it_is_scored_and_again_when_it_was_rebuilt(
    trained: duckdb.DuckDBPyConnection, trained_home: Settings
) -> None:
    def pending() -> list[str]:
        return [f"{month:%Y-%m}" for month in pending_months(trained)]

    assert pending() == ["2021-07", "2021-08", "2021-09", "2021-10", "2021-11", "2021-12"]
    every = pending_months(trained)
    score(trained, trained_home, *every)
    assert pending() == []
    version = champion(trained)
    assert version and scorable_months(trained, version, again=True) == every
    trained.execute("update features.features set built_through_batch = 2 where month >= '2021-11-01'")
    assert pending() == ["2021-11", "2021-12"]
    score(trained, trained_home, *pending_months(trained))
    assert pending() == []
    trained.execute("delete from features.features where month = '2021-12-01'")
    assert pending() == ["2021-12"]
    assert score(trained, trained_home, date(2021, 12, 1)) == {date(2021, 12, 1): 0}
    assert pending() == []


def test_a_row_without_a_price_level_stands_without_a_price(
    trained: duckdb.DuckDBPyConnection, trained_home: Settings
) -> None:
    trained.execute("update features.features set target_offset = null where month = '2021-07-01' and size < 60")
    score(trained, trained_home, JULY)
    missing = count(trained, "month = '2021-07-01' and predicted_price is null and model_version = 'v1'")
    assert 0 < missing < 60
    assert count(trained, "month = '2021-07-01' and model_version = 'v1'") == 60
    assert count(trained, "month = '2021-07-01' and predicted_price is null and model_version = 'linear_v1'") == missing


def test_all_features_null_is_still_a_price(trained: duckdb.DuckDBPyConnection, trained_home: Settings) -> None:
    changes = ", ".join(f"{name} = null" for name in toy.CONTRACT.features)
    trained.execute(f"update features.features set {changes} where month = '2021-07-01'")
    score(trained, trained_home, JULY)
    prices = trained.execute(
        "select predicted_price from predictions.predictions where month = '2021-07-01'"
    ).fetchnumpy()["predicted_price"]
    assert len(prices) == 120
    assert np.isfinite(prices).all()
    assert (prices > 0).all()


def test_a_failure_within_a_month_leaves_the_month_as_it_was(
    trained: duckdb.DuckDBPyConnection, trained_home: Settings
) -> None:
    score(trained, trained_home, JULY)
    before = state(trained)
    version = champion(trained)
    assert version
    bundle = load_bundle(trained_home, version)
    bundle.features_used = [*bundle.features_used[:-1], "no_such_feature"]
    with pytest.raises(duckdb.Error, match="no_such_feature"):
        score_month(trained, toy.CONTRACT, bundle, version, month=JULY, run_id="test")
    assert state(trained) == before


def test_an_undated_dataset_is_scored_by_its_split(trained: duckdb.DuckDBPyConnection, trained_home: Settings) -> None:
    version = champion(trained)
    assert version
    undated = ModelVersion(**{**version.__dict__, "trained_through": None})
    trained.execute(
        "update features.features set month = '1970-01-01', split = case when size < 80 then 'train' "
        "when size < 100 then 'eval' else 'holdout' end"
    )
    trained.execute("delete from predictions.predictions")
    assert scorable_months(trained, undated) == [date(1970, 1, 1)]
    bundle = load_bundle(trained_home, version)
    n = score_month(trained, toy.CONTRACT, bundle, undated, month=date(1970, 1, 1), run_id="test")
    wanted = trained.execute("select count(*) from features.features where split = 'holdout'").fetchone()
    assert wanted == (n,)
    assert scorable_months(trained, undated) == []
