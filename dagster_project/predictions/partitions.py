"""Monthly partitions of scoring. The key of a partition is the first day of its month, ``YYYY-MM-01``."""

from __future__ import annotations

from datetime import date

import dagster as dg

from ml.contract import Contract


def scoring_months(contract: Contract) -> dg.MonthlyPartitionsDefinition:
    """From the contract's first month to the running one; datasets without dates have one partition."""
    if contract.observed_on is None:
        return dg.MonthlyPartitionsDefinition(start_date="1970-01-01", end_date="1970-02-01")
    return dg.MonthlyPartitionsDefinition(start_date=f"{contract.first_month}-01", end_offset=1)


def first_and_last(contract: Contract) -> tuple[date, date]:
    """The months between which all can be scored, both included."""
    keys = scoring_months(contract).get_partition_keys()
    return date.fromisoformat(keys[0]), date.fromisoformat(keys[-1])
