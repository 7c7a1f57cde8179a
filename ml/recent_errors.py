"""What a version missed by in the months before, carried over to the month that it prices.

A market moves apart after a version was trained: one town follows it, another does not. Errors that are known say by
how much. The contract's ``recent_errors`` names groups of homes from wide to narrow. The mean error (log) of a group in
the window is mixed with that of the wider group, which counts as much as ``prior`` errors of its own (empirical Bayes):
``c = (sum + prior * c_wider) / (n + prior)``, 0 before the widest. Only errors of strictly earlier months that the
version did not learn from count, and always those of the bare model, so that nothing is corrected twice.

The sums stand in ``predictions.recent_errors``, as whole millionths: exact, whatever their order. They belong to a
version and change with what it scores, so they are made while it is scored and not by dbt, for which they would stand
both before and after ``predictions.predictions``.
"""

from __future__ import annotations

from datetime import date

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ml.contract import Contract, RecentErrors
from ml.registry import ModelVersion

REMEMBER = """
insert into predictions.recent_errors by name
with errors as (
    select p.month, f.error_keys,
        cast(round(1e6 * (ln(f.price) - ln(p.predicted_price) + coalesce(p.recent_error, 0))) as bigint) as micro_error
    from predictions.predictions as p
    inner join features.features as f on p.observation_id = f.observation_id
    where p.model_version = $version and p.kind = 'model' and p.mode = 'batch' and p.split <> 'eval'
        and p.predicted_price > 0 and f.is_price_valid
),
by_group as (
    select month, micro_error, unnest(error_keys) as key_value, generate_subscripts(error_keys, 1) as level from errors
),
monthly as (
    select level, key_value, month, count(*) as n, sum(micro_error) as micro_error
    from by_group where key_value is not null group by all
)
select $version as model_version, level, key_value, (monthly.month + to_months(back.months))::date as month,
    sum(n)::bigint as n, sum(micro_error)::bigint as micro_error
from monthly cross join (select unnest(range($first, $last + 1))::integer as months) as back
where monthly.month + to_months(back.months) <= (select max(month) from features.encodings)
group by all
"""

#: Reasons of prices that have changed: whoever explains finds their rows without any. Sums of SHAP values, which are
#: 32 bits wide, miss the price by up to 2e-6 of it.
FORGET_OUTDATED = """
delete from predictions.explanations as e using (
    select observation_id, month
    from predictions.explanations as old
    inner join predictions.predictions as p using (observation_id, model_version, month)
    where model_version = $version and month >= $month and p.mode = 'batch' and p.split <> 'eval'
    group by observation_id, month
    having abs(sum(old.contribution) - any_value(p.predicted_price)) > 1e-5 * any_value(p.predicted_price)
) as outdated
where e.observation_id = outdated.observation_id and e.month = outdated.month and e.model_version = $version
"""


def correct(connection: duckdb.DuckDBPyConnection, contract: Contract, version: ModelVersion, *, since: date) -> None:
    """Bring the version's prices of a month and of later ones to where its recent errors say; the caller's transaction.

    Scoring months moves those after them, to which their errors are known. Reasons of prices that moved are forgotten.
    Where the contract names no ``recent_errors``, prices moved only by being made again.
    """
    if contract.recent_errors:
        _move(connection, contract.recent_errors, version.model_version, since)
    connection.execute(FORGET_OUTDATED, {"version": version.model_version, "month": since})


def _move(connection: duckdb.DuckDBPyConnection, rule: RecentErrors, name: str, since: date) -> None:
    connection.execute("delete from predictions.recent_errors where model_version = ?", [name])
    first, last = rule.months_back
    connection.execute(REMEMBER, {"version": name, "first": first, "last": last})
    levels = range(1, len(rule.groups) + 1)
    joins = "".join(
        f"""
        left join predictions.recent_errors as g{level}
            on g{level}.model_version = $version and g{level}.level = {level}
            and g{level}.key_value = f.error_keys[{level}]
            and g{level}.month = least(f.month, (select max(month) from features.encodings))
        """
        for level in levels
    )
    connection.execute(
        f"""
        update predictions.predictions as p
        set recent_error = c.recent_error,
            predicted_price = p.predicted_price * exp(c.recent_error - coalesce(p.recent_error, 0))
        from (
            select f.observation_id, {_mixed(rule)} as recent_error from features.features as f {joins}
            where f.month >= $month
        ) as c
        where p.observation_id = c.observation_id and p.model_version = $version and p.mode = 'batch'
            and p.split <> 'eval' and p.month >= $month and c.recent_error is distinct from p.recent_error
        """,
        {"version": name, "month": since},
    )


def _mixed(rule: RecentErrors) -> str:
    """SQL of a row's correction (log) from the joined sums g1, g2, ..."""
    out = "0.0"
    for level, group in enumerate(rule.groups, start=1):
        sums = f"coalesce(g{level}.micro_error, 0) / 1e6"
        out = f"({sums} + {group.prior} * {out}) / (coalesce(g{level}.n, 0) + {group.prior})"
    return out


class Corrections:
    """The same for rows of one month that are priced now; ``sums`` are the version's rows of that month."""

    def __init__(self, rule: RecentErrors, sums: pa.Table) -> None:
        self._priors = [group.prior for group in rule.groups]
        by = zip(sums["level"].to_pylist(), sums["key_value"].to_pylist(), strict=True)
        self._place = {key: i for i, key in enumerate(by)}
        # in the last place nothing is known
        self._n, self._micro_error = (np.append(sums[name].to_numpy(), 0.0) for name in ("n", "micro_error"))

    def of(self, error_keys: pa.ChunkedArray) -> np.ndarray:
        """Corrections (log) of rows by their ``error_keys``, float64 of shape (n,); 0 where nothing is known.

        Each row has a key for each group, as the macro error_keys makes them.
        """
        flat = pc.list_flatten(error_keys).to_numpy()  # pyright: ignore
        mixed = np.zeros(len(error_keys))
        for level, prior in enumerate(self._priors, start=1):
            keys = flat[level - 1 :: len(self._priors)].tolist()
            at = np.array([self._place.get((level, key), -1) for key in keys], dtype=np.int64)
            mixed = (self._micro_error[at] / 1e6 + prior * mixed) / (self._n[at] + prior)
        return mixed
