"""Questions of the published snapshot: ``housing sql`` and whoever else lets people type SQL.

What is allowed and how it is enforced is in ``sandbox.py``, which runs each query in a process of its own; making the
snapshot is in ``snapshot.py``. Fixed queries of the product's own code do not need this module.
"""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, get_args

import duckdb
import pyarrow as pa

from dagster_project.published.snapshot import SnapshotError
from ml.settings import Settings, run_command

SANDBOX = Path(__file__).with_name("sandbox.py")

#: Seconds for starting Python and sending the answer, beyond the query's own time.
START_UP_S = 15.0

#: Rows that the table format prints; csv and json print all.
SHOWN_ROWS = 100

Format = Literal["table", "csv", "json"]

UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}


class QueryRefusedError(ValueError):
    """The query may not run, is wrong, or took too much; the message is one sentence that says which and why."""


def run_query(
    settings: Settings, sql: str, *, timeout_s: float = 30.0, memory_limit: str = "512MB", max_rows: int = 10_000
) -> pa.Table:
    """Result of one SELECT over the snapshot, at most ``max_rows`` rows; ``truncation`` says whether there are more.

    The query sees the published tables and nothing else: no files, network, settings, environment or Python variables.
    Raises QueryRefusedError (with the reason) and SnapshotError when nothing was published yet.
    """
    if timeout_s <= 0 or max_rows < 1:
        raise ValueError(f"timeout_s and max_rows must be positive, not {timeout_s} and {max_rows}")
    if not settings.published.is_file():
        raise SnapshotError(f"nothing is published for {settings.dataset} yet; type: {run_command(settings.dataset)}")
    request = {
        "snapshot": str(settings.published),
        "dataset": settings.dataset,
        "sql": sql,
        "timeout_s": timeout_s,
        "memory_limit": memory_limit,
        "memory_bytes": _bytes(memory_limit),
        "threads": settings.threads,
        "max_rows": max_rows,
    }
    too_long = f"the query took longer than {timeout_s:g} s and was stopped; filter or aggregate more"
    try:
        child = subprocess.run(
            [sys.executable, "-I", os.fspath(SANDBOX)],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=timeout_s + START_UP_S,
            check=False,
            # no variable of ours, so that no query can read one; the library path lets a shared Python start
            env={"MALLOC_ARENA_MAX": "2", **{k: v for k, v in os.environ.items() if k.endswith("LIBRARY_PATH")}},
        )
    except subprocess.TimeoutExpired:
        raise QueryRefusedError(too_long) from None
    if child.returncode == -signal.SIGALRM:
        raise QueryRefusedError(too_long)
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        raise QueryRefusedError(f"the query broke the database engine or its memory limit ({name}); write it otherwise")
    if child.returncode > 0:
        last = child.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise RuntimeError(f"the query's process failed, which is a fault of this program: {last}")
    head, _, body = child.stdout.partition(b"\n")
    answer = json.loads(head)
    if "refused" in answer:
        raise QueryRefusedError(answer["refused"])
    table = pa.ipc.open_stream(body).read_all()
    return table.replace_schema_metadata({"truncated": "yes"} if answer["truncated"] else None)


def truncation(table: pa.Table) -> str | None:
    """Sentence for stderr when ``run_query`` left rows out, else None."""
    if (table.schema.metadata or {}).get(b"truncated") is None:
        return None
    return f"only the first {table.num_rows:,} rows are shown, there are more; aggregate, filter or use LIMIT"


def format_result(table: pa.Table, fmt: str, *, width: int | None = None) -> str:
    """Text of a result: 'table' (a box as wide as the terminal), 'csv' or 'json' (a list, an object a line).

    In JSON NaN and infinity are null, dates ISO 8601, exact numbers numbers, bytes hexadecimal; in CSV null is empty
    and lists are JSON.
    """
    if fmt == "table":
        return _box(table, width or shutil.get_terminal_size((120, 40)).columns)
    if fmt == "json":
        columns = [[_json(value) for value in column.to_pylist()] for column in table.columns]
        rows = (dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True))
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
        return "[" + ",\n ".join(lines) + "]"
    if fmt == "csv":
        lines = _Lines()
        # before Python 3.13 only the characters that end a line are quoted within one: name both, write one
        writer = csv.writer(lines, lineterminator="\r\n")
        writer.writerow(table.column_names)
        writer.writerows(zip(*([_cell(value) for value in c.to_pylist()] for c in table.columns), strict=True))
        return "\n".join(line.removesuffix("\r\n") for line in lines)
    raise ValueError(f"unknown format {fmt!r}; known are: {', '.join(get_args(Format))}")


class _Lines(list[str]):
    write = list[str].append


def _box(table: pa.Table, width: int) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), duckdb.connect() as connection:
        connection.from_arrow(table).show(max_width=width, max_rows=SHOWN_ROWS)
    return out.getvalue().rstrip("\n")


def _json(value: Any) -> Any:  # noqa: PLR0911 - one line per type
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case dt.date() | dt.time():
            return value.isoformat()
        case bytes():
            return value.hex()
        case dict():
            return {str(key): _json(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_json(inner) for inner in value]
        case None | bool() | int() | str():
            return value
        case _:
            return str(value)


def _cell(value: Any) -> Any:
    """A CSV cell: numbers as they are (also NaN), lists and structs as JSON."""
    plain = value if isinstance(value, float | Decimal) else _json(value)
    return json.dumps(plain, ensure_ascii=False) if isinstance(plain, dict | list) else plain


def _bytes(memory_limit: str) -> int:
    for unit, factor in UNITS.items():
        number = memory_limit.removesuffix(unit).strip()
        if number != memory_limit and number.replace(".", "", 1).isdigit():
            return int(float(number) * factor)
    raise ValueError(f"memory_limit {memory_limit!r} is not a size; write for example 512MB or 1GiB")
