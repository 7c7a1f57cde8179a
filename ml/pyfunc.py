"""The MLflow model, logged from this very file: nothing is pickled.

Runs in processes that know nothing of this repository; what it does stands in ``ml/bundle.py``, which travels with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from ml.bundle import Bundle


class HousingModel(PythonModel):
    """``predict(raw rows)``: a table with the headers of the landed files in, one predicted price per row out."""

    def load_context(self, context: Any) -> None:
        self.bundle = Bundle.load(Path(context.artifacts["bundle"]))

    # MLflow reads the hint of model_input: a DataFrame without a schema, which the bundle checks
    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """DataFrame of observation_id, predicted_price, model_version, reasons; one row per row, with its index."""
        priced = self.bundle.predict(model_input).to_pandas()
        # the rows' own labels, so that a column of the answer can be put beside the input
        return priced.set_index(model_input.index)


set_model(HousingModel())
