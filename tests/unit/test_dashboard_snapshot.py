"""The dashboard's reader of the snapshot: closed off, remembers answers, and follows the file that is published."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import duckdb
import pytest

from ml.dashboard import launch
from ml.dashboard.snapshot import MOST_TABLES, Snapshot, SnapshotError, Snapshots
from ml.settings import Settings

COUNT = "select n from monitoring.figures"


def publish(settings: Settings, n: int) -> None:
    """A small snapshot, renamed into place as the product does."""
    settings.published.parent.mkdir(parents=True, exist_ok=True)
    aside = settings.published.with_suffix(".tmp")
    with duckdb.connect(str(aside)) as connection:
        connection.execute("create schema published; create schema monitoring")
        connection.execute(
            f"create table published.about as select 'print {n}' as fingerprint, timestamp '2026-01-01' as published_at"
        )
        connection.execute(f"create table monitoring.figures as select {n} as n, 'x' as name")
    aside.replace(settings.published)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(home=tmp_path, dataset="housets")
    publish(made, 1)
    return made


def open_files(settings: Settings) -> list[str]:
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]  # noqa: PTH208 - closed while they are read
    found = [os.readlink(link) for link in links if os.path.islink(link)]  # noqa: PTH114, PTH115
    return [path for path in found if path.startswith(str(settings.published))]


def test_a_new_file_is_read_although_the_old_one_is_still_being_asked(settings: Settings) -> None:
    snapshots = Snapshots()
    old = snapshots.newest(settings)
    assert snapshots.newest(settings) is old
    publish(settings, 2)
    # an ordinary second connection to the path would see the old rows
    assert snapshots.newest(settings).rows(COUNT) == [{"n": 2}]
    assert old.rows(COUNT) == [{"n": 1}]
    assert snapshots.newest(settings).fingerprint == "print 2"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are listed by Linux only")
def test_the_old_file_is_closed_when_nobody_asks_it_any_more(settings: Settings) -> None:
    snapshots = Snapshots()
    for n in (2, 3, 4):
        assert snapshots.newest(settings).rows(COUNT)
        publish(settings, n)
    assert snapshots.newest(settings).rows(COUNT) == [{"n": 4}]
    gc.collect()
    assert open_files(settings) == [str(settings.published)]


@pytest.mark.parametrize(
    "sql",
    [
        "create table housets.monitoring.mine as select 1",
        "insert into monitoring.figures values (1, 'y')",
        "select * from read_csv('/etc/passwd')",
        "copy monitoring.figures to '/tmp/x.csv'",
        "attach '/tmp/other.duckdb'",
        "set enable_external_access = true",
    ],
)
def test_nothing_can_be_written_and_no_file_be_read(settings: Settings, sql: str) -> None:
    with pytest.raises(duckdb.Error):
        Snapshot.open(settings).ask(sql)


def test_an_answer_is_remembered_by_query_and_parameters(settings: Settings) -> None:
    snapshot = Snapshot.open(settings)
    asked = "select n from monitoring.figures where name = $name"
    assert snapshot.ask(asked, name="x") is snapshot.ask(asked, name="x")
    assert snapshot.rows(asked, name="y") == []
    # more parameters than the query names are no error; names that only begin alike are told apart
    assert snapshot.rows("select $name_of as n", name="x", name_of="z") == [{"n": "z"}]


def test_many_visitors_ask_at_once(settings: Settings) -> None:
    snapshot, found = Snapshot.open(settings), []

    def ask(i: int) -> None:
        name = snapshot.prepare("kept", "select * from monitoring.figures")
        found.append(snapshot.rows(f"select n + {i} as n from {name}")[0]["n"])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(1, 21))


def test_only_the_tables_asked_for_last_are_kept_and_another_is_made_again(settings: Settings) -> None:
    snapshot = Snapshot.open(settings)
    count = "select count(*) as n from duckdb_tables() where database_name = 'memory'"
    names = [snapshot.prepare(f"v{i}", f"select n + {i} as n from monitoring.figures") for i in range(3 * MOST_TABLES)]
    assert snapshot.rows(count) == [{"n": MOST_TABLES}]
    # made of a table that was dropped, as a map is of a version's homes
    places = snapshot.prepare("places", f"select n * 10 as n from {names[0]}")
    assert snapshot.rows(f"select n from {places}") == [{"n": 10}]
    for i, name in enumerate(names):
        assert snapshot.rows(f"select n from {name}") == [{"n": 1 + i}]
    assert snapshot.rows(f"select n from {places}, (select 1)") == [{"n": 10}]
    assert snapshot.rows(f"{count} and true") == [{"n": MOST_TABLES}]


def test_tables_give_way_where_memory_is_short(settings: Settings) -> None:
    snapshot = Snapshot.open(settings.model_copy(update={"memory_limit": "64MB", "threads": 1}))
    for i in range(6):
        name = snapshot.prepare(f"v{i}", f"select hash(range + {i}) as h from range(3_000_000)")
        assert snapshot.rows(f"select count(*) as n from {name}") == [{"n": 3_000_000}]
    # a question that needs much memory itself
    assert snapshot.rows("select count(distinct hash(range)) as n from range(900_000)") == [{"n": 900_000}]
    assert snapshot.rows(f"select count(*) as n from {name}") == [{"n": 3_000_000}]


def test_links_of_processes_that_are_gone_are_removed_at_the_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Settings(home=settings.home, dataset="hdb")
    publish(other, 1)
    gone, running = "4194305-1-1.duckdb", f"{os.getpid()}-1-1.duckdb"
    for dataset in ("housets", "hdb"):
        folder = settings.home / "online" / dataset / "snapshots"
        folder.mkdir(parents=True)
        for name in (gone, running):
            (folder / name).touch()
    monkeypatch.setattr("os.environ", os.environ.copy())
    monkeypatch.setattr("sys.argv", ["housing"])
    monkeypatch.setattr(launch, "keep_ready", lambda settings: None)
    monkeypatch.setattr("streamlit.web.cli.main", lambda: None)
    launch.launch(settings)
    assert [p.name for p in sorted(settings.home.glob("online/*/snapshots/*"))] == [running, running]


def test_what_a_snapshot_lacks_is_known_before_it_is_asked(settings: Settings) -> None:
    snapshot = Snapshot.open(settings)
    assert snapshot.has("monitoring.figures", "n", "name")
    assert not snapshot.has("monitoring.figures", "since")
    assert not snapshot.has("monitoring.checks")


def test_without_a_snapshot_the_message_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="housing run --dataset hdb"):
        Snapshots().newest(Settings(home=tmp_path, dataset="hdb"))


def test_a_damaged_file_is_told_as_such(settings: Settings) -> None:
    settings.published.write_bytes(b"no database" * 1000)
    with pytest.raises(SnapshotError, match="cannot be read"):
        Snapshots().newest(settings)
