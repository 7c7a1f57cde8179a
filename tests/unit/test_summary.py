"""What `housing status` says of the newest version: who turned it down, and why."""

from __future__ import annotations

from datetime import date

import duckdb
import pytest

from dagster_project.summary import QUARANTINED, _model

NOTHING = {"failing_checks": [], "empty_features": [], "unscored": None}


@pytest.mark.parametrize(
    ("status", "lost", "reasons", "said"),
    [
        ("champion", False, [], "v2 passed its gate"),
        ("challenger", False, [], "v2 passed its gate"),
        ("rejected", False, ["R² 0.5 is below 0.85"], "v2 was REJECTED by its gate"),
        ("rejected", True, ["mean error is 0.4 % lower"], "v2 was REJECTED beside the champion"),
        # a person promoted it all the same
        ("champion", False, ["R² 0.5 is below 0.85"], "v2 was REJECTED by its gate"),
    ],
)
def test_a_version_is_turned_down_by_its_gate_or_beside_the_champion(
    status: str, lost: bool, reasons: list[str], said: str
) -> None:
    latest = {
        "model_version": "v2", "status": status, "lost": lost, "reasons": reasons,
        "trained_through": date(2021, 12, 1), "eval_from": date(2021, 7, 1), "n_train": 1000, "n_eval": 100,
        "features": 25, "model_sha256": "a", "evaluated_sha256": "a",
    }  # fmt: skip
    lines = _model(
        {
            "dataset": "hdb",
            "latest_version": latest,
            "champion": None,
            "challenger": None,
            "decision": None,
            **NOTHING,
        }
    )
    assert said in lines[0]
    assert "learned from 1,000 rows and 25 features through 2021-06, evaluated on 2021-07 to 2021-12" in lines[0]
    assert [line.strip() for line in lines[1:-1]] == reasons


@pytest.mark.parametrize(
    ("n_eval", "said"),
    [(29, "passed its gate, compared with no baseline: 29 evaluation rows, 30 are needed;"), (30, "passed its gate;")],
)
def test_a_gate_that_compared_nothing_says_so(n_eval: int, said: str) -> None:
    latest = {
        "model_version": "v1", "status": "champion", "lost": False, "reasons": [], "trained_through": None,
        "eval_from": None, "n_train": 100, "n_eval": n_eval, "features": 5, "model_sha256": "a",
        "evaluated_sha256": "a",
    }  # fmt: skip
    figures = {
        "dataset": "house_data",
        "latest_version": latest,
        "champion": None,
        "challenger": None,
        "decision": None,
    }
    assert said in _model(figures | NOTHING)[0]


def test_what_to_type_next_is_for_the_dataset_that_was_asked_for() -> None:
    figures = {
        "dataset": "ames",
        "latest_version": None,
        "champion": None,
        "challenger": None,
        **NOTHING,
    }
    assert _model(figures) == ["  model        none yet; type: housing train -d ames"]
    latest = {
        "model_version": "v1", "status": "champion", "lost": False, "reasons": [],
        "trained_through": date(2021, 12, 1), "eval_from": date(2021, 7, 1), "n_train": 1000, "n_eval": 100,
        "features": 25, "model_sha256": "a", "evaluated_sha256": "b",
    }  # fmt: skip
    decision = {"decision": "retrain", "is_done": False, "month": "2022-01", "reasons": "mdape_pct"}
    lines = _model(figures | {"latest_version": latest, "decision": decision})
    assert lines[-1].endswith("retrain after 2022-01 (mdape_pct); type: housing retrain -d ames")
    lines = _model(figures | {"latest_version": latest, "decision": decision | {"is_done": True}})
    assert lines[-1].endswith("(mdape_pct); done")
    lines = _model(figures | {"latest_version": latest, "decision": decision, "empty_features": ["baths", "lift"]})
    assert lines[1] == "  empty        baths, lift: no row that it learned from has a value; see source and type"
    unscored = {"n": 1000, "first": "2022-02", "last": "2022-03"}
    lines = _model(figures | {"latest_version": latest, "decision": None, "unscored": unscored})
    assert lines[-1] == (
        "  not scored   1,000 rows of 2022-02 to 2022-03 whose price is known; type: housing run -d ames"
    )
    # with refit it learned from its evaluation, too
    assert "learned from 1,100 rows and 25 features through 2021-12, evaluated on 2021-07 to 2021-12 before" in lines[0]


def test_a_file_that_came_again_mended_is_not_told_as_quarantined() -> None:
    with duckdb.connect() as connection:
        connection.execute(
            """
            create schema raw;
            create table raw.files as from (values
                ('a.csv', 'quarantined', 'first', 1, timestamp '2024-01-01 10:00:00'),
                ('b.csv', 'quarantined', 'of b', 2, timestamp '2024-01-02 10:00:00'),
                ('a.csv', 'quarantined', 'second', 3, timestamp '2024-01-03 10:00:00'),
                ('b.csv', 'loaded', null, 4, timestamp '2024-01-04 10:00:00')
            ) as f (file, status, reason, batch, loaded_at)
            """
        )
        assert connection.execute(QUARANTINED).fetchall() == [("a.csv", "second", "2024-01-03")]
