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

from ml.settings import PROJECT_ROOT, Settings

if TYPE_CHECKING:
    from dbt_common.events.base_types import EventMsg

PROJECT = PROJECT_ROOT / "warehouse"

Hear = Callable[["EventMsg"], None]

#: What dbt read of the project, by home, dataset and where dbt keeps it: a process that builds twice reads it once.
_read: dict[tuple[str, ...], Any] = {}


class DbtError(RuntimeError):
    """dbt could not read the project, or a model or test failed; the message is dbt's own."""


def run_dbt(
    settings: Settings, command: str, *options: str, hear: Hear | None = None, variables: dict[str, str] | None = None
) -> None:
    """Run a dbt command to its end. Raises DbtError.

    ``hear`` is called with each of dbt's events; ``variables`` replace those by which dbt finds the home. The caller
    has no connection to the warehouse open: DuckDB refuses a second one with other settings.
    """
    with environment_of(settings, variables):
        if (where := _where()) not in _read:
            _read[where] = _invoke("parse")
            # it stays: the garbage collector, which walked through all of it again and again, took a sixth of a build
            gc.freeze()
        _invoke(command, *options, manifest=_read[where], hear=hear)


def write_manifest(settings: Settings) -> None:
    """Read the project and write ``manifest.json`` into dbt's target folder. Raises DbtError."""
    with environment_of(settings):
        _read[_where()] = _invoke("parse", "--write-json")


def _where() -> tuple[str, ...]:
    return tuple(os.environ[name] for name in ("HOUSING_HOME", "HOUSING_DATASET", "DBT_TARGET_PATH"))


def _invoke(command: str, *options: str, manifest: Any = None, hear: Hear | None = None) -> Any:
    from dbt.adapters.duckdb.connections import DuckDBConnectionManager
    from dbt.cli.main import dbtRunner

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
        errors += [str(done.exception)] if done.exception else []
        raise DbtError(f"dbt {command} failed: {' '.join(errors)[-2000:]}")
    return done.result


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
def environment_of(settings: Settings, variables: dict[str, str] | None = None) -> Iterator[None]:
    """The variables by which dbt and whatever else reads them find a home; afterwards they are as before."""
    before = dict(os.environ)
    os.environ.update({**settings.environment, **(variables or {})})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
