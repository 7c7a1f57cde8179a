"""The dataset contract: one YAML block beside a staging model, read and validated here.

The block stands in ``warehouse/models/staging/<dataset>/<dataset>.yml`` under ``config.meta.contract`` of the
staging model, so that dbt (Jinja) and Python read the same text. What a contract *means* in SQL is written in
``warehouse/macros/``; this module only says which contracts are legal.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ml.settings import PROJECT_ROOT

STAGING = PROJECT_ROOT / "warehouse" / "models" / "staging"

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Month = Annotated[str, Field(pattern=r"^\d{4}-(0[1-9]|1[0-2])$")]
Share = Annotated[float, Field(ge=0, le=1)]


#: Columns that the models make beside a dataset's own. Its price alone may be called what it is.
TAKEN = frozenset({
    "area", "built_through_batch", "encoding_month", "error_keys", "history_n", "is_price_valid", "labels",
    "last_year_price", "locality", "log_size", "month", "month_of_year", "observation_id", "observed_on",
    "parse_labels", "persistence_price", "price", "price_level", "price_reasons", "reasons", "split", "target",
    "target_offset",
})  # fmt: skip

#: Words of SQL that cannot name a column: those that ``duckdb_keywords()`` calls reserved.
RESERVED_WORDS = frozenset({
    "all", "analyse", "analyze", "and", "any", "array", "as", "asc", "asymmetric", "both", "case", "cast", "check",
    "collate", "column", "constraint", "create", "default", "deferrable", "desc", "describe", "distinct", "do",
    "else", "end", "except", "false", "fetch", "for", "foreign", "from", "group", "having", "in", "initially",
    "intersect", "into", "lambda", "lateral", "leading", "limit", "not", "null", "offset", "on", "only", "or",
    "order", "pivot", "pivot_longer", "pivot_wider", "placing", "primary", "qualify", "references", "returning",
    "select", "show", "some", "summarize", "symmetric", "table", "then", "to", "trailing", "true", "union",
    "unique", "unpivot", "using", "variadic", "when", "where", "window", "with",
})  # fmt: skip


class ContractError(ValueError):
    """A contract is missing or illegal; the message names the file, the field and what is allowed."""


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(_Block):
    """One column of the staging model and how it is treated."""

    name: Name
    source: str | None = Field(default=None, description="header in the file; none: derived in the staging model")
    type: Literal["number", "text", "date"] = "number"
    role: Literal["feature", "key", "price", "leak", "ignore"] = "feature"
    optional: bool = Field(default=False, description="the file may lack this column (then all values are null)")
    required: bool = Field(default=False, description="a row without this value is rejected")
    missing: list[str | float] = Field(default=[], description="values that mean missing: made null, labelled")
    min: float | None = None
    max: float | None = None
    outside: Literal["null", "reject"] = Field(default="null", description="what happens outside min..max")
    format: str | None = Field(default=None, description="strptime format of a date")
    strip: str | None = Field(default=None, description="characters trimmed besides white space")
    encode: Literal["ordinal", "one_hot"] | None = Field(default=None, description="how a text becomes numbers")
    values: list[str] = Field(default=[], description="allowed values of an encoded text, in order")
    relative: bool = Field(default=False, description="in units of price: also a feature relative to the price level")
    known: Literal["always", "after_month"] = Field(default="always", description="when the value is known")
    unit: str | None = None
    description: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.encode and not self.values:
            raise ValueError(f"column {self.name}: encode={self.encode} needs values")
        if self.encode and self.type != "text":
            raise ValueError(f"column {self.name}: encode is for type text, not {self.type}")
        if self.type == "date" and not self.format and self.source:
            raise ValueError(f"column {self.name}: a date needs a format, for example '%Y-%m-%d'")
        if self.role == "leak" and not self.description:
            raise ValueError(f"column {self.name}: say in description why a leak is excluded")
        return self


class Encoding(_Block):
    """Point-in-time table over one key set: mean log price, n and frequency of the months back."""

    name: Name
    keys: list[Name]
    bands: dict[Name, Annotated[float, Field(gt=0)]] = Field(
        default={}, description="number columns among the keys, each in bands so many units wide: storey_mid: 6"
    )
    months_back: tuple[int, int] = Field(description="first and last month before the row's month, 1 is last month")
    features: list[Literal["value", "n", "frequency"]] = Field(
        default=["value", "n"],
        description="what of it the model sees; n of a whole market is a clock that drifts, so leave it out there",
    )
    indexed: bool = Field(
        default=False,
        description="bring past prices to the as-of market (market_index): the window holds a premium, not the trend",
    )
    changes: list[Annotated[int, Field(ge=1)]] = Field(
        default=[], description="also the change of its mean against so many months before"
    )
    differs_in: Name | None = Field(
        default=None, description="number column; also how far the row is from the mean of its history in it"
    )

    @model_validator(mode="after")
    def _strictly_earlier(self) -> Self:
        _check_window(f"encoding {self.name}", self.months_back)
        return self

    @property
    def key_words(self) -> list[str]:
        """Keys as readers are told of them: ``storey_mid by 6`` where one is cut into bands."""
        return [f"{key} by {self.bands[key]:g}" if key in self.bands else key for key in self.keys]


class ErrorGroup(_Block):
    """Homes whose prices a version is likely to miss alike."""

    keys: list[Name] = Field(min_length=1)
    prior: float = Field(gt=0, description="the wider group's mean error counts as much as so many errors of its own")


class RecentErrors(_Block):
    """Errors of the months before that are carried over to the month that is priced; see ml/recent_errors.py."""

    months_back: tuple[int, int] = Field(description="first and last month before the row's month, 1 is last month")
    groups: list[ErrorGroup] = Field(min_length=1, description="from wide to narrow")

    @model_validator(mode="after")
    def _strictly_earlier(self) -> Self:
        _check_window("recent_errors", self.months_back)
        return self


class Split(_Block):
    """By time when there is a date: eval = the last ``eval_months`` through ``trained_through``; else by hash."""

    trained_through: Month | None = None
    eval_months: int = Field(default=12, ge=1)
    refit: bool = Field(
        default=False,
        description="after evaluation, fit again on train + eval; with how many rounds: refit_rounds in ml/params.yml",
    )
    eval_share: Share | None = None
    holdout_share: Share | None = None


class Folds(_Block):
    """Folds on which choices are made. They end with the evaluation window, so that the holdout is never touched."""

    method: Literal["time", "hash"] | None = Field(
        default=None, description="time: rolling origins; hash: by a hash of the key; none: time where there are dates"
    )
    count: int = Field(default=4, ge=2, le=20)
    test_months: int = Field(default=6, ge=1, description="months scored by a fold, for method time")
    gap_months: int = Field(default=0, ge=0, description="months before them whose prices are not known yet")


class Gate(_Block):
    """What a version must reach on the eval window to be promoted."""

    min_r2: float = 0.85
    max_mdape_pct: float | None = None
    better_than_baselines: bool = True
    min_compared_rows: int = Field(default=30, ge=1, description="a baseline with fewer priced rows is not compared")


class Retraining(_Block):
    """When evidence against the champion may start a training; what counts as evidence is SQL and a seed."""

    min_new_labels: int = Field(default=300, ge=1, description="prices known since the newest training")
    cooldown_months: int = Field(default=3, ge=0, description="months between two trainings")
    max_attempts: int = Field(default=3, ge=1, description="runs that may die before a person is asked")


class Promotion(_Block):
    """What a challenger needs to replace the champion; both are compared on rows that neither learned from."""

    mode: Literal["auto", "manual", "canary"] = Field(
        default="auto", description="auto: as SQL decides; manual: by `housing promote`; canary: serves a share first"
    )
    window_months: int = Field(default=6, ge=1, description="newest months compared")
    min_rows: int = Field(default=100, ge=30, description="rows that both priced, for a verdict")
    margin_pct: float = Field(default=1.0, ge=0, description="least reduction of the mean absolute % error, relative")
    max_segment_loss_pct: float = Field(default=15.0, gt=0, description="no area may get worse by more, relative")
    shadow_months: int = Field(default=2, ge=1, description="months after which an undecided challenger is rejected")
    canary_share: Share = Field(default=0.1, description="share of keys, by hash, that a canary challenger serves")
    canary_months: int = Field(default=2, ge=1, description="months a canary serves before it is decided")


class Landing(_Block):
    """How far a landed file may stray before it is quarantined whole."""

    max_unparsable_share: Share = 0.02
    max_missing_key_share: Share = 0.0
    max_missing_date_share: Share = 0.01
    max_implausible_share: Share = 0.2


class Contract(_Block):
    """Everything the system knows about a dataset. Column names are those of the staging model."""

    name: Name
    title: str
    currency: str
    key: list[Name] = Field(min_length=1, description="natural key; observation_id is its hash")
    observed_on: Name | None = Field(description="date column; null: the dataset has no dates")
    first_month: Month = Field(default="1970-01", description="first month that can be scored; starts the partitions")
    price: Name
    size: Name | None = Field(default=None, description="price levels are per unit of this column")
    area: Name
    locality: Name
    columns: list[Column] = Field(min_length=1)
    encodings: list[Encoding] = []
    smoothing: float = Field(default=5.0, ge=0, description="rows of the overall mean mixed into each encoding")
    level: list[Name] = Field(default=[], description="as-of price level: first known of these encodings or columns")
    persistence: list[Name] = Field(default=[], description="last known price of the place: first encoding with n > 0")
    history: Name | None = Field(
        default=None, description="encoding whose n says how much is known of the place; default: first of persistence"
    )
    like_for_like: Name | None = Field(
        default=None, description="encoding within whose keys homes are alike; the market index compares only those"
    )
    last_year: Name | None = Field(default=None, description="encoding that is the same month of last year")
    recent_errors: RecentErrors | None = Field(
        default=None, description="correct prices by what the version missed by lately, in groups of homes"
    )
    split: Split
    folds: Folds = Folds()
    gate: Gate = Gate()
    retraining: Retraining = Retraining()
    promotion: Promotion = Promotion()
    landing: Landing = Landing()

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [c.name for c in self.columns]
        if repeated := _repeated(names):
            raise ValueError(f"columns: repeated names {repeated}")
        if _repeated([e.name for e in self.encodings]):
            raise ValueError("encodings: repeated names")
        taken = [n for n in names if n in RESERVED_WORDS or (n in TAKEN and n != self.price)]
        if taken:
            raise ValueError(f"columns: {taken[0]!r} is a word of SQL or a name of the models' own; choose another")
        if repeated := _repeated(self.features):
            raise ValueError(
                f"columns: two features are called {repeated[0]}; values of one_hot need letters a-z or digits of "
                "their own, and no column is called like the feature of an encoding"
            )
        return self

    @model_validator(mode="after")
    def _references(self) -> Self:
        names = [c.name for c in self.columns]
        encodings = [e.name for e in self.encodings]

        def known(field: str, wanted: list[str], allowed: list[str]) -> None:
            for name in wanted:
                if name not in allowed:
                    raise ValueError(f"{field}: {name!r} is not one of {', '.join(allowed) or '(none defined)'}")

        known("key", self.key, names)
        known("area", [self.area], names)
        known("locality", [self.locality], names)
        known("price", [self.price], [c.name for c in self.columns if c.role == "price"])
        if self.observed_on:
            known("observed_on", [self.observed_on], [c.name for c in self.columns if c.type == "date"])
        if self.size:
            known("size", [self.size], [c.name for c in self.columns if c.type == "number"])
        usable = [c.name for c in self.columns if c.role == "feature" and c.type == "number"]
        telling = {c.name for c in self.columns if c.role in {"price", "leak"}}
        for encoding in self.encodings:
            # a key of the price itself would look its own row's price up
            keys = [*(name for name in names if name not in telling), "area", "locality"]
            known(f"encodings.{encoding.name}.keys", encoding.keys, keys)
            numbers = [name for name in encoding.keys if name in usable]
            known(f"encodings.{encoding.name}.bands", list(encoding.bands), numbers)
            compared = [encoding.differs_in] if encoding.differs_in else []
            # never the price, nor what leaks it: the row's own value enters the feature
            known(f"encodings.{encoding.name}.differs_in", compared, usable)
        known("level", self.level, [*encodings, *usable])
        known("persistence", self.persistence, encodings)
        known("history", [self.history] if self.history else [], encodings)
        known("like_for_like", [self.like_for_like] if self.like_for_like else [], encodings)
        known("last_year", [self.last_year] if self.last_year else [], encodings)
        for group in self.recent_errors.groups if self.recent_errors else []:
            known("recent_errors.groups.keys", group.keys, [*(set(names) - {self.price}), "area", "locality"])
        if self.recent_errors and not self.encodings:
            raise ValueError("recent_errors: the newest month is that of the encodings; there are none")
        if self.observed_on and not self.split.trained_through:
            raise ValueError("split.trained_through: a dataset with dates is split by time, for example '2021-12'")
        if not self.observed_on and (self.split.eval_share is None or self.split.holdout_share is None):
            raise ValueError("split: a dataset without dates needs eval_share and holdout_share")
        if self.observed_on and self.first_month == "1970-01":
            raise ValueError(
                "first_month: a dataset with dates needs the first month that can be scored, like '2017-01'"
            )
        if not self.observed_on and self.folds.method == "time":
            raise ValueError("folds.method: without dates there is no time to roll over; use 'hash' or leave it out")
        if not self.observed_on and self.encodings:
            raise ValueError(
                "encodings: without dates nothing is strictly earlier; remove encodings or add observed_on"
            )
        return self

    @property
    def sources(self) -> dict[str, Column]:
        """Columns that a file brings, by their header in the file."""
        return {c.source: c for c in self.columns if c.source is not None}

    @property
    def required_headers(self) -> list[str]:
        """Headers without which a file is quarantined. The price is not among them: rows to be scored have none."""
        return [h for h, c in self.sources.items() if not c.optional and c.role != "price"]

    @property
    def features(self) -> list[str]:
        """Names of the model's inputs, in order: exactly the feature columns of the dbt model ``features``."""
        out: list[str] = ["month_of_year"] if self.observed_on else []
        for c in self.columns:
            if c.role != "feature" or (c.type == "text" and not c.encode) or c.type == "date":
                continue
            if c.encode == "one_hot":
                out += [f"{c.name}_is_{slug(v)}" for v in c.values]
                continue
            out.append(c.name)
            if c.relative:
                out.append(f"{c.name}_to_level")
        suffixes = {"value": "to_level", "n": "n", "frequency": "frequency"}
        for e in self.encodings:
            out += [f"{e.name}_{suffix}" for feature, suffix in suffixes.items() if feature in e.features]
            out += [f"{e.name}_change_{months}m" for months in e.changes]
            out += [f"{e.name}_{e.differs_in}_difference"] if e.differs_in else []
        return out


