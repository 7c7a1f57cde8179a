"""What the pages say where something is missing, failed or old: each state names it and says what to type.

Streamlit runs the real script in this process (``AppTest``), without a browser.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from streamlit.testing.v1 import AppTest

from ml.dashboard.launch import APP
from ml.dashboard.snapshot import Snapshot
from ml.settings import Settings

Publish = Callable[..., Settings]


@pytest.fixture
def changed(tmp_path: Path, published: Settings, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Publish the built snapshot with changes by SQL, under a dataset's name, in a home of the test's own."""

    def publish(sql: str = "", dataset: str = "housets") -> Settings:
        settings = Settings(home=tmp_path, dataset=dataset)
        settings.published.parent.mkdir(parents=True, exist_ok=True)
        aside = settings.published.with_suffix(".tmp")
        shutil.copyfile(published.published, aside)
        with duckdb.connect(str(aside)) as connection:
            connection.execute(sql or "select 1")
        aside.replace(settings.published)
        return settings

    monkeypatch.setenv("HOUSING_HOME", str(tmp_path))
    monkeypatch.setenv("HOUSING_DATASET", "housets")
    return publish


def overview() -> str:
    """All text of the start page."""
    return text(AppTest.from_file(str(APP), default_timeout=60).run())


def shown(settings: Settings, name: str) -> str:
    """All text of another page."""
    return text(app_of(settings, name))


def app_of(settings: Settings, name: str) -> AppTest:
    """Another page, run."""

    def script(home: str, dataset: str, name: str) -> None:
        from importlib import import_module
        from pathlib import Path

        from ml.contract import load
        from ml.dashboard import queries
        from ml.dashboard.page import Options, Page
        from ml.dashboard.snapshot import Snapshot
        from ml.settings import Settings

        settings = Settings(home=Path(home), dataset=dataset)
        snapshot = Snapshot.open(settings)
        page = Page(settings, load(dataset), snapshot, snapshot.first(queries.CHAMPION), Options())
        import_module(f"ml.dashboard.views.{name}").render(page)

    given = {"home": str(settings.home), "dataset": settings.dataset, "name": name}
    return AppTest.from_function(script, default_timeout=60, kwargs=given).run()


def text(app: AppTest) -> str:
    assert not app.exception, app.exception
    kinds = ("html", "info", "markdown", "caption", "title", "header")
    return "\n".join(getattr(e.proto, "body", "") for kind in kinds for e in app.get(kind))


def test_the_whole_start_page_is_shown_where_nothing_is_missing(changed: Publish) -> None:
    changed()
    words = overview()
    assert "Median error" in words and "Checks" in words and "lacks" not in words


def test_without_a_snapshot_the_page_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOUSING_HOME", str(tmp_path))
    monkeypatch.setenv("HOUSING_DATASET", "hdb")
    assert "housing run --dataset hdb" in overview()


def test_a_damaged_snapshot_is_told(changed: Publish) -> None:
    changed().published.write_bytes(b"half a file" * 500)
    words = overview()
    assert "cannot be read" in words and "delete the file" in words


def test_an_old_snapshot_is_called_stale(changed: Publish) -> None:
    changed("update published.about set published_at = now()::timestamp - interval 60 day")
    words = overview()
    assert "This snapshot is 60 days old" in words and "housing ingest FILES --dataset housets" in words
    changed("update published.about set published_at = now()::timestamp - interval 40 day")
    assert "days old" not in overview()


def test_answers_of_the_api_are_not_among_the_predictions_that_are_judged(changed: Publish) -> None:
    count = (
        "select count(*) from predictions.predictions where model_version = 'v1' and kind = 'model' and split <> 'eval'"
    )
    settings = changed()
    with duckdb.connect(str(settings.published), read_only=True) as connection:
        (n,) = connection.execute(count).fetchone() or (0,)
    assert f"{n:,}" in shown(settings, "predictions")
    settings = changed("""
        insert into predictions.predictions
        select * replace (md5(observation_id) as observation_id, 'online' as mode, date '2012-03-01' as month)
        from predictions.predictions where model_version = 'v1' and kind = 'model' and split <> 'eval' limit 100
        """)
    words = shown(settings, "predictions")
    assert f"{n:,}" in words and f"{n + 100:,}" not in words


