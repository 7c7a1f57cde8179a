"""What the REST API does on this machine: ``python -m benchmarks.api HOME [--dataset hdb] [--requests 100000]``.

HOME is a home that ``housing run`` has filled. Rows are landed ones, dated to the newest month; the client runs on the
same cores, beside one worker. Prints one line a figure; results that count stand in ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import psutil

from ml.contract import load
from ml.settings import PROJECT_ROOT, Settings
from tests.servers import answer_of, free_port, started


class Client:
    """One keep-alive connection, as cheap as it gets: the client shares the cores with what it measures."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Client:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**26)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._writer.close()

    async def post(self, body: bytes, path: str = "/v1/predict") -> tuple[int, bytes]:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        return int(answer[9:12]), await self._reader.readexactly(length)


async def at_rate(port: int, bodies: Sequence[bytes], per_s: float, seconds: float) -> np.ndarray:
    """Seconds of each request, counted from when it was due, so that waiting for a slow one is not forgotten."""
    took: list[float] = []
    free: asyncio.Queue[Client] = asyncio.Queue()
    for _ in range(32):
        free.put_nowait(await Client(port).__aenter__())

    async def one(due: float, body: bytes) -> None:
        client = await free.get()
        status, _ = await client.post(body)
        took.append(time.perf_counter() - due)
        assert status == 200
        free.put_nowait(client)

    started, tasks = time.perf_counter(), []
    for i in range(int(per_s * seconds)):
        due = started + i / per_s
        await asyncio.sleep(max(0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(due, bodies[i % len(bodies)])))
    await asyncio.gather(*tasks)
    return np.array(took)


async def flat_out(
    port: int, bodies: Sequence[bytes], connections: int, requests: int
) -> tuple[float, np.ndarray, int]:
    """Requests a second, seconds of each, and the number that were not 200."""
    took, errors, left = [], 0, iter(range(requests))

    async def ask() -> None:
        nonlocal errors
        async with Client(port) as client:
            for i in left:
                begun = time.perf_counter()
                status, _ = await client.post(bodies[i % len(bodies)])
                took.append(time.perf_counter() - begun)
                errors += status != 200

    started = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(connections)))
    return len(took) / (time.perf_counter() - started), np.array(took), errors


async def fuzz(port: int, bodies: Sequence[bytes]) -> dict[int, int]:
    statuses: dict[int, int] = {}
    left = iter(bodies)

    async def ask() -> None:
        async with Client(port) as client:
            for body in left:
                status, _ = await client.post(body)
                statuses[status] = statuses.get(status, 0) + 1

    await asyncio.gather(*(ask() for _ in range(16)))
    return statuses


def landed_rows(settings: Settings, limit: int) -> list[dict[str, Any]]:
    """Rows of the newest landed file with rows, as requests of the newest month there are encodings for."""
    contract = load(settings.dataset)
    columns = [c for c in contract.columns if c.source and c.role not in {"price", "leak"}]
    with duckdb.connect(str(settings.published), read_only=True) as connection:
        (month,) = connection.execute("select max(month) from features.encodings").fetchone() or (None,)
    with duckdb.connect() as connection:
        found = connection.execute(
            "select * from read_csv(?, all_varchar = true, union_by_name = true) limit ?",
            [str(settings.landing / "*.csv"), limit],
        ).to_arrow_table()
    rows = []
    for line in found.to_pylist():
        row: dict[str, Any] = {}
        for c in columns:
            value = (line.get(str(c.source)) or "").strip()
            if c.name == contract.observed_on and month:
                row[c.name] = month.strftime(c.format)
            elif value and c.type == "number":
                row[c.name] = float(value)
            elif value:
                row[c.name] = value
        rows.append(row)
    return rows


def show(name: str, value: str, target: str = "") -> None:
    sys.stdout.write(f"{name:<58} {value:<44} {target}\n")
    sys.stdout.flush()


def spread(took: np.ndarray) -> str:
    p = np.percentile(1000 * took, [50, 95, 99])
    return f"p50 {p[0]:.1f} ms, p95 {p[1]:.1f} ms, p99 {p[2]:.1f} ms, n {len(took):,}"


