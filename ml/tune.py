"""Search of XGBoost's parameters on the folds: seeded, pruned after bad folds, resumable, applied only on request.

Trials stand in an Optuna study below ``HOUSING_HOME/tuning`` and as nested MLflow runs. A study belongs to one content
of the folds: other data or features start another. Trials run one after the other, because XGBoost itself uses every
thread. Kinds of models are compared in ``ml/model_selection.py``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from ml import folds
from ml.contract import Contract
from ml.mlflow_store import experiment_of, open_registry
from ml.params import PARAMS, Params
from ml.params import load as load_params
from ml.settings import Settings, command

if TYPE_CHECKING:
    import optuna
    from mlflow import MlflowClient

METRIC = "mape_pct"  # mean absolute percent error: between the typical house (MdAPE) and the dear one (MAE)
DEPTHS = (3, 8)
#: Lowest and highest value of what is searched besides, and whether by powers.
SPACE = {
    "eta": (0.02, 0.2, True),
    "subsample": (0.5, 1.0, False),
    "colsample_bytree": (0.3, 1.0, False),
    "min_child_weight": (1.0, 50.0, True),
    "reg_lambda": (0.1, 50.0, True),
}
STARTUP_TRIALS = 8  # random ones, before the sampler learns from them and the pruner compares with them


class TuningError(RuntimeError):
    """There is nothing to apply; the message says what to do."""


def tune(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    contract: Contract,
    params: Params,
    *,
    trials: int,
    minutes: float,
    progress: Callable[[str, int, int], None] | None = None,
) -> int:
    """Search until there are ``trials`` ended trials or ``minutes`` have passed; returns how many ended in all.

    The first trial is ``params`` itself, so that the best is never worse. Raises DatasetError when no fold has rows.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    numbers = folds.numbers(connection, contract)
    study = _study(connection, settings, contract, params)
    for dead in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
        study.tell(dead.number, state=optuna.trial.TrialState.FAIL)  # its process was killed
    client = open_registry(settings)
    parent = _parent_run(client, settings, contract, study)

    def objective(trial: optuna.Trial) -> float:
        own = params.model_copy(update=_suggest(trial))
        run = _start(client, parent, trial, own)
        errors: list[float] = []
        status = "FAILED"
        try:
            for step, number in enumerate(numbers):
                fold = folds.read(connection, contract, number)
                boosted = fold.boost(own, refit=contract.split.refit, threads=settings.threads)
                found = fold.errors(boosted.booster.inplace_predict(fold.x[fold.test]))
                for name in (METRIC, "mdape_pct", "mae"):
                    client.log_metric(run, name, found[name], step=number)
                errors.append(found[METRIC])
                mean = sum(errors) / len(errors)
                trial.report(mean, step)
                if trial.should_prune():
                    status = "KILLED"
                    raise optuna.TrialPruned
            client.log_metric(run, f"mean_{METRIC}", mean)
            status = "FINISHED"
        finally:
            client.set_terminated(run, status)
        return mean

    deadline = time.monotonic() + 60 * minutes
    client.update_run(parent, "RUNNING")
    while (done := _ended(study)) < trials and time.monotonic() < deadline:
        if progress:
            progress("search parameters", done, trials)
        study.optimize(objective, n_trials=1)
    client.set_terminated(parent, "FINISHED")
    return _ended(study)


def best_so_far(settings: Settings) -> optuna.trial.FrozenTrial | None:
    """Best trial of the newest study, if any trial was completed."""
    import optuna

    if not _database(settings).exists():
        return None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = optuna.get_all_study_summaries(storage=_storage(settings))
    with_best = [s for s in found if s.best_trial is not None]
    return max(with_best, key=lambda s: s.datetime_start or 0).best_trial if with_best else None  # pyright: ignore


def describe_best(settings: Settings) -> str:
    """One sentence on the best trial and what to type next."""
    best = best_so_far(settings)
    if best is None:
        return "no trial was completed; give it more minutes"
    return (
        f"best of the search: trial {best.number}, mean {METRIC} {best.value:.3f} over the folds with "
        f"{json.dumps(best.params)}; `{command('tune --apply', settings.dataset)}` writes it to {PARAMS.name}"
    )


