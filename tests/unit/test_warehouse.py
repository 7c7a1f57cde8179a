"""The connection to the working warehouse."""

from pathlib import Path

import duckdb
import pytest
import yaml

from ml.settings import PROJECT_ROOT, Settings
from ml.warehouse import connect, in_order


def test_rows_read_in_order_come_in_order_also_where_tables_need_not_keep_theirs(tmp_path: Path) -> None:
    with connect(Settings(home=tmp_path, threads=2)) as connection:
        connection.execute("create table homes as select md5(i::text) as id from range(300_000) as r (i)")
        with in_order(connection):
            result = connection.execute("select id from homes order by id")
            ids = [batch.column("id") for batch in result.to_arrow_reader(16_384)]
        setting = connection.execute("select current_setting('preserve_insertion_order')").fetchone()

    read = [text for column in ids for text in column.to_pylist()]
    assert len(read) == 300_000
    assert read == sorted(read)
    assert setting == (False,)


def test_a_connection_that_keeps_its_order_may_have_its_settings_locked() -> None:
    with duckdb.connect() as connection:
        connection.execute("set lock_configuration = true")
        with in_order(connection):
            assert connection.execute("select 1").fetchall() == [(1,)]


def test_an_error_between_rows_is_told_although_their_result_is_still_open(tmp_path: Path) -> None:
    with connect(Settings(home=tmp_path, threads=2)) as connection:
        connection.execute("create table homes as select i from range(300_000) as r (i)")
        with pytest.raises(KeyboardInterrupt), in_order(connection):
            for _ in connection.execute("select i from homes order by i").to_arrow_reader(1_000):
                raise KeyboardInterrupt


def test_a_new_warehouse_has_the_layout_of_duckdb_1_5_whoever_makes_it(tmp_path: Path) -> None:
    with connect(Settings(home=tmp_path, dataset="hdb")) as connection:
        asked = "select tags['storage_version'] from duckdb_databases() where database_name = 'hdb'"
        assert connection.execute(asked).fetchall() == [("v1.5.0+",)]
    profiles = yaml.safe_load((PROJECT_ROOT / "warehouse" / "profiles.yml").read_text(encoding="utf-8"))
    assert profiles["housing"]["outputs"]["local"]["config_options"]["storage_compatibility_version"] == "v1.5.0"
