"""Versions: train, gate, register in MLflow, mirror to ``training.model_versions`` and ``training.model_aliases``.

A version comes into being by one MLflow call, made when all its artifacts stand; ``reconcile_registry`` then brings
aliases and warehouse to agree with MLflow. The same function runs at the start of every training, so a process that
is killed anywhere leaves nothing that the next run does not put right. Fitting is in ``ml/train.py``, the verdict in
``ml/gate.py``; which version gets which alias, and why, in ``ml/promotion.py``; where MLflow keeps all this, in
``ml/mlflow_store.py``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import duckdb
import pyarrow as pa

import ml.lean_xgboost  # noqa: F401 - before the others import XGBoost
from ml.bundle import Bundle, seal_bundle, write_bundle, write_json
from ml.contract import Contract
from ml.dataset import IDENTITY, Selection, TrainingData, TrainingWindow, read, select, training_window
from ml.gate import Verdict, judge
from ml.mlflow_store import close_dead_runs, experiment_of, open_registry
from ml.params import Params
from ml.params import load as load_params
from ml.settings import PROJECT_ROOT, Settings
from ml.train import Fit, Progress, fit
from ml.warehouse import in_order, transaction, utc_now

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion as RegisteredVersion

#: What of this package travels with a model: enough to load and run a bundle, and nothing that needs more libraries.
BUNDLE_CODE = ("__init__.py", "baselines.py", "bundle.py", "imputation.py", "views.py")
#: Libraries a bundle needs; versions are pinned to those installed.
BUNDLE_LIBRARIES = ("duckdb", "mlflow", "numpy", "pandas", "pyarrow", "xgboost-cpu", "xgboost")

#: Artifacts of a run that ``reconcile_registry`` reads back into the warehouse.
EVAL_PREDICTIONS = "eval_predictions.parquet"
FITTED_VALUES = "fitted_values.parquet"

CHAMPION = "champion"
CHALLENGER = "challenger"


class RegistryError(RuntimeError):
    """A version that is needed does not exist or cannot be read; the message says what to do."""


class NoChampionError(RuntimeError):
    """No version passed its gate yet; the message says what to do."""


@dataclass(frozen=True)
class ModelVersion:
    """One row of ``training.model_versions``. ``status``: champion, challenger, archived (was one) or rejected."""

    model_version: str
    dataset: str
    created_at: datetime
    status: str
    reasons: list[str]
    trained_from: date | None
    trained_through: date | None
    eval_from: date | None
    n_train: int
    n_eval: int
    features: int
    best_iteration: int
    training_median_price: float
    eval_mae: float
    eval_rmse: float
    eval_r2: float
    eval_mdape_pct: float
    eval_baseline_mae: float
    seed: int
    data_fingerprint: str
    training_key: str
    model_sha256: str
    """Of the shipped model, refitted through the evaluation window where the contract says so."""
    evaluated_sha256: str
    """Of the model that the metrics are of."""
    git_commit: str | None
    run_id: str
    model_uri: str

    @property
    def linear_version(self) -> str:
        """``model_version`` under which the straight line's predictions stand."""
        return f"linear_{self.model_version}"


@dataclass(frozen=True)
class Outcome:
    """What a training came to. ``trained`` is False when the version stood already."""

    version: ModelVersion
    trained: bool


def versions(connection: duckdb.DuckDBPyConnection) -> list[ModelVersion]:
    """All versions, oldest first."""
    columns = ", ".join(f.name for f in fields(ModelVersion))
    rows = connection.execute(
        f"select {columns} from training.model_versions order by cast(substr(model_version, 2) as bigint)"
    ).fetchall()
    return [ModelVersion(*row) for row in rows]


def champion(connection: duckdb.DuckDBPyConnection) -> ModelVersion | None:
    """The version that scores, if any passed its gate."""
    return next((v for v in versions(connection) if v.status == CHAMPION), None)


def required_champion(connection: duckdb.DuckDBPyConnection) -> ModelVersion:
    """The same for who cannot do without. Raises NoChampionError."""
    if (version := champion(connection)) is None:
        raise NoChampionError("no version passed its gate, so nothing can be scored; see housing status")
    return version


