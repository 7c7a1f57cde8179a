"""The order of jobs behind each ``housing`` command. What a job does stands in the assets.

Jobs run in this process and are recorded in the same Dagster instance as those of the UI.
"""

from __future__ import annotations

import gc
import getpass
import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dagster_project.transform.project import fingerprint, project_files
from ml.contract import load, month_date
from ml.params import load as load_params
from ml.settings import PROJECT_ROOT, Settings, command, run_command
from ml.warehouse import connect, create_tables, warehouse_lock

if TYPE_CHECKING:
    import dagster as dg
    import duckdb
    from dagster_shared.error import SerializableErrorInfo

    from dagster_project.progress import Reporter


class PipelineError(RuntimeError):
    """A job failed; the message says which step and why, in one sentence."""


def run(settings: Settings, *, source: Path | None, force: bool, show: Reporter) -> None:
    """Everything, from landed files to the published snapshot. Returns at once when nothing is new."""
    from dagster_project.raw.landing import land, landing_state

    if source:
        land(settings, [source])
    _generate_when_empty(settings, show)
    project, landed = project_state(settings), landing_state(settings)
    stamp = _stamp(settings)
    state = stamp.read_text(encoding="utf-8") if stamp.exists() else None
    if not force and state == run_state(project, landed) and _is_readable(settings.published):
        show(f"nothing new since the last run; everything stands in {settings.published}", 1, 1)
        return
    with _Session(settings, "housing run", show) as session:
        session.execute("train")
        session.score_pending()
    # what was quarantined has left the landing folder; what came or was written to since is for the next run
    still_there = set(landing_state(settings))
    stamp.write_text(run_state(project, [entry for entry in landed if entry in still_there]), encoding="utf-8")


def _is_readable(snapshot: Path) -> bool:
    """Whether there is a snapshot, and DuckDB takes it for one; else it is made again."""
    if not snapshot.exists():
        return False
    import duckdb

    try:
        duckdb.connect(str(snapshot), read_only=True).close()
    except duckdb.Error:
        return False
    return True


def _stamp(settings: Settings) -> Path:
    """Says of which files and code everything stands; gone while a command changes something."""
    return settings.warehouse.with_suffix(".state")


def ingest(settings: Settings, paths: list[Path], *, show: Reporter) -> None:
    """Land files and rebuild what they touch. Raises PipelineError, after all else is done, for what was refused."""
    from dagster_project.raw.landing import land

    _take_in(settings, "housing ingest", [path.name for path in land(settings, paths)], show)


def actuals(settings: Settings, paths: list[Path], *, show: Reporter) -> None:
    """Land prices that became known later, and rebuild what they touch. Nothing is scored again.

    Raises PipelineError, after all else is done, for files that were refused.
    """
    from dagster_project.raw.actuals import Actuals
    from dagster_project.raw.landing import land

    landed = land(settings, paths, folder=settings.landed_actuals)
    _take_in(settings, "housing actuals", [Actuals.prefix + path.name for path in landed], show)


def _take_in(settings: Settings, purpose: str, files: list[str], show: Reporter) -> None:
    """Load what landed. Raises PipelineError at last for those of ``files`` (names in raw.files) that were refused."""
    with _Session(settings, purpose, show) as session:
        session.execute("land")
        refused = _refused(settings, files)
    if refused:
        raise PipelineError(_some(refused))


def _refused(settings: Settings, files: list[str]) -> list[str]:
    """A sentence for each of these files that is in quarantine. The caller holds the warehouse lock."""
    with connect(settings) as connection:
        found = connection.execute(
            """
            select file, arg_max(reason, batch), arg_max(report, batch) from raw.files
            where list_contains(?, file)
            group by file having arg_max(status, batch) = 'quarantined' order by file
            """,
            [files],
        ).fetchall()
    return [f"{file} was quarantined: {why} (report: {report})" for file, why, report in found]


def simulate(
    settings: Settings, source: Path, *, every_minutes: float, batches: int, seed: int, show: Reporter
) -> None:
    """Land the unpriced rows of a file batch by batch and score each; its made-up prices come with the next one."""
    from dagster_project.raw.landing import land
    from dagster_project.simulate import answer, require, split

    require(settings, source)
    with TemporaryDirectory() as name:
        folder = Path(name)
        files = split(load(settings.dataset), source, folder, batches)
        for number, file in enumerate(files):
            if number and every_minutes:
                show(f"wait {every_minutes:g} minutes for batch {number + 1} of {len(files)}", 0, 0)
                time.sleep(60 * every_minutes)
            (landed,) = land(settings, [file])
            with _Session(settings, "housing simulate", show) as session:
                session.execute("land")
                session.score_pending()
                prices = folder / f"simulated_{landed.name}"
                with connect(settings) as connection:
                    answer(connection, landed.name, prices, seed=seed + number)
            land(settings, [prices], folder=settings.landed_actuals)
        with _Session(settings, "housing simulate", show) as session:
            session.execute("land")


