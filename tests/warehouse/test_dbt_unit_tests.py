"""dbt's own unit tests: rows in, rows out, beside the models they are about. Those of monitoring run in its tests."""

from __future__ import annotations

import pytest

from tests import factories

LANDED = {"hdb": lambda: factories.hdb_rows("2020-01", months=2, per_month=5), "housets": factories.housets_rows}


@pytest.mark.parametrize("dataset", sorted(LANDED))
def test_unit_tests_of_staging_and_intermediate_pass(home, dataset: str) -> None:
    built = home(dataset)
    built.land("rows.csv", LANDED[dataset]())
    built.ingest()
    built.build("--exclude", "test_type:data")
    said = built.dbt("test", "--select", "staging,test_type:unit", "intermediate,test_type:unit")
    assert "2 unit tests in" in said, said[-2000:]
