"""Price ranges of a request by the batch's own text: macros of ``int_prediction_traits`` and ``prediction_intervals``.

It is rendered here as dbt renders it, with other relations behind ``ref`` and ``source``; nothing of a range is
written in Python. What was learned from errors comes from the snapshot's ``predictions.interval_calibration``.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Any

import duckdb
import jinja2
import numpy as np
import pyarrow as pa

from ml.serving.features import LANES, Slot, fetched, listed, taken
from ml.settings import PROJECT_ROOT

WAREHOUSE = PROJECT_ROOT / "warehouse"
MODELS = WAREHOUSE / "models" / "predictions"
#: Where the two models use macros from.
MACROS = ("intervals.sql", "metrics.sql")
#: Columns of an answer besides row and price.
RANGES = (
    *(f"{side}_{level}" for level in ("50", "80", "95") for side in ("lower", "upper")),
    "forecast_std_pct",
    "grade",
)

#: Remembered factors of rows that values were filled in for: three megabytes.
FACTORS_KEPT = 2_000

#: Classes of the traits besides the area, which is a name.
TRAITS = ("history", "surprise", "rarity", "area")

#: The rows of a request as ``int_prediction_traits`` knows them. A month without a calibration of its own uses the
#: latest before it.
ASKED = pa.schema(
    {
        "observation_id": pa.int64(), "month": pa.date32(), "area": pa.string(), "predicted_price": pa.float64(),
        "imputation_error": pa.float64(), "history_n": pa.int64(), "persistence_price": pa.float64(),
        "target_offset": pa.float64(),
    }
)  # fmt: skip
#: Every combination of traits at a price of 1, for rows that nothing was filled in for: a range is the price times a
#: factor that follows from them.
GRID = """
create table grid as
select
    row_number() over () as observation_id, 'asked' as model_version, 'to_score' as split, months.month,
    history.class as history, surprise.class as surprise, rarity.class as rarity, areas.class as area,
    1.0::double as predicted_price, 0.0::double as imputation_error, null::double as log_error
from (select distinct month from calibration) as months
cross join (select unnest(['unknown', '1', '2', '3', '4', '5', '6']) as class) as history
cross join (select unnest(['unknown', '1', '2', '3', '4', '5']) as class) as surprise
cross join (select unnest(['unknown', '1', '2', '3', '4', '5']) as class) as rarity
cross join (select distinct class from calibration where trait = 'area' union select null) as areas
"""


#: The same macros as in ``int_prediction_traits``.
TRAITS_OF_REQUEST = """
select observation_id, month, {{ trait_classes() }}
from (
    select *, {{ trait_distances() }}
    from request where {{ is_positive('predicted_price') }}
)
"""


class _Return(Exception):
    def __init__(self, value: Any) -> None:
        self.value = value


def rendered(template: str, relations: dict[str, str] | None = None) -> str:
    """SQL of a dbt model, given as text, as dbt renders it; ``relations`` maps names of ref and source."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(WAREHOUSE / "macros"), undefined=jinja2.StrictUndefined
    )
    known = relations or {}

    def give(value: Any) -> None:
        raise _Return(value)

    def called(macro: Callable[..., str]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            try:
                return macro(*arguments, **keywords)
            except _Return as returned:
                return returned.value

        return call

    environment.globals.update(
        {
            "return": give,
            "config": lambda **_: "",
            "ref": lambda model: known[model],
            "source": lambda schema, table: known[f"{schema}.{table}"],
        }
    )
    for file in MACROS:
        module = environment.get_template(file).module
        for macro in dir(module):
            if not macro.startswith("_"):
                environment.globals[macro] = called(getattr(module, macro))
    return environment.from_string(template).render()


@cache
def _intervals() -> str:
    """SQL of the model ``prediction_intervals`` over the tables that are made for it; rendering takes 40 ms."""
    relations = {"int_prediction_traits": "grid", "interval_calibration": "calibration", "confidence_grades": "grades"}
    return rendered((MODELS / "prediction_intervals.sql").read_text(encoding="utf-8"), relations)


class _Places(dict[tuple[str | None, ...], int]):
    """Places by TRAITS; an area without errors of its own has that of no area."""

    def __missing__(self, key: tuple[str | None, ...]) -> int:
        if key[-1] is None:
            raise KeyError(key)
        return self[*key[:-1], None]


@dataclass(frozen=True)
class _Factors:
    """What a price is multiplied by in a month, and what is said of it; one column a combination of traits."""

    place: _Places
    limits: np.ndarray
    """shape (6, n)"""
    std: np.ndarray
    grade: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[tuple[Any, ...]]) -> _Factors:
        """Of rows of TRAITS and RANGES."""
        *limits, std, grade = zip(*(row[len(TRAITS) :] for row in rows), strict=True)
        return cls(
            _Places({row[: len(TRAITS)]: i for i, row in enumerate(rows)}),
            np.array(limits, dtype=float),
            np.array(std, dtype=float),
            np.array(grade, dtype=object),
        )


