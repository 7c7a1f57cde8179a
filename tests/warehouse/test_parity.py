"""Features are defined once: a month's features in the warehouse are those of the bundle over its raw rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml.bundle import Bundle, seal_bundle, write_bundle
from ml.dataset import read, select, training_window
from ml.params import load
from ml.train import fit
from ml.warehouse import connect
from tests import factories
from tests.conftest import REAL_DATA, Home

#: Dirty on purpose: what cleaning does to a row, it must do in both places.
MADE = {
    "hdb": lambda: factories.hdb_rows("2020-06", months=24, per_month=80, null_features=9, outliers=5, unpriced=30),
    "housets": lambda: factories.housets_rows(zips=12, since="2017-01", zero_census=40, null_features=9, unpriced=30),
    "ames": lambda: factories.ames_rows(900, null_features=9, outliers=5, unpriced=30),
    "house_data": lambda: factories.house_data_rows(300, null_features=9, outliers=5, unpriced=30),
}
REAL = {
    "hdb": ["hdb/2020-*.csv", "hdb/2021-*.csv", "hdb/2022-01.csv"],
    "housets": ["housets/HouseTS_sample.csv"],
    "ames": ["ames/train.csv", "ames/test.csv"],
    "house_data": ["house_data/house_data.csv"],
}


@pytest.mark.parametrize("dataset", sorted(MADE))
def test_features_of_a_month_are_equal_in_the_warehouse_and_in_the_bundle(home, tmp_path: Path, dataset: str) -> None:
    built: Home = home(dataset)
    # made rows first, so that where a key is in both, the real row counts
    built.land("0_made.csv", MADE[dataset]())
    for path in (path for pattern in REAL[dataset] for path in sorted(REAL_DATA.glob(pattern))):
        (built.settings.landing / path.name).symlink_to(path)
    built.ingest()
    built.build("--exclude", "test_type:data")

    bundle = bundle_of(built, tmp_path / "bundle")
    months = built.query("select distinct month from features.features order by month desc")["month"].to_pylist()
    headers = ", ".join(f'o."{header}"' for header in built.contract.sources)
    for month in sorted({*months[:2], *months[:: max(1, len(months) // 6)]}):
        want = built.query(f"select * from features.features where month = date '{month}' order by observation_id")
        raw = built.query(
            f"select {headers} from raw.observations o join intermediate.int_observations i "
            f"on o._batch = i._batch and o._row = i._row where i.month = date '{month}' order by i.observation_id"
        )
        got = bundle.features(raw)
        assert got.num_rows == want.num_rows > 0
        identity = ("observation_id", "observed_on", "month", "area", "locality", "target_offset")
        for name in (*identity, *built.contract.features):
            assert got[name].to_pylist() == want[name].to_pylist(), f"{month}: {name}"


def bundle_of(built: Home, folder: Path) -> Bundle:
    """A bundle over the built warehouse; its booster is beside the point, so it is a small one."""
    params = load(built.contract.name).model_copy(update={"rounds": 20, "early_stopping_rounds": 5, "eta": 0.3})
    with connect(built.settings) as connection:
        data = read(connection, select(connection, built.contract, training_window(built.contract)))
        result = fit(data, params, refit=False, threads=1)
        write_bundle(
            folder,
            connection,
            contract=built.contract.model_dump(mode="json"),
            booster=bytes(result.booster.save_raw("ubj")),
            linear=result.linear,
            imputation=result.imputation,
            metadata={"dataset": built.contract.name, "features": list(built.contract.features)},
        )
    seal_bundle(folder, "v1")
    return Bundle.load(folder)
