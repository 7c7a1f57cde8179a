"""The monthly report from small snapshots made by hand: its figures, its words where data lack, and that it is safe."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from pathlib import Path

import duckdb
import pytest

from ml.contract import load
from ml.report import ReportError, write_report
from ml.settings import Settings
from ml.words import feature_label

HOSTILE = "<script>alert(1)</script>"
JUNE = date(2023, 6, 1)
PUBLIC = """
create schema training; create schema predictions; create schema monitoring; create schema raw;
create schema published;

create table published.about as select timestamp '2024-01-02 03:04:05' as published_at,
    'abcdef0123456789' as fingerprint;
create table raw.files as select 'bad.csv' as file, 'quarantined' as status, '$hostile' as reason,
    timestamp '2024-01-01' as loaded_at;
create table training.model_versions as select
    'v1' as model_version, 'champion' as status, timestamp '2024-01-01' as created_at,
    date '2017-01-01' as trained_from, date '2021-12-01' as trained_through, date '2021-07-01' as eval_from,
    1234 as n_train, 56 as n_eval, 24 as features, 77 as best_iteration, 20000.0 as eval_mae, 30000.0 as eval_rmse,
    0.97 as eval_r2, 2.9 as eval_mdape_pct, 28000.0 as eval_baseline_mae, 1 as seed, 'data-print' as data_fingerprint,
    'c0ffee' as git_commit, 'run-17' as run_id, 'a' as model_sha256, 'a' as evaluated_sha256, [] as reasons;
create table training.model_aliases as
    select 'champion' as alias, 'v1' as model_version, timestamp '2024-01-01' as moved_at;

-- two months of 40 homes; from the second on they have a price only where there are prices at all
create table training.training_dataset as select
    'h' || i as observation_id, m.month, m.month as observed_on,
    if(i % 3 = 0, '$hostile', 'TOWN ' || i % 3) as area, '$5 & STREET ' || i % 5 as locality,
    1.3e0 + i / 1000 as latitude, 103.8e0 + i % 7 / 1000 as longitude, 4e5 + 1000 * i as price
from range(80) as r(i), (select unnest($months) as month, unnest([0, 1]) as number) as m where i // 40 = m.number;
create table predictions.predictions as select
    observation_id, 'v1' as model_version, 'model' as kind, if($priced, 'holdout', 'to_score') as split, month,
    'batch' as mode, observed_on, area, locality,
    price * (1 + (hash(observation_id) % 21 - 10.0) / 100) as predicted_price
from training.training_dataset;
create table predictions.predictions_matched as select
    p.*, 1 + cast(substr(observation_id, 2) as integer) % 10 as price_decile, t.price as actual_price,
    observation_id <> 'h79' as is_price_valid, predicted_price / t.price as ratio,
    100 * (predicted_price / t.price - 1) as pct_error
from predictions.predictions as p inner join training.training_dataset as t using (observation_id) where $priced;
create table predictions.prediction_intervals as select
    *, predicted_price * 0.9 as lower_80, predicted_price * 1.1 as upper_80, 5.0 as forecast_std_pct,
    if(observation_id < 'h5', 'A', 'B') as grade
from predictions.predictions;
create table predictions.explanations as select observation_id, model_version, month, feature, contribution, "rank"
from predictions.predictions, (values ('(price level)', 9e5, 0), ('storey_mid', -1500.0, 1), ('$hostile', 25, 2),
    ('town_3m_to_level', 10.0, 3), ('never shown', 1.0, 4)) as t (feature, contribution, "rank") where $priced;
create table predictions.comparables as select observation_id, model_version, month, 1 as "rank", 'h1' as comparable_id,
    0.75e0 as similarity, date '2020-05-01' as sold_month, 4.1e5 as price, 4.23456e5 as adjusted_price
from predictions.predictions where $priced;

create table monitoring.accuracy_by_month as
    select 'holdout' as split, name as model_version, if(name = 'v1', 'model', 'baseline') as kind, month,
        'valid' as population, count(*) as n, avg(abs(predicted_price - actual_price)) + extra as mae,
        median(abs(pct_error)) + extra as mdape_pct, 100.0 as within_10_pct, median(ratio) as median_ratio,
        'pass' as status
    from predictions.predictions_matched,
        (values ('v1', 0), ('linear_v1', 1), ('persistence', 2), ('last_year', 3)) as t (name, extra)
    where is_price_valid group by name, month, extra;
