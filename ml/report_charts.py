"""Figures of the monthly report as inline SVG. Each takes rows that SQL made and returns ``<svg>`` text.

No figure is computed here: the queries stand in ``ml/report.py``. The same rows give the same bytes: no dates, no
random ids. Text stays text, so that it can be read aloud, searched and drawn in the page's own font.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from math import cos, radians
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ml.plots import BLUE, INK, ORANGE

Rows = Sequence[dict[str, Any]]

GREY, PALE, GRID = "#8a949e", "#e9eef2", "#e3e7ea"
#: Blue: predicted too low; orange: too high. Lightness alone tells how far, blue and orange differ for all eyes.
DIVERGING = ["#174a73", "#4f86b0", "#a9c6db", "#e4e2dc", "#efc193", "#dd8a45", "#a34f12"]
#: Bounds of the classes of DIVERGING, percent of the price; the outer two are open.
DIVERGING_BOUNDS = [-10, -5, -2, 2, 5, 10]
#: 420 px: two beside each other on a screen, one on a phone with letters that can still be read.
WIDTH = 4.4

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "housing",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.labelsize": 8.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
}


def accuracy_over_time(rows: Rows, *, month: Any) -> str:
    """MdAPE (percent) by month: the model against three baselines, ``month`` marked, the eval window shaded."""
    looks = {
        "model": ("model", BLUE, "-", 2.4, "o"),
        "linear": ("straight line", ORANGE, "--", 1.5, ""),
        "persistence": ("last known price", INK, "-.", 1.3, ""),
        "last_year": ("price a year ago", GREY, ":", 1.8, ""),
    }

    def draw(axes: Axes) -> None:
        for name, (label, colour, line, width, marker) in looks.items():
            points = [(r["month"], r["mdape_pct"]) for r in rows if r["series"] == name]
            if points:
                # a month on its own has no line to be seen by
                shown = marker or ("s" if len(points) == 1 else "")
                axes.plot(*zip(*points, strict=True), line, color=colour, lw=width, label=label, marker=shown, ms=3.2)
        evaluated = [r["month"] for r in rows if r["series"] == "model" and r["split"] == "eval"]
        if evaluated:
            axes.axvspan(min(evaluated), max(evaluated), color=PALE, zorder=0, lw=0, label="evaluation")
        axes.axvline(month, color=INK, lw=1, alpha=0.55, zorder=1)
        chosen = [r["mdape_pct"] for r in rows if r["series"] == "model" and r["month"] == month]
        if chosen:
            axes.plot([month], chosen, "o", ms=9, mfc="white", mec=BLUE, mew=2.4, zorder=5)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("median absolute error, %")
        axes.grid(axis="y")
        locator = mpl.dates.AutoDateLocator(minticks=3, maxticks=7)  # pyright: ignore[reportAttributeAccessIssue]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(mpl.dates.ConciseDateFormatter(locator))  # pyright: ignore
        _legend(axes)

    return _svg(draw, 3.3, "Median absolute error by month, model and baselines")


def ratio_by_decile(rows: Rows, *, month_label: str, whole_label: str | None) -> str:
    """Median ratio by price decile of the month and, where it has a label, of the whole split; band 0.95 to 1.05."""

    def draw(axes: Axes) -> None:
        axes.axhspan(0.95, 1.05, color=PALE, zorder=0, lw=0, label="0.95 to 1.05")
        axes.axhline(1, color=GREY, lw=1)
        looks = [("whole_ratio", whole_label, ORANGE, "--", "s", 4.5), ("month_ratio", month_label, BLUE, "-", "o", 6)]
        for key, label, colour, line, marker, size in looks:
            points = [(r["price_decile"], r[key]) for r in rows if r[key] is not None]
            if points and label:
                axes.plot(
                    *zip(*points, strict=True),
                    line,
                    color=colour,
                    marker=marker,
                    ms=size,
                    mec="white",
                    lw=1.5,
                    label=label,
                )
        axes.set_xticks(range(1, 11), ["1\ncheapest", *map(str, range(2, 10)), "10\ndearest"])
        axes.set_xlim(0.5, 10.5)
        values = [r[key] for r in rows for key in ("month_ratio", "whole_ratio") if r[key] is not None]
        axes.set_ylim(min(0.92, *values) - 0.01, max(1.08, *values) + 0.01)
        axes.set_ylabel("predicted price / price paid")
        _legend(axes)

    return _svg(draw, 3.1, "Median ratio of predicted price to price paid by price decile")


def coverage_by_grade(rows: Rows) -> str:
    """Coverage of the 50, 80 and 95 % ranges by group; bars: where chance alone lets it fall (two standard errors)."""
    groups = list(dict.fromkeys(r["label"] for r in rows))
    looks = {50: (ORANGE, "s", -0.2), 80: (BLUE, "o", 0.0), 95: (INK, "D", 0.2)}

    def draw(axes: Axes) -> None:
        for level, (colour, marker, aside) in looks.items():
            axes.axhline(level, color=colour, lw=0.9, ls=(0, (4, 3)), alpha=0.7)
            mine = [r for r in rows if r["level_pct"] == level]
            at = [groups.index(r["label"]) + aside for r in mine]
            axes.bar(
                at,
                [r["chance_high"] - r["chance_low"] for r in mine],
                bottom=[r["chance_low"] for r in mine],
                width=0.19,
                color=colour,
                alpha=0.22,
            )
            axes.plot(
                at, [r["coverage_pct"] for r in mine], marker, color=colour, mec="white", ms=7, label=f"{level} % range"
            )
        axes.set_xticks(range(len(groups)), groups)
        axes.set_xlim(-0.5, len(groups) - 0.5)
        axes.set_ylim(min([40, *(r["coverage_pct"] - 3 for r in rows)]), 102)
        axes.set_ylabel("prices within their range, %")
        _legend(axes)

    return _svg(draw, 3.3, "Share of prices within their predicted range by confidence grade")


def coverage_by_area(rows: Rows) -> str:
    """Coverage of the 80 % range by area, lowest on top; bars: where chance alone lets it fall."""
    rows = list(reversed(rows))

    def draw(axes: Axes) -> None:
        at = range(len(rows))
        axes.barh(
            at,
            [r["chance_high"] - r["chance_low"] for r in rows],
            left=[r["chance_low"] for r in rows],
            height=0.62,
            color=PALE,
            label="expected by chance",
        )
        axes.axvline(80, color=GREY, lw=1, ls=(0, (4, 3)))
        looks = [
            (("pass",), "o", BLUE, "pass"),
            (("warn", "fail"), "D", ORANGE, "warning or fail"),
            (("insufficient_data",), "o", GREY, "too few rows"),
        ]
        for statuses, marker, colour, label in looks:
            mine = [(r["coverage_pct"], y) for y, r in zip(at, rows, strict=True) if r["status"] in statuses]
            if mine:
                axes.plot(*zip(*mine, strict=True), marker, color=colour, mec="white", ms=6, ls="", label=label)
        _names(axes, [r["area"] for r in rows])
        axes.set_xlabel("prices within their 80 % range, %")
        axes.grid(axis="x")
        _legend(axes)

    return _svg(draw, 1.1 + 0.21 * len(rows), "Coverage of the 80 % range by area")


def error_by_area(rows: Rows, *, least_n: float) -> str:
    """MdAPE (percent) by area, largest on top; areas with fewer than ``least_n`` prices are pale."""
    rows = list(reversed(rows))

    def draw(axes: Axes) -> None:
        for few, colour, label in ((False, BLUE, "error"), (True, "#b9cfe0", f"fewer than {least_n:.0f} prices")):
            mine = [(y, r) for y, r in enumerate(rows) if (r["n"] < least_n) is few]
            if mine:
                axes.barh(
                    [y for y, _ in mine], [r["mdape_pct"] for _, r in mine], height=0.66, color=colour, label=label
                )
        for y, r in enumerate(rows):
            axes.annotate(
                f"{r['mdape_pct']:.1f}", (r["mdape_pct"], y), (3, 0), textcoords="offset points", va="center", size=7.5
            )
        _names(axes, [r["area"] for r in rows])
        axes.set_xlim(0, 1.12 * max(r["mdape_pct"] for r in rows) or 1)
        axes.set_xlabel("median absolute error, %")
        _legend(axes)

    return _svg(draw, 1.1 + 0.21 * len(rows), "Median absolute error by area")


def residual_map(rows: Rows) -> str:
    """Median residual (percent of the price) of each grid cell; area of a dot grows with its prices."""

    def draw(axes: Axes) -> None:
        bounds = [float("-inf"), *DIVERGING_BOUNDS, float("inf")]
        for colour, low, high in zip(DIVERGING, bounds, bounds[1:], strict=False):
            mine = [r for r in rows if low <= r["pct_error"] < high]
            axes.scatter(
                [r["longitude"] for r in mine],
                [r["latitude"] for r in mine],
                s=[8 + 3 * min(r["n"], 20) for r in mine],
                c=colour,
                edgecolors="#7c858d",
                linewidths=0.35,
                label=_class_label(low, high),
            )
        middle = sum(r["latitude"] for r in rows) / len(rows)
        axes.set_aspect(1 / cos(radians(middle)), adjustable="datalim")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_facecolor("#f6f8f9")
        handles, labels = axes.get_legend_handles_labels()
        key = axes.figure.legend(  # pyright: ignore[reportAttributeAccessIssue]
            handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8, handletextpad=0.1,
            columnspacing=1.0, title="predicted too low (blue) or too high (orange), % of the price", title_fontsize=8,
        )  # fmt: skip
        for handle in key.legend_handles:
            handle.set_sizes([36])  # pyright: ignore

    return _svg(draw, 3.7, "Map of the median residual")


def importance(rows: Rows) -> str:
    """Mean absolute contribution (percent of each price) of the features, a tick where it was the month before."""
    rows = list(reversed(rows))

    def draw(axes: Axes) -> None:
        at = range(len(rows))
        axes.barh(at, [r["share_pct"] for r in rows], height=0.36, color=BLUE, label="this month")
        before = [(r["before_pct"], y) for y, r in zip(at, rows, strict=True) if r["before_pct"] is not None]
        if before:
            axes.plot(*zip(*before, strict=True), "|", color=ORANGE, ms=11, mew=2.2, ls="", label="the month before")
        for y, r in zip(at, rows, strict=True):
            axes.annotate(_short(r["label"], 62), (0, y), (0, 11), textcoords="offset points", va="center", size=8.5)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0, 1.05 * max(*(r["share_pct"] for r in rows), *(x for x, _ in before), 0) or 1)
        axes.set_ylim(-0.6, len(rows) - 0.2)
        axes.set_xlabel("moves a price by, % on average")
        _legend(axes)

    return _svg(draw, 1.0 + 0.36 * len(rows), "Importance of the features")


def price_strip(miss: dict[str, Any]) -> str:
    """One line of a price: 80 % range (bar), prediction (tick), price paid (dot) and comparables (open dots)."""
    points = [miss[k] for k in ("lower_80", "upper_80", "predicted_price", "actual_price") if miss[k] is not None]
    points += [c["adjusted_price"] for c in miss["comparables"]]
    low, span = min(points), (max(points) - min(points)) or 1.0

    def x(price: float) -> str:
        return f"{8 + 384 * (price - low) / span:.1f}"

    parts = [f'<line x1="8" x2="392" y1="14" y2="14" stroke="{GRID}" stroke-width="1.5"/>']
    if miss["lower_80"] is not None:
        width = 384 * (miss["upper_80"] - miss["lower_80"]) / span
        parts.append(f'<rect x="{x(miss["lower_80"])}" y="9" width="{width:.1f}" height="10" rx="5" fill="#c3d7e6"/>')
    parts += [
        f'<circle cx="{x(c["adjusted_price"])}" cy="14" r="3.5" fill="#fff" stroke="{GREY}" stroke-width="1.5"/>'
        for c in miss["comparables"]
    ]
    parts += [
        f'<rect x="{float(x(miss["predicted_price"])) - 2:.1f}" y="4" width="4" height="20" rx="1.5" fill="{BLUE}"/>',
        f'<circle cx="{x(miss["actual_price"])}" cy="14" r="6" fill="{ORANGE}" stroke="#fff" stroke-width="1.5"/>',
    ]
    label = "price range, prediction, price paid and comparables on one line"
    return f'<svg role="img" aria-label="{label}" class="strip" viewBox="0 0 400 28">{"".join(parts)}</svg>'


def _svg(draw: Callable[[Axes], None], height: float, label: str) -> str:
    """Draw without the pyplot state (threads may draw) and cut out what differs between runs or is of no use inline."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure.add_subplot())
        out = io.StringIO()
        figure.savefig(
            out, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1).strip()


def _legend(axes: Axes) -> None:
    """Above the axes, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        axes.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, fontsize=8,
            handlelength=1.8, columnspacing=1.2, borderaxespad=0.2,
        )  # fmt: skip


def _names(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [_short(name, 26) for name in names])
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(-0.6, len(names) - 0.4)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def _class_label(low: float, high: float) -> str:
    if low == float("-inf"):
        text = f"below {high:.0f}"
    else:
        text = f"above {low:.0f}" if high == float("inf") else f"{low:.0f} to {high:.0f}"
    return text.replace("-", "\N{MINUS SIGN}")
