"""Replay: walk past months in order as production would have, and see what retraining is worth.

A copy of the warehouse is rolled back to one month at a time: ``features`` and ``encodings`` become views that end
with the replay's clock, everything later built on them starts empty. Each month is scored by the champion (and
challenger) of that time, prices land, the dbt models judge and decide, and what they decide is done by the same
functions as in production. The warehouse itself is only read, and gets the table ``monitoring.replay_months``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

import duckdb

from dagster_project.transform.dbt import environment_of, run_dbt
from ml.contract import Contract, add_months
from ml.params import Params
from ml.promotion import carry_out, promote
from ml.registry import ModelVersion, challenger, champion, train_and_register
from ml.score import scorable_months, score_months
from ml.settings import Settings, nothing_built
from ml.verdicts import newest_decision
from ml.warehouse import connect, create_tables, is_built, warehouse_lock

Policy = Literal["never", "on-decision", "every-month"]
POLICIES: tuple[Policy, ...] = ("never", "on-decision", "every-month")

#: What each month is judged by; dbt adds what these are made from.
JUDGED = ("actuals", "retrain_decisions", "challenger_comparisons")
#: Layers that the copy holds already.
STANDING = ("staging", "intermediate", "features")

MONTH = """
insert into monitoring.replay_months by name
with served as (
    select p.model_version, 100 * abs(p.predicted_price / a.actual_price - 1) as model_error,
        100 * abs(f.persistence_price / a.actual_price - 1) as persistence_error,
        abs(p.predicted_price - a.actual_price) as absolute_error, p.predicted_price / a.actual_price as ratio
    from predictions.predictions as p
    inner join predictions.actuals as a on p.observation_id = a.observation_id and a.is_price_valid
    inner join features.features as f on p.observation_id = f.observation_id
    where p.kind = 'model' and p.model_version = $version and p.month = $month and p.split <> 'eval'
)
select $policy as policy, $month::date as month, $version as model_version, count(*) as n, avg(absolute_error) as mae,
    median(model_error) as mdape_pct, median(ratio) as median_ratio,
    median(persistence_error) as persistence_mdape_pct, $decision as decision, $reasons::varchar[] as reasons,
    $trained as trained_version, $promoted as promoted_version, $moves::varchar[] as moves, $seconds as seconds
from served
"""


class ReplayError(ValueError):
    """The replay cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """What is replayed. The starting model is trained through the month before ``first``."""

    policy: Policy
    first: date
    last: date

    @property
    def months(self) -> list[date]:
        out = [self.first]
        while out[-1] < self.last:
            out.append(add_months(out[-1], 1))
        return out


def replay(
    settings: Settings, contract: Contract, plan: Plan, params: Params, *, show: Callable[[str, int, int], None]
) -> None:
    """Walk the months of a plan and write ``monitoring.replay_months``; goes on where an earlier walk was cut off.

    Raises ReplayError where there is nothing to walk over.
    """
    if contract.observed_on is None:
        raise ReplayError(f"{contract.name} has no dates, so there are no months to replay")
    if plan.first > plan.last:
        raise ReplayError(f"--from {plan.first:%Y-%m} is after --to {plan.last:%Y-%m}")
    own = replay_home(settings, plan.policy)
    with warehouse_lock(settings, f"housing replay {plan.policy}"):
        _prepare(settings, own, contract, plan, params)
    with environment_of(own), warehouse_lock(own, "housing replay"):
        months = plan.months
        done = _months_done(own)
        if not done:
            show(f"{plan.policy}: train through {add_months(plan.first, -1):%Y-%m}", 0, len(months))
            _start(own, contract, plan, params)
        for i, month in enumerate(months):
            show(f"replay {plan.policy}", i, len(months))
            if month not in done:
                _walk(own, contract, plan, params, month)
        show(f"replay {plan.policy}", len(months), len(months))
    with warehouse_lock(settings, f"housing replay {plan.policy}"):
        _bring_home(settings, own, contract, plan.policy)


def replay_home(settings: Settings, policy: Policy) -> Settings:
    """Settings of the replay's own home, with a model registry of its own."""
    home = settings.home / "replays" / policy
    return Settings.model_validate({**settings.model_dump(), "home": home, "own_registry": True})