create table monitoring.ratio_study as
    with cuts as (
        select *, unnest(['all', 'month', 'price_decile']) as segment_type,
            unnest(['all', month::varchar, price_decile::varchar]) as segment
        from predictions.predictions_matched where is_price_valid
    )
    select 'holdout' as split, 'v1' as model_version, 'valid' as population, segment_type, segment, count(*) as n,
        median(ratio) as median_ratio, 12.3 as cod, 12.1 as cod_lower, 12.5 as cod_upper, 1.01 as prd,
        null::double as prd_lower, null::double as prd_upper, 0.01 as prb, -0.02 as prb_lower, 0.04 as prb_upper,
        null::double as mki,
        'pass' as median_ratio_status, 'pass' as cod_status, 'pass' as prd_status, 'pass' as prb_status,
        'insufficient_data' as mki_status, 'pass' as status
    from cuts group by segment_type, segment;
create table monitoring.interval_coverage as
    with cuts as (
        select i.*, unnest(['all', 'month', 'area', 'grade']) as segment_type,
            unnest(['all', month::varchar, area, grade]) as segment
        from predictions.prediction_intervals as i where $priced
    )
    select 'v1' as model_version, 'holdout' as split, segment_type, segment, level_pct, count(*) as n,
        level_pct - 1.5e0 as coverage_pct, 2e1 as mean_width_pct, if(segment_type = 'month', 'warn', 'pass') as status
    from cuts, (select unnest([50, 80, 95]) as level_pct) group by segment_type, segment, level_pct;
create table monitoring.served_months as select 'v1' as model_version, month, 'pass' as status
    from predictions.predictions_matched group by month;
create table monitoring.drift_by_month as from monitoring.served_months;
create table monitoring.feature_importance_by_month as select model_version, month, feature, count(*) as n,
    avg(abs(contribution)) as mean_absolute_contribution, avg(abs(contribution)) / 1000 as mean_absolute_share_pct,
    any_value("rank") as importance_rank, if(month = $months[1], null, 0.25) as change_in_share_pct
    from predictions.explanations where "rank" > 0 group by model_version, month, feature;
create table monitoring.reconciliation as select 1 as batch, '$hostile.csv' as file, 12345 as landed,
    12000 as accepted_train, 100 as accepted_eval, 80 as accepted_holdout, 0 as accepted_to_score, 165 as rejected,
    0 as difference, 'pass' as status;
