"""Reads one CSV or Parquet file as text into a temporary, row-numbered copy, or says in one sentence why it cannot.

Defects of the bytes and of the header are found in ``structure.py``; what the values mean is judged by
``expectations/raw_file.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import duckdb

from dagster_project.raw.structure import (
    BadFileError,
    Bytes,
    Layout,
    as_header,
    csv_layout,
    filled_lines,
    has_unequal_line_ends,
    read_bytes,
    require_headers,
    unequal_line_ends,
)
from ml.contract import Column, Contract
from ml.warehouse import quoted

#: Rows or lines that a report names for each reason.
EXAMPLES = 20


@dataclass(frozen=True)
class Rows:
    """The rows of one file: a relation of text columns named by ``headers``, and ``_row``, counted from 1."""

    headers: tuple[str, ...]
    relation: str
    count: int


@dataclass(frozen=True)
class Found:
    """What was read of a file: what its bytes tell, and its rows or what is wrong with them."""

    content: Bytes
    outcome: Rows | Exception

    @property
    def rows(self) -> Rows:
        """Raises BadFileError for a broken file, and what DuckDB says where it is the machine's fault."""
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def read(connection: duckdb.DuckDBPyConnection, path: Path, contract: Contract, staged: Path) -> Found:
    """Read a CSV or Parquet file; of a broken one its bytes tell more than its rows."""
    is_text = path.suffix.lower() == ".csv"
    # hashing keeps one core busy
    with ThreadPoolExecutor(1, "bytes") as beside:
        content = beside.submit(read_bytes, path, is_text=is_text)
        outcome: Rows | Exception
        try:
            if is_text:
                outcome = _read_csv(connection, path, contract, content.result, staged)
            else:
                outcome = _read_parquet(connection, path, contract, staged)
        except (ValueError, duckdb.Error) as error:
            outcome = error
    return Found(content.result(), content.result().defect or outcome)


def _read_csv(
    connection: duckdb.DuckDBPyConnection, path: Path, contract: Contract, content: Callable[[], Bytes], staged: Path
) -> Rows:
    layout = csv_layout(path, contract)
    require_headers(path.name, layout.headers, contract)
    columns = ", ".join(f"{literal(h)}: 'VARCHAR'" for h in layout.headers)
    # nothing is guessed: a sniffer that is wrong once in a hundred files loads nonsense once in a hundred files
    source = (
        f"read_csv({literal(str(path))}, auto_detect = false, header = true, skip = {layout.blank_lines_before}, "
        f"delim = {literal(layout.delimiter)}, quote = '\"', escape = '\"', strict_mode = true, "
        f"columns = {{{columns}}}"
    )
    try:
        rows = _stage(connection, f"select * from {source})", staged, layout.headers)
    except (duckdb.InvalidInputException, duckdb.ConversionException) as error:
        raise content().defect or _broken_lines(
            connection, path, layout, source, content=content(), error=error
        ) from None
    # DuckDB 1.5 has been seen to read nothing, without an error, from a file of irregular line ends
    if not content().has_quotes and rows.count != content().lines - 1:
        lines = filled_lines(path) - 1
        if rows.count != lines:
            raise BadFileError(
                "lines",
                f"{path.name} has {lines:,} lines after its header, but {rows.count:,} rows could be read; "
                "export it again as UTF-8 CSV with equal line ends",
            )
    return rows


def _read_parquet(connection: duckdb.DuckDBPyConnection, path: Path, contract: Contract, staged: Path) -> Rows:
    source = f"read_parquet({literal(str(path))})"
    try:
        described = connection.execute(f"describe select * from {source}").fetchall()
        kinds = {str(name): str(kind) for name, kind, *_ in described}
        headers = tuple(as_header(name) for name in kinds)
        require_headers(path.name, headers, contract)
        texts = [
            f"{_text_of(name, kind, contract.sources.get(as_header(name)))} as {quoted(as_header(name))}"
            for name, kind in kinds.items()
        ]
        # DuckDB 2.0.1 believes statistics of Parquet that leave NaN out, and takes isnan() for false
        connection.execute("set disabled_optimizers = 'statistics_propagation'")
        try:
            return _stage(connection, f"select {', '.join(texts)} from {source}", staged, headers)
        finally:
            connection.execute("reset disabled_optimizers")
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        # what can be read without writing anything is not damaged: the disk is full, for example
        if _is_readable(connection, source):
            raise
        raise BadFileError(
            "file",
            f"{path.name} cannot be read as Parquet ({_first_line(error)}); it is damaged or incomplete, export it "
            "again",
        ) from None


