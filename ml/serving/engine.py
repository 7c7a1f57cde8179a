"""One model version over one snapshot: rows in, prices with ranges, grades and warnings out.

Features are the bundle's SQL over the snapshot's encodings (``features.py``), ranges are dbt's (``intervals.py``). What
is done with an answer (journal, metrics, JSON) is not here; which version answers is decided in ``service.py``.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ml.bundle import NO_LEVEL, NO_SIZE, Bundle
from ml.contract import Contract
from ml.recent_errors import Corrections
from ml.registry import ModelVersion
from ml.serving.features import LANES, Encodings, Features, listed, taken
from ml.serving.intervals import RANGES, Ranges
from ml.serving.schemas import columns_of
from ml.serving.snapshot import Snapshot
from ml.serving.trees import Trees
from ml.warehouse import quoted

#: Earlier months whose encodings are kept ready; each costs some ten megabytes and a third of a second, on first use.
MONTHS_KEPT = 6
#: The same of recent errors, a few thousand sums.
ERRORS_KEPT = 60

CHECKED = ("observation_id", "observed_on", "month", "area", "locality", "reasons", "labels")
FOR_RANGES = ("target_offset", "persistence_price", "history_n")
ERROR_KEYS = "error_keys"
NO_RANGE = {
    "code": "no_range",
    "field": "row",
    "message": "too few errors of this version are known to make a range from",
}


@dataclass(frozen=True)
class Answers:
    """Answers to the rows of a request, in their order. Arrays and tables have one entry a row."""

    version: ModelVersion
    role: str
    checked: pa.Table
    """CHECKED"""
    features: pa.Table
    """FOR_RANGES and the model's features"""
    x: np.ndarray
    """float32, shape (n, features)"""
    filled: np.ndarray
    """where a median stands in it, bool of the same shape"""
    imputation_error: np.ndarray
    """mean absolute error of the log of the price that comes from medians, shape (n,)"""
    recent_error: np.ndarray
    """what recent errors add to the log of the price, shape (n,)"""
    price: np.ndarray
    """NaN where ``reasons`` says why there is none"""
    reasons: list[list[str]]
    ranges: dict[str, np.ndarray]
    encoding_month: list[date | None]
    warnings: list[list[dict[str, str]]]

    def take(self, places: Sequence[int]) -> Answers:
        """The answers to some of the rows."""
        at = np.array(places, dtype=np.int64)
        return replace(
            self,
            checked=self.checked.take(at),
            features=self.features.take(at),
            x=self.x[at],
            filled=self.filled[at],
            imputation_error=self.imputation_error[at],
            recent_error=self.recent_error[at],
            price=self.price[at],
            reasons=[self.reasons[i] for i in places],
            ranges={name: values[at] for name, values in self.ranges.items()},
            encoding_month=[self.encoding_month[i] for i in places],
            warnings=[self.warnings[i] for i in places],
        )