create table monitoring.rejections_by_reason as select '$hostile' as reason, 165 as n, 1.34 as share_pct;
create table monitoring.monitoring_thresholds as from (values
    ('n', 'insufficient_data', 3e1, null), ('cod', 'warn', null, 15e0), ('prb', 'warn', -5e-2, 5e-2)
) as t (metric, severity, lower_limit, upper_limit);
"""

Make = Callable[..., Settings]


@pytest.fixture
def made(tmp_path: Path) -> Make:
    """Settings of a home whose snapshot holds PUBLIC."""

    def make(
        dataset: str = "hdb", months: tuple[str, str] = ("2023-05-01", "2023-06-01"), priced: bool = True
    ) -> Settings:
        settings = Settings(home=tmp_path / "home", dataset=dataset)
        settings.published.parent.mkdir(parents=True)
        dates = ", ".join(f"date '{m}'" for m in months)
        sql = PUBLIC.replace("$months", f"[{dates}]").replace("$priced", str(priced)).replace("$hostile", HOSTILE)
        with duckdb.connect(str(settings.published)) as connection:
            connection.execute(sql)
        return settings

    return make


def report(settings: Settings, month: date = JUNE) -> str:
    return write_report(settings, load(settings.dataset), month=month).read_text(encoding="utf-8")


def section(page: str, name: str) -> str:
    return re.split(r"</section>", page.split(f'<section id="{name}">')[1])[0]


def ask(settings: Settings, sql: str) -> list[tuple]:
    with duckdb.connect(str(settings.published), read_only=True) as connection:
        return connection.execute(sql).fetchall()


def change(settings: Settings, sql: str) -> None:
    with duckdb.connect(str(settings.published)) as connection:
        connection.execute(sql)


def test_figures_of_the_page_are_those_that_sql_gives(made: Make):
    settings = made()
    page = report(settings)
    ((mae, mdape, ratio),) = ask(
        settings,
        """
        select mae, mdape_pct, median_ratio from monitoring.accuracy_by_month
        where model_version = 'v1' and month = '2023-06-01'
        """,
    )
    # h79 has an invalid price: 39 of 40
    assert f'model v1</td><td class="n">39</td><td class="n">{mae:,.0f}</td><td class="n">{mdape:.2f}</td>' in page
    assert f"<dd>{mdape:.2f} %<small>" in page and f"<dd>{ratio:.3f}<small>" in page
    assert "40<small>39 with a valid price" in page

    ((n, width),) = ask(
        settings,
        "select n, mean_width_pct from monitoring.interval_coverage where segment = 'A' and level_pct = 80",
    )
    cells = "".join(f'<td class="n">{cell}</td>' for cell in (n, 48.5, 78.5, 93.5, f"{width:.1f} %"))
    assert f'<td class="name">Grade A</td>{cells}' in section(page, "coverage")

    ratios = section(page, "ratios")
    assert '<td>holdout</td><td class="name">model v1</td><td class="n">' in ratios
    assert "12.3<small>12.1 to 12.5</small>" in ratios and ">1.010</td>" in ratios
    # what is there to compare with is not judged
    assert "to&nbsp;compare" in section(page, "accuracy") and section(page, "accuracy").count('class="chip') == 1

    worst = ask(
        settings,
        """
        select pct_error, actual_price, predicted_price from predictions.predictions_matched
        where month = '2023-06-01' and is_price_valid order by abs(pct_error) desc, observation_id limit 10
        """,
    )
    shown = re.findall(r'<b class="error">(.+?) %</b>.*?paid <b>(.+?)</b>.*?predicted <b>(.+?)</b>', page, re.DOTALL)
    assert [(e.replace("\N{MINUS SIGN}", "-"), a, p) for e, a, p in shown] == [
        (f"{e:+.1f}", f"{a:,.0f}", f"{p:,.0f}") for e, a, p in worst
    ]
    misses = section(page, "misses")
    assert misses.count(">storey mid</td>") == 10 and "never shown" not in misses and "(price level)" not in page
    assert misses.count("0.75 alike") == 10 and "423,456" in misses and "May 2020" in misses

    data = section(page, "data")
    assert "12,345" in data and "12,000" in data and "1.34" in data
    card = section(page, "card")
    for fact in ("1,234 rows, Jan 2017 to Jun 2021", "data-print", "c0ffee", "run-17", "SGD 28,000", "0.970"):
        assert fact in card
    # refitted: what is shipped learned from its evaluation, too
    change(settings, "update training.model_versions set evaluated_sha256 = 'b'")
    assert "1,290 rows, Jan 2017 to Dec 2021" in section(report(settings), "card")


def test_status_is_the_worst_verdict_of_the_month_and_names_it(made: Make):
    settings = made()
    page = report(settings)
    assert '<span class="chip warn">warning</span><p>Warning: ranges.</p>' in page
    change(settings, "update monitoring.reconciliation set status = 'fail', difference = 1")
    assert '<span class="chip fail">fail</span><p>Fail: row counts. Warning: ranges.</p>' in report(settings)
    # another month's verdict says nothing of this one
    change(settings, "update monitoring.reconciliation set status = 'pass', difference = 0")
    change(settings, "update monitoring.interval_coverage set status = 'pass' where segment = '2023-06-01'")
    assert "<p>Within limits: drift, error and level, ranges, ratio study.</p>" in report(settings)
    # what the month is beside the evaluation window, and beside what was learned from
    change(settings, "update monitoring.served_months set status = 'fail' where month = '2023-06-01'")
    change(settings, "update monitoring.drift_by_month set status = 'warn' where month = '2023-06-01'")
    assert "<p>Fail: error and level. Warning: drift.</p>" in report(settings)


def test_the_page_fetches_nothing_and_holds_every_picture(made: Make):
    page = report(made())
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#)""", page)
    assert not re.findall(r"<script|<link|<img|<iframe|@import|@font-face|url\(\s*['\"]?(?!#)", page)
    # accuracy, deciles, two of coverage, areas, map, importance
    assert page.count("<figure>") == page.count("<figcaption>") == 7


