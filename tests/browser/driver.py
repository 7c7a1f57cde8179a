"""The real dashboard in a process of its own, and Chromium to look at it. Also used by ``benchmarks/dashboard.py``."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, Request, WebSocket, sync_playwright
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from ml.settings import Settings
from tests.servers import answer_of, free_port, started

#: The system's; None where there is none, and then the tests skip.
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

#: The first figures or words of a page, below its title.
FIRST = ".h-tile, .h-banner, .h-table, [data-testid=stAlert], [data-testid=stSelectbox], [data-testid=stPlotlyChart]"
#: Remembers when the browser had painted the first of these: two frames after it stands there, milliseconds since the
#: visit began. Asking from outside would wait for whatever script runs just then.
PAINTED = f"""
new MutationObserver((_, observer) => {{
    if (![...document.querySelectorAll('{FIRST}')].some(e => e.checkVisibility())) return;
    observer.disconnect();
    requestAnimationFrame(() => requestAnimationFrame(() => {{ window.painted = performance.now(); }}));
}}).observe(document, {{childList: true, subtree: true}});
"""
#: The page stands still: no script runs, nothing is greyed out, no chart is still to be drawn.
SETTLED = """
() => document.querySelector('[data-testid="stApp"]')?.dataset.testScriptState === 'notRunning'
    && document.querySelector('h1, .h-banner') && !document.querySelector('[data-stale="true"]')
    && !document.querySelector('[data-testid="stSkeleton"]')
    && [...document.querySelectorAll('.js-plotly-plot')].every(p => p.querySelector('.main-svg'))
"""
#: The browser has nothing left to do: what the server sent stands in the page. Messages that come together are drawn
#: together, so the page itself need never have shown that a script ran in between.
IDLE = "() => new Promise(done => requestIdleCallback(() => requestIdleCallback(() => done(true))))"
TILES = """
() => Object.fromEntries([...document.querySelectorAll('.h-tile')].map(
    t => [t.querySelector('b').textContent, t.querySelector('strong').textContent]))
"""


@dataclass(frozen=True)
class Dashboard:
    """A running server."""

    settings: Settings
    port: int
    process: subprocess.Popen[bytes]

    def url(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self.port}/{path}"


@contextmanager
def serve(settings: Settings, log: Path, **environment: str) -> Iterator[Dashboard]:
    """``housing dashboard`` until the block ends. Raises ServerError when it does not start."""
    port = free_port()
    command = [sys.executable, "-m", "dagster_project.cli", "dashboard", "--port", str(port)]
    with started(command, log, {**settings.environment, **environment}) as process:
        answer_of(f"http://127.0.0.1:{port}/_stcore/health", process, log)
        yield Dashboard(settings, port, process)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium, headless; nothing is downloaded."""
    with sync_playwright() as playwright:
        # as root, in a container without user namespaces, Chromium starts without its own sandbox only
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """One tab. Remembers what it asked of other hosts and what the page's own scripts complained of."""

    def __init__(self, browser: Browser, dashboard: Dashboard, *, width: int = 1280, height: int = 900) -> None:
        self.dashboard = dashboard
        self.page: Page = browser.new_page(viewport={"width": width, "height": height})
        self.elsewhere: list[str] = []
        self.page.add_init_script(PAINTED)
        self.page.on("request", self._watch)
        self.finished = 0
        self.page.on("websocket", self._listen)

    def _watch(self, request: Request) -> None:
        if not request.url.startswith(
            (self.dashboard.url(), "data:", "blob:", f"ws://127.0.0.1:{self.dashboard.port}")
        ):
            self.elsewhere.append(request.url)

    def _listen(self, socket: WebSocket) -> None:
        """Count the runs of the page's script that the server has finished."""

        def received(frame: str | bytes) -> None:
            if isinstance(frame, bytes) and ForwardMsg.FromString(frame).HasField("script_finished"):
                self.finished += 1

        socket.on("framereceived", received)

    def open(self, path: str = "") -> float:
        """Open a page; returns seconds until its first figures or words are painted."""
        self.page.goto(self.dashboard.url(path), wait_until="commit")
        painted = self.page.wait_for_function("() => window.painted", timeout=60_000).json_value()
        self.settle()
        return painted / 1000

    def settle(self) -> None:
        self.page.wait_for_function(SETTLED, timeout=60_000)

    def tiles(self) -> dict[str, str]:
        """Figures of the tiles by name."""
        return self.page.evaluate(TILES)

    def choose(self, label: str, option: str) -> float:
        """Choose in a select box; returns seconds from the click until the page stands still again."""
        box = self.page.get_by_role("combobox", name=label)
        box.click()
        # a long list draws only what is in view
        box.press_sequentially(option)
        choice = self.page.get_by_role("option", name=option, exact=True)
        choice.wait_for()
        return self.press(choice)

    def press(self, target: Locator) -> float:
        """Click what makes the page run again; returns seconds until it stands still."""
        before = self.finished
        started = time.perf_counter()
        target.click()
        while self.finished == before:
            if time.perf_counter() - started > 60:
                raise TimeoutError(f"the page did not run again after a click on {target}")
            self.page.wait_for_timeout(5)
        self.page.evaluate(IDLE)
        self.settle()
        return time.perf_counter() - started

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        if whole:
            size = self.page.viewport_size or {"width": 1280, "height": 900}
            tall = self.page.evaluate("() => document.querySelector('[data-testid=stMain]').scrollHeight")
            self.page.set_viewport_size({"width": size["width"], "height": max(size["height"], min(tall + 40, 6000))})
            self.settle()
        self.page.screenshot(path=path)

    def close(self) -> None:
        self.page.close()
