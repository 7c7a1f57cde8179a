"""Starts Streamlit in the place of this process, on 127.0.0.1 and without telemetry; the page itself is ``app.py``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

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


def launch(settings: Settings, *, port: int = 8501) -> None:
    """Never returns: Streamlit takes over this process, so that Ctrl-C and signals reach it."""
    flags = [f"--{name}={value}" for name, value in {**OPTIONS, "server.port": str(port)}.items()]
    os.environ.update(settings.environment)
    os.execv(sys.executable, [sys.executable, "-m", "streamlit", "run", os.fspath(APP), *flags])
