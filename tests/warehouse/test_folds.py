"""Folds as tables, and what is chosen on them: candidates compared, parameters searched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import optuna
import pytest
import yaml

from ml import folds, tune
from ml.evaluate import accuracy
from ml.mlflow_store import open_registry
from ml.model_selection import compare, load_candidates
from ml.params import PARAMS, ParamsError
from ml.params import load as load_params
from ml.settings import Settings
from ml.warehouse import connect
from tests import factories, toy

MEMBERS = """
create or replace view training.int_fold_members as
select observation_id, fold, case
    when month < test_from - interval 4 month then 'train' when month < test_from - interval 1 month then 'eval'
    when month < test_from then 'gap' else 'test' end as role
from training.training_dataset
cross join (values (1, date '2021-01-01'), (2, date '2021-04-01')) as t (fold, test_from)
where month < test_from + interval 3 month and is_price_valid
"""


# --- what the folds are ----------------------------------------------------------------------------------------------


def test_rolling_origins_end_before_the_holdout_and_never_learn_from_the_future(home) -> None:
    built = home("hdb")
    built.land("a.csv", factories.hdb_rows())
    built.ingest()
    built.build()
    rows = built.query(
        """
        select fold, role, min(month) as first_month, max(month) as last_month, count(*) as months
        from training.folds group by fold, role order by fold, first_month
        """
    ).to_pylist()
    assert rows, "the rows landed reach no fold"
    for fold in {r["fold"] for r in rows}:
        mine = [r for r in rows if r["fold"] == fold]
        assert [r["role"] for r in mine] == [
            r for r in ("train", "eval", "gap", "test") if r in {m["role"] for m in mine}
        ]
        assert all(a["last_month"] < b["first_month"] for a, b in pairwise(mine))
    assert built.one("select count(*) - count(distinct (observation_id, fold)) from training.int_fold_members") == 0
    split = built.contract.split
    assert f"{max(r['last_month'] for r in rows):%Y-%m}" <= split.trained_through
    assert all(r["months"] <= 6 for r in rows if r["role"] == "test")
    leaked = built.one(
        """
        select count(*) from training.int_fold_members
        inner join training.training_dataset as d using (observation_id)
        where d.split not in ('train', 'eval') or not d.is_price_valid
        """
    )
    assert leaked == 0


def test_folds_by_hash_test_every_row_once(home) -> None:
    built = home("house_data")
    built.land("a.csv", factories.house_data_rows())
    built.ingest()
    built.build()
    n = built.one("select count(*) from training.training_dataset where split in ('train', 'eval') and is_price_valid")
    assert n
    tested = built.query(
        "select observation_id, count(*) as n from training.int_fold_members where role = 'test' "
        "group by observation_id"
    )
    assert tested.num_rows == n
    assert set(tested["n"].to_pylist()) == {1}
    roles = built.query(
        "select fold, role, count(*) as n from training.int_fold_members group by fold, role order by fold, role"
    ).to_pylist()
    assert len(roles) == 4 * 3
    assert all(sum(r["n"] for r in roles if r["fold"] == fold) == n for fold in range(1, 5))
    sizes = [r["n"] for r in roles if r["role"] == "test"]
    assert max(sizes) < 1.5 * min(sizes), "the holdout's share of the hash is no fold's"


# --- what is chosen on them ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    made = toy.warehouse(tmp_path_factory.mktemp("toy"))
    with connect(made) as connection:
        connection.execute(MEMBERS)
    open_registry(made).search_experiments()
    return made


@pytest.fixture
def warehouse(settings: Settings) -> Iterator[duckdb.DuckDBPyConnection]:
    with connect(settings) as connection:
        yield connection


def test_a_fold_is_read_in_the_order_train_eval_test(warehouse: duckdb.DuckDBPyConnection) -> None:
    assert folds.numbers(warehouse, toy.CONTRACT) == [1, 2]
    fold = folds.read(warehouse, toy.CONTRACT, 2)
    assert (fold.n_train, fold.n_eval, fold.n_test) == (10 * 60, 3 * 60, 3 * 60)
    assert (fold.test_from, fold.test_through) == ("2021-04", "2021-06")
    np.testing.assert_allclose(fold.target, np.log(fold.price) - fold.offset, atol=1e-5)
    perfect = fold.errors(np.log(fold.price[fold.test]) - fold.offset[fold.test])
    assert perfect["mae"] == pytest.approx(0, abs=1e-6)
    assert perfect["rmse_log"] == pytest.approx(0, abs=1e-9)
    assert fold.persistence_errors() == accuracy(fold.price[fold.test], fold.persistence[fold.test])


def test_candidates_are_compared_on_the_same_rows(
    warehouse: duckdb.DuckDBPyConnection, settings: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "models.yml"
    candidates = load_candidates()
    candidates["random_forest"]["n_estimators"] = 10
    candidates["sklearn_boosting"]["max_iter"] = 30
    path.write_text(yaml.safe_dump({"candidates": candidates}), encoding="utf-8")
    rows = compare(warehouse, toy.CONTRACT, toy.PARAMS, threads=2, path=path)
    stored = warehouse.execute("select candidate, fold, n, mae from training.model_selection").fetchall()
    assert stored == [(r["candidate"], r["fold"], r["n"], r["mae"]) for r in rows]
    assert {(r["candidate"], r["fold"]) for r in rows} == {(c, f) for c in candidates for f in (1, 2)}
    assert {r["n"] for r in rows} == {180}
    mean = {c: np.mean([r["mae"] for r in rows if r["candidate"] == c]) for c in candidates}
    assert mean["xgboost"] < mean["ridge"], "small and large houses cost most: no line follows"
    assert all(r["fit_seconds"] > 0 and r["size_bytes"] > 0 for r in rows)
    again = compare(warehouse, toy.CONTRACT, toy.PARAMS, threads=2, path=path)
    # a forest adds its trees in the order in which threads finish
    assert [r["mae"] for r in again] == pytest.approx([r["mae"] for r in rows], rel=1e-12)


def test_a_short_history_and_an_empty_column_are_no_reason_to_fail(settings: Settings, tmp_path: Path) -> None:
    shutil.copytree(settings.home / "warehouse", tmp_path / "warehouse")
    candidates = {"sklearn_boosting": {"kind": "sklearn_boosting", "max_iter": 5}}
    path = tmp_path / "models.yml"
    path.write_text(yaml.safe_dump({"candidates": candidates}), encoding="utf-8")
    with connect(Settings(home=tmp_path, dataset="toy")) as warehouse:
        # the first fold learns from months before any level is known, and nobody says how many were sold
        warehouse.execute("update features.features set target_offset = null where month < '2020-09-01'")
        warehouse.execute("update features.features set town_12m_n = null")
        assert folds.numbers(warehouse, toy.CONTRACT) == [2]
        assert [r["n"] for r in compare(warehouse, toy.CONTRACT, toy.PARAMS, threads=2, path=path)] == [180]


def test_an_unknown_kind_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "models.yml"
    path.write_text("candidates: {deep: {kind: transformer}}", encoding="utf-8")
    with pytest.raises(ParamsError, match=r"candidates\.deep\.kind: 'transformer' is not one of ridge"):
        load_candidates(path)


def search(connection: duckdb.DuckDBPyConnection, settings: Settings, trials: int, minutes: float = 5) -> int:
    return tune.tune(connection, settings, toy.CONTRACT, toy.PARAMS, trials=trials, minutes=minutes)


def test_a_search_that_was_killed_goes_on_and_its_best_is_applied_only_on_request(
    warehouse: duckdb.DuckDBPyConnection, settings: Settings, tmp_path: Path
) -> None:
    assert search(warehouse, settings, 2) == 2
    (name,) = optuna.get_all_study_names(storage=tune._storage(settings))
    study = optuna.load_study(study_name=name, storage=tune._storage(settings))
    assert study.trials[0].params["max_depth"] == toy.PARAMS.max_depth, "the first trial is what stands"
    study.ask()  # a trial whose process died
    assert search(warehouse, settings, 4) == 4
    states = [t.state.name for t in optuna.load_study(study_name=name, storage=tune._storage(settings)).trials]
    assert states.count("FAIL") == 1
    assert "RUNNING" not in states
    assert search(warehouse, settings, 4) == 4, "nothing is left to do"
    assert search(warehouse, settings, 99, minutes=0) == 4, "no time is left"

    best = tune.best_so_far(settings)
    assert best
    assert best.value == min(t.value for t in study.get_trials() if t.value is not None and t.state.name == "COMPLETE")
    client = open_registry(settings)
    parent = client.get_run(study.user_attrs["mlflow_run_id"])
    nested = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert len(nested) == 4
    assert parent.info.status == "FINISHED"

    path = tmp_path / "params.yml"
    shutil.copy(PARAMS, path)
    hdb = Settings(home=settings.home, dataset="hdb")
    shutil.copy(tune._database(settings), tune._database(hdb))
    before = path.read_text(encoding="utf-8")
    assert "next: housing train -d hdb" in tune.apply_best(hdb, path)
    assert load_params("hdb", path).max_depth == best.params["max_depth"]
    assert load_params("hdb", path).eta == pytest.approx(best.params["eta"], abs=1e-6)
    after = path.read_text(encoding="utf-8")
    comments = [line.split("#", 1)[1].strip() for line in before.splitlines() if "#" in line]
    assert all(comment in after for comment in comments), "the comments are the manual"
    assert load_params("ames", path) == load_params("ames")


def test_other_rows_start_another_search(settings: Settings, tmp_path: Path) -> None:
    shutil.copytree(settings.home / "warehouse", tmp_path / "warehouse")
    other = Settings(home=tmp_path, dataset="toy")
    with connect(other) as connection:
        first = tune._content(connection, toy.CONTRACT)
        toy.land(connection, toy.rows(first=3, months=1, seed=9), 2)
        connection.execute(MEMBERS)
        other_rows = tune._content(connection, toy.CONTRACT)
        connection.execute("update features.features set built_through_batch = 9")
        assert tune._content(connection, toy.CONTRACT) == other_rows, "built again, the same rows are the same"
        connection.execute("update features.features set size = size + 1 where month = '2021-02-01'")
        assert len({first, other_rows, tune._content(connection, toy.CONTRACT)}) == 3, "nor with other features"


def test_nothing_searched_is_said_with_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(tune.TuningError, match="type: housing tune -d ames"):
        tune.apply_best(Settings(home=tmp_path, dataset="ames"))
