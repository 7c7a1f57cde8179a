"""What the loop does on 24 synthetic months: without drift (at most one training), and after a break in month 12.

    python -m benchmarks.replay                        # none, fall and kinds one after the other, about 15 minutes
    python -m benchmarks.replay --months 17 --only fall

The rows are those of tests/factories.py: flats of four towns with 5 % noise, and a middle storey that is a fifth
dearer, which no straight line follows. Two breaks start in month 12: `fall`, all prices are a fifth lower at once; and
`kinds`, new building: three of ten sales are flats of two models that were never sold before, in new streets, the one
far dearer than its town tells, the other as much cheaper.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from dagster_project import pipeline
from ml.settings import Settings
from ml.warehouse import connect
from tests import factories

FIRST = "2022-01"
BREAK = "2022-12"
CASES = ("none", "fall", "kinds")
FALL = 0.8
SHARES = {"DBSS": (0.15, 1.3), "Premium Apartment": (0.15, 1 / 1.3)}


def rows(months: int, per_month: int, case: str) -> pa.Table:
    """Four years before the replay and ``months`` of it."""
    table = factories.hdb_rows("2018-01", months=48 + months, per_month=per_month)
    price = np.array(table["resale_price"].to_pylist(), dtype=float)
    price[np.array(table["storey_range"].to_pylist()) == "07 TO 09"] *= 1.2
    drawn = np.random.default_rng(12).random(table.num_rows)
    after = np.array(table["month"].to_pylist()) >= BREAK
    if case == "fall":
        price[after] *= FALL
    models = np.array(table["flat_model"].to_pylist(), dtype=object)
    streets = np.array(table["street_name"].to_pylist(), dtype=object)
    towns = np.array(table["town"].to_pylist())
    upper = 0.0
    for model, (share, factor) in SHARES.items() if case == "kinds" else ():
        chosen = after & (drawn >= upper) & (drawn < upper + share)
        models[chosen], price[chosen], upper = model, price[chosen] * factor, upper + share
        streets[chosen] = np.char.add(towns[chosen], f" {model.upper()} WALK")
    changed = {"flat_model": models, "street_name": streets, "resale_price": np.round(price).astype(int)}
    for name, values in changed.items():
        column = pa.array(values.astype(str).tolist())
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--months", type=int, default=24)
    parser.add_argument("--per-month", type=int, default=600)
    parser.add_argument("--only", choices=CASES)
    arguments = parser.parse_args()
    last = f"{2022 + (arguments.months - 1) // 12}-{(arguments.months - 1) % 12 + 1:02d}"
    for case in CASES:
        if arguments.only in {None, case}:
            with tempfile.TemporaryDirectory(prefix="housing-") as folder:
                settings = Settings(home=Path(folder) / "home", dataset="hdb")
                table = rows(arguments.months, arguments.per_month, case)
                factories.write_csv(table, settings.landing / "flats.csv")
                pipeline.run(settings, source=None, force=False, show=_silent)
                text = pipeline.replay(
                    settings, first=FIRST, last=last, policy="on-decision", profile="default", show=_silent
                )
                sys.stdout.write(f"\nbreak: {case}\n{text}\n{_months(settings)}\n")


def _months(settings: Settings) -> str:
    with connect(settings, read_only=True) as connection:
        found = connection.execute(
            "select strftime(month, '%Y-%m'), model_version, n, round(mdape_pct, 2), decision, "
            "array_to_string(reasons, ' '), trained_version, promoted_version from monitoring.replay_months "
            "order by month"
        ).fetchall()
    return "\n".join(" ".join(str(value or "-").ljust(8) for value in row) for row in found)


def _silent(task: str, done: int, total: int) -> None:
    """Nobody watches."""


if __name__ == "__main__":
    main()
