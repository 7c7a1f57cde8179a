"""Predictions against prices paid, by period, place and grade."""

from __future__ import annotations

import calendar
import io

import streamlit as st

from ml.dashboard import charts, queries
from ml.dashboard.page import (
    SELECT_PLACE,
    Page,
    chart,
    choose_one,
    choose_some,
    head,
    nothing,
    section,
    tiles,
)
from ml.dashboard.queries import Filters
from ml.words import MISSING, amount_digits, counted, number

DOTS = 400
TABLE_ROWS = 500
MONTHS = list(range(1, 13))


def render(page: Page) -> None:
    head("Predictions", f"{page.contract.title}: what was said, and what was paid.")
    filters = choose(page)
    if filters is None:
        return
    if not _figures(page, filters):
        return
    left, right = st.columns(2) if page.dated else (None, st.container())
    if left:
        with left:
            _trend(page, filters)
    with right:
        _dots(page, filters)
    _table(page, filters)


def choose(page: Page) -> Filters | None:
    """The filters, in one row; their values stand in the address, so that a view can be sent to somebody.

    None, and words that say what to do, where nothing was scored.
    """
    ask = page.snapshot.rows
    versions = queries.scored_versions(page.snapshot)
    if not versions:
        nothing("Nothing has been scored yet.", page.why_unscored)
        return None
    year = month = None
    with st.container(horizontal=True, key="filters"):
        scored = _scored(page, versions)
        if page.dated:
            years = [r["year"] for r in ask(queries.years(scored))]
            year = choose_some("Year", "year", years, all_of="all years")
            month = choose_some(
                "Month", "month", MONTHS, all_of="all months", names=dict(enumerate(calendar.month_name))
            )
        areas = [r["area"] for r in ask(queries.areas(scored))]
        area = choose_some(_words(page.contract.area), "area", areas, width=SELECT_PLACE)
        localities = [r["locality"] for r in ask(queries.localities(scored), area=area)]
        locality = None
        if page.contract.locality != page.contract.area:
            locality = choose_some(_words(page.contract.locality), "locality", localities, width=SELECT_PLACE)
        grades = [r["grade"] for r in ask(queries.grades(scored))]
        grade = choose_some("Grade", "grade", grades, tip="How sure the model is: A (surest) to D.")
    return Filters(scored, year, month, area, locality, grade)


def _scored(page: Page, versions: list[str]) -> str:
    return queries.scored_table(page.snapshot, choose_one("Model", "version", versions, first=versions[0]))


def _words(column: str) -> str:
    return column.replace("_", " ").capitalize()


def _figures(page: Page, filters: Filters) -> bool:
    """Whether any home was chosen."""
    e = page.snapshot.rows(queries.figures(filters), **filters.parameters)[0]
    if not e["scored"]:
        nothing("No prediction matches these filters.", "Choose a wider period or place.")
        return False
    known = f"{number(e['n'])} with a known, valid price"
    percent = {k: MISSING if e[k] is None else f"{number(e[k], 2)} %" for k in ("mape_pct", "mdape_pct")}
    tiles(
        [
            ("Predictions", number(e["scored"]), known),
            ("MAE", page.money(e["mae"]), "mean absolute error"),
            ("RMSE", page.money(e["rmse"]), "large errors weigh more"),
            ("Mean error", percent["mape_pct"], "absolute, of the price paid"),
            ("Median error", percent["mdape_pct"], "half of the homes are closer"),
            (
                "Within 10 %",
                MISSING if e["within_10_pct"] is None else f"{number(e['within_10_pct'], 1)} %",
                f"median ratio {number(e['median_ratio'], 3)}",
            ),
        ]
    )
    return True


def _trend(page: Page, filters: Filters) -> None:
    section("Price by month", "Mean of the homes with a known price.")
    rows = page.snapshot.rows(queries.trend(filters), **filters.parameters)
    if not rows:
        nothing("No price is known here yet.", "It appears when actual prices land.")
        return
    figure = charts.prices_over_time(rows, currency=page.contract.currency, period=filters.period)
    chart(figure, key="trend", alt="Line chart: mean price paid and mean predicted price by month")


def _dots(page: Page, filters: Filters) -> None:
    sample = page.snapshot.ask(queries.sample(filters, DOTS), **filters.parameters)
    drawn = f"{DOTS:,} of them, drawn by a hash" if sample.num_rows == DOTS else counted(sample.num_rows, "home")
    section("Predicted against paid", f"{drawn}; above the line: too high.")
    if not sample.num_rows:
        nothing("No price is known here yet.", "It appears when actual prices land.")
        return
    figure = charts.predicted_against_paid(sample, currency=page.contract.currency)
    chart(figure, key="dots", alt="Scatter plot: predicted price against price paid, one dot a home")


def _table(page: Page, filters: Filters) -> None:
    section("Homes")
    currency = page.contract.currency
    with st.container(horizontal=True, vertical_alignment="bottom"):
        order = choose_one("Order", "order", list(queries.ORDERS), first="newest")
        st.download_button(
            "Download all as CSV",
            data=lambda: _csv(page, filters, order),
            file_name=f"{page.contract.name}_predictions.csv",
            mime="text/csv",
            on_click="ignore",
            icon=":material/download:",
        )
    rows = page.snapshot.ask(queries.homes(filters, order, TABLE_ROWS), **filters.parameters)
    digits = amount_digits(max((price or 0 for price in rows["predicted_price"].to_pylist()), default=None))
    price = {"format": "localized", "step": 10.0**-digits if digits else 1}
    st.dataframe(
        rows,
        hide_index=True,
        height=360,
        column_config={
            "observation_id": None,
            "month": st.column_config.DateColumn("Month", format="MMM YYYY") if page.dated else None,
            "area": _words(page.contract.area),
            "locality": _words(page.contract.locality) if page.contract.locality != page.contract.area else None,
            "predicted_price": st.column_config.NumberColumn(f"Predicted, {currency}", **price),
            "actual_price": st.column_config.NumberColumn(f"Paid, {currency}", **price),
            "pct_error": st.column_config.NumberColumn("Error, %", format="%+.1f"),
            "lower_80": st.column_config.NumberColumn("80 % range from", **price),
            "upper_80": st.column_config.NumberColumn("to", **price),
            "grade": "Grade",
            "model_version": "Model",
        },
        placeholder=MISSING,
        alt="Predictions with price paid, error, range and grade",
    )
    if rows.num_rows == TABLE_ROWS:
        st.caption(f"The first {TABLE_ROWS:,} are shown; the download holds all.")


def _csv(page: Page, filters: Filters, order: str) -> bytes:
    from pyarrow import csv

    out = io.BytesIO()
    csv.write_csv(page.snapshot.ask(queries.homes(filters, order, None), **filters.parameters), out)
    return out.getvalue()
