"""Starts Streamlit in this process, on 127.0.0.1 and without telemetry; the page itself is ``app.py``."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import duckdb

from ml.dashboard.queries import scored_table, scored_versions
from ml.dashboard.snapshot import SNAPSHOTS, SnapshotError, published_datasets
from ml.serving.folders import remove_leftovers
from ml.settings import Settings

APP = Path(__file__).with_name("app.py")

#: As flags, so that no config.toml of the user can turn telemetry or another address on.
OPTIONS = {
    "server.address": "127.0.0.1",
    "server.headless": "true",
    "server.fileWatcherType": "none",
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
    "theme.base": "light",
    "theme.primaryColor": "#0072B2",
    "theme.textColor": "#1c2733",
    "theme.secondaryBackgroundColor": "#f4f6f8",
    "theme.borderColor": "#dde3e8",
    "theme.baseRadius": "small",
}


#: Seconds between looks at the published file.
LOOK_S = 2.0


def launch(settings: Settings, *, port: int = 8501) -> None:
    """Serve until the process is told to end."""
    os.environ.update(settings.environment)
    # What if holds links to snapshots, which a process that was killed leaves behind; those of a running one stay
    for dataset in published_datasets(settings):
        remove_leftovers(Settings(dataset=dataset))
    # importing Streamlit makes Plotly look at what there is of pandas: half of it, while a page imports it, is an error
    import pandas  # noqa: F401 - the first page needs it

    # before the second that importing Streamlit takes: what is joined meanwhile needs no Python
    threading.Thread(target=keep_ready, args=(settings,), daemon=True, name="keep ready").start()
    from streamlit.web import cli

    flags = [f"--{name}={value}" for name, value in {**OPTIONS, "server.port": str(port)}.items()]
    sys.argv = ["streamlit", "run", os.fspath(APP), *flags]
    cli.main()


def keep_ready(settings: Settings) -> None:
    """Open each new snapshot and prepare what takes long before a visitor asks for it. Never returns."""
    ready: datetime | None = None
    while True:
        # without a snapshot, or with one that cannot be read, the pages say so
        with contextlib.suppress(SnapshotError, duckdb.Error):
            snapshot = SNAPSHOTS.newest(settings)
            # once for each: it would take the place of what visitors look at
            if snapshot.published_at != ready:
                ready = snapshot.published_at
                for version in scored_versions(snapshot)[:1]:
                    scored_table(snapshot, version)
            # a name that is held would keep the old file open
            del snapshot
        time.sleep(LOOK_S)
