"""First paint and filter change of the dashboard on 884,092 predictions, as a browser sees them.

    python -m benchmarks.dashboard HOME [--dataset hdb] [--repeats 5] [--keep FOLDER]

The snapshot of a built HOME is copied and its predictions, prices, ranges and features are repeated by SQL until the
champion has 884,092 scored rows; Chromium then visits the real server. Painted: the first figures of the page stand.
Settled: no script runs and every chart is drawn. Prints a markdown table; results stand in ``docs/benchmarks.md``.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import duckdb
import typer
from playwright.sync_api import Browser

from ml.contract import load
from ml.settings import Settings
from tests.browser.driver import Dashboard, Visit, chromium, serve

ROWS = 884_092  # HouseTS as published
#: Tables that pages read row by row or count; the others hold figures, or are asked for single homes.
REPEATED = [
    "predictions.predictions",
    "predictions.predictions_matched",
    "predictions.prediction_intervals",
    "training.training_dataset",
]


def enlarge(settings: Settings) -> int:
    """Repeat the rows of the standing snapshot under new keys; returns the champion's scored rows."""
    with duckdb.connect(str(settings.published)) as connection:
        version, rows = connection.execute(
            """
            select model_version, count(*) from predictions.predictions
            where split <> 'eval' and model_version in (
                select model_version from training.model_versions where status = 'champion'
            )
            group by model_version
            """
        ).fetchall()[0]
        copies = -(-ROWS // rows)
        for table in REPEATED:
            # month by month, as scoring writes them
            connection.execute(
                f"""
                create table repeated as
                select * replace (if(copy = 0, observation_id, observation_id || '-' || copy) as observation_id)
                from {table}, range({copies}) as copies (copy)
                -- the last copy is a part: the first so many keys
                where copy < {copies - 1} or hash(observation_id) / 18446744073709551615 < {ROWS / rows - copies + 1}
                order by month
                """
            )
            connection.execute(f"drop table {table}; create table {table} as select * exclude (copy) from repeated")
            connection.execute("drop table repeated")
        connection.execute("update published.about set fingerprint = 'repeated'")
        connection.execute("checkpoint")
        return connection.execute(
            "select count(*) from predictions.predictions where model_version = ? and split <> 'eval'", [version]
        ).fetchall()[0][0]


def measure(settings: Settings, log: Path, repeats: int) -> list[tuple[str, list[float], str]]:
    """Seconds of each thing measured, with its target."""
    out: list[tuple[str, list[float], str]] = []
    contract = load(settings.dataset)
    area = contract.area.replace("_", " ").capitalize()
    with duckdb.connect(str(settings.published), read_only=True) as connection:
        places = connection.execute(
            "select area from training.training_dataset group by area order by count(*) desc limit 2"
        ).fetchall()
    with chromium() as browser:
        with serve(settings, log) as running:
            painted, settled = _opened(browser, running, "")
            out.append(("overview, first visitor of a server just started: painted", [painted], "2 s"))
            out.append(("the same, settled", [settled], ""))
        with serve(settings, log) as running:
            painted, _ = _opened(browser, running, "predictions")
            out.append(("predictions, first visitor: painted", [painted], "2 s"))
            for path in ("", "predictions"):
                times = [_opened(browser, running, path) for _ in range(repeats)]
                name = path or "overview"
                out.append((f"{name}, a new visitor: painted", [t for t, _ in times], "2 s"))
                out.append((f"{name}, settled", [t for _, t in times], ""))
            visit = Visit(browser, running)
            visit.open("predictions")
            choices = [("Year", "2022"), ("Year", "2023"), ("Month", "March"), ("Month", "all months")]
            choices += [(area, places[0][0]), (area, places[1][0]), (area, "all"), ("Grade", "A"), ("Grade", "all")]
            choices += [("Year", "all years"), ("Order", "largest error"), ("Order", "newest")]
            first = {choice: visit.choose(*choice) for choice in choices}
            again = {choice: visit.choose(*choice) for choice in choices}
            out.append(("filter change, not asked before", list(first.values()), "500 ms"))
            out.append(("filter change, asked before", list(again.values()), "500 ms"))
            for choice, seconds in first.items():
                out.append((f"... {choice[0]}: {choice[1]}", [seconds], ""))
    return out


def _opened(browser: Browser, running: Dashboard, path: str) -> tuple[float, float]:
    visit = Visit(browser, running)
    started = time.perf_counter()
    painted = visit.open(path)
    settled = time.perf_counter() - started
    visit.close()
    return painted, settled


def main(
    home: Annotated[Path, typer.Argument(help="A built HOUSING_HOME.")],
    dataset: Annotated[str, typer.Option(help="Dataset.")] = "hdb",
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    keep: Annotated[
        Path | None, typer.Option(help="Folder of the enlarged snapshot; used again if it is there.")
    ] = None,
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        settings = Settings(home=keep or Path(temporary), dataset=dataset)
        if not settings.published.is_file():
            settings.published.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Settings(home=home, dataset=dataset).published, settings.published)
            enlarge(settings)
        typer.echo(f"load before: {os.getloadavg()[0]:.1f}")
        typer.echo("| what | median | worst | n | target |\n|---|---|---|---|---|")
        for what, seconds, target in measure(settings, Path(temporary) / "log.txt", repeats):
            median, worst = statistics.median(seconds), max(seconds)
            typer.echo(f"| {what} | {1000 * median:,.0f} ms | {1000 * worst:,.0f} ms | {len(seconds)} | {target} |")


if __name__ == "__main__":
    typer.run(main)
