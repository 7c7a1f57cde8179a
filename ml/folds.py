"""Folds on which choices are made, read from ``training.int_fold_members``; what they are is SQL in ``warehouse/``.

Each fold trains as the product does (early stopping on the rows of role eval, then a refit with them) and is scored on
its test rows. Which models are compared stands in ``ml/model_selection.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb
import numpy as np

from ml.bundle import feature_matrix
from ml.contract import Contract
from ml.dataset import DatasetError
from ml.evaluate import accuracy
from ml.params import Params
from ml.settings import nothing_built
from ml.train import Boosted, boost
from ml.warehouse import in_order, is_built, quoted


@dataclass(frozen=True)
class Fold:
    """Rows of a fold in the order train, eval, test."""

    number: int
    n_train: int
    n_eval: int
    n_test: int
    test_from: str
    test_through: str
    features: tuple[str, ...]
    x: np.ndarray
    """float32, shape (n, features), missing values are NaN."""
    target: np.ndarray
    """float32, shape (n,): log price relative to the as-of level."""
    offset: np.ndarray
    """float64, shape (n,): log of the as-of level."""
    price: np.ndarray
    persistence: np.ndarray
    """Last known price of the place, shape (n,), NaN without one."""

    @property
    def train(self) -> slice:
        return slice(0, self.n_train)

    @property
    def evaluation(self) -> slice:
        return slice(self.n_train, self.n_train + self.n_eval)

    @property
    def known(self) -> slice:
        """What a model may learn from: train and eval."""
        return slice(0, self.n_train + self.n_eval)

    @property
    def test(self) -> slice:
        return slice(self.n_train + self.n_eval, len(self.price))

    def boost(self, params: Params, *, refit: bool, threads: int) -> Boosted:
        """XGBoost as the product trains it."""
        return boost(
            self.x, self.target, self.train, self.evaluation, params=params, features=self.features, refit=refit,
            threads=threads,
        )  # fmt: skip

    def errors(self, scores: np.ndarray) -> dict[str, float]:
        """``accuracy`` of scores (log ratios, shape (n_test,)) with ``rmse_log``, the root mean squared log error."""
        log_price = scores.astype(np.float64) + self.offset[self.test]
        rmse_log = float(np.sqrt(np.mean((log_price - np.log(self.price[self.test])) ** 2)))
        return {**accuracy(self.price[self.test], np.exp(log_price)), "rmse_log": rmse_log}

    def persistence_errors(self) -> dict[str, float]:
        """``accuracy`` of persistence on the test rows that have one; only ``n`` when none has."""
        actual, said = self.price[self.test], self.persistence[self.test]
        has = np.isfinite(said)
        return accuracy(actual[has], said[has]) if has.any() else {"n": 0.0}


def numbers(connection: duckdb.DuckDBPyConnection, contract: Contract) -> list[int]:
    """Folds that have rows to train, to stop and to test on. Raises DatasetError when there are none."""
    if not is_built(connection, "training.int_fold_members"):
        raise DatasetError(nothing_built(contract.name))
    found = connection.execute(
        """
        select m.fold from training.int_fold_members as m
        inner join training.training_dataset as d on m.observation_id = d.observation_id
        where m.role <> 'gap' and d.target is not null
        group by m.fold having count(distinct m.role) = 3 order by m.fold
        """
    ).fetchall()
    if not found:
        raise DatasetError("no fold has rows to train, to stop and to test on; land more months before the holdout")
    return [fold for (fold,) in found]


def read(connection: duckdb.DuckDBPyConnection, contract: Contract, number: int) -> Fold:
    """Rows of one fold, ordered by role, month and observation_id."""
    features = tuple(contract.features)
    with in_order(connection):
        rows = connection.execute(
            f"""
            select m.role, d.month, d.target, d.target_offset, d.price, d.persistence_price,
                {", ".join("d." + quoted(name) for name in features)}
            from training.int_fold_members as m
            inner join training.training_dataset as d on m.observation_id = d.observation_id
            where m.fold = ? and m.role <> 'gap' and d.target is not null
            order by case m.role when 'train' then 0 when 'eval' then 1 else 2 end, d.month, d.observation_id
            """,
            [number],
        ).to_arrow_table()
    counts = dict(zip(*np.unique(rows["role"].to_numpy(), return_counts=True), strict=True))
    months = rows["month"].to_pylist()
    tested = months[-int(counts["test"]) :]
    return Fold(
        number=number,
        n_train=int(counts["train"]),
        n_eval=int(counts["eval"]),
        n_test=int(counts["test"]),
        test_from=f"{min(tested):%Y-%m}",
        test_through=f"{max(tested):%Y-%m}",
        features=features,
        x=feature_matrix(rows, features),
        target=rows["target"].to_numpy().astype(np.float32),
        offset=rows["target_offset"].to_numpy(),
        price=rows["price"].to_numpy(),
        persistence=rows["persistence_price"].to_numpy(),
    )
