"""A warehouse of one tiny dated dataset, made by hand in a second, for tests of ``ml`` that need no dbt.

Its relations have the names and shapes of the real ones (raw, staging, intermediate, features, training). Rows of real
shape stand in ``factories.py``; that dbt makes such relations is tested in ``tests/warehouse``.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from ml.contract import Contract
from ml.params import Params
from ml.settings import Settings
from ml.warehouse import connect, create_tables

CONTRACT = Contract.model_validate(
    {
        "name": "toy",
        "title": "Toy houses",
        "currency": "EUR",
        "key": ["house"],
        "observed_on": "sold",
        "first_month": "2020-01",
        "price": "price",
        "area": "town",
        "locality": "town",
        "columns": [
            {"name": "house", "source": "House", "type": "text", "role": "key", "required": True},
            {"name": "sold", "source": "Sold", "type": "date", "format": "%Y-%m", "role": "ignore", "required": True},
            {"name": "town", "source": "Town", "type": "text", "required": True},
            {"name": "size", "source": "Size"},
            {"name": "tax", "source": "Tax", "role": "leak", "description": "follows from the price"},
            {"name": "price", "source": "Price", "role": "price"},
        ],
        "encodings": [{"name": "town_12m", "keys": ["town"], "months_back": [1, 12]}],
        "level": ["town_12m"],
        "persistence": ["town_12m"],
        "split": {"trained_through": "2021-06", "eval_months": 3, "refit": True},
        "gate": {"min_r2": 0.5},
    }
)

PARAMS = Params(
    max_depth=3, eta=0.2, subsample=0.8, colsample_bytree=0.8, min_child_weight=1, reg_lambda=1, max_bin=64, rounds=60,
    early_stopping_rounds=10, refit_rounds="same", eval_metric="mae", seed=1, linear_alpha=1,
    linear_clip_quantile=0.001,
)  # fmt: skip

LEVELS = {"North": 100_000.0, "South": 300_000.0}

#: From landed text to the training data set. The first three views are what a bundle carries.
VIEWS = """
create or replace view staging.stg_toy__observations as
select _file, _row, _loaded_at, _batch, md5(coalesce("House", '')) as observation_id,
    cast(try_strptime("Sold", '%Y-%m') as date) as observed_on, try_cast("Price" as double) as price,
    nullif("Town", '') as area, nullif("Town", '') as locality, try_cast("Size" as double) as size
from toy.raw.observations;
create or replace view intermediate.int_observations_checked as
select *, cast(date_trunc('month', observed_on) as date) as month, price > 0 as is_price_valid,
    list_filter([
        case when observed_on is null then 'sold:missing' end, case when area is null then 'town:missing' end
    ], lambda x: x is not null) as reasons
from toy.staging.stg_toy__observations;
create or replace view intermediate.int_observations as
select * from toy.intermediate.int_observations_checked where len(reasons) = 0;
create or replace view features.features_as_of as
select _batch, _row, observation_id, observed_on, o.month, area, locality, price, coalesce(is_price_valid, false)
    as is_price_valid, 'unused' as split, e.mean_log_price as target_offset, exp(e.mean_log_price) as persistence_price,
    [area, concat_ws(chr(31), area, size > 100)] as error_keys, cast(null as double) as last_year_price,
    month(o.month)::double as month_of_year, size,
    0.0::double as town_12m_to_level, coalesce(e.n, 0)::double as town_12m_n
from toy.intermediate.int_observations as o
left join toy.features.encodings as e on e.month = o.month and e.key_value = o.area and e.encoding = 'town_12m';
"""

TRAINING = """
create or replace view training.training_dataset as
select * exclude (_batch, _row), ln(price) - target_offset as target from toy.features.features
"""


def rows(first: int = 0, months: int = 24, per_month: int = 60, seed: int = 3) -> pa.Table:
    """Houses sold from month ``first`` after 2020-01 on, 5 % noise. Small and large ones cost most: no line follows."""
    rng = np.random.default_rng([seed, first])
    n = months * per_month
    month = first + np.repeat(np.arange(months), per_month)
    town = rng.choice(list(LEVELS), n)
    size = np.round(rng.uniform(40, 160, n))
    level = np.array([LEVELS[name] for name in town])
    price = np.round(level * (0.5 + ((size - 100) / 60) ** 2) * np.exp(0.01 * month + 0.05 * rng.standard_normal(n)))
    columns = {
        "House": [f"{first}-{i}" for i in range(n)],
        "Sold": [f"{2020 + m // 12}-{m % 12 + 1:02d}" for m in month],
        "Town": town,
        "Size": size.astype(int),
        "Tax": price / 100,
        "Price": price.astype(int),
    }
    return pa.table({name: pa.array(values).cast(pa.string()) for name, values in columns.items()})


def land(connection: duckdb.DuckDBPyConnection, table: pa.Table, batch: int) -> None:
    """Append rows to ``raw`` and build features, as a load and dbt would."""
    connection.register("landing", table)
    connection.execute(
        "insert into raw.observations by name select *, 'toy.csv' as _file, row_number() over () as _row, "
        "timestamp '2024-01-01' as _loaded_at, ? as _batch from landing",
        [batch],
    )
    connection.unregister("landing")
    build(connection)


def build(connection: duckdb.DuckDBPyConnection) -> None:
    """Encodings of strictly earlier months, then features; a month's batch is the highest that changed it."""
    for schema in ("staging", "intermediate", "features", "training"):
        connection.execute(f"create schema if not exists {schema}")
    connection.execute("create table if not exists features.encodings as select '' as encoding where false")
    connection.execute("drop table features.encodings")
    connection.execute(
        """
        create table features.encodings as
        with priced as (
            select "Town" as town, strptime("Sold", '%Y-%m')::date as month, ln("Price"::double) as log_price
            from toy.raw.observations where try_cast("Price" as double) > 0
        ), months as (
            select unnest(generate_series(date '2020-02-01', date '2023-01-01', interval 1 month))::date as month
        )
        select 'town_12m' as encoding, town as key_value, months.month as month, count(*) as n,
            cast(round(sum(log_price), 6) as double) / count(*) as mean_log_price
        from months join priced on priced.month < months.month and priced.month >= months.month - interval 12 month
        group by all
        """
    )
    connection.execute(
        "insert into features.encodings select encoding, '__unseen__', month, sum(n), "
        "round(sum(n * mean_log_price), 6) / sum(n) from features.encodings group by encoding, month"
    )
    for statement in filter(str.strip, VIEWS.split(";")):
        connection.execute(statement)
    connection.execute(
        "create or replace table features.features as select *, max(_batch) over (partition by month) "
        "as built_through_batch from features.features_as_of"
    )
    connection.execute(TRAINING)


def warehouse(home: Path, **kinds: int) -> Settings:
    """A built warehouse below ``home``; ``kinds`` go to ``rows``."""
    settings = Settings(home=home, dataset="toy")
    with connect(settings) as connection:
        create_tables(connection, CONTRACT)
        land(connection, rows(**kinds), 1)
    return settings
