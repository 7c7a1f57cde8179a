"""A seeded HouseTS-shaped file for those who have not landed the real one: zip code by month, 30 metros, 39 columns.

Every zip code has its complete series of months and the file has the defects of the real one, in the shares below.
Small hand-made rows for tests belong in ``tests/factories.py``; what the columns mean stands in the contract.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

Array = np.ndarray
Progress = Callable[[int, int], None]


#: Name: share of all rows, why it is in the file. Besides these, zip codes are integers: a leading zero is lost.
DEFECTS = {
    "zero_census": (0.07, "whole zip-years without census: 8 % of the real rows, 0 stands for missing"),
    "zero_market": (0.003, "months without one sale: every market figure is 0, in 0.3 % of the real rows"),
    "messy_name": (0.01, "blanks around city_full or capitals: what hand-kept exports bring"),
    "empty_cell": (0.0005, "per cell of five columns: an empty text besides the 0 that stands for missing"),
    "outlier": (0.001, "placeholders typed into price or list price, far outside any market"),
    "duplicate": (0.005, "a row exported twice, equal in every column"),
    "corrected": (0.001, "the same zip code and month again with other values: the later row is right"),
}
MAY_BE_EMPTY = ("median_dom", "avg_sale_to_list", "inventory", "Median Age", "Median Rent")
PLACEHOLDERS = (1.0, 99_999_999.0)


class Dice(NamedTuple):
    """Random numbers of one metro, and the shares of its defects."""

    rng: np.random.Generator
    shares: Mapping[str, float]

    def hit(self, defect: str, shape: tuple[int, ...]) -> Array:
        return self.rng.random(shape) < self.shares.get(defect, 0)


class Metro(NamedTuple):
    """Names as published; zip codes per 2,412; mid-2020 price; log growth 2012 to 2020 and through the surge."""

    city: str
    city_full: str
    weight: int
    price: float
    growth: float
    surge: float
    prefixes: tuple[int, ...]


METROS = (
    Metro("ATL", "Atlanta-Sandy Springs-Alpharetta", 75, 250e3, 0.62, 0.40, (*range(300, 304), 305, 306, 310)),
    Metro("ATX", "Austin-Round Rock-Georgetown", 34, 330e3, 0.55, 0.48, (765, 786, 787, 789)),
    Metro("BOS", "Boston-Cambridge-Newton", 120, 480e3, 0.42, 0.25, (14, *range(17, 26), 27, 30, 32, 38)),
    Metro("BWI", "Baltimore-Columbia-Towson", 55, 370e3, 0.25, 0.20, (210, 211, 212, 216, 217)),
    Metro("CHI", "Chicago-Naperville-Elgin", 161, 240e3, 0.35, 0.23, (463, 464, 479, 531, *range(600, 609))),
    Metro("CIN", "Cincinnati", 61, 180e3, 0.40, 0.30, (410, 450, 451, 452, 470, 473)),
    Metro("CLT", "Charlotte-Concord-Gastonia", 37, 230e3, 0.52, 0.44, (280, 281, 282, 286, 290, 297)),
    Metro("DAL", "Dallas-Fort Worth-Arlington", 98, 250e3, 0.60, 0.40, (750, 751, 752, 754, 760, 761, 762, 764)),
    Metro("DC", "DC_Metro", 122, 430e3, 0.28, 0.20, (200, 201, *range(206, 210), *range(220, 228), 254)),
    Metro("DEN", "Denver-Aurora-Lakewood", 48, 430e3, 0.65, 0.32, (800, 801, 802, 804, 806, 808)),
    Metro("DET", "Detroit-Warren-Dearborn", 77, 200e3, 0.65, 0.28, (*range(480, 485), 487, 488)),
    Metro("HOU", "Houston-The Woodlands-Sugar Land", 86, 220e3, 0.45, 0.30, (770, *range(773, 777), 778)),
    Metro("LA", "Los Angeles-Long Beach-Anaheim", 134, 700e3, 0.60, 0.30, (900, *range(902, 919), 926, 927, 935)),
    Metro("LV", "Las Vegas-Henderson-Paradise", 19, 280e3, 0.80, 0.42, (890, 891)),
    Metro("MIA", "Miami-Fort Lauderdale-Pompano Beach", 68, 310e3, 0.62, 0.48, (330, 331, 333, 334)),
    Metro("MSP", "Minneapolis-St. Paul-Bloomington", 66, 300e3, 0.48, 0.20, (540, 547, 550, 551, 553, 554, 560, 563)),
    Metro("NY", "New York-Newark-Jersey City", 317, 480e3, 0.25, 0.25, (*range(70, 80), 85, 87, 88, *range(100, 120))),
    Metro("ORL", "Orlando-Kissimmee-Sanford", 36, 260e3, 0.65, 0.45, (321, 327, 328, 347)),
    Metro("PDX", "Portland-Vancouver-Hillsboro", 37, 400e3, 0.62, 0.27, (970, 971, 972, 986)),
    Metro("PGH", "Pittsburgh", 112, 155e3, 0.33, 0.24, (*range(150, 155), 156, 159, 160, 161, 162)),
    Metro(
        "PHL", "Philadelphia-Camden-Wilmington", 132, 250e3, 0.25, 0.28, (80, 81, 83, 180, 189, *range(190, 195), 197)
    ),
    Metro("PHX", "Phoenix-Mesa-Chandler", 64, 300e3, 0.75, 0.50, (850, 851, 852, 853)),
    Metro("RIV", "Riverside-San Bernardino-Ontario", 60, 350e3, 0.68, 0.42, (922, 923, 924, 925, 928)),
    Metro("SA", "San Antonio-New Braunfels", 37, 220e3, 0.42, 0.34, (780, 781, 782, 788)),
    Metro("SAC", "Sacramento-Roseville-Folsom", 46, 410e3, 0.65, 0.33, (956, 957, 958, 959, 961)),
    Metro("SD", "San Diego-Chula Vista-Carlsbad", 47, 620e3, 0.58, 0.40, (919, 920, 921)),
    Metro("SEA", "Seattle-Tacoma-Bellevue", 69, 470e3, 0.62, 0.38, (980, 981, 982, 983, 984, 985)),
    Metro("SF", "San Francisco-Oakland-Berkeley", 62, 1050e3, 0.62, 0.20, (940, 941, *range(943, 950))),
    Metro("STL", "St. Louis", 87, 175e3, 0.32, 0.24, (620, 622, 626, 630, 631, 633)),
    Metro("TPA", "Tampa-St. Petersburg-Clearwater", 45, 240e3, 0.66, 0.50, (335, 336, 337, 346)),
)

MONTHS = np.arange("2012-03", "2024-01", dtype="datetime64[M]")
N_MONTHS = len(MONTHS)
MONTH_END = (MONTHS + 1).astype("datetime64[D]") - np.timedelta64(1, "D")
YEAR = MONTHS.astype("datetime64[Y]").astype(int) + 1970
YEAR_INDEX = YEAR - YEAR[0]
#: +1 in June, -1 in December
SUMMER = np.cos(2 * np.pi * (MONTHS.astype(int) % 12 - 5) / 12)

#: name -> mean count in a zip code of 18,000 people; the log of a zip code's own rate has a deviation of 1
AMENITIES = {"bank": 6, "bus": 0.4, "hospital": 1.8, "mall": 0.6, "park": 28, "restaurant": 22, "school": 27}
AMENITIES |= {"station": 1.6, "supermarket": 5}


def generate(out: Path, rows: int, seed: int, progress: Progress | None = None) -> None:
    """Write ``rows`` data rows to ``out``; the same rows and seed give the same bytes.

    ``progress(done, rows)`` is called after each metro. The file appears under its name only when it is complete.
    Raises ValueError for a folder, and when ``rows`` is below one zip code's series or above what the zip codes of 30
    metros hold.
    """
    import duckdb

    if out.is_dir():
        raise ValueError(f"{out} is a folder; name the file to write, for example {out / 'housets_synthetic.csv'}")

    def stream() -> Iterator[pa.RecordBatch]:
        done = 0
        for table in tables(rows, seed):
            yield from table.to_batches()
            done += table.num_rows
            if progress:
                progress(done, rows)

    batches = stream()
    first = next(batches)
    reader = pa.RecordBatchReader.from_batches(first.schema, chain([first], batches))
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.part")
    try:
        # twice as fast as with two threads, which wait for each other; and a second one outlives an interrupt
        with duckdb.connect(config={"threads": 1, "memory_limit": "500MB"}) as connection:
            connection.register("panel", reader)
            target = str(aside).replace("'", "''")
            connection.execute(f"copy panel to '{target}' (format csv, header true)")
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)


def tables(rows: int, seed: int, shares: Mapping[str, float] | None = None) -> Iterator[pa.Table]:
    """The same rows as Arrow tables, a metro each. ``shares`` replaces shares of ``DEFECTS``; {} has no defects."""
    shares = {name: share for name, (share, _) in DEFECTS.items()} if shares is None else shares
    if unknown := set(shares) - set(DEFECTS):
        raise ValueError(f"no defect named {sorted(unknown)}; known are: {', '.join(DEFECTS)}")
    duplicates, corrected = (round(rows * shares.get(name, 0)) for name in ("duplicate", "corrected"))
    panel = rows - duplicates - corrected
    if panel < N_MONTHS:
        raise ValueError(f"rows={rows} is too few: one zip code has {N_MONTHS} months, ask for at least 150 rows")
    zips = _zips_per_metro(-(-panel // N_MONTHS), rows)
    done = 0
    for index, (metro, n) in enumerate(zip(METROS, zips, strict=True)):
        if n == 0:
            continue
        dice = Dice(np.random.default_rng([seed, index]), shares)
        columns = _panel(metro, n, dice)
        # what does not fill a last series: that zip code enters the panel late
        size, late = n * N_MONTHS, max(done + n * N_MONTHS - panel, 0)
        here = np.delete(np.arange(size), slice(size - N_MONTHS, size - N_MONTHS + late))
        before, done = done, done + len(here)
        equal, other = (total * done // panel - total * before // panel for total in (duplicates, corrected))
        twice = dice.rng.choice(here, equal + other, replace=False)
        yield _finish(metro, columns, np.concatenate([here, twice]), other, dice)


def _zips_per_metro(zips: int, rows: int) -> list[int]:
    """Largest remainder by the metros' weights; the last metro with zip codes may hold the late one."""
    weights = np.array([m.weight for m in METROS])
    exact = zips * weights / weights.sum()
    counts = exact.astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: zips - counts.sum()]] += 1
    room = np.array([len(m.prefixes) * 99 for m in METROS])
    if (counts > room).any():
        most = int((room / weights).min() * weights.sum()) * N_MONTHS
        raise ValueError(f"rows={rows} is too many: the zip codes of 30 metros hold about {most:,} rows")
    return counts.tolist()


