"""Chromium walks the pages of the real dashboard: what stands on them equals SQL, at a desk and on a phone."""

from __future__ import annotations

import csv
import io
import math
import re
from calendar import month_name
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from playwright.sync_api import Browser

from ml.contract import Contract, load
from ml.dashboard import form
from ml.dashboard.snapshot import Snapshot
from ml.registry import champion, load_bundle
from ml.serving.engine import Engine
from ml.serving.snapshot import Snapshot as ServedSnapshot
from ml.words import number
from tests.browser.driver import Dashboard, Visit

SYNTHETIC = pytest.mark.parametrize("dashboard", ["housets"], indirect=True)
#: Also on real data, where they are: other columns, thousands of streets.
BOTH = pytest.mark.parametrize("dashboard", ["housets", "hdb"], indirect=True)
PAGES = ["Overview", "Predictions", "Map", "Monitoring", "What if", "Data", "Model"]
#: What a page says instead of itself.
FAILED = re.compile(r"This snapshot lacks|No snapshot to show|cannot be loaded|\b(nan|None|NaN|undefined)\b")
#: Errors of the champion's scored homes with a valid price, by hand and not by the dashboard's own query.
ERRORS = """
select count(*), avg(abs(predicted_price - actual_price)), sqrt(avg((predicted_price - actual_price) ** 2)),
    100 * avg(abs(predicted_price / actual_price - 1)), 100 * median(abs(predicted_price / actual_price - 1))
from predictions.predictions_matched as m
where model_version = 'v1' and split <> 'eval' and is_price_valid and ratio is not null and {condition}
"""


def ask(dashboard: Dashboard, sql: str) -> list[tuple]:
    with duckdb.connect(str(dashboard.settings.published), read_only=True) as connection:
        return connection.execute(sql).fetchall()


@pytest.fixture
def visit(browser: Browser, dashboard: Dashboard) -> Iterator[Visit]:
    tab = Visit(browser, dashboard)
    yield tab
    tab.close()


@BOTH
def test_every_page_is_whole_and_asks_nothing_of_other_hosts(
    browser: Browser, dashboard: Dashboard, tmp_path: Path
) -> None:
    visit = Visit(browser, dashboard, width=390, height=844)
    for title in PAGES:
        name = title.lower().replace(" ", "-")
        visit.page.set_viewport_size({"width": 390, "height": 844})
        visit.open("" if name == "overview" else name)
        # on a phone, then put on a larger screen; others open pages at a desk
        for width in (390, 1280):
            visit.page.set_viewport_size({"width": width, "height": 844})
            visit.settle()
            assert visit.page.locator("h1").inner_text() == title
            assert visit.page.locator("[data-testid=stException]").count() == 0
            text = visit.page.locator("[data-testid=stMain]").inner_text()
            assert not FAILED.search(text), (name, FAILED.findall(text))
            # nobody must have to scroll sideways
            assert visit.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (name, width)
            visit.screenshot(tmp_path / f"{name}_{width}.png")
            assert (tmp_path / f"{name}_{width}.png").stat().st_size > 20_000
    assert visit.elsewhere == []
    visit.close()


@SYNTHETIC
def test_figures_of_the_overview_are_those_of_monitoring(visit: Visit, dashboard: Dashboard) -> None:
    visit.open()
    [(month, error, mae, n)] = ask(
        dashboard,
        """
        select month, mdape_pct, mae, n from monitoring.accuracy_by_month
        where model_version = 'v1' and split = 'holdout' and population = 'valid' order by month desc limit 1
        """,
    )
    [(coverage,)] = ask(
        dashboard,
        f"""
        select coverage_pct from monitoring.interval_coverage
        where model_version = 'v1' and segment_type = 'month' and level_pct = 80 and segment = '{month}'
        """,
    )
    tiles = visit.tiles()
    assert tiles["Champion"] == "v1"
    assert tiles["Median error"] == f"{number(error, 2)} %"
    assert tiles["Mean error"] == f"{load(dashboard.settings.dataset).currency} {number(mae)}"
    assert tiles["80 % range holds"] == f"{number(coverage, 1)} %"
    assert f"{month:%b %Y}, {number(n)} prices" in visit.page.locator(".h-tiles").first.inner_text()


