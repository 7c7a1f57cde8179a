"""The DuckDB file: connections, the one-writer lock, and the tables that Python (not dbt) writes.

Models over these tables belong in ``warehouse/``; the read-only snapshot in ``dagster_project/published``.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime

import duckdb

from ml.contract import Contract
from ml.settings import Settings

#: Rows of a result at a time. Left alone, DuckDB maps memory for a million of every column, a millisecond a query.
RESULT_ROWS = 10_000

#: Columns that ingestion adds to every landed row.
PROVENANCE = {"_file": "VARCHAR", "_row": "BIGINT", "_loaded_at": "TIMESTAMP", "_batch": "BIGINT"}

OWNED_TABLES = """
create schema if not exists raw;
create schema if not exists training;
create schema if not exists predictions;
create schema if not exists monitoring;
create table if not exists raw.files (
    file varchar not null, sha256 varchar, bytes bigint, mtime_ns bigint, rows bigint, status varchar not null,
    reason varchar, batch bigint not null, loaded_at timestamp not null, extra_columns varchar[], report varchar
);
create table if not exists raw.actuals (
    observation_id varchar not null, price varchar, reported_at timestamp, source varchar not null,
    status varchar not null, reason varchar, applied_batch bigint, _file varchar not null, _row bigint not null,
    _batch bigint not null, _loaded_at timestamp not null
);
create table if not exists training.model_versions (
    model_version varchar primary key, dataset varchar, created_at timestamp, status varchar, reasons varchar[],
    trained_from date, trained_through date, eval_from date, n_train bigint, n_eval bigint, features bigint,
    best_iteration bigint, training_median_price double, eval_mae double, eval_rmse double, eval_r2 double,
    eval_mdape_pct double, eval_baseline_mae double, seed bigint, data_fingerprint varchar, training_key varchar,
    model_sha256 varchar, evaluated_sha256 varchar, git_commit varchar, run_id varchar, model_uri varchar
);
create table if not exists training.learned_areas (model_version varchar not null, area varchar not null);
create table if not exists training.fitted_values (
    observation_id varchar not null, model_version varchar not null, kind varchar not null, split varchar not null,
    observed_on date, month date not null, area varchar, locality varchar, predicted_price double,
    scored_at timestamp not null, run_id varchar not null
);
create table if not exists training.model_aliases (
    alias varchar not null, model_version varchar, previous_version varchar, moved_at timestamp not null,
    actor varchar not null, reason varchar not null
);
create table if not exists training.promotion_decisions (
    challenger varchar not null, champion varchar not null, decided_at timestamp not null, month date,
    verdict varchar not null, stage varchar, n bigint, error_reduction_pct double, reduction_lower_pct double,
    reduction_upper_pct double, worst_area varchar, worst_area_loss_pct double, mode varchar not null,
    actor varchar not null, reason varchar not null
);
create table if not exists training.retrain_attempts (
    decision_id varchar not null, attempt integer not null, started_at timestamp not null, finished_at timestamp,
    run_id varchar not null
);
create table if not exists training.model_selection (
    candidate varchar not null, fold integer not null, test_from varchar, test_through varchar, n bigint, mae double,
    rmse double, r2 double, mdape_pct double, within_10_pct double, median_ratio double, rmse_log double,
    fit_seconds double, size_bytes bigint
);
create table if not exists predictions.predictions (
    observation_id varchar not null, model_version varchar not null, kind varchar not null, split varchar not null,
    observed_on date, month date not null, area varchar, locality varchar, predicted_price double,
    built_through_batch bigint, scored_at timestamp not null, run_id varchar not null,
    role varchar not null default 'champion', mode varchar not null default 'batch', recent_error double,
    imputation_error double
    -- the key (observation_id, model_version) is a dbt test: keeping an index costs more than scoring does
);
create table if not exists predictions.recent_errors (
    model_version varchar not null, month date not null, level integer not null, key_value varchar not null,
    n bigint not null, micro_error bigint not null
);
create table if not exists predictions.explanations (
    observation_id varchar not null, model_version varchar not null, month date not null, feature varchar not null,
    contribution double not null, rank integer not null, built_through_batch bigint
);
create table if not exists predictions.comparables (
    observation_id varchar not null, model_version varchar not null, month date not null, rank integer not null,
    comparable_id varchar not null, similarity double not null, sold_month date not null, price double not null,
    adjusted_price double not null
);
create table if not exists monitoring.replay_months (
    policy varchar not null, month date not null, model_version varchar not null, n bigint, mae double,
    mdape_pct double, median_ratio double, persistence_mdape_pct double, decision varchar, reasons varchar[],
    trained_version varchar, promoted_version varchar, moves varchar[], seconds double
);
"""

#: Brings a warehouse of an earlier release up to date.
UPGRADE = """
alter table training.model_versions add column if not exists evaluated_sha256 varchar;
alter table training.model_aliases alter column model_version drop not null;
alter table predictions.predictions add column if not exists role varchar default 'champion';
alter table predictions.predictions add column if not exists mode varchar default 'batch';
alter table predictions.predictions add column if not exists recent_error double;
alter table predictions.predictions add column if not exists imputation_error double;
update predictions.predictions set role = 'evaluation' where split = 'eval' and role <> 'evaluation';
"""


class WarehouseBusyError(RuntimeError):
    """Another process holds the warehouse; the message says which and since when."""


def quoted(name: str) -> str:
    """SQL identifier, safe for any header."""
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def connect(settings: Settings, *, read_only: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
    """Connection to the working warehouse within the configured memory and threads; closed on exit.

    Raises WarehouseBusyError where another tool, which knows nothing of the lock, has the file open.
    """
    settings.warehouse.parent.mkdir(parents=True, exist_ok=True)
    try:
        connection = duckdb.connect(
            str(settings.warehouse),
            read_only=read_only,
            config={
                "memory_limit": settings.memory_limit,
                "threads": settings.threads,
                # for a new file, as in warehouse/profiles.yml: who goes on to DuckDB 2 can come back
                "storage_compatibility_version": "v1.5.0",
                # rows carry their own order (_batch, _row). Keeping the physical one leaves row groups of odd sizes,
                # which the checkpoint merges: every landed file was compressed and written twice
                "preserve_insertion_order": False,
            },
        )
    except duckdb.IOException as error:
        holder = _holder(error)
        if holder is None:
            raise
        raise WarehouseBusyError(
            f"the warehouse of {settings.dataset} is held by {holder}, which has {settings.warehouse} open; close it "
            "there and try again"
        ) from None  # whoever tells the innermost error tells this one
    try:
        # a bar over a pipe or a web server's log is noise; DuckDB shows it for long statements by itself
        connection.execute("set enable_progress_bar = false")
        yield connection
    finally:
        connection.close()


@contextmanager
def in_order(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Within it, Arrow results come in the order that their query asks for.

    Where tables need not keep their physical order, as in ``connect``, DuckDB 2.0 hands batches out as its threads
    finish them, in spite of an ``order by`` (seen with 2.0.1; 1.5 doesn't). Other connections are left as they are.
    """
    row = connection.execute("select not current_setting('preserve_insertion_order')").fetchone()
    if not (row and row[0]):
        yield
        return
    connection.execute("set preserve_insertion_order = true")
    try:
        yield
    except BaseException:
        # a result that is still open, or a transaction that failed, forbids it, and must not hide the error
        with suppress(duckdb.Error):
            connection.execute("set preserve_insertion_order = false")
        raise
    connection.execute("set preserve_insertion_order = false")


