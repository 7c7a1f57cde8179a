"""The API says what the batch says: of the same raw row, the same price, range and grade."""

from __future__ import annotations

from typing import Any

import pytest

from tests.serving.conftest import Api


def test_prices_ranges_and_grades_equal_those_of_the_batch(api: Api, raw: list[dict[str, Any]]) -> None:
    rows = [{k: v for k, v in row.items() if k != "want"} for row in raw]
    answer = api.client.post("/v1/predict", json={"rows": rows})
    assert answer.status_code == 200, answer.text
    got = answer.json()["predictions"]
    assert len(got) == len(raw) >= 900
    assert [g["index"] for g in got] == list(range(len(raw)))
    for given, row in zip(got, raw, strict=True):
        want = row["want"]
        assert given["observation_id"] == want["observation_id"]
        assert given["predicted_price"] == pytest.approx(want["predicted_price"], rel=1e-6)
        assert given["encoding_month"] == want["month"].isoformat()
        assert given["grade"] == want["grade"]
        assert given["forecast_std_pct"] == pytest.approx(want["forecast_std_pct"], rel=1e-6)
        for level in ("50", "80", "95"):
            for side in ("lower", "upper"):
                assert given["intervals"][level][side] == pytest.approx(want[f"{side}_{level}"], rel=1e-6)
    # among them are homes that values were filled in for
    lacking = [
        any(w["code"] == "missing_feature" and "takes its place" in w["message"] for w in g["warnings"]) for g in got
    ]
    assert sum(lacking) > 5
    # recent errors are carried over into the second month; before the first, none was known
    carried = [row["want"]["month"].month for row in raw if row["want"]["recent_error"]]
    assert set(carried) == {2} and len(carried) > 100
    assert {g["encoding_month"] for g in got} == {"2022-01-01", "2022-02-01"}, "both scored months are asked"
