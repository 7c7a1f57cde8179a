"""Which rows a training run uses, and how they come from the warehouse into one matrix.

Rows arrive as Arrow batches in a fixed order, so that equal data give equal models, and are written into a single
float32 matrix: 4 bytes a value, known before the first row is read. Fitting belongs in ``ml/train.py``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import date

import duckdb
import numpy as np
import pyarrow as pa

from ml.bundle import feature_matrix
from ml.contract import Contract, add_months, month_date
from ml.warehouse import in_order, is_built, quoted

BATCH_ROWS = 16_384  # a batch and its part of the matrix stay in the processor's cache

#: Columns that a prediction takes over from its features row.
IDENTITY = ("observation_id", "observed_on", "month", "area", "locality")
#: Rows of training whose fitted prices are kept: enough for the ratio study of a town, however long the history.
FITTED_ROWS = 20_000
#: What is kept of such a row, and of every evaluation row, besides its features.
FITTED_COLUMNS = (*IDENTITY, "target_offset")
EVAL_COLUMNS = (*FITTED_COLUMNS, "price", "is_price_valid", "persistence_price", "last_year_price")


class DatasetError(ValueError):
    """There is nothing to train or to evaluate on; the message says what is missing."""


@dataclass(frozen=True)
class TrainingWindow:
    """Train on months before ``eval_from``, evaluate from it through ``through`` (first days of months).

    Both are None for a dataset without dates, which is split by the column ``split``.
    """

    eval_from: date | None
    through: date | None


@dataclass(frozen=True)
class Selection:
    """What a window finds in the warehouse: enough to know whether a model of it stands already."""

    window: TrainingWindow
    features: tuple[str, ...]
    trained_from: date | None
    n_train: int
    n_eval: int
    n_eval_invalid: int
    median_price: float
    fingerprint: str
    areas: tuple[str, ...]
    """Areas that a model of it learns from, sorted; rows without one are of area ``unknown``."""


@dataclass(frozen=True)
class TrainingData:
    """Matrix and labels: rows of training, then of evaluation, then evaluation rows that break a price rule."""

    selection: Selection
    x: np.ndarray
    """float32, shape (n, features), missing values are NaN."""
    target: np.ndarray
    """float32, shape (n,): log price relative to the as-of level; NaN where there is no level."""
    eval_rows: pa.Table
    """Columns EVAL_COLUMNS of all evaluation rows, in the matrix's order."""
    fitted_rows: pa.Table
    """Columns FITTED_COLUMNS of the training rows ``fitted``."""

    @property
    def train(self) -> slice:
        return slice(0, self.selection.n_train)

    @property
    def fitted(self) -> slice:
        """Every k-th training row, so that each month has its share: at most FITTED_ROWS."""
        return slice(0, self.selection.n_train, _step(self.selection))

    @property
    def evaluation(self) -> slice:
        """Evaluation rows with a valid price: these stop training and make the metrics."""
        return slice(self.selection.n_train, self.selection.n_train + self.selection.n_eval)

    @property
    def labelled(self) -> slice:
        """Both of the above: what a refit learns from."""
        return slice(0, self.selection.n_train + self.selection.n_eval)

    @property
    def evaluated(self) -> slice:
        """All evaluation rows, invalid prices included: these get predictions."""
        return slice(self.selection.n_train, len(self.x))


def training_window(contract: Contract, through: str | None = None) -> TrainingWindow:
    """Window of the contract, or the same window ending with ``through`` (YYYY-MM)."""
    if contract.observed_on is None:
        if through:
            raise DatasetError(f"{contract.name} has no dates and is split by its key; train without --through")
        return TrainingWindow(None, None)
    end = month_date(through or contract.split.trained_through or "")
    return TrainingWindow(add_months(end, 1 - contract.split.eval_months), end)


