"""Finished homes for a whole test run, each built once by whoever of its workers needs it first.

The end-to-end tests go on from the synthetic one, all others read a copy; that of real data is only read.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Home, real

FINISHED = "finished"


def built_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], str]) -> Path:
    """Folder that ``build`` filled, for all workers; what it returned stands there in a file."""
    base = factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"built_{name}"
    root.mkdir(exist_ok=True)
    with (root / "lock").open("w") as lock:
        # the kernel lets go of it when a worker dies
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / FINISHED).is_file():
            for left in ("home", "copy"):
                shutil.rmtree(root / left, ignore_errors=True)
            (root / FINISHED).write_text(build(root), encoding="utf-8")
    return root


def _synthetic(root: Path) -> str:
    home, file = Home(root / "home", "housets"), str(root / "housets.csv")
    home.typed("generate", file, "--rows", "20000", "--seed", "3")
    said = home.typed("run", "--from", file).stdout
    shutil.copytree(root / "home", root / "copy", symlinks=True)
    return said


def _hdb(root: Path) -> str:
    return Home(root / "home", "hdb").housing("run", "--from", str(real("hdb"))).stdout


def built_home(factory: pytest.TempPathFactory) -> Home:
    """A finished home of 20,000 synthetic rows, trained through 2021-12, to read. Not to be changed."""
    root = built_once(factory, "housets", _synthetic)
    return Home(root / "copy", "housets")


def real_home(factory: pytest.TempPathFactory) -> Home:
    """A finished home of real hdb data to read; the test skips where they are absent. Not to be changed."""
    root = built_once(factory, "hdb", _hdb)
    return Home(root / "home", "hdb")


def first_run(factory: pytest.TempPathFactory) -> tuple[Home, str]:
    """The finished synthetic home itself and what its first run said; for the one module that goes on from it."""
    root = built_once(factory, "housets", _synthetic)
    return Home(root / "home", "housets"), (root / FINISHED).read_text(encoding="utf-8")