def train(settings: Settings, *, through: str | None, force: bool, profile: str, show: Reporter) -> None:
    """Train one version; score what is pending with the champion."""
    if through:
        month_date(through)
    load_params(settings.dataset, profile=profile)
    with _Session(settings, "housing train", show) as session:
        session.execute(
            "train", _config("training__model_versions", through=through or "", force=force, profile=profile)
        )
        session.score_pending()


def retrain(settings: Settings, *, show: Reporter) -> str:
    """Train if the newest decision says so, as the sensor would; returns a sentence about what was done."""
    from dagster_project.automation import retrain_request
    from dagster_project.training.attempts import remember_died
    from ml.verdicts import died_attempts, newest_decision

    by_hand = f"to train all the same: {command('train --through YYYY-MM', settings.dataset)}"
    with _Session(settings, "housing retrain", show) as session:
        with connect(settings) as connection:
            decision = newest_decision(connection)
            if decision is None:
                return f"no month was judged yet, so there is nothing to decide; type: {run_command(settings.dataset)}"
            remember_died(connection, session.instance, settings.dataset)
            died = died_attempts(connection, decision["decision_id"])
        reasons = ", ".join(decision["reasons"]) or "no evidence"
        if decision["decision"] != "retrain":
            return f"{decision['decision']} ({reasons}); {by_hand}"
        if decision["is_done"]:
            return f"the training for {decision['decision_id']} ({reasons}) was made: {_newest_version(settings)}"
        if died >= load(settings.dataset).retraining.max_attempts:
            # judged again, as the sensor does, so that status and alerts ask for a person, too
            session.execute("monitor")
            return f"needs_human: {died} trainings for {decision['decision_id']} ({reasons}) died; {by_hand}"
        request = retrain_request(settings.dataset, decision, attempt=died + 1)
        session.execute("retrain", request.run_config["ops"], tags=dict(request.tags))
        session.score_pending()
    return f"trained because of {reasons} in {decision['month']:%Y-%m}: {_newest_version(settings)}"


def _newest_version(settings: Settings) -> str:
    from ml.registry import versions

    with connect(settings) as connection:
        newest = versions(connection)[-1]
    return f"{newest.model_version} is {newest.status}"


def promote(settings: Settings, version: str | None, *, show: Reporter) -> list[str]:
    """Make the challenger, or a version by name, champion; score what it has not scored."""
    from ml.promotion import promote as move

    return _move(
        settings, "housing promote", show, lambda c: move(c, settings, load(settings.dataset), version, actor=_user())
    )


def rollback(settings: Settings, *, show: Reporter) -> list[str]:
    """Give the alias back to the champion before this one."""
    from ml.promotion import rollback as move

    return _move(settings, "housing rollback", show, lambda c: move(c, settings, load(settings.dataset), actor=_user()))


def _move(
    settings: Settings, purpose: str, show: Reporter, move: Callable[[duckdb.DuckDBPyConnection], list[str]]
) -> list[str]:
    with _Session(settings, purpose, show) as session:
        with connect(settings) as connection:
            moves = move(connection)
        session.score_pending()
    return moves


def _user() -> str:
    return getpass.getuser()


def score(settings: Settings, *, month: str, show: Reporter) -> None:
    """Score one month with the champion, whether or not it was scored before."""
    first = month_date(month)
    with _Session(settings, "housing score", show) as session:
        session.require_rows(first)
        session.execute("score", partitions=(first.isoformat(), first.isoformat()))


def replay(settings: Settings, *, first: str, last: str, policy: str, profile: str, show: Reporter) -> str:
    """Replay months under one policy or all; returns a table of the policies and where the picture stands."""
    from dagster_project import summary
    from dagster_project.published.snapshot import publish
    from dagster_project.replay import POLICIES, Plan, Policy
    from dagster_project.replay import replay as walk
    from dagster_project.resources import prepare_environment
    from ml.plots import replayed

    wanted: list[Policy] = [known for known in POLICIES if policy in {known, "all"}]
    if not wanted:
        raise PipelineError(f"unknown policy {policy!r}; known are: {', '.join(POLICIES)}, all")
    contract, params = load(settings.dataset), load_params(settings.dataset, profile=profile)
    prepare_environment(settings)
    for one in wanted:
        walk(settings, contract, Plan(one, month_date(first), month_date(last)), params, show=show)
    with connect(settings, read_only=True) as connection:
        rows = connection.execute("select * from monitoring.replay_months order by policy, month").to_arrow_table()
    publish(settings)
    picture = settings.home / "reports" / settings.dataset / "replay.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    replayed(rows, picture, title=f"{contract.title}: error by month under each policy")
    return f"{summary.replayed(rows)}\n\nthe picture stands in {picture}"


