"""A model version as one folder: booster, compiled feature SQL, encodings, contract, and the sha256 of each file.

``Bundle.predict`` turns raw rows into prices by the SQL that stood in the warehouse when the version was made, run
in an in-memory DuckDB. Nothing of a feature is written in Python. This file travels inside the MLflow artifact, so
it needs duckdb, numpy, pyarrow and xgboost only. Batch scoring of stored features belongs in ``ml/score.py``.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xgboost as xgb

from ml.baselines import LinearModel

if TYPE_CHECKING:
    import pandas as pd

#: Views that lead from landed text to features, in order; ``{dataset}`` is filled in.
VIEWS = (
    "staging.stg_{dataset}__observations",
    "intermediate.int_observations_checked",
    "features.features_as_of",
)
#: A request is neither deduplicated nor filtered: every row gets its answer, with reasons where there is no price.
REQUEST_VIEW = "create view intermediate.int_observations as select * from intermediate.int_observations_checked"
NO_LEVEL = "no price level is known for its place and month"


class BundleError(ValueError):
    """A bundle is damaged or a request does not fit it; the message is one sentence."""


def feature_matrix(rows: pa.Table | pa.RecordBatch, features: Sequence[str], out: np.ndarray | None = None) -> np.ndarray:
    """Columns of ``rows`` as float32 of shape (n, features), missing values as NaN; into ``out`` where given."""
    matrix = np.empty((rows.num_rows, len(features)), dtype=np.float32) if out is None else out
    for j, name in enumerate(features):
        column = rows.column(name)
        matrix[:, j] = column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(zero_copy_only=False)
    return matrix


class Bundle:
    """One model version, loaded. Safe to use from several threads."""

    def __init__(self, folder: Path, metadata: dict[str, Any]) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self.metadata = metadata
        self.model_version: str = metadata["model_version"]
        self.dataset: str = metadata["dataset"]
        self.features_used: list[str] = metadata["features"]
        self.contract: dict[str, Any] = json.loads((folder / "contract.json").read_text(encoding="utf-8"))
        self.linear = LinearModel(**json.loads((folder / "linear.json").read_text(encoding="utf-8")))
        self.booster = xgb.Booster(model_file=folder / "model.ubj")

    @classmethod
    def load(cls, folder: Path, *, threads: int | None = None) -> Bundle:
        """Read a bundle. Raises BundleError when a file is missing or is not what was written."""
        try:
            metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
            if metadata.pop("sha256") != _digest_of(metadata):
                raise BundleError(f"{folder / 'metadata.json'} was changed after it was written; it is refused")
            for name, expected in metadata["files"].items():
                if _sha256(folder / name) != expected:
                    raise BundleError(f"{folder / name} was changed after it was written (sha256); it is refused")
        except (OSError, KeyError, json.JSONDecodeError) as error:
            raise BundleError(f"{folder} holds no complete bundle: {error}") from None
        bundle = cls(folder, metadata)
        if threads:
            bundle.booster.set_param({"nthread": threads})
        return bundle

    def predict(self, raw_rows: pa.Table | pd.DataFrame) -> pa.Table:
        """Prices of raw rows: observation_id, predicted_price, model_version, reasons.

        One row per row, in its order. ``raw_rows`` has the headers of the landed files; more are ignored, so is the
        price. ``predicted_price`` is null where ``reasons`` says why. Raises BundleError when headers are missing.
        """
        features = self.features(raw_rows)
        scores = self.booster.inplace_predict(feature_matrix(features, self.features_used))
        offset = features["target_offset"].to_numpy()
        usable = (pc.list_value_length(features["reasons"]).to_numpy() == 0) & ~np.isnan(offset)  # pyright: ignore
        price = np.exp(scores.astype(np.float64) + offset)
        return pa.table(
            {
                "observation_id": features["observation_id"],
                "predicted_price": pa.array(price, mask=~usable),
                "model_version": pa.array([self.model_version] * features.num_rows, pa.string()),
                "reasons": features["reasons"],
            }
        )

    def features(self, raw_rows: pa.Table | pd.DataFrame) -> pa.Table:
        """Features of raw rows by the warehouse's SQL: ids, target_offset, every feature (DOUBLE), reasons.

        One row per row, in its order. Raises BundleError when headers are missing.
        """
        wanted = ", ".join(f"f.{_quoted(name)}" for name in self.features_used)
        with self._request(self._landed(raw_rows)) as connection:
            return connection.execute(
                f"""
                select
                    c.observation_id, c.observed_on, c.month, c.area, c.locality, f.target_offset, {wanted},
                    case when len(c.reasons) = 0 and f.target_offset is null then ['{NO_LEVEL}'] else c.reasons end
                        as reasons
                from {self.dataset}.intermediate.int_observations_checked as c
                inner join {self.dataset}.features.features_as_of as f on f._batch = c._batch and f._row = c._row
                order by c._row
                """
            ).to_arrow_table()

    @cached_property
    def _database(self) -> duckdb.DuckDBPyConnection:
        """In-memory twin of the warehouse, with encodings and views and an empty ``raw.observations``."""
        connection = duckdb.connect(":memory:", config={"threads": 2})
        columns = [f"{_quoted(name)} varchar" for name in self._formats]
        connection.execute(f"attach ':memory:' as {self.dataset}")
        connection.execute(f"use {self.dataset}")
        connection.execute("create schema raw; create schema staging; create schema intermediate; create schema features")
        connection.execute(
            f"create table raw.observations ({', '.join(columns)}, _file varchar, _row bigint, "
            "_loaded_at timestamp, _batch bigint)"
        )
        for relation, name in self.metadata["tables"].items():
            connection.execute(f"create table {relation} as select * from read_parquet(?)", [str(self._folder / name)])
        for relation, sql in json.loads((self._folder / "sql.json").read_text(encoding="utf-8")):
            if relation == "features.features_as_of":
                connection.execute(REQUEST_VIEW)
            connection.execute(sql)
        # from here on, the database reads and writes nothing but its own memory
        connection.execute("set enable_external_access = false")
        connection.execute("set lock_configuration = true")
        return connection

    @contextmanager
    def _request(self, landed: pa.Table) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection that alone sees these rows: they are inserted in a transaction that is rolled back."""
        with self._lock:
            connection = self._database.cursor()
        try:
            connection.register("landed", landed)
            connection.execute("begin")
            connection.execute(f"insert into {self.dataset}.raw.observations by name select * from landed")
            yield connection
        finally:
            connection.close()

    def _landed(self, raw_rows: pa.Table | pd.DataFrame) -> pa.Table:
        """Raw rows as they would stand in ``raw.observations``: text by header, null where a column is absent."""
        given = _as_columns(raw_rows)
        needed = [header for header in self._required if header not in given]
        if needed:
            raise BundleError(
                f"the rows lack {', '.join(needed)}; {self.dataset} {self.model_version} needs "
                f"{', '.join(self._required)}"
            )
        n = raw_rows.num_rows if isinstance(raw_rows, pa.Table) else len(raw_rows)
        columns = {
            # the price is never looked at, so that a known one cannot help
            header: _as_text(given[header], date_format)
            if header in given and header != self._price
            else pa.nulls(n, pa.string())
            for header, date_format in self._formats.items()
        }
        return pa.table(
            {
                **columns,
                "_file": pa.array(["request"] * n, pa.string()),
                "_row": pa.array(np.arange(1, n + 1)),
                "_loaded_at": pa.array(np.zeros(n, dtype="datetime64[us]")),
                "_batch": pa.array(np.zeros(n, dtype=np.int64)),
            }
        )

    @cached_property
    def _sources(self) -> list[dict[str, Any]]:
        return [c for c in self.contract["columns"] if c["source"] is not None]

    @cached_property
    def _formats(self) -> dict[str, str | None]:
        """Every header of the landed files with its date format, if it is a date."""
        return {c["source"]: c["format"] for c in self._sources}

    @cached_property
    def _required(self) -> list[str]:
        """Headers a request must have: not the price, and nothing that was excluded because it leaks the price."""
        return [c["source"] for c in self._sources if not c["optional"] and c["role"] not in {"price", "leak"}]

    @cached_property
    def _price(self) -> str | None:
        return next(c["source"] for c in self._sources if c["role"] == "price")


