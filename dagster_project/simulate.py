"""Plays the market for rows that have no price: they land in batches, are scored, and made-up prices come back.

Such a price is the prediction plus noise, labelled ``simulated``. It shows that the loop turns, and nothing else: it
cannot be worse than the noise, whatever happens to the market. Jobs and their order stand in ``pipeline.py``.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv

from dagster_project.raw.landing import LandingError, files_of
from dagster_project.raw.reading import literal, read
from ml.contract import Contract
from ml.registry import required_champion
from ml.settings import Settings, nothing_built
from ml.warehouse import connect, in_order, is_built, quoted, warehouse_lock

#: Standard deviation of a simulated price around the prediction, as a share of it.
NOISE = 0.07


class SimulationError(RuntimeError):
    """Nothing was built whose predictions could be answered; the message says what to do."""


def require(settings: Settings, source: Path) -> None:
    """Refuse before anything lands. Raises LandingError for what is no readable file, SimulationError and
    NoChampionError.
    """
    path = source.expanduser()
    if path.is_dir():
        raise LandingError(f"{path} is a folder; give one file whose rows have no price")
    files_of(path)
    if not settings.warehouse.is_file():
        raise SimulationError(nothing_built(settings.dataset))
    with warehouse_lock(settings, "housing simulate"), connect(settings, read_only=True) as connection:
        if not is_built(connection, "training.model_versions"):
            raise SimulationError(nothing_built(settings.dataset))
        required_champion(connection)


def split(contract: Contract, source: Path, folder: Path, batches: int) -> list[Path]:
    """Write the rows of a file that have no price to at most so many CSV files of equal size in ``folder``, in order.

    Raises BadFileError for a file that cannot be read, LandingError when every row has a price.
    """
    (price,) = (c.source for c in contract.columns if c.name == contract.price)
    with duckdb.connect(":memory:") as connection:
        staged = folder / "rows.parquet"
        rows = read(connection, source, contract, staged).rows
        is_unpriced = f"coalesce(trim({quoted(price)}), '') = ''" if price and price in rows.headers else "true"
        connection.execute(
            f"""
            create table unpriced as
            select *, cast((row_number() over (order by _row) - 1) * {batches} // count(*) over () as integer) as batch
            from {rows.relation} where {is_unpriced}
            """
        )
        numbers = [n for (n,) in connection.execute("select distinct batch from unpriced order by batch").fetchall()]
        if not numbers:
            raise LandingError(f"every row of {source} has a price, so there is nothing to simulate")
        written = []
        for n in numbers:
            path = folder / f"{source.stem}_{n + 1:02}_of_{batches:02}.csv"
            of_batch = f"select {', '.join(map(quoted, rows.headers))} from unpriced where batch = {n} order by _row"
            connection.execute(f"copy ({of_batch}) to {literal(str(path))} (header)")
            written.append(path)
    staged.unlink()
    return written


def answer(connection: duckdb.DuckDBPyConnection, file: str, path: Path, *, seed: int) -> int:
    """Write simulated prices of the champion's predictions for the unpriced rows of a landed file; returns how many.

    The same predictions and seed give the same prices.
    """
    version = required_champion(connection)
    with in_order(connection):  # each price gets the noise of its place
        predicted = connection.execute(
            """
            select p.observation_id, p.predicted_price
            from predictions.predictions as p
            inner join intermediate.int_observations as o on p.observation_id = o.observation_id
            where p.model_version = ? and o._file = ? and o.price is null and p.predicted_price > 0
            order by p.observation_id
            """,
            [version.model_version, file],
        ).to_arrow_table()
    prices = predicted["predicted_price"].to_numpy()
    noise = np.random.default_rng(seed).standard_normal(len(prices)).clip(-3, 3)
    table = pa.table(
        {
            "observation_id": predicted["observation_id"],
            "price": np.round(prices * (1 + NOISE * noise)),
            "source": ["simulated"] * len(prices),
        }
    )
    pyarrow.csv.write_csv(table, path)
    return len(prices)