def _panel(metro: Metro, n: int, dice: Dice) -> dict[str, Array]:
    """Complete series of ``n`` zip codes: flat arrays of n x 142 values, zip codes one after another."""
    normal, poisson = dice.rng.standard_normal, dice.rng.poisson
    months, years = (n, N_MONTHS), (n, YEAR_INDEX[-1] + 1)
    prefixes = np.array(metro.prefixes)
    zipcode = np.sort(dice.rng.choice((prefixes[:, None] * 100 + np.arange(1, 100)).ravel(), n, replace=False))

    # steady growth, the surge from mid-2020 to mid-2022, the dip into 2023; a zip code has its own level and slope
    t = np.arange(N_MONTHS)
    trend = np.interp(t, [0, 100, 123, 132, 141], np.cumsum([-metro.growth, metro.growth, metro.surge, -0.04, 0.02]))
    trend = trend + 0.003 * normal(N_MONTHS).cumsum()
    wealth = 0.38 * normal((n, 1))
    level = np.log(metro.price) + trend + wealth + 0.012 * normal((n, 1)) * (t - 100) / 12
    # spring sells dearer than winter, in some metros much more so
    season = (0.03 + 0.04 * dice.rng.random()) * SUMMER
    price = np.exp(level + season + 0.025 * normal(months))
    heat = np.interp(t, [0, 100, 110, 122, 132, 141], [-0.8, 0.2, 1.5, 1.8, 0.6, 0.6]) + 0.35 * SUMMER

    # census: one value a zip code and year
    population = np.exp(9.5 + 1.1 * normal((n, 1)) + 0.01 * normal(years).cumsum(axis=1))
    people = np.round(population.clip(120, 115_000))
    year_level = np.stack([level[:, year == YEAR].mean(axis=1) for year in range(YEAR[0], YEAR[-1] + 1)], axis=1)
    labor = np.round(people * (0.52 + 0.03 * normal(years)))
    census = {
        "Total Population": people,
        "Median Age": np.round((38.5 + 5 * normal((n, 1)) + 0.4 * normal(years)).clip(20, 76), 1),
        "Per Capita Income": np.round(np.exp(10.35 + 0.8 * wealth + 0.02 * np.arange(years[1]) + 0.05 * normal(years))),
        "Total Families Below Poverty": np.round(people * 0.984),
        "Total Housing Units": np.round(people * (0.44 + 0.03 * normal((n, 1)))),
        "Median Rent": np.round(np.exp(7.0 + 0.35 * (year_level - 12.5) + 0.06 * normal(years)).clip(200, 3501)),
        "Median Home Value": np.round(np.exp(year_level - 0.12 + 0.08 * normal(years)).clip(10_000, 2_000_001), -2),
        "Total Labor Force": labor,
        "Unemployed Population": np.round(labor * (0.07 * np.exp(0.35 * normal(years)))),
        "Total School Age Population": np.round(people * 0.966),
        "Total School Enrollment": np.round(people * 0.966),
        "Median Commute Time": np.round(people * (0.44 + 0.03 * normal(years))),
    }
    has_census = ~dice.hit("zero_census", years)
    rate = np.exp(normal((n, len(AMENITIES)))) * (people[:, :1] / 18_000)
    amenities = {name: poisson(rate[:, [i]] * mean, years) for i, (name, mean) in enumerate(AMENITIES.items())}

    # the market of the month
    sqft = 1750 * np.exp(0.4 * wealth + 0.15 * normal((n, 1)) + 0.05 * normal(months))
    sold = 1 + poisson(people[:, :1] * 0.0033 * np.exp(0.25 * SUMMER + 0.1 * heat))
    sale = np.round(price * np.exp(-0.02 + 0.025 * normal(months)))
    # the median of few listings is a rough guide, and luxury asks further above what it fetches
    rough, luxury = 0.02 + 0.3 / np.sqrt(sold), 0.25 * np.maximum(wealth, 0) ** 2
    asked = np.round(price * np.exp(0.04 - 0.01 * heat + luxury + rough * normal(months)))
    market = {
        "median_sale_price": sale,
        "median_list_price": asked,
        "median_ppsf": sale / sqft,
        "median_list_ppsf": asked / (sqft * 1.02),
        "homes_sold": sold,
        "pending_sales": poisson(sold * 1.05),
        "new_listings": poisson(sold * 1.25),
        "inventory": poisson(sold * np.exp(0.1 - 0.35 * heat)),
        "median_dom": (np.round(100 * np.exp(-0.38 * heat + 0.35 * normal(months))) / 2).clip(1, 720),
        "avg_sale_to_list": 0.976 + 0.012 * heat + 0.015 * normal(months),
        "sold_above_list": np.round((0.25 + 0.09 * heat + 0.1 * normal(months)).clip(0, 1) * sold) / sold,
        "off_market_in_two_weeks": np.round((0.28 + 0.12 * heat + 0.11 * normal(months)).clip(0, 1) * sold) / sold,
    }
    has_market = ~dice.hit("zero_market", months)

    # in the order of the published header
    columns = {
        "date": MONTH_END,
        **{name: (values * has_market).astype(float) for name, values in market.items()},
        "city": np.array(metro.city),
        "zipcode": zipcode[:, None],
        "year": YEAR,
        **{name: values[:, YEAR_INDEX].astype(float) for name, values in amenities.items()},
        **{name: (values * has_census)[:, YEAR_INDEX] for name, values in census.items()},
        "price": price,
        "city_full": np.array(metro.city_full),
    }
    return {name: np.broadcast_to(values, months).ravel() for name, values in columns.items()}