class Ranges:
    """Ranges and grades of one model version's prices. Safe to use from several threads."""

    def __init__(self, calibration: pa.Table, grades: pa.Table) -> None:
        """``calibration`` are the version's rows of interval_calibration, ``grades`` is confidence_grades."""
        self._calibration, self._grades = calibration, grades
        months = sorted(m for m in set(calibration["month"].to_pylist()))
        self._months = np.array(months, dtype="datetime64[D]")
        self._factors: dict[date, _Factors] = {}
        self._filled = _Filled(calibration, grades)
        self._lanes: queue.LifoQueue[_Traits] = queue.LifoQueue()
        for _ in range(LANES):
            self._lanes.put(_Traits())

    def of(self, rows: pa.Table) -> dict[str, np.ndarray]:
        """RANGES by name, one value a row; NaN and None where there is no price or nothing is known of errors.

        ``rows`` has the columns of ``request`` but ``observation_id``.
        """
        n = rows.num_rows
        traits = self._traits(rows)
        price = rows["predicted_price"].to_numpy()
        limits, std, grade = np.full((6, n), np.nan), np.full(n, np.nan), np.full(n, None, dtype=object)
        # the latest calibration that is not later than the row's month
        at = np.searchsorted(self._months, traits["month"].to_numpy().astype("datetime64[D]"), side="right") - 1
        row = traits["observation_id"].to_numpy()
        filled = rows["imputation_error"].to_numpy()[row] > 0
        classes = list(zip(*(listed(traits[name]) for name in TRAITS), strict=True))
        asked: dict[int, date] = {i: self._months[i].item() for i in {*at[~filled].tolist()} - {-1}}
        if missing := sorted({*asked.values()}.difference(self._factors)):
            self._factors.update(self._computed(missing))
        for i, month in asked.items():
            mine = np.flatnonzero((at == i) & ~filled)
            factors = self._factors[month]
            found = [factors.place[classes[i]] for i in mine.tolist()]
            limits[:, row[mine]] = price[row[mine]] * factors.limits[:, found]
            std[row[mine]], grade[row[mine]] = factors.std[found], factors.grade[found]
        if len(mine := np.flatnonzero(filled & (at >= 0))):
            error = rows["imputation_error"].to_numpy()[row[mine]].tolist()
            keys = [(self._months[at[i]].item(), *classes[i], e) for i, e in zip(mine.tolist(), error, strict=True)]
            *factors, stds, letters = zip(*self._filled.factors(keys), strict=True)
            limits[:, row[mine]] = price[row[mine]] * np.array(factors)
            std[row[mine]], grade[row[mine]] = stds, letters
        return dict(zip(RANGES, (*limits, std, grade), strict=True))

    def _computed(self, months: Sequence[date]) -> dict[date, _Factors]:
        """Factors of all combinations of traits by the very SQL of the batch, which takes longest to plan."""
        with duckdb.connect(":memory:", config={"threads": 1}) as connection:
            connection.register("given", self._calibration)
            connection.register("grades", self._grades)
            connection.execute(
                """
                create table calibration as
                select * replace ('asked' as model_version) from given where month in (select unnest($months::date[]))
                """,
                {"months": months},
            )
            connection.execute(GRID)
            found: dict[date, list[tuple[Any, ...]]] = {month: [] for month in months}
            for month, *row in connection.execute(
                f"select g.month, {', '.join(f'g.{t}' for t in TRAITS)}, {', '.join(f'p.{r}' for r in RANGES)} "
                f"from ({_intervals()}) as p inner join grid as g on p.observation_id = g.observation_id"
            ).fetchall():
                found[month].append(tuple(row))
            return {month: _Factors.of(rows) for month, rows in found.items()}

    def _traits(self, rows: pa.Table) -> pa.Table:
        """observation_id (place of the row), month and TRAITS of the rows that have a price."""
        asked = rows.append_column("observation_id", pa.array(np.arange(rows.num_rows))).select(ASKED.names)
        with taken(self._lanes) as lane:
            return lane.of(asked.cast(ASKED))


class _Filled:
    """What the prices of rows are multiplied by that values were filled in for. Safe to use from several threads.

    Such errors are no classes that a grid could be made of in advance. What was asked once is remembered.
    """

    def __init__(self, calibration: pa.Table, grades: pa.Table) -> None:
        texts = {name: pa.string() for name in TRAITS}
        self._asked = Slot(
            pa.schema({"month": pa.date32()} | texts | {"imputation_error": pa.float64(), "n": pa.int64()})
        )
        self._known: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        self._lock = threading.Lock()
        self._connection = duckdb.connect(":memory:", config={"threads": 1})
        self._connection.execute("set enable_progress_bar = false")
        self._connection.register("given", calibration)
        self._connection.register("known_grades", grades)
        self._connection.register("asked", self._asked.capsule)
        self._connection.execute(
            """
            create table calibration as select * replace ('asked' as model_version) from given;
            create table grades as from known_grades;
            create view grid as
            select
                * exclude (n), n as observation_id, 'asked' as model_version, 'to_score' as split,
                1.0::double as predicted_price, null::double as log_error
            from asked
            """
        )
        self._connection.execute(f"prepare ranges as select observation_id, {', '.join(RANGES)} from ({_intervals()})")

    def factors(self, keys: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """RANGES at a price of 1 of calibrated month, TRAITS and imputation error."""
        with self._lock:
            if not self._known.keys() >= set(keys):
                if len(self._known) > FACTORS_KEPT:
                    self._known.clear()
                new = [key for key in dict.fromkeys(keys) if key not in self._known]
                columns = [*zip(*new, strict=True), range(len(new))]
                self._asked.fill(
                    pa.table(dict(zip(self._asked.schema.names, columns, strict=True)), self._asked.schema)
                )
                for place, *found in self._connection.execute("execute ranges").fetchall():
                    self._known[new[place]] = tuple(found)
            return [self._known[key] for key in keys]


class _Traits:
    """The batch's traits of rows, planned once. For one thread at a time."""

    def __init__(self) -> None:
        self._asked = Slot(ASKED)
        self._connection = duckdb.connect(":memory:", config={"threads": 1})
        self._connection.execute("set enable_progress_bar = false")
        self._connection.register("request", self._asked.capsule)
        self._connection.execute(f"prepare traits as {rendered(TRAITS_OF_REQUEST)}")

    def of(self, asked: pa.Table) -> pa.Table:
        self._asked.fill(asked)
        return fetched(self._connection.execute("execute traits"), asked.num_rows)