def test_a_model_that_failed_its_gate_is_told_with_its_reasons(changed: Publish) -> None:
    settings = changed(
        "update training.model_versions set status = 'rejected', reasons = ['no better than a guess'];"
        "delete from predictions.predictions"
    )
    words = overview()
    assert "No model is champion" in words and "no better than a guess" in words and "housing train" in words
    assert "There is no champion to ask." in shown(settings, "what_if")
    # scoring or training the same rows again would not help
    for name in ("predictions", "monitoring", "what_if"):
        words = shown(settings, name)
        assert "No version passed its gate" in words and "housing status --dataset housets" in words, name


def test_before_the_first_training_every_page_says_what_comes_next(changed: Publish) -> None:
    settings = changed(
        "delete from training.model_versions; delete from training.model_aliases; delete from predictions.predictions"
    )
    assert "No model yet" in overview()
    assert "housing train --dataset housets" in shown(settings, "model")
    for name in ("predictions", "map", "monitoring"):
        assert "housing train --dataset housets" in shown(settings, name), name


def test_scored_homes_without_known_prices_are_shown_without_errors(changed: Publish) -> None:
    settings = changed(
        """
        delete from predictions.predictions_matched; delete from monitoring.accuracy;
        delete from monitoring.accuracy_by_month; delete from monitoring.ratio_study;
        delete from monitoring.interval_coverage; delete from monitoring.reconciliation;
        drop table if exists monitoring.checks; drop table if exists monitoring.served_months
        """
    )
    assert "Nothing can be judged yet" in overview()
    assert "It appears when actual prices land." in shown(settings, "predictions")
    assert "No price of a scored home is known yet." in shown(settings, "monitoring")


def test_a_snapshot_of_an_earlier_version_says_which_tables_it_lacks(changed: Publish) -> None:
    settings = changed(
        """
        drop table if exists monitoring.checks; drop table if exists monitoring.served_months;
        drop table if exists monitoring.retrain_decisions; drop table if exists monitoring.feature_drift;
        drop table if exists predictions.current_predictions; drop table if exists monitoring.challenger_comparisons
        """
    )
    words = overview()
    assert "no monitoring.checks yet" in words and "Median absolute error" in words
    assert "no monitoring.feature_drift yet" in shown(settings, "monitoring")


def test_a_failing_check_is_the_first_thing_said(changed: Publish) -> None:
    changed(
        """
        update monitoring.checks set status = case check_name when 'median_ratio' then 'fail' when 'cod' then 'warn'
            else 'pass' end
        """
    )
    words = overview()
    assert "The model needs attention" in words
    assert "Failing: Median ratio. Warning: COD." in words


def test_failures_of_the_champion_before_are_not_those_of_the_present_one(changed: Publish) -> None:
    changed(
        """
        update monitoring.checks set status = case check_name when 'median_ratio' then 'fail' else 'pass' end;
        insert into training.model_versions
        select * replace ('v9' as model_version, created_at + interval 1 hour as created_at)
        from training.model_versions where status = 'champion';
        update training.model_versions set status = 'archived' where model_version = 'v1'
        """
    )
    words = overview()
    assert "needs attention" not in words and "v9 cannot be judged yet" in words
    assert "The checks below are of v1." in words
    changed("update monitoring.checks set status = 'fail' where check_name = 'unreconciled_rows'")
    assert "The model needs attention" in overview()


