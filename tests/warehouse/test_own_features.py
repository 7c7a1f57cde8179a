"""A version goes on pricing by the features that it learned, however the warehouse makes them since."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path

import duckdb
import pytest

from ml.bundle import Bundle
from ml.contract import Contract
from ml.explain import explain_months, unexplained_months
from ml.own_features import OWN, STORED, ChangedEncodingError, features_of
from ml.promotion import promote
from ml.registry import champion, load_bundle, train_and_register
from ml.score import score_months
from ml.settings import Settings
from ml.warehouse import connect
from tests import toy

JULY, AUGUST = date(2021, 7, 1), date(2021, 8, 1)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """One version, which scored July and August."""
    settings = toy.warehouse(tmp_path_factory.mktemp("own"))
    with connect(settings) as connection:
        train_and_register(connection, settings, toy.CONTRACT, params=toy.PARAMS)
        score(connection, settings)
    return settings


@pytest.fixture
def settings(scored: Settings, tmp_path: Path) -> Settings:
    shutil.copytree(scored.home, tmp_path / "home")
    return Settings(home=tmp_path / "home", dataset="toy")


def score(connection: duckdb.DuckDBPyConnection, settings: Settings, contract: Contract = toy.CONTRACT) -> None:
    version = champion(connection)
    assert version
    score_months(connection, settings, contract, version, [JULY, AUGUST], run_id="test")
    explain_months(connection, settings, contract, version, unexplained_months(connection, version))


def bundle(connection: duckdb.DuckDBPyConnection, settings: Settings) -> Bundle:
    version = champion(connection)
    assert version
    return load_bundle(settings, version)


def prices(connection: duckdb.DuckDBPyConnection) -> list[tuple]:
    return connection.execute(
        "select observation_id, model_version, predicted_price from predictions.predictions "
        "where split <> 'eval' order by all"
    ).fetchall()


def otherwise(
    monkeypatch: pytest.MonkeyPatch, connection: duckdb.DuckDBPyConnection, *changes: tuple[str, str]
) -> None:
    """Build the warehouse again with changed views."""
    views = toy.VIEWS
    for before, after in changes:
        assert before in views
        views = views.replace(before, after)
    monkeypatch.setattr(toy, "VIEWS", views)
    toy.build(connection)


def test_a_version_prices_by_the_features_that_it_learned(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(settings) as connection:
        before = prices(connection)
        assert features_of(connection, bundle(connection, settings), toy.CONTRACT, [JULY]) == STORED
        # houses are measured in other units since, and nobody counts the sales of a town any more
        otherwise(
            monkeypatch,
            connection,
            ("month_of_year, size,", "month_of_year, size * 10.764 as size,"),
            (", coalesce(e.n, 0)::double as town_12m_n", ""),
        )
        assert features_of(connection, bundle(connection, settings), toy.CONTRACT, [JULY]) == OWN
        assert connection.execute(f"select count(*) from {OWN}").fetchone() == (60,)
        # a month that nobody sold in
        assert features_of(connection, bundle(connection, settings), toy.CONTRACT, [date(2030, 1, 1)]) == OWN
        assert connection.execute(f"select count(*) from {OWN}").fetchone() == (0,)
        score(connection, settings)
        assert len(before) == 240
        assert prices(connection) == before
        # the reasons are those of the same prices, and there are comparables
        off = connection.execute(
            """
            select count(*), max(abs(total / predicted_price - 1)) from predictions.predictions
            inner join (
                select observation_id, model_version, sum(contribution) as total
                from predictions.explanations group by all
            ) using (observation_id, model_version)
            """
        ).fetchone()
        assert off and off[0] == 120 and off[1] < 1e-5
        assert connection.execute("select count(distinct observation_id) from predictions.comparables").fetchone() == (
            120,
        )


def test_a_row_that_the_versions_own_contract_rejects_has_no_price(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(settings) as connection:
        connection.execute('update raw.observations set "Town" = null where "Sold" = \'2021-08\'')
        named = "coalesce(nullif(\"Town\", ''), 'North') as area"
        otherwise(monkeypatch, connection, ("nullif(\"Town\", '') as area", named))
        score(connection, settings)
        found = connection.execute(
            "select month, count(*), count(predicted_price) from predictions.predictions "
            "where kind = 'model' and split <> 'eval' group by month order by month"
        ).fetchall()
        assert found == [(JULY, 60, 60), (AUGUST, 60, 0)]


def test_prices_made_otherwise_lose_their_reasons(settings: Settings) -> None:
    with connect(settings) as connection:
        connection.execute("update predictions.predictions set predicted_price = 2 * predicted_price")
        version = champion(connection)
        assert version and unexplained_months(connection, version) == []
        # July is priced as it was again, which its reasons add up to; nobody priced August again
        score_months(connection, settings, toy.CONTRACT, version, [JULY], run_id="test")
        assert unexplained_months(connection, version) == [AUGUST]
        score(connection, settings)
        assert unexplained_months(connection, version) == []


@pytest.mark.parametrize(
    "change",
    [
        {"smoothing": 50.0},
        {"encodings": [toy.CONTRACT.encodings[0].model_copy(update={"months_back": (1, 6)})]},
        {"encodings": [], "level": []},
    ],
)
def test_a_version_whose_encodings_are_made_otherwise_prices_nothing(settings: Settings, change: dict) -> None:
    contract = toy.CONTRACT.model_copy(update=change)
    with connect(settings) as connection:
        before = prices(connection)
        said = r"^v1 learned from town_12m as the contract of toy does not make them any more.*housing promote"
        with pytest.raises(ChangedEncodingError, match=said):
            score(connection, settings, contract)
        assert prices(connection) == before
        train_and_register(connection, settings, toy.CONTRACT, params=toy.PARAMS.model_copy(update={"seed": 2}))
        with pytest.raises(ChangedEncodingError, match=r"^v2 learned from town_12m"):
            promote(connection, settings, contract, "v2", actor="ann")
        standing = champion(connection)
        assert standing and standing.model_version == "v1"
