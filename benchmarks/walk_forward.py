"""What a refit before every month would reach: train through the month before, score the month, for each month asked.

    python -m benchmarks.walk_forward hdb --from 2022-01 --to 2023-12 --profile best

Reads the warehouse of HOUSING_HOME; each core takes a month at a time. Nothing may be chosen by these figures where the
months are the holdout.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np

from ml.bundle import feature_matrix
from ml.contract import add_months, load, month_date
from ml.dataset import read, select, training_window
from ml.evaluate import accuracy
from ml.params import load as load_params
from ml.settings import Settings
from ml.train import boost
from ml.warehouse import connect, quoted


class Scored(NamedTuple):
    """A month priced by a model of the months before; float64 arrays of shape (n,)."""

    month: date
    rounds: int
    actual: np.ndarray
    model: np.ndarray
    persistence: np.ndarray


def refit_and_score(month: date, dataset: str, profile: str) -> Scored:
    """Train through the month before and price the month, on one thread."""
    settings, contract = Settings(dataset=dataset), load(dataset)
    columns = ", ".join(map(quoted, ("price", "target_offset", "persistence_price", *contract.features)))
    with connect(settings, read_only=True) as connection:
        data = read(
            connection, select(connection, contract, training_window(contract, f"{add_months(month, -1):%Y-%m}"))
        )
        rows = connection.execute(
            f"select {columns} from training.training_dataset where is_price_valid and month = ?", [month]
        ).to_arrow_table()
    boosted = boost(
        data.x, data.target, data.train, data.evaluation, params=load_params(dataset, profile=profile),
        features=data.selection.features, refit=contract.split.refit, threads=1,
    )  # fmt: skip
    score = boosted.booster.inplace_predict(feature_matrix(rows, contract.features)).astype(np.float64)
    priced = np.exp(score + rows["target_offset"].to_numpy())
    return Scored(month, boosted.rounds, rows["price"].to_numpy(), priced, rows["persistence_price"].to_numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--from", dest="first", type=month_date, required=True)
    parser.add_argument("--to", dest="last", type=month_date, required=True)
    parser.add_argument("--profile", default="default")
    arguments = parser.parse_args()
    months = [arguments.first]
    while months[-1] < arguments.last:
        months.append(add_months(months[-1], 1))
    work = partial(refit_and_score, dataset=arguments.dataset, profile=arguments.profile)
    scored = []
    # XGBoost's threads do not survive a fork
    with ProcessPoolExecutor(Settings().threads, mp_context=get_context("spawn")) as pool:
        for one in pool.map(work, months):
            found = accuracy(one.actual, one.model)
            sys.stdout.write(
                f"{one.month:%Y-%m} {one.rounds} rounds, n {found['n']:.0f}, MdAPE {found['mdape_pct']:.2f}\n"
            )
            sys.stdout.flush()
            scored.append(one)
    actual = np.concatenate([one.actual for one in scored])
    for name in ("model", "persistence"):
        price = np.concatenate([getattr(one, name) for one in scored])
        has = np.isfinite(price)
        sys.stdout.write(f"{name}: { {k: round(v, 4) for k, v in accuracy(actual[has], price[has]).items()} }\n")


if __name__ == "__main__":
    main()
