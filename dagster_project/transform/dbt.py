"""dbt in this very process: a child would import dbt (1.7 s) and write every event as JSON for its parent to read.

What is built stands in ``warehouse/``, what Dagster makes of it in ``assets.py``.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dagster_project.transform.project import PROJECT, fingerprint, project_files
from ml.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from dbt.contracts.graph.manifest import Manifest
    from dbt_common.events.base_types import EventMsg

#: Characters of a reason that are told; the command line shows no more.
LONGEST_REASON = 1300

Hear = Callable[["EventMsg"], None]

#: What dbt read of the project, by dataset and content of its files: a process that builds twice reads it once.
#: Where the home is does not matter to it; dbt itself would read everything again for another one.
_read: dict[tuple[str, str], Manifest] = {}


class DbtError(RuntimeError):
    """dbt could not read the project, or a model or test failed; the message is dbt's own."""


def run_dbt(settings: Settings, command: str, *options: str, hear: Hear | None = None) -> None:
    """Run a dbt command to its end; ``hear`` is called with each of dbt's events. Raises DbtError.

    The caller has no connection to the warehouse open: DuckDB refuses a second one with other settings.
    """
    manifest = read_project(settings)
    with environment_of(settings):
        _invoke(command, *options, manifest=manifest, hear=hear)


def read_project(settings: Settings) -> Manifest:
    """Models, macros and tests of a dataset as dbt understands them. Raises DbtError."""
    key = (settings.dataset, fingerprint(project_files(settings)))
    if key not in _read:
        settings.dbt_target.mkdir(parents=True, exist_ok=True)
        settings.warehouse.parent.mkdir(parents=True, exist_ok=True)
        with environment_of(settings):
            _read[key] = _invoke("parse")
        # it stays: the garbage collector, which walked through all of it again and again, took a sixth of a build
        gc.freeze()
    return _read[key]


def ensure_manifest(settings: Settings) -> Path:
    """Path of an up-to-date ``manifest.json``, written anew when files changed. Raises DbtError."""
    manifest = settings.dbt_target / "manifest.json"
    stamp = settings.dbt_target / "manifest.fingerprint"
    wanted = fingerprint(project_files(settings))
    if manifest.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return manifest
    read = read_project(settings)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    read.write(str(manifest))
    stamp.write_text(wanted, encoding="utf-8")
    return manifest


def build_staging(settings: Settings) -> None:
    """Make the views that tell the key of every landed row. The caller holds the lock, and no connection. DbtError."""
    selected = ("--select", "+int_observations_checked", "--resource-type", "model", "--resource-type", "seed")
    run_dbt(settings, "build", *selected)


def _invoke(command: str, *options: str, manifest: Any = None, hear: Hear | None = None) -> Any:
    from dbt.adapters.duckdb.connections import DuckDBConnectionManager
    from dbt.cli.main import dbtRunner
    from dbt_common.behavior_flags import BehaviorFlagRendered

    # dbt looks through the whole stack and all modules for the author of each of its flags. That takes 0.5 s a command
    # and loads what others keep for later (expectations/lean_gx.py)
    BehaviorFlagRendered._default_source = staticmethod(lambda: "dbt")

    errors: list[str] = []

    def listen(event: EventMsg) -> None:
        if event.info.level == "error":
            errors.append(str(event.info.msg).strip())  # pyright: ignore[reportAttributeAccessIssue] - made by protobuf
        if hear:
            hear(event)

    # what is said goes to `hear`. For a file dbt would make a line of each of its 3,000 events, whatever its level, and
    # look through the environment for secrets each time: a seventh of the time of a month's models and tests
    quiet = ("--log-level", "none", "--log-level-file", "none")
    with _interrupts_of_dbt():
        done = dbtRunner(manifest, [listen]).invoke([command, *options, *quiet, "--project-dir", str(PROJECT)])
    # else dbt keeps its last connection for the next command
    DuckDBConnectionManager.close_all_connections()
    if done.exception and not isinstance(done.exception, Exception):
        raise done.exception  # an interrupt
    if not done.success:
        raise DbtError(f"dbt {command} failed: {_reason(done.exception) if done.exception else _first(errors)}")
    return done.result


def _reason(error: BaseException) -> str:
    """What dbt says, after what began it where that is something else; never their traces, which hide both."""
    inner = error
    while deeper := inner.__cause__ or (None if inner.__suppress_context__ else inner.__context__):
        inner = deeper
    said, began = (str(e) or type(e).__name__ for e in (error, inner))
    return _first([said] if began in said else [began, f"({said})"])


def _first(errors: list[str]) -> str:
    """The first errors, as far as one reads: what fails later mostly follows from them."""
    text = " ".join(errors)
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} …"


@contextmanager
def _interrupts_of_dbt() -> Iterator[None]:
    """Ctrl-C as Python has it: dbt then cancels its statement and waits for its thread, at Dagster's it does not."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def environment_of(settings: Settings) -> Iterator[None]:
    """The variables by which dbt and whatever else reads them find a home; afterwards they are as before."""
    before = dict(os.environ)
    os.environ.update(settings.environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
