"""What is remembered while the API answers: feedback before it is acknowledged, predictions each second.

How a journal is written and read is in ``journal.py``; here is when, and what happens where it cannot be.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

from ml.serving import journal
from ml.serving.engine import Answers
from ml.serving.features import listed
from ml.serving.folders import journals
from ml.serving.metrics import Metrics
from ml.serving.problems import ProblemError
from ml.serving.settings import ApiSettings
from ml.settings import Settings

log = logging.getLogger("housing.api")

#: Feedback that could not be landed is tried again after so long at most.
LAND_AGAIN_S = 60.0


class Recorder:
    """Both journals of a running API, written by one thread. The asynchronous methods belong to one event loop."""

    def __init__(self, settings: Settings, api: ApiSettings, metrics: Metrics) -> None:
        self.settings, self.api, self.metrics = settings, api, metrics
        self._told: list[tuple[list[dict[str, Any]], asyncio.Future[None]]] = []
        self._told_wake = asyncio.Event()
        self._journaled: list[dict[str, Any]] = []
        self._land_at = math.inf
        self._disk = ThreadPoolExecutor(1, "journal")

    def open(self) -> None:
        """Begin new files; what a process before this one left open is closed by ``write_feedback``."""
        limits = {"rotate_bytes": self.api.rotate_bytes, "rotate_s": self.api.rotate_s}
        self._predictions = journal.Journal(journals(self.settings, "predictions"), **limits)
        self._feedback = journal.Journal(journals(self.settings, "feedback"), **limits)

    async def close(self) -> None:
        """Write and close what is open. Nothing is told or noted any more when this is called."""
        await asyncio.get_running_loop().run_in_executor(self._disk, self._close)
        await asyncio.to_thread(self._disk.shutdown)

    async def feedback(self, records: list[dict[str, Any]]) -> None:
        """Returns when the records are on disk. Raises ProblemError when they cannot be written."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._told.append((records, future))
        self._told_wake.set()
        await future

    async def write_feedback(self) -> None:
        """Write what is told, all of a moment with one fsync, and land it; for as long as the API runs."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._disk, self._land)
        while True:
            try:
                await asyncio.wait_for(self._told_wake.wait(), self.api.flush_s)
            except TimeoutError:
                await loop.run_in_executor(self._disk, self._rotate_feedback)
                continue
            self._told_wake.clear()
            told, self._told = self._told, []
            records = [r for part, _ in told for r in part]
            try:
                await loop.run_in_executor(self._disk, self._feedback.append, records)
            except Exception as error:  # whoever told it waits for an answer
                self._lost("feedback", "feedback cannot be written", error)
                for _, future in told:
                    if not future.done():
                        future.set_exception(ProblemError(503, "the feedback could not be written; send it again"))
                continue
            self.metrics.feedback.inc(len(records))
            for _, future in told:
                if not future.done():
                    future.set_result(None)
            await loop.run_in_executor(self._disk, self._rotate_feedback)

    async def write_predictions(self) -> None:
        """Write what was noted, each second; for as long as the API runs."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.api.flush_s)
            await loop.run_in_executor(self._disk, self._flush)

    def note(self, answers: Answers, request_ids: list[str], now: datetime) -> None:
        """Journal prices that were just answered; returns at once."""
        self._disk.submit(self._note, answers, request_ids, now)

    def _note(self, answers: Answers, request_ids: list[str], now: datetime) -> None:
        # at once: answers are megabytes, and letting go of a second's answers together would stop all requests
        try:
            self._journaled += _records(answers, request_ids, now)
        except Exception as error:  # nobody asks for the result of this job, so it says itself what went wrong
            self._lost("predictions", "predictions cannot be journaled", error)

    def _flush(self) -> None:
        records, self._journaled = self._journaled, []
        try:
            self._predictions.append(records)
            self._predictions.rotate()
        except Exception as error:  # nor for that of this one
            self._lost("predictions", "predictions cannot be written", error)

    def _rotate_feedback(self, *, force: bool = False) -> None:
        try:
            closed = self._feedback.rotate(force=force)
        except OSError as error:  # what was told is on disk, and the next second tries again
            self._lost("feedback", "a feedback file cannot be closed", error)
        else:
            if closed or time.monotonic() >= self._land_at:
                self._land()

    def _land(self) -> None:
        self._land_at = math.inf
        try:
            count = self.metrics.journal_failures.labels("feedback").inc
            for path in journal.land_feedback(self.settings, unreadable=count):
                log.info("feedback landed as %s", path.name)
        except Exception as error:  # the files stand where they are
            self._lost("feedback", "feedback cannot be landed", error)
            self._land_at = time.monotonic() + min(self.api.rotate_s, LAND_AGAIN_S)

    def _lost(self, kind: str, what: str, error: Exception) -> None:
        self.metrics.journal_failures.labels(kind).inc()
        log.error("%s: %s", what, error, exc_info=not isinstance(error, OSError))

    def _close(self) -> None:
        self._flush()
        try:
            self._predictions.rotate(force=True)
        except OSError as error:
            self._lost("predictions", "a predictions file cannot be closed", error)
        self._rotate_feedback(force=True)


def _records(answers: Answers, request_ids: list[str], now: datetime) -> list[dict[str, Any]]:
    """Records of the prediction journal, ``journal.PREDICTION``; only rows with a price and a month."""
    version, role = answers.version.model_version, answers.role
    scored_at = now.replace(tzinfo=None).isoformat(sep=" ")
    names = ("observation_id", "observed_on", "month", "area", "locality")
    return [
        {
            "observation_id": key, "observed_on": observed_on, "month": month, "area": area, "locality": locality,
            "model_version": version, "role": role, "scored_at": scored_at, "predicted_price": price,
            "imputation_error": imputation_error, "run_id": request_id,
        }
        for key, observed_on, month, area, locality, price, imputation_error, request_id in zip(
            *(listed(answers.checked[name]) for name in names), answers.price.tolist(),
            answers.imputation_error.tolist(), request_ids, strict=True
        )
        if not math.isnan(price) and month
    ]  # fmt: skip
