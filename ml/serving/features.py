"""Features of the rows of a request: the bundle's own view, cut where it looks encodings up.

A hash join costs DuckDB a millisecond however little it joins, planning costs ten, and the view has a join for each
encoding. So its part before the joins is planned once and run over the rows of a request, the encodings are found in a
dictionary, and the part after the joins, planned once as well, runs over both. Every expression is the view's.
"""

from __future__ import annotations

import ctypes
import queue
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any, TypeVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ml.bundle import Bundle, BundleError
from ml.warehouse import quoted

T = TypeVar("T")

#: Rows are priced side by side: those of small requests, and two halves of a large one, which must not hold up those.
LANES = 3

#: How the view joins an encoding, as DuckDB writes it down; what follows ON stands in brackets.
JOIN = re.compile(r" LEFT JOIN encodings AS (\w+) ON (?=\()")
#: What it joins by: name of the encoding, month and key.
BY = re.compile(r'\(\(\((\w+)\."encoding" = \'(\w+)\'\) AND \(\1\."month" = (.+)\) AND \(\1\.key_value = (.+)\)\)\)')
#: The one join besides: what is said of a key that has no encoding of its own.
UNSEEN = "unseen"
JOIN_UNSEEN = ' LEFT JOIN unseen ON ((keyed.encoding_month = unseen."month"))'

_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype, _capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class Slot:
    """Rows that a prepared statement reads: it is planned once, the rows change; they are read once.

    DuckDB reads a capsule itself, but any other Arrow object through pyarrow's scanner, which takes 0.5 ms a time.
    """

    def __init__(self, schema: pa.Schema) -> None:
        # struct ArrowArrayStream: four functions and their data
        self._stream = (ctypes.c_void_p * 5)()
        self.capsule = _capsule(ctypes.addressof(self._stream), b"arrow_array_stream", None)
        self.schema = schema
        self.fill(schema.empty_table())

    def fill(self, rows: pa.Table) -> None:
        """What the next execution reads."""
        address = ctypes.addressof(self._stream)
        if self._stream[3]:  # release: nobody has read what was filled before
            pa.RecordBatchReader._import_from_c(address)
        rows.to_reader()._export_to_c(address)


@dataclass(frozen=True)
class Lookup:
    """One join of the view: alias, encoding (or UNSEEN), and SQL of the month and key that a row is found by."""

    alias: str
    encoding: str
    month: str
    key: str


@dataclass(frozen=True)
class Cut:
    """A view before and after its lookups; between them stand the rows of ``keyed`` with a struct for each lookup."""

    keyed: str
    after: str
    lookups: tuple[Lookup, ...]

    def before(self, columns: Sequence[str]) -> str:
        """SQL of these columns of ``keyed`` and what each row is looked up by."""
        wanted = [quoted(name) for name in columns]
        wanted += [f"{sql} AS {quoted(name)}" for sql, name in self.by.items()]
        return f"{self.keyed} SELECT {', '.join(wanted)} FROM keyed"

    @property
    def by(self) -> dict[str, str]:
        """Columns beside the row that say what is looked up, by their SQL: few, as joins share months and keys."""
        return {sql: f"by {sql}" for k in self.lookups for sql in (k.month, k.key)}

    @property
    def words(self) -> set[str]:
        """Every name that the part after the lookups may read, and more."""
        return set(re.findall(r"\w+", self.after))

    @classmethod
    def of(cls, view: str, between: str) -> Cut:
        """``view`` is DuckDB's text of ``features_as_of``. Raises BundleError when it is built in another way."""
        sql = view.partition(" AS ")[2].rstrip("; \n")
        head, encoded, tail = sql.partition(", encoded AS (")
        keyed = head.find(", keyed AS (")
        first, joined, rest = tail.partition(JOIN_UNSEEN)
        tail = first + rest
        lookups = [Lookup(UNSEEN, UNSEEN, "(keyed.encoding_month)::date", f"'{UNSEEN}'")]
        while join := JOIN.search(tail):
            end = _closing(tail, join.end())
            by = BY.fullmatch(tail[join.end() : end])
            if not by or by[1] != join[1]:
                raise BundleError(f"features_as_of joins {join[1]} in a way that the API does not know")
            lookups.append(Lookup(join[1], by[2], f"({by[3]})::date", by[4]))
            tail = tail[: join.start()] + tail[end:]
        while "(keyed)" in tail:  # DuckDB 2.0 writes each join in brackets
            tail = tail.replace("(keyed)", "keyed")
        if not encoded or not joined or keyed < 0 or " JOIN unseen " in tail or " encodings AS " in tail:
            raise BundleError("features_as_of is built in a way that the API does not know")
        return cls(
            keyed=head,
            after=f"{head[:keyed]}, keyed AS (SELECT * FROM {between}){encoded}{tail}",
            lookups=tuple(lookups),
        )


