"""Publishing on real files: what is copied, what readers see meanwhile, and what a killed process leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import pytest

from dagster_project.published.snapshot import SnapshotError, publish
from ml.contract import load
from ml.settings import PROJECT_ROOT, Settings
from ml.warehouse import WarehouseBusyError, connect, create_tables

MADE_UP = """
create schema features; create schema staging; create schema intermediate;
create table features.features as
    select i::varchar as observation_id, date '2020-01-01' as month, i * 1000.0 as price, i % 7 as rooms,
        1::bigint as built_through_batch
    from range(1, 101) as r(i);
create view features.features_as_of as from features.features;
create table features.encodings as select 'town' as "encoding", 'A' as key_value, 1 as n;
create view training.training_dataset as
    select * exclude (built_through_batch), 'train' as split, ln(price) as target from features.features;
create view staging.stg_hdb__observations as from features.features;
create view intermediate.int_observations as from features.features;
create view monitoring.int_private as select 1 as n;
create table monitoring.reconciliation as select 'a.csv' as file, 100 as landed, ['price_missing'] as reasons;
create table monitoring.reconciliation__dbt_backup as select 'left by a killed dbt' as file;
"""

PUBLISH = (
    "from ml.settings import Settings; from dagster_project.published.snapshot import publish; publish(Settings())"
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(home=tmp_path / "home", dataset="hdb", lock_timeout_s=1)
    with connect(settings) as connection:
        create_tables(connection, load("hdb"))
        connection.execute(MADE_UP)
    return settings


def change(settings: Settings, sql: str) -> None:
    with connect(settings) as connection:
        connection.execute(sql)


def ask(settings: Settings, sql: str) -> list[tuple]:
    with duckdb.connect() as connection:
        connection.execute(f"attach '{settings.published}' as hdb (read_only); use hdb")
        return connection.execute(sql).fetchall()


def landed(settings: Settings) -> int:
    return ask(settings, "select landed from monitoring.reconciliation")[0][0]


def publisher(settings: Settings) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PUBLISH], cwd=PROJECT_ROOT, env={**os.environ, **settings.environment}
    )


def test_only_public_tables_are_published_and_views_become_tables(settings: Settings):
    result = publish(settings)
    names = [name for (name,) in ask(settings, "select schema_name || '.' || table_name from duckdb_tables()")]
    assert sorted(names) == [
        "features.encodings",
        "monitoring.reconciliation",
        "monitoring.replay_months",
        "predictions.comparables",
        "predictions.explanations",
        "predictions.predictions",
        "predictions.recent_errors",
        "published.about",
        "published.parts",
        "raw.actuals",
        "raw.files",
        "training.fitted_values",
        "training.learned_areas",
        "training.model_aliases",
        "training.model_selection",
        "training.model_versions",
        "training.promotion_decisions",
        "training.retrain_attempts",
        "training.training_dataset",
    ]
    assert ask(settings, "select view_name from duckdb_views() where not internal") == []
    assert result.published
    assert sorted(result.rows) == sorted(set(names) - {"published.about", "published.parts"})


def test_every_value_is_the_one_in_the_warehouse(settings: Settings):
    result = publish(settings)
    with connect(settings, read_only=True) as connection:
        connection.execute(f"attach '{settings.published}' as copy (read_only)")
        for name, rows in result.rows.items():
            difference = f"select count(*) from (from {name} except all from copy.{name})"
            assert connection.execute(difference).fetchone() == (0,), name
            assert connection.execute(f"select count(*) from copy.{name}").fetchone() == (rows,), name
            assert connection.execute(f"describe {name}").fetchall()
            kinds = "select column_name, column_type from (describe {})"
            mine = connection.execute(kinds.format(f"copy.{name}")).fetchall()
            assert mine == connection.execute(kinds.format(name)).fetchall()


@pytest.mark.parametrize(
    "changed",
    [
        "insert into features.features select i::varchar, date '2021-09-01', i, 1, 2 from range(200, 300) as r(i)",
        "delete from features.features where month = date '2020-05-01'",
        "update features.features set month = null where observation_id = '7'",
        "update features.features set month = date '2030-01-01' where month is null or observation_id = '8'",
        "update training.model_aliases set reason = 'another'; delete from features.features where rooms = 3 "
        "and month = date '2020-05-01'",
        "insert into raw.files (file, status, batch, loaded_at) values ('b.csv', 'loaded', 2, '2022-01-01'); "
        "delete from features.features where month = date '2020-05-01'",
    ],
)
def test_a_change_of_some_months_writes_those_alone_and_gives_what_writing_everything_gives(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, changed: str
):
    change(settings, "update features.features set month = date '2020-01-01' + to_months(observation_id::int % 20)")
    change(settings, "update features.features set month = null where observation_id = '99'")
    publish(settings)
    change(settings, changed)
    with monkeypatch.context() as patched:
        patched.delattr("dagster_project.published.snapshot._write_all")
        changes = publish(settings)
    by_changes = {name: ask(settings, f"from {name} order by all") for name in changes.rows}
    settings.published.unlink()
    everything = publish(settings)
    assert everything.fingerprint == changes.fingerprint
    assert by_changes == {name: ask(settings, f"from {name} order by all") for name in everything.rows}
    assert len(by_changes["training.training_dataset"]) == changes.rows["training.training_dataset"]


def test_a_file_that_changed_nearly_everything_is_published(settings: Settings):
    publish(settings)
    change(
        settings, "insert into raw.files (file, status, batch, loaded_at) values ('b.csv', 'loaded', 2, '2022-01-01')"
    )
    change(settings, "update features.features set price = price + 1")
    changed = publish(settings)
    assert (changed.published, changed.rows["raw.files"]) == (True, 1)
    settings.published.unlink()
    assert publish(settings).fingerprint == changed.fingerprint


def test_a_snapshot_full_of_room_that_changes_left_is_written_anew(settings: Settings):
    wide = "select i::varchar as observation_id, date '2020-01-01' + to_months(i::int % 20) as month, random() as x"
    change(settings, f"create table monitoring.wide as {wide} from range(600000) as r(i)")
    sizes = []
    for month in range(1, 9):
        change(settings, f"update monitoring.wide set x = random() where month(month) = {month}")
        publish(settings)
        sizes.append(settings.published.stat().st_size)
    assert max(sizes) < 2 * sizes[0]


def test_the_snapshot_says_where_it_comes_from(settings: Settings):
    result = publish(settings)
    assert ask(settings, "select dataset, fingerprint, duckdb_version from published.about") == [
        ("hdb", result.fingerprint, duckdb.__version__)
    ]
    assert result.bytes == settings.published.stat().st_size


# without it a BI tool with an older DuckDB says "version number 67, but we can only read 64"; opened by hand with
# 0.10.3, 1.0.0 and 1.1.3
def test_the_file_is_written_for_duckdb_1_0(settings: Settings):
    publish(settings)
    tags = ask(settings, "select tags['storage_version'] from duckdb_databases() where database_name = 'hdb'")
    assert tags == [("v1.0.0+",)]


def test_unchanged_rows_are_not_published_again_even_after_tables_were_rebuilt(settings: Settings):
    first = publish(settings)
    file = settings.published.stat()
    # what every dbt run does: equal tables in another order of rows
    change(settings, "create or replace table features.features as from features.features order by price desc")
    second = publish(settings)
    assert (second.published, second.fingerprint, second.rows) == (False, first.fingerprint, first.rows)
    assert settings.published.stat().st_ino == file.st_ino
    assert settings.published.stat().st_mtime_ns == file.st_mtime_ns


@pytest.mark.parametrize(
    "changed",
    [
        "update features.features set price = price + 1 where observation_id = '50'",
        "update features.features set rooms = null where observation_id = '50'",
        "delete from features.features where observation_id = '50'",
        "insert into features.encodings from features.encodings",
        "create table monitoring.ratio_study as select 1 as cod",
        "alter table features.encodings rename n to rows",
        "alter table features.encodings alter n type bigint",
        "drop table monitoring.reconciliation",
        # two values swapped between two rows: any sum over single columns stays the same
        "update features.features set price = case observation_id when '1' then 2000.0 else 1000.0 end "
        "where observation_id in ('1', '2')",
    ],
)
def test_any_change_of_a_public_table_is_published(settings: Settings, changed: str):
    first = publish(settings)
    change(settings, changed)
    second = publish(settings)
    assert second.published
    assert second.fingerprint != first.fingerprint


def test_a_change_of_a_private_table_is_not_published(settings: Settings):
    publish(settings)
    change(settings, "create or replace view intermediate.int_observations as select 1 as other")
    assert not publish(settings).published


# without it a column named like the row's alias would hide all others from the hash
def test_columns_named_like_sql_are_published(settings: Settings):
    change(settings, 'create table monitoring.odd as select 1 as "select", 2 as "a b", 3 as """", 4 as t')
    publish(settings)
    change(settings, 'update monitoring.odd set "a b" = 5')
    assert publish(settings).published
    assert ask(settings, "from monitoring.odd") == [(1, 5, 3, 4)]


