"""The dataset contract: one YAML block beside a staging model, read and validated here.

The block stands in ``warehouse/models/staging/<dataset>/<dataset>.yml`` under ``config.meta.contract`` of the
staging model, so that dbt (Jinja) and Python read the same text. What a contract *means* in SQL is written in
``warehouse/macros/``; this module only says which contracts are legal.
"""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ml.refusals import Place, place_in, refusals
from ml.reserved import LOADING, RESERVED_WORDS, STEPS, SUFFIXES, TAKEN
from ml.settings import PROJECT_ROOT

STAGING = PROJECT_ROOT / "warehouse" / "models" / "staging"

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Month = Annotated[str, Field(pattern=r"^\d{4}-(0[1-9]|1[0-2])$")]
Share = Annotated[float, Field(ge=0, le=1)]


#: Directives of a date's format that the warehouse and the API both read.
DIRECTIVES = frozenset("aAbBdfHIjmMpSyYzZ%")


class ContractError(ValueError):
    """A contract is missing or illegal; the message names the file, the field and what is allowed."""


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, given: Any) -> Any:
        unknown = [name for name in given if name not in cls.model_fields] if isinstance(given, dict) else []
        if unknown:
            raise ValueError(f"there is no field {unknown[0]!r}; known are: {', '.join(cls.model_fields)}")
        return given


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

    @field_validator("outside", mode="before")
    @classmethod
    def _null_is_a_word(cls, given: Any) -> Any:
        return "null" if given is None else given  # YAML reads a bare null as nothing

    @field_validator("missing", "values", mode="before")
    @classmethod
    def _no_booleans(cls, given: Any) -> Any:
        if isinstance(given, list) and any(isinstance(value, bool) for value in given):
            raise ValueError("YAML reads yes, no, on, off, true and false as booleans; write the text in quotes: 'no'")
        return given

    @field_validator("source")
    @classmethod
    def _header(cls, source: str | None) -> str | None:
        if source is not None and (not source or source != source.strip()):
            raise ValueError(
                f"{source!r} is no header; write it without blanks around it, or leave the line out for a column that "
                "the staging model derives"
            )
        if source is not None and source.casefold() in LOADING:
            raise ValueError(f"{source!r} is a column that loading fills itself; rename it in the file")
        return source

    @field_validator("format")
    @classmethod
    def _readable_date(cls, written: str | None) -> str | None:
        if written is None:
            return written
        example = "write for example '%d/%m/%Y' for 31/12/2023"
        if "'" in written:
            raise ValueError(f"{written!r} holds a quotation mark, which no date does; {example}")
        directives = re.findall("%(.?)", written)
        if unknown := [f"%{d}" for d in directives if d not in DIRECTIVES]:
            known = ", ".join(f"%{d}" for d in sorted(DIRECTIVES))
            raise ValueError(f"{written!r} holds {unknown[0]!r}, which is none of {known}; {example}")
        if not {"Y", "y"} & {*directives} or not {"m", "b", "B", "j"} & {*directives}:
            raise ValueError(f"{written!r} does not tell year and month; {example}")
        return written

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.encode and not self.values:
            raise ValueError(f"encode={self.encode} needs values")
        if self.encode and self.type != "text":
            raise ValueError(f"encode is for type text, not {self.type}")
        if repeated := _repeated(self.values):
            raise ValueError(f"values: {repeated[0]!r} stands there twice; name each value once")
        if self.type == "date" and not self.format and self.source:
            raise ValueError("a date needs a format, for example '%Y-%m-%d'")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}, so no value would be left; correct one")
        if self.role == "price" and self.type != "number":
            raise ValueError(f"a price is of type number, not {self.type}; correct type or role")
        if self.role == "price" and self.source is None:
            raise ValueError(
                "a price needs a source, because prices that become known later are landed under its header; let the "
                "file bring it ready, as a number with a point"
            )
        if self.role == "leak" and not self.description:
            raise ValueError("say in description why a leak is excluded")
        return self

    @property
    def is_never_null(self) -> bool:
        """Rows without this value are rejected, however it was lost."""
        return self.required and (self.outside == "reject" or (self.min is None and self.max is None))

    @property
    def own_features(self) -> list[str]:
        """Features that are made of this column alone and not in relation to the price level; mostly itself."""
        if self.role != "feature" or (self.type == "text" and not self.encode) or self.type == "date":
            return []
        return [f"{self.name}_is_{slug(v)}" for v in self.values] if self.encode == "one_hot" else [self.name]


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
        if self.name in RESERVED_WORDS | TAKEN | STEPS:
            raise ValueError(f"{self.name!r} is a word of SQL or a name of the models' own; choose another, as all_12m")
        _check_window(self.months_back)
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
        _check_window(self.months_back)
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
        sources = [c.source.casefold() for c in self.columns if c.source is not None]
        if repeated := _repeated(sources):
            twice = [c for c in self.columns if (c.source or "").casefold() == repeated[0]]
            raise ValueError(
                f"columns: {' and '.join(c.name for c in twice)} have the same source {twice[0].source!r}; keep one, "
                "and derive the other in the staging model"
            )
        taken = [n for n in names if n in RESERVED_WORDS or (n in TAKEN and n != self.price)]
        if taken:
            raise ValueError(f"columns: {taken[0]!r} is a word of SQL or a name of the models' own; choose another")
        made = {f"{e.name}_{suffix}": e.name for e in self.encodings for suffix in SUFFIXES}
        if double := sorted(made.keys() & {*names}):
            raise ValueError(
                f"columns: {double[0]!r} is also what the models make of the encoding {made[double[0]]}; rename one"
            )
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

        prices = [c.name for c in self.columns if c.role == "price"]
        known("price", [self.price], prices)
        if len(prices) > 1:
            raise ValueError(
                f"columns: {' and '.join(prices)} have the role price; keep one, and make the other a leak"
            )
        known("key", self.key, [name for name in names if name != self.price])
        if self.observed_on:
            known("observed_on", [self.observed_on], [c.name for c in self.columns if c.type == "date"])
        if self.size:
            known("size", [self.size], [c.name for c in self.columns if c.type == "number"])
        usable = [c.name for c in self.columns if c.role == "feature" and c.type == "number"]
        telling = {c.name for c in self.columns if c.role in {"price", "leak"}}
        places = [name for name in names if name not in telling]
        known("area", [self.area], places)
        known("locality", [self.locality], places)
        never_null = {c.name for c in self.columns if c.is_never_null}
        for encoding in self.encodings:
            # a key of the price itself would look its own row's price up
            known(f"encodings.{encoding.name}.keys", encoding.keys, [*places, "area", "locality"])
            if len(encoding.keys) == 1:
                (key,) = encoding.keys
                name = {"area": self.area, "locality": self.locality}.get(key, key)
                if name not in never_null:
                    raise ValueError(
                        f"encodings.{encoding.name}.keys: rows without {name} would have no key; give the column "
                        "`required: true`, and `outside: reject` if it has bounds, or add a second key"
                    )
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
            known("recent_errors.groups.keys", group.keys, [*places, "area", "locality"])
        if self.promotion.mode == "canary" and not self.observed_on:
            raise ValueError(
                "promotion.mode: a canary serves for months, which this dataset has none of; auto or manual"
            )
        if self.recent_errors and not self.encodings:
            raise ValueError("recent_errors: the newest month is that of the encodings; there are none")
        return self

    @model_validator(mode="after")
    def _dates(self) -> Self:
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
            out += c.own_features
            if c.own_features == [c.name] and c.relative:
                out.append(f"{c.name}_to_level")
        suffixes = {"value": "to_level", "n": "n", "frequency": "frequency"}
        for e in self.encodings:
            out += [f"{e.name}_{suffix}" for feature, suffix in suffixes.items() if feature in e.features]
            out += [f"{e.name}_change_{months}m" for months in e.changes]
            out += [f"{e.name}_{e.differs_in}_difference"] if e.differs_in else []
        return out


