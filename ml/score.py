"""Predictions into ``predictions.predictions``: a month by a registered version, and a version's evaluation window.

Features come from ``features.features`` in Arrow batches, or as ``ml/own_features.py`` makes them; nothing is fitted or
derived here. Raw rows are predicted by ``ml/bundle.py``; predictions of the unfitted baselines are a dbt model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import date, datetime

import duckdb
import numpy as np
import pyarrow as pa

from ml.bundle import Bundle
from ml.contract import Contract
from ml.dataset import IDENTITY
from ml.own_features import features_of
from ml.recent_errors import correct
from ml.registry import CHALLENGER, ModelVersion, load_bundle
from ml.settings import Settings
from ml.verdicts import is_canary
from ml.warehouse import months_in, quoted, transaction, utc_now

BATCH_ROWS = 65_536  # rows in memory at a time
#: Aggregates by month that differ where rows, or what they were built from, do.
FINGERPRINT = "count(*) as n, sum(hash(observation_id, built_through_batch)) as fingerprint"
MONTHS_PER_TRANSACTION = 12  # a commit costs as much as scoring thousands of rows


class ScoringError(ValueError):
    """The month cannot be scored by this version; the message says why."""


def score_month(
    connection: duckdb.DuckDBPyConnection,
    contract: Contract,
    bundle: Bundle,
    version: ModelVersion,
    *,
    month: date,
    run_id: str,
) -> int:
    """``score_months`` for one month and a bundle that is loaded already; returns the number of rows scored."""
    counts = _counts(connection, contract, version, [month])
    role = _role(connection, contract, version)
    _score(connection, contract, bundle, version, [month], role=role, run_id=run_id, told=lambda rows: None)
    return counts[month]


def score_months(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    contract: Contract,
    version: ModelVersion,
    months: Sequence[date],
    *,
    run_id: str,
    progress: Callable[[int, int], None] | None = None,
) -> dict[date, int]:
    """Score the rows of some months with a version and its straight line; returns the number of rows by month.

    Replaces what stood for a month, in one transaction; ``progress`` is told rows done and rows in all. A priced row of
    a month the version was trained through is never scored, and keeps the prediction that was made before its price
    came; raises ScoringError when a month has no other and nothing is to be cleared up in it.
    """
    if not months:
        return {}
    counts = _counts(connection, contract, version, months)
    bundle = load_bundle(settings, version)
    done, total = 0, sum(counts.values())

    def told(rows: int) -> None:
        nonlocal done
        done += rows
        if progress:
            progress(done, total)

    told(0)
    role = _role(connection, contract, version)
    for first in range(0, len(months), MONTHS_PER_TRANSACTION):
        some = months[first : first + MONTHS_PER_TRANSACTION]
        _score(connection, contract, bundle, version, some, role=role, run_id=run_id, told=told)
    return counts


def _role(connection: duckdb.DuckDBPyConnection, contract: Contract, version: ModelVersion) -> str:
    """SQL for what a prediction is made for: served by the champion or a canary, or kept beside it for comparison."""
    if version.status != CHALLENGER:
        return "'champion'"
    if not is_canary(connection, contract, version.model_version):
        return "'challenger'"
    # the macro hash_share does the same
    share = "cast('0x' || substr(observation_id, 1, 8) as bigint) / 4294967296.0"
    return f"case when {share} < {contract.promotion.canary_share} then 'canary' else 'challenger' end"


def _score(
    connection: duckdb.DuckDBPyConnection,
    contract: Contract,
    bundle: Bundle,
    version: ModelVersion,
    months: Sequence[date],
    *,
    role: str,
    run_id: str,
    told: Callable[[int], None],
) -> None:
    columns = ", ".join(quoted(c) for c in (*IDENTITY, "target_offset", "built_through_batch", *bundle.features_used))
    scored_at = utc_now()
    # a second connection reads while the first writes; both see the warehouse as it stands now
    with closing(connection.cursor()) as reading, transaction(connection):
        features = features_of(reading, bundle, contract, months)
        _forget(connection, version, months)
        reader = reading.execute(
            f"""
            select {columns}, price is not null as is_priced
            from {features} where month in {months_in(months)} and {_to_score(version)}
            """
        ).to_arrow_reader(BATCH_ROWS)
        for batch in reader:
            _insert(connection, bundle, version, batch, role=role, run_id=run_id, scored_at=scored_at)
            told(batch.num_rows)
        correct(connection, contract, version, since=min(months))


def scorable_months(connection: duckdb.DuckDBPyConnection, version: ModelVersion, *, again: bool = False) -> list[date]:
    """Months with rows the version has not scored as they stand now, or with predictions of rows that are gone.

    ``again``: whether or not their rows were scored before.
    """
    months = None if again else _months_in_doubt(connection, version)
    if months == []:
        return []
    among = "true" if months is None else f"month in {months_in(months)}"
    rows = connection.execute(
        f"""
        select month from features.features as f
        where {among} and {_to_score(version)} and ($again or not exists (
            select 1 from predictions.predictions as p
            where p.observation_id = f.observation_id and p.model_version = $version
            and p.built_through_batch = f.built_through_batch and p.month = f.month
        ))
        union
        select month from predictions.predictions as p
        where {among} and {_left_over(version)}
        order by month
        """,
        {"version": version.model_version, "again": again},
    ).fetchall()
    return [month for (month,) in rows]


def _months_in_doubt(connection: duckdb.DuckDBPyConnection, version: ModelVersion) -> list[date]:
    """Months whose rows to score are not the rows scored: a look at each row's hash instead of a search for its twin.

    They may be in order all the same, where a row's price came after its prediction.
    """
    rows = connection.execute(
        f"""
        select coalesce(wanted.month, scored.month) as month
        from (select month, {FINGERPRINT} from features.features where {_to_score(version)} group by month) as wanted
        full join (
            select month, model_version, {FINGERPRINT} from predictions.predictions as p
            where {_mine(version)} and p.split <> 'eval' and p.mode = 'batch' group by month, model_version
        ) as scored on wanted.month = scored.month
        group by 1
        having count(scored.model_version) <> 2
            or not bool_and(wanted.n is not distinct from scored.n and wanted.fingerprint = scored.fingerprint)
        order by 1
        """
    ).fetchall()
    return [month for (month,) in rows]


def _mine(version: ModelVersion) -> str:
    """Condition on ``predictions.predictions as p``: by the version or its straight line."""
    return f"p.model_version in ('{version.model_version}', '{version.linear_version}')"


def _left_over(version: ModelVersion) -> str:
    """Condition on ``predictions.predictions as p``: scored in a month in which its row stands no more."""
    return f"""
        {_mine(version)}
        and p.split <> 'eval' and p.mode = 'batch' and not exists (
            select 1 from features.features as f where p.observation_id = f.observation_id and p.month = f.month
        )
    """


def write_eval_predictions(
    connection: duckdb.DuckDBPyConnection, model_version: str, predictions: pa.Table, run_id: str
) -> None:
    """Insert a version's predictions of its evaluation window; the caller's transaction.

    ``predictions`` has the columns IDENTITY, ``model_price``, ``linear_price`` and, unless the version is of an earlier
    release, ``imputation_error``.
    """
    columns = "'eval' as split, 'evaluation' as role, 'batch' as mode"
    if "imputation_error" in predictions.column_names:
        columns += ", imputation_error"
    _write(connection, model_version, predictions, run_id, into="predictions.predictions", columns=columns)


def write_fitted_values(
    connection: duckdb.DuckDBPyConnection, model_version: str, fitted: pa.Table, run_id: str
) -> None:
    """Insert what a version says of rows that it learned from: IDENTITY, ``model_price`` and ``linear_price``."""
    _write(connection, model_version, fitted, run_id, into="training.fitted_values", columns="'train' as split")


def _write(
    connection: duckdb.DuckDBPyConnection, model_version: str, rows: pa.Table, run_id: str, *, into: str, columns: str
) -> None:
    connection.register("priced", rows)
    for name, kind, price in _kinds(model_version):
        connection.execute(
            f"""
            insert into {into} by name
            select {", ".join(IDENTITY)}, {columns}, ? as model_version, ? as kind, {price} as predicted_price,
                ?::timestamp as scored_at, ? as run_id
            from priced
            """,
            [name, kind, utc_now(), run_id],
        )
    connection.unregister("priced")


def _kinds(model_version: str) -> list[tuple[str, str, str]]:
    """Name, kind and price column of the two predictions of a row."""
    return [(model_version, "model", "model_price"), (f"linear_{model_version}", "baseline", "linear_price")]


def _to_score(version: ModelVersion) -> str:
    """Condition on ``features.features``: what the version has not learned from and was not evaluated on."""
    if version.trained_through is None:
        return "split in ('holdout', 'to_score')"
    return f"(month > date '{version.trained_through}' or price is null)"


def _forget(connection: duckdb.DuckDBPyConnection, version: ModelVersion, months: Sequence[date]) -> None:
    """Delete the version's predictions of rows that it will score again, or that stand in these months no more.

    What was said of a row whose price has come since stays: the version had not learned it.
    """
    again = f"select observation_id from features.features where month in {months_in(months)} and {_to_score(version)}"
    # one after the other: with `or` between them, DuckDB looks both up for every prediction there is
    for condition in (
        f"p.month in {months_in(months)} and {_left_over(version)}",
        f"{_mine(version)} and p.observation_id in ({again})",
    ):
        connection.execute(f"delete from predictions.predictions as p where {condition}")


def _insert(
    connection: duckdb.DuckDBPyConnection,
    bundle: Bundle,
    version: ModelVersion,
    batch: pa.RecordBatch,
    *,
    role: str,
    run_id: str,
    scored_at: datetime,
) -> None:
    x, filled = bundle.matrix(batch)
    offset = batch.column("target_offset").to_numpy(zero_copy_only=False)
    prices = {
        "model_price": np.exp(bundle.booster.inplace_predict(x).astype(np.float64) + offset),
        "linear_price": np.exp(bundle.linear.score(x) + offset),
        "imputation_error": bundle.imputation.error(filled),
    }
    kept = pa.table(
        {name: batch.column(name) for name in (*IDENTITY, "built_through_batch", "is_priced")}
        # no price level, no price: null, never a number made up
        | {name: pa.array(price, from_pandas=True) for name, price in prices.items()}
    )
    connection.register("scored", kept)
    for name, kind, price in _kinds(version.model_version):
        connection.execute(
            f"""
            insert into predictions.predictions by name
            select {", ".join(IDENTITY)}, built_through_batch, ? as model_version, ? as kind,
                case when is_priced then 'holdout' else 'to_score' end as split, {price} as predicted_price,
                imputation_error, ?::timestamp as scored_at, ? as run_id, {role} as role, 'batch' as mode
            from scored
            """,
            [name, kind, scored_at, run_id],
        )
    connection.unregister("scored")


def _counts(
    connection: duckdb.DuckDBPyConnection, contract: Contract, version: ModelVersion, months: Sequence[date]
) -> dict[date, int]:
    """Rows to score by month. Raises ScoringError for a month that the version was trained on throughout."""
    found = connection.execute(
        f"""
        select month, count(*) filter ({_to_score(version)}), count(*)
        from features.features where month in {months_in(months)} group by month
        """
    ).fetchall()
    cleared = connection.execute(
        "select distinct month from predictions.predictions as p "
        f"where p.month in {months_in(months)} and {_left_over(version)}"
    )
    left_over = {month for (month,) in cleared.fetchall()}
    for month, to_score, n in found:
        if n and not to_score and month not in left_over and version.trained_through:
            raise ScoringError(
                f"{version.model_version} was trained through {version.trained_through:%Y-%m}, so the {n:,} priced "
                f"rows of {month:%Y-%m} in {contract.name} are not scored by it; choose a later month or train through "
                "an earlier one"
            )
    return dict.fromkeys(months, 0) | {month: to_score for month, to_score, _ in found}
