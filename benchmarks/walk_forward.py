"""What a refit before every month would reach: train through the month before, score the month, for each month asked.

    python -m benchmarks.walk_forward hdb --from 2022-01 --to 2023-12

Reads the warehouse of HOUSING_HOME. Nothing may be chosen by these figures where the months are the holdout.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from ml.bundle import feature_matrix
from ml.contract import add_months, load, month_date
from ml.dataset import read, select, training_window
from ml.evaluate import accuracy
from ml.params import load as load_params
from ml.settings import Settings
from ml.train import boost
from ml.warehouse import connect, quoted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--from", dest="first", type=month_date, required=True)
    parser.add_argument("--to", dest="last", type=month_date, required=True)
    parser.add_argument("--profile", default="default")
    arguments = parser.parse_args()
    settings, contract = Settings(dataset=arguments.dataset), load(arguments.dataset)
    params = load_params(contract.name, profile=arguments.profile)
    columns = ", ".join(map(quoted, ("price", "target_offset", "persistence_price", *contract.features)))
    actual, said, last_known = [], [], []
    month = arguments.first
    with connect(settings, read_only=True) as connection:
        while month <= arguments.last:
            window = training_window(contract, f"{add_months(month, -1):%Y-%m}")
            data = read(connection, select(connection, contract, window))
            boosted = boost(
                data.x, data.target, data.train, data.evaluation, params=params, features=data.selection.features,
                refit=contract.split.refit, threads=settings.threads,
            )  # fmt: skip
            rows = connection.execute(
                f"select {columns} from training.training_dataset where is_price_valid and month = ?", [month]
            ).to_arrow_table()
            score = boosted.booster.inplace_predict(feature_matrix(rows, contract.features)).astype(np.float64)
            actual.append(rows["price"].to_numpy())
            said.append(np.exp(score + rows["target_offset"].to_numpy()))
            last_known.append(rows["persistence_price"].to_numpy())
            found = accuracy(actual[-1], said[-1])
            sys.stdout.write(
                f"{month:%Y-%m} {boosted.rounds} rounds, n {found['n']:.0f}, MdAPE {found['mdape_pct']:.2f}\n"
            )
            sys.stdout.flush()
            month = add_months(month, 1)
    for name, prices in (("model", said), ("persistence", last_known)):
        price, known = np.concatenate(prices), np.concatenate(actual)
        has = np.isfinite(price)
        sys.stdout.write(f"{name}: { {k: round(v, 4) for k, v in accuracy(known[has], price[has]).items()} }\n")


if __name__ == "__main__":
    main()
