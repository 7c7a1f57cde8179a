"""What the API answered and was told, as append-only JSON lines below ``HOUSING_HOME/online/<dataset>``.

Policy: a feedback is acknowledged when it is on disk (one fsync for all that came while the last one ran). Predictions
are written and synced each second, so a killed machine loses at most that; a killed process loses what it had not yet
written. A file is closed at a size or an age and then belongs to the pipeline: feedback becomes a CSV in the landing
folder, predictions are moved into the warehouse by ``load_predictions``. The warehouse is never touched by the API.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import duckdb
from pydantic_core import to_json

from ml.durable import sync, write
from ml.serving.folders import journals
from ml.settings import Settings
from ml.warehouse import transaction

log = logging.getLogger("housing.api")

#: Columns of a journaled prediction as in ``predictions.predictions``; ``kind``, ``split`` and ``mode`` are constant.
PREDICTION = {
    "observation_id": "VARCHAR",
    "model_version": "VARCHAR",
    "role": "VARCHAR",
    "observed_on": "DATE",
    "month": "DATE",
    "area": "VARCHAR",
    "locality": "VARCHAR",
    "predicted_price": "DOUBLE",
    "imputation_error": "DOUBLE",
    "scored_at": "TIMESTAMP",
    "run_id": "VARCHAR",
}
ACTUAL = ("observation_id", "price", "reported_at", "source")


class Journal:
    """Append-only files of one kind. For one thread at a time."""

    def __init__(self, folder: Path, *, rotate_bytes: int, rotate_s: float) -> None:
        self._folder, self._rotate_bytes, self._rotate_s = folder, rotate_bytes, rotate_s
        self._file: BinaryIO | None = None
        self._opened = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        adopt(folder)

    def append(self, records: Iterable[Any]) -> None:
        """Write records and wait until they are on disk: all of them, or none and OSError."""
        # not by orjson: ten thousand of its buffers, cut to size, leave holes of a hundred megabytes in the heap
        text = b"".join(to_json(record) + b"\n" for record in records)
        if not text:
            return
        file = self._file
        if file and not os.fstat(file.fileno()).st_nlink:
            log.error("%s was deleted while it was written", file.name)
            file.close()
            self._file = None
        file = self._file or self._open()
        before = file.tell()
        try:
            rest = memoryview(text)
            while rest:  # a disk that is nearly full takes a part
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            self._take_back(file, before)
            raise

    def rotate(self, *, force: bool = False) -> Path | None:
        """Close the file when it is large or old enough; returns where it stands then."""
        file = self._file
        if file is None:
            return None
        due = file.tell() >= self._rotate_bytes or time.monotonic() - self._opened >= self._rotate_s
        if not (due or force):
            return None
        path = Path(file.name)
        closed = path.with_suffix(".jsonl")
        try:
            path.rename(closed)
        except FileNotFoundError:
            self._file = None  # its folder was moved away or deleted: the next one stands in a new folder
            file.close()
            raise
        file.close()
        self._file = None
        return closed

    def _take_back(self, file: BinaryIO, end: int) -> None:
        """Cut what was written in part, so that the next line does not grow on to it."""
        try:
            file.truncate(end)
            file.seek(end)
        except OSError as error:
            # left with its torn line, which is dropped when the next start adopts the file
            log.error("%s is left as it is: %s", file.name, error)
            self._file = None
            file.close()

    def _open(self) -> BinaryIO:
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:12]}.open"
        file = (self._folder / name).open("ab", buffering=0)
        # held as long as this process lives: whoever can take the lock knows that the writer is dead
        fcntl.flock(file, fcntl.LOCK_EX)
        sync(self._folder)
        self._file, self._opened = file, time.monotonic()
        return file


def adopt(folder: Path) -> list[Path]:
    """Close the files that dead processes left open; returns them."""
    found = []
    for path in sorted(folder.glob("*.open")):
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # somebody writes to it
            path.rename(path.with_suffix(".jsonl"))
            found.append(path.with_suffix(".jsonl"))
    return found


def records(path: Path) -> list[dict[str, Any]]:
    """Records of a closed file. A last line without its end was never acknowledged and does not count."""
    return _read(path)[0]


def _read(path: Path) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Records of a closed file, and lines that are none: a disk may give back other bytes than it was given."""
    found: list[dict[str, Any]] = []
    unreadable: list[bytes] = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            found.append(record)
        else:
            unreadable.append(line)
    return found, unreadable