def test_a_reader_keeps_its_rows_during_a_refresh_and_the_next_one_sees_the_new(settings: Settings):
    publish(settings)
    reader = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, duckdb\n"
            f"c = duckdb.connect({str(settings.published)!r}, read_only=True)\n"
            "for _ in sys.stdin:\n"
            "    print(c.execute('select landed from monitoring.reconciliation').fetchone()[0],"
            "          c.execute('select count(*), sum(price) from training.training_dataset').fetchone(), flush=True)",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdin and reader.stdout

    def seen() -> str:
        assert reader.stdin and reader.stdout
        reader.stdin.write("now\n")
        reader.stdin.flush()
        return reader.stdout.readline()

    before = seen()
    assert before.startswith("100 (100,")
    for landed_rows in (200, 300):
        change(settings, f"update monitoring.reconciliation set landed = {landed_rows}; delete from features.features")
        publish(settings)
        assert seen() == before
        assert landed(settings) == landed_rows
    reader.stdin.close()
    assert reader.wait(10) == 0


def test_a_reader_in_the_same_process_sees_the_new_snapshot_while_an_old_connection_is_open(settings: Settings):
    publish(settings)
    old = duckdb.connect(str(settings.published), read_only=True)
    change(settings, "update monitoring.reconciliation set landed = 200")
    assert publish(settings).published
    assert landed(settings) == 200
    assert old.execute("select landed from monitoring.reconciliation").fetchone() == (100,)
    old.close()


