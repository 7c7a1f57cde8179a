"""Another version is taken over while requests run; a broken one is not; a challenger answers its share."""

from __future__ import annotations

import asyncio
import errno
import math
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import httpx
import pytest

from dagster_project.published.snapshot import publish
from ml.bundle import Bundle
from ml.contract import Promotion
from ml.registry import ModelVersion, RegistryError, load_bundle
from ml.serving import service as service_module
from ml.serving.folders import snapshots
from ml.serving.metrics import Metrics
from ml.serving.service import Service, State, serves_canary
from ml.serving.settings import ApiSettings
from ml.settings import Settings
from ml.warehouse import connect
from tests.conftest import Home
from tests.serving.conftest import Api, running, train


@pytest.fixture(scope="module")
def two(served: Home, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with v2 as challenger of v1; take copies."""
    path = tmp_path_factory.mktemp("two") / "home"
    shutil.copytree(served.settings.home, path, symlinks=True, ignore=shutil.ignore_patterns("online"))
    home = Home(path, "hdb")
    train(home, rounds=40, force=True)
    publish(home.settings)
    return home


@pytest.fixture
def own(two: Home, tmp_path: Path) -> Home:
    for part in ("warehouse", "published"):
        shutil.copytree(two.settings.home / part, tmp_path / "home" / part)
    return Home(tmp_path / "home", "hdb")


def crown(home: Home, champion: str, challenger: str | None = None) -> None:
    """Make a version champion and publish, as a promotion or a rollback does."""
    with connect(home.settings) as connection:
        connection.execute("update training.model_versions set status = 'archived'")
        for version, status in ((champion, "champion"), (challenger, "challenger")):
            connection.execute(
                "update training.model_versions set status = ? where model_version = ?", [status, version]
            )
    publish(home.settings)


class Load:
    """Requests from several threads until told to stop, with every status and version that came back."""

    def __init__(self, api: Api, row: dict[str, Any], threads: int = 4) -> None:
        self._api, self._row, self._stop = api, row, threading.Event()
        self.seen: list[tuple[int, str]] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def _ask(self) -> None:
        with httpx.Client(base_url=self._api.url, timeout=30) as client:
            while not self._stop.is_set():
                answer = client.post("/v1/predict", json=self._row)
                version = answer.json()["predictions"][0]["model_version"] if answer.status_code == 200 else answer.text
                self.seen.append((answer.status_code, version))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, version: str, timeout_s: float = 30) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.seen and self.seen[-1][1] == version:
                return
            time.sleep(0.05)
        raise AssertionError(f"{version} never answered; last: {self.seen[-3:]}")


def test_a_promotion_and_a_rollback_under_load_fail_no_request(own: Home, example: dict[str, Any]) -> None:
    crown(own, "v1")
    with running(own, poll_s="0.2") as api:
        api.ready()
        with Load(api, example) as load:
            load.wait_for("v1")
            crown(own, "v2")
            load.wait_for("v2")
            crown(own, "v1")
            load.wait_for("v1")
        assert {status for status, _ in load.seen} == {200}
        assert {version for _, version in load.seen} == {"v1", "v2"}
        assert len(list((own.settings.home / "online" / "hdb" / "snapshots").iterdir())) == 1, "old ones are let go"


def test_a_broken_version_leaves_the_old_one_in_place_and_is_told(own: Home, example: dict[str, Any]) -> None:
    crown(own, "v1")
    with running(own, poll_s="0.2") as api:
        api.ready()
        with Load(api, example, threads=2) as load:
            load.wait_for("v1")
            with connect(own.settings) as connection:
                [(uri,)] = connection.execute(
                    "select model_uri from training.model_versions where model_version = 'v2'"
                ).fetchall()
                source = Path(uri.removeprefix("file://")).parent
                broken = own.settings.home / "broken"
                shutil.copytree(source, broken)
                (broken / "model" / "artifacts" / "bundle" / "model.ubj").write_bytes(b"not a model")
                connection.execute(
                    "update training.model_versions set model_uri = ? where model_version = 'v2'",
                    [f"file://{broken}/model"],
                )
            crown(own, "v2")
            deadline = time.monotonic() + 30
            while api.client.get("/ready").json()["swap"]["state"] != "failed":
                assert time.monotonic() < deadline, "the broken version was never refused"
                time.sleep(0.1)
        ready = api.client.get("/ready")
        assert ready.status_code == 200 and ready.json()["model_version"] == "v1"
        assert "model.ubj was changed after it was written" in ready.json()["swap"]["reason"]
        assert "housing_swap_failed 1.0" in api.client.get("/metrics").text
        assert set(load.seen) == {(200, "v1")}
        crown(own, "v1")
        deadline = time.monotonic() + 30
        while api.client.get("/ready").json()["swap"]["state"] != "ok":
            assert time.monotonic() < deadline, "the repaired snapshot was never taken"
            time.sleep(0.1)


def test_it_is_not_ready_without_a_snapshot_and_says_what_to_do(tmp_path: Path) -> None:
    home = Home(tmp_path / "empty", "hdb")
    home.settings.home.mkdir()
    with running(home, poll_s="0.2") as api:
        deadline = time.monotonic() + 30
        answer = None
        while time.monotonic() < deadline:
            try:
                answer = api.client.get("/ready")
                if "published" in answer.text:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        assert answer is not None and answer.status_code == 503
        assert "nothing is published for hdb yet; run `housing run -d hdb` first" in answer.json()["detail"]
        assert api.client.get("/health").status_code == 200


def test_callers_are_told_what_is_wrong_but_not_where(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    home = Home(tmp_path / "a home", "hdb")
    home.settings.published.parent.mkdir(parents=True)
    home.settings.published.write_bytes(b"no database" * 1_000)
    service = Service(home.settings, ApiSettings(), home.contract, Metrics())
    service.refresh()
    assert service.problem and service.problem.startswith("what is published for hdb is no snapshot: ")
    assert "/" not in service.problem and "a home" not in service.problem
    assert str(home.settings.home) in caplog.text


def test_a_full_disk_keeps_no_part_of_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    home = Home(tmp_path / "home", "hdb")
    home.settings.published.parent.mkdir(parents=True)
    home.settings.published.write_bytes(b"whatever")

    def no_link(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def full(_: Path, target: Path) -> None:
        target.write_bytes(b"what")
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(Path, "hardlink_to", no_link)
    monkeypatch.setattr(shutil, "copyfile", full)
    service = Service(home.settings, ApiSettings(), home.contract, Metrics())
    service.refresh()
    assert not list(snapshots(home.settings).iterdir())
    assert service.problem and "No space left on device" in service.problem and "/" not in service.problem
    assert str(home.settings.home) in caplog.text


def service_of(home: Home, mode: str, **promotion: Any) -> tuple[Service, State]:
    """A loaded service without a server."""
    contract = home.contract.model_copy(update={"promotion": Promotion(mode=mode, **promotion)})  # type: ignore[arg-type]
    service = Service(home.settings, ApiSettings(), contract, Metrics())
    service.refresh()
    assert service.state, service.problem
    return service, service.state


@pytest.fixture(scope="module")
def loaded(two: Home) -> Iterator[tuple[Service, State]]:
    """A service over v1 and its challenger v2, the same for several tests; patch it, do not change it."""
    service, state = service_of(two, "auto")
    yield service, state
    state.snapshot.close()


def test_a_canary_answers_its_share_of_keys_and_always_the_same(own: Home, raw: list[dict[str, Any]]) -> None:
    with connect(own.settings) as connection:
        connection.execute(
            """
            insert into training.promotion_decisions by name select 'v2' as challenger, 'v1' as champion,
            now()::timestamp as decided_at, 'canary' as verdict, 'canary' as mode, 'test' as actor, '' as reason
            """
        )
    crown(own, "v1", "v2")
    service, state = service_of(own, "canary", canary_share=0.3)
    rows = [{k: v for k, v in row.items() if k != "want"} for row in raw[:200]]
    [(champion, at), (challenger, canary)] = service._price(state, rows)
    assert (champion.role, challenger.role) == ("champion", "canary"), "as the batch says"
    assert service._explainer(state, challenger)._engine is state.challenger
    labels = {"model_version": "v2", "role": "canary"}
    assert service.metrics.registry.get_sample_value("housing_model_info", labels) == 1
    assert sorted([*at, *canary]) == list(range(200))
    by = [(challenger if i in canary else champion).version.model_version for i in range(200)]
    want = ["v2" if serves_canary(row["want"]["observation_id"], 0.3) else "v1" for row in raw[:200]]
    assert by == want
    assert 0.15 < by.count("v2") / 200 < 0.45
    # the SQL macro hash_share says the same
    ids = ", ".join(f"('{row['want']['observation_id']}')" for row in raw[:200])
    shares = state.snapshot.rows(
        f"select cast('0x' || substr(id, 1, 8) as bigint) / 4294967296.0 < 0.3 as mine from (values {ids}) as t (id)"
    )
    assert [s["mine"] for s in shares] == [v == "v2" for v in by]
    state.snapshot.close()


def test_a_challenger_without_the_verdict_stays_in_the_shadow(
    loaded: tuple[Service, State], raw: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, state = loaded
    canary = Promotion(mode="canary", canary_share=1)
    monkeypatch.setattr(service, "contract", service.contract.model_copy(update={"promotion": canary}))
    again = replace(state, challenger=None)
    service._challenge(again)
    assert again.challenger and not again.serves_canary
    [(answers, _)] = service._price(again, [{k: v for k, v in raw[0].items() if k != "want"}])
    assert answers.role == "champion"


def test_what_was_asked_online_is_not_what_the_batch_said(own: Home) -> None:
    crown(own, "v1")
    with connect(own.settings) as connection:
        connection.execute(
            """
            insert into predictions.predictions by name
            select * replace ('online' as mode, date '2022-03-01' as month, 1.0 as predicted_price)
            from predictions.predictions where model_version = 'v1' and split <> 'eval' limit 200
            """
        )
    publish(own.settings)
    service, state = service_of(own, "auto")
    assert not service.batch_predictions({"month": date(2022, 3, 1)}, None, 5)
    state.snapshot.close()


def test_a_version_that_cannot_be_compared_with_its_batch_does_not_pass(own: Home) -> None:
    crown(own, "v1")
    with connect(own.settings) as connection:
        connection.execute("update predictions.predictions set observation_id = reverse(observation_id)")
    publish(own.settings)
    service = Service(own.settings, ApiSettings(), own.contract, Metrics())
    service.refresh()
    assert service.state is None and "v1 cannot be compared" in (service.problem or "")


def test_features_that_are_made_otherwise_are_not_compared(own: Home) -> None:
    crown(own, "v1")
    with duckdb.connect(str(own.settings.published)) as snapshot:
        snapshot.execute("update training.training_dataset set target_offset = target_offset + 0.1")
    service = Service(own.settings, ApiSettings(), own.contract, Metrics())
    service.refresh()
    assert service.state is None and "v1 does not repeat the batch's prices" in (service.problem or "")
    with duckdb.connect(str(own.settings.published)) as snapshot:
        snapshot.execute("update published.about set features_definition = 'another'")
    _, state = service_of(own, "auto")
    assert state.champion.version.model_version == "v1"
    state.snapshot.close()


def test_a_version_whose_encodings_are_made_otherwise_does_not_pass(own: Home) -> None:
    crown(own, "v1")
    service = Service(own.settings, ApiSettings(), own.contract.model_copy(update={"smoothing": 50.0}), Metrics())
    service.refresh()
    assert service.state is None and "v1 learned from all_3m, " in (service.problem or "")


@pytest.mark.parametrize("changed", ["month = (select max(month) from features.features)", "true"])
def test_features_that_changed_since_the_batch_do_not_refuse_a_version(own: Home, changed: str) -> None:
    crown(own, "v1")
    with connect(own.settings) as connection:
        # prices that came later change what is known of the place, and nothing is scored again
        connection.execute(
            "update features.features set target_offset = target_offset + 0.1, "
            f"built_through_batch = built_through_batch + 1 where {changed}"
        )
    publish(own.settings)
    _, state = service_of(own, "auto")
    assert state.champion.version.model_version == "v1"
    state.snapshot.close()


def test_what_could_not_be_loaded_is_tried_again_and_told_once(own: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    crown(own, "v1", "v2")
    gone, asked = {"v1", "v2"}, []

    def load(settings: Settings, version: ModelVersion) -> Bundle:
        asked.append(version.model_version)
        if version.model_version in gone:
            raise RegistryError(f"{version.model_version} is gone")
        return load_bundle(settings, version)

    monkeypatch.setattr(service_module, "load_bundle", load)
    service = Service(own.settings, ApiSettings(), own.contract, Metrics())

    def again() -> None:
        service.refresh()
        service._again_at = 0.0
        service.refresh()

    again()
    assert asked == ["v1", "v1"] and service.problem == "v1 is gone"
    service.refresh()
    assert len(asked) == 2, "not before its time"
    assert 2 < service._again_at - time.monotonic() <= 4, "after 2 seconds, then after 4"
    assert service.metrics.registry.get_sample_value("housing_model_swaps_total", {"result": "refused"}) == 1
    gone.remove("v1")
    service._again_at = 0.0
    again()
    state = service.state
    assert state and service.problem is None and state.challenger_problem == "v2: v2 is gone"
    assert service._again_at < math.inf
    gone.clear()
    service._again_at = 0.0
    service.refresh()
    assert service.state is state and state.challenger and state.challenger_problem is None
    assert service._again_at == math.inf
    assert asked == ["v1"] * 3 + ["v2"] * 3, "the champion is not loaded again for its challenger"
    state.snapshot.close()


def test_a_row_of_a_month_that_is_not_ready_does_not_hold_up_the_others(
    loaded: tuple[Service, State], raw: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, state = loaded
    row = {k: v for k, v in raw[0].items() if k != "want"}
    past = {**row, "sold_month": "2021-10"}
    assert not state.waits([{**row, "sold_month": "2022-02"}]) and state.waits([past])
    monkeypatch.setattr(service, "_few", None)  # who prices for all others is not asked
    with ThreadPoolExecutor(1) as aside:
        priced, _ = aside.submit(lambda: asyncio.run(service.price([past], "one"))).result()
    assert priced.parts[0][0].price[0] > 0 and not state.waits([past])


def test_where_there_are_no_dates_no_month_is_told(
    loaded: tuple[Service, State], example: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, state = loaded
    answers = state.champion.answer([example], "champion")
    [dated] = service._explainer(state, answers).explain(answers)
    assert dated["comparables"] and all(c["sold_month"] for c in dated["comparables"])
    for one in (service, state.champion):
        monkeypatch.setattr(one, "contract", one.contract.model_copy(update={"observed_on": None}))
    [undated] = service._explainer(state, answers).explain(answers)
    assert undated["comparables"] and {c["sold_month"] for c in undated["comparables"]} == {None}
    assert [row["month"] for row in service.batch_predictions({}, None, 2)] == [None, None]


def test_a_large_request_is_priced_in_parts_that_say_what_the_whole_says(
    loaded: tuple[Service, State], raw: list[dict[str, Any]]
) -> None:
    service, state = loaded
    rows = [{k: v for k, v in row.items() if k != "want"} for row in (raw * (1 + 1_001 // len(raw)))[:1_001]]
    # this thread may have a loop that runs: Playwright's, where the browser's tests came before
    with ThreadPoolExecutor(1) as aside:
        priced = aside.submit(lambda: asyncio.run(service._price_large(state, rows))).result()
    [(whole, _)] = service._price(state, rows)
    assert [len(at) for _, at in priced.parts] == [501, 500]
    seen = []
    for answers, part, at in priced.of(100, 850):
        assert answers.price[part].tolist() == whole.price[100 + at].tolist()
        ids = whole.checked["observation_id"].take(100 + at)
        assert answers.checked["observation_id"].to_pylist()[part] == ids.to_pylist()
        seen += at.tolist()
    assert seen == list(range(850))


def test_a_large_request_fails_when_its_last_part_has_ended(
    loaded: tuple[Service, State], raw: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, state = loaded
    rows = (raw * (1 + 1_001 // len(raw)))[:1_001]
    ended = threading.Event()

    def price(_: Any, part: list[dict[str, Any]]) -> list[Any]:
        if part[0] is rows[0]:
            raise ValueError("the first part fails")
        time.sleep(0.5)
        ended.set()
        return []

    monkeypatch.setattr(service, "_price", price)
    with ThreadPoolExecutor(1) as aside, pytest.raises(ValueError, match="the first part fails"):
        aside.submit(lambda: asyncio.run(service._price_large(state, rows))).result()
    # who asked gives the version back now: nobody may be pricing with it any more
    assert ended.is_set()


def test_a_shadow_is_journaled_and_never_answers(own: Home, example: dict[str, Any]) -> None:
    from ml.serving.folders import journals
    from ml.serving.journal import adopt, records

    crown(own, "v1", "v2")
    with running(own) as api:
        assert api.ready()["challenger"] == "v2"
        for _ in range(5):
            [row] = api.client.post("/v1/predict", json=example).json()["predictions"]
            assert row["model_version"] == "v1"
    folder = journals(own.settings, "predictions")
    adopt(folder)
    found = [r for path in folder.glob("*.jsonl") for r in records(path)]
    assert sorted({(r["model_version"], r["role"]) for r in found}) == [("v1", "champion"), ("v2", "challenger")]
    assert len(found) == 10
