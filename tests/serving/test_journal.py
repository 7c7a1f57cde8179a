"""What was acknowledged is on disk, whatever happens, and reaches the pipeline once."""

from __future__ import annotations

import csv
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from ml.serving import journal
from ml.warehouse import connect
from tests.conftest import Home
from tests.serving.conftest import running


def key(n: int) -> str:
    return f"{n:032x}"


def told(home: Home) -> list[dict[str, str]]:
    """Prices of all files of the landing folder."""
    rows = []
    for path in (home.settings.landing / "actuals").glob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            rows += list(csv.DictReader(file))
    return rows


def test_no_acknowledged_feedback_is_lost_by_a_kill_under_load(copied: Home) -> None:
    acknowledged: list[str] = []
    lock = threading.Lock()
    with running(copied, rotate_bytes="4000") as api:
        api.ready()
        stop = threading.Event()

        def tell(thread: int) -> None:
            n = 0
            with httpx.Client(base_url=api.url, timeout=10) as client:
                while not stop.is_set():
                    n += 1
                    one = key(thread * 1_000_000 + n)
                    try:
                        answer = client.post("/v1/feedback", json={"observation_id": one, "price": 400_000 + n})
                    except httpx.TransportError:
                        return
                    if answer.status_code == 202:
                        with lock:
                            acknowledged.append(one)

        threads = [threading.Thread(target=tell, args=(i,)) for i in range(1, 9)]
        for thread in threads:
            thread.start()
        while len(acknowledged) < 300:
            assert api.process.poll() is None
        os.kill(api.process.pid, signal.SIGKILL)
        stop.set()
        for thread in threads:
            thread.join()
    # the next start hands over what the dead process left open
    with running(copied) as api:
        api.ready()
        api.client.post("/v1/feedback", json={"observation_id": key(7), "price": 500_000}).raise_for_status()
    rows = told(copied)
    landed = [row["observation_id"] for row in rows]
    assert set(acknowledged) <= set(landed)
    assert key(7) in landed, "a graceful end closes the journal"
    assert len(landed) == len(set(landed))
    assert {row["source"] for row in rows} == {"online"}
    assert not [p for p in (copied.settings.landing / "actuals").iterdir() if p.suffix != ".csv"]


@pytest.mark.parametrize(
    "body",
    [
        {"observation_id": "x", "price": 400_000},
        {"observation_id": key(1), "price": -5},
        {"observation_id": key(1), "price": "400000"},
        {"observation_id": key(1), "price": 1},  # below what the contract takes for a price
        {"observation_id": key(1), "price": 400_000, "reported_at": "yesterday"},
        {"observation_id": key(1), "price": 400_000, "reported_at": "2999-01-01"},
        {"observation_id": key(1), "price": 400_000, "who": "me"},
        {"rows": []},
    ],
)
def test_feedback_that_is_no_price_is_refused(api: Any, body: dict[str, Any]) -> None:
    answer = api.client.post("/v1/feedback", json=body)
    assert answer.status_code == 422 and answer.json()["errors"], answer.text


def test_a_torn_last_line_is_dropped_and_the_rest_kept(tmp_path: Path, copied: Home) -> None:
    folder = journal.folder_of(copied.settings, "feedback")
    folder.mkdir(parents=True)
    whole = {"observation_id": key(1), "price": 400_000.0, "reported_at": "2024-02-01 00:00:00", "source": "online"}
    (folder / "a.open").write_text(json.dumps(whole) + "\n" + json.dumps(whole)[:30], encoding="utf-8")
    journal.adopt(folder)
    [landed] = journal.land_feedback(copied.settings)
    assert landed.name == "online-a.csv"
    assert told(copied) == [{k: str(v) for k, v in whole.items()}]
    assert not list(folder.iterdir()), "handed over once"


def test_an_open_journal_is_left_to_who_writes_it(tmp_path: Path) -> None:
    writer = journal.Journal(tmp_path, rotate_bytes=10**9, rotate_s=10**9)
    writer.append([{"a": 1}])
    assert journal.adopt(tmp_path) == []
    closed = writer.rotate(force=True)
    assert closed is not None and journal.records(closed) == [{"a": 1}]


def test_a_journal_rotates_by_size_and_by_age(tmp_path: Path) -> None:
    small = journal.Journal(tmp_path / "size", rotate_bytes=10, rotate_s=10**9)
    small.append([{"a": "x" * 20}])
    assert small.rotate() is not None
    young = journal.Journal(tmp_path / "age", rotate_bytes=10**9, rotate_s=0)
    young.append([{"a": 1}])
    assert young.rotate() is not None
    assert young.rotate() is None, "nothing is open"


def prediction(n: int, version: str, price: float, at: str, role: str = "champion") -> dict[str, Any]:
    return {
        "observation_id": key(n), "observed_on": "2022-03-01", "month": "2022-03-01", "area": "BEDOK",
        "locality": "X", "model_version": version, "role": role, "scored_at": at, "predicted_price": price,
        "run_id": f"r{n}",
    }  # fmt: skip


def test_online_predictions_are_moved_once_and_yield_to_the_batch(copied: Home) -> None:
    settings = copied.settings
    batch = copied.query("select * from predictions.predictions where kind = 'model' limit 1").to_pylist()[0]
    written = journal.Journal(journal.folder_of(settings, "predictions"), rotate_bytes=10**9, rotate_s=10**9)
    same = {**prediction(1, "v1", 1.0, "2026-01-01 00:00:00"), "observation_id": batch["observation_id"]}
    written.append(
        [
            prediction(1, "v1", 100.0, "2026-01-01 00:00:00"),
            prediction(1, "v1", 200.0, "2026-01-02 00:00:00"),
            prediction(1, "v2", 300.0, "2026-01-01 00:00:00", "challenger"),
            same,
        ]
    )
    written.rotate(force=True)
    with connect(settings) as connection:
        assert journal.load_predictions(connection, settings) == 2
        assert journal.load_predictions(connection, settings) == 0
    found = copied.query(
        "select * from predictions.predictions where mode = 'online' order by model_version"
    ).to_pylist()
    assert [(r["model_version"], r["predicted_price"], r["role"], r["kind"], r["split"]) for r in found] == [
        ("v1", 200.0, "champion", "model", "to_score"),
        ("v2", 300.0, "challenger", "model", "to_score"),
    ]
    assert found[0]["run_id"] == "r1" and found[0]["built_through_batch"] is None
    again = copied.query(
        f"select * from predictions.predictions where observation_id = '{batch['observation_id']}' and kind = 'model'"
    ).to_pylist()
    assert again == [batch]
    # a later answer to the same row replaces the earlier one
    written.append([prediction(1, "v1", 250.0, "2026-01-03 00:00:00"), prediction(1, "v2", 1.0, "2025-01-01 00:00:00")])
    written.rotate(force=True)
    with connect(settings) as connection:
        assert journal.load_predictions(connection, settings) == 1
    prices = copied.query(
        "select predicted_price from predictions.predictions where mode = 'online' order by model_version"
    )
    assert prices["predicted_price"].to_pylist() == [250.0, 300.0]
