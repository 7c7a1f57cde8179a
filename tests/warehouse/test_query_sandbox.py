"""What a reader may ask of the published snapshot, and everything else that is refused with one sentence."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pandas as pd
import psutil
import pyarrow as pa
import pytest

from dagster_project.published import sandbox
from dagster_project.published.query import QueryRefusedError, format_result, run_query, truncation
from dagster_project.published.snapshot import SnapshotError, publish
from ml.settings import Settings
from ml.warehouse import connect

SECRET = "a-secret-of-the-environment"

MADE_UP = """
create schema predictions; create schema monitoring; create schema training;
create table predictions.predictions as
    select i::varchar as observation_id, date '2022-01-01' as month, 'town ' || i % 3 as area,
        i * 1000.0 as predicted_price
    from range(1, 31) as r(i);
create table monitoring.accuracy_by_month as
    select 'v1' as model_version, date '2022-01-01' as month, 22900.5 as mae, null::double as r2;
create table training.model_versions as select 'v1' as model_version, ['too few rows', 'r2'] as reasons;
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = Settings(home=tmp_path_factory.mktemp("sandbox"), dataset="hdb")
    with connect(settings) as connection:
        connection.execute(MADE_UP)
    publish(settings)
    (settings.home / "prices.csv").write_text("id,price\n1,2\n")
    pd.DataFrame({"id": [1]}).to_parquet(settings.home / "prices.parquet")
    return settings


@pytest.fixture(autouse=True)
def nothing_changes(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every query of this file starts with a secret in the environment and must leave all files as they were."""

    def files() -> dict[Path, str]:
        return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in settings.home.rglob("*") if p.is_file()}

    monkeypatch.setenv("HOUSING_SECRET", SECRET)
    monkeypatch.chdir(settings.home)
    before = files()
    yield
    assert files() == before


def refusal(settings: Settings, sql: str, **limits: float | str) -> str:
    """The sentence with which a query is refused. ``{home}`` and ``{snapshot}`` in it are replaced."""
    filled = sql.replace("{home}", str(settings.home)).replace("{snapshot}", str(settings.published))
    with pytest.raises(QueryRefusedError) as caught:
        run_query(settings, filled, **limits)  # pyright: ignore[reportArgumentType]
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    assert SECRET not in text
    return text


@pytest.fixture(scope="module")
def engine(settings: Settings) -> duckdb.DuckDBPyConnection:
    return sandbox.connect(
        {
            "snapshot": str(settings.published),
            "dataset": settings.dataset,
            "sql": "",
            "timeout_s": 1.0,
            "memory_limit": "200MB",
            "memory_bytes": 200_000_000,
            "threads": 1,
            "max_rows": 1,
        }
    )


@pytest.fixture(scope="module")
def unrun(settings: Settings, engine: duckdb.DuckDBPyConnection) -> Callable[[str], str]:
    """Like ``refusal`` for what is refused before it runs: asks the sandbox's check without a process for each case."""

    def check(sql: str) -> str:
        filled = sql.replace("{home}", str(settings.home)).replace("{snapshot}", str(settings.published))
        with pytest.raises(sandbox.Refused) as caught:
            sandbox.checked(engine, filled)
        return str(caught.value)

    return check


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("select count(*) as n from predictions.predictions", [{"n": 30}]),
        ("SELECT 1 AS a;", [{"a": 1}]),
        ("-- a comment\nselect 1 as a /* and another */", [{"a": 1}]),
        ("with p as (from predictions.predictions) select max(predicted_price) as top from p", [{"top": 30000.0}]),
        ("from monitoring.accuracy_by_month select mae", [{"mae": 22900.5}]),
        ("from hdb.monitoring.accuracy_by_month select mae", [{"mae": 22900.5}]),
        ("from accuracy_by_month select mae", [{"mae": 22900.5}]),
        ("table training.model_versions", [{"model_version": "v1", "reasons": ["too few rows", "r2"]}]),
        ("values (1, 'a')", [{"col0": 1, "col1": "a"}]),
        (
            "show tables",
            [{"name": n} for n in ("about", "accuracy_by_month", "model_versions", "parts", "predictions")],
        ),
        ("select column_name from (describe predictions.predictions) limit 1", [{"column_name": "observation_id"}]),
        ("select dataset from published.about", [{"dataset": "hdb"}]),
        ("select table_name from information_schema.tables where table_schema = 'training'", 1),
        ("describe predictions.predictions", 4),
        ("summarize predictions.predictions", 4),
        ("explain select * from predictions.predictions", 1),
        ("/* é */ EXPLAIN ANALYZE select 'é' from predictions.predictions", 1),
        ("explain /* why */ analyze -- it\n select 1 as one", 1),
        ("pivot predictions.predictions on area in ('town 0') using count(*) group by month", 1),
        ("select unnest(reasons) as reason from training.model_versions", 2),
        ("select * from range(3), unnest([1, 2])", 6),
        ("select area, row_number() over (order by predicted_price) as place from predictions.predictions", 30),
        ("select *, (select max(mae) from monitoring.accuracy_by_month) as mae from predictions.predictions", 30),
        ("select * from predictions.predictions where area = 'read_csv(''x.csv'')'", 0),
        ("select 'drop table x; select 1' as text", 1),
        ("from predictions.predictions where area ilike $$TOWN 0$$", 10),
        ("from predictions.predictions where 1 = 0", 0),
    ],
)
def test_a_select_over_the_published_tables_is_answered(settings: Settings, sql: str, rows: list[dict] | int):
    table = run_query(settings, sql)
    assert truncation(table) is None
    if isinstance(rows, int):
        assert table.num_rows == rows
    else:
        assert table.to_pylist() == rows


