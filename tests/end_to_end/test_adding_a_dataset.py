"""docs/adding_a_dataset.md, followed to the letter in a copy of the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from ml.settings import PROJECT_ROOT
from tests import factories


def condos(rows: int = 3000, seed: int = 5) -> pa.Table:
    rng = np.random.default_rng(seed)
    month = rng.integers(0, 66, rows)
    district, rooms = rng.integers(0, 4, rows), rng.integers(1, 6, rows)
    area = rooms * 22 + rng.integers(-5, 20, rows)
    price = area * (3000 + 800 * district) * np.exp(0.004 * month) * rng.lognormal(0, 0.05, rows)
    price = price * np.where(rooms == 3, 1.5, 1.0)  # three rooms are in fashion, which no straight line follows
    return pa.table(
        {
            "Sale ID": [f"S{i}" for i in range(rows)],
            "Date": [f"{2019 + m // 12}-{m % 12 + 1:02d}-15" for m in month],
            "District": [f"D{d}" for d in district],
            "Building": [f"D{d}-B{b}" for d, b in zip(district, rng.integers(0, 9, rows), strict=True)],
            "Area": area,
            "Rooms": rooms,
            "Price": np.round(price),
        }
    )


def test_the_four_steps_work_without_touching_another_file(tmp_path: Path) -> None:
    page = (PROJECT_ROOT / "docs" / "adding_a_dataset.md").read_text(encoding="utf-8")
    contract, model = (re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("yaml", "sql"))
    assert contract and model
    copy = tmp_path / "project"
    for part in ("warehouse", "ml", "dagster_project", "expectations", "pyproject.toml", "README.md"):
        source = PROJECT_ROOT / part
        ignore = shutil.ignore_patterns("target", "logs", "__pycache__")
        shutil.copytree(source, copy / part, ignore=ignore) if source.is_dir() else shutil.copy(source, copy / part)
    folder = copy / "warehouse" / "models" / "staging" / "condos"
    folder.mkdir()
    for name, match in (("condos.yml", contract), ("stg_condos__observations.sql", model)):
        text = "\n".join(line.removeprefix("   ") for line in match.group(1).splitlines()) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    landed = factories.write_csv(condos(), tmp_path / "condos.csv")

    environment = {**os.environ, "PYTHONPATH": str(copy), "HOUSING_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-m", "dagster_project.cli", "run", "--dataset", "condos", "--from", str(landed)],
        env=environment, cwd=copy, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "v1 passed its gate" in done.stdout, done.stdout
