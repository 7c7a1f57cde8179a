"""Champion and challenger: SQL's verdict is carried out, every move is a row, and a rollback restores what was.

The comparison is given here; how SQL makes it is a dbt unit test beside ``challenger_comparisons``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pytest

from ml import promotion
from ml.bundle import BundleError
from ml.contract import Promotion
from ml.mlflow_store import open_registry
from ml.promotion import PromotionError, carry_out, promote, rollback, unpublished_move
from ml.registry import (
    challenger,
    champion,
    load_bundle,
    reconcile_registry,
    run_file,
    train_and_register,
    versions,
)
from ml.score import scorable_months, score_months
from ml.settings import Settings
from ml.warehouse import connect
from tests import toy

JULY, AUGUST = date(2021, 7, 1), date(2021, 8, 1)

COMPARISONS = """
create schema if not exists monitoring;
create or replace table monitoring.challenger_comparisons as
select 'v2' as challenger, 'v1' as champion, date '2021-07-01' as month, 'shadow' as stage, 500 as n,
    4.2 as error_reduction_pct, 1.5 as reduction_lower_pct, 7.0 as reduction_upper_pct, 'North' as worst_area,
    2.0 as worst_area_loss_pct, $verdict as verdict, 'because' as reason
"""


@pytest.fixture(scope="module")
def two_versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which v1 is champion and v2 challenges it, both with July and August scored."""
    settings = toy.warehouse(tmp_path_factory.mktemp("promotion"))
    with connect(settings) as connection:
        for seed in (1, 2):
            params = toy.PARAMS.model_copy(update={"seed": seed})
            train_and_register(connection, settings, toy.CONTRACT, params=params)
        _score(connection, settings)
        _says(connection, "wait")
    return settings.home


@pytest.fixture
def settings(tmp_path: Path, two_versions: Path) -> Settings:
    """A copy, and the paths that the store remembers with it."""
    home = tmp_path / "home"
    shutil.copytree(two_versions, home)
    import sqlite3

    with sqlite3.connect(home / "mlflow" / "mlflow.db") as store:
        for table, column in (
            ("experiments", "artifact_location"), ("runs", "artifact_uri"), ("model_versions", "source"),
            ("model_versions", "storage_location"),
        ):  # fmt: skip
            store.execute(f"update {table} set {column} = replace({column}, ?, ?)", (str(two_versions), str(home)))
    settings = Settings(home=home, dataset="toy")
    with connect(settings) as connection:
        connection.execute(
            "update training.model_versions set model_uri = replace(model_uri, ?, ?)", [str(two_versions), str(home)]
        )
    return settings


@pytest.fixture
def warehouse(settings: Settings) -> Iterator[duckdb.DuckDBPyConnection]:
    with connect(settings) as connection:
        yield connection


def _score(connection: duckdb.DuckDBPyConnection, settings: Settings, contract=toy.CONTRACT) -> None:
    for version in filter(None, (champion(connection), challenger(connection))):
        months = [m for m in scorable_months(connection, version) if m in {JULY, AUGUST}]
        score_months(connection, settings, contract, version, months, run_id="test")


def _says(connection: duckdb.DuckDBPyConnection, verdict: str) -> None:
    connection.execute(COMPARISONS, {"verdict": verdict})