def land_feedback(settings: Settings, unreadable: Callable[[int], None] = lambda _: None) -> list[Path]:
    """Turn closed feedback files into CSV files of the landing folder; returns them.

    Lines that cannot be read are set aside in a file ``.bad`` beside the journal, for a person, and do not keep the
    others from landing; ``unreadable`` is told how many. The name of a CSV follows from the journal's, so that after a
    kill between the two steps the same file is written again.
    """
    target = settings.landing / "actuals"
    landed = []
    for path in sorted(journals(settings, "feedback").glob("*.jsonl")):
        told, bad = _read(path)
        if bad:
            kept = path.with_suffix(".bad")
            write(kept, b"\n".join([*bad, b""]))
            unreadable(len(bad))
            log.error("%d lines of feedback cannot be read; they stand in %s", len(bad), kept)
        text = io.StringIO(newline="")
        writer: csv.DictWriter[str] = csv.DictWriter(text, ACTUAL, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(told)
        target.mkdir(parents=True, exist_ok=True)
        csv_path = target / f"online-{path.stem}.csv"
        write(csv_path, text.getvalue().encode())
        path.unlink()
        landed.append(csv_path)
    return landed


def load_predictions(connection: duckdb.DuckDBPyConnection, settings: Settings) -> int:
    """Move closed prediction journals into ``predictions.predictions``; returns the rows that were added.

    A batch prediction of the same observation and version stands; of several online ones the last does. Called by
    whoever may write to the warehouse. A process killed before the files are removed loads them again, to no effect.
    """
    folder = journals(settings, "predictions")
    adopt(folder)
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        return 0
    columns = ", ".join(f"{name}: '{kind}'" for name, kind in PREDICTION.items())
    with transaction(connection):
        connection.execute(
            f"""
            create or replace temp table journaled as
            select * from read_json($files, format = 'newline_delimited', ignore_errors = true,
                columns = {{{columns}}})
            where predicted_price is not null and observation_id is not null and month is not null
            qualify row_number() over (
                partition by observation_id, model_version order by scored_at desc, run_id desc
            ) = 1
            """,
            {"files": [str(path) for path in files]},
        )
        connection.execute(
            """
            delete from journaled as j using predictions.predictions as p
            where j.observation_id = p.observation_id and j.model_version = p.model_version
                and (p.mode = 'batch' or p.scored_at >= j.scored_at)
            """
        )
        connection.execute(
            """
            delete from predictions.predictions as p using journaled as j
            where p.mode = 'online' and j.observation_id = p.observation_id and j.model_version = p.model_version
            """
        )
        added = connection.execute(
            """
            insert into predictions.predictions by name
            select *, 'model' as kind, 'to_score' as split, null as built_through_batch, 'online' as mode from journaled
            """
        ).fetchone()
        connection.execute("drop table journaled")
    for path in files:
        path.unlink()
    return added[0] if added else 0


def actuals(feedback: Sequence[Any], now: datetime) -> list[dict[str, Any]]:
    """Records of the feedback journal, in the columns of an actuals file."""
    stamp = now.replace(tzinfo=None).isoformat(sep=" ", timespec="seconds")
    return [
        {
            "observation_id": f.observation_id,
            "price": f.price,
            "reported_at": f.reported_at or stamp,
            "source": "online",
        }
        for f in feedback
    ]