class Values:
    """Rows of a table as structs, found by month and key. Safe to use from several threads."""

    def __init__(self, rows: pa.Table, months: pa.ChunkedArray, keys: Iterable[str | None]) -> None:
        """A row whose month or key is null is never found: in SQL, what is unknown equals nothing."""
        rows = rows.combine_chunks()
        self._rows = pa.StructArray.from_arrays([c.combine_chunks() for c in rows.columns], names=rows.column_names)
        self._place: dict[date | None, dict[str | None, int]] = {}
        for place, (month, key) in enumerate(zip(listed(months), keys, strict=True)):
            if month is not None and key is not None:
                self._place.setdefault(month, {})[key] = place

    def find(self, months: Sequence[date | None], keys: Sequence[str | None]) -> pa.StructArray:
        """One struct a month and key; null where there is none."""
        known, nothing = self._place, {}
        if len({*months}) == 1:  # nearly always, and in half the time
            places = list(map(known.get(months[0], nothing).get, keys))
        else:
            places = [known.get(month, nothing).get(key) for month, key in zip(months, keys, strict=True)]
        return self._rows.take(pa.array(places, pa.int64()))


class Encodings:
    """Rows of ``features.encodings`` by encoding, month and key. Safe to use from several threads."""

    def __init__(self, rows: pa.Table) -> None:
        self._by_encoding: dict[str, Values] = {}
        names = [n for n in rows.column_names if n not in {"encoding", "month", "key_value"}]
        self._none = rows.select(names)[:0]
        for encoding in rows["encoding"].unique().to_pylist():
            mine = rows.filter(pc.field("encoding") == encoding)
            self._by_encoding[encoding] = Values(mine.select(names), mine["month"], listed(mine["key_value"]))
        self.newest = rows.sort_by([("month", "descending")]).slice(0, 1)
        """A row of the newest month: what the part before the lookups reads itself."""

    def of(self, encoding: str) -> Values:
        """Values by month and key; none of an encoding that has no rows."""
        return self._by_encoding.get(encoding) or Values(self._none, pa.chunked_array([], pa.date32()), [])