class Engine:
    """A loaded version. Safe to use from several threads."""

    def __init__(self, contract: Contract, snapshot: Snapshot, version: ModelVersion, bundle: Bundle) -> None:
        if bundle.model_version != version.model_version or bundle.dataset != contract.name:
            raise ValueError(
                f"the bundle is {bundle.dataset} {bundle.model_version}, not {contract.name} {version.model_version}"
            )
        self.contract, self.snapshot, self.version, self.bundle = contract, snapshot, version, bundle
        self.month = snapshot.newest_month()
        self._observed = next((c for c in contract.sources.values() if c.name == contract.observed_on), None)
        self._given = pa.struct(
            [
                (c.name, pa.float64() if c.type == "number" else pa.string())
                for c in contract.sources.values()
                if c.role not in {"price", "leak"}
            ]
        )
        """What a row may say; the price and what leaks it is not among it."""
        self._schema = self._raw([]).schema
        self._newest = Encodings(snapshot.encodings(contract, self.month))
        unseen = snapshot.unseen()
        self._kept: OrderedDict[date, Encodings] = OrderedDict()
        self._kept_lock, self._loading = threading.Lock(), threading.Lock()
        self._plans: queue.LifoQueue[Features] = queue.LifoQueue()
        for _ in range(LANES):
            self._plans.put(self._planned(unseen))
        self._trees = Trees(bundle.booster)
        with_errors = snapshot.table(
            "select distinct month from predictions.recent_errors where model_version = $version",
            {"version": version.model_version},
        )
        self._with_errors = {*with_errors["month"].to_pylist()}
        self._corrections = lru_cache(ERRORS_KEPT)(partial(_corrections, contract, snapshot, version))
        self._known = _Known(contract, snapshot, version, bundle)
        calibration = snapshot.table(
            "select * from predictions.interval_calibration where model_version = $version",
            {"version": version.model_version},
        )
        grades = snapshot.table("from predictions.confidence_grades")
        self._ranges = Ranges(calibration, grades)

    def answer(self, rows: Sequence[dict[str, Any]], role: str) -> Answers:
        """Answers to rows whose keys are the contract's column names. A row without a price says why."""
        raw = self._raw(rows)
        with taken(self._plans) as plan:
            checked = plan.checked(raw)
            months: list[date | None] = listed(checked["month"])
            features = self._features(plan, checked, months)
        offset = features["target_offset"].to_numpy().astype(np.float64)
        reasons = _reasons(checked, offset, self.contract.size)
        checked = checked.select(CHECKED)
        x, filled = self.bundle.matrix(features)
        imputation_error = self.bundle.imputation.error(filled)
        usable = np.array([not r for r in reasons], dtype=bool)
        encoded = [m if m is None or self.month is None else min(m, self.month) for m in months]
        recent_error = self._recent_errors(features, encoded)
        price = np.full(len(x), np.nan)
        if usable.any():
            scores = self._trees.predict(x[usable]).astype(np.float64)
            price[usable] = np.exp(scores + offset[usable] + recent_error[usable])
        ranges = self._ranges_of(checked, features, price, imputation_error)
        warnings = self._known.warnings(checked, x, filled, encoded=encoded, months=months, newest=self.month)
        for i in np.flatnonzero(~np.isnan(price) & np.isnan(ranges["forecast_std_pct"])):
            warnings[i].append(NO_RANGE)
        return Answers(
            version=self.version,
            role=role,
            checked=checked,
            features=features,
            x=x,
            filled=filled,
            imputation_error=imputation_error,
            recent_error=recent_error,
            price=price,
            reasons=reasons,
            ranges=ranges,
            encoding_month=encoded if self.month else [None] * len(months),
            warnings=warnings,
        )

    def _raw(self, rows: Sequence[dict[str, Any]]) -> pa.Table:
        """Rows under the headers of the landed files. What a request need not say is null, as in a file."""
        given = pa.array(rows, self._given)
        columns = dict(zip(self._given.names, given.flatten(), strict=True))
        nothing = pa.nulls(len(rows), pa.string())
        return pa.table({header: columns.get(c.name, nothing) for header, c in self.contract.sources.items()})

    def waits(self, rows: Sequence[dict[str, Any]]) -> bool:
        """Whether rows are of earlier months that are not ready yet: their answer takes long. A cheap look."""
        if self._observed is None:
            return False
        dates = {row.get(self._observed.name) for row in rows}
        months = [_month_of(text, self._observed.format) for text in dates]
        return any(self._is_past(m) and m not in self._kept for m in months)

    def _is_past(self, month: date | None) -> bool:
        return month is not None and self.month is not None and month < self.month

    def _planned(self, unseen: pa.Table) -> Features:
        keys = [ERROR_KEYS] if self.contract.recent_errors else []
        outputs = [*FOR_RANGES, *keys, *self.bundle.features_used]
        return Features(self.bundle, self._newest, unseen, self._schema, checks=CHECKED, outputs=outputs)

    def _features(self, plan: Features, checked: pa.Table, months: Sequence[date | None]) -> pa.Table:
        """Features of checked rows, with the encodings of their months."""
        earlier = {m for m in months if m and self._is_past(m)}
        if not earlier:
            return plan.of(checked, self._newest)
        cold = {m for m in earlier if m not in self._kept}
        kept = {m: self._of_month(m) for m in (earlier if len(cold) == 1 else earlier - cold)}
        # of many months only what the rows ask for is read, in one pass
        group = dict.fromkeys(cold, -1) | {m: i for i, m in enumerate(kept, start=1)}
        groups = np.array([group.get(m, 0) if m else 0 for m in months])
        places, parts = [], []
        for i, encodings in enumerate([self._newest, *kept.values(), None]):
            place = np.flatnonzero(groups == (i if encodings else -1))
            if len(place):
                part = checked.take(place)
                parts.append(plan.of(part, encodings or Encodings(self.snapshot.encodings_of(plan.wanted(part)))))
                places.append(place)
        return pa.concat_tables(parts).take(np.argsort(np.concatenate(places))).combine_chunks()

    def _of_month(self, month: date) -> Encodings:
        with self._kept_lock:
            if found := self._kept.get(month):
                self._kept.move_to_end(month)
                return found
        # one at a time: who asks for the past can wait
        with self._loading:
            found = self._kept.get(month) or Encodings(self.snapshot.encodings(self.contract, month))
            with self._kept_lock:
                self._kept[month] = found
                while len(self._kept) > MONTHS_KEPT:
                    self._kept.popitem(last=False)
            return found

    def _recent_errors(self, features: pa.Table, months: Sequence[date | None]) -> np.ndarray:
        """What recent errors add to the log of each row's price; 0 where none are carried over."""
        out = np.zeros(len(months))
        if self.contract.recent_errors:
            for month in self._with_errors.intersection(months):
                place = np.array([i for i, m in enumerate(months) if m == month])
                out[place] = self._corrections(month).of(features[ERROR_KEYS].take(place))
        return out

    def _ranges_of(
        self, checked: pa.Table, features: pa.Table, price: np.ndarray, imputation_error: np.ndarray
    ) -> dict[str, np.ndarray]:
        rows = pa.table(
            {name: checked[name] for name in ("month", "area")}
            | {name: features[name] for name in FOR_RANGES}
            | {"predicted_price": pa.array(price, from_pandas=True), "imputation_error": pa.array(imputation_error)}
        )
        return self._ranges.of(rows)


