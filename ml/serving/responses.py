"""Answers as pydantic types, for the OpenAPI document; what a client sends is ``schemas.py``.

Routes write plain dicts: these types promise what stands in them, and a test and schemathesis hold the two together.
"""

from __future__ import annotations

import datetime as dt
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

#: A is surest.
Grade = Literal["A", "B", "C", "D"]


class Interval(BaseModel):
    lower: float = Field(description="in the currency of the dataset")
    upper: float


class Warning_(BaseModel):
    model_config = ConfigDict(title="Warning")
    code: str = Field(description="like unseen_area, outside_training_range, missing_feature or out_of_range")
    field: str
    message: str


class RowError(BaseModel):
    detail: str
    errors: list[dict[str, str]]


class Prediction(BaseModel):
    """The answer to one row: either a price or an error."""

    index: int = Field(description="place of the row in the request, from 0")
    observation_id: str | None = Field(default=None, description="stable hash of the natural key; name it in feedback")
    predicted_price: float | None = None
    intervals: dict[Literal["50", "80", "95"], Interval] | None = Field(
        default=None, description="price ranges by percent of homes they cover; null where too few errors are known yet"
    )
    forecast_std_pct: float | None = None
    grade: Grade | None = Field(default=None, description="A is surest")
    model_version: str | None = None
    encoding_month: dt.date | None = Field(default=None, description="prices before this month are known to the answer")
    warnings: list[Warning_] = []
    error: RowError | None = None


class Predictions(BaseModel):
    request_id: str
    currency: str
    predictions: list[Prediction] = Field(description="one for each row, in its order")


class Contribution(BaseModel):
    feature: str
    contribution: float = Field(
        description="in currency; with '(price level)' and '(recent errors)', if carried over, they add up to the price"
    )
    value: float | None = None


class Comparable(BaseModel):
    comparable_id: str
    similarity: float = Field(description="share of trees with a common leaf")
    sold_month: dt.date | None = Field(description="null where the dataset has no dates")
    price: float
    adjusted_price: float = Field(description="price brought to the month of the request by the market index")


class Explanation(Prediction):
    contributions: list[Contribution] | None = None
    comparables: list[Comparable] | None = None


class Explanations(BaseModel):
    request_id: str
    currency: str
    predictions: list[Explanation]


class BatchPrediction(BaseModel):
    """A row of predictions.predictions with its range, as of the published snapshot."""

    observation_id: str
    model_version: str
    month: dt.date | None = Field(description="null where the dataset has no dates")
    area: str | None
    locality: str | None
    split: Literal["eval", "holdout", "to_score"]
    predicted_price: float | None = Field(description="null where nothing is known of place and market")
    lower_50: float | None
    upper_50: float | None
    lower_80: float | None
    upper_80: float | None
    lower_95: float | None
    upper_95: float | None
    forecast_std_pct: float | None
    grade: Grade | None
    scored_at: dt.datetime


class BatchPredictions(BaseModel):
    currency: str
    predictions: list[BatchPrediction]
    next: str | None = Field(description="give it as `after` for the next page; null on the last")


class PublishedSnapshot(BaseModel):
    published_at: dt.datetime
    age_s: float
    fingerprint: str
    newest_month: dt.date | None = Field(description="of the encodings")


class Metrics_(BaseModel):
    model_config = ConfigDict(title="Metrics")
    mae: float | None = Field(description="in currency")
    rmse: float | None = Field(description="in currency")
    r2: float | None
    mdape_pct: float | None
    n: int


class Version(BaseModel):
    alias: Literal["champion", "challenger"]
    model_version: str
    trained_from: dt.date | None
    trained_through: dt.date | None
    created_at: dt.datetime
    n_train: int
    eval: Metrics_
    features: list[str]
    model_sha256: str
    data_fingerprint: str


class ModelInfo(BaseModel):
    dataset: str
    title: str
    currency: str
    promotion: Literal["auto", "manual", "canary"]
    versions: list[Version]
    snapshot: PublishedSnapshot


class Health(BaseModel):
    status: Literal["ok"]


class Swap(BaseModel):
    state: Literal["ok", "failed"]
    reason: str | None = Field(description="why the newest snapshot or its challenger does not answer")


class Ready(BaseModel):
    status: Literal["ready"]
    model_version: str
    challenger: str | None
    snapshot: PublishedSnapshot
    swap: Swap


class Accepted(BaseModel):
    request_id: str
    accepted: int = Field(description="prices that are on disk now")