class Features:
    """Checks and features of rows, planned once for all months. For one thread at a time."""

    def __init__(
        self,
        bundle: Bundle,
        newest: Encodings,
        unseen: pa.Table,
        given: pa.Schema,
        *,
        checks: Sequence[str],
        outputs: Sequence[str],
    ) -> None:
        """``unseen`` are the encodings of unseen keys, of every month that may be asked for.

        ``given`` is the schema of raw rows under the headers of landed files. ``checks`` are columns that ``checked``
        has to have, ``outputs`` those that ``of`` gives.
        """
        self._given = Slot(given.append(pa.field("_row", pa.int64())))

        def fill(connection: duckdb.DuckDBPyConnection) -> None:
            connection.register("given", self._given.capsule)
            connection.register("unseen_encodings", pa.concat_tables([unseen, newest.newest]))
            connection.execute("create table features.encodings as from unseen_encodings")
            connection.unregister("unseen_encodings")

        # a plan of so few rows gains nothing from a second thread
        self._connection = bundle.twin({"threads": 1}, fill, given=self._given.schema)
        (view,) = self._connection.execute(
            "select sql from duckdb_views() where schema_name = 'features' and view_name = 'features_as_of'"
        ).fetchone() or ("",)
        cut = Cut.of(view, between="looked_up")
        if missing := [name for name in outputs if name not in cut.words]:
            raise BundleError(
                f"{bundle.model_version} does not know {', '.join(missing)}; train again with this release"
            )
        by_month = self._connection.execute(f"{cut.keyed} SELECT * FROM unseen").to_arrow_table()
        self._unseen = Values(by_month, by_month["month"], [UNSEEN] * by_month.num_rows)
        self._lookups = [(k.alias, k.encoding, cut.by[k.month], cut.by[k.key]) for k in cut.lookups]
        self._by = list(cut.by.values())
        there = [name for (name, *_) in self._connection.execute(f"describe {cut.keyed} FROM keyed").fetchall()]
        read = {"_row", *checks} | cut.words
        self._connection.execute(f"prepare keyed as {cut.before([name for name in there if name in read])}")
        keyed = self._connection.execute("execute keyed").to_arrow_table()
        self._between = Slot(self._looked_up(keyed, newest).schema)
        self._connection.register("looked_up", self._between.capsule)
        columns = ", ".join(map(quoted, ("_row", *outputs)))
        self._connection.execute(f"prepare asked as select {columns} from ({cut.after})")

    def checked(self, raw: pa.Table) -> pa.Table:
        """Rows as the contract's rules see them, in their order, with the keys of their encodings."""
        self._given.fill(raw.append_column("_row", pa.array(np.arange(raw.num_rows))))
        return _in_order(fetched(self._connection.execute("execute keyed"), raw.num_rows))

    def of(self, checked: pa.Table, encodings: Encodings) -> pa.Table:
        """``outputs`` of checked rows, in their order; ``encodings`` hold what is ``wanted`` of them."""
        self._between.fill(self._looked_up(checked, encodings))
        return _in_order(fetched(self._connection.execute("execute asked"), checked.num_rows)).drop_columns("_row")

    def wanted(self, checked: pa.Table) -> pa.Table:
        """What checked rows are looked up by: encoding, month and key_value, each once."""
        by = {name: listed(checked[name]) for name in self._by}
        found = {
            (encoding, *pair)
            for _, encoding, month, key in self._lookups
            if encoding != UNSEEN
            for pair in zip(by[month], by[key], strict=True)
        }
        schema = pa.schema({"encoding": pa.string(), "month": pa.date32(), "key_value": pa.string()})
        return pa.table(list(zip(*found, strict=True)) or [[], [], []], schema=schema)

    def _looked_up(self, checked: pa.Table, encodings: Encodings) -> pa.Table:
        by = {name: listed(checked[name]) for name in self._by}
        found = {}
        for alias, encoding, month, key in self._lookups:
            values = self._unseen if encoding == UNSEEN else encodings.of(encoding)
            found[alias] = values.find(by[month], by[key])
        return pa.table(found | {n: checked[n] for n in checked.column_names if n not in by})


def fetched(result: duckdb.DuckDBPyConnection, rows: int) -> pa.Table:
    """A result of about so many rows. Left alone, DuckDB maps memory for a million rows of every column: 3 ms."""
    return result.to_arrow_table(max(rows, 1))


@contextmanager
def taken(pool: queue.LifoQueue[T]) -> Iterator[T]:
    """One of the pool, alone, until the block ends."""
    one = pool.get()
    try:
        yield one
    finally:
        pool.put(one)


def listed(column: pa.ChunkedArray) -> list[Any]:
    """Its texts or dates, and None; ten times as fast as ``to_pylist``."""
    return column.to_numpy().tolist()


def _closing(text: str, start: int) -> int:
    """Place after the bracket that closes the one at ``start``. No text in quotes before it may hold a bracket."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if not depth:
            return i + 1
    raise BundleError("features_as_of is built in a way that the API does not know")


def _in_order(table: pa.Table) -> pa.Table:
    row = table["_row"].to_numpy()
    if len(row) > 1 and (np.diff(row) < 0).any():
        table = table.take(np.argsort(row, kind="stable"))
    return table.combine_chunks()