def _moves(connection: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
    return connection.execute(
        "select alias, model_version, previous_version, actor from training.model_aliases order by moved_at, alias"
    ).fetchall()


def _statuses(connection: duckdb.DuckDBPyConnection) -> list[str]:
    return [v.status for v in versions(connection)]


def _aliases(settings: Settings) -> dict[str, str]:
    found = open_registry(settings).get_registered_model(settings.registered_model).aliases
    return {alias: str(number) for alias, number in found.items()}


def test_champion_and_challenger_score_the_same_months_in_their_roles(warehouse: duckdb.DuckDBPyConnection) -> None:
    assert _statuses(warehouse) == ["champion", "challenger"]
    assert warehouse.execute(
        "select model_version, role, count(*) from predictions.predictions where kind = 'model' "
        "group by all order by all"
    ).fetchall() == [
        ("v1", "champion", 120), ("v1", "evaluation", 180), ("v2", "challenger", 120), ("v2", "evaluation", 180),
    ]  # fmt: skip


def test_a_better_challenger_is_promoted_once_and_the_old_champion_archived(
    warehouse: duckdb.DuckDBPyConnection, settings: Settings
) -> None:
    _says(warehouse, "promote")
    assert carry_out(warehouse, settings, toy.CONTRACT, actor="run 1") == [
        "champion is v2: because",
        "challenger is nobody: because",
    ]
    assert _statuses(warehouse) == ["archived", "champion"]
    assert _aliases(settings) == {"champion": "2"}
    assert _moves(warehouse)[2:] == [("champion", "v2", "v1", "run 1"), ("challenger", None, "v2", "housing")]
    assert warehouse.execute(
        "select challenger, champion, verdict, n, reduction_lower_pct, mode, actor from training.promotion_decisions"
    ).fetchall() == [("v2", "v1", "promote", 500, 1.5, "auto", "run 1")]
    assert carry_out(warehouse, settings, toy.CONTRACT) == []
    assert reconcile_registry(warehouse, settings, toy.CONTRACT) == []


def test_a_worse_challenger_is_rejected_with_its_interval_and_nothing_else_changes(
    warehouse: duckdb.DuckDBPyConnection, settings: Settings
) -> None:
    before = warehouse.execute("select * from predictions.predictions order by all").fetchall()
    _says(warehouse, "reject")
    carry_out(warehouse, settings, toy.CONTRACT)
    assert _statuses(warehouse) == ["champion", "rejected"]
    assert versions(warehouse)[1].reasons == ["because"]
    assert _aliases(settings) == {"champion": "1"}
    assert warehouse.execute(
        "select verdict, error_reduction_pct, reduction_lower_pct, reduction_upper_pct "
        "from training.promotion_decisions"
    ).fetchall() == [("reject", 4.2, 1.5, 7.0)]
    assert warehouse.execute("select * from predictions.predictions order by all").fetchall() == before
    # rejected once, it does not come back by itself
    assert reconcile_registry(warehouse, settings, toy.CONTRACT) == []


def test_in_manual_mode_a_person_promotes(warehouse: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    manual = toy.CONTRACT.model_copy(update={"promotion": Promotion(mode="manual")})
    _says(warehouse, "promote")
    assert carry_out(warehouse, settings, manual) == ["v2 waits for `housing promote -d toy`: because"]
    assert carry_out(warehouse, settings, manual) == []
    assert _statuses(warehouse) == ["champion", "challenger"]
    said = promote(warehouse, settings, toy.CONTRACT, None, actor="ann")
    assert said[0] == "champion is v2: ann promoted v2 by hand"
    assert _moves(warehouse)[-2] == ("champion", "v2", "v1", "ann")
    assert promote(warehouse, settings, toy.CONTRACT, "v2", actor="ann") == ["v2 is champion already"]
    with pytest.raises(PromotionError, match=r"no challenger to promote; name a version: housing promote -d toy v2$"):
        promote(warehouse, settings, toy.CONTRACT, None, actor="ann")
    with pytest.raises(PromotionError, match="no version v9; there are: v1, v2"):
        promote(warehouse, settings, toy.CONTRACT, "v9", actor="ann")


def test_what_waited_for_a_person_is_promoted_when_the_contract_no_longer_wants_one(
    warehouse: duckdb.DuckDBPyConnection, settings: Settings
) -> None:
    _says(warehouse, "promote")
    assert carry_out(warehouse, settings, toy.CONTRACT.model_copy(update={"promotion": Promotion(mode="manual")}))
    assert carry_out(warehouse, settings, toy.CONTRACT.model_copy(update={"promotion": Promotion(mode="auto")}))
    assert _statuses(warehouse) == ["archived", "champion"]


def test_a_move_that_was_killed_is_finished_in_the_name_of_whoever_made_it(
    warehouse: duckdb.DuckDBPyConnection, settings: Settings
) -> None:
    client, name = open_registry(settings), settings.registered_model
    promotion._promote(client, name, "v2", "ann", "ann promoted v2 by hand")
    assert _statuses(warehouse) == ["champion", "challenger"], "killed before the warehouse heard of it"
    said = promote(warehouse, settings, toy.CONTRACT, "v2", actor="bob")
    assert said == [
        "champion is v2: ann promoted v2 by hand", "challenger is nobody: ann promoted v2 by hand",
        "v2 is champion already",
    ]  # fmt: skip
    assert _moves(warehouse)[-2] == ("champion", "v2", "v1", "ann")
    promotion._give(client, name, "champion", "1", actor="ann", reason="ann rolled v2 back to v1")
    assert rollback(warehouse, settings, toy.CONTRACT, actor="bob") == ["champion is v1: ann rolled v2 back to v1"]
    assert _statuses(warehouse) == ["champion", "archived"]


def test_a_rollback_that_was_not_published_does_not_go_back_where_it_came_from(
    warehouse: duckdb.DuckDBPyConnection, settings: Settings
) -> None:
    def publish(sql: str) -> None:
        settings.published.parent.mkdir(parents=True, exist_ok=True)
        with duckdb.connect(str(settings.published)) as snapshot:
            snapshot.execute(sql)

    promote(warehouse, settings, toy.CONTRACT, None, actor="ann")
    assert unpublished_move(warehouse, settings) == [], "nothing was published"
    publish("create schema training")
    assert unpublished_move(warehouse, settings) == [], "nor any version"
    publish("create table training.model_versions as select 'v1' as model_version, 'champion' as status")
    assert unpublished_move(warehouse, settings) == [
        "champion is v2 already, which was not published yet: ann promoted v2 by hand"
    ]
    publish("update training.model_versions set model_version = 'v2'")
    assert unpublished_move(warehouse, settings) == []


def test_what_a_person_moved_is_not_moved_on_by_a_challenger(
    warehouse: duckdb.DuckDBPyConnection, settings: Settings
) -> None:
    promote(warehouse, settings, toy.CONTRACT, None, actor="ann")
    train_and_register(warehouse, settings, toy.CONTRACT, params=toy.PARAMS.model_copy(update={"seed": 3}))
    assert _statuses(warehouse) == ["archived", "champion", "challenger"]
    assert rollback(warehouse, settings, toy.CONTRACT, actor="bob") == [
        "champion is v1: bob rolled v2 back to v1",
        "challenger is nobody: bob rolled v2 back to v1",
    ]
    _says(warehouse, "promote")
    assert carry_out(warehouse, settings, toy.CONTRACT) == []
    assert _statuses(warehouse) == ["champion", "archived", "archived"]


def test_a_version_that_served_is_archived_when_it_goes_though_it_was_rejected_once(
    warehouse: duckdb.DuckDBPyConnection, settings: Settings
) -> None:
    _says(warehouse, "reject")
    carry_out(warehouse, settings, toy.CONTRACT)
    assert _statuses(warehouse) == ["champion", "rejected"]
    promote(warehouse, settings, toy.CONTRACT, "v2", actor="ann")
    rollback(warehouse, settings, toy.CONTRACT, actor="ann")
    assert _statuses(warehouse) == ["champion", "archived"]


def test_a_canary_serves_its_share_of_keys(warehouse: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    canary = toy.CONTRACT.model_copy(update={"promotion": Promotion(mode="canary", canary_share=0.25)})
    _says(warehouse, "canary")
    assert carry_out(warehouse, settings, canary) == ["v2 serves a share of the keys: because"]
    rival = challenger(warehouse)
    assert rival
    score_months(warehouse, settings, canary, rival, [AUGUST], run_id="test")
    roles = "select observation_id, role from predictions.predictions where model_version = 'v2' and month = ?"
    served = warehouse.execute(roles, [AUGUST]).fetchall()
    assert len(served) == 60
    assert {key for key, role in served if role == "canary"} == {
        key for key, _ in served if int(key[:8], 16) / 2**32 < 0.25
    }
    assert 5 <= sum(role == "canary" for _, role in served) <= 25
    # beside another champion it was never let serve
    warehouse.execute("update training.promotion_decisions set champion = 'v0'")
    score_months(warehouse, settings, canary, rival, [AUGUST], run_id="test")
    assert {role for _, role in warehouse.execute(roles, [AUGUST]).fetchall()} == {"challenger"}
    warehouse.execute("update training.promotion_decisions set champion = 'v1'")
    # once the contract wants none, the verdict of that time makes none
    score_months(warehouse, settings, toy.CONTRACT, rival, [AUGUST], run_id="test")
    assert {role for _, role in warehouse.execute(roles, [AUGUST]).fetchall()} == {"challenger"}


def test_a_rollback_restores_champion_and_predictions_bit_for_bit(
    warehouse: duckdb.DuckDBPyConnection, settings: Settings
) -> None:
    mine = "select * from predictions.predictions where model_version = 'v1' order by all"
    before = warehouse.execute(mine).fetchall()
    with pytest.raises(PromotionError, match="no champion before"):
        rollback(warehouse, settings, toy.CONTRACT, actor="ann")
    promote(warehouse, settings, toy.CONTRACT, None, actor="ann")
    assert rollback(warehouse, settings, toy.CONTRACT, actor="bob") == ["champion is v1: bob rolled v2 back to v1"]
    assert _statuses(warehouse) == ["champion", "archived"]
    assert warehouse.execute(mine).fetchall() == before
    version = champion(warehouse)
    assert version and scorable_months(warehouse, version)[:1] != [JULY]
    score_months(warehouse, settings, toy.CONTRACT, version, [JULY], run_id="again")
    prices = "select observation_id, predicted_price from ({}) order by all"
    again = warehouse.execute(prices.format(mine.removesuffix(" order by all"))).fetchall()
    index = [description[0] for description in warehouse.execute(mine).description or []]
    assert again == sorted((row[0], row[index.index("predicted_price")]) for row in before)


@pytest.mark.parametrize("moved", ["champion only", "both, not mirrored"])
def test_a_promotion_that_was_killed_half_way_is_finished_by_the_next_run(
    warehouse: duckdb.DuckDBPyConnection, settings: Settings, moved: str
) -> None:
    client, name = open_registry(settings), settings.registered_model
    for key, value in (("from", "v1"), ("actor", "run 1"), ("reason", "because")):
        client.set_model_version_tag(name, "2", f"champion_{key}", value)
    client.set_registered_model_alias(name, "champion", "2")
    if moved != "champion only":
        client.delete_registered_model_alias(name, "challenger")
    said = reconcile_registry(warehouse, settings, toy.CONTRACT)
    assert said[0] == "champion is v2: because"
    assert _statuses(warehouse) == ["archived", "champion"]
    assert _aliases(settings) == {"champion": "2"}
    assert reconcile_registry(warehouse, settings, toy.CONTRACT) == []


def test_a_tampered_model_is_refused(warehouse: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    version = versions(warehouse)[1]
    booster = run_file(settings, version, "model/artifacts/bundle/model.ubj")
    content = bytearray(booster.read_bytes())
    content[len(content) // 2] ^= 1
    booster.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.ubj was changed after it was written"):
        load_bundle(settings, version)
