"""One finished synthetic home for all tests that only read one, built by whoever of a test run needs it first."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import Home

FIRST_OUTPUT = "first_output.txt"


def built_home(factory: pytest.TempPathFactory) -> Home:
    """The home of a finished first run on 20,000 synthetic rows, trained through 2021-12. Not to be changed."""
    base = factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "built"
    root.mkdir(exist_ok=True)
    home = Home(root / "home", "housets", root / "dbt")
    with (root / "lock").open("w") as lock:
        # the kernel lets go of it when a worker dies
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / FIRST_OUTPUT).is_file():
            shutil.rmtree(root / "home", ignore_errors=True)
            home.housing("generate", str(root / "housets.csv"), "--rows", "20000", "--seed", "3")
            said = home.housing("run", "--from", str(root / "housets.csv")).stdout
            (root / FIRST_OUTPUT).write_text(said, encoding="utf-8")
    return home


def first_output(home: Home) -> str:
    """What the first run of the built home said."""
    return (home.settings.home.parent / FIRST_OUTPUT).read_text(encoding="utf-8")


def copy_of(home: Home, root: Path) -> Home:
    """A home of one's own, to be changed; its models' files stay with the original."""
    shutil.copytree(home.settings.home, root / "home")
    return Home(root / "home", home.settings.dataset, root / "dbt")