@pytest.mark.parametrize(
    ("sql", "word"),
    [
        ("copy predictions.predictions to '{home}/out.csv'", "COPY"),
        ("copy (select 1) to '/dev/stdout'", "COPY"),
        ("copy predictions.predictions from '{home}/prices.csv'", "COPY"),
        ("export database '{home}/out'", "EXPORT"),
        ("attach '{home}/new.duckdb' as n", "ATTACH"),
        ("attach ':memory:' as n", "ATTACH"),
        ("detach hdb", "DETACH"),
        ("use memory", "USE"),
        ("install httpfs", "INSTALL"),
        ("force install spatial from community", "FORCE"),
        ("load httpfs", "LOAD"),
        ("load '{home}/x.duckdb_extension'", "LOAD"),
        ("update extensions", "UPDATE"),
        ("set memory_limit = '100GB'", "SET"),
        ("set enable_external_access = true", "SET"),
        ("reset lock_configuration", "RESET"),
        ("set variable a = 1", "SET"),
        ("pragma memory_limit = '100GB'", "PRAGMA"),
        ("pragma enable_profiling", "PRAGMA"),
        ("call pragma_version()", "CALL"),
        ("call enable_logging('QueryLog', storage = 'file', storage_path = '{home}/log')", "CALL"),
        ("checkpoint", "CHECKPOINT"),
        ("vacuum", "VACUUM"),
        ("begin", "BEGIN"),
        ("prepare p as select 1", "PREPARE"),
        ("create table t as select 1", "CREATE"),
        ("create temp table t as select 1", "CREATE"),
        ("create or replace macro f() as 1", "CREATE"),
        ("create secret (type s3, key_id 'a', secret 'b')", "CREATE"),
        ("insert into predictions.predictions from predictions.predictions", "INSERT"),
        ("update predictions.predictions set predicted_price = 0", "UPDATE"),
        ("delete from predictions.predictions", "DELETE"),
        ("truncate predictions.predictions", "TRUNCATE"),
        ("merge into predictions.predictions p using range(3) on true when matched then delete", "MERGE"),
        ("drop table predictions.predictions", "DROP"),
        ("alter table predictions.predictions add column x int", "ALTER"),
        ("comment on table predictions.predictions is 'x'", "COMMENT"),
        ("/* select */ drop table predictions.predictions", "DROP"),
    ],
)
def test_a_statement_other_than_select_is_refused_by_name(unrun: Callable[[str], str], sql: str, word: str):
    assert unrun(sql) == f"{word} is refused: only one SELECT over the published tables may run"


@pytest.mark.parametrize(
    ("sql", "n"),
    [
        ("select 1; select 2", 2),
        ("select 1; drop table predictions.predictions", 2),
        ("set threads = 8; select 1; select 2", 3),
        ("prepare p as select 1; execute p", 2),
    ],
)
def test_several_statements_are_refused_and_counted(unrun: Callable[[str], str], sql: str, n: int):
    assert unrun(sql) == f"{n} statements are refused: only one SELECT over the published tables may run"


