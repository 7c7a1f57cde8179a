"""The knobs of ``ml/params.yml``, read and checked.

What a dataset is (columns, split, gate) belongs in its contract, where things are in ``ml/settings.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ml.contract import available

PARAMS = Path(__file__).with_name("params.yml")


class ParamsError(ValueError):
    """The parameters are illegal; the message names the file, the knob and what is allowed."""


class Params(BaseModel):
    """Parameters of one training run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_depth: int = Field(ge=1, le=16)
    eta: float = Field(gt=0, le=1)
    subsample: float = Field(gt=0, le=1)
    colsample_bytree: float = Field(gt=0, le=1)
    min_child_weight: float = Field(ge=0)
    reg_lambda: float = Field(ge=0)
    max_bin: int = Field(ge=2, le=65_535)
    rounds: int = Field(ge=1)
    early_stopping_rounds: int = Field(ge=1)
    refit_rounds: Literal["same", "by_rows"]
    eval_metric: Literal["mae", "rmse"]
    seed: int = Field(ge=0)
    linear_alpha: float = Field(ge=0)
    linear_clip_quantile: float = Field(ge=0, lt=0.5)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.early_stopping_rounds >= self.rounds:
            raise ValueError(
                f"early_stopping_rounds={self.early_stopping_rounds} can never stop {self.rounds} rounds early; "
                "it must be smaller than rounds"
            )
        if self.rounds * self.eta < 1:
            raise ValueError(
                f"rounds={self.rounds} x eta={self.eta} is below 1: the model stops before it reaches its target; "
                "raise one of them"
            )
        return self

    def booster(self, threads: int) -> dict[str, Any]:
        """Arguments of ``xgboost.train``; the thread count is the machine's, not the model's."""
        return {
            "objective": "reg:squarederror",
            "tree_method": "hist",
            "eval_metric": self.eval_metric,
            "nthread": threads,
            "seed": self.seed,
            **self.model_dump(include={"max_depth", "eta", "subsample", "colsample_bytree", "min_child_weight"}),
            **self.model_dump(include={"reg_lambda", "max_bin"}),
        }


DEFAULT_PROFILE = "default"


def load(dataset: str, path: Path = PARAMS, profile: str = DEFAULT_PROFILE) -> Params:
    """Parameters of a dataset and profile. Raises ParamsError naming the file, the knob and what is allowed."""
    document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    overrides = document.pop("datasets", None) or {}
    profiles = {DEFAULT_PROFILE: {}, **(document.pop("profiles", None) or {})}
    if profile not in profiles:
        raise ParamsError(f"{path}: unknown profile {profile!r}; known are: {', '.join(profiles)}")
    if unknown := sorted(set(overrides) - set(available())):
        raise ParamsError(f"{path}: datasets: unknown {', '.join(unknown)}; known are: {', '.join(available())}")
    try:
        return Params.model_validate({**document, **overrides.get(dataset, {}), **profiles[profile]})
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in e['loc']) or 'parameters'}: {e['msg']} (got {str(e['input'])[:60]!r})"
            for e in error.errors()
        )
        raise ParamsError(f"{path}: {problems}") from None