@lru_cache(4_096)
def _month_of(text: str | None, date_format: str | None) -> date | None:
    try:
        return datetime.strptime(text or "", date_format or "%Y-%m-%d").date().replace(day=1)
    except ValueError:  # the bundle's SQL says what is wrong with it
        return None


def _corrections(contract: Contract, snapshot: Snapshot, version: ModelVersion, month: date) -> Corrections:
    assert contract.recent_errors is not None  # nobody asks without
    sums = snapshot.table(
        "from predictions.recent_errors where model_version = $version and month = $month",
        {"version": version.model_version, "month": month},
    )
    return Corrections(contract.recent_errors, sums)


class _Known:
    """What the version learned from: areas, localities and the range of each number, for warnings only."""

    def __init__(self, contract: Contract, snapshot: Snapshot, version: ModelVersion, bundle: Bundle) -> None:
        learned = (
            f"month <= date '{version.trained_through}' and price is not null"
            if version.trained_through
            else "split = 'train'"
        )
        numbers = {c.name for c in contract.columns if c.type == "number" and c.role == "feature"}
        # canonical columns under the request's names, where one field of it is what they hold
        named = {"area": contract.area, "locality": contract.locality, "month": contract.observed_on}
        asked = {c.name for c in columns_of(contract)}
        self._fields = {name: field if field in asked else name for name, field in named.items()}
        self._place = {name: j for j, name in enumerate(bundle.features_used)}
        self._numbers = [name for name in bundle.features_used if name in numbers]
        # field of a request, and the first feature that is made of nothing else
        self._optional = [
            (c.name, self._place[found[0]])
            for c in contract.columns
            if not c.required and (found := [f for f in c.own_features if f in self._place])
        ]
        limits = ", ".join(f"min({quoted(n)}), max({quoted(n)})" for n in self._numbers) or "1"
        found = snapshot.table(f"select {limits} from training.training_dataset where {learned}").to_pydict()
        values = [column[0] for column in found.values()]
        self._low = np.array([_number(v) for v in values[0 : 2 * len(self._numbers) : 2]], dtype=np.float32)
        self._high = np.array([_number(v) for v in values[1 : 2 * len(self._numbers) : 2]], dtype=np.float32)
        self._places = {
            name: set(
                snapshot.table(f"select distinct {name} from training.training_dataset where {learned}")[
                    name
                ].to_pylist()
            )
            for name in ("area", "locality")
        }

    def warnings(
        self,
        checked: pa.Table,
        x: np.ndarray,
        filled: np.ndarray,
        *,
        encoded: list[date | None],
        months: list[date | None],
        newest: date | None,
    ) -> list[list[dict[str, str]]]:
        """A list for each row; most are empty, so that only rows with something to say are looked at."""
        out: list[list[dict[str, str]]] = [[] for _ in range(len(x))]

        def tell(i: int, code: str, field: str, message: str) -> None:
            out[i].append({"code": code, "field": field, "message": message})

        for name, known in self._places.items():
            for i, value in enumerate(listed(checked[name])):
                if value not in known:
                    tell(i, f"unseen_{name}", self._fields[name], f"the model has not seen this {name}")
        unused = set()
        for i in np.flatnonzero(pc.list_value_length(checked["labels"]).to_numpy() > 0):  # pyright: ignore
            for label in checked["labels"][int(i)].as_py():
                field, _, problem = label.partition(":")
                tell(int(i), problem, field, f"the value of {field} is not used: {problem.replace('_', ' ')}")
                unused.add((i, field))
        numbers = x[:, [self._place[n] for n in self._numbers]]
        for i, j in zip(*np.nonzero((numbers < self._low) | (numbers > self._high)), strict=True):
            low, high = self._low[j], self._high[j]
            tell(i, "outside_training_range", self._numbers[j], f"the model learned from {low:g} to {high:g}")
        optional = [place for _, place in self._optional]
        missing = np.isnan(x[:, optional]) | filled[:, optional]
        for i, j in zip(*np.nonzero(missing), strict=True):
            name, place = self._optional[j]
            if (i, name) not in unused:
                usual = f"its median, {x[i, place]:g}," if name in self._numbers else "what is usual"
                instead = f"{usual} takes its place" if filled[i, place] else "the model does without it"
                tell(i, "missing_feature", name, f"not given; {instead}")
        for i, (month, used) in enumerate(zip(months, encoded, strict=True)):
            if month and used and month > used and newest:
                tell(
                    i,
                    "older_encodings",
                    self._fields["month"],
                    f"prices are known up to the month before {newest:%Y-%m}",
                )
        return out


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _reasons(checked: pa.Table, offset: np.ndarray, size: str | None) -> list[list[str]]:
    """A list for each row; most are empty, so that only rows with something to say are looked at.

    ``size`` is the column that price levels are per unit of.
    """
    out: list[list[str]] = [[] for _ in offset]
    ruled_out = pc.list_value_length(checked["reasons"]).to_numpy() > 0  # pyright: ignore
    for i in np.flatnonzero(ruled_out | np.isnan(offset)):
        known = size is None or (checked[size][int(i)].as_py() or 0) > 0
        out[i] = checked["reasons"][int(i)].as_py() or [NO_LEVEL if known else NO_SIZE.format(size=size)]
    return out


__all__ = ["CHECKED", "RANGES", "Answers", "Engine"]
