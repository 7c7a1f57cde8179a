"""What the command line refuses before anything starts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from typer.testing import CliRunner

from dagster_project import cli
from dagster_project.cli import _sentence, app
from dagster_project.replay import Plan, ReplayError, replay
from dagster_project.transform import dbt
from ml import folds, params
from ml.contract import load, month_date
from ml.dataset import DatasetError
from ml.promotion import PromotionError, promote, rollback
from ml.serving.security import KeyFileError, new_key
from ml.settings import Settings
from ml.verdicts import newest_decision
from ml.warehouse import WarehouseBusyError, connect, create_tables


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOUSING_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def refusal(*arguments: str) -> str:
    """The sentence of a command that ends with an error."""
    error = CliRunner().invoke(app, [*arguments]).exception
    assert error and not isinstance(error, SystemExit), error
    return str(error)


@pytest.mark.parametrize("format", ["csv", "yaml", "JSON"])
def test_status_has_two_formats_and_names_them(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOUSING_HOME", str(tmp_path))
    # without this a program that asks for csv gets a table for people
    error = CliRunner().invoke(app, ["status", "--format", format]).exception
    assert isinstance(error, ValueError) and str(error) == f"unknown format {format!r}; known are: table, json"


def test_a_dataset_that_is_not_there_is_answered_with_those_that_are(home: Path) -> None:
    assert refusal("status", "-d", "HDB") == "unknown dataset 'HDB'; known are: ames, hdb, house_data, housets"


@pytest.mark.parametrize("command", ["dashboard", "serve", "ui"])
def test_a_port_that_no_machine_has_is_a_wrong_option(command: str, home: Path) -> None:
    done = CliRunner().invoke(app, [command, "--port", "99999"])
    assert done.exit_code == 2 and "Invalid value for '--port'" in done.output and "65535" in done.output


def test_what_cannot_be_simulated_is_refused_before_anything_lands(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "unpriced.csv"
    file.write_text("Id\n1\n", encoding="utf-8")
    assert "/nope.csv does not exist; give the path" in refusal("simulate", "/nope.csv", "-d", "ames")
    assert refusal("simulate", str(tmp_path), "-d", "ames").endswith(
        "is a folder; give one file whose rows have no price"
    )
    built = "nothing was built for ames yet; type: housing run -d ames"
    assert refusal("simulate", str(file), "-d", "ames") == built
    settings = Settings(dataset="ames")
    with connect(settings):
        pass
    assert refusal("simulate", str(file), "-d", "ames") == built
    with connect(settings) as connection:
        create_tables(connection, load("ames"))
    assert refusal("simulate", str(file), "-d", "ames").startswith("no version passed its gate")
    assert not settings.landing.exists()


# each was a Catalog Error, or a list of no versions
def test_what_asks_for_a_build_says_that_there_was_none(home: Path) -> None:
    said = "^nothing was built for hdb yet; type: housing run -d hdb$"
    settings, contract = Settings(dataset="hdb"), load("hdb")
    plan = Plan("never", month_date("2020-01"), month_date("2020-02"))

    def walk() -> None:
        replay(settings, contract, plan, params.load("hdb"), show=lambda task, done, total: None)

    with pytest.raises(ReplayError, match=said):
        walk()
    for prepared in (False, True):
        with connect(settings) as connection:
            if prepared:
                create_tables(connection, contract)
            assert newest_decision(connection) is None
            with pytest.raises(DatasetError, match=said):
                folds.numbers(connection, contract)
            with pytest.raises(PromotionError, match=said):
                promote(connection, settings, load(settings.dataset), "v9", actor="test")
            with pytest.raises(PromotionError, match="nothing was built" if not prepared else "no champion before"):
                rollback(connection, settings, load(settings.dataset), actor="test")
        with pytest.raises(ReplayError, match=said):
            walk()


INTERRUPTED = "housing: interrupted; the same command goes on where it stopped\n"


# a step of Dagster that was interrupted ends as a failed one
@pytest.mark.parametrize(
    "raised",
    [
        "KeyboardInterrupt()",
        # what DuckDB makes of a Ctrl-C
        "duckdb.InterruptException('INTERRUPT Error: Interrupted!')",
        "RuntimeError('features failed: Query interrupted')",
        "DagsterExecutionInterruptedError()",
        "RuntimeError('explanations failed: dagster._core.errors.DagsterExecutionInterruptedError')",
    ],
)
def test_an_interrupt_is_told_without_a_traceback(raised: str, home: Path) -> None:
    script = f"""
