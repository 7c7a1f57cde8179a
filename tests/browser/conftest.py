"""Built homes, a server and a browser for the tests of the dashboard."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from ml.settings import Settings
from tests.browser.driver import CHROMIUM, Dashboard, chromium, serve
from tests.built import built_home

#: A built home of real hdb data, for the tests that want one: too dear to build here.
HDB_HOME = "HOUSING_BROWSER_HDB_HOME"


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a home with a published synthetic snapshot. Not to be changed."""
    return built_home(tmp_path_factory).settings


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="session", params=["housets", "hdb"])
def dashboard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A running dashboard, on the synthetic snapshot and, where a home is named, on real data."""
    log = tmp_path_factory.mktemp("dashboard") / "log.txt"
    if request.param == "hdb":
        if not os.environ.get(HDB_HOME):
            pytest.skip(f"{HDB_HOME} names no built home of hdb")
        settings = Settings(home=Path(os.environ[HDB_HOME]), dataset="hdb")
    else:
        settings = request.getfixturevalue("published")
    with serve(settings, log) as running:
        yield running
