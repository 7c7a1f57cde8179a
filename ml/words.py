"""Values as words: numbers, bands, states, features and series, the same in the report and in the dashboard.

What stands on a page is decided in ``ml/report.py`` and ``ml/dashboard``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date
from typing import Any

from ml.contract import Contract, add_months, slug

#: Month of everything that has no date.
UNDATED = date(1970, 1, 1)

#: Stands where there is no value.
MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"

STATUS_WORDS = {"pass": "pass", "warn": "warning", "fail": "fail", "insufficient_data": "too few rows"}


def counted(n: int, noun: str) -> str:
    """``1 month``, ``1,234 months``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def learned(version: Mapping[str, Any]) -> tuple[int, date | None]:
    """How many rows a version learned from, and the last month of them; ``version`` is of ``training.model_versions``.

    With ``refit`` those of its evaluation, too: then what is shipped is another model than the one that was evaluated.
    """
    if version["model_sha256"] != version["evaluated_sha256"]:
        return version["n_train"] + version["n_eval"], version["trained_through"]
    eval_from = version["eval_from"]
    return version["n_train"], add_months(eval_from, -1) if eval_from else None


def feature_label(contract: Contract, feature: str) -> str:
    """A feature's name as words, for example ``past price: town, 3 months``; other names come back as they are."""
    labels = {"month_of_year": "month of the year", "(recent errors)": "recent errors of like homes"}
    for c in contract.columns:
        name = c.name.replace("_", " ")
        labels |= {c.name: name, f"{c.name}_to_level": f"{name} against the price level"}
        labels |= {f"{c.name}_is_{slug(value)}": f"{name} is {value}" for value in c.values}
    for e in contract.encodings:
        first, last = e.months_back
        columns = [{"area": contract.area, "locality": contract.locality}.get(key, key) for key in e.key_words]
        where = " + ".join(column.replace("_", " ") for column in columns) or "whole market"
        span = f"{counted(last, 'month')} before" if first == last else f"months {first} to {last} before"
        span = counted(last, "month") if first == 1 else span
        labels[f"{e.name}_to_level"] = f"past price: {where}, {span}"
        labels[f"{e.name}_n"] = f"past sales: {where}, {span}"
        labels[f"{e.name}_frequency"] = f"share of sales: {where}, {span}"
        labels |= {f"{e.name}_change_{m}m": f"price change over {counted(m, 'month')}: {where}" for m in e.changes}
        if e.differs_in:
            labels[f"{e.name}_{e.differs_in}_difference"] = f"{e.differs_in.replace('_', ' ')} against past: {where}"
    return labels.get(feature, feature)


def series_label(version: str) -> str:
    """``model_version`` of a table row as words."""
    words = {"linear": "straight line", "median": "median price", "persistence": "last known price"}
    if version == "last_year":
        return "price a year ago"
    return words.get(version.partition("_")[0], f"model {version}")


def band(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return MISSING
    if low is None or high is None:
        text = f"at most {high:g}" if low is None else f"at least {low:g}"
    else:
        text = f"{low:g} to {high:g}"
    return text.replace("-", MINUS)


def amount_digits(value: float | None) -> int:
    """Digits behind the point that an amount of money is told with: none from 100 on, below so many that it has three.

    Prices may be rents of a square metre, or be given in millions.
    """
    if not value or not math.isfinite(value):
        return 0
    return min(9, max(0, 2 - math.floor(math.log10(abs(value)))))


def amount(value: float | None, *, sign: bool = False) -> str:
    """An amount of money as ``number`` with ``amount_digits``."""
    return number(value, amount_digits(value), sign=sign)


def number(value: float | None, digits: int = 0, *, sign: bool = False) -> str:
    """Thousands separators and a fixed number of digits; a dash where there is no value."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"
    # -0.00 is no change
    text = text.lstrip("+-") if not text.strip("+-0.,") else text
    return text.replace("-", MINUS)
