"""The price of a home that is made up: the API's engine over the page's snapshot, and why it says so."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import streamlit as st

from ml.contract import Column as ContractColumn
from ml.contract import add_months
from ml.dashboard import charts, form
from ml.dashboard.form import Field
from ml.dashboard.page import Column, Page, banner, chart, head, month_label, nothing, plain, section, table, tiles
from ml.dashboard.snapshot import Row
from ml.words import amount, feature_label, number

#: Inputs that stand open; the others wait behind a click with their plausible values.
SHOWN = 8
#: Months beyond the newest that can be asked for.
AHEAD = 12
#: Steps of the waterfall between price level and price; the rest is one step.
STEPS = 9


def render(page: Page) -> None:
    head("What if", f"{page.contract.title}: what would the champion say, and why?")
    if page.champion is None:
        nothing("There is no champion to ask.", page.why_unscored)
        return
    try:
        with st.spinner("Loading the model"):
            engine, explainer, known = _loaded(page.settings.dataset, page.snapshot.fingerprint, page)
    except (RuntimeError, OSError, ValueError) as error:  # of registry, bundle, snapshot: each a sentence
        again = f"Type: housing train --force --dataset {page.contract.name}"
        banner("fail", "The champion cannot be loaded", f"{error}. {again}")
        return
    left, right = st.columns([5, 7], gap="large")
    with left:
        row = _form(page, engine)
    with right:
        if faults := _faults(known, row):
            banner("warn", "No price can be given", f"{'; '.join(faults)}.")
            return
        answers = engine.answer([row], "champion")
        _price(page, answers)
        if answers.reasons[0]:
            return
        why = explainer.explain(answers)[0]
        _waterfall(page, why["contributions"], float(answers.price[0]))
        _comparables(page, why["comparables"])


def _release(loaded: tuple[Any, ...]) -> None:
    loaded[0].snapshot.close()


@st.cache_resource(max_entries=2, show_spinner=False, on_release=_release)
def _loaded(dataset: str, fingerprint: str, _page: Page) -> tuple[Any, Any, Any]:
    """Engine and explainer of the champion and the types of its inputs, kept until another snapshot is published."""
    # importing these takes longer than all of the other pages
    from ml.registry import load_bundle
    from ml.serving.engine import Engine
    from ml.serving.explain import Explainer
    from ml.serving.schemas import schemas
    from ml.serving.snapshot import Snapshot

    held = Snapshot(_page.settings)
    version = held.versions()["champion"]
    engine = Engine(_page.contract, held, version, load_bundle(_page.settings, version))
    return engine, Explainer(engine, _page.settings.threads), schemas(_page.contract, max_rows=1)


@st.cache_resource(max_entries=200, show_spinner=False)
def _fields(
    fingerprint: str, area: str | None, locality: str | None, when: date, _page: Page, _engine: Any
) -> list[Field]:
    """Inputs of a place, kept: what is usual there is looked up, and its texts are tried out on the engine."""
    return form.fields(
        _page.contract,
        _page.snapshot,
        area,
        locality,
        when,
        read=lambda rows: _engine.answer(rows, "champion").features,
    )


def _form(page: Page, engine: Any) -> Row:
    """The inputs; returns a row by the contract's column names."""
    contract, snapshot = page.contract, page.snapshot
    when = form.newest_date(snapshot) if page.dated else date.today()
    row: Row = {}
    area = st.selectbox(_words(contract.area), form.areas(snapshot), key="what area")
    locality = area
    if contract.locality != contract.area:
        places = form.localities(snapshot, area)
        locality = st.selectbox(_words(contract.locality), places, key=f"what locality {area}")
    observed = next((c for c in contract.columns if c.name == contract.observed_on and c.source), None)
    if observed:
        # newest first; a price is of a month, whatever its day
        first, months = date.fromisoformat(f"{contract.first_month}-01"), [add_months(when, AHEAD)]
        while months[-1] > first:
            months.append(add_months(months[-1], -1))
        chosen = st.selectbox("Month", months, AHEAD, format_func=month_label, key="what date")
        row[observed.name] = _day(observed, chosen)
    known = form.placed(contract, area, locality)
    found = _fields(snapshot.fingerprint, area, locality, when, page, engine)
    # a new place has other plausible values: its inputs are others, too
    here = f"{area} {locality}"
    row |= known | _inputs(found[:SHOWN], here)
    if len(found) > SHOWN:
        with st.expander(f"{len(found) - SHOWN} more, as is usual here"):
            row |= _inputs(found[SHOWN:], here)
    return row | form.keys(contract, row)


def _inputs(found: list[Field], here: str) -> Row:
    row: Row = {}
    sides = st.columns(2)
    for i, field in enumerate(found):
        with sides[i % 2]:
            row[field.column.name] = _input(field, f"what {field.column.name} {here}")
    return {name: value for name, value in row.items() if value not in (None, "")}