def test_rows_that_add_up_do_not_make_a_model_healthy(changed: Publish) -> None:
    judged = (
        "update monitoring.checks set status = case when check_name in ({}) then 'pass' else 'insufficient_data' end"
    )
    changed(judged.format("'unreconciled_rows', 'unpriced_pct'"))
    words = overview()
    assert "healthy" not in words and "Nothing can be judged yet" in words
    assert "Too few prices of scored homes are known for any of the 13 checks of the model." in words
    changed(judged.format("'median_ratio', 'unpriced_pct'"))
    words = overview()
    assert "The model is healthy" in words and "All 2 checks that can be judged pass." in words


def test_a_decision_to_train_again_is_shown_however_long_ago(changed: Publish) -> None:
    hold = "update monitoring.retrain_decisions set decision = 'hold', reasons = []"
    changed(hold)
    assert "Below the newest" not in overview()
    oldest = "month = (select min(month) from monitoring.served_months)"
    changed(f"{hold}; update monitoring.retrain_decisions set decision = 'retrain', reasons = ['drift'] where {oldest}")
    words = overview()
    assert "Below the newest stand earlier ones" in words and "<td>retrain (drift)</td>" in words


def test_answers_of_the_api_do_not_stand_in_for_the_monthly_scoring(changed: Publish) -> None:
    newest = re.compile(r"(Median error|Mean error|80 % range holds)</b><strong>(.*?)</strong><small>(.*?)</small>")
    scored = re.compile(r"[\d,]+ homes through \w+ \d+")
    changed()
    before = overview()
    changed(
        """
        insert into predictions.predictions
        select * replace ('asked ' || observation_id as observation_id, 'online' as mode, 'to_score' as split,
            date '2027-06-01' as month, scored_at + interval 1 hour as scored_at)
        from predictions.predictions where kind = 'model' and split = 'holdout';
        insert into monitoring.accuracy_by_month
        select * replace ('online' as split, date '2027-06-01' as month, 99 as mdape_pct)
        from monitoring.accuracy_by_month
        where split = 'holdout' and month = (select max(month) from monitoring.served_months);
        insert into monitoring.interval_coverage
        select * replace ('online' as split, '2027-06-01' as segment, 9 as coverage_pct)
        from monitoring.interval_coverage
        where segment_type = 'month' and segment = (select max(month)::varchar from monitoring.served_months)
        """
    )
    after = overview()
    assert len(newest.findall(before)) == 3 and newest.findall(after) == newest.findall(before)
    assert scored.findall(before) and scored.findall(after) == scored.findall(before)


def test_drift_that_nobody_can_judge_is_not_called_within_its_limits(changed: Publish) -> None:
    words = shown(changed("update monitoring.feature_drift set status = 'insufficient_data'"), "monitoring")
    assert "Too few rows to judge" in words and "within their limits" not in words
    some = "update monitoring.feature_drift set status = case when month < '2023-01-01' then {} end"
    words = shown(changed(some.format("'pass' else 'insufficient_data'")), "monitoring")
    assert re.search(r"All \d+ shown that can be judged are within their limits. \d+ more have too few rows", words)
    words = shown(changed(some.format("'fail' else 'pass'")), "monitoring")
    assert re.search(r"\d+ of \d+ shown are outside their limits, 0 of them in", words)
    assert "Shown are the 24 features that drift most, of 48." in words


def test_months_are_spoken_of_only_where_there_are_dates(changed: Publish) -> None:
    def compared(home: str, dataset: str) -> None:
        from datetime import date
        from pathlib import Path

        from ml.contract import load
        from ml.dashboard.page import Options, Page
        from ml.dashboard.snapshot import Snapshot
        from ml.dashboard.views import what_if
        from ml.settings import Settings

        settings = Settings(home=Path(home), dataset=dataset)
        page = Page(settings, load(dataset), Snapshot.open(settings), None, Options())
        sale = {"comparable_id": "a", "similarity": 0.5, "price": 1.0, "adjusted_price": 1.0}
        what_if._comparables(page, [sale | {"sold_month": date(1970, 1, 1)}])
        what_if._waterfall(page, [{"feature": "base", "contribution": 1.0}], 1.0)

    for dataset, dated in (("housets", True), ("house_data", False)):
        settings = changed(dataset=dataset)
        given = {"home": str(settings.home), "dataset": dataset}
        words = text(AppTest.from_function(compared, default_timeout=60, kwargs=given).run()) + shown(settings, "model")
        for said in ("chosen month", "At that month", "place and month", "earlier months", "known before its month"):
            assert (said in words) == dated, (dataset, said)