# DuckDB turns it into CREATE TYPE and SELECT
def test_a_pivot_without_values_says_how_to_write_it(unrun: Callable[[str], str]):
    assert "a PIVOT needs its values listed: ON column IN (...)" in unrun(
        "pivot predictions.predictions on area using count(*)"
    )


@pytest.mark.parametrize(
    "sql",
    [
        "explain copy (select 1) to '{home}/out.csv'",
        "explain analyze copy (select 1) to '{home}/out.csv'",
        "explain analyze create temp table t as select 1",
        "explain analyze delete from predictions.predictions",
        "explain analyze call pragma_version()",
        "explain set threads = 8",
        "explain (analyze, format json) select 1",
    ],
)
def test_explain_of_anything_but_a_select_is_refused(unrun: Callable[[str], str], sql: str):
    assert unrun(sql).startswith("EXPLAIN is refused here: write EXPLAIN or EXPLAIN ANALYZE and one SELECT")


@pytest.mark.parametrize(
    ("sql", "function"),
    [
        ("from read_csv('{home}/prices.csv')", "read_csv"),
        ("from read_csv_auto('{home}/prices.csv')", "read_csv_auto"),
        ("from READ_PARQUET('{home}/prices.parquet')", "read_parquet"),
        ("from read_text('/etc/passwd')", "read_text"),
        ("from read_text('/proc/self/environ')", "read_text"),
        # the snapshot itself is an allowed path inside DuckDB
        ("from read_blob('{snapshot}')", "read_blob"),
        ("from read_duckdb('{snapshot}')", "read_duckdb"),
        ("from read_json('https://example.com/a.json')", "read_json"),
        ("from glob('{home}/*')", "glob"),
        ("from sniff_csv('{home}/prices.csv')", "sniff_csv"),
        ("from parquet_metadata('{home}/prices.parquet')", "parquet_metadata"),
        ("from \"read_text\"('/etc/passwd')", "read_text"),
        ("from system.main.read_text('/etc/passwd')", "read_text"),
        ("select * from predictions.predictions, read_text('/etc/passwd')", "read_text"),
        ("select (select content from read_text('/etc/passwd'))", "read_text"),
        ("with a as (from read_text('/etc/passwd')) from a", "read_text"),
        ("select 1 union all select size from read_text('/etc/passwd')", "read_text"),
        ("from range(2), lateral (from read_text('/etc/passwd'))", "read_text"),
        ("select list_transform([1], lambda x: (select size from read_text('/etc/passwd')))", "read_text"),
        ("select 1 order by exists (from read_text('/etc/passwd'))", "read_text"),
        ("describe from read_text('/etc/passwd')", "read_text"),
        ("summarize from read_text('/etc/passwd')", "read_text"),
        ("explain analyze select * from read_text('/etc/passwd')", "read_text"),
        # text that would be run as SQL after it was checked
        ("from query('from read_text(''/etc/passwd'')')", "query"),
        ("from query_table('predictions.predictions')", "query_table"),
        ("from json_execute_serialized_sql(json_serialize_sql('select 1'))", "json_execute_serialized_sql"),
        # SELECTs that change settings or write files
        ("from enable_logging('QueryLog', storage = 'file', storage_path = '{home}/log')", "enable_logging"),
        ("from enable_profiling(format = 'json', save_location = '{home}/profile.json')", "enable_profiling"),
        ("from checkpoint()", "checkpoint"),
        ("from duckdb_settings()", "duckdb_settings"),
        ("from duckdb_secrets()", "duckdb_secrets"),
        # a segmentation fault in DuckDB 1.5
        ("from pandas_scan(null)", "pandas_scan"),
        ("from arrow_scan(null, null, null)", "arrow_scan"),
        ("from sqlite_scan('{home}/x.db', 't')", "sqlite_scan"),
    ],
)
def test_a_table_function_that_is_not_on_the_list_is_refused_wherever_it_stands(
    unrun: Callable[[str], str], sql: str, function: str
):
    sentence = unrun(sql)
    assert sentence.lower().startswith(f"the table function {function} is refused: only one select over the published")


@pytest.mark.parametrize(
    ("sql", "named"),
    [
        ("from pragma_database_list", "view pragma_database_list"),
        ("from duckdb_databases", "view duckdb_databases"),
        ("select (select max(path) from system.main.DuckDB_Databases)", "view DuckDB_Databases"),
        ("from pg_catalog.pg_settings", "view pg_settings"),
        ('summarize "pg_settings"', "view pg_settings"),
        ("select current_setting('home_directory')", "function current_setting"),
        ("from range(2) where main.Current_Setting('secret_directory') is null", "function current_setting"),
    ],
)
def test_files_and_settings_are_not_told_by_another_name(unrun: Callable[[str], str], sql: str, named: str):
    allowed = "only one SELECT over the published tables may run, no files and no settings"
    assert unrun(sql) == f"the {named} is refused: {allowed}"


