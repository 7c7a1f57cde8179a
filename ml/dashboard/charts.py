"""Figures of the dashboard as Plotly dictionaries. Rows come from SQL; nothing is computed here.

Colours are those of Okabe and Ito (2008), which differ for all kinds of colour vision; form (dash, marker) differs too.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

from ml.contract import add_months
from ml.words import series_label

Row = dict[str, Any]
Rows = Sequence[Row]
Figure = dict[str, Any]

INK, GREY, GRID, PALE = "#1c2733", "#6b7783", "#e4e9ed", "#eef2f5"
BLUE, ORANGE, VERMILION, GREEN, SKY, PURPLE = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#56B4E9", "#CC79A7"
#: Bars of Plotly's own are hidden: they need a mouse, and the page says what they would.
CONFIG = {"displayModeBar": False, "responsive": True}


def accuracy_over_time(
    rows: Rows, *, warn: float | None = None, fail: float | None = None, moves: Rows = (), decisions: Rows = ()
) -> Figure:
    """MdAPE (percent) by month of the model and its baselines, with limits, promotions and decisions."""
    looks = {
        "model": ("model", BLUE, "solid", 3),
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
    top = max((r["mdape_pct"] for r in rows), default=1.0)
    figure = _figure(traces, y="median absolute error, %", height=340)
    shapes, notes = figure["layout"]["shapes"], figure["layout"]["annotations"]
    evaluated = [r["month"] for r in rows if r["series"] == "model" and r["split"] == "eval"]
    if evaluated:
        shapes.append(_span(min(evaluated), max(evaluated), PALE))
        notes.append(_note(min(evaluated), "evaluation window", y=1, anchor="left"))
    for limit, name, colour in ((warn, "warning", ORANGE), (fail, "fail", VERMILION)):
        # a limit far above all errors would press them flat
        if limit is not None and limit < 2 * top:
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
    return figure


def prices_over_time(rows: Rows, *, currency: str, period: tuple[date, date] | None) -> Figure:
    """Mean price paid and predicted by month; the chosen period is shaded."""
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": [r["month"] for r in rows],
            "y": [r[key] for r in rows],
            "line": {"color": colour, "width": 2.4, "dash": dash},
            "marker": {"size": 6, "symbol": symbol},
            "hovertemplate": f"%{{x|%b %Y}}: {currency} %{{y:,.0f}}<extra>{name}</extra>",
        }
        for key, name, colour, dash, symbol in (
            ("actual_price", "paid", ORANGE, "dash", "circle"),
            ("predicted_price", "predicted", BLUE, "solid", "square"),
        )
    ]
    figure = _figure(traces, y=f"mean price, {currency}", height=320)
    if period:
        figure["layout"]["shapes"].append(_span(period[0], add_months(period[1], 1), "#dcebf5"))
        figure["layout"]["annotations"].append(_note(period[0], "chosen period", y=1, anchor="left"))
    return figure


def predicted_against_paid(rows: Rows, *, currency: str) -> Figure:
    """One dot a home on logarithmic axes; on the line the prediction was right."""
    paid, predicted = [r["actual_price"] for r in rows], [r["predicted_price"] for r in rows]
    ends = [min(paid + predicted), max(paid + predicted)] if rows else [1, 10]
    traces = [
        {
            "type": "scattergl" if len(rows) > 3000 else "scatter",
            "mode": "markers",
            "name": "home",
            "x": paid,
            "y": predicted,
            "customdata": [[r["area"] or "", r["locality"] or "", r["pct_error"]] for r in rows],
            "marker": {"color": BLUE, "size": 5, "opacity": 0.35},
            "hovertemplate": f"%{{customdata[0]}}, %{{customdata[1]}}<br>paid {currency} %{{x:,.0f}}<br>"
            f"predicted {currency} %{{y:,.0f}} (%{{customdata[2]:+.1f}} %)<extra></extra>",
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
    figure["layout"]["xaxis"] |= {
        "type": "log",
        "title": _title(f"paid, {currency}"),
        "dtick": "D2",
        "tickformat": "~s",
    }
    figure["layout"]["yaxis"] |= {"type": "log", "dtick": "D2"}
    return figure


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
            "yaxis": {**axis, "title": _title(y), "tickformat": "~s"},
            # a drag on a phone scrolls the page instead of zooming the chart
            "dragmode": False,
            "shapes": [],
            "annotations": [],
        },
    }


def _title(text: str) -> Row:
    return {"text": text, "font": {"size": 12}}


def _span(first: date, last: date, colour: str) -> Row:
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
        "text": [r["text"] for r in rows],
        "marker": {"symbol": symbol, "size": 11, "color": colour, "line": {"color": "white", "width": 1}},
        "cliponaxis": False,
        "hovertemplate": "%{text}<extra></extra>",
    }
