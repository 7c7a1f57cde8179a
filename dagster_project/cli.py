"""The ``housing`` command: the same Dagster jobs as the UI, run in this process, and questions to the snapshot.

Nothing is computed here; every command starts a job or reads the published snapshot.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ml.settings import QUIET, Settings

os.environ.update({k: v for k, v in QUIET.items() if k not in os.environ})

#: For `serve`: a row takes 5.0 ms in the engine with it and 6.0 without (minima of four runs each, by turns).
#: Read by DuckDB when it is first imported.
ALLOCATOR = "tcache_nslots_large:20000,tcache_max:1048576,tcache_gc_incr_bytes:1000000000000"

#: Commands that run until they are interrupted.
SERVICES = frozenset({"dashboard", "serve", "ui"})
INTERRUPTED = "interrupted; the same command goes on where it stopped"
#: What to do about what Linux, DuckDB and SQLite say of the machine.
ADVICE = {
    ("No space left on device", "disk is full"): (
        "no space left on the disk of HOUSING_HOME; free some and type the same command again"
    ),
    ("Permission denied", "Read-only file system", "readonly database"): (
        "this user may not write there; change its permissions, or set HOUSING_HOME to a folder that may be written to"
    ),
    ("not a valid DuckDB database file", "Could not read enough bytes", "Corrupt database file"): (
        "a file of the warehouse was damaged; docs/runbook.md says under `a file was damaged` how it is restored"
    ),
}


class _Commands(TyperGroup):
    """Ends with one sentence when a command is interrupted, however the libraries below tell it."""

    def invoke(self, ctx: typer.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BaseException as error:
            if not _is_interrupt(error):
                raise
            if ctx.invoked_subcommand not in SERVICES:
                typer.echo(f"housing: {INTERRUPTED}", err=True)
            raise typer.Exit(130) from None


def _is_interrupt(error: BaseException) -> bool:
    # by name, because importing Dagster takes a second. A step that was struck tells no more than its error's name
    raised = ("KeyboardInterrupt", "DagsterExecutionInterruptedError", "InterruptException")
    return type(error).__name__ in raised or str(error).rstrip(": \n").endswith(
        (*raised, "Query interrupted", "INTERRUPT Error: Interrupted!")
    )


app = typer.Typer(
    name="housing",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="""House-price prediction that lives in the warehouse.

    Files land, dbt cleans and encodes them, XGBoost is trained and gated, months are scored, SQL says how good it is.
    All state stands below HOUSING_HOME (default ./data). Start with: housing run""",
)

Dataset = Annotated[
    str | None, typer.Option("--dataset", "-d", help="Contract to use (default: $HOUSING_DATASET or housets).")
]
Format = Annotated[str, typer.Option("--format", "-f", help="table, csv or json.")]


def _settings(dataset: str | None) -> Settings:
    """Settings with the dataset checked, so that a typing error is told before anything starts."""
    from ml.contract import load

    if dataset:
        load(dataset)
        return Settings(dataset=dataset)
    settings = Settings()
    load(settings.dataset)
    return settings


@app.command()
def run(
    dataset: Dataset = None,
    source: Annotated[Path | None, typer.Option("--from", help="File or folder to land first.")] = None,
    force: Annotated[
        bool, typer.Option(help="Run every job although nothing is new. To train again: train --force.")
    ] = False,
) -> None:
    """Land, validate, transform, train, gate, score the months after training, monitor and publish.

    Without landed files a synthetic HouseTS-shaped file is generated first. A second run with nothing new does
    next to nothing and changes no row.
    """
    from dagster_project import pipeline

    settings = _settings(dataset)
    with _progress() as show:
        pipeline.run(settings, source=source, force=force, show=show)
    _print_summary(settings)


@app.command()
def ingest(
    paths: Annotated[list[Path], typer.Argument(help="CSV or Parquet files, or folders.")], dataset: Dataset = None
) -> None:
    """Land files, load and validate them, rebuild what they touch, and publish."""
    from dagster_project import pipeline

    settings = _settings(dataset)
    with _progress() as show:
        pipeline.ingest(settings, paths, show=show)
    _print_summary(settings)


@app.command()
def actuals(
    paths: Annotated[list[Path], typer.Argument(help="CSV or Parquet files of later prices, or folders.")],
    dataset: Dataset = None,
) -> None:
    """Land prices that became known later: observation_id (or the key's columns) and price, maybe reported_at, source.

    Each changes the accuracy of its own month. Landing the same prices again changes nothing.
    """
    from dagster_project import pipeline, summary

    settings = _settings(dataset)
    with _progress() as show:
        pipeline.actuals(settings, paths, show=show)
    typer.echo(summary.actuals(settings))


@app.command()
def simulate(
    source: Annotated[Path, typer.Argument(help="File with rows that have no price, for example ames/test.csv.")],
    every: Annotated[float, typer.Option(min=0, help="Minutes between two batches.")] = 5.0,
    batches: Annotated[int, typer.Option(min=1, max=99, help="Files that the rows are split into.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the noise in the prices.")] = 1,
    dataset: Dataset = None,
) -> None:
    """Land unpriced rows batch by batch, score them, and answer with made-up prices: predictions plus 7 % noise.

    The prices are labelled simulated; no model learns from them or is judged by them.
    """
    from dagster_project import pipeline, summary

    settings = _settings(dataset)
    with _progress() as show:
        pipeline.simulate(settings, source, every_minutes=every, batches=batches, seed=seed, show=show)
    typer.echo(summary.actuals(settings))


@app.command()
def train(
    through: Annotated[str | None, typer.Option(help="Last month of the evaluation window, YYYY-MM.")] = None,
    force: Annotated[bool, typer.Option(help="Train again although the same data were trained before.")] = False,
    profile: Annotated[
        str, typer.Option(help="Parameter profile of ml/params.yml: fast, default or best.")
    ] = "default",
    dataset: Dataset = None,
) -> None:
    """Train a version through a month, gate it and register it; it becomes champion when it passes."""
    from dagster_project import pipeline

    settings = _settings(dataset)
    with _progress() as show:
        pipeline.train(settings, through=through, force=force, profile=profile, show=show)
    _print_summary(settings)


@app.command()
def retrain(dataset: Dataset = None) -> None:
    """Train if the newest row of monitoring.retrain_decisions says so, then let the challenger show what it can."""
    from dagster_project import pipeline

    settings = _settings(dataset)
    with _progress() as show:
        sentence = pipeline.retrain(settings, show=show)
    typer.echo(sentence)


@app.command()
def promote(
    version: Annotated[str | None, typer.Argument(help="Version such as v2 (default: the challenger).")] = None,
    dataset: Dataset = None,
) -> None:
    """Make the challenger, or a version by name, champion. The move is remembered with your name."""
    from dagster_project import pipeline

    settings = _settings(dataset)
    with _progress() as show:
        moves = pipeline.promote(settings, version, show=show)
    typer.echo("\n".join(moves))


@app.command()
def rollback(dataset: Dataset = None) -> None:
    """Give the champion's alias back to the version that had it before. Its predictions are as they were."""
    from dagster_project import pipeline

    settings = _settings(dataset)
    with _progress() as show:
        moves = pipeline.rollback(settings, show=show)
    typer.echo("\n".join(moves))


@app.command()
def replay(
    first: Annotated[str, typer.Option("--from", help="First month that is scored, YYYY-MM.")],
    last: Annotated[str, typer.Option("--to", help="Last month, YYYY-MM.")],
    policy: Annotated[str, typer.Option(help="never, on-decision, every-month or all.")] = "on-decision",
    profile: Annotated[str, typer.Option(help="Parameter profile of ml/params.yml.")] = "default",
    dataset: Dataset = None,
) -> None:
    """Walk past months as production would have: score, let prices land, judge, decide, retrain, promote.

    The starting model is trained through the month before --from. A walk that was cut off goes on. Results stand in
    monitoring.replay_months and in a picture.
    """
    from dagster_project import pipeline

    settings = _settings(dataset)
    with _progress() as show:
        text = pipeline.replay(settings, first=first, last=last, policy=policy, profile=profile, show=show)
    typer.echo(text)


@app.command()
def compare(dataset: Dataset = None) -> None:
    """Fit the candidates of ml/models.yml on the folds and show error, time and size. The holdout stays unseen."""
    from dagster_project import pipeline, summary

    settings = _settings(dataset)
    with _progress() as show:
        pipeline.compare(settings, show=show)
    typer.echo(summary.model_selection(settings))


@app.command()
def tune(
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, those of earlier searches counted in.")] = 30,
    minutes: Annotated[float, typer.Option(min=0.1, help="No trial starts after so many minutes.")] = 30.0,
    apply: Annotated[bool, typer.Option("--apply", help="Write the best so far to ml/params.yml; no search.")] = False,
    dataset: Dataset = None,
) -> None:
    """Search XGBoost's parameters on the folds (Optuna). Goes on where it was cut off; applies nothing by itself."""
    from dagster_project import pipeline
    from ml.tune import apply_best, describe_best

    settings = _settings(dataset)
    if apply:
        typer.echo(apply_best(settings))
        return
    with _progress() as show:
        pipeline.tune(settings, trials=trials, minutes=minutes, show=show)
    typer.echo(describe_best(settings))


@app.command()
def score(month: Annotated[str, typer.Option(help="Month to score, YYYY-MM.")], dataset: Dataset = None) -> None:
    """Score one month with the champion, again if need be, and refresh monitoring."""
    from dagster_project import pipeline

    settings = _settings(dataset)
    with _progress() as show:
        pipeline.score(settings, month=month, show=show)
    _print_summary(settings)


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help='One SELECT, for example "SELECT * FROM monitoring.accuracy".')],
    format: Format = "table",
    dataset: Dataset = None,
) -> None:
    """Ask the published snapshot. Read-only, sandboxed, limited in time and memory."""
    from dagster_project.published.query import format_result, run_query, truncation

    result = run_query(_settings(dataset), query)
    typer.echo(format_result(result, format))
    if cut := truncation(result):
        typer.echo(f"housing: {cut}", err=True)


