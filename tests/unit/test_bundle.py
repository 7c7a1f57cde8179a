"""A version as one folder: raw rows in, prices out, by the warehouse's own SQL, wherever it is loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ml.baselines import LinearModel
from ml.bundle import NO_LEVEL, Bundle, BundleError, seal_bundle, write_bundle
from ml.dataset import read, select, training_window
from ml.imputation import Imputation
from ml.registry import _save_model
from ml.serving.engine import _reasons
from ml.settings import Settings
from ml.train import fit
from ml.views import MissingViewError
from ml.warehouse import connect
from tests import toy


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return toy.warehouse(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def folder(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that must not be changed."""
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    with connect(settings) as connection:
        data = read(connection, select(connection, toy.CONTRACT, training_window(toy.CONTRACT)))
        result = fit(data, toy.PARAMS, refit=True, threads=1)
        write_bundle(
            folder,
            connection,
            contract=toy.CONTRACT.model_dump(mode="json"),
            booster=bytes(result.booster.save_raw("ubj")),
            linear=result.linear,
            imputation=result.imputation,
            metadata={"dataset": "toy", "features": toy.CONTRACT.features},
        )
    seal_bundle(folder, "v1")
    return folder


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return Bundle.load(folder)


def prices(bundle: Bundle, rows: pa.Table | pd.DataFrame) -> list[float | None]:
    return bundle.predict(rows)["predicted_price"].to_pylist()


def test_features_of_raw_rows_equal_the_warehouses(bundle: Bundle, settings: Settings) -> None:
    raw = toy.rows()
    got = bundle.features(raw)
    with connect(settings, read_only=True) as connection:
        want = connection.execute("select * from features.features order by _row").to_arrow_table()
    for name in ("observation_id", "observed_on", "month", "area", "locality", "target_offset", *bundle.features_used):
        assert got[name].to_pylist() == want[name].to_pylist(), name


def test_every_row_gets_an_answer_in_its_place(bundle: Bundle) -> None:
    raw = toy.rows(first=12, months=1)
    backwards = raw.take(list(reversed(range(raw.num_rows))))
    twice = pa.concat_tables([raw, backwards])
    answers = bundle.predict(twice)
    assert answers.num_rows == 2 * raw.num_rows
    assert answers["observation_id"][0] == answers["observation_id"][-1]
    assert prices(bundle, twice) == prices(bundle, raw) + prices(bundle, raw)[::-1]
    assert set(answers["model_version"].to_pylist()) == {"v1"}


def test_a_row_that_cannot_be_priced_says_why_and_the_others_are_priced(bundle: Bundle) -> None:
    rows = pd.DataFrame(
        {
            "House": ["a", "b", "c", "d"],
            "Sold": ["2021-07", "yesterday", "2021-07", "2021-07"],
            "Town": ["North", "North", None, "Nowhere"],
            "Size": ["80", "80", "80", "80"],
        }
    )
    answers = bundle.predict(rows).to_pylist()
    assert [a["reasons"] for a in answers] == [
        [],
        ["sold:missing"],
        ["town:missing"],
        ["no price level is known for its place and month"],
    ]
    assert [a["predicted_price"] is not None for a in answers] == [True, False, False, False]


def test_where_prices_are_per_unit_of_a_size_a_row_without_it_says_so(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "bundle")
    file = tmp_path / "bundle" / "contract.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"size": "size"}))
    seal_bundle(tmp_path / "bundle", "v1")
    nowhere = {"Sold": "2021-07", "Town": "Nowhere"}
    rows = pa.Table.from_pylist([{"House": "a", **nowhere, "Size": "80"}, {"House": "b", **nowhere, "Size": None}])
    reasons = Bundle.load(tmp_path / "bundle").features(rows)["reasons"].to_pylist()
    assert reasons == [[NO_LEVEL], ["size is missing, and without it there is no price level, which is per unit of it"]]
    # so does the API
    checked = pa.table({"reasons": pa.array([[], []], pa.list_(pa.string())), "size": [80.0, None]})
    assert _reasons(checked, np.array([np.nan, np.nan]), "size") == reasons


