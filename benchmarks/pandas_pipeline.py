"""The opponent: the usual pandas pipeline from a HouseTS file to encoded training data, with CSV between its steps.

Written as a good practitioner would: C parser, vectorised steps, statistics from the training rows only. It does less
than the product (no reasons, no point-in-time encodings). Measuring and comparing belong in ``benchmarks/run.py``.

    python -m benchmarks.pandas_pipeline HouseTS.csv OUT_FOLDER
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import pandas as pd

SPLITS = ("train", "eval", "holdout")
CENSUS = [
    *("Total Population", "Median Age", "Per Capita Income", "Total Families Below Poverty", "Total Housing Units"),
    *("Median Rent", "Median Home Value", "Total Labor Force", "Total School Enrollment", "Median Commute Time"),
]
LEAKS = ["median_sale_price", "median_ppsf"]
SMOOTHING = 5.0


def split(source: Path, out: Path) -> None:
    """Read the raw file and cut it by time: before 2020, 2020 and 2021, from 2022."""
    frame = pd.read_csv(source, parse_dates=["date"]).sort_values("date")
    parts = {
        "train": frame[frame["date"] < "2020-01-01"],
        "eval": frame[(frame["date"] >= "2020-01-01") & (frame["date"] < "2022-01-01")],
        "holdout": frame[frame["date"] >= "2022-01-01"],
    }
    for name, part in parts.items():
        part.to_csv(out / f"{name}.csv", index=False)


def clean(out: Path, seeds: Path) -> None:
    """Names trimmed and matched to coordinates, duplicates and impossible prices dropped, zeros made missing."""
    places = pd.read_csv(seeds / "us_metros.csv")
    places["metro"] = places["official_name"].str.split(",").str[0].str.strip().str.upper()
    renames = pd.read_csv(seeds / "metro_renames.csv")
    renamed = dict(zip(renames["published_name"].str.upper(), renames["metro_name"].str.upper(), strict=True))
    for name in SPLITS:
        frame = pd.read_csv(out / f"{name}.csv", parse_dates=["date"])
        frame["metro"] = frame["city_full"].str.strip().str.upper().replace(renamed)
        frame = frame.merge(places[["metro", "latitude", "longitude"]], on="metro", how="left")
        frame = frame.drop_duplicates(subset=["zipcode", "date"], keep="last")
        frame = frame.query("10_000 <= price <= 20_000_000")
        frame = frame.replace(dict.fromkeys(CENSUS, 0), float("nan"))
        sane = frame["median_list_price"].between(5_000, 30_000_000)
        frame["median_list_price"] = frame["median_list_price"].where(sane)
        frame.to_csv(out / f"{name}_clean.csv", index=False)


def encode(out: Path) -> None:
    """Calendar columns, frequency and smoothed target encodings of the training rows; leaks and texts dropped."""
    frames = {name: pd.read_csv(out / f"{name}_clean.csv", parse_dates=["date"]) for name in SPLITS}
    train = frames["train"]
    overall = train["price"].mean()
    frequency = pd.Series(train["zipcode"]).value_counts(normalize=True)
    means = {}
    for key in ("zipcode", "metro"):
        prices = train.groupby(key)["price"]
        means[key] = (prices.sum() + SMOOTHING * overall) / (prices.count() + SMOOTHING)
    for name, frame in frames.items():
        frame["month"] = frame["date"].dt.month
        frame["zipcode_frequency"] = pd.Series(frame["zipcode"]).map(frequency).fillna(0)
        for key, mean in means.items():
            frame[f"{key}_target"] = pd.Series(frame[key]).map(mean).fillna(overall)
        dropped = [*LEAKS, "date", "city", "city_full", "metro", "zipcode"]
        frame.drop(columns=dropped).to_csv(out / f"{name}_encoded.csv", index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="HouseTS-shaped CSV")
    parser.add_argument("out", type=Path, help="folder for the CSV files between the steps")
    parser.add_argument("--seeds", type=Path, default=Path(__file__).parents[1] / "warehouse" / "seeds")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    seconds = {}
    for step, work in (
        ("split", lambda: split(arguments.source, arguments.out)),
        ("clean", lambda: clean(arguments.out, arguments.seeds)),
        ("encode", lambda: encode(arguments.out)),
    ):
        start = time.perf_counter()
        work()
        seconds[step] = round(time.perf_counter() - start, 2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = {"wall_s": round(sum(seconds.values()), 2), "peak_mib": round(peak), "steps_s": seconds}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
