"""The view is cut where it looks encodings up, and gives what the whole view gives. Real rows: test_same_as_batch."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date

import duckdb
import pyarrow as pa
import pytest

from ml.bundle import BundleError
from ml.registry import load_bundle
from ml.serving.engine import Engine
from ml.serving.example import example_row
from ml.serving.features import Cut, Encodings, Features, Slot, Values
from ml.serving.snapshot import Snapshot
from tests.conftest import Home

#: As the dbt model builds it: one encoding by a key of two columns, and the same one three months before.
VIEW = """
create view features_as_of as
with observations as (select * from asked),
encodings as (select * from all_encodings),
unseen as (select month, max(value) as town_unseen from encodings where key_value = '__unseen__' group by month),
keyed as (select observations.*, month as encoding_month from observations),
encoded as (
    select keyed.*, coalesce(town_3m.value, unseen.town_unseen) as town_value, town_3m_3m_ago.value as town_before
    from keyed
    left join unseen on keyed.encoding_month = unseen.month
    left join encodings as town_3m on town_3m.encoding = 'town_3m' and town_3m.month = keyed.encoding_month
        and town_3m.key_value = concat_ws(chr(31), town, kind)
    left join encodings as town_3m_3m_ago on town_3m_3m_ago.encoding = 'town_3m'
        and town_3m_3m_ago.month = cast(keyed.encoding_month + to_months(cast(-3 as integer)) as date)
        and town_3m_3m_ago.key_value = concat_ws(chr(31), town, kind)
),
final as (select _row, town_value, town_before from encoded)
select * from final
"""
ENCODINGS = pa.table(
    {
        "encoding": ["town_3m"] * 4 + ["other"],
        "month": [date(2022, 4, 1), date(2022, 1, 1), date(2022, 4, 1), date(2022, 4, 1), date(2022, 4, 1)],
        "key_value": ["A\x1fflat", "A\x1fflat", "__unseen__", "B\x1fflat", "A\x1fflat"],
        "value": [1.0, 2.0, 3.0, 4.0, 9.0],
    }
)
ASKED = pa.table(
    {
        "_row": [1, 2, 3, 4],
        "month": [date(2022, 4, 1), date(2022, 4, 1), date(2022, 4, 1), date(2021, 4, 1)],
        "town": ["A", "C", None, "A"],
        "kind": ["flat", "flat", "flat", "flat"],
        "price": [None, None, None, None],
    },
    schema=pa.schema(
        {"_row": pa.int64(), "month": pa.date32(), "town": pa.string(), "kind": pa.string(), "price": pa.float64()}
    ),
)


@pytest.fixture
def view(memory: duckdb.DuckDBPyConnection) -> str:
    """Text of the view as DuckDB writes it down."""
    memory.register("asked", ASKED)
    memory.register("all_encodings", ENCODINGS)
    memory.execute(VIEW.replace("create view", "create temp view"))
    found = memory.execute("select sql from duckdb_views() where view_name = 'features_as_of'").fetchone()
    assert found
    return found[0]


def test_both_parts_with_a_dictionary_between_give_what_the_whole_view_gives(
    memory: duckdb.DuckDBPyConnection, view: str
) -> None:
    cut = Cut.of(view, between="looked_up")
    assert [(k.alias, k.encoding) for k in cut.lookups] == [
        ("unseen", "unseen"), ("town_3m", "town_3m"), ("town_3m_3m_ago", "town_3m"),
    ]  # fmt: skip
    assert "price" not in cut.words
    before = memory.execute(cut.before(["_row", "month", "encoding_month"])).to_arrow_table()
    whole = memory.execute("select * from features_as_of order by _row").fetchall()
    unseen = memory.execute(f"{cut.keyed} select * from unseen").to_arrow_table()
    encodings = Encodings(ENCODINGS)
    for k in cut.lookups:
        values = Values(unseen, unseen["month"], ["unseen"]) if k.alias == "unseen" else encodings.of(k.encoding)
        found = values.find(before[cut.by[k.month]].to_pylist(), before[cut.by[k.key]].to_pylist())
        before = before.append_column(k.alias, found)
    # both joins ask for the same key
    assert len(cut.by) == 4
    # what the part after the lookups does not read may go
    memory.execute("drop view features_as_of")
    memory.unregister("all_encodings")
    memory.register("looked_up", before)
    found = memory.execute(f"select * from ({cut.after}) order by _row").fetchall()
    assert found == whole
    assert found == [(1, 1.0, 2.0), (2, 3.0, None), (3, 3.0, None), (4, None, None)]


def test_what_the_rest_of_the_view_reads_has_the_newest_month() -> None:
    assert Encodings(ENCODINGS).newest["month"].to_pylist() == [date(2022, 4, 1)]


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("town_3m.key_value = concat_ws", "town_3m.key_value <> concat_ws"),
        ("left join encodings as town_3m on", "inner join encodings as town_3m on"),
        ("keyed as (", "named as ("),
        ("left join unseen on keyed.encoding_month = unseen.month", "left join unseen on keyed.month = unseen.month"),
    ],
)
def test_a_view_of_another_build_is_refused_rather_than_misread(
    memory: duckdb.DuckDBPyConnection, part: str, other: str
) -> None:
    changed = VIEW.replace(part, other).replace("create view", "create temp view")
    if "named" in other:
        changed = changed.replace("keyed.", "named.").replace("from keyed", "from named")
    memory.register("asked", ASKED)
    memory.register("all_encodings", ENCODINGS)
    memory.execute(changed)
    (text,) = memory.execute("select sql from duckdb_views() where view_name = 'features_as_of'").fetchone() or ("",)
    with pytest.raises(BundleError, match="the API does not know"):
        Cut.of(text, between="looked_up")


def test_a_prepared_statement_reads_the_rows_of_the_moment(memory: duckdb.DuckDBPyConnection) -> None:
    slot = Slot(pa.schema({"a": pa.int64()}))
    memory.register("slot", slot.capsule)
    memory.execute("prepare doubled as select 2 * a from slot where a > 1")
    assert memory.execute("execute doubled").fetchall() == []
    for values, doubled in (([], []), ([1, 2, 3], [(4,), (6,)]), ([5], [(10,)])):
        # rows that nobody has read are let go of
        for filled in ([7, 8], values):
            slot.fill(pa.table({"a": pa.array(filled, pa.int64())}))
        assert memory.execute("execute doubled").fetchall() == doubled
    with pytest.raises(duckdb.InvalidInputException, match="already been consumed"):
        memory.execute("execute doubled")


def test_rows_that_were_read_or_replaced_are_freed(memory: duckdb.DuckDBPyConnection) -> None:
    slot = Slot(pa.schema({"a": pa.int64()}))
    memory.register("slot", slot.capsule)
    memory.execute("prepare counted as select count(a) from slot")
    before = pa.total_allocated_bytes()
    for i in range(20):
        slot.fill(pa.table({"a": pa.array(range(100_000), pa.int64())}))
        if i % 2:
            assert memory.execute("execute counted").fetchall() == [(100_000,)]
    assert pa.total_allocated_bytes() - before < 2_000_000


@pytest.fixture
def held(served: Home) -> Iterator[Snapshot]:
    snapshot = Snapshot(served.settings)
    yield snapshot
    snapshot.close()


def test_a_bundle_of_an_earlier_release_is_refused_in_one_sentence(served: Home, held: Snapshot) -> None:
    bundle = load_bundle(served.settings, held.versions()["champion"])
    encodings = Encodings(held.encodings(served.contract, held.newest_month()))
    with pytest.raises(BundleError, match="v1 does not know not_there_yet; train again with this release"):
        Features(bundle, encodings, held.unseen(), pa.schema([]), checks=[], outputs=["not_there_yet"])


def test_rows_of_many_earlier_months_are_read_in_one_pass_and_get_what_each_gets_alone(
    served: Home, held: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = held.versions()["champion"]
    engine = Engine(served.contract, held, version, load_bundle(served.settings, version))
    row = example_row(served.contract, held)
    rows = [{**row, "sold_month": f"{year}-{month:02d}"} for year in (2021, 2022) for month in range(1, 13)][:15]
    # a month is read whole when it is asked for alone, and kept; a request of many would read for half a minute
    read: list[date | None] = []
    encodings = held.encodings
    monkeypatch.setattr(held, "encodings", lambda contract, month: [read.append(month), encodings(contract, month)][1])
    assert engine.waits(rows)
    together = engine.answer(rows, "champion").price
    assert not read and (together > 0).sum() > 10
    first = [row for row in rows if engine.waits([row])][:2]
    for row in first:
        assert engine.answer([row], "champion").price == together[rows.index(row)]
        assert not engine.waits([row]), "it is kept"
    assert len(read) == len(first) == 2
    assert engine.answer(rows, "champion").price.tolist() == together.tolist(), "kept, read and newest months mix"
