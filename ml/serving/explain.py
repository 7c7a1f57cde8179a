"""Why a requested price is what it is: contributions in currency and comparable sales, for rows just priced.

The method is that of the batch (``ml/explain.py``, ``ml/comparables.py``); sales are read from the snapshot.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa

from ml import comparables
from ml.explain import contributions, parts
from ml.serving.engine import Answers, Engine

#: Sales of so many areas and months are kept; a large area takes some megabytes.
KEPT = 24


class Explainer:
    """Explains answers of one engine. Safe to use from several threads."""

    def __init__(self, engine: Engine, threads: int) -> None:
        self._engine, self._threads = engine, threads
        self._sales: OrderedDict[tuple[str, date], comparables.Homes] = OrderedDict()
        self._lock = threading.Lock()
        with contextlib.closing(engine.snapshot.warehouse_cursor()) as connection:
            self._market = comparables.market_levels(connection, engine.contract)

    def explain(self, answers: Answers) -> list[dict[str, Any]]:
        """``contributions`` and ``comparables`` of each row; empty for a row without a price."""
        out: list[dict[str, Any]] = [{} for _ in answers.price]
        priced = np.flatnonzero(~np.isnan(answers.price))
        if not len(priced):
            return out
        bundle = self._engine.bundle
        x = answers.x[priced]
        offset = answers.features["target_offset"].to_numpy()[priced]
        recent_error = answers.recent_error[priced] if self._engine.contract.recent_errors else None
        amounts = contributions(bundle, x, offset, recent_error, threads=self._threads)
        names = parts(bundle, self._engine.contract)
        for k, i in enumerate(priced):
            order = np.argsort(-np.abs(amounts[k, :-1]), kind="stable")
            values = [None if np.isnan(v) else float(v) for v in np.where(answers.filled[i], np.nan, x[k])]
            values += [None] * (len(names) - len(values))
            out[i]["contributions"] = [
                {"feature": names[j], "contribution": float(amounts[k, j]), "value": values[j]}
                for j in (len(names) - 1, *order)
            ]
            out[i]["comparables"] = self._comparables(answers, int(i))
        return out

    def _comparables(self, answers: Answers, i: int) -> list[dict[str, Any]]:
        engine, contract = self._engine, self._engine.contract
        month: date = answers.checked["month"][i].as_py()
        area: str = answers.checked["area"][i].as_py() or "unknown"
        known = min(month, max(self._market)) if self._market else month
        subject = pa.table(
            {
                "observation_id": [answers.checked["observation_id"][i].as_py()],
                "month": [month],
                "area": [area],
                "price": pa.array([None], pa.float64()),
                "market": pa.array([self._market.get(known)], pa.float64()),
            }
        )
        homes = comparables.Homes(subject, comparables.leaves_of(engine.bundle, answers.x[i : i + 1]))
        found = comparables.find(homes, self._sales_of(area, month), contract, month, threads=1)
        rows = found.drop_columns(["observation_id", "rank"]).to_pylist()
        # where nobody knows when a home was sold, every one stands in the same made-up month
        return rows if contract.observed_on else [{**row, "sold_month": None} for row in rows]

    def _sales_of(self, area: str, month: date) -> comparables.Homes:
        with self._lock:
            key = (area, month)
            found = self._sales.pop(key, None)
            if found is None:
                with contextlib.closing(self._engine.snapshot.warehouse_cursor()) as connection:
                    found = comparables.sales(connection, self._engine.bundle, self._engine.contract, [month], area)
            self._sales[key] = found
            while len(self._sales) > KEPT:
                self._sales.popitem(last=False)
            return found
