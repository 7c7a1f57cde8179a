"""What was acknowledged is on disk, whatever happens, and reaches the pipeline once."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import resource
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from ml.serving import journal
from ml.serving import service as service_module
from ml.serving.folders import journals
from ml.serving.metrics import Metrics
from ml.serving.schemas import Feedback
from ml.serving.service import Service
from ml.serving.settings import ApiSettings
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
        {"observation_id": key(1), "price": 400_000, "reported_at": "0001-01-01T00:00:00+14:00"},
        {"rows": []},
        {"rows": [{"observation_id": key(1), "price": 400_000}, 5]},
    ],
)
def test_feedback_that_is_no_price_is_refused(api: Any, body: dict[str, Any]) -> None:
    answer = api.client.post("/v1/feedback", json=body)
    assert answer.status_code == 422 and answer.json()["errors"], answer.text


def test_wrong_feedback_is_told_by_its_own_fields(api: Any) -> None:
    one = {"observation_id": key(1), "price": "much", "who": "me"}
    for body, place in ((one, ""), ({"rows": [{**one, "price": 400_000.0}, one]}, "rows.1.")):
        errors = api.client.post("/v1/feedback", json=body).json()["errors"]
        assert [e["field"] for e in errors][-2:] == [f"{place}price", f"{place}who"]
        assert not [e for e in errors if "KnownPrice" in e["field"]]


def test_a_torn_last_line_is_dropped_and_the_rest_kept(tmp_path: Path, copied: Home) -> None:
    folder = journals(copied.settings, "feedback")
    folder.mkdir(parents=True)
    whole = {"observation_id": key(1), "price": 400_000.0, "reported_at": "2024-02-01 00:00:00", "source": "online"}
    (folder / "a.open").write_text(json.dumps(whole) + "\n" + json.dumps(whole)[:30], encoding="utf-8")
    journal.adopt(folder)
    [landed] = journal.land_feedback(copied.settings)
    assert landed.name == "online-a.csv"
    assert told(copied) == [{k: str(v) for k, v in whole.items()}]
    assert not list(folder.iterdir()), "handed over once"


def test_a_line_that_cannot_be_read_is_set_aside_and_the_rest_lands(copied: Home) -> None:
    folder = journals(copied.settings, "feedback")
    folder.mkdir(parents=True)
    first, last = (
        {"observation_id": key(n), "price": 400_000.0, "reported_at": "", "source": "online"} for n in (1, 2)
    )
    bad = json.dumps(first)[:30] + json.dumps(first)
    lines = [json.dumps(first), bad, "5", json.dumps(last), ""]
    (folder / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "b.jsonl").write_bytes(b"\0\xff\0\n")
    counted: list[int] = []
    assert len(journal.land_feedback(copied.settings, unreadable=counted.append)) == 2
    assert [row["observation_id"] for row in told(copied)] == [key(1), key(2)]
    assert (folder / "a.bad").read_text(encoding="utf-8") == f"{bad}\n5\n", "nothing is lost"
    assert counted == [2, 1] and sorted(p.name for p in folder.iterdir()) == ["a.bad", "b.bad"]


def test_what_a_full_disk_takes_in_part_is_taken_back(tmp_path: Path) -> None:
    writer = journal.Journal(tmp_path, rotate_bytes=10**9, rotate_s=10**9)
    writer.append([{"a": 1}])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            writer.append([{"a": "x" * 200}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.append([{"a": 2}])
    closed = writer.rotate(force=True)
    assert closed is not None
    assert closed.read_text(encoding="utf-8") == '{"a":1}\n{"a":2}\n', "no torn line that the next one grows on to"


def test_feedback_goes_on_after_a_bad_file_and_a_folder_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "AGAIN_S", 0.01)
    home = Home(tmp_path / "home", "hdb")
    folder = journals(home.settings, "feedback")
    folder.mkdir(parents=True)
    (folder / "old.jsonl").write_text("no record\n", encoding="utf-8")
    home.settings.landing.mkdir(parents=True)
    (home.settings.landing / "actuals").write_text("in the way", encoding="utf-8")
    api = ApiSettings(flush_s=0.02, rotate_s=0.1, poll_s=0.01)
    service = Service(home.settings, api, home.contract, Metrics())
    looked: list[int] = []

    def refresh() -> None:
        looked.append(1)
        raise OSError("nobody expects this")

    monkeypatch.setattr(service, "refresh", refresh)

    def failures() -> float:
        return service.metrics.registry.get_sample_value("housing_journal_failures_total", {"kind": "feedback"}) or 0

    async def tell() -> None:
        await service.start()
        async with asyncio.timeout(5):
            while failures() < 2:
                await asyncio.sleep(0.02)
        (home.settings.landing / "actuals").unlink()
        async with asyncio.timeout(5):
            while not (home.settings.landing / "actuals" / "online-old.csv").exists():
                await asyncio.sleep(0.02)
        known = failures()
        await asyncio.wait_for(service.recorder.feedback(journal.actuals([told_price(1)], datetime.now(UTC))), 5)
        shutil.rmtree(folder)
        async with asyncio.timeout(5):
            while failures() == known:
                await asyncio.sleep(0.02)
        await asyncio.wait_for(service.recorder.feedback(journal.actuals([told_price(2)], datetime.now(UTC))), 5)
        await service.stop()

    # this thread may have a loop that runs: Playwright's, where the browser's tests came before
    with ThreadPoolExecutor(1) as aside:
        aside.submit(lambda: asyncio.run(tell())).result()
    assert [row["observation_id"] for row in told(home)] == [key(2)]
    assert len(looked) > 1, "the watch goes on as well"


def told_price(n: int) -> Feedback:
    return Feedback(observation_id=key(n), price=400_000)


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
    written = journal.Journal(journals(settings, "predictions"), rotate_bytes=10**9, rotate_s=10**9)
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
