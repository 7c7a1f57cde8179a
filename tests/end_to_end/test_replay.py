"""The past walked again as production would have, month by month, in a warehouse of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.built import built_home
from tests.conftest import Home


def test_each_replayed_month_is_judged_by_its_prices(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    shutil.copytree(built_home(tmp_path_factory).settings.home, tmp_path / "home", symlinks=True)
    made = Home(tmp_path / "home", "housets")
    window = ("--from", "2022-01", "--to", "2022-02")
    said = made.housing("replay", *window, "--policy", "on-decision", "--profile", "fast").stdout
    months = made.query("from monitoring.replay_months order by month").to_pylist()
    assert [f"{row['month']:%Y-%m}" for row in months] == ["2022-01", "2022-02"]
    for row in months:
        served = made.query(
            f"""
            select count(*) as n, median(100 * abs(f.persistence_price / f.price - 1)) as persistence
            from features.features as f where month = '{row["month"]}' and is_price_valid and price is not null
            """
        ).to_pylist()[0]
        assert row["n"] == served["n"]
        assert row["persistence_mdape_pct"] == pytest.approx(served["persistence"])
        assert 0 < row["mdape_pct"] < 10
        assert row["decision"]
    picture = made.settings.home / "reports" / "housets" / "replay.png"
    assert picture.stat().st_size > 10_000 and str(picture) in said