def challenger(connection: duckdb.DuckDBPyConnection) -> ModelVersion | None:
    """The version that scores beside the champion until one of them proves better."""
    return next((v for v in versions(connection) if v.status == CHALLENGER), None)


def load_bundle(settings: Settings, version: ModelVersion) -> Bundle:
    """Bundle of a version. Local artifacts are read in place, without MLflow."""
    return Bundle.load(run_file(settings, version, "model/artifacts/bundle"), threads=settings.threads)


def run_file(settings: Settings, version: ModelVersion, name: str) -> Path:
    """A file or folder that the version's run logged, for example ``importance.png``. Read-only."""
    parsed = urlparse(version.model_uri)
    if parsed.scheme not in {"", "file"}:
        open_registry(settings)
        from mlflow.artifacts import download_artifacts

        uri = f"{version.model_uri.removesuffix('/model')}/{name}"
        return Path(download_artifacts(uri, tracking_uri=settings.mlflow_uri))
    path = _folder(settings, parsed.path) / name
    if not path.exists():
        raise RegistryError(f"{path} of {version.model_version} is gone; train again with --force")
    return path


def _folder(settings: Settings, model: str) -> Path:
    """Where a run's files stand: below this home, wherever it was when the run logged them."""
    logged = Path(url2pathname(model)).parent
    here = settings.mlflow_artifacts.joinpath(*logged.parts[-3:])
    return here if here.exists() else logged


def log_texts(settings: Settings, version: Mapping[str, Any], folder: str, texts: Mapping[str, str]) -> None:
    """Texts by file name into a folder of a version's run, in place of what stood there.

    ``version`` is a row of ``training.model_versions``.
    """
    parsed = urlparse(version["model_uri"])
    if parsed.scheme not in {"", "file"}:
        client = open_registry(settings)
        for name, text in texts.items():
            client.log_text(version["run_id"], text, f"{folder}/{name}")
        return
    # local artifacts are files; importing MLflow would take longer than all that leads here
    target = _folder(settings, parsed.path) / folder
    target.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        aside = target / f"{name}.{os.getpid()}.tmp"
        aside.write_text(text, encoding="utf-8", newline="\n")
        aside.replace(target / name)


def train_and_register(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    contract: Contract,
    *,
    through: str | None = None,
    force: bool = False,
    params: Params | None = None,
    actor: str = "housing",
    progress: Progress | None = None,
) -> Outcome:
    """Train a version, judge it and register it: rejected when it fails its gate; else champion when there is none,
    and challenger of the one there is.

    Without ``through`` the window ends with the contract's month, or the champion's or challenger's where that is
    later, so that a routine run never falls behind a version trained on purpose. A version of the same data,
    parameters, window and gate is not trained again unless ``force``. The caller holds the warehouse lock and no open
    transaction.
    """
    params = params or load_params(contract.name)
    show = progress or _silent
    show("select training rows", 0, 0)
    selection = select(connection, contract, _window(connection, contract, through))
    key = _training_key(selection, contract, params)
    if not force and (known := _known(connection, key)):
        return Outcome(known, trained=False)
    show("open the model registry", 0, 0)
    client = open_registry(settings)
    reconcile_registry(connection, settings, contract, client=client, actor=actor)
    if not force and (known := _known(connection, key)):
        return Outcome(known, trained=False)
    show("read training rows", 0, 0)
    data = read(connection, selection)
    result = fit(data, params, refit=contract.split.refit, threads=settings.threads, progress=progress)
    verdict = judge(result.metrics, result.baselines, contract.gate)
    show("log the run", 0, 0)
    number = _register(
        client,
        connection,
        settings,
        contract,
        params=params,
        data=data,
        result=result,
        verdict=verdict,
        key=key,
        show=show,
    )
    show("enter the version", 0, 0)
    reconcile_registry(connection, settings, contract, client=client, actor=actor)
    registered = next(v for v in versions(connection) if v.model_version == f"v{number}")
    return Outcome(registered, trained=True)