def test_too_little_memory_is_told_with_what_to_do(changed: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise duckdb.OutOfMemoryException("failed to allocate data of size 4.0 KiB")

    changed()
    monkeypatch.setattr(Snapshot, "first", full)
    words = overview()
    assert "There is not enough memory" in words and "HOUSING_MEMORY_LIMIT=" in words


def test_text_of_data_is_never_markup(changed: Publish) -> None:
    changed("update training.model_aliases set reason = '<script>alert(1)</script>'")
    words = overview()
    assert "<script>" not in words and "&lt;script&gt;" in words


def test_names_of_landed_files_are_never_markup(changed: Publish) -> None:
    settings = changed(
        """
        update raw.files set file = '![t](http://example.org/t.png) :red[x] $y$', status = 'quarantined', reason = '*r*'
        """
    )
    labels = {expander.label for expander in app_of(settings, "data").expander}
    # a word joiner keeps the address from being a link
    assert labels == {"\\!\\[t\\]\\(http\\:\u2060\\/\\/example\\.org\\/t\\.png\\) \\:red\\[x\\] \\$y\\$\\: \\*r\\*"}


def test_damage_that_opening_does_not_meet_is_told_with_what_to_do(changed: Publish) -> None:
    settings = changed("checkpoint")
    with duckdb.connect(str(settings.published), read_only=True) as connection:
        blocks = connection.execute(
            "select distinct block_id from pragma_storage_info('training.model_versions') where block_id >= 0"
        ).fetchall()
    with settings.published.open("r+b") as file:
        for (block,) in blocks:
            # three headers of 4 KiB, then blocks of 256 KiB
            file.seek(3 * 4096 + block * 262_144 + 64)
            file.write(b"damage" * 1000)
    Snapshot.open(settings)
    words = overview()
    assert "No snapshot to show" in words and "Write it anew" in words


def test_a_choice_without_homes_says_so_and_draws_nothing(changed: Publish) -> None:
    app = app_of(changed("delete from predictions.predictions where month = '2022-06-01'"), "predictions")
    assert app.dataframe
    app.selectbox(key="year").select(2022)
    app.selectbox(key="month").select(6).run()
    assert "No prediction matches these filters." in text(app)
    assert "No price is known here yet." not in text(app) and not app.dataframe


def test_a_value_of_the_address_that_is_not_known_is_told(changed: Publish) -> None:
    changed()
    changed(dataset="house_data")
    app = AppTest.from_file(str(APP), default_timeout=60)
    app.query_params["dataset"] = "nowhere"
    assert "dataset\\=nowhere of the address is not known here" in text(app.run())
    app = AppTest.from_file(str(APP), default_timeout=60)
    app.query_params["dataset"] = "house_data"
    words = text(app.run())
    assert "Teaching file of houses: is the model" in words and "not known here" not in words


def test_the_dataset_can_be_switched_where_several_are_published(changed: Publish) -> None:
    changed()
    app = AppTest.from_file(str(APP), default_timeout=60).run()
    assert not app.selectbox
    changed(dataset="house_data")
    app = AppTest.from_file(str(APP), default_timeout=60).run()
    assert list(app.selectbox(key="dataset").options) == ["house_data", "housets"]
    assert "HouseTS" in text(app)
    app.selectbox(key="dataset").select("house_data").run()
    assert "Teaching file of houses: is the model" in text(app)