def compare(settings: Settings, *, show: Reporter) -> None:
    """Fit every candidate of ml/models.yml on every fold."""
    with _Session(settings, "housing compare", show) as session:
        session.execute("compare")


def tune(settings: Settings, *, trials: int, minutes: float, show: Reporter) -> None:
    """Search parameters on the folds; a search that was cut off goes on."""
    with _Session(settings, "housing tune", show) as session:
        session.execute("tune", _config("training__tuning_trials", trials=trials, minutes=minutes))


def project_state(settings: Settings) -> str:
    """Digest of what a run depends on besides landed files: dbt project, Python code and parameters."""
    code = [
        p
        for folder in ("ml", "expectations")
        for p in (PROJECT_ROOT / folder).rglob("*.*")
        if p.suffix in {".py", ".yml"}
    ]
    return fingerprint([*project_files(settings), *sorted(code)])


def run_state(project: str, landed: list[str]) -> str:
    """What a finished run leaves behind, so that the next one knows whether anything is new."""
    return hashlib.sha256("\n".join([project, *landed]).encode()).hexdigest()


def _generate_when_empty(settings: Settings, show: Reporter) -> None:
    settings.landing.mkdir(parents=True, exist_ok=True)
    if any(p != settings.landed_actuals for p in settings.landing.iterdir()) or _has_files(settings):
        return
    if settings.dataset != "housets":
        raise PipelineError(
            f"nothing has landed for {settings.dataset}: put files into {settings.landing} or use --from PATH"
        )
    from ml.synthetic import generate

    generate(
        settings.landing / "housets_synthetic.csv",
        60_000,
        1,
        progress=lambda done, total: show("generate synthetic rows", done, total),
    )


def _has_files(settings: Settings, status: str = "%") -> bool:
    """Was anything ever taken in? A warehouse without rows is there as soon as somebody trained too early."""
    if not settings.warehouse.exists():
        return False
    with warehouse_lock(settings, "housing run"), connect(settings) as connection:
        create_tables(connection, load(settings.dataset))
        return bool(connection.execute("select 1 from raw.files where status like ? limit 1", [status]).fetchone())