# a DuckDB release may add a view as well as a function
def test_every_view_of_duckdb_is_harmless_or_refused(engine: duckdb.DuckDBPyConnection):
    harmless = {"duckdb_dependencies", "duckdb_indexes", "duckdb_sequences", *sandbox.TABLE_FUNCTIONS}
    views = engine.execute("select view_name, sql from duckdb_views() where internal").fetchall()
    assert {
        view for view, sql in views if {*re.findall(r"\b((?:duckdb|pragma)_\w+)\(", sql)} - harmless
    } == sandbox.VIEWS


# the cases above, one of each kind, through the whole way
@pytest.mark.parametrize(
    "sql",
    [
        "copy (select 1) to '{home}/out.csv'",
        "create table t as select 1",
        "set enable_external_access = true",
        "select 1; drop table predictions.predictions",
        "explain analyze copy (select 1) to '{home}/out.csv'",
        "from read_blob('{snapshot}')",
        "from enable_logging('QueryLog', storage = 'file', storage_path = '{home}/log')",
        "from pandas_scan(null)",
        "pragma database_list",
        "select current_setting('home_directory')",
    ],
)
def test_what_is_refused_never_runs(settings: Settings, sql: str):
    assert " refused" in refusal(settings, sql)


# were a statement to pass the check, DuckDB itself would still refuse to touch a file or a setting
@pytest.mark.parametrize(
    "sql",
    [
        "from read_blob('{snapshot}')",
        "from read_text('/etc/passwd')",
        "from glob('{home}/*')",
        "copy (select 1) to '{home}/out.csv'",
        "attach '{home}/new.duckdb' as n",
        "load httpfs",
        "set enable_external_access = true",
        "set disabled_filesystems = ''",
        "create table predictions.t as select 1",
        "drop table predictions.predictions",
    ],
)
def test_the_engine_is_locked_behind_the_check(settings: Settings, engine: duckdb.DuckDBPyConnection, sql: str):
    filled = sql.replace("{home}", str(settings.home)).replace("{snapshot}", str(settings.published))
    with pytest.raises(duckdb.Error, match=r"disabled|locked|read-only"):
        engine.execute(filled).fetchall()


@pytest.mark.parametrize(
    "sql",
    [
        "from '{home}/prices.csv'",
        "from 'prices.csv'",
        'select * from "{home}/prices.parquet"',
        "from '{snapshot}'",
        "from 'https://example.com/a.csv'",
        "from 's3://bucket/a.parquet'",
        "summarize '{home}/prices.csv'",
    ],
)
def test_files_named_like_tables_are_not_read(settings: Settings, sql: str):
    assert refusal(settings, sql).startswith("reading files, other databases, the network or extensions is refused")


# DuckDB 1.5 reads its files while parsing
def test_importing_a_database_is_refused(settings: Settings):
    assert refusal(settings, "import database '{home}/dump'").endswith(
        "only one SELECT over the published tables may run"
    )


# duckdb would find the data frame by its name in the calling function
def test_a_python_variable_is_not_a_table(settings: Settings):
    frame = pd.DataFrame({"secret": [SECRET]})
    assert len(frame) == 1
    assert refusal(settings, "from frame").startswith("Table with name frame does not exist; the tables are: ")


def test_environment_variables_cannot_be_read(settings: Settings):
    assert os.environ["HOUSING_SECRET"] == SECRET
    assert "getenv does not exist" in refusal(settings, "select getenv('HOUSING_SECRET')")


def test_an_unknown_table_is_answered_with_the_tables_there_are(settings: Settings):
    assert refusal(settings, "select * from prediction") == (
        "Table with name prediction does not exist; the tables are: monitoring.accuracy_by_month, "
        "predictions.predictions, published.about, published.parts, training.model_versions"
    )