# every reader that asks at any moment gets one whole snapshot: landed and the number of rows always agree
def test_readers_that_ask_all_the_time_never_see_a_half_or_missing_snapshot(settings: Settings):
    change(settings, "update monitoring.reconciliation set landed = (select count(*) from features.features)")
    publish(settings)
    answers: list[tuple] = []
    stop = threading.Event()

    def read() -> None:
        both = "select landed, (select count(*) from training.training_dataset) from monitoring.reconciliation"
        while not stop.is_set():
            answers.extend(ask(settings, both))

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(5):
        change(
            settings,
            f"insert into features.features select 'new{i}', date '2020-02-01', 1.0, 1, 2;"
            "update monitoring.reconciliation set landed = (select count(*) from features.features)",
        )
        publish(settings)
    stop.set()
    for thread in threads:
        thread.join()
    assert landed(settings) == 105
    assert answers
    assert all(landed_rows == rows for landed_rows, rows in answers)


def test_a_killed_publisher_leaves_the_old_snapshot_and_the_next_one_clears_up(settings: Settings):
    publish(settings)
    # the slow table comes last by name, so the process is killed when some tables are copied and some are not
    slow = "create view training.zz_slow as select sleep_ms(2000) is null as n"
    change(settings, f"update monitoring.reconciliation set landed = 200; {slow}")
    process = publisher(settings)
    while not (asides := list(settings.published.parent.glob("*.tmp"))):
        assert process.poll() is None, "the publisher ended before it could be killed"
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert asides[0].is_file()
    assert landed(settings) == 100
    change(settings, "create or replace view training.zz_slow as select 1 as n")
    assert publish(settings).published
    assert landed(settings) == 200
    assert [path.name for path in settings.published.parent.iterdir()] == ["hdb.duckdb"]