def test_a_size_that_no_learned_house_lacks_is_the_usual_one(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    size = float(bundle.imputation.medians[bundle.features_used.index("size")])
    rows = pd.DataFrame({"House": ["a", "b"], "Sold": "2021-07", "Town": "North", "Size": ["", f"{size:.9g}"]})
    without, usual = prices(bundle, rows)
    assert without == usual and without is not None
    # a version of an earlier release leaves it to its trees, as it did
    earlier = shutil.copytree(folder, tmp_path / "bundle")
    (earlier / "imputation.json").unlink()
    seal_bundle(earlier, "v1")
    without, still = prices(Bundle.load(earlier), rows)
    assert still == usual and without != usual


def test_missing_headers_are_named_in_one_sentence(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"^the rows lack Town, Size; toy v1 needs House, Sold, Town, Size$"):
        bundle.predict(toy.rows().select(["House", "Sold"]))


def test_the_price_and_columns_that_leak_it_may_be_absent_and_never_matter(bundle: Bundle) -> None:
    raw = toy.rows(first=10, months=1)
    without = raw.drop_columns(["Price", "Tax"])
    absurd = raw.set_column(raw.column_names.index("Price"), "Price", pa.array(["-7"] * raw.num_rows))
    assert prices(bundle, raw) == prices(bundle, without) == prices(bundle, absurd)


def test_columns_it_does_not_know_are_ignored(bundle: Bundle) -> None:
    raw = toy.rows(first=10, months=1)
    more = raw.append_column("size", pa.array(["1"] * raw.num_rows)).append_column("_row", pa.array([5] * raw.num_rows))
    assert prices(bundle, raw) == prices(bundle, more)


def test_values_of_any_type_are_read_like_the_text_of_a_file(bundle: Bundle) -> None:
    texts = pd.DataFrame({"House": ["7", "8"], "Sold": ["2021-05"] * 2, "Town": ["South"] * 2, "Size": ["80", None]})
    typed = pd.DataFrame(
        {
            # an integer key that pandas made a float must stay the same key
            "House": [7.0, 8.0],
            "Sold": pd.to_datetime(["2021-05-01"] * 2),
            "Town": pd.Categorical(["South"] * 2),
            "Size": np.array([80, np.nan], dtype=np.float32),
        }
    )
    mixed = pd.DataFrame(
        {"House": [7, "8"], "Sold": [date(2021, 5, 1)] * 2, "Town": ["South"] * 2, "Size": [80, None]}, dtype=object
    )
    expected = bundle.predict(texts)
    for rows in (typed, mixed, pa.Table.from_pandas(typed)):
        got = bundle.predict(rows)
        assert got["observation_id"] == expected["observation_id"]
        assert got["predicted_price"] == expected["predicted_price"]


def test_no_rows_give_no_rows(bundle: Bundle) -> None:
    assert bundle.predict(toy.rows().slice(0, 0)).num_rows == 0
    assert bundle.predict(pd.DataFrame(columns=["House", "Sold", "Town", "Size"])).num_rows == 0


def test_threads_do_not_see_each_others_rows(bundle: Bundle) -> None:
    requests = [toy.rows(first=12, months=1).slice(i, 1 + i % 5) for i in range(40)]
    alone = [prices(bundle, rows) for rows in requests]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda rows: prices(bundle, rows), requests))
    assert together == alone


@pytest.mark.parametrize("file", ["model.ubj", "encodings.parquet", "sql.json", "contract.json", "metadata.json"])
def test_a_file_that_was_changed_is_refused_by_name(folder: Path, tmp_path: Path, file: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "bundle")
    content = (copy / file).read_bytes()
    changed = content.replace(b"v1", b"v2") if file == "metadata.json" else content + b" "
    (copy / file).write_bytes(changed)
    with pytest.raises(BundleError, match=f"{file} was changed after it was written"):
        Bundle.load(copy)