def _stage(connection: duckdb.DuckDBPyConnection, select: str, staged: Path, headers: tuple[str, ...]) -> Rows:
    """Write the rows to a temporary Parquet file, which numbers them in the order of the source.

    A CSV read in parallel has no row numbers, and counting rows makes reading serial. Measuring first and loading
    later needs the rows twice, and this copy is three times faster to read than the CSV.
    """
    file = literal(str(staged))
    # short-lived, so cheap to write rather than small; measured on 884,092 rows of 39 columns
    options = "format parquet, compression uncompressed, dictionary_size_limit 5000, preserve_order true"
    written = connection.execute(f"copy ({select}) to {file} ({options})").fetchone()
    assert written is not None  # COPY answers with the number of rows
    relation = (
        "(select * exclude (file_row_number), file_row_number + 1 as _row "
        f"from read_parquet({file}, file_row_number = true))"
    )
    return Rows(headers, relation, written[0])


def _text_of(name: str, kind: str, column: Column | None) -> str:
    """A typed Parquet column as the text that a CSV export of it would hold."""
    value = quoted(name)
    if kind == "TIMESTAMP WITH TIME ZONE":
        # the file says which instant, and its day must not depend on where this machine stands
        value, kind = f"({value} at time zone 'UTC')", "TIMESTAMP"
    if column and column.type == "date" and kind.startswith(("DATE", "TIMESTAMP")):
        return f"strftime({value}, {literal(column.format or '%Y-%m-%d')})"
    text = f"nullif(cast({value} as varchar), '')"
    if kind not in {"FLOAT", "DOUBLE"}:
        return text
    if column and column.type == "text":
        # a zip code that pandas stored as 2139.0, because another row had none
        whole = f"isfinite({value}) and {value} = trunc({value})"
        text = f"case when {whole} then printf('%.0f', {value}) else {text} end"
    # nor is NaN more than pandas' word for a missing number
    return f"case when not isnan({value}) then {text} end"


def _is_readable(connection: duckdb.DuckDBPyConnection, source: str) -> bool:
    try:
        connection.execute(f"select max(hash(columns(*))) from {source}").fetchall()
    except duckdb.Error:
        return False
    return True


def _broken_lines(
    connection: duckdb.DuckDBPyConnection,
    path: Path,
    layout: Layout,
    source: str,
    *,
    content: Bytes,
    error: duckdb.Error,
) -> BadFileError:
    """Read a refused CSV file once more, now collecting the lines that do not fit."""
    lines: list[tuple[int, str, int, str | None]] = []
    limit = EXAMPLES * len(layout.headers)
    rejects = f"store_rejects = true, rejects_table = 'bad_lines', rejects_scan = 'bad_scans', rejects_limit = {limit}"
    try:
        connection.execute(f"select count(*) from {source}, {rejects})").fetchall()  # runs only when fetched
        lines = connection.execute(
            "select line, min_by(error_type, column_idx), min(column_idx), min_by(csv_line, column_idx) "
            "from bad_lines group by line order by line limit ?",
            [EXAMPLES],
        ).fetchall()
    except (duckdb.InvalidInputException, duckdb.ConversionException):
        if has_unequal_line_ends(path):
            return unequal_line_ends(path.name)
    finally:
        connection.execute("drop table if exists bad_lines")
        connection.execute("drop table if exists bad_scans")
    if not lines:
        return BadFileError(
            "lines", f"{path.name} cannot be read as CSV ({_first_line(error)}); export it again as UTF-8 CSV"
        )
    sentence = _sentence(path.name, len(layout.headers), content, lines)
    examples = tuple({"line": at, "defect": kind.lower(), "text": (text or "")[:200]} for at, kind, _, text in lines)
    return BadFileError("lines", sentence, examples)


def _sentence(name: str, wanted: int, content: Bytes, lines: list[tuple[int, str, int, str | None]]) -> str:
    line, kind, column, _ = lines[0]
    if kind == "UNQUOTED VALUE":
        return f"{name}: line {line:,} has a quotation mark that is not closed; correct it or export the file again"
    if kind not in {"MISSING COLUMNS", "TOO MANY COLUMNS"}:
        return f"{name}: line {line:,} is broken ({kind.lower()}); correct it or export the file again"
    missing = kind == "MISSING COLUMNS"
    if missing and line >= content.lines and not content.ends_with_newline:
        return f"{name} was cut off: its last line {line:,} has {column} of {wanted} fields; land the complete file"
    count = f"at least {EXAMPLES}" if len(lines) == EXAMPLES else str(len(lines))
    found, mend = (f"only {column}", "line end") if missing else ("more", "delimiter")
    return (
        f"{name}: {count} {'line has' if count == '1' else 'lines have'} not the {wanted} fields of the header, the "
        f"first is line {line:,} with {found}; quote values that hold a {mend}, or export the file again"
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def literal(text: str) -> str:
    """SQL string."""
    return "'" + text.replace("'", "''") + "'"
