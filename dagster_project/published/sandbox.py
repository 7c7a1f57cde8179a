"""The child process that runs one reader's query: ``python -I sandbox.py``, a request on stdin, the answer on stdout.

A process of its own, because DuckDB's limits do not hold inside one: ``repeat('x', 4000000000)`` takes 8 GB under a
limit of 512 MB, ``levenshtein`` of long texts cannot be interrupted and ``pandas_scan(null)`` is a segmentation fault.
Started by ``query.py``, which speaks to users; imports nothing of the project.
"""

from __future__ import annotations

import io
import json
import re
import resource
import signal
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, TypedDict

import duckdb
import pyarrow as pa

MAX_BYTES = 64 * 2**20
BATCH_ROWS = 2048

#: Python, DuckDB and Arrow themselves take about 0.3 GiB of address space, and each thread its stack.
OVERHEAD_BYTES = 512 * 2**20
THREAD_BYTES = 64 * 2**20

#: What may stand in FROM with parentheses. A list of what is allowed, because each DuckDB release adds functions, and
#: some write files (``enable_logging``), run text as SQL (``query``) or crash (``pandas_scan``).
TABLE_FUNCTIONS = {
    *("generate_series", "histogram", "histogram_values", "json_each", "json_tree", "range", "repeat", "repeat_row"),
    *("unnest", "pragma_table_info", "duckdb_columns", "duckdb_constraints", "duckdb_functions", "duckdb_keywords"),
    *("duckdb_schemas", "duckdb_tables", "duckdb_types", "duckdb_views"),
}

#: DuckDB's own views that tell of files, settings, other queries or the log; a test knows of new ones.
VIEWS = {
    *("duckdb_databases", "duckdb_logs", "pg_database", "pg_prepared_statements", "pg_settings"),
    "pragma_database_list",
}

TEXTS = re.compile(r"(BIT|INTERVAL|TIME WITH TIME ZONE)((?:\[\d*\])*)")

ALLOWED = "only one SELECT over the published tables may run"


class Refused(Exception):
    """The query may not run or did not work; the message is one sentence for whoever asked."""


class Request(TypedDict):
    snapshot: str
    dataset: str
    sql: str
    timeout_s: float
    memory_limit: str
    memory_bytes: int
    threads: int
    max_rows: int


def main() -> None:
    request: Request = json.load(sys.stdin)
    limit_process(request)
    header: dict[str, Any]
    body = b""
    try:
        table, truncated = run(request)
        body = encode(table)
        header = {"truncated": truncated}
    except Refused as refusal:
        header = {"refused": str(refusal)}
    except (MemoryError, pa.ArrowMemoryError):
        header = {"refused": out_of_memory(request)}
    except RecursionError:
        header = {"refused": "the query is nested too deeply; write it with fewer brackets"}
    except duckdb.Error as error:
        header = {"refused": sentence(error, request)}
    sys.stdout.buffer.write(json.dumps(header).encode() + b"\n" + body)


