"""What the product costs against a stated opponent, measured in one run and printed as a markdown table.

    python -m benchmarks.run [pipeline] [train] [score] [month] [--rows N] [--scratch FOLDER]

State goes into a scratch folder. The pandas opponent is ``benchmarks/pandas_pipeline.py``, the steps that need a
process of their own are ``benchmarks/steps.py``; results and what they mean stand in ``docs/benchmarks.md``.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NamedTuple

import psutil
import typer

from ml.settings import PROJECT_ROOT, Settings
from ml.synthetic import generate

ROWS = 884_092  # HouseTS as published
SMALL_ROWS = 30_000
SEED = 1
BIN = Path(sys.executable).parent
LAST_MONTHS = ("2023-11", "2023-12")
#: Steps of a month behind "ingest, features, scored, monitored", which the targets of a month name.
BEHIND = ("explanations", "monitoring__promotion", "monitoring_checks", "published__snapshot", "published__report")


class BenchmarkError(RuntimeError):
    """A measured command failed; the message ends with what it wrote."""


class Row(NamedTuple):
    """One line of the result; ``ratio`` is product / opponent unless ``what`` says otherwise."""

    what: str
    product: str
    opponent: str
    ratio: float | None
    target: str


@dataclass(frozen=True)
class Measured:
    """Wall and CPU time, peak resident memory of the whole process tree, and what was written to stdout."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    stdout: str

    @property
    def result(self) -> dict[str, float]:
        return json.loads(self.stdout.splitlines()[-1])


