"""Figures, tables and inputs of the dashboard: whole on every span and screen, and never more than text."""

from __future__ import annotations

import json
import re
from datetime import date
from math import log10
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from ml.contract import load
from ml.dashboard import charts, form, queries
from ml.dashboard.page import Column, plain
from ml.dashboard.page import _cell as page_cell
from ml.dashboard.queries import Filters
from ml.dashboard.views import what_if
from ml.serving.schemas import schemas
from ml.words import amount

MARKUP = '<a href="http://example.org">x</a> & y'


def scatter(*prices: float, place: str = "here") -> dict[str, Any]:
    homes = pa.table({"actual_price": prices, "predicted_price": prices, "place": [place] * len(prices)})
    return charts.predicted_against_paid(homes, currency="USD")


# Plotly's own logarithmic ticks leave the axis without a number where the span is below a decade
@pytest.mark.parametrize(
    "prices", [(650_000.0,), (650_000.0, 652_000.0), (300_000.0, 700_000.0), (9e4, 3e6), (0.5, 5e8)]
)
def test_both_axes_of_the_scatter_have_numbers_on_every_span(prices: tuple[float, ...]) -> None:
    layout = scatter(*prices)["layout"]
    for axis in (layout["xaxis"], layout["yaxis"]):
        low, high = axis["range"]
        assert low < log10(min(prices)) and high > log10(max(prices))
        assert 3 <= len([t for t in axis["tickvals"] if low <= log10(t) <= high]) == len(axis["tickvals"]) < 40


def test_names_of_the_data_are_no_markup_in_any_figure() -> None:
    home = {"longitude": 1.0, "latitude": 1.0, "area": MARKUP, "n": 1, "predicted_price": 1.0, "pct_error": 1.0}
    home |= {"mdape_pct": 1.0}
    month = {"label": MARKUP, "month": date(2024, 1, 1), "value": 1.0, "n": 1, "status": "pass"}
    step = {"label": MARKUP, "start": 0.0, "amount": 1.0, "kind": "up"}
    figures = [
        charts.places([home], [home], measure="pct_error", currency="USD"),
        charts.importance([{"label": MARKUP, "share_pct": 1.0}]),
        charts.drift([month], measure="psi"),
        charts.waterfall([step], currency="USD"),
        charts.accuracy_over_time([], moves=[{"month": date(2024, 1, 1), "text": MARKUP}]),
    ]
    dots = scatter(1.0, place=MARKUP)["data"][0]["text"].tolist()
    for words in [json.dumps(f, default=str) for f in figures] + [json.dumps(dots)]:
        assert "<a" not in words.lower() and "&lt;a" in words.lower() and "&amp; y" in words.lower()


def test_text_of_data_in_a_label_is_no_markdown() -> None:
    assert plain("![t](x) *b* :red[c]\n# $d$") == r"\!\[t\]\(x\) \*b\* \:red\[c\] \# \$d\$"
    # addresses are made links without any markup
    assert not re.search(
        r"://|www\\?\.|@\w", plain("http://example.org www.example.org a@example.org").replace("\\/", "/")
    )


def test_a_waterfall_leaves_room_for_the_amount_beside_the_last_bar() -> None:
    rows = [
        {"label": "usual", "start": 0.0, "amount": 500.0, "kind": "base"},
        {"label": "step", "start": 500.0, "amount": 100.0, "kind": "up"},
        {"label": "price", "start": 0.0, "amount": 600.0, "kind": "price"},
    ]
    figure = charts.waterfall(rows, currency="USD")
    assert figure["layout"]["xaxis"]["range"][1] >= 600 + 0.2 * 100
    assert figure["data"][0]["cliponaxis"] is False


def test_a_name_on_the_map_that_would_hide_a_larger_one_is_left_out() -> None:
    def place(area: str, longitude: float, latitude: float) -> dict[str, Any]:
        return {"area": area, "longitude": longitude, "latitude": latitude, "n": 1, "predicted_price": 1.0,
                "pct_error": 1.0, "mdape_pct": 1.0}  # fmt: skip

    names = [place("LARGE", 0.5, 0.0), place("BESIDE", 0.52, 0.001), place("ABOVE", 0.5, 0.2), place("FAR", 0.0, 0.0)]
    figure = charts.places([*names, place("END", 1.0, 0.0)], names, measure="pct_error", currency="USD")
    assert [a["text"] for a in figure["layout"]["annotations"]] == ["Large", "Above", "Far"]


