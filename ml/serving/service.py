"""What answers now: the champion of the newest snapshot, its challenger beside it, and the swap to the next.

A swap is prepared beside the version that answers: the new one is loaded, asked a question and compared with the batch
before it takes over. What fails leaves everything as it was, and is told. Requests that arrive while a batch runs are
priced together by the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import duckdb
import numpy as np

from ml.bundle import BundleError
from ml.contract import Contract
from ml.own_features import ChangedEncodingError, require_encodings
from ml.registry import RegistryError, load_bundle
from ml.serving.engine import Answers, Engine
from ml.serving.example import example_row
from ml.serving.explain import Explainer
from ml.serving.features import LANES, listed
from ml.serving.folders import remove_leftovers
from ml.serving.metrics import Metrics
from ml.serving.problems import ProblemError, without_paths
from ml.serving.recorder import Recorder
from ml.serving.settings import ApiSettings
from ml.serving.snapshot import NotPublishedError, Snapshot, identity
from ml.settings import Settings, run_command
from ml.verdicts import is_canary
from ml.views import definition_of

log = logging.getLogger("housing.api")

#: Rows that are priced together; larger requests go alone, so that they do not hold up the small ones, and so do those
#: that wait for encodings of earlier months.
BATCH_ROWS = 64
#: A large request is cut into so many equal parts, priced by as many threads (the lane left is for small ones), if each
#: has so many rows: two halves of 1,000 rows cost 79 ms of processor instead of 60, of 10,000 nothing more.
CUT_IN = LANES - 1
PART_ROWS = 2_000
#: The same where no other large request wants the cores.
PART_ROWS_ALONE = 500
#: Rows of the batch's own predictions that a new version must repeat before it answers.
TEST_ROWS = 200
#: How far it may be off, relative to the price.
TOLERANCE = 1e-6
#: What failed is tried again after so long, then ever later.
RETRY_S, MAX_RETRY_S = 2.0, 60.0
#: A loop that failed in a way that nobody thought of begins again after so long.
AGAIN_S = 1.0
#: Shadow batches that may wait; beyond, the champion's callers come first.
MAX_SHADOW = 64


class SwapError(RuntimeError):
    """A snapshot cannot answer; the message says why."""


@dataclass
class State:
    """One snapshot with the versions that answer from it."""

    snapshot: Snapshot
    champion: Engine
    challenger: Engine | None
    challenger_problem: str | None
    example: dict[str, Any]
    serves_canary: bool = False
    """whether the challenger answers a share of the keys; else it runs in the shadow"""
    explainers: dict[str, Explainer] = field(default_factory=dict)
    users: int = 0
    retired: bool = False

    def waits(self, rows: list[dict[str, Any]]) -> bool:
        """Whether an answer to these rows takes long to prepare."""
        canary = self.challenger if self.serves_canary else None
        return self.champion.waits(rows) or (canary is not None and canary.waits(rows))


@dataclass(frozen=True)
class Priced:
    """Answers to the rows of one request, or of several that were priced together."""

    parts: list[tuple[Answers, np.ndarray]]
    """answers by one version, and which of the rows they are to, ascending; each row is in one part"""
    state: State

    def of(self, first: int, n: int) -> list[tuple[Answers, slice, np.ndarray]]:
        """Where the answers to n rows from ``first`` on stand: among which, where there, and to which of the n."""
        found = []
        for answers, rows in self.parts:
            begin, end = np.searchsorted(rows, (first, first + n)).tolist()
            if begin < end:
                found.append((answers, slice(begin, end), rows[begin:end] - first))
        return found


class Service:
    """Prices and swaps. The asynchronous methods belong to one event loop."""

    def __init__(self, settings: Settings, api: ApiSettings, contract: Contract, metrics: Metrics) -> None:
        self.settings, self.api, self.contract, self.metrics = settings, api, contract, metrics
        self.recorder = Recorder(settings, api, metrics)
        self.state: State | None = None
        self.problem: str | None = "the model is being loaded"
        self._seen: tuple[int, int, int] | None = None
        self._again_at, self._wait_s = 0.0, RETRY_S
        self._lock = threading.Lock()
        self._waiting: list[tuple[list[dict[str, Any]], str, asyncio.Future[tuple[Priced, int]]]] = []
        self._wake = asyncio.Event()
        self._shadows = 0
        self._large = 0
        self._few = ThreadPoolExecutor(1, "price-few")
        self._many = ThreadPoolExecutor(CUT_IN, "price-many")
        self._aside = ThreadPoolExecutor(1, "aside")
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Open the journals and begin to load, price, watch and write. Returns at once."""
        remove_leftovers(self.settings)
        self.recorder.open()
        for loop in (self._price_loop, self._watch_loop, self.recorder.write_predictions, self.recorder.write_feedback):
            self._tasks.append(asyncio.create_task(_endless(loop)))

    async def stop(self) -> None:
        """Write and close what is open. Requests have ended when this is called."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pool in (self._aside, self._few, self._many):
            await asyncio.to_thread(pool.shutdown)
        await self.recorder.close()
        if self.state:
            self.state.snapshot.close()

    # --- swapping

    async def _watch_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await loop.run_in_executor(self._aside, self.refresh)
            await asyncio.sleep(self.api.poll_s)

    def refresh(self) -> None:
        """Take over what is published when it is new and works; else remember why not, and try again later."""
        try:
            found = identity(self.settings.published)
            is_new = found != self._seen
            if not is_new and time.monotonic() < self._again_at:
                return
            if is_new:
                self._seen, self._wait_s = found, RETRY_S
            if not is_new and self.state and self.problem is None:
                self._challenge(self.state)  # it alone had failed
                self._show(self.state)
            elif state := self._load():
                self._take_over(state)
        except (NotPublishedError, SwapError, RegistryError, BundleError) as error:
            self._refused(str(error))
        except Exception as error:  # whatever is wrong with the new one, the old one goes on answering
            self._refused(f"{type(error).__name__}: {error}", unexpected=True)
        failed = self.problem or (self.state and self.state.challenger_problem)
        self._again_at = time.monotonic() + self._wait_s if failed else math.inf
        self._wait_s = min(2 * self._wait_s, MAX_RETRY_S)

    def _refused(self, reason: str, *, unexpected: bool = False) -> None:
        self.metrics.swap_failed.set(1)
        told = self._told(reason)
        if told != self.problem:
            self.problem = told
            self.metrics.swaps.labels("refused").inc()
            log.error("snapshot refused: %s", reason, exc_info=unexpected)

    def _told(self, reason: str) -> str:
        """What callers are told; the log has the whole reason."""
        return without_paths(" ".join(reason.split()), self.settings.home)[:500]

    def _take_over(self, state: State) -> None:
        with self._lock:
            old, self.state = self.state, state
            self.problem = None
            if old:
                old.retired = True
                if not old.users:
                    old.snapshot.close()
        # what stays until the next swap need not be looked through while a large request makes its many small objects
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        self.metrics.swaps.labels("taken").inc()
        self.metrics.swap_failed.set(0)
        self.metrics.ready.set(1)
        self._show(state)
        log.info("%s answers, snapshot %s", state.champion.version.model_version, state.snapshot.fingerprint[:12])

    def _show(self, state: State) -> None:
        self.metrics.model.clear()
        self.metrics.model.labels(state.champion.version.model_version, "champion").set(1)
        if state.challenger:
            role = "canary" if state.serves_canary else "challenger"
            self.metrics.model.labels(state.challenger.version.model_version, role).set(1)

    def _load(self) -> State | None:
        snapshot = Snapshot(self.settings)
        self._seen = snapshot.identity
        try:
            current = self.state
            if current and current.snapshot.fingerprint == snapshot.fingerprint and self.problem is None:
                snapshot.close()  # written again with the same rows
                return None
            versions = snapshot.versions()
            if "champion" not in versions:
                raise SwapError(
                    f"{self.settings.dataset} has no champion: none was trained, or none passed its gate; see "
                    f"`housing status -d {self.settings.dataset}`"
                )
            version = versions["champion"]
            champion = Engine(self.contract, snapshot, version, load_bundle(self.settings, version))
            example = example_row(self.contract, snapshot)
            _test(champion, example)
            state = State(snapshot, champion, None, None, example)
            self._challenge(state)
            return state
        except BaseException:
            snapshot.close()
            raise

    def _challenge(self, state: State) -> None:
        """Load the challenger beside the champion; one that does not work must not keep that from answering."""
        version = state.snapshot.versions().get("challenger")
        if version is None:
            return
        try:
            challenger = Engine(self.contract, state.snapshot, version, load_bundle(self.settings, version))
            _test(challenger, state.example)
            with contextlib.closing(state.snapshot.cursor()) as connection:
                serves_canary = is_canary(connection, self.contract, version.model_version)
        except Exception as error:  # whatever is wrong with it is told, and the champion answers
            problem = self._told(f"{version.model_version}: {error}")
            if problem != state.challenger_problem:
                log.exception("the challenger cannot answer")
            state.challenger_problem = problem
        else:
            state.serves_canary = serves_canary
            state.challenger, state.challenger_problem = challenger, None

    def _use(self) -> State:
        with self._lock:
            if self.state is None:
                raise ProblemError(503, self.problem or "the model is being loaded", headers={"Retry-After": "2"})
            self.state.users += 1
            return self.state

    def release(self, state: State) -> None:
        """The caller is done with a state; the last one of a retired state lets go of its snapshot."""
        with self._lock:
            state.users -= 1
            last = state.retired and not state.users
        if last:
            state.snapshot.close()

    # --- pricing

    async def price(self, rows: list[dict[str, Any]], request_id: str) -> tuple[Priced, int]:
        """Answers, and the place of the first row among them. The caller releases the state."""
        if len(self._waiting) + self._large >= self.api.max_waiting:
            raise ProblemError(503, "too many requests wait for a price", headers={"Retry-After": "1"})
        if len(rows) > BATCH_ROWS or (self.state and self.state.waits(rows)):
            state = self._use()
            try:
                priced = await self._price_large(state, rows)
            except BaseException:
                self.release(state)
                raise
            self._after(priced, rows, [request_id] * len(rows))
            return priced, 0
        future: asyncio.Future[tuple[Priced, int]] = asyncio.get_running_loop().create_future()
        self._waiting.append((rows, request_id, future))
        self._wake.set()
        return await future

    async def _price_loop(self) -> None:  # noqa: PLR0912 - one loop, read from top to bottom
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            asked, n = [], 0
            while self._waiting and (not asked or n + len(self._waiting[0][0]) <= BATCH_ROWS):
                entry = self._waiting.pop(0)
                if not entry[2].cancelled():
                    asked.append(entry)
                    n += len(entry[0])
            if not self._waiting:
                self._wake.clear()
            if not asked:
                continue
            rows = [row for part, _, _ in asked for row in part]
            try:
                state = self._use()
                try:
                    priced = Priced(await loop.run_in_executor(self._few, self._price, state, rows), state)
                    with self._lock:
                        state.users += len(asked)  # each request releases it for itself
                finally:
                    self.release(state)
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                for _, _, future in asked:
                    if not future.done():
                        future.set_exception(error)
                continue
            first = 0
            for part, _, future in asked:
                if future.done():  # nobody waits any more
                    self.release(state)
                else:
                    future.set_result((priced, first))
                first += len(part)
            self._after(priced, rows, [request_id for part, request_id, _ in asked for _ in part])

    async def _price_large(self, state: State, rows: list[dict[str, Any]]) -> Priced:
        loop, least = asyncio.get_running_loop(), PART_ROWS if self._large else PART_ROWS_ALONE
        size = math.ceil(len(rows) / max(1, min(CUT_IN, len(rows) // least)))
        cuts = range(0, len(rows), size)
        self._large += 1
        try:
            found = await asyncio.gather(
                *(loop.run_in_executor(self._many, self._price, state, rows[cut : cut + size]) for cut in cuts),
                return_exceptions=True,  # where a part fails, the version stays in use until the others have ended
            )
        finally:
            self._large -= 1
        parts = []
        for cut, priced in zip(cuts, found, strict=True):
            if isinstance(priced, BaseException):
                raise priced
            parts += [(answers, cut + at) for answers, at in priced]
        return Priced(parts, state)

    def _price(self, state: State, rows: list[dict[str, Any]]) -> list[tuple[Answers, np.ndarray]]:
        """Answers, and which of the rows they are to; each row by the version that serves it."""
        self.metrics.batch.observe(len(rows))
        champion = state.champion.answer(rows, "champion")
        every, share = np.arange(len(rows)), self.contract.promotion.canary_share
        if state.challenger and state.serves_canary:
            ids = listed(champion.checked["observation_id"])
            other = np.array([serves_canary(key, share) for key in ids], dtype=bool)
            if other.any():
                chosen, rest = every[other], every[~other]
                answers = state.challenger.answer([rows[i] for i in chosen], "canary")
                return [(champion.take(rest.tolist()), rest), (answers, chosen)]
        return [(champion, every)]

    def _after(self, priced: Priced, rows: list[dict[str, Any]], request_ids: list[str]) -> None:
        """Journal what was answered, and ask the challenger as well where it runs in the shadow."""
        now = datetime.now(UTC)
        for answers, at in priced.parts:
            self.recorder.note(answers, [request_ids[i] for i in at.tolist()], now)
        shadow = priced.state.challenger
        if shadow and not priced.state.serves_canary and self._shadows < MAX_SHADOW:
            self._shadows += 1
            with self._lock:
                priced.state.users += 1
            task = asyncio.get_running_loop().run_in_executor(
                self._aside, self._shadow, priced.state, rows, request_ids, now
            )
            task.add_done_callback(lambda _: self.release(priced.state))

    def _shadow(self, state: State, rows: list[dict[str, Any]], request_ids: list[str], now: datetime) -> None:
        try:
            assert state.challenger is not None
            answers = state.challenger.answer(rows, "challenger")
            self.recorder.note(answers, request_ids, now)
        except Exception:
            log.exception("the shadow failed")
        finally:
            self._shadows -= 1

    async def explain(self, priced: Priced, first: int, n: int) -> list[dict[str, Any]]:
        """Contributions and comparables of some of the rows just priced."""

        def explained() -> list[dict[str, Any]]:
            out: list[dict[str, Any]] = [{}] * n
            for answers, part, places in priced.of(first, n):
                mine = answers.take(range(part.start, part.stop))
                for place, row in zip(places, self._explainer(priced.state, answers).explain(mine), strict=True):
                    out[place] = row
            return out

        return await asyncio.get_running_loop().run_in_executor(self._many, explained)

    def _explainer(self, state: State, answers: Answers) -> Explainer:
        engine = state.champion if answers.role == "champion" else state.challenger
        assert engine is not None
        with self._lock:
            if answers.role not in state.explainers:
                state.explainers[answers.role] = Explainer(engine, self.settings.threads)
            return state.explainers[answers.role]

    def batch_predictions(self, filters: dict[str, Any], after: str | None, limit: int) -> list[dict[str, Any]]:
        """A page of the batch's predictions with their ranges, by observation and version."""
        state = self._use()
        month = "p.month" if self.contract.observed_on else "null::date as month"
        try:
            wanted = {name: value for name, value in filters.items() if value is not None}
            conditions = ["p.kind = 'model'", "p.mode = 'batch'", *(f"p.{name} = ${name}" for name in wanted)]
            parameters = {**wanted, "n": limit}
            if after:
                conditions.append("(p.observation_id, p.model_version) > ($after_id, $after_version)")
                parameters["after_id"], _, parameters["after_version"] = after.partition(":")
            return state.snapshot.rows(
                f"""
                select p.observation_id, p.model_version, {month}, p.area, p.locality, p.split, p.predicted_price,
                    i.lower_50, i.upper_50, i.lower_80, i.upper_80, i.lower_95, i.upper_95, i.forecast_std_pct, i.grade,
                    p.scored_at
                from predictions.predictions as p
                left join predictions.prediction_intervals as i
                    on p.observation_id = i.observation_id and p.model_version = i.model_version
                where {" and ".join(conditions)}
                order by p.observation_id, p.model_version limit $n
                """,
                parameters,
            )
        finally:
            self.release(state)


