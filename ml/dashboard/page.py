"""What every page has: its subject, and the few pieces that pages are put together from.

Pieces are plain HTML where Streamlit's own would be slower, wider or silent to a screen reader.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from html import escape
from typing import Any

import streamlit as st
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from ml.contract import Contract
from ml.dashboard.charts import CONFIG, Figure
from ml.dashboard.snapshot import Row, Snapshot
from ml.settings import Settings, Variables
from ml.words import MISSING, STATUS_WORDS, UNDATED, amount, number

#: Form, colour and word: no meaning hangs on colour alone.
SIGNS = {"pass": "✓", "warn": "▲", "fail": "✕", "insufficient_data": "○"}

#: Widths of a select box in pixels: two fit on a phone, six beside each other on a screen; names of places need more.
SELECT, SELECT_PLACE = 136, 200

#: Reading Plotly's script holds a browser up for more than a second, in which it paints nothing.
HEAD_START_S = 0.3

#: A house; inline, because Streamlit fetches other icons of a tab from a server of its own.
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path fill="#0072B2" '
    'd="M12 3 2 12h3v8h5v-6h4v6h5v-8h3z"/></svg>'
)

STYLE = """
<style>
.block-container, [data-testid="stMainBlockContainer"] {padding: 2.6rem 2.4rem 3rem; max-width: 1180px}
h1 {font-size: 1.75rem !important; padding: 0 0 .1rem !important}
h2 {font-size: 1.2rem !important; padding: .9rem 0 .1rem !important}
.h-about {color: #55616d; margin: 0 0 .4rem}
.h-tiles {display: grid; grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); gap: .6rem; margin: .2rem 0}
.h-tile {border: 1px solid #dde3e8; border-radius: 8px; padding: .65rem .8rem; background: #fff}
.h-tile b {display: block; overflow-wrap: anywhere; font-size: .82rem; font-weight: 600; color: #55616d}
.h-tile strong {display: block; font-size: 1.3rem; font-weight: 650; line-height: 1.3; color: #1c2733;
  overflow-wrap: anywhere}
.h-tile small {display: block; color: #55616d; font-size: .82rem; line-height: 1.3}
a.h-tile {text-decoration: none} a.h-tile:hover, a.h-tile:focus-visible {border-color: #0072B2}
.h-banner {border-left: 6px solid; border-radius: 6px; padding: .7rem 1rem; background: #f4f6f8; margin: .2rem 0 .6rem}
.h-banner strong {font-size: 1.15rem}
.h-banner p {margin: .15rem 0 0; color: #3a4651}
.h-pass {border-color: #009E73} .h-warn {border-color: #E69F00} .h-fail {border-color: #D55E00}
.h-insufficient_data {border-color: #8a949e}
.h-status {white-space: nowrap; font-weight: 600}
.h-status i {font-style: normal; display: inline-block; width: 1.15em; text-align: center; font-weight: 700}
.h-status.pass i {color: #00795a} .h-status.warn i {color: #a86f00} .h-status.fail i {color: #c04f00}
.h-status.insufficient_data i {color: #6b7783}
.h-scroll {overflow-x: auto; margin: .2rem 0 .6rem}
.h-scroll:focus-visible {outline: 2px solid #0072B2}
.h-table {border-collapse: collapse; width: 100%; font-size: .92rem}
.h-table th {text-align: left; font-weight: 600; color: #55616d; border-bottom: 2px solid #dde3e8; padding: .3rem .6rem;
  white-space: nowrap; vertical-align: bottom}
.h-table td {border-bottom: 1px solid #eceff2; padding: .3rem .6rem; vertical-align: top}
.h-table td:not(.n) {max-width: 26rem; overflow-wrap: break-word}
.h-table .n {text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap}
@media (max-width: 640px) {
  .block-container, [data-testid="stMainBlockContainer"] {padding: 3.6rem .9rem 3rem}
  .h-tiles {grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .5rem}
  .h-table {font-size: .86rem} .h-table th, .h-table td {padding: .3rem .4rem}
  .h-table td:not(.n) {max-width: 14rem}
}
</style>
"""


class Options(Variables):
    """``HOUSING_DASHBOARD_*`` variables."""

    model_config = SettingsConfigDict(env_prefix="HOUSING_DASHBOARD_", env_file=".env", extra="ignore", frozen=True)

    stale_days: float = Field(default=45, gt=0, description="a snapshot older than this is called stale")
    dagster_url: str = Field(default="http://127.0.0.1:3000", description="where links to assets lead")
    mlflow_url: str = Field(default="http://127.0.0.1:5000", description="where links to runs lead, without a server")


@dataclass(frozen=True)
class Page:
    """What a page is about."""

    settings: Settings
    contract: Contract
    snapshot: Snapshot
    champion: Row | None
    options: Options

    @property
    def dated(self) -> bool:
        return self.contract.observed_on is not None

    @property
    def to_score(self) -> str:
        """What to type to have homes scored; without dates there is one month."""
        return f"housing score --dataset {self.contract.name} --month {'YYYY-MM' if self.dated else f'{UNDATED:%Y-%m}'}"

    @property
    def why_unscored(self) -> str:
        """What to do where no home has a price. Without a champion, scoring and training again would not help."""
        if self.champion:
            return f"Type: {self.to_score}"
        if self.snapshot.rows("select 1 from training.model_versions limit 1"):
            return f"No version passed its gate. What each missed: housing status --dataset {self.contract.name}"
        return f"Type: housing train --dataset {self.contract.name}"

    def money(self, value: float | None, *, sign: bool = False) -> str:
        return MISSING if value is None else f"{self.contract.currency} {amount(value, sign=sign)}"


@dataclass(frozen=True)
class Column:
    """One column of ``table``: a key of its rows, a heading, and how a value becomes text."""

    key: str
    title: str
    digits: int | None = None
    """Numbers are set right and get so many digits; None is text, ``status`` is drawn with its sign."""
    money: bool = False
    """An amount in the contract's currency, set right with as many digits as it needs."""


def plain(text: str) -> str:
    """Text of the data for a label or caption, which Streamlit reads as Markdown: an image would ask another host."""
    # addresses are made links even without markup, but not around a character without width
    linkless = re.sub(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?<=@)", "\u2060", " ".join(text.split()))
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", linkless)


def head(title: str, about: str) -> None:
    st.title(title, anchor=False)
    st.html(f'<p class="h-about">{escape(about)}</p>')


def section(title: str, about: str | None = None) -> None:
    st.header(title, anchor=False)
    if about:
        st.html(f'<p class="h-about">{escape(about)}</p>')


def banner(status: str, title: str, text: str) -> None:
    """The one sentence that a page starts with."""
    st.html(
        f'<div class="h-banner h-{status}" role="status"><strong>{SIGNS[status]} {escape(title)}</strong>'
        f"<p>{escape(text)}</p></div>"
    )


def tiles(items: Sequence[tuple[str, str, str]]) -> None:
    """Figures side by side: name, value, and what it is of."""
    cells = "".join(
        f'<div class="h-tile"><b>{escape(name)}</b><strong>{escape(value)}</strong><small>{escape(about)}</small></div>'
        for name, value, about in items
    )
    st.html(f'<div class="h-tiles">{cells}</div>')


def table(rows: Sequence[Row], columns: Sequence[Column], *, label: str) -> None:
    """A small table that is read, not explored; it scrolls sideways on a phone, with the arrow keys too."""
    heads = "".join(f'<th scope="col"{_right(c)}>{escape(c.title)}</th>' for c in columns)
    body = "".join("<tr>" + "".join(f"<td{_right(c)}>{_cell(row, c)}</td>" for c in columns) + "</tr>" for row in rows)
    st.html(
        f'<div class="h-scroll" tabindex="0" role="region" aria-label="{escape(label)}">'
        f'<table class="h-table"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def choose_one(label: str, key: str, options: Sequence[str], *, first: str) -> str:
    """A select box whose value stands in the address; nothing is drawn where there is no choice."""
    _forget(key, options, options)
    if len(options) < 2:
        return first
    return st.selectbox(label, options, options.index(first), key=key, bind="query-params", width=SELECT)


def choose_some(
    label: str,
    key: str,
    options: Sequence[Any],
    *,
    all_of: str = "all",
    names: Mapping[Any, str] | None = None,
    tip: str | None = None,
    width: int = SELECT,
) -> Any:
    """The same with a first option, ``all_of``, that stands for all of them and gives None."""
    choices = [None, *options]

    def named(option: Any) -> str:
        return all_of if option is None else names[option] if names else str(option)

    _forget(key, choices, [named(option) for option in choices])
    return st.selectbox(label, choices, key=key, format_func=named, help=tip, bind="query-params", width=width)


def _forget(key: str, options: Sequence[Any], words: Sequence[str]) -> None:
    """A value that is not offered any more (a street of another town) is let go of; one of the address is told."""
    if key in st.session_state:
        if st.session_state[key] not in options:
            del st.session_state[key]
    elif (given := st.query_params.get(key)) and given not in words:
        ignored(key, given)


def ignored(key: str, given: str) -> None:
    """Tell that a value of the address is none of those that can be chosen."""
    st.caption(f"▲ {plain(f'{key}={given[:80]}')} of the address is not known here and ignored.")


def chart(figure: Figure, *, key: str, alt: str) -> None:
    """A plot; a visitor's first one lets the browser paint the words and figures above it before it is sent."""
    from plotly.graph_objects import Figure as PlotlyFigure

    if not st.session_state.get("drawn"):
        time.sleep(HEAD_START_S)
        st.session_state["drawn"] = True
    # checking each property of a figure takes Plotly longer than the browser needs to draw it
    st.plotly_chart(PlotlyFigure(figure, _validate=False), key=key, theme=None, config=CONFIG, alt=alt)


def nothing(title: str, do: str) -> None:
    """An empty state: what is missing and what to do."""
    st.info(f"**{title}** {do}", icon=":material/info:")


def month_label(month: date | None) -> str:
    return MISSING if month is None or month == UNDATED else f"{month:%b %Y}"


def time_label(moment: datetime | None) -> str:
    return MISSING if moment is None else f"{moment:%Y-%m-%d %H:%M} UTC"


def age_label(moment: datetime) -> str:
    """How long ago, in the largest unit that fits."""
    seconds = (datetime.now(UTC).replace(tzinfo=None) - moment).total_seconds()
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit} ago"
    return "just now"


def status_html(status: str | None) -> str:
    known = status if status in SIGNS else "insufficient_data"
    return f'<span class="h-status {known}"><i>{SIGNS[known]}</i> {escape(STATUS_WORDS[known])}</span>'


def _right(column: Column) -> str:
    return ' class="n"' if column.money or column.digits is not None else ""


def _cell(row: Row, column: Column) -> str:
    value: Any = row.get(column.key)
    if column.key.endswith("status") and value in SIGNS:
        return status_html(value)
    if column.money:
        return amount(value)
    return number(value, column.digits) if column.digits is not None else escape(_text(value)) or MISSING


def _text(value: Any) -> str:
    match value:
        case None:
            return ""
        case datetime():
            return f"{value:%Y-%m-%d %H:%M}"
        case date():
            return month_label(value) if value.day == 1 else f"{value:%Y-%m-%d}"
        case list():
            return "; ".join(map(str, value))
        case _:
            return str(value)