@app.command()
def report(
    month: Annotated[str, typer.Option(help="Scored month, YYYY-MM.")],
    out: Annotated[Path | None, typer.Option(help="File to write (default: below HOUSING_HOME/reports).")] = None,
    dataset: Dataset = None,
) -> None:
    """Write one self-contained HTML page on a month: accuracy, equity, ranges, reasons, misses, data, model card."""
    from ml.contract import load, month_date
    from ml.report import write_report

    settings = _settings(dataset)
    path = write_report(settings, load(settings.dataset), month=month_date(month), out=out)
    typer.echo(f"the report stands in {path}")


@app.command()
def status(
    format: Annotated[str, typer.Option("--format", "-f", help="table or json.")] = "table", dataset: Dataset = None
) -> None:
    """What landed, which model is champion, how good it is, and when the snapshot was published."""
    from dagster_project import summary

    known = {"table": summary.as_text, "json": summary.as_json}
    if format not in known:
        raise ValueError(f"unknown format {format!r}; known are: {', '.join(known)}")
    typer.echo(known[format](_settings(dataset)))


@app.command()
def generate(
    out: Annotated[Path, typer.Argument(help="CSV file to write.")],
    rows: Annotated[int, typer.Option(min=1000, help="Rows.")] = 60_000,
    seed: Annotated[int, typer.Option(help="Same seed, same file.")] = 1,
) -> None:
    """Write a seeded synthetic file of the shape, and with the dirt, of HouseTS."""
    from ml.synthetic import generate as write

    with _progress() as show:
        write(out, rows, seed, progress=lambda done, total: show("generate rows", done, total))