def write_bundle(
    folder: Path,
    connection: duckdb.DuckDBPyConnection,
    *,
    contract: dict[str, Any],
    booster: bytes,
    linear: LinearModel,
    metadata: dict[str, Any],
) -> None:
    """Write a version's bundle; SQL, encodings and reference tables are read from the working warehouse.

    ``metadata`` needs ``model_version``, ``dataset`` and ``features``. Raises BundleError when a view is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dataset = metadata["dataset"]
    views = [(name.format(dataset=dataset), "") for name in VIEWS]
    views = [(name, _view_sql(connection, name)) for name, _ in views]
    text = " ".join(sql for _, sql in views)
    tables = {"features.encodings": "encodings.parquet"}
    for (name,) in connection.execute(
        "select table_name from duckdb_tables() where database_name = current_database() and schema_name = 'staging'"
    ).fetchall():
        if f"staging.{name}" in text:
            tables[f"staging.{name}"] = f"{name}.parquet"
    for relation, file in tables.items():
        # written by pyarrow: a COPY would need the warehouse to be allowed to write files
        order = " order by encoding, month, key_value" if relation == "features.encodings" else " order by all"
        reader = connection.execute(f"select * from {relation}{order}").to_arrow_reader(100_000)
        with pq.ParquetWriter(folder / file, reader.schema, compression="zstd") as writer:
            for batch in reader:
                writer.write_batch(batch)
    (folder / "model.ubj").write_bytes(booster)
    _write_json(folder / "linear.json", linear.to_dict())
    _write_json(folder / "sql.json", views)
    _write_json(folder / "contract.json", contract)
    files = ["model.ubj", "linear.json", "sql.json", "contract.json", *tables.values()]
    document = {**metadata, "tables": tables, "files": {name: _sha256(folder / name) for name in files}}
    _write_json(folder / "metadata.json", {**document, "sha256": _digest_of(document)})


def _view_sql(connection: duckdb.DuckDBPyConnection, relation: str) -> str:
    schema, name = relation.split(".")
    found = connection.execute(
        "select sql from duckdb_views() where database_name = current_database() and schema_name = ? and view_name = ?",
        [schema, name],
    ).fetchone()
    if not found:
        raise BundleError(f"the warehouse has no view {relation}; run `dbt build` (or `housing run`) first")
    return found[0]


def _as_columns(raw_rows: pa.Table | pd.DataFrame) -> dict[str, pa.Array | pa.ChunkedArray]:
    if isinstance(raw_rows, pa.Table):
        return {name: raw_rows.column(name) for name in raw_rows.column_names}
    return {str(name): _from_pandas(raw_rows[name]) for name in raw_rows.columns}


def _from_pandas(column: pd.Series) -> pa.Array | pa.ChunkedArray:
    try:
        return pa.array(column, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array(column.astype("string"), from_pandas=True)  # numbers and texts mixed


def _as_text(column: pa.Array | pa.ChunkedArray, date_format: str | None) -> pa.Array | pa.ChunkedArray:
    """Values as a file would hold them: whole numbers without a decimal part, dates in the contract's format."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_floating(kind):
        column = pc.if_else(pc.is_nan(column), None, column)
        whole = pc.and_(pc.equal(pc.trunc(column), column), pc.less(pc.abs(column), 1e15))
        as_integer = pc.if_else(whole, column, None).cast(pa.int64()).cast(pa.string())
        return pc.coalesce(as_integer, column.cast(pa.string()))
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return pc.strftime(column.cast(pa.timestamp("s"), safe=False), date_format or "%Y-%m-%d")
    return column.cast(pa.string())


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def _digest_of(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