def _finish(metro: Metro, columns: dict[str, Array], order: Array, corrected: int, dice: Dice) -> pa.Table:
    """Single-cell defects, then the rows in ``order``, of which the last ``corrected`` get other values."""
    shape = columns["price"].shape
    odd, in_price = dice.hit("outlier", shape), dice.rng.random(shape) < 0.5
    for name, rows in (("price", odd & in_price), ("median_list_price", odd & ~in_price)):
        columns[name] = np.where(rows, dice.rng.choice(PLACEHOLDERS, shape), columns[name])
    empty = {name: dice.hit("empty_cell", shape)[order] for name in MAY_BE_EMPTY}
    name, shouted = metro.city_full, metro.city_full.upper()
    spellings = np.array([name, f" {name}", f"{name}  ", shouted, f"  {shouted} "])
    columns["city_full"] = spellings[np.where(dice.hit("messy_name", shape), dice.rng.integers(1, 5, shape), 0)]

    columns = {name: values[order] for name, values in columns.items()}
    last = slice(len(order) - corrected, None)
    for name in ("price", "median_sale_price", "median_list_price"):
        columns[name][last] = np.round(columns[name][last] * dice.rng.uniform(0.95, 1.05, corrected), 2)
    return pa.table({name: pa.array(values, mask=empty.get(name)) for name, values in columns.items()})