def _require_free(port: int) -> None:
    """Dagster would go on without its web server, with a second daemon beside the one that holds the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise OSError(
                f"port {port} of 127.0.0.1 is taken, maybe by another `housing ui`, or by what a killed one left "
                "behind (`ps -ef | grep dagster` shows it); end that, or choose another port with --port"
            ) from None


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 3000, dataset: Dataset = None
) -> None:
    """Dagster's web interface and daemon on 127.0.0.1, with schedule and sensor switched on."""
    from dagster_project.resources import prepare_environment

    settings = _settings(dataset)
    _require_free(port)
    prepare_environment(settings)
    # a shell that starts it in the background has it ignore interrupts, and Dagster would then ignore its end, too
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    dagster = str(Path(sys.executable).parent / "dagster")
    command = [dagster, "dev", "-m", "dagster_project.definitions", "-h", "127.0.0.1", "-p", str(port)]
    os.execv(dagster, command)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address; beyond this machine only with keys.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port (default: $HOUSING_API_PORT or 8000).")
    ] = None,
    new_key: Annotated[
        str | None, typer.Option(help="Print a new API key of this name and its line; no service.")
    ] = None,
    scopes: Annotated[str, typer.Option(help="Scopes of the new key.")] = "predict,feedback",
    dataset: Dataset = None,
) -> None:
    """Answer prices over HTTP on 127.0.0.1:8000 from the published snapshot; see /docs there and docs/api.md."""
    if new_key:
        from ml.serving.security import new_key as make

        key, line = make(new_key, scopes)
        typer.echo(f"key (shown once): {key}\nline for HOUSING_API_KEYS or HOUSING_API_KEYS_FILE: {line}")
        return
    # DuckDB allocates thousands of small vectors a request; its allocator keeps only a few of them unless told to
    os.environ.setdefault("DUCKDB_JE_MALLOC_CONF", ALLOCATOR)
    from ml.serving.server import serve as run_service
    from ml.serving.settings import ApiSettings

    given = {name: value for name, value in {"host": host, "port": port}.items() if value is not None}
    run_service(_settings(dataset), ApiSettings(**given))  # type: ignore[arg-type]


