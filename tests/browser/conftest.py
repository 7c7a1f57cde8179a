"""Built homes, a server and a browser for the tests of the dashboard."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from ml.settings import Settings
from tests.browser.driver import CHROMIUM, Dashboard, chromium, serve
from tests.built import built_home, real_home


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


@pytest.fixture(scope="session")
def dashboard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A running dashboard of the dataset that a test is parametrized with: synthetic ``housets``, real ``hdb``."""
    log = tmp_path_factory.mktemp("dashboard") / "log.txt"
    home = (real_home if request.param == "hdb" else built_home)(tmp_path_factory)
    with serve(home.settings, log) as running:
        yield running