@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        ("selec 1", 'this is not valid SQL: syntax error at or near "selec"'),
        ("select from where", 'this is not valid SQL: syntax error at or near "where"'),
        ("", "there is nothing to run; write one SELECT, for example: SHOW TABLES"),
        (" ; -- nothing", "there is nothing to run; write one SELECT, for example: SHOW TABLES"),
        ("select price from predictions.predictions", 'Referenced column "price" not found in FROM clause!'),
        ("select * from predictions.predictions where area = ?", "parameter"),
        ("select error('my own')", "my own"),
        ("select " + "[" * 600 + "]" * 600, "the query is nested too deeply"),
    ],
)
def test_a_wrong_query_is_answered_with_one_readable_sentence(settings: Settings, sql: str, sentence: str):
    assert sentence in refusal(settings, sql)


@pytest.mark.parametrize(
    "sql",
    [
        "select count(*) from range(1000000000000)",
        "with recursive r as (select 1 as n union all select n + 1 from r) select max(n) from r",
        "select sleep_ms(60000)",
        # not interruptible inside DuckDB
        "select levenshtein(repeat('a', 200000), repeat('b', 200000))",
    ],
)
def test_a_query_that_takes_too_long_is_stopped(settings: Settings, sql: str):
    others = psutil.Process().children()  # of earlier tests, such as the driver of the browser
    started = time.monotonic()
    sentence = refusal(settings, sql, timeout_s=1)
    assert sentence == "the query took longer than 1 s and was stopped; filter or aggregate more"
    assert time.monotonic() - started < 10
    assert [child for child in psutil.Process().children() if child not in others] == []


@pytest.mark.parametrize(
    "sql",
    [
        "select list(range) from range(1000000000)",
        # DuckDB itself would take these beyond its own limit: 8 GB, 17 GB
        "select length(repeat('x', 4000000000))",
        "select len(range(2000000000))",
    ],
)
def test_a_query_that_needs_too_much_memory_is_stopped(settings: Settings, sql: str):
    sentence = refusal(settings, sql, memory_limit="200MB", timeout_s=60)
    assert sentence == "the query needs more than 200MB of memory; aggregate, filter or select fewer columns"


def test_a_large_result_is_cut_and_says_so(settings: Settings):
    table = run_query(settings, "select range as i from range(1000000000)", max_rows=100)
    assert table["i"].to_pylist() == list(range(100))
    assert truncation(table) == "only the first 100 rows are shown, there are more; aggregate, filter or use LIMIT"
    endless = run_query(settings, "select date 'infinity' as never from range(5_000)", max_rows=100)
    assert endless.num_rows == 100 and endless["never"][0].as_py() == "infinity"
    exactly = run_query(settings, "select range as i from range(100)", max_rows=100)
    assert exactly.num_rows == 100
    assert truncation(exactly) is None


def test_a_result_of_few_but_huge_rows_is_refused(settings: Settings):
    sentence = refusal(settings, "select repeat('x', 20000) as x from range(9000)")
    assert sentence == "the result is larger than 64 MB; select fewer columns, or aggregate"


def test_without_a_snapshot_it_says_what_to_run(tmp_path: Path):
    with pytest.raises(SnapshotError, match=r"nothing is published for hdb yet; type: housing run -d hdb$"):
        run_query(Settings(home=tmp_path, dataset="hdb"), "select 1")


def test_a_wrong_limit_is_refused(settings: Settings):
    with pytest.raises(ValueError, match="memory_limit '512' is not a size; write for example 512MB"):
        run_query(settings, "select 1", memory_limit="512")
    with pytest.raises(ValueError, match="must be positive"):
        run_query(settings, "select 1", timeout_s=0)


def test_a_query_works_while_the_same_process_holds_the_snapshot(settings: Settings):
    with duckdb.connect(str(settings.published), read_only=True, config={"threads": 1}) as held:
        assert run_query(settings, "select count(*) as n from predictions").to_pylist() == [{"n": 30}]
        assert held.execute("select count(*) from predictions.predictions").fetchone() == (30,)


EVERY_TYPE = """
select 1 as a, 2 as a, 'é, "q"' as text, null as missing, 'nan'::double as x, '-infinity'::double as y,
    1.5::double as z, 12345678901234567890123::hugeint as huge, 1.25::decimal(10, 2) as exact, date '2022-01-31' as day,
    timestamp '2022-01-31 12:00:00.5' as stamp, timestamptz '2022-01-31 12:00:00+02' as zoned, time '12:30' as clock,
    true as flag, [1, null] as items, {'k': 'nan'::double} as struct, '\\xAB'::blob as bytes, interval 3 day as span,
    date 'infinity' as never
"""