@app.command()
def dashboard(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 8501, dataset: Dataset = None
) -> None:
    """The dashboard on 127.0.0.1:8501: health, predictions, map, monitoring, what if, data and model versions."""
    from ml.dashboard.launch import launch

    launch(_settings(dataset), port=port)


def _print_summary(settings: Settings) -> None:
    from dagster_project import summary

    typer.echo(summary.as_text(settings))


class _progress:
    """Progress bars on a terminal, one line a task elsewhere. Yields ``show(task, done, total)``."""

    def __enter__(self) -> Callable[[str, int, int], None]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._console = Console(stderr=True)
        self._tasks: dict[str, Any] = {}
        self._bars = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._bars.start()
        self._started = time.monotonic()
        return self._show

    def _show(self, task: str, done: int, total: int) -> None:
        if task not in self._tasks:
            self._finish_earlier()
            self._tasks[task] = self._bars.add_task(task, total=total or None)
            if not self._console.is_terminal:
                self._console.print(f"[{time.monotonic() - self._started:6.1f} s] {task}", highlight=False)
        self._bars.update(self._tasks[task], completed=done, total=total or None)

    def _finish_earlier(self) -> None:
        for identifier in self._tasks.values():
            self._bars.update(identifier, total=1, completed=1)

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._finish_earlier()
        self._bars.stop()


def main() -> None:
    """Entry point: failures end with one clear sentence on stderr and a non-zero status."""
    # most of what libraries and dbt make stays, and Python by itself looks through it after every 700 new objects
    gc.set_threshold(10_000)
    try:
        app()
    except KeyboardInterrupt:  # outside of a command
        raise SystemExit(130) from None
    except Exception as error:
        if os.environ.get("HOUSING_DEBUG"):
            raise
        typer.echo(f"housing: {_sentence(error)}", err=True)
        raise SystemExit(1) from None


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    advice = next((told for said, told in ADVICE.items() if any(words in text for words in said)), None)
    if advice:
        text = f"{advice} ({text})"
    return text if len(text) < 1500 else text[:1500] + " …"


if __name__ == "__main__":
    main()