def reconcile_registry(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    contract: Contract,
    *,
    client: MlflowClient | None = None,
    actor: str = "housing",
) -> list[str]:
    """Make aliases and warehouse agree with MLflow; returns a sentence for each thing put right.

    A version that passed its gate and has no place yet becomes champion, or challenger where there is a champion.
    Versions that the warehouse does not know are mirrored with their evaluation predictions, and aliases are followed,
    also where somebody moved them by hand, all in one transaction. Runs of this warehouse that never ended are marked
    as killed.
    """
    from ml.promotion import enter, follow_aliases

    client = client or open_registry(settings)
    name = settings.registered_model
    mirrored = {v.model_version for v in versions(connection)}
    done: list[str] = []
    new: list[tuple[dict[str, Any], pa.Table, pa.Table]] = []
    for found in sorted(client.search_model_versions(f"name = '{name}'"), key=lambda v: int(v.version)):
        number, version = str(found.version), f"v{found.version}"
        if found.tags.get("model_version") != version:
            client.delete_model_version(name, number)
            done.append(f"{version} was registered by halves and is deleted")
            continue
        enter(client, name, found, actor)
        if version not in mirrored:
            client.set_terminated(str(found.run_id), "FINISHED")
            new.append(_logged(client, found))
    with transaction(connection):
        for row, eval_predictions, fitted_values in new:
            _insert_version(connection, row, eval_predictions, fitted_values)
            done.append(f"{row['model_version']} is mirrored to the warehouse")
        done += follow_aliases(connection, client, name)
    return done + close_dead_runs(client, settings)


def _window(connection: duckdb.DuckDBPyConnection, contract: Contract, through: str | None) -> TrainingWindow:
    window = training_window(contract, through)
    if through or window.through is None:
        return window
    standing = [v.trained_through for v in (champion(connection), challenger(connection)) if v and v.trained_through]
    return training_window(contract, f"{max([window.through, *standing]):%Y-%m}")


