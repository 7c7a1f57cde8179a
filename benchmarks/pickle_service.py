"""The opponent of the REST API: the usual FastAPI service around pandas and pickled files.

Frequency and mean-price tables of the text columns and an XGBRegressor are pickled once; a request becomes a frame,
is encoded column by column and predicted. It does less than the product: no point in time, ranges, checks, journal,
keys or swaps. Measuring and comparing belong in ``benchmarks/api.py``.

    python -m benchmarks.pickle_service train HOME DATASET FOLDER
    python -m benchmarks.pickle_service serve FOLDER PORT
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pandas as pd

#: Few for a model of prices (the product's of hdb has 1,005), which is to the opponent's advantage.
TREES = 300


def train(home: Path, dataset: str, folder: Path) -> None:
    """Pickle encoders and model of the landed rows."""
    from xgboost import XGBRegressor

    from ml.contract import load
    from ml.settings import Settings

    contract = load(dataset)
    columns = [c for c in contract.columns if c.source and c.role not in {"leak", "key"}]
    landed = Settings(home=home, dataset=dataset).landing
    frame = pd.concat([pd.read_csv(path, low_memory=False) for path in sorted(landed.glob("*.csv"))])
    frame = frame.rename(columns={c.source: c.name for c in columns}).filter([c.name for c in columns])
    price = frame.pop(contract.price)
    texts = [c.name for c in columns if c.type == "text"]
    encoders = {
        name: {
            "frequency": frame.groupby(name).size() / len(frame),
            "mean_price": price.groupby(frame[name]).mean(),
        }
        for name in texts
    }
    files: dict[str, Any] = {"encoders": encoders, "date": contract.observed_on}
    x = encoded(frame, files)
    files["columns"] = list(x.columns)
    files["model"] = XGBRegressor(n_estimators=TREES, max_depth=6, learning_rate=0.1).fit(x, price)
    for name, content in files.items():
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(content))


def encoded(frame: pd.DataFrame, files: dict[str, Any]) -> pd.DataFrame:
    """Features of raw rows."""
    out = frame.copy()
    date = pd.to_datetime(out.pop(files["date"]))
    out["year"], out["month"] = date.dt.year, date.dt.month
    for name, tables in files["encoders"].items():
        text = out.pop(name) if name in out else pd.Series(None, index=out.index, dtype=object)
        out[f"{name}_frequency"] = text.map(tables["frequency"]).fillna(0)
        out[f"{name}_mean_price"] = text.map(tables["mean_price"]).fillna(tables["mean_price"].mean())
    for name in out.columns:
        out[name] = pd.to_numeric(out[name], errors="coerce")
    return out


def serve(folder: Path, port: int) -> None:
    """Answer ``POST /v1/predict`` with a price a row until somebody stops it."""
    import uvicorn
    from fastapi import Body, FastAPI

    files = {path.stem: pickle.loads(path.read_bytes()) for path in folder.glob("*.pkl")}
    app = FastAPI()

    @app.get("/ready")
    def ready() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/predict")
    def predict(data: dict[str, Any] = Body()) -> dict[str, list[float]]:  # noqa: B008 - as FastAPI wants it
        x = encoded(pd.DataFrame(data.get("rows", [data])), files).reindex(columns=files["columns"])
        return {"predictions": [float(price) for price in files["model"].predict(x)]}

    uvicorn.run(app, host="127.0.0.1", port=port, access_log=False)


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "train":
        train(Path(arguments[0]), arguments[1], Path(arguments[2]))
    else:
        serve(Path(arguments[0]), int(arguments[1]))