class _Session:
    """The warehouse lock, the Dagster instance and the jobs of one command."""

    def __init__(self, settings: Settings, purpose: str, show: Reporter) -> None:
        self._settings, self._purpose, self._show = settings, purpose, show

    def __enter__(self) -> _Session:
        from dagster_project.resources import prepare_environment

        prepare_environment(self._settings)
        self._lock = warehouse_lock(self._settings, self._purpose, lambda sentence: self._show(sentence, 0, 0))
        self._lock.__enter__()
        self._show("read the dbt project and start Dagster", 0, 0)
        # what is imported stays: the garbage collector need not look for any of it
        gc.disable()
        try:
            self._start()
            gc.freeze()
        finally:
            gc.enable()
        # what is begun and not ended well is for `housing run` to finish
        stamp = _stamp(self._settings)
        self._stood = stamp.read_text(encoding="utf-8") if stamp.exists() else None
        stamp.unlink(missing_ok=True)
        return self

    def _start(self) -> None:
        import warnings

        import dagster as dg

        warnings.filterwarnings("ignore", category=dg.BetaWarning)
        from dagster_project.automation import forget_dead_runs
        from dagster_project.definitions import build_defs
        from dagster_project.event_log import EventLog
        from dagster_project.progress import reporter

        self._token = reporter.set(self._show)
        self.instance = dg.DagsterInstance.get()
        if isinstance(self.instance.event_log_storage, EventLog):
            self.instance.event_log_storage.asks_for_pools = False
        # whoever holds the warehouse knows that no other command of this dataset is running
        forget_dead_runs(self.instance, dead=self._settings.dataset)
        self._defs = build_defs(self._settings)

    def __exit__(self, *error: Any) -> None:
        from dagster_project.alerting import notify_quietly
        from dagster_project.progress import reporter

        reporter.reset(self._token)
        if error[0] is None and self._stood is not None:
            _stamp(self._settings).write_text(self._stood, encoding="utf-8")
        self._lock.__exit__(*error)
        notify_quietly(self._settings, self.instance)
        self.instance.dispose()

    def execute(
        self,
        job: str,
        ops: dict[str, Any] | None = None,
        *,
        partitions: tuple[str, str] | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        """Run a job to its end. Raises PipelineError with the first failed step and its reason."""
        from dagster_project.alerting import COMMAND, DATASET_TAG, HOST, PROCESS
        from dagster_project.automation import months_tag

        tags = {
            **(tags or {}),
            COMMAND: self._purpose,
            PROCESS: str(os.getpid()),
            HOST: socket.gethostname(),
            DATASET_TAG: self._settings.dataset,
        }
        one = partitions[0] if partitions and partitions[0] == partitions[1] else None
        if partitions and not one:
            tags |= months_tag(*partitions)
        config = {
            "ops": ops or {},
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        }
        # what dbt says belongs in a log; the terminal shows progress
        log = self._settings.dagster_home / "last_run.log"
        with log.open("a", encoding="utf-8") as handle, redirect_stdout(handle):
            result = self._defs.resolve_job_def(job).execute_in_process(
                run_config=config, instance=self.instance, partition_key=one, tags=tags, raise_on_error=False
            )
        if not result.success:
            if "DagsterExecutionInterruptedError" in (error.cls_name for _, error in _failures(result)):
                raise KeyboardInterrupt
            told, files = [_reason(result)], _quarantined(result)
            # what came of a file is often why there is nothing to work with, and surely where none was ever loaded
            raise PipelineError("; ".join(told + files if _has_files(self._settings, "loaded") else files + told))

    def score_pending(self) -> None:
        """Score and explain every month that has rows without a prediction or reasons of the champion.

        Again where that made another version champion, so that its predictions are explained, too.
        """
        months, served = self._pending()
        if months:
            self._score(months)
        else:
            self.execute("monitor")
        months, serves = self._pending()
        if months and serves != served:
            self._score(months)

    def require_rows(self, month: date) -> None:
        """Raises PipelineError for a month that has no rows, or none yet that may be scored."""
        from dagster_project.predictions.partitions import first_and_last
        from ml.registry import champion

        contract = load(self._settings.dataset)
        first, last = first_and_last(contract)
        if not first <= month <= last:
            raise PipelineError(
                f"{month:%Y-%m} cannot be scored: months of {contract.name} are from {first:%Y-%m} to {last:%Y-%m}"
            )
        with connect(self._settings) as connection:
            create_tables(connection, contract)
            # without a champion there may be no features yet, and scoring says what is missing
            found = "select 1 from features.features where month = ? limit 1"
            if champion(connection) and not connection.execute(found, [month]).fetchone():
                raise PipelineError(f"{contract.name} has no rows of {month:%Y-%m}, so there is nothing to score")

    def _pending(self) -> tuple[list[date], str | None]:
        """Months that have something to score or to explain, and the champion's name."""
        from dagster_project.predictions.partitions import first_and_last
        from ml.explain import pending_months
        from ml.registry import champion

        with connect(self._settings) as connection:
            months, version = pending_months(connection), champion(connection)
        first, last = first_and_last(load(self._settings.dataset))
        waiting = [f"{month:%Y-%m}" for month in months if not first <= month <= last]
        if waiting:
            self._show(f"not scored: rows of {', '.join(waiting)}, outside {first:%Y-%m} to {last:%Y-%m}", 1, 1)
        return [month for month in months if first <= month <= last], version.model_version if version else None

    def _score(self, months: list[date]) -> None:
        from dagster_project.predictions.assets import PENDING

        self.execute("score", partitions=(months[0].isoformat(), months[-1].isoformat()), tags={PENDING: "true"})


def _quarantined(result: dg.ExecuteInProcessResult) -> list[str]:
    """A sentence for each file that the run put into quarantine, as many as a terminal can take."""
    from dagster import JsonMetadataValue

    found: list[str] = []
    for event in result.get_asset_materialization_events():
        told = event.materialization.metadata.get("quarantined")
        if isinstance(told, JsonMetadataValue):
            found += [str(sentence) for sentence in told.data or ()]
    return [_some(found)] if found else []


def _some(sentences: list[str]) -> str:
    """As many as a terminal can take."""
    more = [f"{len(sentences) - 3} more files were quarantined"] if len(sentences) > 3 else []
    return "; ".join(sentences[:3] + more)


def _config(op: str, **values: Any) -> dict[str, Any]:
    return {op: {"config": values}}


def _failures(result: dg.ExecuteInProcessResult) -> Iterator[tuple[str | None, SerializableErrorInfo]]:
    """Failed steps and the innermost error of each."""
    from dagster_project.alerting import innermost

    for event in result.all_events:
        if event.is_step_failure and event.step_failure_data.error:
            yield event.step_key, innermost(event.step_failure_data.error)


def _reason(result: dg.ExecuteInProcessResult) -> str:
    """First failed step and its reason."""
    from dagster_project.alerting import words

    for step, error in _failures(result):
        return f"{step} failed: {words(error)}"
    return "the run failed before its first step; see the run in the Dagster UI (make ui)"
