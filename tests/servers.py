"""Servers as a user starts them: a process on a free port, awaited, and ended whatever happens."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ml.settings import PROJECT_ROOT


class ServerError(RuntimeError):
    """It ended, or did not answer in time; the message ends with what it wrote."""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def started(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process until the block ends; what it writes goes to ``log``."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=PROJECT_ROOT, env={**os.environ, **(environment or {})}, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answer_of(url: str, process: subprocess.Popen[bytes], log: Path, *, within_s: float = 60) -> bytes:
    """Body of the first answer with status 200. Raises ServerError when the process ends before or takes longer."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return answer.read()
        except OSError:  # nobody listens yet, or it says that it is not ready
            time.sleep(0.02)
    raise ServerError(f"{url} did not answer: {log.read_text(encoding='utf-8', errors='replace')[-2000:]}")