def _input(field: Field, key: str) -> Any:
    c, tip = field.column, plain(field.column.description) or None
    if field.options:
        place = field.options.index(field.default)
        return st.selectbox(field.label, field.options, place, key=key, help=tip, accept_new_options=not c.values)
    if c.type == "text":
        return st.text_input(field.label, field.default, key=key, help=tip)
    # without limits: the browser would keep what was there before, and its price, for a number outside
    decimals = 0 if field.whole else 4 if c.unit == "degree" else 2
    return st.number_input(
        field.label,
        value=None if field.default is None else float(field.default),
        step=float(10**-decimals),
        format=f"%.{decimals}f",
        key=key,
        help=tip,
    )


def _faults(known: Any, row: Row) -> list[str]:
    """Why the API would refuse the row, a sentence for each value."""
    from ml.serving.bodies import parse
    from ml.serving.problems import ProblemError

    try:
        parse(known, json.dumps(row).encode())
    except ProblemError as error:
        return [f"{_words(fault['field'])}: {fault['reason']}" for fault in error.errors]
    return []


def _price(page: Page, answers: Any) -> None:
    if reasons := answers.reasons[0]:
        banner("warn", "No price can be given", f"{'; '.join(reasons)}.")
    else:
        ranges = {name: values[0] for name, values in answers.ranges.items()}
        items = [("Price", page.money(float(answers.price[0])), f"by {answers.version.model_version}")]
        if ranges["grade"] is not None:
            items += [
                (f"{level} % range", f"{_k(ranges[f'lower_{level}'])} to {_k(ranges[f'upper_{level}'])}", sure)
                for level, sure in (("50", "every other price"), ("80", "4 of 5 prices"), ("95", "19 of 20 prices"))
            ]
            items.append(("Grade", ranges["grade"], "A is surest, D least"))
            items.append(("Uncertainty", f"± {number(ranges['forecast_std_pct'], 1)} %", "forecast standard deviation"))
        else:
            items.append(("Price range", "none yet", "too few of its errors are known"))
        tiles(items)
    # a value that is not used is missing to the model, but it was given
    unused = {w["field"] for w in answers.warnings[0] if w["code"] != "missing_feature"}
    for warning in answers.warnings[0]:
        is_told = warning["code"] == "no_range" or (warning["code"] == "missing_feature" and warning["field"] in unused)
        if not is_told:
            st.caption("▲ " + plain(f"{warning['field'].replace('_', ' ')}: {warning['message']}"))


def _waterfall(page: Page, contributions: list[Row], price: float) -> None:
    usual = "usual price"
    if page.contract.level:
        usual = "price level of place and month" if page.dated else "price level of the place"
    section("Why", f"From the {usual} to this price, step by step.")
    base, *rest = contributions
    shown, others = rest[:STEPS], rest[STEPS:]
    steps = [(feature_label(page.contract, r["feature"]), r["contribution"]) for r in shown]
    if others:
        steps.append((f"{len(others)} others", sum(r["contribution"] for r in others)))
    rows = [
        {
            "label": f"{usual}: {amount(base['contribution'])}",
            "start": 0.0,
            "amount": base["contribution"],
            "kind": "base",
        }
    ]
    at = base["contribution"]
    for label, change in steps:
        rows.append({"label": label, "start": at, "amount": change, "kind": "up" if change > 0 else "down"})
        at += change
    rows.append({"label": f"price: {amount(price)}", "start": 0.0, "amount": price, "kind": "price"})
    figure = charts.waterfall(rows, currency=page.contract.currency)
    chart(figure, key="waterfall", alt="Waterfall: contributions of features from price level to price")


def _comparables(page: Page, sales: list[Row]) -> None:
    brought = "; their prices are brought to the chosen month" if page.dated else ""
    section("Comparable sales", f"Homes that the model finds most alike{brought}.")
    if not sales:
        earlier, later = (" earlier", " or a later month") if page.dated else ("", "")
        nothing(f"There is no{earlier} sale in this area to compare with.", f"Choose another area{later}.")
        return
    ids = [s["comparable_id"] for s in sales]
    places = {r["observation_id"]: r["locality"] for r in page.snapshot.rows(form.PLACES, ids=ids)}
    rows = [s | {"place": places.get(s["comparable_id"]), "alike": 100 * s["similarity"]} for s in sales]
    currency = page.contract.currency
    columns = [Column("place", _words(page.contract.locality))]
    columns += [Column("sold_month", "Sold")] if page.dated else []
    columns.append(Column("price", f"Paid, {currency}", money=True))
    columns += [Column("adjusted_price", "At that month's prices", money=True)] if page.dated else []
    columns.append(Column("alike", "Alike, %", 0))
    table(rows, columns, label="Comparable sales")


def _day(column: ContractColumn, day: date) -> str:
    return day.strftime(column.format or "%Y-%m-%d")


def _k(value: float) -> str:
    return f"{number(value / 1000)}k" if value >= 10_000 else amount(value)


def _words(column: str) -> str:
    return column.replace("_", " ").capitalize()
