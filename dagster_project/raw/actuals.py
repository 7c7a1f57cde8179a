"""Prices that became known after their rows landed: files in the folder ``actuals`` below the landing folder.

Every row of such a file is kept in ``raw.actuals`` with what became of it. A real price that is news appends to
``raw.observations`` a copy of its row with the price filled in: from there on it is a corrected row like any other. A
simulated price stays in ``raw.actuals``, so that nothing ever learns from it. The steps of a file stand in
``landing.py``, its gate in ``expectations/actual_file.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import duckdb

from dagster_project.raw.inbox import Inbox
from dagster_project.raw.landing import IngestResult, Progress, next_batch, take_in
from dagster_project.raw.reading import Rows
from dagster_project.transform.project import needs_full_refresh
from expectations import actual_file
from expectations.actual_file import OBSERVATION_ID, REPORTED_AT, SOURCE
from expectations.runner import Rule
from ml.contract import Contract
from ml.settings import Settings
from ml.warehouse import PROVENANCE, create_tables, is_built, quoted, transaction, utc_now

#: Tells the key of every landed row, and whether it passed the contract's rules.
CHECKED = "intermediate.int_observations_checked"

#: What became of an actual, and why. A real one that appended a row is ``applied``.
REASONS = {
    "applied": None,
    "unchanged": "its row has this price already",
    "superseded": "a price that was reported or landed later counts",
    "outranked": "its row has a price from a landed file, which one told to the API does not change",
    "unknown_key": "no landed row has this key yet; tried again with every load",
    "invalid": "the price is not a number",
    "simulated": "made up from a prediction; nothing learns from it",
}


def ingest_actuals(
    settings: Settings,
    contract: Contract,
    connection: duckdb.DuckDBPyConnection,
    progress: Progress = lambda done, total: None,
) -> IngestResult:
    """Load every new file of later prices, then look again at those whose rows came or changed since.

    To be called after every load of observations; does nothing where there never was an actual. Needs the dbt view
    ``int_observations_checked`` as it now is, see ``needs_staging``.
    """
    create_tables(connection, contract)
    inbox = Actuals(settings, contract, connection)
    if not inbox.is_used:
        return IngestResult((), (), 0.0)
    result = take_in(inbox, progress)
    inbox.look_again()
    return result


def needs_staging(settings: Settings, contract: Contract, connection: duckdb.DuckDBPyConnection) -> bool:
    """Is there work for ``ingest_actuals``, but the view that it asks is missing or of an earlier contract?"""
    is_used = Actuals(settings, contract, connection).is_used
    return is_used and (not is_built(connection, CHECKED) or needs_full_refresh(settings))


class Actuals(Inbox):
    """The folder of later prices of a dataset."""

    prefix = "actuals/"

    @property
    def folder(self) -> Path:
        return self.settings.landed_actuals

    @property
    def columns(self) -> Contract:
        return actual_file.columns(self.contract)

    @property
    def is_used(self) -> bool:
        """Is there a file, or was there ever one?"""
        known = self.connection.execute("select count(*) from raw.actuals").fetchone()
        return known != (0,) or (self.folder.is_dir() and bool(self.entries()))

    def rules(self) -> list[Rule]:
        return actual_file.rules(self.contract)

    def absent(self, headers: Sequence[str]) -> list[str]:
        return actual_file.absent(self.contract, headers)

    def insert(self, rows: Rows, file: str, batch: int, now: datetime) -> None:
        price = quoted(next(h for h in actual_file.price_headers(self.contract) if h in rows.headers))
        reported_at = actual_file.utc(quoted(REPORTED_AT)) if REPORTED_AT in rows.headers else "null"
        source = f"coalesce(nullif(trim({quoted(SOURCE)}), ''), 'reported')" if SOURCE in rows.headers else "'reported'"
        self._name_keys(rows)
        self.connection.execute(
            f"""
            insert into raw.actuals by name
            select
                keys.observation_id, trim(given.{price}) as price, {reported_at} as reported_at, {source} as source,
                case
                    when not coalesce(isfinite(try_cast(given.{price} as double)), false) then 'invalid'
                    when {source} = 'simulated' then 'simulated'
                    else 'unknown_key'
                end as status,
                $file as _file, given._row, $batch::bigint as _batch, $now::timestamp as _loaded_at
            from {rows.relation} as given
            inner join keys_of_actuals as keys on given._row = keys._row
            """,
            {"file": file, "batch": batch, "now": now},
        )
        self._judge(f"where observation_id in (select observation_id from raw.actuals where _batch = {batch})")
        self._apply(file, batch, batch, now)
        self._record()

    def look_again(self) -> None:
        """Apply prices that waited for their rows, and those that a later landing of their rows without a price hid."""
        now = utc_now()
        self._judge()
        waiting = self.connection.execute(
            "select _file, _batch, count(*) from judged_actuals where is_news group by all order by all"
        ).fetchall()
        with transaction(self.connection):
            for file, loaded_in, n in waiting:
                batch = next_batch(self.connection)
                reason = f"{n:,} of its prices had waited for their rows"
                self.connection.execute(
                    "insert into raw.files (file, rows, status, reason, batch, loaded_at) values (?, ?, ?, ?, ?, ?)",
                    [file, n, "resolved", reason, batch, now],
                )
                self._apply(file, loaded_in, batch, now)
            self._record()

    def _name_keys(self, rows: Rows) -> None:
        """Temporary table ``keys_of_actuals``: the observation_id of each row.

        A natural key is turned into an id by the SQL that does it for every other row: the keys are inserted as rows,
        looked at and deleted again, all in the caller's transaction.
        """
        if OBSERVATION_ID in rows.headers:
            select = f"select _row, coalesce(trim({quoted(OBSERVATION_ID)}), '') as observation_id from {rows.relation}"
        else:
            keys = ", ".join(map(quoted, actual_file.key_headers(self.contract)))
            self.connection.execute(
                f"insert into raw.observations ({keys}, _row, _batch) select {keys}, _row, -1 from {rows.relation}"
            )
            select = f"select _row, observation_id from {CHECKED} where _batch = -1"
        self.connection.execute(f"create or replace temp table keys_of_actuals as {select}")
        self.connection.execute("delete from raw.observations where _batch = -1")

    def _judge(self, where: str = "") -> None:
        """Temporary table ``judged_actuals``: of every real, readable price whether it is news, and what it is else.

        Of several prices of a key the one reported last counts (without ``reported_at``: when it landed), then the one
        loaded last. It is news where its row has another price that landed before it, or none. Prices told to the API
        fill what is missing: they come after those of files and only correct each other.
        """
        self.connection.execute(
            f"""
            create or replace temp table judged_actuals as
            with reported as (
                select
                    *,
                    row_number() over (
                        partition by observation_id
                        order by
                            source = 'online', coalesce(reported_at, _loaded_at) desc, _batch desc, _row desc
                    ) as place
                from (from raw.actuals {where})
                where status not in ('simulated', 'invalid')
            ),

            current_rows as (
                select
                    observation_id, _batch, _row, price,
                    price is not null and (_batch, _row) not in (
                        select (applied_batch, _row) from raw.actuals
                        where source = 'online' and applied_batch is not null
                    ) as is_from_file
                from {CHECKED}
                where observation_id in (select observation_id from reported)
                -- the row that counts, or would if its price were good
                qualify row_number() over (
                    partition by observation_id order by len(reasons) = 0 desc, _batch desc, _row desc
                ) = 1
            )

            select
                a._file, a._batch, a._row, r._batch as current_batch, r._row as current_row,
                a.place = 1 and r._batch is not null and r.price is distinct from try_cast(a.price as double)
                    and (r.price is null or r._batch < a._batch)
                    and not (a.source = 'online' and r.is_from_file) as is_news,
                case
                    when r._batch is null then 'unknown_key'
                    when a.applied_batch is not null or is_news then 'applied'
                    when a.place = 1 and r.price = try_cast(a.price as double) then 'unchanged'
                    when a.source = 'online' and r.is_from_file then 'outranked'
                    else 'superseded'
                end as status
            from reported as a
            left join current_rows as r on a.observation_id = r.observation_id
            """
        )

    def _apply(self, file: str, loaded_in: int, batch: int, now: datetime) -> None:
        """Append the rows of a file's news under a batch."""
        (price,) = (c.source for c in self.contract.columns if c.name == self.contract.price)
        assert price is not None  # the contract's price comes from files
        kept = [
            quoted(name)
            for (name,) in self.connection.execute(
                "select column_name from duckdb_columns() where schema_name = 'raw' and table_name = 'observations'"
            ).fetchall()
            if name not in {price, *PROVENANCE}
        ]
        given = {"file": file, "loaded_in": loaded_in, "batch": batch}
        self.connection.execute(
            f"""
            insert into raw.observations ({", ".join(kept)}, {quoted(price)}, _file, _row, _loaded_at, _batch)
            select {", ".join(f"o.{name}" for name in kept)}, a.price, a._file, a._row, $now::timestamp, $batch::bigint
            from judged_actuals as j
            inner join raw.actuals as a on j._batch = a._batch and j._row = a._row
            inner join raw.observations as o on j.current_batch = o._batch and j.current_row = o._row
            where j.is_news and j._file = $file and j._batch = $loaded_in
            """,
            {**given, "now": now},
        )
        self.connection.execute(
            """
            update raw.actuals as a set applied_batch = $batch from judged_actuals as j
            where j._batch = a._batch and j._row = a._row and j.is_news and j._file = $file and j._batch = $loaded_in
            """,
            given,
        )

    def _record(self) -> None:
        """Write down what became of each price that was judged, and the reasons."""
        self.connection.execute(
            """
            update raw.actuals as a set status = j.status from judged_actuals as j
            where j._batch = a._batch and j._row = a._row and j.status <> a.status
            """
        )
        cases = " ".join(f"when '{status}' then '{reason}'" for status, reason in REASONS.items() if reason)
        reason = f"case status {cases} end"
        self.connection.execute(f"update raw.actuals set reason = {reason} where reason is distinct from {reason}")
