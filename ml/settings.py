"""Where things are and how much of the machine may be used, from ``HOUSING_*`` variables or ``.env``.

Nothing about a dataset stands here (see ``ml/contract.py``), nothing about a model (see ``ml/params.yml``).
"""

from __future__ import annotations

import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ml.refusals import Place, refusals

DEFAULT_DATASET = "housets"

PROJECT_ROOT = Path(__file__).resolve().parents[1]

#: No shipped tool reports home. Set before any of them is imported.
QUIET = {
    "DO_NOT_TRACK": "1",
    "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DAGSTER_DISABLE_TELEMETRY": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


class SettingsError(ValueError):
    """A variable or option cannot work; the message names it, its value and what is allowed."""


class Variables(BaseSettings):
    """Settings from variables or ``.env``. Raises SettingsError."""

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise SettingsError(refusals(error, self._variable)) from None

    @classmethod
    def _variable(cls, place: Place) -> str:
        name = str(place[0]) if place else ""
        prefix = cls.model_config.get("env_prefix", "")
        return f"{prefix}{name}".upper() if name in cls.model_fields else name


class Settings(Variables):
    """Settings of one process. Every path below ``home`` is derived from it and from ``dataset``."""

    model_config = SettingsConfigDict(env_prefix="HOUSING_", env_file=".env", extra="ignore", frozen=True)

    home: Path = Field(default=Path("data"), description="folder of all state; deleting it is a clean start")
    dataset: str = Field(default=DEFAULT_DATASET, description="which contract to use")
    threads: int = Field(default=2, ge=1, description="threads of DuckDB and XGBoost")
    memory_limit: str = Field(default="1200MB", pattern=r"^\d+(\.\d+)?\s?(MB|GB|MiB|GiB)$")
    own_registry: bool = Field(default=False, description="keep models below home, MLFLOW_TRACKING_URI or not")
    mlflow_server: str | None = Field(
        default=None, validation_alias="MLFLOW_TRACKING_URI", description="instead of the SQLite store below home"
    )
    lock_timeout_s: float = Field(default=1800.0, gt=0, description="how long a run waits for the warehouse")

    @field_validator("dataset")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        # it becomes part of paths
        if not re.fullmatch("[a-z][a-z0-9_]*", value):
            from ml.contract import available  # which reads settings itself

            raise ValueError(f"{value!r} is no dataset; known are: {', '.join(available())}")
        return value

    @field_validator("home", mode="before")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if not str(value).strip():
            raise ValueError("is empty; give a folder, or leave the variable out for ./data")
        return value

    @field_validator("home")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        home = value.expanduser().resolve()
        if odd := {*"%?#"} & {*str(home)}:
            # they mean something else in the address of a SQLite file
            raise ValueError(f"{home} holds {sorted(odd)[0]!r}, where MLflow finds no file; choose another folder")
        if home.exists() and not home.is_dir():
            raise ValueError(f"{home} is a file; give a folder, which is made where there is none")
        return home

    @property
    def landing(self) -> Path:
        return self.home / "landing" / self.dataset

    @property
    def landed_actuals(self) -> Path:
        """Prices that became known after their rows landed; the rows themselves land one folder above."""
        return self.landing / "actuals"

    @property
    def quarantine(self) -> Path:
        return self.home / "quarantine" / self.dataset

    @property
    def warehouse(self) -> Path:
        return self.home / "warehouse" / f"{self.dataset}.duckdb"

    @property
    def published(self) -> Path:
        return self.home / "published" / f"{self.dataset}.duckdb"

    @property
    def dbt_target(self) -> Path:
        return self.home / "dbt" / self.dataset

    @property
    def dagster_home(self) -> Path:
        return self.home / "dagster"

    @property
    def registered_model(self) -> str:
        """Name of the dataset's model in the MLflow registry."""
        return f"housing_{self.dataset}"

    @property
    def mlflow_uri(self) -> str:
        """The server or a SQLite store; absolute, or each working directory has its own registry."""
        server = None if self.own_registry else self.mlflow_server
        return server or f"sqlite:///{self.home / 'mlflow' / 'mlflow.db'}"

    @property
    def mlflow_artifacts(self) -> Path:
        return self.home / "mlflow" / "artifacts"

    @cached_property
    def environment(self) -> dict[str, str]:
        """Variables that dbt and Dagster subprocesses need to find the same state."""
        return {
            **QUIET,
            **({"MLFLOW_TRACKING_URI": self.mlflow_server} if self.mlflow_server else {}),
            "HOUSING_HOME": str(self.home),
            "HOUSING_DATASET": self.dataset,
            "HOUSING_THREADS": str(self.threads),
            "HOUSING_MEMORY_LIMIT": self.memory_limit,
            "DBT_PROFILES_DIR": str(PROJECT_ROOT / "warehouse"),
            "DBT_TARGET_PATH": str(self.dbt_target),
            "DBT_LOG_PATH": str(self.dbt_target / "logs"),
            # nobody reads the manifest, twice, and the results of a build: a second each time
            "DBT_WRITE_JSON": "false",
            "DAGSTER_HOME": str(self.dagster_home),
        }


def command(typed: str, dataset: str) -> str:
    """What a person types for a dataset, such as ``train --force``; its name is left out where it is chosen anyway."""
    is_chosen = dataset == DEFAULT_DATASET == os.environ.get("HOUSING_DATASET", DEFAULT_DATASET)
    verb, *rest = typed.split()
    return " ".join(["housing", verb, *([] if is_chosen else ["-d", dataset]), *rest])


def run_command(dataset: str) -> str:
    """What a person types to build a dataset."""
    return command("run", dataset)


def nothing_built(dataset: str) -> str:
    """Sentence for those who ask for what the first run makes."""
    return f"nothing was built for {dataset} yet; type: {run_command(dataset)}"
