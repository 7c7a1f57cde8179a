"""The dbt project of the default dataset, read by whoever imports this: the process that commands are forks of."""

from __future__ import annotations

import os
from tempfile import TemporaryDirectory

from dagster_project.transform.dbt import environment_of, read_project
from ml.settings import Settings

with TemporaryDirectory() as _home:
    _settings = Settings(home=_home, dataset="housets")  # pyright: ignore[reportArgumentType] - pydantic converts
    with environment_of(_settings):
        # dbt's static parser starts threads, and a fork has none of them: it would wait for them for ever
        os.environ["DBT_STATIC_PARSER"] = "false"
        read_project(_settings)