async def _endless(loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """A loop for as long as the service lives: nobody would notice that one had ended."""
    while True:
        try:
            await loop()
        except Exception:  # of a kind that nobody thought of: requests are still answered
            log.exception("%s failed and begins again", getattr(loop, "__name__", "a loop"))
            await asyncio.sleep(AGAIN_S)


def serves_canary(observation_id: str, share: float) -> bool:
    """Whether the challenger answers for a key: the same keys always, as the SQL macro hash_share says."""
    return int(observation_id[:8], 16) / 2**32 < share


def _test(engine: Engine, example: dict[str, Any]) -> None:
    """Ask the example and repeat prices of the batch. Raises SwapError when the version does not work."""
    version = engine.version.model_version
    try:
        require_encodings(engine.bundle, engine.contract)
    except ChangedEncodingError as error:
        raise SwapError(str(error)) from None
    answers = engine.answer([example], "champion")
    if not answers.reasons[0] and not answers.price[0] > 0:
        raise SwapError(f"{version} gives no price for the example: {answers.price[0]}")
    [about] = engine.snapshot.rows("from published.about")
    if about.get("features_definition") not in {None, definition_of(engine.bundle.views)}:
        log.info("%s is not compared with the batch: the warehouse makes features otherwise since", version)
        return
    features = ", ".join(f't."{name}"' for name in engine.bundle.features_used)
    mine = "model_version = $version and mode = 'batch' and split <> 'eval' and predicted_price is not null"
    # what came after the batch may have changed a row's features
    asked = f"""
        select p.predicted_price, t.target_offset + coalesce(p.recent_error, 0) as target_offset, {features}
        from (select * from predictions.predictions where {mine}) as p
        inner join training.training_dataset as t
            on p.observation_id = t.observation_id and p.built_through_batch = t.built_through_batch
        order by p.month desc limit {TEST_ROWS}
    """
    try:
        rows = engine.snapshot.table(asked, {"version": version})
    except duckdb.BinderException:
        raise SwapError(f"the snapshot is of an earlier release; type: {run_command(engine.contract.name)}") from None
    if not rows.num_rows:
        asked = f"""
            select count(*) as n, count(t.observation_id) as n_known
            from (select * from predictions.predictions where {mine}) as p
            left join training.training_dataset as t on p.observation_id = t.observation_id
        """
        [found] = engine.snapshot.rows(asked, {"version": version})
        if found["n"] and not found["n_known"]:
            raise SwapError(f"{version} cannot be compared: no home of the batch has features")
        log.info("%s is not compared with the batch: all homes' features changed since", version)
        return
    x, _ = engine.bundle.matrix(rows)
    price = np.exp(engine.bundle.booster.inplace_predict(x).astype(np.float64) + rows["target_offset"].to_numpy())
    off = float(np.median(np.abs(price / rows["predicted_price"].to_numpy() - 1)))
    if not off <= TOLERANCE:
        raise SwapError(f"{version} does not repeat the batch's prices (median {100 * off:.3g} % off)")
