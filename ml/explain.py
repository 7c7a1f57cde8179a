"""Why a prediction is what it is: SHAP contributions in currency and similar sales, month by month.

Writes ``predictions.explanations`` and ``predictions.comparables``.

XGBoost explains the logarithm of the price; contributions to a logarithm become amounts that add up to the price by the
logarithmic mean (LMDI, Ang 2004, Decomposition analysis for policymaking in energy): where phi is the contribution to
the logarithm and base = exp(bias + offset), ``phi * (price - base) / ln(price / base)``. Global importance is SQL over
this table; how similar sales are found is in ``ml/comparables.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import date

import duckdb
import numpy as np
import pyarrow as pa

from ml import comparables
from ml.bundle import Bundle
from ml.contract import Contract
from ml.own_features import features_of
from ml.registry import ModelVersion, challenger, champion, load_bundle
from ml.score import FINGERPRINT, scorable_months
from ml.settings import Settings
from ml.treeshap import shap_values
from ml.warehouse import in_order, months_in, quoted, transaction

BLOCK_ROWS = 65_536  # explained at a time: what is prepared of each tree serves them all
#: Predictions that keep their reasons while a month is explained.
KEPT = "temp.kept_reasons"
#: Names of the parts that no feature of the row explains; no column can have them.
BASE = "(price level)"
RECENT = "(recent errors)"


def explain_months(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    contract: Contract,
    version: ModelVersion,
    months: Sequence[date],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[date, int]:
    """Explain the version's predictions of some months, replacing what stood; returns predictions by month.

    Each month is one transaction. ``progress`` is told predictions done and predictions in all.
    """
    if not months:
        return {}
    bundle = load_bundle(settings, version)
    _find_kept(connection, version, months)
    counts = dict.fromkeys(months, 0) | dict(
        connection.execute(f"select month, count(*) from ({_to_explain(version, months)}) group by month").fetchall()
    )
    done, total = 0, sum(counts.values())
    sales = comparables.sales(connection, bundle, contract, months)
    for block in _blocks(counts):
        rows = _read(connection, bundle, contract, version, block)

        def told(trees: int, of: int, before: int = done, n: int = rows.num_rows) -> None:
            if progress:
                progress(before + n * trees // of, total)

        amounts = contributions(
            bundle,
            bundle.matrix(rows)[0],
            rows["target_offset"].to_numpy(),
            rows["recent_error"].to_numpy() if contract.recent_errors else None,
            threads=settings.threads,
            progress=told,
        )
        # of a prediction that stands although its row changed, what nobody knows any more is part of the level
        stands = rows["stands"].to_numpy()
        amounts[stands, -1] += (rows["predicted_price"].to_numpy() - amounts.sum(axis=1))[stands]
        first = 0
        for month in block:
            part = slice(first, first + counts[month])
            first = part.stop
            predicted = f"select observation_id from ({_to_explain(version, [month])})"
            homes = comparables.subjects(connection, bundle, contract, predicted)
            similar = comparables.find(homes, sales, contract, month, threads=settings.threads)
            reasons = _explanations(parts(bundle, contract), rows.slice(part.start, counts[month]), amounts[part])
            with transaction(connection):
                _replace(connection, "comparables", version, month, similar)
                # last: a month is explained when its reasons stand
                _replace(connection, "explanations", version, month, reasons)
        done += rows.num_rows
    return counts


def unexplained_months(connection: duckdb.DuckDBPyConnection, version: ModelVersion) -> list[date]:
    """Months with predictions that are not explained as they stand now, or with explanations of predictions gone."""
    rows = connection.execute(
        f"""
        select coalesce(p.month, e.month) as month
        from (select month, {FINGERPRINT} from ({_explained(version)}) group by month) as p
        full join (
            select month, {FINGERPRINT} from predictions.explanations
            where model_version = $version and rank = 0 group by month
        ) as e on p.month = e.month
        where (p.n, p.fingerprint) is distinct from (e.n, e.fingerprint)
        union
        select month from predictions.comparables
        where model_version = $version and month not in (select month from ({_explained(version)}))
        order by 1
        """,
        {"version": version.model_version},
    ).fetchall()
    return [month for (month,) in rows]


def pending_months(connection: duckdb.DuckDBPyConnection) -> list[date]:
    """Months in which champion or challenger has something to score, or the champion to explain; none without one."""
    version, rival = champion(connection), challenger(connection)
    if version is None:
        return []
    shadow = scorable_months(connection, rival) if rival else []
    return sorted({*scorable_months(connection, version), *unexplained_months(connection, version), *shadow})


def contributions(
    bundle: Bundle,
    x: np.ndarray,
    offset: np.ndarray,
    recent_error: np.ndarray | None = None,
    *,
    threads: int,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Amounts that add up to each row's price, float64 of shape (n, parts), in the order of ``parts``.

    ``x`` is the feature matrix of shape (n, features), ``offset`` the log of the as-of price level, ``recent_error``
    what recent errors add to the log of the price, where they are carried over; both of shape (n,). ``progress`` is
    told trees done and trees in all.
    """
    phi = shap_values(bundle.booster, x, threads=threads, progress=progress)
    if recent_error is not None:
        phi = np.insert(phi, -1, recent_error, axis=1)
    base = np.exp(phi[:, -1] + offset)
    log_ratio = phi[:, :-1].sum(axis=1)
    # (price - base) / ln(price / base), which is base itself where both are equal
    mean = base * np.divide(np.expm1(log_ratio), log_ratio, out=np.ones_like(base), where=log_ratio != 0)
    return np.column_stack([phi[:, :-1] * mean[:, None], base])


