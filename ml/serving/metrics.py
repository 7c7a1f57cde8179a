"""What the API counts, under names that Prometheus users expect. Rules and a dashboard stand in deploy/monitoring."""

from __future__ import annotations

from collections import Counter as Counts

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from ml.serving.engine import Answers

BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2.5, 5, 10, 30)
ROWS = (1, 2, 4, 8, 16, 32, 64, 256, 1024, 4096, 16384)
#: Warnings that say that a row is unlike what the model learned from.
OUT_OF_RANGE = {"outside_training_range", "out_of_range", "unseen_value", "unseen_area", "unseen_locality"}


class Metrics:
    """All metrics of one app, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        ProcessCollector(registry=r)
        PlatformCollector(registry=r)
        GCCollector(registry=r)
        self.requests = Counter("http_requests", "Requests answered", ["method", "route", "status"], registry=r)
        self.seconds = Histogram(
            "http_request_duration_seconds", "Time to answer", ["route"], registry=r, buckets=BUCKETS
        )
        self.in_flight = Gauge("http_requests_in_flight", "Requests being answered", registry=r)
        self.model = Gauge("housing_model_info", "Versions that answer", ["model_version", "role"], registry=r)
        self.predictions = Counter(
            "housing_predictions", "Prices given, by grade", ["model_version", "role", "grade"], registry=r
        )
        self.refused = Counter("housing_rows_refused", "Rows without a price", ["why"], registry=r)
        self.out_of_range = Counter(
            "housing_predictions_out_of_range", "Priced rows unlike what the model learned from", registry=r
        )
        self.share = Gauge("housing_out_of_range_share", "Share of such rows since the start", registry=r)
        self.snapshot_age = Gauge("housing_snapshot_age_seconds", "Since the snapshot was published", registry=r)
        self.ready = Gauge("housing_ready", "1 when prices can be given", registry=r)
        self.swaps = Counter("housing_model_swaps", "Snapshots taken over or refused", ["result"], registry=r)
        self.swap_failed = Gauge("housing_swap_failed", "1 while the newest snapshot is refused", registry=r)
        self.feedback = Counter("housing_feedback_rows", "Prices reported back and on disk", registry=r)
        self.journal_failures = Counter(
            "housing_journal_failures", "Writes to a journal that failed", ["kind"], registry=r
        )
        self.batch = Histogram("housing_batch_rows", "Rows priced together", registry=r, buckets=ROWS)
        # from the start, so that a first failure is an increase
        for kind in ("predictions", "feedback"):
            self.journal_failures.labels(kind)
        for result in ("taken", "refused"):
            self.swaps.labels(result)
        self._priced = self._unlike = 0

    def count(self, answers: Answers, part: slice) -> None:
        """Count the answers to some rows of a served role; what a shadow says is only in the journal."""
        version, role = answers.version.model_version, answers.role
        priced = ~np.isnan(answers.price[part])
        n = int(priced.sum())
        for grade, graded in Counts((answers.ranges["grade"][part][priced]).tolist()).items():
            self.predictions.labels(version, role, grade or "none").inc(graded)
        if n < len(priced):
            self.refused.labels("no_price").inc(len(priced) - n)
        unlike = sum(
            1 for p, warnings in zip(priced.tolist(), answers.warnings[part], strict=True)
            if p and any(w["code"] in OUT_OF_RANGE for w in warnings)
        )  # fmt: skip
        self._priced += n
        self._unlike += unlike
        if unlike:
            self.out_of_range.inc(unlike)
        if self._priced:
            self.share.set(self._unlike / self._priced)
