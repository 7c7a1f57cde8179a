"""Answers as a response shows them: one object a row, in the order of the rows, errors among them."""

from __future__ import annotations

import math
from typing import Any

from ml.serving.bodies import Parsed
from ml.serving.engine import RANGES, Answers
from ml.serving.features import listed
from ml.serving.service import Priced


def presented(priced: Priced, first: int, places: list[int]) -> list[dict[str, Any]]:
    """Answers as the response shows them, in the order of the rows; ``places`` are theirs in the request."""
    out: list[dict[str, Any]] = [{}] * len(places)
    for answers, part, rows in priced.of(first, len(places)):
        at = rows.tolist()
        for i, shown in zip(at, _shown(answers, part, [places[i] for i in at]), strict=True):
            out[i] = shown
    return out


def _shown(answers: Answers, part: slice, places: list[int]) -> list[dict[str, Any]]:
    version = answers.version.model_version
    out = []
    for place, key, price, reasons, month, warnings, l50, u50, l80, u80, l95, u95, std, grade in zip(
        places,
        listed(answers.checked["observation_id"].slice(part.start, len(places))),
        answers.price[part].tolist(),
        answers.reasons[part],
        answers.encoding_month[part],
        answers.warnings[part],
        *(answers.ranges[name][part].tolist() for name in RANGES),
        strict=True,
    ):
        if reasons:
            error = {"detail": "there is no price for this row", "errors": [reason_of(reason) for reason in reasons]}
            out.append({"index": place, "observation_id": key, "error": error})
            continue
        intervals = None
        if not math.isnan(l50):
            intervals = {
                "50": {"lower": l50, "upper": u50},
                "80": {"lower": l80, "upper": u80},
                "95": {"lower": l95, "upper": u95},
            }
        out.append(
            {
                "index": place,
                "observation_id": key,
                "predicted_price": price,
                "intervals": intervals,
                "forecast_std_pct": std,
                "grade": grade,
                "model_version": version,
                "encoding_month": month,
                "warnings": warnings,
            }
        )
    return out


def merged(parsed: Parsed, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One answer a row, in order: prices and errors."""
    if not parsed.errors:
        return rows
    out: list[dict[str, Any]] = [{}] * parsed.n
    for row in rows:
        out[row["index"]] = row
    for i, errors in parsed.errors.items():
        out[i] = {"index": i, "error": {"detail": "the row does not fit the contract", "errors": errors}}
    return out


def reason_of(text: str) -> dict[str, str]:
    field, colon, problem_ = text.partition(":")
    return {"field": field, "reason": problem_.replace("_", " ")} if colon else {"field": "row", "reason": text}
