"""Champion and challenger: which version has which alias, since when, by whom and why.

SQL compares the two (``monitoring.challenger_comparisons``); this module carries its verdict out. MLflow holds the
aliases, ``training.model_aliases`` a row for each move. A move is made in MLflow first, with actor and reason as tags
of the version, and then mirrored: a process killed between the two leaves nothing that the next reconciliation does
not put right. Training and registering are in ``ml/registry.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

import duckdb

from ml.contract import Contract
from ml.mlflow_store import open_registry
from ml.own_features import require_encodings
from ml.registry import CHALLENGER, CHAMPION, ModelVersion, challenger, champion, load_bundle, versions
from ml.settings import Settings, command, nothing_built
from ml.warehouse import is_built, transaction, utc_now

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as RegisteredVersion

#: When a version that passed its gate got its first alias; it never gets one by itself again.
ENTERED = "entered_at"
#: The champion, if it scored months and nothing explains them.
NEWCOMER = """
select model_version from training.model_versions
where status = 'champion'
    and model_version in (select model_version from predictions.predictions where split <> 'eval' and mode = 'batch')
    and model_version not in (select model_version from predictions.explanations)
"""
#: Why a challenger lost.
LOST = "rejected_because"


class PromotionError(RuntimeError):
    """The move is not possible; the message says why and what there is."""


@dataclass(frozen=True)
class Comparison:
    """The row of ``monitoring.challenger_comparisons``. Shares are in percent of the champion's mean error."""

    challenger: str
    champion: str
    month: date | None
    stage: str
    n: int
    error_reduction_pct: float | None
    reduction_lower_pct: float | None
    reduction_upper_pct: float | None
    worst_area: str | None
    worst_area_loss_pct: float | None
    verdict: str
    reason: str


def enter(client: MlflowClient, name: str, found: RegisteredVersion, actor: str) -> None:
    """Give a new version that passed its gate its place: champion where there is none, else challenger."""
    if found.tags["gate"] != "passed" or ENTERED in found.tags:
        return
    standing = _aliases(client, name)
    if CHAMPION not in standing:
        reason = f"v{found.version} passed its gate; there was no champion"
        _give(client, name, CHAMPION, str(found.version), actor=actor, reason=reason)
    else:
        earlier = standing.get(CHALLENGER)
        instead = f" in place of {earlier}" if earlier else ""
        reason = f"v{found.version} passed its gate and challenges {standing[CHAMPION]}{instead}"
        _give(client, name, CHALLENGER, str(found.version), actor=actor, reason=reason)
    client.set_model_version_tag(name, str(found.version), ENTERED, utc_now().isoformat())


def follow_aliases(connection: duckdb.DuckDBPyConnection, client: MlflowClient, name: str) -> list[str]:
    """Bring the status of versions to the aliases in MLflow and remember each move; the caller's transaction."""
    standing = _aliases(client, name)
    if standing.get(CHALLENGER) and standing.get(CHALLENGER) == standing.get(CHAMPION):
        client.delete_registered_model_alias(name, CHALLENGER)  # killed in the middle of a promotion
        del standing[CHALLENGER]
    tags = {f"v{v.version}": v.tags for v in client.search_model_versions(f"name = '{name}'")}
    for version, theirs in tags.items():
        if LOST in theirs:
            connection.execute(
                "update training.model_versions set reasons = [?] where model_version = ? and len(reasons) = 0",
                [theirs[LOST], version],
            )
    done = []
    for alias, current in ((CHAMPION, champion(connection)), (CHALLENGER, challenger(connection))):
        previous, wanted = current.model_version if current else None, standing.get(alias)
        if wanted == previous:
            continue
        actor, reason = _why(alias, previous, wanted, tags)
        connection.execute(
            "insert into training.model_aliases by name select ? as alias, ? as model_version, ? as previous_version, "
            "?::timestamp as moved_at, ? as actor, ? as reason",
            [alias, wanted, previous, utc_now(), actor, reason],
        )
        done.append(f"{alias} is {wanted or 'nobody'}: {reason}")
    connection.execute(
        """
        update training.model_versions set status = case
            when model_version = $champion then 'champion'
            when model_version = $challenger then 'challenger'
            when model_version in (select served.model_version from training.model_aliases as served
                where served.alias = 'champion') then 'archived'
            when len(reasons) > 0 then 'rejected'
            else 'archived'
        end
        """,
        {"champion": standing.get(CHAMPION), "challenger": standing.get(CHALLENGER)},
    )
    return done


def latest_comparison(connection: duckdb.DuckDBPyConnection) -> Comparison | None:
    """What SQL says of the present challenger; None where there is none or it was not compared with this champion."""
    first, second = champion(connection), challenger(connection)
    if not first or not second:
        return None
    columns = ", ".join(Comparison.__dataclass_fields__)
    row = connection.execute(
        f"select {columns} from monitoring.challenger_comparisons where champion = ? and challenger = ?",
        [first.model_version, second.model_version],
    ).fetchone()
    return Comparison(*row) if row else None


