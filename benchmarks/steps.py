"""Steps of the product that are measured in a process of their own; each writes its timings as JSON to stdout.

Called by ``benchmarks/run.py`` with HOUSING_HOME set to a scratch folder:

    python -m benchmarks.steps ingest | read | train ROUNDS | score ROUNDS
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from ml import contract
from ml.settings import Settings
from ml.warehouse import connect, create_tables

#: The best of so many alternating repeats is kept: what disturbs a measurement only ever makes it slower.
REPEATS = 2


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ingest(settings: Settings) -> dict[str, float]:
    """Landing folder to ``raw``, with importing Great Expectations, which happens beside reading."""
    from dagster_project.raw.landing import ingest

    spec = contract.load(settings.dataset)
    with connect(settings) as connection:
        create_tables(connection, spec)
        start = time.perf_counter()
        result = ingest(settings, spec, connection)
        wall = time.perf_counter() - start
    if refused := [f"{f.file}: {f.status}, {f.reason}" for f in result.files if f.status != "loaded"]:
        raise SystemExit(f"nothing worth measuring, files were not loaded: {'; '.join(refused)}")
    return {"wall_s": wall}


def read(settings: Settings) -> dict[str, float]:
    """All of ``training_dataset`` as Arrow batches, as training reads it."""
    with connect(settings, read_only=True) as connection:
        reader = connection.execute("select * from training.training_dataset").to_arrow_reader(65_536)
        rows, start = 0, time.perf_counter()
        for batch in reader:
            rows += batch.num_rows
        return {"wall_s": time.perf_counter() - start, "rows": rows}


def train(settings: Settings, rounds: int) -> dict[str, float]:
    """From the warehouse to a fitted version, against the same XGBoost call on a matrix that is ready in memory."""
    import xgboost as xgb

    from ml import dataset
    from ml.train import fit

    spec = contract.load(settings.dataset)
    params = _params(settings, rounds)
    window = dataset.training_window(spec)
    with connect(settings, read_only=True) as connection:
        data = dataset.read(connection, dataset.select(connection, spec, window))

        def product() -> None:
            loaded = dataset.read(connection, dataset.select(connection, spec, window))
            fit(loaded, params, refit=False, threads=settings.threads)

        def bare() -> None:
            matrix = xgb.QuantileDMatrix(
                data.x[data.train], data.target[data.train], max_bin=params.max_bin, nthread=settings.threads
            )
            evaluation = xgb.QuantileDMatrix(
                *(data.x[data.evaluation], data.target[data.evaluation]),
                max_bin=params.max_bin,
                nthread=settings.threads,
                ref=matrix,
            )
            xgb.train(
                params.booster(settings.threads),
                matrix,
                params.rounds,
                evals=[(matrix, "train"), (evaluation, "eval")],
                early_stopping_rounds=params.early_stopping_rounds,
                verbose_eval=False,
            )

        timed = _alternate(product, bare)
    return {**timed, "rows": data.selection.n_train, "rounds": rounds}


def score(settings: Settings, rounds: int) -> dict[str, float]:
    """All months after training, from the warehouse to stored predictions, against a bare ``inplace_predict``."""
    from ml.bundle import feature_matrix
    from ml.registry import load_bundle, train_and_register
    from ml.score import scorable_months, score_months

    spec = contract.load(settings.dataset)
    with connect(settings) as connection:
        version = train_and_register(connection, settings, spec, params=_params(settings, rounds)).version
        bundle = load_bundle(settings, version)
        months = scorable_months(connection, version)
        names = ", ".join(f'"{name}"' for name in bundle.features_used)
        rows = connection.execute(
            f"select {names} from features.features where month > ?", [version.trained_through]
        ).to_arrow_table()
        x = feature_matrix(rows.combine_chunks().to_batches()[0], bundle.features_used)
        timed = _alternate(
            lambda: score_months(connection, settings, spec, version, months, run_id="benchmark"),
            lambda: bundle.booster.inplace_predict(x),
        )
    return {**timed, "rows": len(x), "months": len(months), "rounds": version.best_iteration + 1}


def _alternate(product: Callable[[], Any], bare: Callable[[], Any]) -> dict[str, float]:
    pairs = [(seconds(product), seconds(bare)) for _ in range(REPEATS)]
    return {"product_s": min(p for p, _ in pairs), "bare_s": min(b for _, b in pairs)}


def _params(settings: Settings, rounds: int) -> Any:
    """The product's parameters with a fixed number of rounds: both sides then do the same work."""
    from ml.params import load

    return load(settings.dataset).model_copy(update={"rounds": rounds, "early_stopping_rounds": rounds - 1})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["ingest", "read", "train", "score"])
    parser.add_argument("rounds", type=int, nargs="?", default=200)
    arguments = parser.parse_args()
    settings = Settings()
    result = {
        "ingest": lambda: ingest(settings),
        "read": lambda: read(settings),
        "train": lambda: train(settings, arguments.rounds),
        "score": lambda: score(settings, arguments.rounds),
    }[arguments.step]()
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