import duckdb
import dagster_project.summary as summary
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster_project.cli import main
def interrupted(settings):
    raise {raised}
summary.as_text = interrupted
main()
"""
    done = subprocess.run([sys.executable, "-c", script, "status"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, INTERRUPTED)


def test_ctrl_c_ends_a_command_with_one_sentence(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    command = [sys.executable, "-m", "dagster_project.cli", "generate", str(out), "--rows", "300000"]
    # whoever runs the suite in the background of a script has made it deaf to Ctrl-C
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    assert running.stderr and "generate rows" in running.stderr.readline()
    running.send_signal(signal.SIGINT)
    assert running.stderr.read() == INTERRUPTED
    assert running.wait() == 130
    assert not list(tmp_path.glob("*rows.csv*")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("name", "scopes", "said"),
    [
        ("a b", "predict", "'a b' cannot name a key; use 1 to 64 letters"),
        ("app", "", r"unknown scope \(none\); scopes are"),
        ("app", "predict,all", "unknown scope all; scopes are predict, feedback, admin"),
    ],
)
def test_a_key_that_cannot_be_made_is_told_by_its_option(name: str, scopes: str, said: str) -> None:
    with pytest.raises(KeyFileError, match=said):
        new_key(name, scopes)


def test_dbt_tells_what_began_an_error_and_no_trace() -> None:
    def failed() -> BaseException:
        try:
            try:
                raise OSError(28, "No space left on device", "/home/x")
            except OSError as error:
                raise RuntimeError("cannot write the manifest" + " and so on" * 500) from error
        except RuntimeError as error:
            return error

    said = dbt._reason(failed())
    assert said.startswith("[Errno 28] No space left on device: '/home/x' (cannot write the manifest and so on")
    assert len(said) < 1400
    assert dbt._reason(duckdb.IOException("full")) == "full"


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("dbt parse failed: [Errno 28] No space left on device", "free some and type the same command again"),
        ("(sqlite3.OperationalError) database or disk is full", "free some and type the same command again"),
        ("[Errno 30] Read-only file system: '/x/landing'", "set HOUSING_HOME to a folder that may be written to"),
        ("(sqlite3.OperationalError) attempt to write a readonly database", "change its permissions"),
        ('IO Error: The file "/x/hdb.duckdb" exists, but it is not a valid DuckDB database file!', "docs/runbook.md"),
        ("IO Error: Corrupt database file: computed checksum 1 does not match stored checksum 2", "docs/runbook.md"),
    ],
)
def test_what_is_wrong_with_the_machine_is_told_with_what_to_do(said: str, advice: str) -> None:
    sentence = _sentence(RuntimeError(said))
    assert advice in sentence and sentence.endswith(f"({said})")


# the innermost error of a failed step is what the command line tells
def test_a_warehouse_open_in_another_tool_is_told_without_what_duckdb_said(home: Path) -> None:
    settings = Settings(dataset="hdb")
    with connect(settings):
        pass
    opens = f"import duckdb, time; c = duckdb.connect({str(settings.warehouse)!r}); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", opens], stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        said = f"of hdb is held by process {other.pid} .*try again$"
        with pytest.raises(WarehouseBusyError, match=said) as told, connect(settings):
            pass
        assert told.value.__cause__ is None
        other.kill()


# square brackets are markup to what prints the help: they and what stands in them were left out
@pytest.mark.parametrize(
    ("command", "default"),
    [
        ("run", "(default: $HOUSING_DATASET or housets)"),
        ("promote", "(default: the challenger)"),
        ("serve", "(default: $HOUSING_API_PORT or 8000)"),
        ("report", "(default: below HOUSING_HOME/reports)"),
    ],
)
def test_the_help_of_a_command_tells_its_defaults(command: str, default: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"], terminal_width=200, env={"COLUMNS": "200"}).output
    assert default in " ".join(shown.split())


def test_the_ui_is_refused_on_a_taken_port(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*command: object) -> None:
        raise AssertionError(f"{command} would have taken the place of this process")

    monkeypatch.setattr(os, "execv", started)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        result = CliRunner().invoke(app, ["ui", "--port", str(port)])
    assert isinstance(result.exception, OSError)
    assert str(result.exception).startswith(f"port {port} of 127.0.0.1 is taken")
    cli._require_free(port)
