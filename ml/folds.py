"""Rolling origins: how good a way of training would have been at several moments of the past.

Each fold trains as the product does (early stopping on the evaluation window, refit through it) and scores the months
after a gap, so that choices never touch the holdout. Results belong in ``docs/experiments.md``:

    python -m ml.folds hdb --through 2020-12 --through 2021-06 --months 6
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import duckdb
import numpy as np

from ml.bundle import feature_matrix
from ml.contract import Contract, add_months, load, month_date
from ml.dataset import read, select, training_window
from ml.evaluate import accuracy
from ml.params import Params
from ml.params import load as load_params
from ml.settings import Settings
from ml.train import Fit, fit
from ml.warehouse import connect, quoted


@dataclass(frozen=True)
class FoldResult:
    """Error of one fold; ``metrics`` are those of ``ml.evaluate.accuracy`` over the test months."""

    through: date
    test_from: date
    test_through: date
    rounds: int
    metrics: dict[str, Any]
    persistence: dict[str, Any]


def rolling_origin(
    connection: duckdb.DuckDBPyConnection,
    contract: Contract,
    params: Params,
    through: Sequence[str],
    *,
    months: int,
    gap: int = 0,
    threads: int,
) -> list[FoldResult]:
    """Train through each month (YYYY-MM) and score the ``months`` that follow ``gap`` months later.

    Raises DatasetError when a fold has nothing to train or to test on.
    """
    return [_fold(connection, contract, params, t, months=months, gap=gap, threads=threads) for t in through]


def _fold(
    connection: duckdb.DuckDBPyConnection,
    contract: Contract,
    params: Params,
    through: str,
    *,
    months: int,
    gap: int,
    threads: int,
) -> FoldResult:
    data = read(connection, select(connection, contract, training_window(contract, through)))
    fitted = fit(data, params, refit=contract.split.refit, threads=threads)
    last = month_date(through)
    test_from, test_through = add_months(last, 1 + gap), add_months(last, gap + months)
    rows = connection.execute(
        f"""
        select price, target_offset, persistence_price, {", ".join(map(quoted, data.selection.features))}
        from training.training_dataset
        where is_price_valid and month between ? and ? order by month, observation_id
        """,
        [test_from, test_through],
    ).to_arrow_table()
    actual = rows["price"].to_numpy()
    persistence = rows["persistence_price"].to_numpy()
    known = np.isfinite(persistence)
    return FoldResult(
        through=last,
        test_from=test_from,
        test_through=test_through,
        rounds=fitted.rounds,
        metrics=accuracy(actual, predict(fitted, feature_matrix(rows, data.selection.features), rows)),
        persistence=accuracy(actual[known], persistence[known]),
    )


def predict(fitted: Fit, x: np.ndarray, rows: Any) -> np.ndarray:
    """Prices of feature rows, shape (n,)."""
    return np.exp(fitted.booster.inplace_predict(x).astype(np.float64) + rows["target_offset"].to_numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--through", action="append", required=True, help="last month of training, YYYY-MM; repeatable")
    parser.add_argument("--months", type=int, default=6, help="months scored after it")
    parser.add_argument("--gap", type=int, default=0, help="months between, for labels that arrive late")
    parser.add_argument("--params", type=json.loads, default={}, help='parameters to change, such as {"eta": 0.1}')
    arguments = parser.parse_args()
    settings = Settings(dataset=arguments.dataset)
    params = load_params(arguments.dataset).model_copy(update=arguments.params)
    with connect(settings, read_only=True) as connection:
        for through in arguments.through:
            (result,) = rolling_origin(
                connection,
                load(arguments.dataset),
                params,
                [through],
                months=arguments.months,
                gap=arguments.gap,
                threads=settings.threads,
            )
            shown = {k: round(v, 4) for k, v in result.metrics.items()}
            sys.stdout.write(f"through {through}: {result.rounds} rounds, {shown}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