def apply_best(settings: Settings, path: Path = PARAMS) -> str:
    """Write the best parameters under ``datasets`` of the parameter file, comments kept; returns a sentence.

    Raises TuningError when there is nothing to apply, ParamsError when the result would be illegal.
    """
    from ruamel.yaml import YAML

    best = best_so_far(settings)
    if best is None:
        raise TuningError(f"nothing was searched for {settings.dataset} yet; type: housing tune -d {settings.dataset}")
    yaml = YAML()
    yaml.width = 120
    document = yaml.load(path.read_text(encoding="utf-8"))
    own = document.setdefault("datasets", {}).setdefault(settings.dataset, {})
    for name, value in best.params.items():
        own[name] = round(value, 6) if isinstance(value, float) else value
    aside = path.with_suffix(".new.yml")
    try:
        with aside.open("w", encoding="utf-8") as file:
            yaml.dump(document, file)
        load_params(settings.dataset, aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    then = command("train", settings.dataset)
    return f"trial {best.number} (mean {METRIC} {best.value:.3f}) stands in {path.name}; next: {then}"


def _suggest(trial: optuna.Trial) -> dict[str, Any]:
    return {"max_depth": trial.suggest_int("max_depth", *DEPTHS)} | {
        name: trial.suggest_float(name, low, high, log=log) for name, (low, high, log) in SPACE.items()
    }


def _study(
    connection: duckdb.DuckDBPyConnection, settings: Settings, contract: Contract, params: Params
) -> optuna.Study:
    import optuna

    name = f"{contract.name}-{_content(connection, contract)}"
    storage = _storage(settings)
    known = name in optuna.get_all_study_names(storage=storage)
    study = optuna.create_study(study_name=name, storage=storage, direction="minimize", load_if_exists=True)
    # a resumed search must not draw the same random trials again
    study.sampler = optuna.samplers.TPESampler(seed=params.seed + len(study.trials), n_startup_trials=STARTUP_TRIALS)
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS)
    if not known:
        study.enqueue_trial(params.model_dump(include={"max_depth", *SPACE}))
    return study


def _content(connection: duckdb.DuckDBPyConnection, contract: Contract) -> str:
    """Digest of the folds' rows, labels and features."""
    [found] = connection.execute(
        """
        select count(*), sum(hash(m.fold, m.role, d))
        from training.int_fold_members as m
        inner join (select * exclude (built_through_batch) from training.training_dataset) as d
            on m.observation_id = d.observation_id
        """
    ).fetchall()
    return hashlib.sha256(json.dumps([found, contract.features], default=str).encode()).hexdigest()[:12]


def _ended(study: optuna.Study) -> int:
    import optuna

    states = [optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED]
    return len(study.get_trials(deepcopy=False, states=states))


def _database(settings: Settings) -> Path:
    return settings.home / "tuning" / f"{settings.dataset}.db"


def _storage(settings: Settings) -> str:
    path = _database(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return f"sqlite:///{path}"


def _parent_run(client: MlflowClient, settings: Settings, contract: Contract, study: optuna.Study) -> str:
    """The study's MLflow run, made once."""
    if known := study.user_attrs.get("mlflow_run_id"):
        return known
    run = client.create_run(experiment_of(client, settings), run_name=f"tuning {study.study_name}")
    client.set_tag(run.info.run_id, "dataset", contract.name)
    study.set_user_attr("mlflow_run_id", run.info.run_id)
    return run.info.run_id


def _start(client: MlflowClient, parent: str, trial: optuna.Trial, params: Params) -> str:
    from mlflow.entities import Param

    experiment = client.get_run(parent).info.experiment_id
    run = client.create_run(experiment, run_name=f"trial {trial.number}", tags={"mlflow.parentRunId": parent})
    client.log_batch(run.info.run_id, params=[Param(k, str(v)) for k, v in params.model_dump().items()])
    return run.info.run_id