def _repeated(names: list[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _check_window(whose: str, months_back: tuple[int, int]) -> None:
    first, last = months_back
    if first < 1:
        raise ValueError(f"{whose}: months_back starts at 1 (strictly earlier months), not {first}")
    if last < first:
        raise ValueError(f"{whose}: months_back [{first}, {last}] is empty")


def slug(value: str) -> str:
    """A category value as part of a column name; the Jinja macro ``slug`` does the same."""
    return "".join(ch if ch.isascii() and ch.isalnum() else "_" for ch in value.lower())


def month_date(month: str) -> dt.date:
    """First day of ``YYYY-MM``. Raises ValueError with one sentence otherwise."""
    try:
        return dt.datetime.strptime(month, "%Y-%m").date()
    except ValueError:
        raise ValueError(f"{month!r} is not a month; write YYYY-MM, for example 2022-01") from None


def add_months(month: dt.date, months: int) -> dt.date:
    """First day of the month so many months later (earlier when negative)."""
    number = month.year * 12 + month.month - 1 + months
    return dt.date(number // 12, number % 12 + 1, 1)


def available(root: Path = STAGING) -> list[str]:
    """Names of all datasets with a contract."""
    return sorted(p.parent.name for p in root.glob("*/*.yml") if p.stem == p.parent.name)


def load(dataset: str, root: Path = STAGING) -> Contract:
    """Contract of a dataset. Raises ContractError naming file, field and allowed values."""
    path = root / dataset / f"{dataset}.yml"
    if not path.is_file():
        raise ContractError(f"unknown dataset {dataset!r}; known are: {', '.join(available(root))}")
    document = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)  # eight times faster than safe_load
    try:
        block: dict[str, Any] = next(
            m["config"]["meta"]["contract"] for m in document["models"] if m["name"] == f"stg_{dataset}__observations"
        )
    except (KeyError, StopIteration, TypeError):
        raise ContractError(
            f"{path}: no config.meta.contract under a model named stg_{dataset}__observations"
        ) from None
    try:
        return Contract.model_validate({"name": dataset, **block})
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in e['loc']) or 'contract'}: {e['msg']} (got {str(e['input'])[:60]!r})"
            for e in error.errors()
        )
        raise ContractError(f"{path}: {problems}") from None