def _training_key(selection: Selection, contract: Contract, params: Params) -> str:
    """Digest of all that decides what a version is; the thread count and the code are not among it."""
    parts = {
        "data": selection.fingerprint,
        "params": params.model_dump(),
        "refit": contract.split.refit,
        "gate": contract.gate.model_dump(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _known(connection: duckdb.DuckDBPyConnection, key: str) -> ModelVersion | None:
    return next((v for v in reversed(versions(connection)) if v.training_key == key), None)


def _register(
    client: MlflowClient,
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    contract: Contract,
    *,
    params: Params,
    data: TrainingData,
    result: Fit,
    verdict: Verdict,
    key: str,
    show: Progress,
) -> int:
    """Log a run with everything a version needs, then create the version. Returns its number."""
    selection, name = data.selection, settings.registered_model
    commit = _git_commit()
    booster = bytes(result.booster.save_raw("ubj"))
    run = client.create_run(
        experiment_of(client, settings),
        run_name=f"{contract.name} through {selection.window.through:%Y-%m}"
        if selection.window.through
        else contract.name,
        tags={
            "dataset": contract.name,
            "data_fingerprint": selection.fingerprint,
            "training_key": key,
            "git_commit": commit or "unknown",
            "warehouse": str(settings.warehouse),
            "gate": "passed" if verdict.passed else "rejected",
        },
    )
    baselines = [pair["baseline"] for pair in result.baselines.values()]
    shown = {**params.model_dump(), "refit": contract.split.refit}
    _log_numbers(client, run, shown, selection, result)
    row = {
        "dataset": contract.name,
        "created_at": utc_now().isoformat(),
        "reasons": verdict.reasons,
        "trained_from": _iso(selection.trained_from),
        "trained_through": _iso(selection.window.through),
        "eval_from": _iso(selection.window.eval_from),
        "n_train": selection.n_train,
        "n_eval": selection.n_eval,
        "features": len(selection.features),
        "best_iteration": result.rounds - 1,
        "training_median_price": selection.median_price,
        **{f"eval_{k}": result.metrics[k] for k in ("mae", "rmse", "r2", "mdape_pct")},
        # the best of those that have a price for every row, so that it compares with eval_mae
        "eval_baseline_mae": min(b["mae"] for b in baselines if b["n"] == selection.n_eval),
        "seed": params.seed,
        "data_fingerprint": selection.fingerprint,
        "training_key": key,
        "model_sha256": hashlib.sha256(booster).hexdigest(),
        "evaluated_sha256": hashlib.sha256(bytes(result.evaluated.save_raw("ubj"))).hexdigest(),
        "git_commit": commit,
        "run_id": run.info.run_id,
        "model_uri": f"{run.info.artifact_uri}/model",
        "learned_areas": list(selection.areas),
    }
    with tempfile.TemporaryDirectory(prefix="housing-") as temporary:
        folder = Path(temporary)
        _write_reports(folder / "run", f"{contract.title}, {run.info.run_name}", params.eval_metric, data, result)
        documents = {
            "evaluation.json": {"model": result.metrics, "baselines": result.baselines},
            "gate.json": [asdict(c) for c in verdict.comparisons],
            "version.json": row,
        }
        for document, content in documents.items():
            write_json(folder / "run" / document, content)
        client.log_artifacts(run.info.run_id, str(folder / "run"))
        with in_order(connection):
            write_bundle(
                folder / "bundle",
                connection,
                contract=contract.model_dump(mode="json"),
                booster=booster,
                linear=result.linear,
                imputation=result.imputation,
                metadata={
                    "dataset": contract.name,
                    "features": list(selection.features),
                    "trained_through": _iso(selection.window.through),
                    "data_fingerprint": selection.fingerprint,
                },
            )
        show("register the version", 0, 0)
        return _create_version(client, name, run, folder, verdict)


def _create_version(client: MlflowClient, name: str, run: Run, folder: Path, verdict: Verdict) -> int:
    """Log the model under the number it is going to get and register it; the number stands inside the bundle.

    Should another process take that number first, the version is made again under the next.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name)
    number = 1 + max((int(v.version) for v in client.search_model_versions(f"name = '{name}'")), default=0)
    while True:
        shutil.rmtree(folder / "model", ignore_errors=True)
        _save_model(folder, f"v{number}")
        client.log_artifacts(run.info.run_id, str(folder / "model"), "model")
        created = client.create_model_version(
            name,
            source=f"{run.info.artifact_uri}/model",
            run_id=run.info.run_id,
            tags={
                "model_version": f"v{number}",
                "gate": "passed" if verdict.passed else "rejected",
                "reasons": "; ".join(verdict.reasons),
            },
            description="\n".join(f"- {'✓' if c.passed else '✗'} {c.sentence}" for c in verdict.comparisons),
            await_creation_for=0,
        )
        if int(created.version) == number:
            return number
        client.delete_model_version(name, str(created.version))
        number = int(created.version) + 1


def _save_model(folder: Path, model_version: str) -> None:
    """MLflow model from code: ``folder/bundle`` and the few modules that run it, no pickle."""
    from importlib.metadata import PackageNotFoundError, version

    from mlflow.pyfunc import save_model

    seal_bundle(folder / "bundle", model_version)
    code = folder / "code" / "ml"
    code.mkdir(parents=True, exist_ok=True)
    for module in BUNDLE_CODE:
        shutil.copyfile(PROJECT_ROOT / "ml" / module, code / module)
    pinned = []
    for library in BUNDLE_LIBRARIES:
        try:
            pinned.append(f"{library}=={version(library)}")
        except PackageNotFoundError:
            continue  # xgboost comes from one of two distributions
    save_model(
        path=str(folder / "model"),
        python_model=str(PROJECT_ROOT / "ml" / "pyfunc.py"),
        artifacts={"bundle": str(folder / "bundle")},
        code_paths=[str(code)],
        pip_requirements=pinned,
    )


def _log_numbers(client: MlflowClient, run: Run, params: dict[str, Any], selection: Selection, result: Fit) -> None:
    from mlflow.entities import Metric, Param

    stamp = int(time.time() * 1000)
    known = {
        **params,
        "trained_from": selection.trained_from,
        "eval_from": selection.window.eval_from,
        "trained_through": selection.window.through,
        "features": len(selection.features),
    }
    numbers = {f"eval_{k}": v for k, v in result.metrics.items()}
    for name, pair in result.baselines.items():
        numbers |= {f"eval_{name}_{k}": v for k, v in pair["baseline"].items()}
    numbers |= {"best_iteration": result.rounds - 1, "n_train": selection.n_train, "n_eval": selection.n_eval}
    metrics = [Metric(k, float(v), stamp, 0) for k, v in numbers.items() if v is not None]
    # a hundred points draw the same curve as a thousand
    step = max(1, len(result.curves["eval"]) // 100)
    for name, curve in result.curves.items():
        metrics += [Metric(f"curve_{name}", v, stamp, i) for i, v in enumerate(curve) if i % step == 0]
    client.log_batch(run.info.run_id, metrics, [Param(k, str(v)) for k, v in known.items()])


def _write_reports(folder: Path, title: str, metric: str, data: TrainingData, result: Fit) -> None:
    """Pictures and lists for the reader of the run, and the predictions that ``_logged`` reads back."""
    import pyarrow.parquet as pq

    from ml import plots

    folder.mkdir()
    shares = plots.importance(result.booster, folder / "importance.png", title=f"What the model looks at: {title}")
    write_json(folder / "features.json", shares)
    plots.learning_curve(
        result.curves,
        folder / "learning_curve.png",
        title=f"Error by round: {title}",
        metric=metric,
        rounds=result.rounds,
    )
    for name, rows, columns in [
        (
            EVAL_PREDICTIONS,
            data.eval_rows,
            {
                "model_price": result.eval_price,
                "linear_price": result.eval_linear_price,
                "imputation_error": result.eval_imputation_error,
            },
        ),
        (
            FITTED_VALUES,
            data.fitted_rows,
            {"model_price": result.fitted_price, "linear_price": result.fitted_linear_price},
        ),
    ]:
        table = rows.select(IDENTITY)
        for column, values in columns.items():
            table = table.append_column(column, pa.array(values, from_pandas=True))
        pq.write_table(table, folder / name, compression="zstd")


def _logged(client: MlflowClient, found: RegisteredVersion) -> tuple[dict[str, Any], pa.Table, pa.Table]:
    """Row of ``training.model_versions``, evaluation predictions and fitted values of a registered version."""
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory(prefix="housing-") as temporary:
        run_id = str(found.run_id)
        row = json.loads(Path(client.download_artifacts(run_id, "version.json", temporary)).read_text(encoding="utf-8"))
        predictions, fitted = (
            pq.read_table(client.download_artifacts(run_id, name, temporary))
            for name in (EVAL_PREDICTIONS, FITTED_VALUES)
        )
    return {**row, "model_version": f"v{found.version}", "status": "rejected"}, predictions, fitted


def _insert_version(
    connection: duckdb.DuckDBPyConnection, row: dict[str, Any], eval_predictions: pa.Table, fitted_values: pa.Table
) -> None:
    from ml.score import write_eval_predictions, write_fitted_values

    columns = [f.name for f in fields(ModelVersion)]
    connection.execute(
        f"insert into training.model_versions ({', '.join(columns)}) values ({', '.join('?' * len(columns))})",
        [row[name] for name in columns],
    )
    # versions of earlier releases did not write them down
    connection.execute(
        "insert into training.learned_areas select ?, unnest(?::varchar[])",
        [row["model_version"], row.get("learned_areas", [])],
    )
    write_eval_predictions(connection, row["model_version"], eval_predictions, row["run_id"])
    write_fitted_values(connection, row["model_version"], fitted_values, row["run_id"])


def _git_commit() -> str | None:
    """Commit of the working tree, ``-dirty`` when it was changed; None outside a repository."""
    try:
        described = subprocess.run(
            ["git", "-C", str(PROJECT_ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except OSError:
        return None
    return described.stdout.strip() or None


def _iso(value: date | None) -> str | None:
    return value.isoformat() if value else None


def _silent(task: str, done: int, total: int) -> None:
    """Progress that nobody watches."""