def _prepare(settings: Settings, own: Settings, contract: Contract, plan: Plan, params: Params) -> None:
    """Copy the warehouse and roll it back, unless a replay of the same plan and data stands."""
    if not settings.warehouse.is_file():
        raise ReplayError(nothing_built(settings.dataset))
    with connect(settings, read_only=True) as connection:
        if not is_built(connection, "features.features"):
            raise ReplayError(nothing_built(settings.dataset))
        state = _state(connection, contract, plan, params)
        bounds = connection.execute("select min(month), max(month) from features.features").fetchone()
    if not bounds or not bounds[0]:
        raise ReplayError(nothing_built(settings.dataset))
    if plan.last > bounds[1] or add_months(plan.first, -6) < bounds[0]:
        raise ReplayError(
            f"{plan.first:%Y-%m} to {plan.last:%Y-%m} does not lie inside the data with half a year before it to train "
            f"on; there are months from {bounds[0]:%Y-%m} to {bounds[1]:%Y-%m}"
        )
    stamp = own.home / f"{own.dataset}.plan"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == state:
        return
    shutil.rmtree(own.home / "mlflow", ignore_errors=True)
    stamp.unlink(missing_ok=True)
    own.warehouse.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(settings.warehouse, own.warehouse)
    with connect(own) as connection:
        for (schema,) in connection.execute(
            "select distinct schema_name from duckdb_tables() where schema_name in "
            "('training', 'predictions', 'monitoring')"
        ).fetchall():
            connection.execute(f"drop schema {schema} cascade")
        create_tables(connection, contract)
        connection.execute("create schema replay")
        for table in ("features", "encodings"):
            connection.execute(f"create table replay.{table} as select * from features.{table} order by month")
            connection.execute(f"drop table features.{table}")
        connection.execute(f"create table replay.clock as select date '{add_months(plan.first, -1)}' as month")
        connection.execute(
            """
            create view features.features as
            select * from replay.features where month <= (select month from replay.clock);
            -- what is known at the end of a month is there to price the next one
            create view features.encodings as
            select * from replay.encodings where month <= (select month + interval 1 month from replay.clock);
            """
        )
    stamp.write_text(state, encoding="utf-8")


def _state(connection: duckdb.DuckDBPyConnection, contract: Contract, plan: Plan, params: Params) -> str:
    """Digest of what a replay depends on; its last month may be moved on."""
    rows = connection.execute("select count(*), sum(hash(f)) from features.features as f").fetchone()
    parts = [plan.policy, plan.first.isoformat(), params.model_dump(), contract.model_dump(mode="json"), str(rows)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _start(own: Settings, contract: Contract, plan: Plan, params: Params) -> None:
    run_dbt(own, "build", "--select", "+training_dataset", "resource_type:seed", "--exclude", *STANDING)
    with connect(own) as connection:
        through = f"{add_months(plan.first, -1):%Y-%m}"
        version = train_and_register(connection, own, contract, through=through, params=params, actor="replay").version
        if version.status != "champion":
            raise ReplayError(
                f"the model through {through} did not pass its gate: {'; '.join(version.reasons)}; begin later "
                "(--from), so that it learns from more months, or mend the gate of the contract"
            )


def _walk(own: Settings, contract: Contract, plan: Plan, params: Params, month: date) -> None:
    """One month: score, let prices land, judge, decide, retrain, promote, and write down what came of it."""
    started = time.monotonic()
    with connect(own) as connection:
        connection.execute("update replay.clock set month = ?", [month])
        served = champion(connection)
        assert served is not None  # _start saw to it
        for version in filter(None, (served, challenger(connection))):
            _score(connection, own, contract, version)
    _judge(own)
    moves: list[str] = []
    decision: dict[str, Any] = {}
    trained: ModelVersion | None = None
    if plan.policy != "never":
        with connect(own) as connection:
            moves += carry_out(connection, own, contract, actor="replay")
            decision = newest_decision(connection) or {}
            if plan.policy == "every-month" or decision.get("decision") == "retrain":
                outcome = train_and_register(
                    connection, own, contract, through=f"{month:%Y-%m}", params=params, actor="replay"
                )
                trained = outcome.version if outcome.trained else None
                if plan.policy == "every-month" and outcome.version.status == "challenger":
                    moves += promote(connection, own, contract, outcome.version.model_version, actor="replay")
        if trained and plan.policy == "on-decision":
            _judge(own, "challenger_comparisons")
            with connect(own) as connection:
                moves += carry_out(connection, own, contract, actor="replay")
    with connect(own) as connection:
        now = champion(connection)
        assert now is not None  # a champion is replaced, never removed
        connection.execute(
            MONTH,
            {
                "policy": plan.policy,
                "month": month,
                "version": served.model_version,
                "decision": decision.get("decision"),
                "reasons": decision.get("reasons") or [],
                "trained": trained.model_version if trained else None,
                "promoted": now.model_version if now.model_version != served.model_version else None,
                "moves": moves,
                "seconds": time.monotonic() - started,
            },
        )


def _score(connection: duckdb.DuckDBPyConnection, own: Settings, contract: Contract, version: ModelVersion) -> None:
    score_months(connection, own, contract, version, scorable_months(connection, version), run_id="replay")


def _judge(own: Settings, *models: str) -> None:
    run_dbt(own, "run", "--select", *[f"+{name}" for name in models or JUDGED], "--exclude", *STANDING)


def _months_done(own: Settings) -> set[date]:
    with connect(own) as connection:
        return {month for (month,) in connection.execute("select month from monitoring.replay_months").fetchall()}


def _bring_home(settings: Settings, own: Settings, contract: Contract, policy: Policy) -> None:
    """Replace the policy's rows in the warehouse, in one transaction."""
    with connect(own, read_only=True) as connection:
        rows = connection.execute("select * from monitoring.replay_months order by month").to_arrow_table()
    with connect(settings) as connection:
        create_tables(connection, contract)
        connection.register("replayed", rows)
        connection.execute("begin")
        connection.execute("delete from monitoring.replay_months where policy = ?", [policy])
        connection.execute("insert into monitoring.replay_months by name select * from replayed")
        connection.execute("commit")