def create_tables(connection: duckdb.DuckDBPyConnection, contract: Contract) -> None:
    """Create what Python owns; safe to repeat. Columns that a contract gained since are added to ``raw``."""
    connection.execute(OWNED_TABLES)
    newest = connection.execute("select 1 from duckdb_columns() where column_name = 'imputation_error'").fetchone()
    if newest is None:
        connection.execute(UPGRADE)
    columns = {**dict.fromkeys(contract.sources, "VARCHAR"), **PROVENANCE}
    definition = ", ".join(f"{quoted(name)} {kind}" for name, kind in columns.items())
    connection.execute(f"create table if not exists raw.observations ({definition})")
    for name, kind in columns.items():
        connection.execute(f"alter table raw.observations add column if not exists {quoted(name)} {kind}")


def is_built(connection: duckdb.DuckDBPyConnection, name: str) -> bool:
    """Is there such a table or view, as ``schema.name``? What dbt makes is not there before the first run."""
    schema, _, table = name.partition(".")
    found = "select 1 from information_schema.tables where table_schema = ? and table_name = ?"
    return connection.execute(found, [schema, table]).fetchone() is not None


def utc_now() -> datetime:
    """The time as tables hold it: UTC, without zone."""
    return datetime.now(UTC).replace(tzinfo=None)


def months_in(months: Sequence[date]) -> str:
    """SQL list of months, to stand behind ``in``."""
    return "(" + ", ".join(f"date '{month}'" for month in months) + ")"


@contextmanager
def transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """All statements of the block or none of them."""
    connection.execute("begin")
    try:
        yield
    except BaseException:
        connection.execute("rollback")
        raise
    connection.execute("commit")


@contextmanager
def warehouse_lock(settings: Settings, purpose: str, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the dataset's one-writer lock. The kernel releases it when the process dies, however it dies.

    ``waiting`` is called once with a sentence that names the holder. Raises WarehouseBusyError after
    ``settings.lock_timeout_s`` seconds. Re-entrant across a run through ``HOUSING_LOCK_HELD``.
    """
    path = settings.warehouse.with_suffix(".lock")
    if os.environ.get("HOUSING_LOCK_HELD") == str(path):
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + settings.lock_timeout_s
    with path.open("a+", encoding="utf-8") as handle:
        told = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = path.read_text(encoding="utf-8").strip()
                sentence = f"the warehouse of {settings.dataset} is held by {_describe(holder)}"
                if time.monotonic() > deadline:
                    raise WarehouseBusyError(f"{sentence}; try again when it has ended") from None
                if waiting and not told:
                    waiting(f"{sentence}; waiting for it")
                    told = True
                time.sleep(0.2)
        handle.seek(0)
        handle.truncate()
        json.dump(
            {"pid": os.getpid(), "purpose": purpose, "since": datetime.now(UTC).isoformat("T", "seconds")},
            handle,
        )
        handle.flush()
        os.environ["HOUSING_LOCK_HELD"] = str(path)
        try:
            yield
        finally:
            del os.environ["HOUSING_LOCK_HELD"]
            handle.truncate(0)


def _holder(error: duckdb.IOException) -> str | None:
    """The process that DuckDB says has the file open; None for another error."""
    if "Could not set lock" not in str(error):
        return None
    found = re.search(r"held in (.+?) \(PID (\d+)\)", str(error))
    return f"process {found[2]} ({found[1]})" if found else "another process"


def _describe(holder: str) -> str:
    try:
        fields = json.loads(holder)
        return f"process {fields['pid']} ({fields['purpose']}, since {fields['since']})"
    except (ValueError, KeyError):
        return "another process"
