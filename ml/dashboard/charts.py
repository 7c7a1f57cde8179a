"""Figures of the dashboard as Plotly dictionaries. Rows come from SQL; nothing is computed here.

Colours are those of Okabe and Ito (2008), which differ for all kinds of colour vision; form (dash, marker) differs too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import date
from html import escape
from math import ceil, cos, floor, log10, radians
from textwrap import shorten
from typing import Any

import numpy as np
import pyarrow as pa

from ml.contract import add_months
from ml.words import amount, amount_digits, series_label

Row = dict[str, Any]
Rows = Sequence[Row]
Figure = dict[str, Any]

INK, GREY, GRID, PALE = "#1c2733", "#6b7783", "#e4e9ed", "#eef2f5"
BLUE, ORANGE, VERMILION, GREEN, SKY, PURPLE = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#56B4E9", "#CC79A7"
#: Bars of Plotly's own are hidden: they need a mouse, and the page says what they would.
CONFIG = {"displayModeBar": False, "responsive": True}

#: Letters of a label that stands inside a chart: more would be cut at the edge of a phone.
LABEL = 62
#: Pixels that a map on a phone has for its names, and those of a line and of a letter of them.
PHONE, LINE, LETTER = 340, 16, 5.4


def accuracy_over_time(
    rows: Rows, *, warn: float | None = None, fail: float | None = None, moves: Rows = (), decisions: Rows = ()
) -> Figure:
    """MdAPE (percent) by month of the model and its baselines, with limits, promotions and decisions."""
    looks = {
        "model": ("model", BLUE, "solid", 3),
        "estimate": ("estimated, prices not known yet", SKY, "dash", 2.4),
        "linear": (series_label("linear"), ORANGE, "dash", 1.8),
        "persistence": (series_label("persistence"), INK, "dot", 1.8),
        "last_year": (series_label("last_year"), GREY, "dashdot", 1.5),
    }
    traces = []
    for name, (label, colour, dash, width) in looks.items():
        mine = [r for r in rows if r["series"] == name]
        if mine:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers" if name == "model" or len(mine) == 1 else "lines",
                    "name": label,
                    "x": [r["month"] for r in mine],
                    "y": [r["mdape_pct"] for r in mine],
                    "line": {"color": colour, "dash": dash, "width": width},
                    "marker": {"size": 5},
                    "hovertemplate": f"%{{x|%b %Y}}: %{{y:.2f}} %<extra>{label}</extra>",
                }
            )
    top = max((r["mdape_pct"] for r in rows if r["series"] != "last_year"), default=1.0)
    figure = _figure(traces, y="median absolute error, %", height=340)
    shapes, notes = figure["layout"]["shapes"], figure["layout"]["annotations"]
    evaluated = [r["month"] for r in rows if r["series"] == "model" and r["split"] == "eval"]
    if evaluated:
        shapes.append(_span(min(evaluated), max(evaluated), PALE))
        notes.append(_note(min(evaluated), "evaluation window", y=1, anchor="left"))
    for limit, name, colour in ((warn, "warning", ORANGE), (fail, "fail", VERMILION)):
        # a limit far above all errors would press them flat
        if limit is not None and limit < 1.6 * top:
            shapes.append(_level(limit, colour))
            notes.append(_note(1, f"{name} above {limit:g} %", y=limit, yref="y", xref="paper", anchor="right"))
    figure["data"] += [
        trace
        for trace in (
            _events(moves, "promotion", "triangle-up", GREEN),
            _events(decisions, "retrain decision", "diamond", PURPLE),
        )
        if trace["x"]
    ]
    figure["layout"]["yaxis"]["rangemode"] = "tozero"
    _few_months(figure, (r["month"] for r in rows))
    return figure


def prices_over_time(rows: Rows, *, currency: str, period: tuple[date, date] | None) -> Figure:
    """Mean price paid and predicted by month; the chosen period is shaded."""
    largest = max((r["predicted_price"] or 0 for r in rows), default=0)
    digits = amount_digits(largest)
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": [r["month"] for r in rows],
            "y": [r[key] for r in rows],
            "line": {"color": colour, "width": 2.4, "dash": dash},
            "marker": {"size": 6, "symbol": symbol},
            "hovertemplate": f"%{{x|%b %Y}}: {currency} %{{y:,.{digits}f}}<extra>{name}</extra>",
        }
        for key, name, colour, dash, symbol in (
            ("actual_price", "paid", ORANGE, "dash", "circle"),
            ("predicted_price", "predicted", BLUE, "solid", "square"),
        )
    ]
    figure = _figure(traces, y=f"mean price, {currency}", height=320)
    figure["layout"]["yaxis"] |= _thousands(largest)
    _few_months(figure, (r["month"] for r in rows))
    if period:
        figure["layout"]["shapes"].append(_span(period[0], add_months(period[1], 1), "#dcebf5"))
        figure["layout"]["annotations"].append(_note(period[0], "chosen period", y=1, anchor="left"))
    return figure


def predicted_against_paid(homes: pa.Table, *, currency: str) -> Figure:
    """One dot a home on logarithmic axes; on the line the prediction was right.

    Columns go as arrays: Plotly looks at each element of a list, which takes longer than all else of a page.
    """
    paid, predicted = homes["actual_price"].to_numpy(), homes["predicted_price"].to_numpy()
    # room around the dots: also around a single one
    digits = amount_digits(float(predicted.max()))
    ends = [float(min(paid.min(), predicted.min())) / 1.08, float(max(paid.max(), predicted.max())) * 1.08]
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "home",
            "x": paid,
            "y": predicted,
            "text": np.array([_plain(place) for place in homes["place"].to_pylist()], dtype=object),
            "marker": {"color": BLUE, "size": 5, "opacity": 0.4},
            "hovertemplate": f"%{{text}}<br>paid {currency} %{{x:,.{digits}f}}<br>"
            f"predicted {currency} %{{y:,.{digits}f}}<extra></extra>",
            "showlegend": False,
        },
        {
            "type": "scatter",
            "mode": "lines",
            "name": "predicted = paid",
            "x": ends,
            "y": ends,
            "line": {"color": INK, "width": 1.2, "dash": "dash"},
            "hoverinfo": "skip",
        },
    ]
    figure = _figure(traces, y=f"predicted, {currency}", height=320)
    figure["layout"]["hovermode"] = "closest"
    scale = {"type": "log", "range": [log10(end) for end in ends], "tickvals": _ticks(*ends), **_thousands(ends[1])}
    figure["layout"]["xaxis"] |= {**scale, "title": _title(f"paid, {currency}")}
    figure["layout"]["yaxis"] |= scale
    return figure


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; where fewer than four of them lie between, round steps of one size."""
    powers = [10.0**e for e in range(floor(log10(low)), ceil(log10(high)) + 1)]
    found = [m * power for power in powers for m in (1, 2, 5) if low <= m * power <= high]
    if len(found) >= 4:
        return found
    least = (high - low) / 6
    step = next(size for m in (1, 2, 2.5, 5, 10) if (size := m * 10.0 ** floor(log10(least))) >= least)
    return [i * step for i in range(ceil(low / step), floor(high / step) + 1)]


