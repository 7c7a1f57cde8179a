"""The data dictionary is generated and complete."""

from __future__ import annotations

import duckdb
import yaml

from dagster_project.transform.data_dictionary import MODELS, PAGE, render
from ml.warehouse import OWNED_TABLES


def test_the_page_says_what_is_true_now() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run `make docs`"


def test_every_model_is_described() -> None:
    page = render()
    models = [p for p in MODELS.rglob("*.sql") if "staging" not in p.parts]
    missing = [p.stem for p in models if f".{p.stem}\n" not in page]
    assert not missing, f"no description for {missing}: add them to the YAML beside the model"


def test_every_column_that_python_writes_is_described_in_its_order(memory: duckdb.DuckDBPyConnection) -> None:
    memory.execute(OWNED_TABLES)
    there = memory.execute(
        "select schema_name || '.' || table_name, array_agg(column_name order by column_index) "
        "from duckdb_columns() where database_name = current_database() and not internal group by 1"
    ).fetchall()
    sources = yaml.safe_load((MODELS / "sources.yml").read_text(encoding="utf-8"))["sources"]
    described = {
        f"{source['name']}.{table['name']}": [c["name"] for c in table.get("columns", [])]
        for source in sources
        for table in source["tables"]
    }
    undescribed = {"training.model_selection"}  # an experiment's own table, explained in docs/experiments.md
    assert {name: columns for name, columns in there if name not in undescribed} == {
        name: described.get(name) for name, _ in there if name not in undescribed
    }
