"""What the loop does on 24 synthetic months: without drift (at most one training), and after a break in month 12.

    python -m benchmarks.replay            # both, about ten minutes
    python -m benchmarks.replay --months 24 --only break

The rows are those of tests/factories.py: flats of four towns with 5 % noise, and a middle storey that is a fifth
dearer, which no straight line follows. The break is a new building programme: from month 12 on, four of ten sales are
flats of a kind that no version has seen, in new streets, a quarter dearer.
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
NEW_SHARE, PREMIUM = 0.4, 1.25


def rows(months: int, per_month: int, *, with_break: bool) -> pa.Table:
    """Four years before the replay and ``months`` of it."""
    table = factories.hdb_rows("2018-01", months=48 + months, per_month=per_month)
    price = np.array(table["resale_price"].to_pylist(), dtype=float)
    price[np.array(table["storey_range"].to_pylist()) == "07 TO 09"] *= 1.2
    prices = pa.array(np.round(price).astype(int).astype(str))
    table = table.set_column(table.column_names.index("resale_price"), "resale_price", prices)
    if not with_break:
        return table
    rng = np.random.default_rng(12)
    month = np.array(table["month"].to_pylist())
    is_new = (month >= BREAK) & (rng.random(table.num_rows) < NEW_SHARE)

    def changed(name: str, new: np.ndarray) -> None:
        nonlocal table
        old = np.array(table[name].to_pylist(), dtype=object)
        column = pa.array(np.where(is_new, new, old).tolist(), pa.string())
        table = table.set_column(table.column_names.index(name), name, column)

    town = np.array(table["town"].to_pylist())
    block = rng.integers(1, 6, table.num_rows).astype(str)
    changed("street_name", np.char.add(town, " NEW WALK"))
    changed("block", np.char.add("N", block))
    changed("flat_model", np.full(table.num_rows, "DBSS"))
    changed("resale_price", np.round(price * PREMIUM).astype(int).astype(str))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--months", type=int, default=24)
    parser.add_argument("--per-month", type=int, default=300)
    parser.add_argument("--only", choices=["none", "break"])
    arguments = parser.parse_args()
    last = f"{2022 + (arguments.months - 1) // 12}-{(arguments.months - 1) % 12 + 1:02d}"
    for case in ("none", "break"):
        if arguments.only in {None, case}:
            with tempfile.TemporaryDirectory(prefix="housing-") as folder:
                settings = Settings(home=Path(folder) / "home", dataset="hdb")
                table = rows(arguments.months, arguments.per_month, with_break=case == "break")
                factories.write_csv(table, settings.landing / "flats.csv")
                pipeline.run(settings, source=None, force=False, show=_silent)
                text = pipeline.replay(
                    settings, first=FIRST, last=last, policy="on-decision", profile="default", show=_silent
                )
                sys.stdout.write(f"\ndrift: {case}\n{text}\n{_months(settings)}\n")


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
