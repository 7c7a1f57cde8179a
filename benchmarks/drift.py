"""Cost of one month's drift: SQL of its models for 50,000 new rows against a profile of 500,000, by dbt's own timings.

    python -m benchmarks.drift [--reference 500000] [--current 50000]

The rows are random, in the shape of housets (48 features, two thirds of them without two equal values, which is the
dearest case); dbt's start is not counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.run import dbt
from ml.contract import load
from ml.settings import Settings
from ml.warehouse import OWNED_TABLES, connect

MODELS = ("monitoring_thresholds", "training_profile", "prediction_profile", "+drift_by_month,monitoring")
ONCE = ("training_profile", "prediction_profile")  # built when a version is new

TABLES = """
create schema features;
create table raw.observations (_row bigint);
create table features.features (
    observation_id varchar, month date, split varchar, price double, is_price_valid boolean, target_offset double,
    built_through_batch bigint, {features}
);
insert into training.model_versions (model_version, trained_through) values ('v1', '2021-12-01');
"""

ROWS = """
create or replace temp table made as
select '{batch}-{split}-' || i as observation_id, {month} as month, '{split}' as split, exp(13 + random()) as price,
    true as is_price_valid, 13.5 as target_offset, {batch} as built_through_batch, {features}
from range({rows}) as t (i);
insert into features.features by name select * from made;
insert into predictions.predictions by name
select observation_id, 'v1' as model_version, 'model' as kind, split, month, price * 1.01 as predicted_price,
    now() as scored_at, 'r' as run_id
from made where split <> 'train';
"""


def add(settings: Settings, rows: int, split: str, month: str, batch: int) -> None:
    """Random rows; ``month`` is SQL over the row number i."""
    values = ["sqrt(-2 * ln(1 - random())) * cos(6.2832 * random())", "ln(1 - random())", "floor(40 * random())"]
    names = load(settings.dataset).features
    features = ", ".join(f"{values[k % 3]} as {name}" for k, name in enumerate(names))
    with connect(settings) as connection:
        connection.execute(ROWS.format(rows=rows, split=split, month=month, batch=batch, features=features))


def timed(settings: Settings) -> dict[str, float]:
    """Seconds by model of one dbt run."""
    dbt(settings, "run", "--write-json", "--select", *MODELS)
    results = json.loads((settings.dbt_target / "run_results.json").read_text(encoding="utf-8"))["results"]
    return {r["unique_id"].split(".")[-1]: r["execution_time"] for r in results if r["unique_id"].startswith("model.")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=int, default=500_000)
    parser.add_argument("--current", type=int, default=50_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="housing-benchmark-") as folder:
        settings = Settings(home=Path(folder), dataset="housets")
        settings.warehouse.parent.mkdir()
        with connect(settings) as connection:
            names = load(settings.dataset).features
            connection.execute(OWNED_TABLES + TABLES.format(features=", ".join(f"{n} double" for n in names)))
        past = "cast(date '2021-12-01' - to_months(cast(i % {} as integer)) as date)"
        add(settings, arguments.reference * 9 // 10, "train", past.format(60), 1)
        add(settings, arguments.reference // 10, "eval", past.format(6), 1)
        dbt(settings, "seed", "--select", "monitoring_thresholds")
        first = timed(settings)
        out = [f"{arguments.reference:,} rows learned from, {arguments.current:,} rows a month, {len(names)} features"]
        once = sum(first[name] for name in ONCE)
        out.append(f"once a version: profiles {once:.1f} s, usual months {sum(first.values()) - once:.1f} s")
        for k in (1, 2, 3):
            add(settings, arguments.current, "holdout", f"date '2022-0{k}-01'", 1 + k)
            month = timed(settings)
            parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in month.items())
            out.append(f"month {k}: {sum(month.values()):.2f} s ({parts})")
    sys.stdout.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