def test_long_labels_that_begin_alike_are_told_apart_on_a_phone() -> None:
    name = "past price: street name + lease commence year + flat type + floor area, {} months"
    rows = [
        {"label": name.format(n), "month": date(2024, 1, 1), "value": 1.0, "n": 1, "status": "pass"} for n in (12, 24)
    ]
    shown = [a["text"] for a in charts.drift(rows, measure="psi")["layout"]["annotations"]]
    assert len(set(shown)) == 2 and all(len(text) <= charts.LABEL for text in shown)


def test_drift_without_dates_shows_no_month() -> None:
    row = {"label": "sqft", "month": date(1970, 1, 1), "value": 1.0, "n": 9, "status": "warn"}
    figure = charts.drift([row], measure="psi", dated=False)
    assert figure["layout"]["xaxis"]["visible"] is False and "1970" not in json.dumps(figure, default=str)
    assert "%b" not in figure["data"][0]["hovertemplate"]


@pytest.fixture
def scored() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute(
        """
        create table scored as select * from (values
            ('a', date '2024-01-01', '=cmd()', '-1 St', 737747.67, 737747.71, -0.001, 1.5, 2.5, 'A', 'v1'),
            ('b', date '2024-01-01', 'Plain', E'\\tTab', 10.5, null, null, null, null, null, 'v1')
        ) as t (observation_id, month, area, locality, predicted_price, actual_price, pct_error, lower_80, upper_80,
            grade, model_version)
        """
    )
    return connection


def test_texts_of_the_download_are_no_formulas_and_numbers_are_whole(scored: duckdb.DuckDBPyConnection) -> None:
    rows = scored.execute(queries.homes(Filters("scored"), "newest", None)).fetchall()
    assert [row[2:4] for row in rows] == [("'=cmd()", "'-1 St"), ("Plain", "'\tTab")]
    assert [float(row[4]) for row in rows] == [737747.67, 10.5] and float(rows[0][6]) == -0.001


def test_numbers_of_the_table_are_rounded_and_never_minus_zero(scored: duckdb.DuckDBPyConnection) -> None:
    first, _ = scored.execute(queries.homes(Filters("scored"), "newest", 10)).fetchall()
    assert first[2] == "=cmd()" and float(first[4]) == 737748 and f"{float(first[6]):+.1f}" == "+0.0"


# rents of a square metre, and prices in millions
@pytest.mark.parametrize(
    ("price", "in_table", "told"), [(0.0412345, 0.0412, "0.0412"), (14.256, 14.3, "14.3"), (1234.56, 1235.0, "1,235")]
)
def test_small_prices_keep_their_digits(
    scored: duckdb.DuckDBPyConnection, price: float, in_table: float, told: str
) -> None:
    scored.execute(
        f"create or replace table scored as select * replace ({price}::double as predicted_price) from scored"
    )
    rows = scored.execute(queries.homes(Filters("scored"), "newest", 10)).fetchall()
    assert [float(row[4]) for row in rows] == [in_table] * 2
    scored.execute("create or replace table scored as select * replace (null::double as predicted_price) from scored")
    [paid] = [row[5] for row in scored.execute(queries.homes(Filters("scored"), "newest", 1)).fetchall()]
    assert paid == 737748, "what could not be priced has a price all the same"
    assert amount(price) == told
    assert page_cell({"mae": price}, Column("mae", "MAE", money=True)) == told
    figure = charts.waterfall([{"label": "x", "start": 0.0, "amount": price, "kind": "up"}], currency="EUR")
    assert figure["data"][0]["text"] == [f"+{told}"]
    # Plotly's ~s would write 0.0412 as 41.2m
    assert figure["layout"]["xaxis"].get("tickformat") == ("~s" if price >= 1000 else None)
    digits = len(told.partition(".")[2])
    assert f"%{{x:,.{digits}f}}" in scatter(price)["data"][0]["hovertemplate"]


def test_the_evaluation_window_ends_where_the_first_served_price_is_known() -> None:
    connection = duckdb.connect()
    connection.execute(
        """
        create schema monitoring; create schema training;
        create table training.model_versions as
            select 'v1' as model_version, 'champion' as status, timestamp '2024-01-01' as created_at;
        create table monitoring.served_months as select 'v1' as model_version, month, n, mdape_pct from (values
            (date '2020-01-01', 0, null), (date '2023-01-01', 9, 5.0)) as t (month, n, mdape_pct);
        create table monitoring.accuracy_by_month as
            select 'v1' as model_version, 'model' as kind, 'valid' as population, 'eval' as split, 9 as n,
                date '2022-06-01' as month, 4.0 as mdape_pct
            union all select 'v1', 'model', 'valid', 'holdout', 1, date '2023-01-01', 7.0
        """
    )
    found = connection.execute(
        f"select month, split, mdape_pct from ({queries.SERVED_SERIES}) where series = 'model' order by month"
    ).fetchall()
    # of a month that was judged together with others its own error is drawn
    assert found == [(date(2022, 6, 1), "eval", 4.0), (date(2023, 1, 1), "served", 7.0)]