def compared(port: int, process: psutil.Process, rows: list[dict[str, Any]]) -> dict[str, float]:
    """What the opponent can do as well; the figure of each, smaller is better."""
    bodies = [json.dumps(row).encode() for row in rows[:2_000]]
    asyncio.run(flat_out(port, bodies, 4, 400))
    _, took, _ = asyncio.run(flat_out(port, bodies, 1, 300))
    show("one row after the other", spread(took))
    cpu = sum(process.cpu_times()[:2])
    rate, busy, errors = asyncio.run(flat_out(port, bodies, 32, 3_000))
    cpu = sum(process.cpu_times()[:2]) - cpu
    show("32 connections", f"{rate:.0f} requests/s, {errors} errors, {spread(busy)}", ">= 200 requests/s, 0 errors")
    show("the same, processor time of the service", f"{1000 * cpu / len(busy):.1f} ms a request")
    found = {"one row, p50": float(np.median(took)), "seconds a request, 32 connections": 1 / rate}
    for n, times, target in ((1_000, 15, "<= 60 ms"), (10_000, 7, "<= 300 ms")):
        body = json.dumps({"rows": rows[:n]}).encode()
        _, took, errors = asyncio.run(flat_out(port, [body], 1, times))
        show(f"{n:,} rows in one request", f"median {1000 * np.median(took):.0f} ms, {errors} errors", target)
        found[f"{n:,} rows"] = float(np.median(took))
    return found


def measure(port: int, process: psutil.Process, rows: list[dict[str, Any]], requests: int) -> dict[str, float]:
    bodies = [json.dumps(row).encode() for row in rows[:2_000]]
    asyncio.run(flat_out(port, bodies, 4, 400))
    show(
        "one row at 50 requests/s, 20 s", spread(asyncio.run(at_rate(port, bodies, 50, 20))), "p50 <= 10, p99 <= 30 ms"
    )
    found = compared(port, process, rows)
    if not requests:
        return found
    from tests.serving.test_requests import fuzzed

    statuses = asyncio.run(fuzz(port, fuzzed(rows[0], random.Random(2), 20_000)))
    show("20,000 fuzzed bodies", ", ".join(f"{k}: {v:,}" for k, v in sorted(statuses.items())), "no 500")
    memory, errors = [process.memory_info().rss], 0
    for _ in range(4):
        errors += asyncio.run(flat_out(port, bodies, 32, requests // 4))[2]
        memory.append(process.memory_info().rss)
    quarters = ", ".join(f"{rss / 2**20:.0f}" for rss in memory)
    show(
        f"memory before and after each quarter of {requests:,} more requests",
        f"{quarters} MiB, {errors} errors",
        "<= 700 MiB, no growth in the last half",
    )
    return found


@contextmanager
def running(command: list[str], environment: dict[str, str], port: int, log: Path) -> Iterator[psutil.Process]:
    """A service in a process of its own, ready, until the block ends."""
    begun = time.perf_counter()
    with started([sys.executable, "-m", *command], log, environment) as process:
        answer_of(f"http://127.0.0.1:{port}/ready", process, log)
        show("start to ready", f"{time.perf_counter() - begun:.1f} s", "<= 8 s")
        yield psutil.Process(process.pid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--dataset", default="hdb")
    parser.add_argument("--requests", type=int, default=100_000, help="0: neither fuzzed bodies nor memory")
    parser.add_argument("--alone", action="store_true", help="without the opponent")
    arguments = parser.parse_args()
    settings = Settings(home=arguments.home, dataset=arguments.dataset)
    rows = landed_rows(settings, 10_000)
    with tempfile.TemporaryDirectory(prefix="housing-api-") as folder:
        # journals of a benchmark are nobody's feedback
        home, theirs, port = Path(folder), {}, free_port()
        (home / "published").mkdir()
        shutil.copyfile(settings.published, home / "published" / settings.published.name)
        show("load of the machine", ", ".join(f"{x:.1f}" for x in os.getloadavg()))
        if not arguments.alone:
            opponent = "benchmarks.pickle_service"
            subprocess.run(
                [sys.executable, "-m", opponent, "train", str(settings.home), settings.dataset, folder],
                cwd=PROJECT_ROOT,
                check=True,
            )
            with running([opponent, "serve", folder, str(port)], {}, port, home / "opponent.log") as process:
                theirs = compared(port, process, rows)
        port = free_port()
        environment = {**Settings(home=home, dataset=settings.dataset).environment, "HOUSING_API_PORT": str(port)}
        with running(["dagster_project.cli", "serve"], environment, port, home / "log") as process:
            ours = measure(port, process, rows, arguments.requests)
        for what, seconds in theirs.items():
            show(f"ratio, {what}", f"{ours[what] / seconds:.2f}")


if __name__ == "__main__":
    main()