def select(connection: duckdb.DuckDBPyConnection, contract: Contract, window: TrainingWindow) -> Selection:
    """Count and fingerprint the rows of a window without loading them. Raises DatasetError when there are none."""
    columns = ", ".join(
        quoted(name) for name in ("observation_id", "month", "price", "target_offset", *contract.features)
    )
    found = connection.execute(
        f"""
        select part, count(*), min(month), median(price), sum(hash({columns})::hugeint)::varchar,
            list(distinct coalesce(area, 'unknown'))
        from ({_parts(window)}) group by part order by part
        """
    ).fetchall()
    parts = {part: row for part, *row in found}
    n = [parts[p][0] if p in parts else 0 for p in (0, 1, 2)]
    where = f"before {window.eval_from:%Y-%m}" if window.eval_from else "in split train"
    if not n[0]:
        advice = _rejected(connection)
        if not advice and (n_bare := _without_level(connection, window)):
            raise DatasetError(
                f"the {n_bare:,} rows of {contract.name} with a valid price {where} have no price level of earlier "
                "months (level in the contract), so there is nothing to train on; land months before them, or train "
                "through a later one"
            )
        advice = advice or ("land earlier months" if contract.observed_on else "land more rows with their prices")
        raise DatasetError(f"{contract.name} has no row with a valid price {where} to train on; {advice}")
    if not n[1]:
        where = f"from {window.eval_from:%Y-%m} through {window.through:%Y-%m}" if window.eval_from else "in split eval"
        advice = _rejected(connection) or "land those months"
        raise DatasetError(f"{contract.name} has no row with a valid price {where} to evaluate on; {advice}")
    content = [
        contract.features,
        str(window.eval_from),
        str(window.through),
        *([p, r[0], r[3]] for p, r in parts.items()),
    ]
    return Selection(
        window=window,
        features=tuple(contract.features),
        trained_from=parts[0][1] if window.eval_from else None,
        n_train=n[0],
        n_eval=n[1],
        n_eval_invalid=n[2],
        median_price=parts[0][2],
        fingerprint=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        areas=tuple(sorted({*parts[0][4], *(parts[1][4] if contract.split.refit else ())})),
    )


def _rejected(connection: duckdb.DuckDBPyConnection) -> str | None:
    """Why most of what landed does not count, where that is so: then other months would not help."""
    if not is_built(connection, "intermediate.int_observations_rejected"):
        return None
    found = connection.execute(
        """
        with reasons as (select unnest(reasons) as reason from intermediate.int_observations_rejected),
        most as (select reason, count(*) as n from reasons group by reason order by n desc, reason limit 1)
        select (select count(*) from features.features), (select count(*) from intermediate.int_observations_rejected),
            reason, n
        from most
        """
    ).fetchone()
    if not found or found[1] <= found[0]:
        return None
    accepted, rejected, reason, n = found
    return (
        f"of {accepted + rejected:,} landed rows {rejected:,} were rejected, {n:,} of them as {reason}: correct the "
        "files, or the contract's rules"
    )


def _without_level(connection: duckdb.DuckDBPyConnection, window: TrainingWindow) -> int:
    """Rows before the evaluation window that have a valid price, but no price level that it could be compared with."""
    if not window.eval_from:
        return 0
    found = connection.execute(
        "select count(*) from training.training_dataset where month < ? and is_price_valid and target is null",
        [window.eval_from],
    ).fetchone()
    return found[0] if found else 0


def read(connection: duckdb.DuckDBPyConnection, selection: Selection) -> TrainingData:
    """Load the rows of a selection, ordered by part, month and observation_id."""
    n = selection.n_train + selection.n_eval + selection.n_eval_invalid
    x = np.empty((n, len(selection.features)), dtype=np.float32)
    target = np.empty(n, dtype=np.float32)
    wanted = ", ".join(quoted(name) for name in (*EVAL_COLUMNS, "target", *selection.features))
    kept: list[pa.RecordBatch] = []
    fitted: list[pa.RecordBatch] = []
    done, step = 0, _step(selection)
    with in_order(connection):
        reader = connection.execute(
            f"select {wanted} from ({_parts(selection.window)}) order by part, month, observation_id"
        ).to_arrow_reader(BATCH_ROWS)
        for batch in reader:
            rows = slice(done, done + batch.num_rows)
            feature_matrix(batch, selection.features, x[rows])
            target[rows] = batch.column("target").to_numpy(zero_copy_only=False)
            first = max(0, selection.n_train - done)
            chosen = pa.array(range(-done % step, min(first, batch.num_rows), step), pa.int64())
            fitted.append(batch.select(FITTED_COLUMNS).take(chosen))
            if first < batch.num_rows:
                kept.append(batch.slice(first).select(EVAL_COLUMNS))
            done += batch.num_rows
    return TrainingData(selection, x, target, pa.Table.from_batches(kept), pa.Table.from_batches(fitted))


def _step(selection: Selection) -> int:
    """Distance of the training rows whose fitted prices are kept."""
    return -(-selection.n_train // FITTED_ROWS)


def _parts(window: TrainingWindow) -> str:
    """Rows of training (part 0), evaluation (1) and evaluation with an invalid price (2)."""
    if window.eval_from:
        train, evaluation = (
            f"month < date '{window.eval_from}'",
            f"month between date '{window.eval_from}' and date '{window.through}'",
        )
    else:
        train, evaluation = "split = 'train'", "split = 'eval'"
    return f"""
        select *, case
            when {train} and is_price_valid and target is not null then 0
            when {evaluation} and is_price_valid and target is not null then 1
            when {evaluation} and price is not null then 2
        end as part
        from training.training_dataset
        where part is not null
    """
