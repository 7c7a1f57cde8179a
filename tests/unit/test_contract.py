"""Contracts: the shipped ones load, a wrong one is refused with the field and what is allowed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from dagster_project.raw import structure
from ml.contract import (
    Contract,
    ContractError,
    Promotion,
    Retraining,
    available,
    load,
    month_date,
    slug,
)
from ml.reserved import LOADING, RESERVED_WORDS
from ml.settings import PROJECT_ROOT

TOY: dict[str, Any] = {
    "title": "Toy",
    "currency": "EUR",
    "key": ["id"],
    "observed_on": "sold_on",
    "first_month": "2018-01",
    "price": "paid",
    "size": "area_sqm",
    "area": "town",
    "locality": "town",
    "columns": [
        {"name": "id", "source": "Id", "type": "text", "role": "key", "required": True},
        {"name": "sold_on", "source": "Sold", "type": "date", "format": "%Y-%m-%d", "role": "ignore"},
        {"name": "town", "source": "Town", "type": "text", "required": True},
        {"name": "kind", "source": "Kind", "type": "text", "encode": "one_hot", "values": ["Flat", "Row house"]},
        {"name": "state", "source": "State", "type": "text", "encode": "ordinal", "values": ["bad", "good"]},
        {"name": "area_sqm", "source": "Area", "relative": True, "optional": True},
        {"name": "fee", "source": "Fee", "role": "leak", "description": "Known only with the price"},
        {"name": "paid", "source": "Price", "role": "price"},
    ],
    "encodings": [
        {"name": "town_3m", "keys": ["town"], "months_back": [1, 3], "features": ["value", "n", "frequency"]},
        {"name": "town_last_year", "keys": ["town"], "months_back": [12, 12]},
    ],
    "level": ["town_3m"],
    "persistence": ["town_3m"],
    "last_year": "town_last_year",
    "split": {"trained_through": "2021-12"},
}


def load_toy(root: Path, change: Callable[[dict[str, Any]], Any] = lambda block: None) -> Contract:
    """The toy contract with one change, written to a file and loaded from it."""
    block = copy.deepcopy(TOY)
    change(block)
    folder = root / "toy"
    folder.mkdir(exist_ok=True)
    model = {"name": "stg_toy__observations", "config": {"meta": {"contract": block}}}
    (folder / "toy.yml").write_text(yaml.safe_dump({"models": [model]}), encoding="utf-8")
    return load("toy", root)


def column(block: dict[str, Any], name: str) -> dict[str, Any]:
    return next(c for c in block["columns"] if c["name"] == name)


@pytest.mark.parametrize("dataset", available())
def test_each_shipped_contract_loads_and_names_its_dataset(dataset: str) -> None:
    contract = load(dataset)
    assert contract.name == dataset
    assert contract.features
    assert len(set(contract.features)) == len(contract.features)


def test_the_four_datasets_are_shipped() -> None:
    assert {"ames", "hdb", "house_data", "housets"} <= set(available())


def test_an_unknown_dataset_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(ContractError, match=r"unknown dataset 'paris'; known are: ames, hdb, house_data, housets"):
        load("paris")


def test_a_correct_contract_passes(tmp_path: Path) -> None:
    assert load_toy(tmp_path).title == "Toy"
    assert available(tmp_path) == ["toy"]


# what is changed, and what the sentence must name: the field, then the value or what is allowed
WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], list[str]]] = {
    "missing field": (lambda b: b.pop("title"), ["title: is missing; add it"]),
    "unknown field": (
        lambda b: b.update(colour="red"),
        ["there is no field 'colour'; known are: name, title, currency"],
    ),
    "unknown column field": (
        lambda b: b["columns"][0].update(unitt="m"),
        ["columns.id: there is no field 'unitt'; known are: name, source"],
    ),
    "no columns": (lambda b: b.update(columns=[]), ["columns", "at least 1 item"]),
    "no key": (lambda b: b.update(key=[]), ["key", "at least 1 item"]),
    "key that is no column": (lambda b: b.update(key=["nr"]), ["key: 'nr' is not one of id, sold_on, town"]),
    "area that is no column": (lambda b: b.update(area="region"), ["area: 'region' is not one of id"]),
    "locality that is no column": (lambda b: b.update(locality="road"), ["locality: 'road' is not one of id"]),
    "price that has another role": (lambda b: b.update(price="area_sqm"), ["price: 'area_sqm' is not one of paid"]),
    "date that is a number": (lambda b: b.update(observed_on="paid"), ["observed_on: 'paid' is not one of sold_on"]),
    "size that is a text": (lambda b: b.update(size="town"), ["size: 'town' is not one of area_sqm, fee, paid"]),
    "repeated column": (lambda b: b["columns"].append(b["columns"][2]), ["repeated names", "town"]),
    "repeated encoding": (lambda b: b["encodings"].append(b["encodings"][0]), ["encodings: repeated names"]),
    "a name of the models' own": (
        lambda b: b["columns"].append({"name": "month", "source": "Month"}),
        ["columns: 'month' is a word of SQL or a name of the models' own"],
    ),
    "a word of SQL": (
        lambda b: b["columns"].append({"name": "group", "source": "Group"}),
        ["columns: 'group' is a word of SQL"],
    ),
    "values that make one name": (
        lambda b: column(b, "kind").update(values=["\u6d77", "\u5c71"]),
        ["two features are called kind_is__"],
    ),
    "encoding by the price": (
        lambda b: b["encodings"][0].update(keys=["paid"]),
        ["encodings.town_3m.keys: 'paid' is not one of id, sold_on, town"],
    ),
    "encoding by a leak": (lambda b: b["encodings"][0].update(keys=["fee"]), ["keys: 'fee' is not one of id"]),
    "column name with blanks": (
        lambda b: b["columns"][2].update(name="The Town"),
        ["columns.The Town.name", "pattern"],
    ),
    "unknown type": (lambda b: column(b, "town").update(type="string"), ["type", "'number', 'text' or 'date'"]),
    "unknown role": (lambda b: column(b, "town").update(role="target"), ["role", "'feature', 'key', 'price', 'leak'"]),
    "unknown way to encode": (lambda b: column(b, "kind").update(encode="hash"), ["encode", "'ordinal' or 'one_hot'"]),
    "encoding without values": (lambda b: column(b, "kind").pop("values"), ["kind: encode=one_hot needs values"]),
    "encoded number": (lambda b: column(b, "kind").update(type="number"), ["kind: encode is for type text"]),
    "date without a format": (lambda b: column(b, "sold_on").pop("format"), ["sold_on: a date needs a format"]),
    "leak without a reason": (lambda b: column(b, "fee").pop("description"), ["fee: say in description why"]),
    "bounds treated unknown": (lambda b: column(b, "paid").update(outside="drop"), ["outside", "'null' or 'reject'"]),
    "encoding of no column": (
        lambda b: b["encodings"][0].update(keys=["road"]),
        ["encodings.town_3m.keys: 'road' is not one of id"],
    ),
    "bands of a text": (
        lambda b: b["encodings"][0].update(bands={"town": 3}),
        ["encodings.town_3m.bands: 'town' is not one of (none defined)"],
    ),
    "bands of what is no key": (
        lambda b: b["encodings"][0].update(bands={"area_sqm": 10}),
        ["encodings.town_3m.bands: 'area_sqm' is not one of (none defined)"],
    ),
    "bands without width": (
        lambda b: b["encodings"][0].update(keys=["town", "area_sqm"], bands={"area_sqm": 0}),
        ["encodings.town_3m.bands.area_sqm", "greater than 0"],
    ),
    "difference in the price": (
        lambda b: b["encodings"][0].update(differs_in="paid"),
        ["encodings.town_3m.differs_in: 'paid' is not one of area_sqm"],
    ),
    "difference in a leak": (
        lambda b: b["encodings"][0].update(differs_in="fee"),
        ["encodings.town_3m.differs_in: 'fee' is not one of area_sqm"],
    ),
    "change against this month": (
        lambda b: b["encodings"][0].update(changes=[0]),
        ["encodings.town_3m.changes.0", "greater than or equal to 1"],
    ),
    "history of nothing known": (lambda b: b.update(history="x"), ["history: 'x' is not one of town_3m"]),
    "one fold": (lambda b: b.update(folds={"count": 1}), ["folds.count", "greater than or equal to 2"]),
    "undated folds by time": (
        lambda b: b.update(observed_on=None, split={"eval_share": 0.2, "holdout_share": 0.2}, folds={"method": "time"}),
        ["folds.method: without dates there is no time to roll over"],
    ),
    "level of nothing known": (lambda b: b.update(level=["x"]), ["level: 'x' is not one of town_3m, town_last_year"]),
    "persistence of a column": (
        lambda b: b.update(persistence=["area_sqm"]),
        ["persistence: 'area_sqm' is not one of"],
    ),
    "last year of nothing known": (lambda b: b.update(last_year="x"), ["last_year: 'x' is not one of town_3m"]),
    "month 13": (lambda b: b["split"].update(trained_through="2021-13"), ["split.trained_through", "pattern"]),
    "no month to train through": (lambda b: b.update(split={}), ["split.trained_through", "'2021-12'"]),
    "no month to score from": (lambda b: b.pop("first_month"), ["first_month", "'2017-01'"]),
    "empty evaluation": (
        lambda b: b["split"].update(eval_months=0),
        ["split.eval_months", "greater than or equal to 1"],
    ),
    "share above one": (lambda b: b["split"].update(eval_share=1.5), ["split.eval_share", "less than or equal to 1"]),
    "negative smoothing": (lambda b: b.update(smoothing=-1), ["smoothing", "greater than or equal to 0"]),
    "undated without shares": (lambda b: b.update(observed_on=None), ["needs eval_share and holdout_share"]),
    "price that the staging model makes": (
        lambda b: column(b, "paid").pop("source"),
        ["columns.paid: a price needs a source", "later are landed under its header"],
    ),
    "price as a text": (
        lambda b: column(b, "paid").update(type="text"),
        ["columns.paid: a price is of type number, not text"],
    ),
    "two prices": (
        lambda b: b["columns"].append({"name": "asked", "source": "Asked", "role": "price"}),
        ["columns: paid and asked have the role price"],
    ),
    "price as a key": (lambda b: b.update(key=["id", "paid"]), ["key: 'paid' is not one of id, sold_on, town"]),
    "price as an area": (lambda b: b.update(area="paid"), ["area: 'paid' is not one of id, sold_on, town"]),
    "recent errors by a leak": (
        lambda b: b.update(recent_errors={"months_back": [1, 6], "groups": [{"keys": ["fee"], "prior": 10}]}),
        ["recent_errors.groups.keys: 'fee' is not one of id"],
    ),
    "leak as a locality": (lambda b: b.update(locality="fee"), ["locality: 'fee' is not one of id"]),
    "encoding called like a word of SQL": (
        lambda b: b["encodings"].append({"name": "all", "keys": [], "months_back": [1, 3]}),
        ["encodings.all: 'all' is a word of SQL", "choose another, as all_12m"],
    ),
    "encoding called like a step of the models": (
        lambda b: b["encodings"].append({"name": "unseen", "keys": [], "months_back": [1, 3]}),
        ["encodings.unseen: 'unseen' is a word of SQL or a name of the models' own"],
    ),
    "column called like a part of an encoding": (
        lambda b: b["columns"].append({"name": "town_3m_mean", "source": "M", "role": "ignore"}),
        ["columns: 'town_3m_mean' is also what the models make of the encoding town_3m"],
    ),
    "encoding by a column that may be null": (
        lambda b: column(b, "town").pop("required"),
        ["encodings.town_3m.keys: rows without town would have no key", "required: true"],
    ),
    "encoding by an area that may be null": (
        lambda b: (column(b, "town").pop("required"), b["encodings"][0].update(keys=["area"])),
        ["encodings.town_3m.keys: rows without town would have no key"],
    ),
    "encoding by a number that its bounds make null": (
        lambda b: (
            column(b, "area_sqm").update(required=True, min=10),
            b["encodings"][0].update(keys=["area_sqm"]),
        ),
        ["encodings.town_3m.keys: rows without area_sqm would have no key", "outside: reject"],
    ),
    "null as a way to encode": (
        lambda b: column(b, "town").update(encode=None),
        ["columns.town.encode: there is no value", "leave the line out"],
    ),
    "null as a bound": (lambda b: column(b, "paid").update(min=None), ["columns.paid.min: there is no value"]),
    "null as a source": (lambda b: column(b, "fee").update(source=None), ["columns.fee.source: there is no value"]),
    "null as a size": (lambda b: b.update(size=None), ["size: there is no value"]),
    "one source twice": (
        lambda b: column(b, "state").update(source="KIND"),
        ["columns: kind and state have the same source 'Kind'"],
    ),
    "source of loading": (lambda b: column(b, "state").update(source="_FILE"), ["'_FILE' is a column that loading"]),
    "source without a name": (
        lambda b: column(b, "state").update(source=""),
        ["columns.state.source: '' is no header"],
    ),
    "source with blanks": (lambda b: column(b, "state").update(source=" State"), ["' State' is no header"]),
    "bounds crossed": (lambda b: column(b, "paid").update(min=9, max=1), ["columns.paid: min 9 is above max 1"]),
    "no as a text": (lambda b: column(b, "kind").update(missing=[False]), ["columns.kind.missing", "in quotes: 'no'"]),
    "value twice": (
        lambda b: column(b, "state").update(values=["bad", "good", "bad"]),
        ["columns.state: values: 'bad' stands there twice"],
    ),
    "format of a spreadsheet": (
        lambda b: column(b, "sold_on").update(format="DD/MM/YYYY"),
        ["columns.sold_on.format: 'DD/MM/YYYY' does not tell year and month", "'%d/%m/%Y'"],
    ),
    "format without a year": (lambda b: column(b, "sold_on").update(format="%d/%m"), ["does not tell year and month"]),
    "format that nobody reads": (
        lambda b: column(b, "sold_on").update(format="%d/%q/%Y"),
        ["'%d/%q/%Y' holds '%q', which is none of %%, %A"],
    ),
    "format with a quotation mark": (
        lambda b: column(b, "sold_on").update(format="%d'%m'%Y"),
        ["holds a quotation mark"],
    ),
    "undated with encodings": (
        lambda b: b.update(observed_on=None, split={"eval_share": 0.2, "holdout_share": 0.2}),
        ["encodings: without dates nothing is strictly earlier"],
    ),
}


def test_a_canary_needs_months_to_serve_in() -> None:
    undated = load("house_data").model_dump(mode="json") | {"promotion": {"mode": "canary"}}
    with pytest.raises(ValueError, match=r"promotion\.mode: a canary serves for months"):
        Contract.model_validate(undated)


def test_a_price_may_be_called_price(tmp_path: Path) -> None:
    def change(block: dict[str, Any]) -> None:
        column(block, "paid").update(name="price")
        block["price"] = "price"

    assert load_toy(tmp_path, change).price == "price"


def test_words_of_sql_are_those_at_which_duckdb_stumbles() -> None:
    def stumbles(word: str) -> bool:
        try:
            duckdb.sql(
                f"select {word}.n from (select 1 as n) as {word} cross join (select 2 as {word}) where {word} > 1"
            )
        except duckdb.ParserException:
            return True
        return False

    words = [word for (word,) in duckdb.sql("select keyword_name from duckdb_keywords()").fetchall()]
    assert {word for word in words if stumbles(word)} == RESERVED_WORDS


def test_headers_that_loading_uses_are_known_to_the_contract() -> None:
    assert LOADING == structure.RESERVED


def test_a_null_without_quotes_is_what_happens_outside_the_bounds(tmp_path: Path) -> None:
    contract = load_toy(tmp_path, lambda b: column(b, "paid").update(outside=None))
    assert {c.outside for c in contract.columns} == {"null"}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b"models: [", "toy.yml, line 2: this is not YAML"),
        (b"models:\n  - name: stg\n\tconfig: 1", "toy.yml, line 3: this is not YAML"),
        ("models: [{name: Stra\u00dfe}]".encode("latin-1"), "toy.yml: byte 20 is not UTF-8; save the file as UTF-8"),
        (
            b"models: [{name: stg_toy__observations, config: {meta: {contract: }}}]",
            "toy.yml: config.meta.contract of stg_toy__observations holds no fields",
        ),
    ],
)
def test_a_file_that_is_no_contract_is_refused_with_its_line(written: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "toy.yml").write_bytes(written)
    with pytest.raises(ContractError) as refused:
        load("toy", tmp_path)
    assert said in str(refused.value)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_contract_is_refused_with_file_field_and_allowed_values(wrong: str, tmp_path: Path) -> None:
    change, named = WRONG[wrong]
    with pytest.raises(ContractError) as refused:
        load_toy(tmp_path, change)
    message = str(refused.value)
    assert str(tmp_path / "toy" / "toy.yml") in message
    for part in named:
        assert part in message


@pytest.mark.parametrize(
    ("months_back", "sentence"),
    [
        # the row's own month holds its own price
        ([0, 3], "strictly earlier months"),
        ([-1, 3], "strictly earlier months"),
        ([3, 1], r"\[3, 1\] is empty"),
    ],
)
def test_an_encoding_may_only_look_at_strictly_earlier_months(
    months_back: list[int], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ContractError, match=sentence):
        load_toy(tmp_path, lambda b: b["encodings"][0].update(months_back=months_back))


@pytest.mark.parametrize("dataset", available())
def test_shipped_encodings_look_at_strictly_earlier_months(dataset: str) -> None:
    assert all(1 <= e.months_back[0] <= e.months_back[1] for e in load(dataset).encodings)


def test_a_file_without_a_contract_block_is_refused_with_where_it_belongs(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "toy.yml").write_text("models: [{name: stg_other}]", encoding="utf-8")
    with pytest.raises(ContractError, match=r"no config\.meta\.contract under a model named stg_toy__observations"):
        load("toy", tmp_path)


def test_features_come_in_the_order_of_the_contract(tmp_path: Path) -> None:
    # the booster knows features by position: another order would be another model
    assert load_toy(tmp_path).features == [
        "month_of_year",
        "kind_is_flat",
        "kind_is_row_house",
        "state",
        "area_sqm",
        "area_sqm_to_level",
        "town_3m_to_level",
        "town_3m_n",
        "town_3m_frequency",
        "town_last_year_to_level",
        "town_last_year_n",
    ]


@pytest.mark.parametrize("dataset", available())
def test_no_price_leak_key_or_text_is_a_feature(dataset: str) -> None:
    contract = load(dataset)
    barred = {c.name for c in contract.columns if c.role != "feature" or (c.type != "number" and not c.encode)}
    assert not barred & set(contract.features)


def test_headers_that_a_file_must_have_leave_out_price_and_optional_columns(tmp_path: Path) -> None:
    assert load_toy(tmp_path).required_headers == ["Id", "Sold", "Town", "Kind", "State", "Fee"]


def test_a_contract_cannot_be_changed_after_loading() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load("hdb").title = "other"


def test_slug_makes_column_names_of_any_value() -> None:
    assert slug("C (all)") == "c__all_"
    assert slug("Model A2") == "model_a2"
    assert slug("Höhe") == "h_he"


@pytest.mark.parametrize("wrong", ["2021-13", "2021", "12/2021", ""])
def test_a_wrong_month_is_refused_with_an_example(wrong: str) -> None:
    with pytest.raises(ValueError, match="write YYYY-MM, for example 2022-01"):
        month_date(wrong)


def test_the_defaults_of_promotion_and_retraining_are_the_same_in_jinja() -> None:
    macros = (PROJECT_ROOT / "warehouse" / "macros" / "promotion.sql").read_text(encoding="utf-8")
    for block in (Promotion(), Retraining()):
        for name, value in block.model_dump().items():
            assert f"'{name}': {value!r}" in macros
