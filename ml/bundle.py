"""A model version as one folder: booster, compiled feature SQL, encodings, contract, and the sha256 of each file.

``Bundle.predict`` turns raw rows into prices by the SQL that stood in the warehouse when the version was made, run
in an in-memory DuckDB. Nothing of a feature is written in Python. This file travels inside the MLflow artifact, so
it needs duckdb, numpy, pyarrow and xgboost only. Batch scoring of stored features belongs in ``ml/score.py``.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
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
from ml.imputation import Imputation
from ml.views import standing_views

if TYPE_CHECKING:
    import pandas as pd

#: A request is neither deduplicated nor filtered: every row gets its answer, with reasons where there is no price.
REQUEST_VIEW = "create view intermediate.int_observations as select * from intermediate.int_observations_checked"
NO_LEVEL = "no price level is known for its place and month"
#: Where price levels are per unit of a size.
NO_SIZE = "{size} is missing, and without it there is no price level, which is per unit of it"


class BundleError(ValueError):
    """A bundle is damaged or a request does not fit it; the message is one sentence."""


def feature_matrix(
    rows: pa.Table | pa.RecordBatch, features: Sequence[str], out: np.ndarray | None = None
) -> np.ndarray:
    """Columns of ``rows`` as float32 of shape (n, features), missing values as NaN; into ``out`` where given."""
    matrix = np.empty((rows.num_rows, len(features)), dtype=np.float32) if out is None else out
    for j, name in enumerate(features):
        column = rows.column(name)
        matrix[:, j] = (
            column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(zero_copy_only=False)
        )
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
        imputation = folder / "imputation.json"
        self.imputation = (
            Imputation.from_dict(json.loads(imputation.read_text(encoding="utf-8")))
            if imputation.exists()
            else Imputation.none(len(self.features_used))
        )

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

        One row per row, in its order. ``raw_rows`` has the headers of the landed files and their values; more headers
        are ignored, so is the price. (pandas makes the text ``NA`` of a CSV null: read with ``keep_default_na=False``.)
        ``predicted_price`` is null where ``reasons`` says why. Raises BundleError when headers are missing.
        """
        features = self.features(raw_rows)
        x, _ = self.matrix(features)
        scores = self.booster.inplace_predict(x)
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

    def matrix(self, rows: pa.Table | pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """What the booster reads of rows with the version's features, float32 of shape (n, features).

        Missing values are NaN, or the median where ``imputation`` has one; where that is so, bool of the same shape.
        """
        x = feature_matrix(rows, self.features_used)
        return x, self.imputation.fill(x)

    def features(self, raw_rows: pa.Table | pd.DataFrame, twin: duckdb.DuckDBPyConnection | None = None) -> pa.Table:
        """Features of raw rows by the warehouse's SQL: ids, target_offset, every feature (DOUBLE), reasons.

        One row per row, in its order, with the encodings of a ``twin`` where one is given. Raises BundleError when
        headers are missing.
        """
        wanted = ", ".join(f"f.{_quoted(name)}" for name in self.features_used)
        why, size = f"'{NO_LEVEL}'", self.contract["size"]
        if size:
            why = f"case when c.{_quoted(size)} > 0 then {why} else '{NO_SIZE.format(size=size)}' end"
        with self._request(raw_rows, twin) as connection:
            return connection.execute(
                f"""
                select
                    c.observation_id, c.observed_on, c.month, c.area, c.locality, f.target_offset, {wanted},
                    case when len(c.reasons) = 0 and f.target_offset is null then [{why}] else c.reasons end
                        as reasons
                from {self.dataset}.intermediate.int_observations_checked as c
                inner join {self.dataset}.features.features_as_of as f on f._batch = c._batch and f._row = c._row
                order by c._row
                """
            ).to_arrow_table()

    @cached_property
    def views(self) -> list[tuple[str, str]]:
        """Name and SQL of each view that leads from landed text to features, as they stood in the warehouse."""
        return [(name, sql) for name, sql in json.loads((self._folder / "sql.json").read_text(encoding="utf-8"))]

    @cached_property
    def _database(self) -> duckdb.DuckDBPyConnection:
        """In-memory twin of the warehouse, with encodings and views and an empty ``raw.observations``."""
        return self.twin({"threads": 2}, self._own_encodings)

    def _own_encodings(self, connection: duckdb.DuckDBPyConnection) -> None:
        path = str(self._folder / self.metadata["tables"]["features.encodings"])
        connection.execute("create table features.encodings as select * from read_parquet(?)", [path])

    def twin(
        self,
        config: dict[str, Any],
        encodings: Callable[[duckdb.DuckDBPyConnection], None],
        *,
        given: pa.Schema | None = None,
    ) -> duckdb.DuckDBPyConnection:
        """A new in-memory twin of the warehouse; ``encodings`` is asked to create ``features.encodings`` in it.

        ``raw.observations`` is an empty table. With ``given`` it reads the relation ``given`` whenever it is asked,
        which has this schema and ``encodings`` registers: rows under the headers of the landed files, with their place
        in ``_row``.
        """
        connection = duckdb.connect(":memory:", config=config)
        connection.execute(f"attach ':memory:' as {self.dataset}")
        connection.execute(f"use {self.dataset}")
        connection.execute(
            "create schema raw; create schema staging; create schema intermediate; create schema features"
        )
        encodings(connection)
        if given is None:
            columns = [f"{_quoted(name)} varchar" for name in self._formats]
            connection.execute(
                f"create table raw.observations ({', '.join(columns)}, _file varchar, _row bigint, "
                "_loaded_at timestamp, _batch bigint)"
            )
        else:
            kinds = {field.name: field.type for field in given}
            texts = [
                f"{_text_of(_quoted(name), kinds[name], form) if name in kinds else 'null::varchar'} as {_quoted(name)}"
                for name, form in self._formats.items()
            ]
            connection.execute(
                f"create view raw.observations as select {', '.join(texts)}, 'request' as _file, _row, "
                "timestamp '1970-01-01' as _loaded_at, 0::bigint as _batch from given"
            )
        for relation, name in self.metadata["tables"].items():
            if relation != "features.encodings":
                path = str(self._folder / name)
                connection.execute(f"create table {relation} as select * from read_parquet(?)", [path])
        for relation, sql in self.views:
            if relation == "features.features_as_of":
                connection.execute(REQUEST_VIEW)
            connection.execute(sql)
        # DuckDB turns each long IN list into a hash join: for a request of few rows, ten times the work
        connection.execute("set disabled_optimizers = 'in_clause'")
        # from here on, the database reads and writes nothing but its own memory
        connection.execute("set enable_external_access = false")
        connection.execute("set enable_progress_bar = false")
        connection.execute("set lock_configuration = true")
        return connection

    @contextmanager
    def _request(
        self, raw_rows: pa.Table | pd.DataFrame, twin: duckdb.DuckDBPyConnection | None
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection that alone sees these rows: they are inserted in a transaction that is never committed."""
        with self._lock:
            connection = (twin or self._database).cursor()
        try:
            self.insert(connection, raw_rows)
            yield connection
        finally:
            connection.close()

    def insert(self, connection: duckdb.DuckDBPyConnection, raw_rows: pa.Table | pd.DataFrame) -> None:
        """Begin a transaction and insert the rows as landed text, numbered from 1 in ``_row``."""
        given = _as_columns(raw_rows)
        if lacking := [header for header in self._required if header not in given]:
            raise BundleError(
                f"the rows lack {', '.join(lacking)}; {self.dataset} {self.model_version} needs "
                f"{', '.join(self._required)}"
            )
        # the price is never looked at, so that a known one cannot help
        used = {header: given[header] for header in self._formats if header in given and header != self._price}
        # other names: SQL knows no difference between price and Price
        rows = pa.table(list(used.values()), names=[f"c{i}" for i in range(len(used))])
        rows = rows.append_column("n", pa.array(np.arange(1, rows.num_rows + 1)))
        texts = [_text_of(f"c{i}", rows.schema.field(i).type, self._formats[h]) for i, h in enumerate(used)]
        connection.register("given", rows)
        connection.execute("begin")
        connection.execute(
            f"""
            insert into {self.dataset}.raw.observations
                ({", ".join(map(_quoted, used))}, _file, _row, _loaded_at, _batch)
            select {", ".join(texts)}, 'request', n, timestamp '1970-01-01', 0 from given
            """
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
    imputation: Imputation,
    metadata: dict[str, Any],
) -> None:
    """Write a version's files; SQL, encodings and reference tables are read from the working warehouse.

    ``metadata`` has at least ``dataset`` and ``features``. The folder is a bundle once ``seal_bundle`` has named its
    version. Raises MissingViewError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    views = standing_views(connection, metadata["dataset"])
    tables = {"features.encodings": "encodings.parquet"}
    for (name,) in connection.execute(
        "select table_name from duckdb_tables() where database_name = current_database() and schema_name = 'staging'"
    ).fetchall():
        if any(f"staging.{name}" in sql for _, sql in views):
            tables[f"staging.{name}"] = f"{name}.parquet"
    for relation, file in tables.items():
        order = "encoding, month, key_value" if relation == "features.encodings" else "all"
        # through Arrow: a COPY would need the connection to be allowed to write files
        reader = connection.execute(f"select * from {relation} order by {order}").to_arrow_reader(100_000)
        with pq.ParquetWriter(folder / file, reader.schema, compression="zstd") as writer:
            for batch in reader:
                writer.write_batch(batch)
    (folder / "model.ubj").write_bytes(booster)
    write_json(folder / "linear.json", linear.to_dict())
    write_json(folder / "imputation.json", imputation.to_dict())
    write_json(folder / "sql.json", views)
    write_json(folder / "contract.json", contract)
    write_json(folder / "metadata.json", {**metadata, "tables": tables})


def seal_bundle(folder: Path, model_version: str) -> None:
    """Name the version and write down the sha256 of every file; may be repeated with another name."""
    metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    metadata.pop("sha256", None)
    files = sorted(path for path in folder.iterdir() if path.name != "metadata.json")
    metadata |= {"model_version": model_version, "files": {path.name: _sha256(path) for path in files}}
    write_json(folder / "metadata.json", {**metadata, "sha256": _digest_of(metadata)})


def _as_columns(raw_rows: pa.Table | pd.DataFrame) -> dict[str, pa.Array | pa.ChunkedArray]:
    if isinstance(raw_rows, pa.Table):
        return {name: raw_rows.column(name) for name in raw_rows.column_names}
    if not hasattr(raw_rows, "items"):
        raise BundleError(f"rows are a DataFrame or an Arrow table with the headers of the files, not {type(raw_rows)}")
    return {str(name): _from_pandas(column) for name, column in raw_rows.items()}


def _from_pandas(column: pd.Series) -> pa.Array | pa.ChunkedArray:
    try:
        return pa.array(column, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array(column.astype("string"), from_pandas=True)  # numbers and texts mixed


def _text_of(column: str, kind: pa.DataType, date_format: str | None) -> str:
    """SQL of a value as a file would hold it: whole numbers without decimals, dates in the contract's format."""
    if pa.types.is_floating(kind):
        return (
            f"case when isnan({column}) then null "
            f"when abs({column}) < 1e15 and {column} = trunc({column}) then {column}::bigint::varchar "
            f"else {column}::varchar end"
        )
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return f"strftime({column}, '{date_format or '%Y-%m-%d'}')"
    return f"{column}::varchar"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def write_json(path: Path, value: object) -> None:
    """Readable JSON in UTF-8."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def _digest_of(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