def test_json_is_valid_for_every_type(settings: Settings):
    text = format_result(run_query(settings, EVERY_TYPE), "json")
    [row] = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row == {
        "a": 1,
        "a_1": 2,
        "text": 'é, "q"',
        "missing": None,
        "x": None,
        "y": None,
        "z": 1.5,
        "huge": 12345678901234567890123,
        "exact": 1.25,
        "day": "2022-01-31",
        "stamp": "2022-01-31T12:00:00.500000",
        "zoned": "2022-01-31T10:00:00+00:00",
        "clock": "12:30:00",
        "flag": True,
        "items": [1, None],
        "struct": {"k": None},
        "bytes": "ab",
        "span": "3 days",
        "never": "infinity",
    }


BEYOND = """
select date 'infinity' as a, date '12000-01-31' as a, date '0044-03-15 (BC)' as bc, timestamp '-infinity' as stamp,
    timestamptz '12000-01-01 02:00:00+02' as zoned, interval '1 month 2 days' as span, '0101'::bit as bits,
    time '12:30' as clock, [interval 3 day, null] as spans, [date 'infinity'] as days, null::interval as missing
"""


def test_what_python_has_no_value_for_is_told_as_duckdb_writes_it(settings: Settings):
    table = run_query(settings, f"{BEYOND} union all ({BEYOND}) order by span")
    row = {
        "a": "infinity", "a_1": "12000-01-31", "bc": "0044-03-15 (BC)", "stamp": "-infinity",
        "zoned": "12000-01-01 00:00:00+00", "span": "1 month 2 days", "bits": "0101", "clock": "12:30:00",
        "spans": ["3 days", None], "days": "[infinity]", "missing": None,
    }  # fmt: skip
    assert json.loads(format_result(table, "json")) == [row, row]
    cells = [json.dumps(v) if isinstance(v, list) else v or "" for v in row.values()]
    assert list(csv.reader(format_result(table, "csv").splitlines())) == [[*row], cells, cells]
    box = format_result(table, "table", width=1000)
    assert all(str(cell) in box for cell in row.values() if isinstance(cell, str))
    none = run_query(settings, f"from ({BEYOND}) where false")
    assert (none.num_rows, none.column_names) == (0, [*row])


def test_csv_quotes_what_needs_it_and_leaves_null_empty(settings: Settings):
    sql = "select text, missing, x, huge, exact, day, items from (" + EVERY_TYPE + ")"
    assert format_result(run_query(settings, sql), "csv").splitlines() == [
        "text,missing,x,huge,exact,day,items",
        '"é, ""q""",,nan,12345678901234567890123,1.25,2022-01-31,"[1, null]"',
    ]


def test_csv_is_read_back_as_it_was(settings: Settings):
    texts = ["a\rb", "a\r\nb", "a\nb", "\r", 'say "x"', "a,b", "=1+1", " a ", "é"]
    values = ", ".join(f"('{text}', {place})" for place, text in enumerate(texts))
    text = format_result(run_query(settings, f"select * from (values {values}) as v(t, n) order by n"), "csv")
    assert list(csv.reader(io.StringIO(text, newline=""))) == [
        ["t", "n"],
        *([text, str(place)] for place, text in enumerate(texts)),
    ]
    assert text.startswith('t,n\n"a\rb",0\n"a\r\nb",1\n')


def test_a_table_shows_values_types_and_how_much_is_left_out(settings: Settings):
    few = format_result(run_query(settings, "from predictions.predictions"), "table", width=80)
    assert "observation_id" in few
    assert "30 rows" in few
    wide = run_query(settings, EVERY_TYPE)
    assert format_result(wide, "table", width=1000).count("2022-01-31") == 3
    narrow = format_result(wide, "table", width=80)
    assert max(map(len, narrow.splitlines())) <= 80
    assert "19 columns (" in narrow
    long = format_result(run_query(settings, "from range(1000)"), "table", width=80)
    assert "1000 rows" in long
    assert "(100 shown)" in long


@pytest.mark.parametrize(("fmt", "text"), [("json", "[]"), ("csv", "area")])
def test_an_empty_result_keeps_its_format(settings: Settings, fmt: str, text: str):
    assert format_result(run_query(settings, "select area from predictions where false"), fmt) == text


def test_an_unknown_format_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown format 'xml'; known are: table, csv, json"):
        format_result(pa.table({"a": [1]}), "xml")
