"""Reasons and comparables of scored months, by a real version over the toy warehouse, against a second computation."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import duckdb
import numpy as np
import pytest
import xgboost as xgb

from ml import explain
from ml.bundle import feature_matrix
from ml.explain import BASE, contributions, explain_months, pending_months, unexplained_months
from ml.registry import ModelVersion, champion, load_bundle, train_and_register
from ml.score import score_months
from ml.settings import Settings
from ml.warehouse import connect
from tests import toy

JULY, AUGUST = date(2021, 7, 1), date(2021, 8, 1)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home whose champion has scored two months."""
    settings = toy.warehouse(tmp_path_factory.mktemp("toy"))
    with connect(settings) as connection:
        train_and_register(connection, settings, toy.CONTRACT, params=toy.PARAMS)
        score_months(connection, settings, toy.CONTRACT, version(connection), [JULY, AUGUST], run_id="test")
    return settings


@pytest.fixture
def warehouse(scored: Settings, tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    shutil.copytree(scored.home / "warehouse", tmp_path / "warehouse")
    with connect(Settings(home=tmp_path, dataset="toy")) as connection:
        yield connection


def version(connection: duckdb.DuckDBPyConnection) -> ModelVersion:
    found = champion(connection)
    assert found
    return found


def run(connection: duckdb.DuckDBPyConnection, settings: Settings, *months: date) -> dict[date, int]:
    return explain_months(connection, settings, toy.CONTRACT, version(connection), months)


def rows(connection: duckdb.DuckDBPyConnection, table: str) -> list[tuple]:
    return connection.execute(f"select * from predictions.{table} order by all").fetchall()


def test_every_contribution_adds_up_to_the_prediction(warehouse: duckdb.DuckDBPyConnection, scored: Settings) -> None:
    assert run(warehouse, scored, JULY) == {JULY: 60}
    sums = warehouse.execute(
        """
        select predicted_price, sum(contribution), count(*), count(distinct feature),
            list(rank order by rank), list(abs(contribution) order by rank)
        from predictions.predictions join predictions.explanations using (observation_id, model_version)
        group by observation_id, predicted_price
        """
    ).fetchall()
    assert len(sums) == 60
    width = len(load_bundle(scored, version(warehouse)).features_used) + 1
    for price, total, n, features, ranks, amounts in sums:
        assert total == pytest.approx(price, rel=1e-4)
        assert n == features == width
        assert ranks == list(range(width))
        assert amounts[1:] == sorted(amounts[1:], reverse=True)


def test_contributions_are_shapley_values_of_the_logarithm(
    warehouse: duckdb.DuckDBPyConnection, scored: Settings
) -> None:
    bundle = load_bundle(scored, version(warehouse))
    table = warehouse.execute("select * from features.features where month = '2021-07-01'").to_arrow_table()
    x, offset = feature_matrix(table, bundle.features_used), table["target_offset"].to_numpy()
    amounts = contributions(bundle, x, offset, threads=2)
    phi = bundle.booster.predict(xgb.DMatrix(x), pred_contribs=True, validate_features=False)
    # the same sign, and in the same proportion to each other
    np.testing.assert_allclose(
        amounts[:, :-1] / np.abs(amounts[:, :-1]).sum(axis=1, keepdims=True),
        phi[:, :-1] / np.abs(phi[:, :-1]).sum(axis=1, keepdims=True),
        rtol=1e-4, atol=1e-6,
    )  # fmt: skip
    np.testing.assert_allclose(amounts[:, -1], np.exp(phi[:, -1] + offset), rtol=1e-6)


def test_a_row_that_no_feature_moves_is_its_price_level(scored: Settings, warehouse: duckdb.DuckDBPyConnection) -> None:
    bundle = load_bundle(scored, version(warehouse))
    bundle.booster = xgb.train({"max_depth": 1}, xgb.DMatrix(np.zeros((9, len(bundle.features_used))), np.zeros(9)), 1)
    x = np.zeros((2, len(bundle.features_used)), np.float32)
    amounts = contributions(bundle, x, np.log([100.0, 200.0]), threads=2)
    np.testing.assert_allclose(amounts[:, -1], [100, 200])
    np.testing.assert_allclose(amounts[:, :-1], 0, atol=1e-9)


def test_comparables_are_the_most_similar_earlier_sales_of_the_area(
    warehouse: duckdb.DuckDBPyConnection, scored: Settings
) -> None:
    run(warehouse, scored, JULY, AUGUST)
    bundle = load_bundle(scored, version(warehouse))
    table = warehouse.execute("select * from features.features order by month desc, observation_id").to_arrow_table()
    x = feature_matrix(table, bundle.features_used)
    leaves = bundle.booster.predict(xgb.DMatrix(x), pred_leaf=True, validate_features=False)
    ids, area, price = (table[c].to_pylist() for c in ("observation_id", "area", "price"))
    month = table["month"].to_pylist()
    level = dict(
        warehouse.execute(
            "select month, mean_log_price from features.encodings where key_value = '__unseen__'"
        ).fetchall()
    )
    found = warehouse.execute(
        "select observation_id, list((comparable_id, similarity, sold_month, price, adjusted_price) order by rank) "
        "from predictions.comparables group by observation_id"
    ).fetchall()
    assert len(found) == 120
    for observation, comparables in found:
        i = ids.index(observation)
        # rows are newest first, so that a stable sort prefers the newer of equal ones
        possible = [j for j in range(len(ids)) if area[j] == area[i] and month[j] < month[i] and price[j] > 0]
        shared = {j: float(np.mean(leaves[i] == leaves[j])) for j in possible}
        best = sorted(possible, key=lambda j: -shared[j])[:5]
        assert [c[0] for c in comparables] == [ids[j] for j in best]
        for (_, similarity, sold, paid, adjusted), j in zip(comparables, best, strict=True):
            assert (similarity, sold, paid) == (pytest.approx(shared[j]), month[j], price[j])
            change = level[month[i]] - level[month[j]] if month[j] in level else 0
            assert adjusted == pytest.approx(paid * np.exp(change))


def test_pairs_in_small_pieces_give_the_same_comparables(
    warehouse: duckdb.DuckDBPyConnection, scored: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(warehouse, scored, JULY)
    whole = rows(warehouse, "comparables")
    monkeypatch.setattr("ml.comparables.PAIRS", 1)
    monkeypatch.setattr("ml.comparables.BATCH_ROWS", 2048)
    run(warehouse, scored, JULY)
    assert rows(warehouse, "comparables") == whole


def test_blocks_make_no_difference(
    warehouse: duckdb.DuckDBPyConnection, scored: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(warehouse, scored, JULY, AUGUST)
    whole = rows(warehouse, "explanations")
    monkeypatch.setattr("ml.explain.BLOCK_ROWS", 1)
    run(warehouse, scored, JULY, AUGUST)
    assert rows(warehouse, "explanations") == whole


def test_explaining_a_month_again_gives_the_same_rows(warehouse: duckdb.DuckDBPyConnection, scored: Settings) -> None:
    run(warehouse, scored, JULY, AUGUST)
    first = [rows(warehouse, table) for table in ("explanations", "comparables")]
    run(warehouse, scored, JULY)
    assert [rows(warehouse, table) for table in ("explanations", "comparables")] == first


def test_a_month_is_pending_until_it_is_explained_and_again_when_it_was_scored_anew(
    warehouse: duckdb.DuckDBPyConnection, scored: Settings
) -> None:
    assert unexplained_months(warehouse, version(warehouse)) == [JULY, AUGUST]
    run(warehouse, scored, JULY)
    assert unexplained_months(warehouse, version(warehouse)) == [AUGUST]
    run(warehouse, scored, AUGUST)
    assert unexplained_months(warehouse, version(warehouse)) == []
    assert pending_months(warehouse)[0] == date(2021, 9, 1), "the next month is not scored yet"
    warehouse.execute("update predictions.predictions set built_through_batch = 2 where month = '2021-07-01'")
    assert unexplained_months(warehouse, version(warehouse)) == [JULY]
    warehouse.execute("delete from predictions.predictions where month = '2021-08-01' and split <> 'eval'")
    assert unexplained_months(warehouse, version(warehouse)) == [JULY, AUGUST]
    assert run(warehouse, scored, AUGUST) == {AUGUST: 0}
    assert unexplained_months(warehouse, version(warehouse)) == [JULY]


def test_a_failure_within_a_month_leaves_the_month_as_it_was(
    warehouse: duckdb.DuckDBPyConnection, scored: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(warehouse, scored, JULY)
    before = [rows(warehouse, table) for table in ("explanations", "comparables")]

    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(explain, "_explanations", fail)
    with pytest.raises(OSError, match="disk is full"):
        run(warehouse, scored, JULY)
    assert [rows(warehouse, table) for table in ("explanations", "comparables")] == before


def test_a_row_without_a_price_has_no_reasons(warehouse: duckdb.DuckDBPyConnection, scored: Settings) -> None:
    warehouse.execute(
        "update predictions.predictions set predicted_price = null where observation_id = "
        "(select min(observation_id) from predictions.predictions where month = '2021-07-01')"
    )
    assert run(warehouse, scored, JULY) == {JULY: 59}
    found = warehouse.execute("select count(*) from predictions.explanations where feature = ?", [BASE]).fetchone()
    assert found == (59,)
