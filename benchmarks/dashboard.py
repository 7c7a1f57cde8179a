"""First paint and filter change of the dashboard on 884,092 predictions, as a browser sees them.

    python -m benchmarks.dashboard HOME [--dataset hdb] [--repeats 5] [--keep FOLDER]

The snapshot of a built HOME is copied and its predictions, prices, ranges and features are repeated by SQL until the
champion has 884,092 scored rows; Chromium then walks the pages of the real server. Prints a markdown table.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import duckdb
import typer
from playwright.sync_api import Browser, sync_playwright

from ml.settings import Settings
from tests.browser.driver import Dashboard, Visit, browser, start

ROWS = 884_092  # HouseTS as published
#: Tables that pages read row by row or count; the others hold figures, or are asked for single homes.
REPEATED = [
    "predictions.predictions",
    "predictions.predictions_matched",
    "predictions.prediction_intervals",
    "training.training_dataset",
]


def enlarge(settings: Settings) -> int:
    """Repeat the rows of the standing snapshot under new keys; returns the champion's scored rows."""
    with duckdb.connect(str(settings.published)) as connection:
        version, rows = connection.execute(
            """
            select model_version, count(*) from predictions.predictions
            where split <> 'eval' and model_version in (
                select model_version from training.model_versions where status = 'champion'
            )
            group by model_version
            """
        ).fetchall()[0]
        copies = -(-ROWS // rows)
        for table in REPEATED:
            # month by month, as scoring writes them
            connection.execute(
                f"""
                create table repeated as
                select * replace (if(copy = 0, observation_id, observation_id || '-' || copy) as observation_id)
                from {table}, range({copies}) as copies (copy)
                -- the last copy is a part: the first so many keys
                where copy < {copies - 1} or hash(observation_id) / 18446744073709551615 < {ROWS / rows - copies + 1}
                order by month
                """
            )
            connection.execute(f"drop table {table}; create table {table} as select * exclude (copy) from repeated")
            connection.execute("drop table repeated")
        connection.execute("update published.about set fingerprint = 'repeated'")
        connection.execute("checkpoint")
        return connection.execute(
            "select count(*) from predictions.predictions where model_version = ? and split <> 'eval'", [version]
        ).fetchall()[0][0]