@pytest.mark.parametrize("file", ["model.ubj", "metadata.json"])
def test_a_file_that_is_gone_is_told(folder: Path, tmp_path: Path, file: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "bundle")
    (copy / file).unlink()
    with pytest.raises(BundleError, match=f"holds no complete bundle.*{file}"):
        Bundle.load(copy)


def test_a_warehouse_without_the_views_is_refused(tmp_path: Path, settings: Settings) -> None:
    shutil.copytree(settings.home, tmp_path / "home")
    with connect(Settings(home=tmp_path / "home", dataset="toy")) as connection:
        connection.execute("drop view features.features_as_of")
        with pytest.raises(MissingViewError, match=r"has no view features.features_as_of; run `dbt build`"):
            write_bundle(
                tmp_path / "b",
                connection,
                contract={},
                booster=b"",
                linear=LinearModel([], [], [], [], [], [], 0.0),
                imputation=Imputation.none(0),
                metadata={"dataset": "toy"},
            )


def test_the_sql_is_the_warehouses_word_for_word(folder: Path, settings: Settings) -> None:
    with connect(settings, read_only=True) as connection:
        views = dict(connection.execute("select schema_name || '.' || view_name, sql from duckdb_views()").fetchall())
    stored = json.loads((folder / "sql.json").read_text(encoding="utf-8"))
    assert [name for name, _ in stored] == [
        "staging.stg_toy__observations",
        "intermediate.int_observations_checked",
        "features.features_as_of",
    ]
    assert all(views[name] == sql for name, sql in stored)


def test_the_database_behind_a_request_reads_no_files(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n", encoding="utf-8")
    with pytest.raises(Exception, match="disabled"):
        bundle._database.cursor().execute(f"select * from read_csv('{tmp_path / 'secret.csv'}')")
    with pytest.raises(Exception, match="locked"):
        bundle._database.cursor().execute("set enable_external_access = true")


def test_requests_leave_nothing_behind(bundle: Bundle) -> None:
    bundle.predict(toy.rows(first=12, months=1))
    left = bundle._database.cursor().execute("select count(*) from toy.raw.observations").fetchone()
    assert left == (0,)


def test_the_mlflow_model_holds_no_pickle_and_runs_where_the_repository_is_unknown(
    folder: Path, bundle: Bundle, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "bundle")
    _save_model(tmp_path, "v7")
    model = tmp_path / "model"
    files = {path.suffix for path in model.rglob("*") if path.is_file()}
    assert files == {"", ".json", ".parquet", ".py", ".txt", ".ubj", ".yaml"}
    assert all("==" in line for line in (model / "requirements.txt").read_text(encoding="utf-8").splitlines())

    raw = toy.rows(first=12, months=1)
    raw.to_pandas().set_index(pd.Index(range(100, 160))).to_parquet(tmp_path / "raw.parquet")
    script = """
import sys, importlib.util
assert importlib.util.find_spec("ml") is None, "the repository can be imported here"
import mlflow.pyfunc, pandas as pd
mlflow.pyfunc.load_model(sys.argv[1]).predict(pd.read_parquet(sys.argv[2])).to_parquet(sys.argv[3])
assert "pydantic_settings" not in sys.modules and "dagster" not in sys.modules
"""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # -S and an explicit path: libraries, but not the editable installation of this project
    libraries = next(p for p in sys.path if p.endswith("site-packages"))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HOUSING_")}
    done = subprocess.run(
        [
            sys.executable,
            "-S",
            "-P",
            "-c",
            script,
            str(model),
            str(tmp_path / "raw.parquet"),
            str(tmp_path / "out.parquet"),
        ],
        env={**environment, "PYTHONPATH": libraries},
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = pd.read_parquet(tmp_path / "out.parquet")
    assert answers.index.tolist() == list(range(100, 160))
    assert answers["predicted_price"].tolist() == prices(bundle, raw)
    assert set(answers["model_version"]) == {"v7"}
    assert pc.all(pc.equal(pa.array(answers["observation_id"]), bundle.predict(raw)["observation_id"])).as_py()  # pyright: ignore