def measure(command: list[str], settings: Settings | None = None) -> Measured:
    """Run a command to its end. Raises BenchmarkError when it fails."""
    environment = {**os.environ, **(settings.environment if settings else {})}
    before, start = _children_cpu(), time.perf_counter()
    with subprocess.Popen(
        command, env=environment, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        peak = _Peak(process.pid)
        peak.start()
        stdout, _ = process.communicate()
        wall = time.perf_counter() - start
        peak.stop()
    if process.returncode:
        raise BenchmarkError(f"{' '.join(command)} ended with status {process.returncode}: {stdout[-3000:]}")
    return Measured(wall, _children_cpu() - before, peak.mib, stdout)


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class _Peak(threading.Thread):
    """Largest sum of resident memory of a process and its descendants, looked at every 50 ms."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root, self._done, self.mib = psutil.Process(pid), threading.Event(), 0.0

    def run(self) -> None:
        while not self._done.wait(0.05):
            total = 0
            try:
                family = [self._root, *self._root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for process in family:
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue  # ended between the two calls
            self.mib = max(self.mib, total / 2**20)

    def stop(self) -> None:
        self._done.set()
        self.join()


def step(name: str, settings: Settings, *arguments: str) -> Measured:
    return measure([sys.executable, "-m", "benchmarks.steps", name, *arguments], settings)


def dbt(settings: Settings, *arguments: str) -> Measured:
    return measure([str(BIN / "dbt"), *arguments, "--project-dir", str(PROJECT_ROOT / "warehouse")], settings)


def synthetic(scratch: Path, rows: int) -> Path:
    """The synthetic file of so many rows, made once per scratch folder."""
    path = scratch / f"HouseTS_{rows}.csv"
    if not path.exists():
        generate(path, rows, SEED)
    return path


def clean_home(scratch: Path, name: str) -> Settings:
    home = scratch / name
    shutil.rmtree(home, ignore_errors=True)
    settings = Settings(home=home, dataset="housets")
    for folder in (settings.landing, settings.warehouse.parent):
        folder.mkdir(parents=True)
    return settings


def pipeline(scratch: Path, rows: int) -> list[Row]:
    """(a) Raw file to training_dataset, beyond dbt's fixed start-up, against pandas from file to encoded CSV."""
    source, settings = synthetic(scratch, rows), clean_home(scratch, "product")
    shutil.copy(source, settings.landing / source.name)
    ingest = step("ingest", settings)
    dbt(settings, "parse")
    start = dbt(settings, "build", "--write-json", "--select", "no_such_model")
    wanted = ("--select", "+training_dataset", "--exclude-resource-type", "unit_test")
    build = dbt(settings, "build", "--write-json", *wanted)
    read = step("read", settings)
    nodes = json.loads((settings.dbt_target / "run_results.json").read_text(encoding="utf-8"))["results"]
    tests = sum(n["execution_time"] for n in nodes if n["unique_id"].startswith("test."))
    loading, building = ingest.result["wall_s"], build.wall_s - start.wall_s
    peak = max(ingest.peak_mib, build.peak_mib)
    cpu = ingest.cpu_s + build.cpu_s - start.cpu_s

    folder = scratch / "pandas"
    pandas = measure([sys.executable, "-m", "benchmarks.pandas_pipeline", str(source), str(folder)])
    shutil.rmtree(folder)
    theirs = pandas.result["wall_s"]
    parts = f"ingest {loading:.1f}, dbt {building:.1f} of which data tests {tests:.1f}"
    return [
        Row(
            f"{rows:,} rows, file to training_dataset ({parts})",
            *(_s(loading + building), _s(theirs), (loading + building) / theirs, "12 s"),
        ),
        Row(
            "the same, CPU time of all processes with their imports", _s(cpu), _s(pandas.cpu_s), cpu / pandas.cpu_s, ""
        ),
        Row("the same, peak memory", _mib(peak), _mib(pandas.peak_mib), peak / pandas.peak_mib, "2,048 MiB"),
        Row("fixed start-up of dbt, not in the above", _s(start.wall_s), "", None, ""),
        Row("reading training_dataset as Arrow, not in the above", _s(read.result["wall_s"]), "", None, ""),
    ]


def train(scratch: Path, rounds: int) -> list[Row]:
    """(b) Warehouse to fitted version against the same XGBoost call on a ready matrix. Needs ``pipeline`` before."""
    measured = step("train", _built(scratch), str(rounds))
    result = measured.result
    ours, theirs = result["product_s"], result["bare_s"]
    what = f"training, {result['rows']:,.0f} rows, {result['rounds']:.0f} rounds"
    return [Row(what, _s(ours), _s(theirs), ours / theirs, "ratio 1.15")]


def score(scratch: Path, rounds: int) -> list[Row]:
    """(c) Rows a second from warehouse to stored predictions against a bare predict. Needs ``pipeline`` before."""
    result = step("score", _built(scratch), str(rounds)).result
    ours, theirs = result["rows"] / result["product_s"], result["rows"] / result["bare_s"]
    what = f"scoring, {result['rows']:,.0f} rows in {result['months']:.0f} months, {result['rounds']:.0f} rounds"
    return [Row(what, f"{ours:,.0f} rows/s", f"{theirs:,.0f} rows/s", ours / theirs, "ratio 0.5 or more")]


def month(scratch: Path, rows: int) -> list[Row]:
    """(d) One more month through everything, on the long history and on a short one: the difference grows with data.

    Twice: the first month after the whole history also finds what loading it at once left to put in order. Once as
    people wait for it, and once through monitoring, which is what the targets name.
    """
    months = {size: _more_months(scratch, size) for size in (SMALL_ROWS, rows)}
    out = []
    for what, (long, behind), (short, behind_short) in zip(
        ("the first", "the second"), months[rows], months[SMALL_ROWS], strict=True
    ):
        whole, monitored = long.wall_s - short.wall_s, long.wall_s - behind - (short.wall_s - behind_short)
        out += [
            Row(f"one more month on {rows:,} rows, file to snapshot and report, {what}", _s(long.wall_s), "", None, ""),
            Row("the same, peak memory", _mib(long.peak_mib), "", None, ""),
            Row(f"of it, beyond the same on {SMALL_ROWS:,} rows", _s(whole), "", None, ""),
            Row("file to monitored", _s(long.wall_s - behind), "", None, "25 s"),
            Row(f"of it, beyond the same on {SMALL_ROWS:,} rows", _s(monitored), "", None, "5 s"),
        ]
    return out


def _more_months(scratch: Path, rows: int) -> list[tuple[Measured, float]]:
    """All months but the last ones are run before; only those are measured, one after the other, with ``_behind``."""
    import duckdb

    source, settings = synthetic(scratch, rows), clean_home(scratch, f"month_{rows}")
    last = {month: scratch / f"{month}_{rows}.csv" for month in LAST_MONTHS}
    ends = " or ".join(f"starts_with(date, '{month}')" for month in LAST_MONTHS)
    for target, wanted in [
        (settings.landing / "history.csv", f"not ({ends})"),
        *((path, f"starts_with(date, '{month}')") for month, path in last.items()),
    ]:
        duckdb.sql(f"copy (from read_csv('{source}', all_varchar = true) where {wanted}) to '{target}' (header true)")
    measure([str(BIN / "housing"), "run"], settings)
    out = []
    for path in last.values():
        since = datetime.now(UTC)
        measured = measure([str(BIN / "housing"), "run", "--from", str(path)], settings)
        out.append((measured, _behind(settings, since)))
    return out


def _behind(settings: Settings, since: datetime) -> float:
    """Seconds that the steps BEHIND took in the runs since then."""
    import dagster as dg

    os.environ.update(settings.environment)
    with dg.DagsterInstance.from_config(str(settings.home / "dagster")) as instance:
        runs = instance.get_run_records(dg.RunsFilter(created_after=since))
        steps = [step for run in runs for step in instance.get_run_step_stats(run.dagster_run.run_id)]
    return sum(s.end_time - s.start_time for s in steps if s.step_key in BEHIND and s.start_time and s.end_time)


def _built(scratch: Path) -> Settings:
    settings = Settings(home=scratch / "product", dataset="housets")
    if not settings.warehouse.exists():
        raise BenchmarkError(f"{settings.warehouse} is missing; measure pipeline first, with the same --scratch")
    return settings


def _s(seconds: float) -> str:
    return f"{seconds:.1f} s"


def _mib(mib: float) -> str:
    return f"{mib:,.0f} MiB"


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help="pipeline, train, score, month; all when none is named")
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows of the synthetic file.")] = ROWS,
    rounds: Annotated[int, typer.Option(help="Boosting rounds of train and score.")] = 200,
    scratch: Annotated[
        Path | None, typer.Option(help="Folder to work in, which is kept; a temporary one when not given.")
    ] = None,
) -> None:
    """Measure and print a markdown table."""
    known = {
        "pipeline": lambda folder: pipeline(folder, rows),
        "train": lambda folder: train(folder, rounds),
        "score": lambda folder: score(folder, rounds),
        "month": lambda folder: month(folder, rows),
    }
    if unknown := set(names or []) - set(known):
        raise typer.BadParameter(f"no benchmark named {', '.join(sorted(unknown))}; known are: {', '.join(known)}")
    with tempfile.TemporaryDirectory(prefix="housing-benchmark-") as temporary:
        folder = (scratch or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        load = os.getloadavg()[0]
        typer.echo(f"{os.cpu_count()} cores, load {load:.1f} before; opponent and product one after the other\n")
        typer.echo("| what | product | opponent | ratio | target |\n|---|---|---|---|---|")
        for name in names or known:
            for row in known[name](folder):
                ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
                typer.echo(f"| {row.what} | {row.product} | {row.opponent} | {ratio} | {row.target} |")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    try:
        app()
    except BenchmarkError as error:
        typer.echo(f"benchmarks: {error}", err=True)
        raise SystemExit(1) from None
