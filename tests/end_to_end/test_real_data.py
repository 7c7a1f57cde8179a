"""The README, typed by a new user, on the real files of ../shared/data: every shipped dataset reaches its targets."""

from __future__ import annotations

import pytest

from tests.built import real_home
from tests.conftest import Home, real


def accuracy(home: Home, version: str, split: str = "holdout") -> dict[str, float]:
    return home.query(
        "select * from monitoring.accuracy "
        f"where model_version = '{version}' and split = '{split}' and population = 'all'"
    ).to_pylist()[0]


def test_housets_sample_reaches_its_targets_without_same_month_sale_figures(home) -> None:
    made = home("housets")
    made.housing("run", "--from", str(real("housets", "HouseTS_sample.csv")))
    model = accuracy(made, "v1")
    assert model["r2"] >= 0.88 and model["mdape_pct"] <= 7.6, model
    assert not {"median_sale_price", "median_ppsf"}.intersection(made.contract.features)
    # every metro was matched to the official table
    assert made.one("select count(*) from staging.stg_housets__observations where metro_latitude is null") == 0
    assert made.one("select count(distinct area) from training.training_dataset") == 30
    assert made.one("select min(length(locality)) from training.training_dataset") == 5


def test_ames_scores_the_unlabelled_file(home) -> None:
    made = home("ames")
    made.housing("run", "--from", str(real("ames")))
    assert (
        made.one(
            "select count(*) from predictions.predictions "
            "where split = 'to_score' and kind = 'model' and predicted_price > 0"
        )
        == 1459
    )


def test_house_data_runs_without_dates(home) -> None:
    made = home("house_data")
    made.housing("run", "--from", str(real("house_data", "house_data.csv")), check=False)
    assert made.one("select sum(difference) from monitoring.reconciliation") == 0
    assert made.one("select count(*) from training.model_versions") == 1


# last: by now another worker has built this home for the browser
def test_hdb_reaches_its_targets(tmp_path_factory: pytest.TempPathFactory) -> None:
    made = real_home(tmp_path_factory)
    model, persistence = accuracy(made, "v1"), accuracy(made, "persistence")
    assert model["n"] == 52_475
    assert model["mae"] <= 21_000 and model["mdape_pct"] <= 3.0 and model["within_10_pct"] >= 95, model
    assert model["mae"] < persistence["mae"]
