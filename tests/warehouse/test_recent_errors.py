"""Recent errors are carried over: by the formula, of earlier months only, the same however the months are scored."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import duckdb
import numpy as np
import pytest

from ml.contract import Contract, ContractError, RecentErrors, load
from ml.explain import RECENT, explain_months, unexplained_months
from ml.recent_errors import Corrections, correct
from ml.registry import ModelVersion, champion, load_bundle, train_and_register
from ml.score import scorable_months, score_months
from ml.settings import Settings
from ml.warehouse import connect
from tests import toy

#: What a group's wider group counts for, from wide to narrow.
PRIORS = [4.0, 2.0]
RULE = RecentErrors.model_validate(
    {
        "months_back": [1, 3],
        "groups": [{"keys": ["town"], "prior": PRIORS[0]}, {"keys": ["town", "size"], "prior": PRIORS[1]}],
    }
)
CONTRACT = toy.CONTRACT.model_copy(update={"recent_errors": RULE})
MONTHS = [date(2021, month, 1) for month in range(7, 13)]
PRICES = """
select observation_id, month, predicted_price, recent_error from predictions.predictions
where model_version = 'v1' and split <> 'eval' order by month, observation_id
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A champion trained through 2021-06; from then on small homes in the North cost a fifth more than it knows."""
    settings = toy.warehouse(tmp_path_factory.mktemp("recent"))
    with connect(settings) as connection:
        train_and_register(connection, settings, CONTRACT, params=toy.PARAMS)
        connection.execute(
            "update features.features set price = 1.2 * price "
            "where month > '2021-06-01' and area = 'North' and size < 100"
        )
    return settings.home


@pytest.fixture
def settings(tmp_path: Path, trained: Path) -> Settings:
    shutil.copytree(trained / "warehouse", tmp_path / "warehouse")
    return Settings(home=tmp_path, dataset="toy")


@pytest.fixture
def warehouse(settings: Settings) -> Iterator[duckdb.DuckDBPyConnection]:
    with connect(settings) as connection:
        yield connection


def score(
    connection: duckdb.DuckDBPyConnection, settings: Settings, months: list[date], contract: Contract = CONTRACT
) -> list[tuple]:
    version = _version(connection)
    score_months(connection, settings, contract, version, months, run_id="test")
    return connection.execute(PRICES).fetchall()


def _version(connection: duckdb.DuckDBPyConnection) -> ModelVersion:
    version = champion(connection)
    assert version
    return version


def test_prices_follow_the_formula_and_get_nearer(warehouse: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    bare = {row[0]: row[2] for row in score(warehouse, settings, MONTHS, toy.CONTRACT)}
    assert all(row[3] is None for row in warehouse.execute(PRICES).fetchall())
    scored = score(warehouse, settings, MONTHS)
    homes = {
        row[0]: row[1:]
        for row in warehouse.execute(
            "select observation_id, month, price, error_keys from features.features"
        ).fetchall()
    }
    errors: dict[tuple[int, str, date], list[float]] = {}
    for observation_id, price in bare.items():
        month, paid, keys = homes[observation_id]
        for level, key in enumerate(keys):
            errors.setdefault((level, key, month), []).append(np.log(paid / price))
    for observation_id, month, price, carried in scored:
        mixed = 0.0
        for level, key in enumerate(homes[observation_id][2]):
            back = [date(2021, m, 1) for m in range(max(month.month - 3, 1), month.month)]
            found = [e for m in back for e in errors.get((level, key, m), [])]
            mixed = (sum(found) + PRIORS[level] * mixed) / (len(found) + PRIORS[level])
        assert carried == pytest.approx(mixed, abs=1e-6)
        assert price == pytest.approx(bare[observation_id] * np.exp(mixed), rel=1e-6)
        if month == MONTHS[0]:
            assert carried == 0, "nothing was known of the version's errors yet"

    def missed(prices: dict[str, float]) -> float:
        rest = [i for i, price in prices.items() if homes[i][0] > MONTHS[0]]
        return float(np.median([abs(prices[i] / homes[i][1] - 1) for i in rest]))

    assert missed({row[0]: row[2] for row in scored}) < 0.8 * missed(bare)


def test_later_prices_and_the_order_of_scoring_change_nothing(
    warehouse: duckdb.DuckDBPyConnection, settings: Settings
) -> None:
    whole = score(warehouse, settings, MONTHS)
    for month in MONTHS:
        assert score(warehouse, settings, [month]) == whole
    sums = warehouse.execute("from predictions.recent_errors order by all").fetchall()
    warehouse.execute("update features.features set price = 9 * price where month = '2021-10-01'")
    changed = score(warehouse, settings, MONTHS)
    until = [row for row in whole if row[1] <= date(2021, 10, 1)]
    assert changed[: len(until)] == until
    assert changed[len(until) :] != whole[len(until) :]
    assert warehouse.execute("from predictions.recent_errors order by all").fetchall() != sums


def test_a_month_scored_late_moves_the_months_after_it_and_their_reasons(
    warehouse: duckdb.DuckDBPyConnection, settings: Settings
) -> None:
    version = _version(warehouse)
    late, rest = MONTHS[1], [month for month in MONTHS if month != MONTHS[1]]
    before = {row[0]: row for row in score(warehouse, settings, rest)}
    explain_months(warehouse, settings, CONTRACT, version, rest)
    assert unexplained_months(warehouse, version) == []
    moved = score(warehouse, settings, [late])
    changed = {row[1] for row in moved if row[1] != late and row != before[row[0]]}
    assert changed == set(MONTHS[2:5]), "its errors count in the three months after it"
    assert unexplained_months(warehouse, version) == [late, *MONTHS[2:5]]
    explain_months(warehouse, settings, CONTRACT, version, unexplained_months(warehouse, version))
    assert unexplained_months(warehouse, version) == []
    for found, wanted in zip(moved, score(warehouse, settings, MONTHS), strict=True):
        assert found[:2] == wanted[:2] and found[2:] == pytest.approx(wanted[2:], rel=1e-12, abs=1e-12)
    assert unexplained_months(warehouse, version) == []


def test_prices_that_stay_keep_their_reasons_although_those_add_up_to_32_bits_only(
    warehouse: duckdb.DuckDBPyConnection, settings: Settings
) -> None:
    version = _version(warehouse)
    score(warehouse, settings, MONTHS)
    explain_months(warehouse, settings, CONTRACT, version, MONTHS)
    warehouse.execute("update predictions.explanations set contribution = contribution * (1 + 2e-6)")
    correct(warehouse, CONTRACT, version, since=MONTHS[0])
    assert unexplained_months(warehouse, version) == []


def test_a_month_that_moved_leaves_neither_reasons_nor_comparables_behind(
    warehouse: duckdb.DuckDBPyConnection, settings: Settings
) -> None:
    version = _version(warehouse)
    score(warehouse, settings, MONTHS)
    explain_months(warehouse, settings, CONTRACT, version, MONTHS)
    warehouse.execute(f"update features.features set month = '{MONTHS[3]}' where month = '{MONTHS[1]}'")
    score(warehouse, settings, scorable_months(warehouse, version))
    explain_months(warehouse, settings, CONTRACT, version, unexplained_months(warehouse, version))
    assert unexplained_months(warehouse, version) == []
    for table, key in (("explanations", "feature"), ("comparables", "rank")):
        where = f"from predictions.{table} where model_version = 'v1'"
        assert warehouse.execute(f"select count(*) {where} and month = '{MONTHS[1]}'").fetchone() == (0,)
        again = f"select observation_id {where} group by observation_id, {key} having count(*) > 1"
        assert warehouse.execute(again).fetchall() == []


def test_a_prediction_that_stands_keeps_its_reasons_when_its_row_changes(
    warehouse: duckdb.DuckDBPyConnection, settings: Settings
) -> None:
    version = _version(warehouse)
    score(warehouse, settings, MONTHS[:3])
    explain_months(warehouse, settings, CONTRACT, version, MONTHS[:3])
    mine = "observation_id = (select min(observation_id) from features.features where month = '2021-08-01')"
    of_mine = [f"from predictions.{table} where {mine} order by all" for table in ("explanations", "comparables")]
    before = [warehouse.execute(sql).fetchall() for sql in of_mine]
    # the row was built again, larger, and its prediction was not made again
    warehouse.execute(f"update features.features set built_through_batch = 9, size = 2 * size where {mine}")
    explain_months(warehouse, settings, CONTRACT, version, MONTHS[:3])
    assert [warehouse.execute(sql).fetchall() for sql in of_mine] == before
    # where it has none to keep, what they are made from is not what it was, but they add up
    warehouse.execute(f"delete from predictions.explanations where {mine}")
    assert unexplained_months(warehouse, version) == [date(2021, 8, 1)]
    explain_months(warehouse, settings, CONTRACT, version, MONTHS[:3])
    assert unexplained_months(warehouse, version) == []
    price, total = warehouse.execute(
        f"select any_value(predicted_price), sum(contribution) from predictions.predictions "
        f"join predictions.explanations using (observation_id, model_version) where {mine}"
    ).fetchall()[0]
    assert total == pytest.approx(price, rel=1e-12)


def test_what_a_price_rule_or_a_missing_price_speaks_against_is_no_error(
    warehouse: duckdb.DuckDBPyConnection, settings: Settings
) -> None:
    score(warehouse, settings, MONTHS)
    n = "select sum(n) from predictions.recent_errors where level = 1 and month = '2021-08-01'"
    assert warehouse.execute(n).fetchone() == (60,)
    warehouse.execute("update features.features set is_price_valid = false where month = '2021-07-01' and size < 100")
    score(warehouse, settings, MONTHS[:2])
    found = warehouse.execute(n).fetchone()
    assert found and 0 < found[0] < 60


def test_reasons_add_up_to_the_corrected_price(warehouse: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    score(warehouse, settings, MONTHS)
    explain_months(warehouse, settings, CONTRACT, _version(warehouse), MONTHS[2:3])
    rows = warehouse.execute(
        """
        select observation_id, predicted_price, recent_error, sum(contribution),
            sum(contribution) filter (feature = $recent), count(*)
        from predictions.predictions join predictions.explanations using (observation_id, model_version)
        group by all
        """,
        {"recent": RECENT},
    ).fetchall()
    assert len(rows) == 60
    width = len(load_bundle(settings, _version(warehouse)).features_used) + 2
    for _, price, carried, total, recent, n in rows:
        assert total == pytest.approx(price, rel=1e-4)
        assert np.sign(recent) == np.sign(carried) != 0
        assert n == width


def test_the_api_finds_the_same_corrections(warehouse: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    score(warehouse, settings, MONTHS)
    month = MONTHS[-1]
    rows = warehouse.execute(
        "select error_keys, recent_error from predictions.predictions join features.features using (observation_id) "
        "where model_version = 'v1' and predictions.month = ?", [month]
    ).to_arrow_table()  # fmt: skip
    sums = warehouse.execute("from predictions.recent_errors where month = ?", [month]).to_arrow_table()
    found = Corrections(RULE, sums).of(rows["error_keys"])
    np.testing.assert_allclose(found, rows["recent_error"].to_numpy(), atol=1e-12)
    assert Corrections(RULE, sums.slice(0, 0)).of(rows["error_keys"]).tolist() == [0.0] * rows.num_rows


@pytest.mark.parametrize(
    ("months_back", "keys", "sentence"),
    [([0, 3], ["town"], "strictly earlier"), ([1, 3], ["price"], "recent_errors.groups.keys: 'price' is not one of")],
)
def test_a_rule_that_would_look_at_the_answer_is_refused(
    tmp_path: Path, months_back: list[int], keys: list[str], sentence: str
) -> None:
    import yaml

    block = toy.CONTRACT.model_dump(mode="json", exclude={"name"}, exclude_none=True)
    block["recent_errors"] = {"months_back": months_back, "groups": [{"keys": keys, "prior": 5}]}
    folder = tmp_path / "toy"
    folder.mkdir()
    model = {"name": "stg_toy__observations", "config": {"meta": {"contract": block}}}
    (folder / "toy.yml").write_text(yaml.safe_dump({"models": [model]}), encoding="utf-8")
    with pytest.raises(ContractError, match=sentence):
        load("toy", tmp_path)