@SYNTHETIC
def test_each_filter_changes_the_figures_to_what_sql_says(visit: Visit, dashboard: Dashboard) -> None:
    contract = load(dashboard.settings.dataset)
    area, locality = (name.replace("_", " ").capitalize() for name in (contract.area, contract.locality))
    [(some_area, some_place, some_month)] = ask(
        dashboard,
        """
        select m.area, m.locality, month(m.month) from predictions.predictions_matched as m
        inner join predictions.prediction_intervals as i
            on m.observation_id = i.observation_id and m.model_version = i.model_version
        where m.model_version = 'v1' and m.is_price_valid and year(m.month) = 2023 and i.grade = 'A'
        group by all order by count(*) desc, m.area, m.locality limit 1
        """,
    )
    visit.open("predictions")
    conditions = ["true"]
    for label, option, condition in (
        ("Year", "2023", "year(month) = 2023"),
        (area, some_area, f"area = '{some_area}'"),
        ("Grade", "A", "observation_id in (select i.observation_id from predictions.prediction_intervals as i "
                       "where i.model_version = m.model_version and i.grade = 'A')"),
        (locality, some_place, f"locality = '{some_place}'"),
        ("Month", month_name[some_month], f"month(month) = {some_month}"),
    ):  # fmt: skip
        _equal_sql(visit, dashboard, conditions)
        visit.choose(label, option)
        conditions.append(condition)
    _equal_sql(visit, dashboard, conditions)
    # the view can be sent to somebody: another visitor sees the same figures under this address
    assert "year=2023" in visit.page.url and f"month={month_name[some_month]}" in visit.page.url
    tiles = visit.tiles()
    visit.open(visit.page.url.removeprefix(dashboard.url()))
    assert visit.tiles() == tiles


def _equal_sql(visit: Visit, dashboard: Dashboard, conditions: list[str]) -> None:
    currency = load(dashboard.settings.dataset).currency
    [(n, mae, rmse, mape, mdape)] = ask(dashboard, ERRORS.format(condition=" and ".join(conditions)))
    tiles = visit.tiles()
    about = visit.page.locator(".h-tiles").first.inner_text()
    assert f"{number(n)} with a known, valid price" in about, (conditions, about)
    if n:
        assert tiles["MAE"] == f"{currency} {number(mae)}", conditions
        assert tiles["RMSE"] == f"{currency} {number(rmse)}", conditions
        assert tiles["Mean error"] == f"{number(mape, 2)} %", conditions
        assert tiles["Median error"] == f"{number(mdape, 2)} %", conditions


@SYNTHETIC
def test_the_table_can_be_downloaded_whole(visit: Visit, dashboard: Dashboard) -> None:
    visit.open("predictions?year=2023&month=June")
    with visit.page.expect_download() as waiting:
        visit.page.get_by_role("button", name="Download all as CSV").click()
    rows = list(csv.DictReader(io.StringIO(Path(waiting.value.path()).read_text(encoding="utf-8"))))
    found = ask(
        dashboard,
        """
        select count(*), sum(predicted_price) from predictions.predictions
        where model_version = 'v1' and kind = 'model' and split <> 'eval' and month = date '2023-06-01'
        """,
    )
    assert [(len(rows), pytest.approx(sum(float(r["predicted_price"]) for r in rows)))] == found


@BOTH
def test_the_map_draws_every_home_of_the_chosen_place(visit: Visit, dashboard: Dashboard) -> None:
    visit.open("map")
    [(area, n)] = ask(
        dashboard,
        """
        select area, count(*) from predictions.predictions where model_version = 'v1' and kind = 'model'
            and split <> 'eval' group by area order by count(*) desc, area limit 1
        """,
    )
    visit.choose(load(dashboard.settings.dataset).area.replace("_", " ").capitalize(), area)
    for colour in ("price", "size of error", "error"):
        visit.press(visit.page.get_by_role("radio", name=colour, exact=True))
        caption = visit.page.locator("[data-testid=stMain] [data-testid=stCaptionContainer]").last.inner_text()
        assert caption.startswith(f"{n:,} homes in"), caption