def unpublished_move(connection: duckdb.DuckDBPyConnection, settings: Settings) -> list[str]:
    """A sentence where the snapshot still names the champion before this one: a command that moved it did not end."""
    current = champion(connection) if is_built(connection, "training.model_versions") else None
    if current is None or not settings.published.exists():
        return []
    with duckdb.connect(str(settings.published), read_only=True) as snapshot:
        if not is_built(snapshot, "training.model_versions"):
            return []
        rows = snapshot.execute(
            "select model_version from training.model_versions where status = 'champion'"
        ).fetchall()
    previous, reason = _last_move(connection, current)
    if not rows or rows[0][0] == current.model_version or rows[0][0] != previous:
        return []
    return [f"champion is {current.model_version} already, which was not published yet: {reason}"]


def _last_move(connection: duckdb.DuckDBPyConnection, current: ModelVersion) -> tuple[str | None, str | None]:
    """Who was champion before this one, and why that changed."""
    row = connection.execute(
        "select previous_version, reason from training.model_aliases where alias = ? and model_version = ? "
        "order by moved_at desc limit 1",
        [CHAMPION, current.model_version],
    ).fetchone()
    return row or (None, None)


def published_newcomer(settings: Settings) -> str | None:
    """The snapshot's champion when none of its predictions is explained yet: it was promoted after it had scored."""
    if not settings.published.exists():
        return None
    with duckdb.connect(str(settings.published), read_only=True) as connection:
        try:
            row = connection.execute(NEWCOMER).fetchone()
        except duckdb.CatalogException:  # a snapshot of an older layout, or of before anything was scored
            return None
    return row[0] if row else None


def carry_out(
    connection: duckdb.DuckDBPyConnection, settings: Settings, contract: Contract, *, actor: str = "housing"
) -> list[str]:
    """Do what the comparison says: promote, reject, let a canary begin, or wait. Returns a sentence for each move.

    In mode ``manual`` a promotion waits for ``promote``; in mode ``canary`` the first verdict lets the challenger serve
    a share of keys (SQL knows since when from ``training.promotion_decisions``). The caller holds the warehouse lock.
    """
    found = latest_comparison(connection)
    if found is None or found.verdict == "wait" or _stands(connection, found, contract.promotion.mode):
        return []
    client, name = open_registry(settings), settings.registered_model
    if moved := _followed(connection, client, name):
        return moved  # by whom this comparison has not heard of
    mode = contract.promotion.mode
    if found.verdict == "canary" or (found.verdict == "promote" and mode == "manual"):
        _remember(connection, found, mode, actor)
        waits = (
            "serves a share of the keys"
            if found.verdict == "canary"
            else f"waits for `{command('promote', settings.dataset)}`"
        )
        return [f"{found.challenger} {waits}: {found.reason}"]
    if found.verdict == "promote":
        _promote(client, name, found.challenger, actor, found.reason)
    else:
        _reject(client, name, found.challenger, found.reason)
    with transaction(connection):
        _remember(connection, found, mode, actor)
        return follow_aliases(connection, client, name)


def promote(
    connection: duckdb.DuckDBPyConnection, settings: Settings, contract: Contract, version: str | None, *, actor: str
) -> list[str]:
    """Make a version champion by hand: the challenger, or any by name.

    Raises PromotionError where there is none, ChangedEncodingError for one that can price nothing any more.
    """
    if not is_built(connection, "training.model_versions") or not versions(connection):
        raise PromotionError(nothing_built(settings.dataset))
    client = open_registry(settings)
    moved = _followed(connection, client, settings.registered_model)
    found = challenger(connection) if version is None else _named(connection, version)
    if found is None:
        raise PromotionError(
            f"there is no challenger to promote; name a version: {command('promote v2', settings.dataset)}"
        )
    if found.status == CHAMPION:
        return [*moved, f"{found.model_version} is champion already"]
    require_encodings(load_bundle(settings, found), contract)
    reason = f"{actor} promoted {found.model_version} by hand"
    comparison = latest_comparison(connection)
    _promote(client, settings.registered_model, found.model_version, actor, reason)
    with transaction(connection):
        if comparison and comparison.challenger == found.model_version:
            _remember(connection, comparison, "manual", actor, verdict="promote", reason=reason)
        return follow_aliases(connection, client, settings.registered_model)