def _repeated(names: list[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _check_window(months_back: tuple[int, int]) -> None:
    first, last = months_back
    if first < 1:
        raise ValueError(f"months_back starts at 1 (strictly earlier months), not {first}")
    if last < first:
        raise ValueError(f"months_back [{first}, {last}] is empty")


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
    if dataset not in available(root):
        raise ContractError(f"unknown dataset {dataset!r}; known are: {', '.join(available(root))}")
    path = root / dataset / f"{dataset}.yml"
    block = {"name": dataset, **_block(path, f"stg_{dataset}__observations")}
    if nothing := _nothing(block):
        raise ContractError(f"{path}: {place_in(block, nothing)}: there is no value; write one, or leave the line out")
    try:
        return Contract.model_validate(block)
    except ValidationError as error:
        raise ContractError(f"{path}: {refusals(error, lambda place: place_in(block, place))}") from None


def _block(path: Path, model: str) -> dict[str, Any]:
    """The contract as YAML gives it, to Jinja as well."""
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)  # eight times faster than safe_load
    except UnicodeDecodeError as error:
        raise ContractError(f"{path}: byte {error.start:,} is not UTF-8; save the file as UTF-8") from None
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        where = f", line {mark.line + 1}" if mark else ""
        what = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error)
        raise ContractError(
            f"{path}{where}: this is not YAML ({what}); look there and above for a missing bracket or quotation mark, "
            "a tab, or a colon in a text without quotes"
        ) from None
    try:
        block = next(m["config"]["meta"]["contract"] for m in document["models"] if m.get("name") == model)
    except (AttributeError, KeyError, StopIteration, TypeError):
        raise ContractError(f"{path}: no config.meta.contract under a model named {model}") from None
    if not isinstance(block, dict):
        raise ContractError(
            f"{path}: config.meta.contract of {model} holds no fields; docs/adding_a_dataset.md has one"
        )
    return block


def _nothing(given: Any, place: Place = ()) -> Place | None:
    """Where the contract says null and means nothing: Jinja would take it for a value."""
    if given is None:
        stands_for_something = place == ("observed_on",) or (place[0] == "columns" and place[-1] == "outside")
        return None if stands_for_something else place
    inside = given.items() if isinstance(given, dict) else enumerate(given) if isinstance(given, list) else ()
    return next(filter(None, (_nothing(value, (*place, key)) for key, value in inside)), None)