def test_a_label_names_its_unit_once() -> None:
    columns = {c.name: c for name in ("house_data", "hdb") for c in load(name).columns}
    labels = {name: form.Field(columns[name], None).label for name in ("sqft", "year_built", "floor_area_sqm")}
    assert labels == {"sqft": "Sqft", "year_built": "Year built", "floor_area_sqm": "Floor area, sqm"}


@pytest.mark.parametrize(
    ("name", "usual", "text"),
    [("remaining_lease_text", 86.2, "86 years 04 months"), ("storey_range", 5.0, "04 TO 06"),
     ("storey_range", 11.0, "10 TO 12")],
)  # fmt: skip
def test_a_text_is_proposed_from_which_the_usual_number_is_read(name: str, usual: float, text: str) -> None:
    column = next(c for c in load("hdb").columns if c.name == name)

    def read(rows: list[dict[str, Any]]) -> pa.Table:
        numbers = [[int(n) for n in re.findall(r"\d+", row[name])] for row in rows]
        values = [a + b / 12 if name == "remaining_lease_text" else (a + b) / 2 for a, b in numbers]
        return pa.table({"read": values, "other": [1.0] * len(rows)})

    example = form._example(column)
    assert example
    assert form._fitting(column, example, {}, {"read": usual, "other": 1.0, "unknown": 2.0}, read) == text


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({}, None),
        ({"bedrooms": -3.0}, "Bedrooms: "),
        ({"year_built": 1e300}, "Year built: "),
        ({"sqft": 5.0}, "Sqft: "),
    ],
)
def test_what_if_refuses_what_the_api_refuses(given: dict[str, float], fault: str | None) -> None:
    known = schemas(load("house_data"), max_rows=1)
    row = {"location": "Rural", "sqft": 1000.0, "bedrooms": 2.0, "bathrooms": 1.0, "year_built": 1990.0}
    found = what_if._faults(known, row | {"condition": "Good"} | given)
    assert [f[: len(fault)] for f in found] == [fault] if fault else found == []


def test_an_axis_of_few_months_has_months_and_no_milliseconds() -> None:
    def axis(*months: str) -> dict[str, Any]:
        rows = [{"month": date.fromisoformat(f"{m}-01"), "level_pct": 80, "coverage_pct": 80.0} for m in months]
        return charts.coverage(rows)["layout"]["xaxis"]

    alone = axis("2024-01")
    assert (alone["dtick"], alone["range"]) == ("M1", [date(2023, 12, 1), date(2024, 2, 1)])
    few = axis("2023-08", "2024-02")
    assert few["dtick"] == "M1" and "range" not in few
    assert "dtick" not in axis("2023-08", "2024-03"), "Plotly finds ticks for many months itself"
    assert "dtick" not in axis()


def test_baselines_are_compared_with_a_version_on_its_own_homes() -> None:
    with duckdb.connect() as connection:
        connection.execute(
            """
            create schema predictions; create schema monitoring;
            create table predictions.predictions_matched as
            select *, 'holdout' as split, predicted_price - actual_price as error,
                predicted_price / actual_price as ratio,
                100.0 * (predicted_price / actual_price - 1) as pct_error
            from (values
                ('a', 'v2', 'model', 110.0, 100.0, true), ('a', 'persistence', 'baseline', 150.0, 100.0, true),
                ('b', 'v2', 'model', 190.0, 200.0, true), ('b', 'persistence', 'baseline', 100.0, 200.0, true),
                ('c', 'v2', 'model', 1.0, 300.0, false), ('c', 'persistence', 'baseline', 1.0, 300.0, false),
                ('d', 'v1', 'model', 300.0, 300.0, true), ('d', 'persistence', 'baseline', 300.0, 300.0, true)
            ) as t (observation_id, model_version, kind, predicted_price, actual_price, is_price_valid);
            create table monitoring.accuracy as
            select 'valid' as population, 'holdout' as split, *
            from (values ('v2', 2, 'pass'), ('persistence', 3, 'pass'))
                as t (model_version, n, status)
            """
        )
        found = connection.execute(queries.BESIDE_BASELINES, {"version": "v2", "split": "holdout"}).fetchall()
    assert [(row[0], row[2], row[3], row[-1]) for row in found] == [
        ("v2", 2, 10.0, "pass"),
        ("persistence", 2, 75.0, None),
    ]
    assert found[0][4] == pytest.approx(7.5) and found[0][6] == pytest.approx(1 - 200 / 5000)