def rollback(connection: duckdb.DuckDBPyConnection, settings: Settings, contract: Contract, *, actor: str) -> list[str]:
    """Give the alias back to the champion before this one. Its predictions still stand, row for row.

    Raises PromotionError where there was none, ChangedEncodingError where it can price nothing any more.
    """
    if not is_built(connection, "training.model_versions"):
        raise PromotionError(nothing_built(settings.dataset))
    client = open_registry(settings)
    if moved := _followed(connection, client, settings.registered_model):
        return moved  # the rollback of before, which was killed, or what somebody did in MLflow
    if moved := unpublished_move(connection, settings):
        return moved  # typed again after it was interrupted, it must not go back to where it came from
    current = champion(connection)
    previous, _ = _last_move(connection, current) if current else (None, None)
    if current is None or previous is None:
        raise PromotionError("there was no champion before this one, so there is nothing to go back to")
    require_encodings(load_bundle(settings, _named(connection, previous)), contract)
    reason = f"{actor} rolled {current.model_version} back to {previous}"
    _give(client, settings.registered_model, CHAMPION, previous[1:], actor=actor, reason=reason)
    _set_aside(client, settings.registered_model, reason)
    with transaction(connection):
        return follow_aliases(connection, client, settings.registered_model)


def _followed(connection: duckdb.DuckDBPyConnection, client: MlflowClient, name: str) -> list[str]:
    """Moves that stand in MLflow and are not remembered: a process was killed, or somebody moved an alias there."""
    with transaction(connection):
        return follow_aliases(connection, client, name)


def _promote(client: MlflowClient, name: str, version: str, actor: str, reason: str) -> None:
    _give(client, name, CHAMPION, version[1:], actor=actor, reason=reason)
    _set_aside(client, name, reason)


def _set_aside(client: MlflowClient, name: str, reason: str) -> None:
    """Nobody challenges any more: it was promoted or rejected, or a person gave the place to another."""
    if standing := _aliases(client, name).get(CHALLENGER):
        client.set_model_version_tag(name, standing[1:], f"{CHALLENGER}_left_because", reason)
        client.delete_registered_model_alias(name, CHALLENGER)


def _reject(client: MlflowClient, name: str, version: str, reason: str) -> None:
    client.set_model_version_tag(name, version[1:], LOST, reason)
    _set_aside(client, name, reason)


def _give(client: MlflowClient, name: str, alias: str, number: str, *, actor: str, reason: str) -> None:
    """Set an alias; tags say from whom, by whom and why, for ``_why``."""
    previous = _aliases(client, name).get(alias) or "nobody"
    if previous == f"v{number}":
        return  # whose move it was stands there
    for key, value in (("from", previous), ("actor", actor), ("reason", reason)):
        client.set_model_version_tag(name, number, f"{alias}_{key}", value)
    client.set_registered_model_alias(name, alias, number)


def _why(alias: str, previous: str | None, wanted: str | None, tags: dict[str, dict[str, str]]) -> tuple[str, str]:
    """Who moved an alias and why; a move that does not fit the tags was made by hand in MLflow."""
    if wanted is None:
        return "housing", tags.get(previous or "", {}).get(f"{alias}_left_because", "the alias was removed in MLflow")
    theirs = tags.get(wanted, {})
    if theirs.get(f"{alias}_from") == (previous or "nobody"):
        return theirs[f"{alias}_actor"], theirs[f"{alias}_reason"]
    return "mlflow", f"the alias was moved to {wanted} in MLflow"


def _aliases(client: MlflowClient, name: str) -> dict[str, str]:
    """Version by alias; empty where nothing was ever registered."""
    from mlflow.exceptions import MlflowException

    try:
        return {alias: f"v{number}" for alias, number in client.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}


def _named(connection: duckdb.DuckDBPyConnection, version: str) -> ModelVersion:
    every = versions(connection)
    for found in every:
        if found.model_version == version:
            return found
    raise PromotionError(f"there is no version {version}; there are: {', '.join(v.model_version for v in every)}")


def _stands(connection: duckdb.DuckDBPyConnection, found: Comparison, mode: str) -> bool:
    """Was the same verdict on the same two remembered already? Then a canary serves or a person is awaited.

    In another mode of the contract it meant something else.
    """
    rows = connection.execute(
        "select 1 from training.promotion_decisions where challenger = ? and champion = ? and verdict = ? and mode = ?",
        [found.challenger, found.champion, found.verdict, mode],
    ).fetchall()
    return bool(rows)


def _remember(
    connection: duckdb.DuckDBPyConnection,
    found: Comparison,
    mode: str,
    actor: str,
    *,
    verdict: str | None = None,
    reason: str | None = None,
) -> None:
    row = {**vars(found), "verdict": verdict or found.verdict, "reason": reason or found.reason}
    row |= {"decided_at": utc_now(), "mode": mode, "actor": actor}
    connection.execute(
        f"insert into training.promotion_decisions ({', '.join(row)}) values ({', '.join('?' * len(row))})",
        list(row.values()),
    )