def parts(bundle: Bundle, contract: Contract) -> list[str]:
    """Names of what a price is made of: the features, recent errors where they are carried over, and BASE."""
    return [*bundle.features_used, *([RECENT] if contract.recent_errors else []), BASE]


def _blocks(counts: dict[date, int]) -> Iterator[list[date]]:
    """Months in order, as many together as stay below BLOCK_ROWS rows, at least one."""
    block: list[date] = []
    for month in sorted(counts):
        if block and sum(counts[m] for m in block) + counts[month] > BLOCK_ROWS:
            yield block
            block = []
        block.append(month)
    yield block


def _read(
    connection: duckdb.DuckDBPyConnection,
    bundle: Bundle,
    contract: Contract,
    version: ModelVersion,
    months: Sequence[date],
) -> pa.Table:
    """Features of the version's predictions of some months, month by month."""
    columns = ", ".join(f"f.{quoted(name)}" for name in bundle.features_used)
    features = features_of(connection, bundle, contract, months)
    with in_order(connection):
        return connection.execute(
            f"""
            select p.observation_id, p.built_through_batch, f.target_offset, p.predicted_price,
                coalesce(p.recent_error, 0) as recent_error,
                p.built_through_batch is distinct from f.built_through_batch as stands, {columns}
            from ({_to_explain(version, months)}) as p
            inner join {features} as f on p.observation_id = f.observation_id
            order by p.month, p.observation_id
            """
        ).to_arrow_table()


def _explained(version: ModelVersion) -> str:
    """The predictions that are explained: scored rows that have a price."""
    return (
        "select observation_id, month, predicted_price, recent_error, built_through_batch from predictions.predictions "
        f"where model_version = '{version.model_version}' and split <> 'eval' and mode = 'batch' "
        "and predicted_price is not null"
    )


def _to_explain(version: ModelVersion, months: Sequence[date]) -> str:
    """The predictions of some months but those that keep the reasons they have."""
    return f"""
        select p.* from ({_explained(version)}) as p
        anti join {KEPT} as kept on p.observation_id = kept.observation_id and p.month = kept.month
        where p.month in {months_in(months)}
    """


def _find_kept(connection: duckdb.DuckDBPyConnection, version: ModelVersion, months: Sequence[date]) -> None:
    """Remember which predictions of some months keep their reasons.

    A prediction that was made before its price came stands, while the features of its row may have changed since.
    """
    connection.execute(
        f"""
        create or replace temp table {KEPT} as
        select p.observation_id, p.month
        from ({_explained(version)}) as p
        inner join features.features as f
            on p.observation_id = f.observation_id and p.built_through_batch <> f.built_through_batch
        inner join predictions.explanations as e
            on p.observation_id = e.observation_id and p.month = e.month
            and p.built_through_batch = e.built_through_batch
        where p.month in {months_in(months)} and e.month in {months_in(months)}
            and e.model_version = '{version.model_version}' and e.rank = 0
        """
    )


def _explanations(names: list[str], rows: pa.Table, amounts: np.ndarray) -> pa.Table:
    """One row per prediction and part: observation_id, feature, contribution, rank, built_through_batch."""
    n, width = amounts.shape
    # the base is rank 0, features follow by size; a stable order, so that the same rows come out twice
    order = np.argsort(-np.abs(amounts[:, :-1]), axis=1, kind="stable")
    rank = np.zeros((n, width), dtype=np.int32)
    np.put_along_axis(rank, order, np.arange(1, width, dtype=np.int32)[None, :], axis=1)
    ids = rows["observation_id"].combine_chunks()
    return pa.table(
        {
            "observation_id": pa.DictionaryArray.from_arrays(
                pa.array(np.repeat(np.arange(n, dtype=np.int32), width)), ids
            ),
            "feature": pa.DictionaryArray.from_arrays(
                pa.array(np.tile(np.arange(width, dtype=np.int32), n)), pa.array(names)
            ),
            "contribution": amounts.ravel(),
            "rank": rank.ravel(),
            "built_through_batch": np.repeat(rows["built_through_batch"].to_numpy(), width),
        }
    )


def _replace(
    connection: duckdb.DuckDBPyConnection, table: str, version: ModelVersion, month: date, rows: pa.Table
) -> None:
    """Put rows in the place of a month's, but for those that are kept; the caller's transaction."""
    key = [version.model_version, month]
    connection.execute(
        f"delete from predictions.{table} where model_version = ? and month = ? "
        f"and observation_id not in (select observation_id from {KEPT} where month = ?)",
        [*key, month],
    )
    connection.register("explained", rows)
    connection.execute(
        f"insert into predictions.{table} by name select *, ? as model_version, ?::date as month from explained", key
    )
    connection.unregister("explained")