def test_hostile_text_in_data_is_shown_and_not_run(made: Make):
    page = report(made())
    assert "<script" not in page
    for name in ("coverage", "areas", "importance", "misses", "data"):
        assert "&lt;script&gt;alert(1)" in section(page, name), name
    # a dollar starts no formula and an ampersand no entity
    assert "$5 &amp; STREET" in page


def test_the_same_snapshot_gives_the_same_bytes(made: Make):
    settings = made()
    path = write_report(settings, load("hdb"), month=JUNE)
    first = path.read_bytes()
    # any day of the month is the month
    assert write_report(settings, load("hdb"), month=date(2023, 6, 17)) == path
    assert path.read_bytes() == first
    assert path == settings.home / "reports" / "hdb" / "2023-06.html"
    assert [p.name for p in path.parent.iterdir()] == ["2023-06.html"]


def test_a_place_can_be_named(made: Make, tmp_path: Path):
    out = tmp_path / "elsewhere" / "june.html"
    assert write_report(made(), load("hdb"), month=JUNE, out=out) == out
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_month_without_prices_says_so_and_still_shows_what_is_known(made: Make):
    page = report(made(priced=False))
    assert "40 homes scored, no price is known yet: accuracy cannot be judged." in page
    assert '<span class="chip insufficient_data">' in page
    for name in ("accuracy", "ratios", "areas", "misses"):
        assert "No valid price of June 2023 is known yet" in section(page, name), name
    assert "coverage cannot be measured" in section(page, "coverage")
    assert "have not been explained yet" in section(page, "importance")
    assert "June 2023 by grade: A" in section(page, "coverage")
    assert "<figure>" not in page and "Median prediction" in page


def test_a_dataset_without_dates_is_reported_as_all_rows(made: Make):
    settings = made("house_data", months=("1970-01-01", "1970-01-01"))
    change(settings, "update training.model_versions set trained_from = null, trained_through = null, eval_from = null")
    page = report(settings, date(1970, 1, 1))
    assert "Teaching file of houses: All rows</h1>" in page
    assert "no dates, so there is no course over time" in section(page, "accuracy")
    assert 'model v1</td><td class="n">79</td>' in page
    assert "1970" not in page
    # the contract has no coordinates
    assert "Map of the median residual" not in page


@pytest.mark.parametrize("change_sql", ["delete from predictions.explanations", "delete from predictions.comparables"])
def test_a_miss_without_reasons_or_comparables_is_shown_without(made: Make, change_sql: str):
    settings = made()
    change(settings, change_sql)
    assert section(report(settings), "misses").count("<li>") == 10


def test_what_cannot_be_reported_is_one_sentence(made: Make, tmp_path: Path):
    with pytest.raises(ReportError, match=r"^nothing has been published for hdb at .*; type: housing run -d hdb$"):
        report(Settings(home=tmp_path / "empty", dataset="hdb"))
    settings = made()
    with pytest.raises(
        ReportError, match=r"^v1 scored nothing in 2024-01; months that can be reported: 2023-05 to 2023-06$"
    ):
        report(settings, date(2024, 1, 1))
    # rows of the evaluation window are not scored by the version that stands
    change(settings, "update predictions.predictions set split = 'eval' where month = '2023-06-01'")
    with pytest.raises(ReportError, match=r"months that can be reported: 2023-05$"):
        report(settings)
    change(settings, "update training.model_versions set status = 'rejected'")
    with pytest.raises(ReportError, match=r"^no version of hdb is champion; type: housing train -d hdb$"):
        report(settings)
    change(settings, "drop table training.model_versions")
    with pytest.raises(ReportError, match=r"lacks what the report needs; type: housing run -d hdb "):
        report(settings)
    assert not (settings.home / "reports").exists()


def test_features_are_named_in_words():
    hdb = load("hdb")
    assert feature_label(hdb, "town_3m_to_level") == "past price: town, 3 months"
    assert feature_label(hdb, "all_3m_change_12m") == "price change over 12 months: whole market"
    assert feature_label(hdb, "unheard_of") == "unheard_of"
    assert feature_label(load("house_data"), "location_is_rural") == "location is Rural"
