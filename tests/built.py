"""One finished home of each of two datasets for a whole test run, built by whoever of its workers needs it first.

The end-to-end tests go on from the synthetic one, all others read a copy; the one of real data is only read.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import Home, real

FINISHED = "finished"


def _built(factory: pytest.TempPathFactory, dataset: str) -> Path:
    """Folder with ``home`` after its first run, trained through 2021-12; ``copy`` where somebody goes on from it."""
    base = factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"built_{dataset}"
    root.mkdir(exist_ok=True)
    home = Home(root / "home", dataset, root / "dbt")
    with (root / "lock").open("w") as lock:
        # the kernel lets go of it when a worker dies
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / FINISHED).is_file():
            for left in ("home", "copy"):
                shutil.rmtree(root / left, ignore_errors=True)
            if dataset == "housets":
                home.typed("generate", str(root / "housets.csv"), "--rows", "20000", "--seed", "3")
                said = home.typed("run", "--from", str(root / "housets.csv")).stdout
                shutil.copytree(root / "home", root / "copy", symlinks=True)
            else:
                said = home.housing("run", "--from", str(real(dataset))).stdout
            (root / FINISHED).write_text(said, encoding="utf-8")
    return root


def built_home(factory: pytest.TempPathFactory) -> Home:
    """A finished home of 20,000 synthetic rows to read. Not to be changed."""
    root = _built(factory, "housets")
    return Home(root / "copy", "housets", root / "dbt")


def real_home(factory: pytest.TempPathFactory) -> Home:
    """A finished home of real hdb data to read; the test skips where they are absent. Not to be changed."""
    root = _built(factory, "hdb")
    return Home(root / "home", "hdb", root / "dbt")


def first_run(factory: pytest.TempPathFactory) -> tuple[Home, str]:
    """The finished synthetic home itself and what its first run said; for the one module that goes on from it."""
    root = _built(factory, "housets")
    return Home(root / "home", "housets", root / "dbt"), (root / FINISHED).read_text(encoding="utf-8")
