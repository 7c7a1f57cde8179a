"""One finished synthetic home for all tests that only read one, built by whoever of a test run needs it first."""

from __future__ import annotations

import fcntl
import os
import shutil

import pytest

from tests.conftest import Home

FINISHED = "finished"


def built_home(factory: pytest.TempPathFactory) -> Home:
    """The home of a finished first run on 20,000 synthetic rows, trained through 2021-12. Not to be changed."""
    base = factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "built"
    root.mkdir(exist_ok=True)
    home = Home(root / "home", "housets", root / "dbt")
    with (root / "lock").open("w") as lock:
        # the kernel lets go of it when a worker dies
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / FINISHED).is_file():
            shutil.rmtree(root / "home", ignore_errors=True)
            home.housing("generate", str(root / "housets.csv"), "--rows", "20000", "--seed", "3")
            home.housing("run", "--from", str(root / "housets.csv"))
            (root / FINISHED).touch()
    return home