def test_leftovers_of_other_datasets_are_left_alone(settings: Settings):
    settings.published.parent.mkdir()
    other = settings.published.parent / "ames.duckdb.1.tmp"
    other.touch()
    mine = settings.published.parent / "hdb.duckdb.999999.tmp.wal"
    mine.touch()
    publish(settings)
    assert other.exists()
    assert not mine.exists()


# a log left by someone who opened the old snapshot for writing would be replayed into the new one
def test_a_foreign_write_ahead_log_does_not_reach_the_new_snapshot(settings: Settings):
    publish(settings)
    writer = (
        f"import duckdb, os; c = duckdb.connect({str(settings.published)!r});"
        "c.execute('update monitoring.reconciliation set landed = -1'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", writer], check=False)
    assert settings.published.with_name("hdb.duckdb.wal").exists()
    change(settings, "update monitoring.reconciliation set landed = 200")
    publish(settings)
    assert landed(settings) == 200


@pytest.mark.parametrize("content", [b"", b"not a database", os.urandom(20_000)])
def test_a_broken_snapshot_is_replaced(settings: Settings, content: bytes):
    settings.published.parent.mkdir()
    settings.published.write_bytes(content)
    assert publish(settings).published
    assert landed(settings) == 100


def test_a_write_ahead_log_of_the_warehouse_is_published_too(settings: Settings):
    writer = (
        f"import duckdb, os; c = duckdb.connect({str(settings.warehouse)!r});"
        "c.execute('update monitoring.reconciliation set landed = 200'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", writer], check=False)
    assert settings.warehouse.with_name("hdb.duckdb.wal").exists()
    publish(settings)
    assert landed(settings) == 200


def test_an_empty_warehouse_publishes_an_empty_snapshot(tmp_path: Path):
    settings = Settings(home=tmp_path, dataset="hdb")
    with connect(settings):
        pass
    assert publish(settings).rows == {}
    assert ask(settings, "select dataset from published.about") == [("hdb",)]
    assert not publish(settings).published


def test_a_missing_warehouse_says_what_to_run(tmp_path: Path):
    settings = Settings(home=tmp_path, dataset="hdb")
    with pytest.raises(
        SnapshotError, match=r"there is no warehouse .*hdb.duckdb to publish from; type: housing run -d hdb$"
    ):
        publish(settings)
    assert not settings.published.exists()


def test_a_view_without_its_table_is_named_and_the_old_snapshot_stays(settings: Settings):
    publish(settings)
    change(settings, "drop table features.features; update monitoring.reconciliation set landed = 200")
    with pytest.raises(
        SnapshotError, match=r"training\.training_dataset cannot be read; to build it again type: housing run -d hdb "
    ):
        publish(settings)
    assert landed(settings) == 100
    assert [path.name for path in settings.published.parent.iterdir()] == ["hdb.duckdb"]


# a plain `dbt build` or the duckdb shell does not take the product's lock, but DuckDB's own
def test_a_warehouse_that_is_being_written_is_named_in_one_sentence(settings: Settings):
    opens = f"import duckdb, time; c = duckdb.connect({str(settings.warehouse)!r}); print(flush=True); time.sleep(60)"
    writer = subprocess.Popen([sys.executable, "-c", opens], stdout=subprocess.PIPE)
    assert writer.stdout
    writer.stdout.readline()
    with pytest.raises(WarehouseBusyError, match=f"warehouse of hdb is held by process {writer.pid} .*close it there"):
        publish(settings)
    writer.kill()
    writer.wait()
    assert publish(settings).published
