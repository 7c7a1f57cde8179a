"""Similar sales beside each prediction, for ``predictions.comparables``.

Two homes are alike when the trees of the model send them to the same leaves (the proximity of Breiman 2001, Random
Forests, section 10). A comparable is an accepted sale of the same area in an earlier month, and its price is brought to
the valuation month by the as-of market index. Reasons for a price are in ``ml/explain.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import cached_property

import duckdb
import numpy as np
import pyarrow as pa
import xgboost as xgb

from ml.bundle import Bundle
from ml.contract import Contract, add_months
from ml.warehouse import in_order, quoted

PER_ROW = 5
#: Older sales say little of today's market, and every month of history costs as much as the last.
MONTHS_BACK = 36
#: Leaves of so many trees are compared; the first trees of a boosted model tell most homes apart.
TREES = 200
BATCH_ROWS = 16_384
PAIRS = 250_000  # pairs compared at a time: what they share stays in a core's cache from tree to tree


@dataclass(frozen=True)
class Homes:
    """Observations with what they are compared by, ordered by area, then newest first."""

    rows: pa.Table
    """observation_id, month, area, price, market (log of the as-of market level of its month)."""
    leaves: np.ndarray
    """The smallest unsigned type that holds every node, shape (n, trees)."""

    @cached_property
    def by_area(self) -> dict[str, slice]:
        areas = self.rows["area"].to_pylist()
        out: dict[str, slice] = {}
        first = 0
        for i in range(1, len(areas) + 1):
            if i == len(areas) or areas[i] != areas[first]:
                out[areas[first]] = slice(first, i)
                first = i
        return out

    @cached_property
    def months(self) -> np.ndarray:
        """datetime64[D], shape (n,)."""
        return np.array(self.rows["month"].to_numpy(), dtype="datetime64[D]")


def sales(
    connection: duckdb.DuckDBPyConnection,
    bundle: Bundle,
    contract: Contract,
    months: Sequence[date],
    area: str | None = None,
) -> Homes:
    """Accepted sales that can be comparables of homes valued in these months, of one area where it is given."""
    first, last = add_months(min(months), -MONTHS_BACK), max(months)
    when = f"month >= date '{first}' and month < date '{last}'" if contract.observed_on else "split = 'train'"
    where = "" if area is None else " and coalesce(area, 'unknown') = $area"
    return _read(connection, bundle, contract, f"is_price_valid and {when}{where}", {"area": area} if area else {})


def subjects(connection: duckdb.DuckDBPyConnection, bundle: Bundle, contract: Contract, predicted: str) -> Homes:
    """The homes of a query of observation_id."""
    return _read(connection, bundle, contract, f"observation_id in ({predicted})")


def find(subjects: Homes, sales: Homes, contract: Contract, month: date, *, threads: int) -> pa.Table:
    """The PER_ROW most similar sales of each subject: observation_id, rank, comparable_id, similarity, sold_month,
    price, adjusted_price.

    ``similarity`` is the share of trees with a common leaf; of equal ones the newer sale comes first. A subject with
    fewer sales in its area has fewer comparables, and never itself.
    """
    work = [(part, sales.by_area[area]) for area, part in subjects.by_area.items() if area in sales.by_area]

    def compared(task: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        part, area = task
        candidates = np.arange(area.start, area.stop)
        if contract.observed_on:
            valued = np.datetime64(month)
            oldest = np.datetime64(add_months(month, -MONTHS_BACK))
            sold = sales.months[area]
            candidates = candidates[(sold < valued) & (sold >= oldest)]
        return _nearest(subjects.leaves, sales.leaves, part, candidates)

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(compared, work))
    subject, sale, shared = (np.concatenate([f[i] for f in found] or [np.empty(0, np.int64)]) for i in range(3))
    rank = np.concatenate([_counted(f[0]) for f in found] or [np.empty(0, np.int32)])
    valued, chosen = subjects.rows.take(subject), sales.rows.take(sale)
    price = chosen["price"].to_numpy()
    change = valued["market"].to_numpy() - chosen["market"].to_numpy()
    return pa.table(
        {
            "observation_id": valued["observation_id"],
            "rank": rank,
            "comparable_id": chosen["observation_id"],
            "similarity": shared / sales.leaves.shape[1] if len(shared) else np.empty(0),
            "sold_month": chosen["month"],
            "price": price,
            # without an index (a dataset without dates, a market without history) the price stays as it was paid
            "adjusted_price": price * np.exp(np.where(np.isnan(change), 0, change)),
        }
    )


def _nearest(
    subject_leaves: np.ndarray, sale_leaves: np.ndarray, part: slice, candidates: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row numbers of subjects and of their nearest candidates, and the number of shared leaves, subject by subject."""
    n, k = len(candidates), min(PER_ROW, len(candidates))
    if not k:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
    theirs = np.ascontiguousarray(sale_leaves[candidates].T)
    step = max(1, PAIRS // n)
    subjects, sales, shared = [], [], []
    for first in range(part.start, part.stop, step):
        mine = subject_leaves[first : min(first + step, part.stop)]
        equal = np.zeros((len(mine), n), dtype=np.min_scalar_type(TREES))
        same = np.empty(equal.shape, dtype=bool)
        for t in range(mine.shape[1]):
            np.equal(mine[:, t, None], theirs[None, t], out=same)
            equal += same.view(np.uint8)  # without a conversion
        # one number that orders by shared leaves, then by the candidates' order, so that no two are equal
        score = np.multiply(equal, n, dtype=np.int32 if (TREES + 1) * n < 2**31 else np.int64)
        score += np.arange(n - 1, -1, -1, dtype=score.dtype)
        best = np.empty((len(mine), k), dtype=np.intp)
        for place in range(k):  # a few looks for the largest are sooner done than a partition
            best[:, place] = score.argmax(axis=1)
            np.put_along_axis(score, best[:, place, None], -1, axis=1)
        subjects.append(np.repeat(np.arange(first, first + len(mine)), k))
        sales.append(candidates[best].ravel())
        shared.append(np.take_along_axis(equal, best, axis=1).ravel().astype(np.int64))
    return np.concatenate(subjects), np.concatenate(sales), np.concatenate(shared)


def _counted(subject: np.ndarray) -> np.ndarray:
    """1, 2, … within each run of equal numbers."""
    starts = np.r_[0, np.flatnonzero(np.diff(subject)) + 1] if len(subject) else np.empty(0, np.int64)
    return (np.arange(len(subject)) - np.repeat(starts, np.diff(np.r_[starts, len(subject)])) + 1).astype(np.int32)


def _read(
    connection: duckdb.DuckDBPyConnection,
    bundle: Bundle,
    contract: Contract,
    condition: str,
    parameters: dict[str, str] | None = None,
) -> Homes:
    standing = {column[0] for column in connection.execute("select * from features.features limit 0").description}
    # subjects and sales are alike as the warehouse sees them now, where a feature may be gone that the version learned
    features = ", ".join(
        f"f.{quoted(name)}" if name in standing else f"null::double as {quoted(name)}" for name in bundle.features_used
    )
    rows, leaves = [], [leaves_of(bundle, np.empty((0, len(bundle.features_used)), dtype=np.float32))]
    with in_order(connection):
        reader = connection.execute(
            f"""
            with market as materialized ({_market(contract)})
            select f.observation_id, f.month, coalesce(f.area, 'unknown') as area, f.price, market.level as market,
                {features}
            from (select * from features.features where {condition}) as f
            left join market on least(f.month, (select max(month) from market)) = market.month
            order by area, f.month desc, f.observation_id
            """,
            parameters or {},
        ).to_arrow_reader(BATCH_ROWS)
        for batch in reader:
            rows.append(batch.select(["observation_id", "month", "area", "price", "market"]))
            leaves.append(leaves_of(bundle, bundle.matrix(batch)[0]))
    schema = pa.schema([reader.schema.field(n) for n in ("observation_id", "month", "area", "price", "market")])
    return Homes(pa.Table.from_batches(rows, schema), np.concatenate(leaves))


def leaves_of(bundle: Bundle, x: np.ndarray) -> np.ndarray:
    """Leaf of each row in each compared tree, shape (n, trees), as in ``Homes``; ``x`` is the matrix of features."""
    trees = min(TREES, bundle.booster.num_boosted_rounds())
    if not len(x):
        return np.empty((0, trees), dtype=np.uint8)
    # the matrix has no names: the order of features is the bundle's
    found = bundle.booster.predict(xgb.DMatrix(x), pred_leaf=True, iteration_range=(0, trees), validate_features=False)
    return found.reshape(len(x), trees).astype(np.min_scalar_type(int(found.max())))


def market_levels(connection: duckdb.DuckDBPyConnection, contract: Contract) -> dict[date, float]:
    """As-of log price of the whole market by month; empty for a dataset without encodings."""
    return dict(connection.execute(_market(contract)).fetchall())


def _market(contract: Contract) -> str:
    """As-of log price of the whole market by month: the mean over all keys of the contract's broadest level."""
    encodings = {e.name for e in contract.encodings}
    # both lists go from fine to broad
    broadest = [name for name in (*contract.persistence, *contract.level) if name in encodings][-1:]
    return (
        "select month, mean_log_price as level from features.encodings "
        f"where key_value = '__unseen__' and encoding = '{''.join(broadest)}'"
    )
