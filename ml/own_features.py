"""Features as a version learned them, where the warehouse makes them otherwise by now.

A version prices by the SQL that it learned with. Mostly that is what stands in the warehouse, and its stored features
serve. After a change of the contract or of a model the version's bundle makes them of the landed rows, with the
encodings of the warehouse; where these are made otherwise, too, the version can price nothing any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import date
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from ml.contract import Contract
from ml.settings import command
from ml.views import standing_views
from ml.warehouse import months_in, quoted

if TYPE_CHECKING:
    from ml.bundle import Bundle

STORED = "features.features"
OWN = "temp.own_features"
ROWS = 50_000  # landed rows in memory at a time
#: What an encoding is made of, in its block of the contract and beside it.
OF_ENCODING = ("keys", "bands", "months_back", "indexed", "differs_in")
OF_ALL_ENCODINGS = ("smoothing", "size", "like_for_like")


class ChangedEncodingError(ValueError):
    """The version learned from encodings that are made otherwise now; the message names them and says what to do."""


def features_of(
    connection: duckdb.DuckDBPyConnection, bundle: Bundle, contract: Contract, months: Sequence[date]
) -> str:
    """Name of a relation: the version's own features of the rows of some months, and what scoring reads beside them.

    Where it is not ``features.features`` itself, it is a temporary table of this connection. A row that the version's
    own contract rejects has no ``target_offset``, and so gets no price. Raises ChangedEncodingError.
    """
    # what the views look up does not show in their text
    require_encodings(bundle, contract)
    if standing_views(connection, bundle.dataset) == bundle.views:
        return STORED
    connection.register("made", _made(connection, bundle, months))
    connection.execute(
        f"""
        create or replace temp table own_features as
        select
            f.observation_id, f.observed_on, f.month, f.area, f.locality, f.split, f.price, f.built_through_batch,
            case when len(made.reasons) = 0 then made.target_offset end as target_offset,
            {", ".join(f"made.{quoted(name)}" for name in bundle.features_used)}
        from {STORED} as f inner join made on f._batch = made._batch and f._row = made._row
        """
    )
    connection.unregister("made")
    return OWN


def require_encodings(bundle: Bundle, contract: Contract) -> None:
    """Raises ChangedEncodingError where encodings that the version uses are not made as they were."""
    then, now = bundle.contract, contract.model_dump(mode="json")
    standing = {e["name"]: e for e in now["encodings"]}
    used = [
        e
        for e in then["encodings"]
        if e["name"] in then["level"] or any(f.startswith(f"{e['name']}_") for f in bundle.features_used)
    ]
    is_other = _differs(then, now, OF_ALL_ENCODINGS)
    changed = [e["name"] for e in used if is_other or _differs(e, standing.get(e["name"]) or {}, OF_ENCODING)]
    if changed:
        version = bundle.model_version
        raise ChangedEncodingError(
            f"{version} learned from {', '.join(changed)} as the contract of {contract.name} does not make them any "
            f"more, so {version} can price nothing: take that change back, or put a version in its place that was "
            f"trained since ({command('promote VERSION', contract.name)})"
        )


def _differs(then: Mapping[str, Any], now: Mapping[str, Any], fields: Sequence[str]) -> bool:
    """What a contract of an earlier release did not name yet has not changed."""
    return any(field in then and then[field] != now.get(field) for field in fields)


def _made(connection: duckdb.DuckDBPyConnection, bundle: Bundle, months: Sequence[date]) -> pa.Table:
    """What the bundle says of the rows of some months, as ``Bundle.features`` does, with ``_batch`` and ``_row``."""
    encodings = connection.execute("select * from features.encodings").to_arrow_table()

    def given(twin: duckdb.DuckDBPyConnection) -> None:
        twin.register("given_encodings", encodings)
        twin.execute("create table features.encodings as from given_encodings")
        twin.unregister("given_encodings")

    reader = connection.execute(
        f"""
        select o.* from raw.observations as o
        inner join {STORED} as f on o._batch = f._batch and o._row = f._row
        where f.month in {months_in(months)}
        """
    ).to_arrow_reader(ROWS)
    with closing(bundle.twin({"threads": 2}, given)) as twin:

        def made(batches: list[pa.RecordBatch]) -> pa.Table:
            landed = pa.Table.from_batches(batches, reader.schema)
            features = bundle.features(landed, twin)
            return features.append_column("_batch", landed["_batch"]).append_column("_row", landed["_row"])

        return pa.concat_tables([made([batch]) for batch in reader] or [made([])])