def _plain(text: str) -> str:
    """Text of the data as text: Plotly reads ``<b>`` and ``<a href=…>`` as markup."""
    return escape(text, quote=False)


def _label(text: str, letters: int = LABEL) -> str:
    """As much as fits of both ends: many names begin alike."""
    if len(text) > letters:
        end = text[-letters // 3 :].partition(" ")[2]
        text = f"{shorten(text, letters - len(end) - 1, placeholder=' …')} {end}"
    return _plain(text)


def _short(place: str) -> str:
    """The first of several names joined by hyphens or slashes, as on a map."""
    return re.split(r"[-/]", place)[0].strip().title()


def _figure(traces: list[Row], *, y: str, height: int) -> Figure:
    axis = {"gridcolor": GRID, "linecolor": GREY, "zeroline": False, "tickfont": {"size": 12}, "automargin": True}
    return {
        "data": traces,
        "layout": {
            "height": height,
            "margin": {"l": 8, "r": 8, "t": 34, "b": 8},
            "font": {"family": "Source Sans, Source Sans Pro, sans-serif", "size": 13, "color": INK},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "hovermode": "x unified",
            "hoverlabel": {"bgcolor": "white"},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
            "xaxis": {**axis, "showgrid": False},
            "yaxis": {**axis, "title": _title(y)},
            # a drag on a phone scrolls the page instead of zooming the chart
            "dragmode": False,
            "shapes": [],
            "annotations": [],
        },
    }


def _thousands(largest: float) -> Row:
    """Of an axis of money: 400k and 1.2M; below a thousand the same would write 0.4 as 400m."""
    return {"tickformat": "~s"} if largest >= 1000 else {}


def _few_months(figure: Figure, months: Iterable[date | None]) -> None:
    """Where a chart has few months, Plotly would divide them into weeks, and a single one into milliseconds."""
    known = [month for month in months if month]
    if known and (last := max(known)) <= add_months(first := min(known), 6):
        ends = {"range": [add_months(first, -1), add_months(last, 1)]} if first == last else {}
        figure["layout"]["xaxis"] |= {"dtick": "M1", "tickformat": "%b %Y", **ends}


def _title(text: str) -> Row:
    return {"text": text, "font": {"size": 12}}


def _span(first: date | float, last: date | float, colour: str) -> Row:
    return {
        "type": "rect",
        "xref": "x",
        "yref": "paper",
        "x0": first,
        "x1": last,
        "y0": 0,
        "y1": 1,
        "fillcolor": colour,
        "line": {"width": 0},
        "layer": "below",
    }


def _level(value: float, colour: str) -> Row:
    return {
        "type": "line",
        "xref": "paper",
        "yref": "y",
        "x0": 0,
        "x1": 1,
        "y0": value,
        "y1": value,
        "line": {"color": colour, "width": 1.4, "dash": "dash"},
    }


def _note(x: Any, text: str, *, y: float, anchor: str, xref: str = "x", yref: str = "paper") -> Row:
    return {
        "x": x,
        "y": y,
        "xref": xref,
        "yref": yref,
        "text": text,
        "showarrow": False,
        "xanchor": anchor,
        "yanchor": "bottom" if yref == "y" else "top",
        "font": {"size": 11, "color": GREY},
    }


def _events(rows: Rows, name: str, symbol: str, colour: str) -> Row:
    """Marks on the time axis; ``rows`` have month and text."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [r["month"] for r in rows],
        "y": [0] * len(rows),
        "text": [_plain(r["text"]) for r in rows],
        "marker": {"symbol": symbol, "size": 11, "color": colour, "line": {"color": "white", "width": 1}},
        "cliponaxis": False,
        "hovertemplate": "%{text}<extra></extra>",
    }


def coverage(rows: Rows) -> Figure:
    """Share of prices (percent) within their 50, 80 and 95 % ranges by month, with what each promises."""
    looks = {50: (ORANGE, "dash", "square"), 80: (BLUE, "solid", "circle"), 95: (INK, "dot", "diamond")}
    traces, shapes = [], []
    for level, (colour, dash, symbol) in looks.items():
        mine = [r for r in rows if r["level_pct"] == level]
        if mine:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": f"{level} % range",
                    "x": [r["month"] for r in mine],
                    "y": [r["coverage_pct"] for r in mine],
                    "line": {"color": colour, "width": 2, "dash": dash},
                    "marker": {"symbol": symbol, "size": 6},
                    "hovertemplate": f"%{{x|%b %Y}}: %{{y:.1f}} %<extra>{level} % range</extra>",
                }
            )
            shapes.append(_level(level, GREY))
    figure = _figure(traces, y="prices within their range, %", height=300)
    figure["layout"]["shapes"] = shapes
    figure["layout"]["yaxis"]["range"] = [min([40, *(r["coverage_pct"] - 4 for r in rows)]), 102]
    _few_months(figure, (r["month"] for r in rows))
    return figure


def ratio_by_decile(rows: Rows) -> Figure:
    """Median ratio by price decile; the band is 0.95 to 1.05."""
    values = [r["median_ratio"] for r in rows if r["median_ratio"] is not None]
    figure = _figure(
        [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [r["price_decile"] for r in rows],
                "y": [r["median_ratio"] for r in rows],
                "customdata": [r["n"] for r in rows],
                "line": {"color": BLUE, "width": 2},
                "marker": {"size": 9},
                "hovertemplate": "tenth %{x}: %{y:.3f}, n %{customdata:,}<extra></extra>",
                "showlegend": False,
            }
        ],
        y="median of predicted / paid",
        height=290,
    )
    band = _span(0.5, 10.5, PALE) | {"yref": "y", "y0": 0.95, "y1": 1.05}
    figure["layout"]["shapes"] = [band, _level(1, GREY)]
    note = _note(10.4, "0.95 to 1.05", y=1.05, yref="y", anchor="right")
    figure["layout"]["annotations"] = [note | {"yanchor": "top"}]
    ticks = ["1<br>cheapest", *map(str, range(2, 10)), "10<br>dearest"]
    figure["layout"]["xaxis"] |= {"tickvals": list(range(1, 11)), "ticktext": ticks, "range": [0.5, 10.5]}
    figure["layout"]["yaxis"] |= {
        "range": [min([0.92, *values]) - 0.01, max([1.08, *values]) + 0.01],
        "tickformat": ".2f",
    }
    figure["layout"]["hovermode"] = "closest"
    return figure


def importance(rows: Rows) -> Figure:
    """Mean absolute contribution (percent of each price) of features, the largest on top."""
    rows = list(reversed(rows))
    figure = _figure(
        [
            {
                "type": "bar",
                "orientation": "h",
                "x": [r["share_pct"] for r in rows],
                "y": list(range(len(rows))),
                "text": [f"{_plain(r['label'])}  {r['share_pct']:.2f} %" for r in rows],
                "textposition": "none",
                "marker": {"color": BLUE},
                "width": 0.36,
                "hovertemplate": "%{text}<extra></extra>",
            }
        ],
        y="",
        height=60 + 38 * len(rows),
    )
    # names stand above their bars, so that a phone has room for both
    figure["layout"]["annotations"] = [
        _note(0, f"{_label(r['label'])}: {r['share_pct']:.2f} %", y=i + 0.2, yref="y", anchor="left")
        | {"font": {"size": 12, "color": INK}}
        for i, r in enumerate(rows)
    ]
    figure["layout"]["yaxis"] |= {"visible": False, "range": [-0.5, len(rows)]}
    figure["layout"]["xaxis"] |= {"title": _title("moves a price by, % on average"), "rangemode": "tozero"}
    figure["layout"] |= {"hovermode": "closest", "margin": {"l": 8, "r": 8, "t": 4, "b": 8}}
    return figure


def drift(rows: Rows, *, measure: str, dated: bool = True) -> Figure:
    """Heat map feature x month, one column without dates; a sign in each cell that is outside its limits."""
    features, months = list(dict.fromkeys(r["label"] for r in rows)), sorted({r["month"] for r in rows})
    found = {(r["label"], r["month"]): r for r in rows}
    signs = {"warn": "▲", "fail": "✕"}
    cells = [[found.get((f, m)) for m in months] for f in features]
    figure = _figure(
        [
            {
                "type": "heatmap",
                "x": months if dated else [""],
                "y": list(range(len(features))),
                "z": [[c and c["value"] for c in row] for row in cells],
                "text": [[signs.get(c["status"], "") if c else "" for c in row] for row in cells],
                "customdata": [
                    [[c["n"], c["status"], _plain(f)] if c else ["", "", ""] for c in row]
                    for f, row in zip(features, cells, strict=True)
                ],
                "texttemplate": "%{text}",
                # one hue, light to dark: read the same by all eyes
                "colorscale": [[0, "#f3f7fa"], [0.25, "#bcd9ec"], [0.6, "#4795c9"], [1, "#003f66"]],
                "zmin": 0,
                # what is farther is as dark: one feature would take the colour from all others
                "zmax": {"excess": 2, "wasserstein": 2}.get(measure, 0.5),
                "xgap": 1,
                "ygap": LINE,
                "colorbar": {
                    "title": {"text": "of its limit" if measure == "excess" else measure, "side": "top"},
                    "orientation": "h",
                    "thickness": 10,
                    "len": 0.5,
                    "x": 1,
                    "xanchor": "right",
                    "y": 1.0,
                    "yanchor": "bottom",
                },
                "hovertemplate": f"%{{customdata[2]}}<br>{'%{x|%b %Y}: ' if dated else ''}{measure} %{{z:.3f}}<br>"
                "n %{customdata[0]:,}, %{customdata[1]}<extra></extra>",
            }
        ],
        y="",
        height=90 + 32 * len(features),
    )
    # names stand above their cells, so that a phone has room for both
    figure["layout"]["annotations"] = [
        _note(0, _label(f), y=i - 0.5, yref="y", xref="paper", anchor="left")
        | {"yanchor": "middle", "font": {"size": 11, "color": INK}}
        for i, f in enumerate(features)
    ]
    figure["layout"]["yaxis"] |= {"visible": False, "range": [len(features) - 0.5, -0.8]}
    figure["layout"]["xaxis"] |= {} if dated else {"visible": False, "type": "category"}
    figure["layout"] |= {"hovermode": "closest", "margin": {"l": 8, "r": 8, "t": 8, "b": 8}}
    return figure


def places(rows: Rows, names: Rows, *, measure: str, currency: str) -> Figure:
    """Dots at longitude and latitude; no map is fetched, names of places stand in for it."""
    scales = {
        # blue too low, vermilion too high, grey right
        "pct_error": ([[0, "#0072B2"], [0.3, "#8fc0de"], [0.5, "#e4e2dc"], [0.7, "#eda879"], [1, "#b84a00"]], -12, 12),
        "mdape_pct": ([[0, "#eef4f8"], [0.4, "#7db4d9"], [1, "#00406b"]], 0, 12),
        "predicted_price": ([[0, "#eef4f8"], [0.4, "#7db4d9"], [1, "#00406b"]], None, None),
    }
    titles = {"pct_error": "median error, %", "mdape_pct": "size of error, %", "predicted_price": currency}
    colours, low, high = scales[measure]
    most = max(r["n"] for r in rows)
    largest = max((r["predicted_price"] or 0 for r in rows), default=0)
    digits = amount_digits(largest)
    figure = _figure(
        [
            {
                "type": "scatter",
                "mode": "markers",
                "x": [r["longitude"] for r in rows],
                "y": [r["latitude"] for r in rows],
                "customdata": [
                    [_plain(r["area"] or ""), r["n"], r["predicted_price"], r["pct_error"], r["mdape_pct"]]
                    for r in rows
                ],
                "marker": {
                    "color": [r[measure] for r in rows],
                    "colorscale": colours,
                    "cmin": low,
                    "cmax": high,
                    "size": [6 + 16 * (r["n"] / most) ** 0.5 for r in rows],
                    "line": {"color": "#5f6b76", "width": 0.6},
                    "colorbar": {
                        "title": {"text": titles[measure], "side": "top"},
                        "orientation": "h",
                        "thickness": 12,
                        "len": 0.6,
                        "y": 1.0,
                        "yanchor": "bottom",
                        **(_thousands(largest) if measure == "predicted_price" else {}),
                    },
                },
                "hovertemplate": f"%{{customdata[0]}}, %{{customdata[1]:,}} homes<br>median prediction {currency} "
                f"%{{customdata[2]:,.{digits}f}}<br>"
                "median error %{customdata[3]:+.1f} %, size %{customdata[4]:.1f} %"
                "<extra></extra>",
                "showlegend": False,
            },
        ],
        y="",
        height=560,
    )
    middle = sum(r["latitude"] for r in rows) / len(rows)
    # labels above the dots, on a veil that lets the dots shine through
    veil = {
        "bgcolor": "rgba(255,255,255,0.72)",
        "borderpad": 1,
        "font": {"size": 10, "color": INK},
        "yanchor": "bottom",
        "yshift": 6,
    }
    figure["layout"]["annotations"] = [
        _note(r["longitude"], _plain(_short(r["area"])), y=r["latitude"], yref="y", anchor="center") | veil
        for r in _apart(names, rows, scale=cos(radians(middle)))
    ]
    figure["layout"]["xaxis"] |= {"visible": False}
    # a degree of longitude is shorter than one of latitude
    figure["layout"]["yaxis"] |= {"visible": False, "scaleanchor": "x", "scaleratio": 1 / cos(radians(middle))}
    figure["layout"] |= {"hovermode": "closest", "plot_bgcolor": "#f6f8f9"}
    return figure


def _apart(names: Rows, dots: Rows, *, scale: float) -> list[Row]:
    """Names that hide no name before them on a phone's map; ``scale`` is a degree of longitude in those of latitude."""
    longitudes = [r["longitude"] for r in dots]
    pixels = PHONE / max((max(longitudes) - min(longitudes)) * scale, 1e-9)
    kept: list[tuple[Row, float]] = []
    for r in names:
        half = LETTER * len(_short(r["area"])) / 2
        if all(
            abs(r["longitude"] - k["longitude"]) * scale * pixels > half + other
            or abs(r["latitude"] - k["latitude"]) * pixels > LINE
            for k, other in kept
        ):
            kept.append((r, half))
    return [r for r, _ in kept]


def waterfall(rows: Rows, *, currency: str) -> Figure:
    """From the price level to the price: amounts of features by size, rows have label, amount and kind.

    ``kind`` is base, up, down or price.
    """
    colours = {"base": GREY, "up": VERMILION, "down": BLUE, "price": INK}
    figure = _figure(
        [
            {
                "type": "bar",
                "orientation": "h",
                "base": [r["start"] for r in rows],
                "x": [r["amount"] for r in rows],
                "y": list(range(len(rows))),
                "customdata": [_plain(r["label"]) for r in rows],
                "text": [amount(r["amount"], sign=True) if r["kind"] in {"up", "down"} else "" for r in rows],
                "textposition": "auto",
                "insidetextanchor": "middle",
                "cliponaxis": False,
                "marker": {"color": [colours[r["kind"]] for r in rows]},
                "width": 0.5,
                "hovertemplate": f"%{{customdata}} %{{text}} {currency}<extra></extra>",
            }
        ],
        y="",
        height=60 + 40 * len(rows),
    )
    ends = [end for r in rows for end in (r["start"], r["start"] + r["amount"]) if end > 0]
    span = max(ends) - min(ends) or max(ends)
    # bars of whole prices would press the amounts flat if the axis began with 0
    low = max(0, min(ends) - 0.35 * span)
    figure["layout"]["annotations"] = [
        _note(low, _label(r["label"]), y=i - 0.3, yref="y", anchor="left") | {"font": {"size": 12, "color": INK}}
        for i, r in enumerate(rows)
    ]
    figure["layout"]["yaxis"] |= {"visible": False, "range": [len(rows) - 0.4, -0.9]}
    figure["layout"]["xaxis"] |= {
        "range": [low, max(ends) + 0.2 * span],
        **_thousands(max(ends)),
        "title": _title(f"{currency}; the axis does not begin with 0" if low else currency),
    }
    figure["layout"] |= {"hovermode": "closest", "margin": {"l": 8, "r": 8, "t": 4, "b": 8}}
    return figure