def limit_process(request: Request) -> None:
    """Let the kernel end the query in time, and keep it from writing any file."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, request["timeout_s"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # macOS knows no such limit: there DuckDB's own has to do
        most = request["memory_bytes"] + OVERHEAD_BYTES + request["threads"] * THREAD_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def connect(request: Request) -> duckdb.DuckDBPyConnection:
    """In-memory DuckDB with the snapshot attached read-only and every other door closed and locked."""
    connection = duckdb.connect(
        config={
            "memory_limit": f"{request['memory_bytes']}B",
            "threads": request["threads"],
            "temp_directory": "",
            "python_enable_replacements": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
        }
    )
    connection.execute(f'attach {_literal(request["snapshot"])} as "{request["dataset"]}" (read_only)')
    connection.execute(f'use "{request["dataset"]}"')
    # tables are found without their schema, too, and SHOW TABLES lists them all
    schemas = dict.fromkeys(name.split(".")[0] for name in tables(connection))
    path = ",".join(f'"{request["dataset"]}"."{schema}"' for schema in schemas)
    connection.execute(f"set search_path = '{path}'")
    connection.execute("set TimeZone = 'UTC'")
    connection.execute("set enable_progress_bar = false")
    connection.execute("set enable_external_access = false")
    # without this the attached file itself could still be read byte by byte
    connection.execute("set disabled_filesystems = 'LocalFileSystem'")
    connection.execute("set lock_configuration = true")
    return connection


def run(request: Request) -> tuple[pa.Table, bool]:
    """Rows of the query, at most ``max_rows``, and whether there were more. Raises Refused or duckdb.Error."""
    connection = connect(request)
    try:
        relation = connection.sql(checked(connection, request["sql"]))
        names, reader = relation.columns, with_texts(relation).to_arrow_reader(BATCH_ROWS)
        batches, rows, size = [], 0, 0
        for batch in reader:
            batches.append(batch)
            rows += batch.num_rows
            size += batch.nbytes
            if size > MAX_BYTES:
                raise Refused(f"the result is larger than {MAX_BYTES >> 20} MB; select fewer columns, or aggregate")
            if rows > request["max_rows"]:
                break
        schema = reader.schema
        reader.close()  # an open result would keep the connection to itself
    except duckdb.CatalogException as error:
        if "Table with name" not in str(error):
            raise
        missing = sentence(error, request).split("!")[0]
        raise Refused(f"{missing}; the tables are: {', '.join(tables(connection))}") from None
    table = pa.Table.from_batches(batches, schema).slice(0, request["max_rows"])
    columns = [as_text(connection, column) if is_beyond_python(column) else column for column in table.columns]
    return pa.table(columns, names=names), rows > request["max_rows"]


def with_texts(relation: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """The same columns; those of types that Arrow and Python have no equal of, and lists of such, as DuckDB's text."""
    types = [TEXTS.fullmatch(str(kind)) for kind in relation.types]
    if not any(types):
        return relation
    # by place: names may come twice
    return relation.project(
        ", ".join(f"#{n}::varchar{found[2]}" if found else f"#{n}" for n, found in enumerate(types, 1))
    )


def is_beyond_python(column: pa.ChunkedArray) -> bool:
    """Has a column infinite dates, or some that Python has no year for?"""
    if not (pa.types.is_date(column.type) or pa.types.is_timestamp(column.type) or pa.types.is_nested(column.type)):
        return False
    if column.type == pa.timestamp("ns"):  # no year beyond 2262; asking would import pandas
        return False
    try:
        column.to_pylist()
    except (ValueError, OverflowError):
        return True
    return False


def as_text(connection: duckdb.DuckDBPyConnection, column: pa.ChunkedArray) -> pa.ChunkedArray:
    return connection.from_arrow(pa.table({"c": column})).project("c::varchar as c").to_arrow_table()["c"]


