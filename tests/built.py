"""One finished synthetic home for a whole test run, built by whoever of its workers needs it first.

The end-to-end tests go on from it, all others read a copy.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import Home

FINISHED = "finished"


def _built(factory: pytest.TempPathFactory) -> Path:
    """Folder with ``home`` after its first run on 20,000 synthetic rows, trained through 2021-12, and its ``copy``."""
    base = factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "built"
    root.mkdir(exist_ok=True)
    home = Home(root / "home", "housets", root / "dbt")
    with (root / "lock").open("w") as lock:
        # the kernel lets go of it when a worker dies
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / FINISHED).is_file():
            for left in ("home", "copy"):
                shutil.rmtree(root / left, ignore_errors=True)
            home.housing("generate", str(root / "housets.csv"), "--rows", "20000", "--seed", "3")
            said = home.housing("run", "--from", str(root / "housets.csv")).stdout
            shutil.copytree(root / "home", root / "copy", symlinks=True)
            (root / FINISHED).write_text(said, encoding="utf-8")
    return root


def built_home(factory: pytest.TempPathFactory) -> Home:
    """A finished home to read. Not to be changed."""
    root = _built(factory)
    return Home(root / "copy", "housets", root / "dbt")


def first_run(factory: pytest.TempPathFactory) -> tuple[Home, str]:
    """The finished home itself and what its first run said; for the one module that goes on from it."""
    root = _built(factory)
    return Home(root / "home", "housets", root / "dbt"), (root / FINISHED).read_text(encoding="utf-8")