@SYNTHETIC
def test_rows_of_the_data_page_add_up(visit: Visit, dashboard: Dashboard) -> None:
    visit.open("data")
    [(landed, accepted, rejected)] = ask(
        dashboard,
        """
        select sum(landed), sum(accepted_train + accepted_eval + accepted_holdout + accepted_to_score), sum(rejected)
        from monitoring.reconciliation
        """,
    )
    tiles = visit.tiles()
    assert [tiles[k] for k in ("Landed rows", "Accepted", "Rejected", "Lost")] == [
        number(landed), number(accepted), number(rejected), "0"
    ]  # fmt: skip
    reasons = ask(dashboard, "select reason, n from monitoring.rejections_by_reason order by n desc")
    text = visit.page.locator("[data-testid=stMain]").inner_text()
    assert all(reason in text and number(n) in text for reason, n in reasons)
    visit.press(visit.page.get_by_role("radio", name="quarantined"))
    assert "No such file." in visit.page.locator("[data-testid=stMain]").inner_text()


@SYNTHETIC
def test_monitoring_shows_the_ratio_study_of_sql(visit: Visit, dashboard: Dashboard) -> None:
    visit.open("monitoring")
    rows = ask(
        dashboard,
        """
        select segment, n, median_ratio, cod from monitoring.ratio_study
        where model_version = 'v1' and split = 'holdout' and population = 'valid' and segment_type = 'area'
        """,
    )
    table = visit.page.get_by_role("region", name="Ratio study by area").locator("tbody tr")
    shown = {cells[0]: cells for cells in (row.split("\t") for row in table.all_inner_texts())}
    assert len(shown) == len(rows) > 10
    for area, n, ratio, cod in rows:
        assert [shown[area][1], shown[area][3], shown[area][4]] == [number(n), number(ratio, 3), number(cod, 1)]

    splits = ask(
        dashboard,
        """
        select split, n, median_ratio from monitoring.ratio_study
        where model_version = 'v1' and population = 'valid' and segment_type = 'all'
        order by array_position(['train', 'eval', 'holdout'], split)
        """,
    )
    assert [split for split, *_ in splits] == ["train", "eval", "holdout"]
    rows = visit.page.get_by_role("region", name="Ratio study by split").locator("tr", has_text="model v1")
    shown_splits = [row.split("\t") for row in rows.all_inner_texts()]
    assert [[c[0], c[2], c[3]] for c in shown_splits] == [[s, number(n), number(r, 3)] for s, n, r in splits]


@SYNTHETIC
def test_the_model_page_names_run_and_data_of_the_champion(visit: Visit, dashboard: Dashboard) -> None:
    visit.open("model")
    learned = "n_train + if(model_sha256 <> evaluated_sha256, n_eval, 0)"
    [(run, n)] = ask(dashboard, f"select run_id, {learned} from training.model_versions where model_version = 'v1'")
    assert visit.tiles()["Learned from"] == number(n)
    link = visit.page.get_by_role("link", name="MLflow run")
    assert str(link.get_attribute("href")).endswith(f"/#/runs/{run}")
    assets = [a.get_attribute("href") for a in visit.page.locator("a.h-tile").all()]
    assert "http://127.0.0.1:3000/assets/predictions/predictions" in assets


