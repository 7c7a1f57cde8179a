"""Settings come from variables or from ``.env``, whichever the user writes them into."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ml.alerts import AlertSettings
from ml.dashboard.page import Options
from ml.serving.settings import ApiSettings
from ml.settings import PROJECT_ROOT, Settings, SettingsError, command, run_command

SERVER = "http://mlflow.example:5000"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def test_the_mlflow_server_is_taken_from_a_variable_or_from_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Settings(home=folder).mlflow_uri == f"sqlite:///{folder}/mlflow/mlflow.db"
    (folder / ".env").write_text(f"MLFLOW_TRACKING_URI={SERVER}\n")
    assert Settings(home=folder).mlflow_uri == SERVER
    # processes that start elsewhere find the same server
    assert Settings(home=folder).environment["MLFLOW_TRACKING_URI"] == SERVER
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other.example:5000")
    assert Settings(home=folder).mlflow_uri == "http://other.example:5000"


def test_no_server_is_asked_where_there_is_none_or_models_stay_below_home(folder: Path) -> None:
    (folder / ".env").write_text("MLFLOW_TRACKING_URI=\n")
    assert Settings(home=folder).mlflow_uri.startswith("sqlite:///")
    assert "MLFLOW_TRACKING_URI" not in Settings(home=folder).environment
    (folder / ".env").write_text(f"MLFLOW_TRACKING_URI={SERVER}\n")
    assert Settings(home=folder, own_registry=True).mlflow_uri.startswith("sqlite:///")


def test_every_line_of_the_example_file_is_a_known_setting() -> None:
    known = set()
    for kind in (Settings, ApiSettings, AlertSettings, Options):
        prefix = kind.model_config.get("env_prefix", "")
        known |= {str(f.validation_alias or f"{prefix}{name}".upper()) for name, f in kind.model_fields.items()}
    lines = (PROJECT_ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    written = {found[1] for line in lines if (found := re.match(r"# ([A-Z_]+)=", line))}
    assert len(written) > 10 and written <= known, written - known


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("HOUSING_THREADS", "many", "HOUSING_THREADS: must be a valid integer"),
        ("HOUSING_THREADS", "0", "HOUSING_THREADS: must be greater than or equal to 1 (got '0')"),
        ("HOUSING_MEMORY_LIMIT", "lots", "HOUSING_MEMORY_LIMIT: must match pattern"),
        ("HOUSING_DATASET", "../x", "HOUSING_DATASET: '../x' is no dataset; known are: ames, hdb, house_data, housets"),
        # the working directory would become the home
        ("HOUSING_HOME", "", "HOUSING_HOME: is empty; give a folder"),
        ("HOUSING_HOME", "/tmp/50%/x", "HOUSING_HOME: /tmp/50%/x holds '%', where MLflow finds no file"),
        # SQLite would write to /tmp/no
        ("HOUSING_HOME", "/tmp/no#1", "HOUSING_HOME: /tmp/no#1 holds '#'"),
        ("HOUSING_HOME", "/tmp/what?", "HOUSING_HOME: /tmp/what? holds '?'"),
        ("HOUSING_HOME", __file__, "test_settings.py is a file; give a folder"),
    ],
)
def test_a_variable_that_cannot_work_is_named_with_its_value(
    variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as refused:
        Settings()
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_port_of_the_service_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOUSING_API_PORT", "99999")
    with pytest.raises(SettingsError, match=r"^HOUSING_API_PORT: must be less than or equal to 65535 \(got '99999'\)$"):
        ApiSettings()


def test_what_to_type_names_the_dataset_unless_it_is_chosen_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOUSING_DATASET", raising=False)
    assert run_command("housets") == "housing run"
    assert run_command("hdb") == "housing run -d hdb"
    assert command("train --through YYYY-MM", "housets") == "housing train --through YYYY-MM"
    assert command("train --through YYYY-MM", "ames") == "housing train -d ames --through YYYY-MM"
    # the variable would choose another
    monkeypatch.setenv("HOUSING_DATASET", "hdb")
    assert run_command("housets") == "housing run -d housets"
