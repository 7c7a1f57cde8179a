"""Processes without their start: one that has imported what the product imports, and read its dbt project, is forked.

A start costs 8 seconds of a core and is the same each time, reading the project as much again. What a fork does is its
own: arguments, environment, files and exit status, and kill -9 hits nothing else. That `housing` starts from nothing is
tested where a user's first commands are (``Home.typed``).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import chdir
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from ml.settings import PROJECT_ROOT

#: What is imported, much of it inside of functions. What is not named here a fork imports itself.
MODULES = [
    "tests.prepared", "dagster_project.cli", "dagster_project.definitions", "dagster_project.event_log",
    "dagster_project.pipeline", "dagster_project.progress", "dagster_project.summary", "ml.plots", "ml.report",
    "expectations.lean_gx", "expectations.runner", "dbt.cli.main", "dbt.adapters.duckdb.connections",
    "dagster._core.storage.runs.sqlite.sqlite_run_storage", "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store",
    "matplotlib.backends.backend_svg", "pandas", "pytest", "tests.parsed",
]  # fmt: skip

STREAMS = {"stdout": 1, "stderr": 2}

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(MODULES)


def forked(target: Callable[..., None], *arguments: Any, environment: dict[str, str] | None = None) -> BaseProcess:
    """A process that runs a function of a module, which it imports if it has not."""
    # a daemon is ended with us
    process = _context.Process(target=_run, args=(target, arguments, environment or dict(os.environ)), daemon=True)
    # the first start makes the process to fork from, which finds its modules where it stands
    with chdir(PROJECT_ROOT):
        process.start()
    return process


def _run(target: Callable[..., None], arguments: tuple[Any, ...], environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    target(*arguments)


class Command:
    """A running ``housing``, in a process group of its own."""

    def __init__(self, arguments: tuple[str, ...], environment: dict[str, str], folder: Path) -> None:
        self._said = Path(mkdtemp(dir=folder, prefix="said_"))
        self._arguments = arguments
        self._process = forked(_housing, arguments, folder, self._said, environment=environment)

    @property
    def is_running(self) -> bool:
        return self._process.is_alive()

    def wait(self) -> subprocess.CompletedProcess[str]:
        """What it ended with and what it said."""
        self._process.join()
        assert self._process.exitcode is not None
        out, err = ((self._said / name).read_text(encoding="utf-8") for name in STREAMS)
        return subprocess.CompletedProcess(self._arguments, self._process.exitcode, out, err)

    def wait_to_say(self, words: str) -> None:
        """Until stderr has these words, or the command ended without."""
        file = self._said / "stderr"
        self.wait_until(lambda: file.exists() and words in file.read_text(encoding="utf-8"))

    def wait_until(self, begun: Callable[[], bool]) -> None:
        """Until something has begun, or the command ended without."""
        while self.is_running and not begun():
            time.sleep(0.02)

    def kill(self) -> bool:
        """kill -9 the whole process group. Was it in time?"""
        running = self.is_running
        if running:
            assert self._process.pid
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.join()
        return running and self._process.exitcode == -signal.SIGKILL


def _housing(arguments: tuple[str, ...], folder: Path, said: Path) -> None:
    os.setsid()
    for name, descriptor in STREAMS.items():
        file = os.open(said / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    os.chdir(folder)
    sys.argv = ["housing", *arguments]
    from dagster_project.cli import main

    main()