@BOTH
def test_what_if_says_what_the_bundle_says_and_its_steps_lead_to_the_price(visit: Visit, dashboard: Dashboard) -> None:
    contract, snapshot = load(dashboard.settings.dataset), Snapshot.open(dashboard.settings)
    with duckdb.connect(str(dashboard.settings.published), read_only=True) as connection:
        version = champion(connection)
    assert version
    bundle = load_bundle(dashboard.settings, version)
    engine = Engine(contract, ServedSnapshot(dashboard.settings), version, bundle)
    area = form.areas(snapshot)[0]
    locality = form.localities(snapshot, area)[0]
    when = form.newest_date(snapshot)
    asked = form.fields(
        contract, snapshot, area, locality, when, read=lambda rows: engine.answer(rows, "champion").features
    )
    engine.snapshot.close()
    row = form.placed(contract, area, locality)
    row |= {f.column.name: f.default for f in asked}
    row |= {c.name: f"{when:{c.format}}" for c in contract.columns if c.name == contract.observed_on}
    row |= form.keys(contract, row)
    raw = pa.table({h: [None if row.get(c.name) is None else str(row[c.name])] for h, c in contract.sources.items()})
    answer = bundle.predict(raw)
    assert answer["reasons"][0].as_py() == []
    visit.open("what-if")
    visit.page.wait_for_selector(".h-tile", timeout=60_000)
    visit.settle()
    month = visit.page.locator("[data-testid=stSelectbox]", has_text="Month").locator("input")
    assert month.input_value() == f"{when:%b %Y}"
    # the bundle's price is bare
    price = answer["predicted_price"][0].as_py() * math.exp(_recent_error(dashboard, contract, row))
    assert visit.tiles()["Price"] == f"{contract.currency} {number(price)}"
    bars = visit.page.evaluate("() => [...document.querySelector('.js-plotly-plot').data[0].x]")
    assert sum(bars[:-1]) == pytest.approx(bars[-1], rel=1e-6) == pytest.approx(price, rel=1e-6)
    # another value gives another price, with the range that belongs to it
    before = visit.tiles()
    spin = visit.page.locator("[data-testid=stNumberInput] input").first
    spin.fill(str(1.5 * float(spin.input_value())))
    spin.press("Enter")
    visit.page.wait_for_function(
        "before => document.querySelector('.h-tile strong').textContent !== before", arg=before["Price"]
    )
    visit.settle()
    assert visit.tiles()["80 % range"] != before["80 % range"]


def _recent_error(dashboard: Dashboard, contract: Contract, row: dict[str, Any]) -> float:
    """What a home of the newest month carries of the champion's recent errors, by hand from the snapshot's sums."""
    kinds = {c.name: c.type for c in contract.columns}
    mixed = 0.0
    for level, group in enumerate(contract.recent_errors.groups if contract.recent_errors else (), start=1):
        key = "\x1f".join(str(row[k]) if kinds[k] == "text" else str(float(row[k])) for k in group.keys)
        [(n, micro_error)] = ask(
            dashboard,
            f"""
            select coalesce(sum(n), 0), coalesce(sum(micro_error), 0) from predictions.recent_errors
            where level = {level} and key_value = '{key}'
                and month = (select max(month) from predictions.predictions where split = 'holdout')
            """,
        )
        assert n > 0, key
        mixed = (micro_error / 1e6 + group.prior * mixed) / (n + group.prior)
    return mixed


@SYNTHETIC
def test_a_page_and_a_filter_are_reached_without_a_mouse(visit: Visit) -> None:
    visit.open()
    keyboard = visit.page.keyboard
    _tab_to(visit, "Predictions")
    keyboard.press("Enter")
    visit.page.wait_for_url("**/predictions")
    visit.settle()
    before = visit.tiles()
    _tab_to(visit, "Year")
    keyboard.type("2022")
    keyboard.press("Enter")
    visit.page.wait_for_url("**year=2022**")
    visit.page.wait_for_function("before => document.querySelector('.h-tile strong').textContent !== before",
                                 arg=before["Predictions"])  # fmt: skip


def _tab_to(visit: Visit, name: str) -> None:
    """Press Tab until the element of this name has the focus."""
    focused = (
        "() => ['A', 'BUTTON', 'INPUT'].includes(document.activeElement.tagName) "
        "? (document.activeElement.ariaLabel || '') + ' ' + document.activeElement.textContent : ''"
    )
    for _ in range(40):
        visit.page.keyboard.press("Tab")
        if name in visit.page.evaluate(focused):
            return
    raise AssertionError(f"{name} is not reached by Tab")
