"""What the command line refuses before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dagster_project.cli import app


@pytest.mark.parametrize("format", ["csv", "yaml", "JSON"])
def test_status_has_two_formats_and_names_them(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOUSING_HOME", str(tmp_path))
    # without this a program that asks for csv gets a table for people
    error = CliRunner().invoke(app, ["status", "--format", format]).exception
    assert isinstance(error, ValueError) and str(error) == f"unknown format {format!r}; known are: table, json"