def checked(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    """The one statement of ``sql``, parsed by DuckDB itself. Raises Refused when it is not a plain SELECT."""
    statements = connection.extract_statements(sql)
    if not statements:
        raise Refused("there is nothing to run; write one SELECT, for example: SHOW TABLES")
    # without its values a PIVOT is several statements, the first of which creates a type
    hint = "; a PIVOT needs its values listed: ON column IN (...)" if "pivot" in sql.lower() else ""
    if len(statements) > 1:
        raise Refused(f"{len(statements)} statements are refused: {ALLOWED}{hint}")
    [statement] = statements
    text = statement.query
    if _kind(statement) == duckdb.StatementType.EXPLAIN:
        text = explained(connection, text)
    elif _kind(statement) != duckdb.StatementType.SELECT:
        raise Refused(f"{_first_word(text)} is refused: {ALLOWED}{hint}")
    # not as a parameter: binding one makes DuckDB import pandas, which takes longer than most queries
    [(answer,)] = connection.execute(f"select json_serialize_sql({_literal(text)})").fetchall()
    tree = json.loads(answer)
    if tree.get("error") is not False:  # a PRAGMA that DuckDB turns into a SELECT
        raise Refused(f"{_first_word(text)} is refused: {ALLOWED}")
    for node in nodes(tree):
        if named := refused(node):
            raise Refused(f"the {named} is refused: {ALLOWED}, no files and no settings")
    return statement


def explained(connection: duckdb.DuckDBPyConnection, text: str) -> str:
    """What stands behind EXPLAIN or EXPLAIN ANALYZE, when it is one SELECT. Raises Refused otherwise."""
    raw = text.encode()
    starts = [*_tokens(text), len(raw)]
    words = [raw[a:b].split(maxsplit=1)[0].lower() for a, b in pairwise(starts)]
    inner = raw[starts[2 if words[1:2] == [b"analyze"] else 1] :].decode()
    try:
        kinds = [_kind(statement) for statement in connection.extract_statements(inner)]
    except duckdb.ParserException:
        kinds = []
    if kinds != [duckdb.StatementType.SELECT]:
        raise Refused("EXPLAIN is refused here: write EXPLAIN or EXPLAIN ANALYZE and one SELECT behind it, no options")
    return inner


def nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """All nodes of a serialised statement, at any depth."""
    rest = [tree]
    while rest:
        node = rest.pop()
        if isinstance(node, dict):
            yield node
            rest.extend(node.values())
        elif isinstance(node, list):
            rest.extend(node)


def refused(node: dict[str, Any]) -> str | None:
    """What a node asks for that no query may have, if it does."""
    if node.get("type") == "TABLE_FUNCTION":
        name = str(node["function"]["function_name"])
        return None if name.lower() in TABLE_FUNCTIONS else f"table function {name}"
    if node.get("type") == "BASE_TABLE" and str(node["table_name"]).lower() in VIEWS:
        return f"view {node['table_name']}"
    if str(node.get("function_name")).lower() == "current_setting":
        return "function current_setting"
    return None


def tables(connection: duckdb.DuckDBPyConnection) -> list[str]:
    rows = connection.execute("select schema_name || '.' || table_name from duckdb_tables() order by all").fetchall()
    return [name for (name,) in rows]


def sentence(error: duckdb.Error, request: Request) -> str:
    """DuckDB's message without its code, its excerpt of the query and its line breaks."""
    if isinstance(error, duckdb.PermissionException):
        return f"reading files, other databases, the network or extensions is refused: {ALLOWED}"
    if isinstance(error, duckdb.OutOfMemoryException) or "bad_alloc" in str(error):
        return out_of_memory(request)
    text = str(error).split("\nLINE ")[0].split("Error: ", 1)[-1]
    if isinstance(error, duckdb.ParserException):
        text = f"this is not valid SQL: {text}"
    return " ".join(text.split())


def out_of_memory(request: Request) -> str:
    return f"the query needs more than {request['memory_limit']} of memory; aggregate, filter or select fewer columns"


def encode(table: pa.Table) -> bytes:
    """Arrow stream. Repeated column names get a number, because neither JSON nor a data frame can hold them twice."""
    names: list[str] = []
    for name in table.column_names:
        unique, n = name, 0
        while unique in names:
            n += 1
            unique = f"{name}_{n}"
        names.append(unique)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.rename_columns(names).schema) as writer:
        writer.write_table(table.rename_columns(names))
    return sink.getvalue()


def _kind(statement: duckdb.Statement) -> duckdb.StatementType | None:
    try:
        return statement.type
    except ValueError:  # DuckDB 2.0 has statements that its Python package has no name for
        return None


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _tokens(text: str) -> list[int]:
    """Where each word begins. DuckDB 2.0 counts comments among them."""
    return [start for start, kind in duckdb.tokenize(text) if kind != duckdb.token_type.comment]


def _first_word(text: str) -> str:
    [start, *rest] = _tokens(text)
    raw = text.encode()
    return raw[start : rest[0] if rest else len(raw)].decode().split()[0].upper()


if __name__ == "__main__":
    main()
