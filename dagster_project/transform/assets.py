"""All dbt models as Dagster assets, their tests as asset checks. SQL belongs in ``warehouse/``."""

import sys
import threading
from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import Any

import dagster as dg
from dagster_dbt import DagsterDbtTranslator, DagsterDbtTranslatorSettings, DbtProject, dbt_assets
from dagster_dbt.asset_utils import get_updated_cli_invocation_params_for_context
from dagster_dbt.core.dbt_cli_event import DbtCoreCliEventMessage
from dbt_common.events.base_types import EventMsg
from dbt_common.events.functions import msg_to_dict

from dagster_project.resources import POOL, Housing
from dagster_project.training.attempts import died_runs, remember_died
from dagster_project.transform.dbt import DbtError, ensure_manifest, run_dbt
from dagster_project.transform.project import needs_full_refresh, remember_shape
from ml.settings import Settings
from ml.warehouse import connect, quoted


class LayerTranslator(DagsterDbtTranslator):
    """A layer is one word everywhere: asset key and group are the schema."""

    def get_asset_key(self, dbt_resource_props: Mapping[str, Any]) -> dg.AssetKey:
        if dbt_resource_props["resource_type"] == "source":
            return dg.AssetKey(dbt_resource_props["config"]["meta"]["dagster"]["asset_key"])
        return dg.AssetKey([dbt_resource_props["schema"], dbt_resource_props["name"]])

    def get_group_name(self, dbt_resource_props: Mapping[str, Any]) -> str | None:
        return dbt_resource_props["schema"]

    def get_asset_check_spec(
        self, asset_spec: dg.AssetSpec, manifest: Mapping[str, Any], unique_id: str, project: DbtProject | None
    ) -> dg.AssetCheckSpec | None:
        spec = super().get_asset_check_spec(asset_spec, manifest, unique_id, project)
        return spec and spec._replace(description=_claim(manifest["nodes"][unique_id]))


def _claim(test: Mapping[str, Any]) -> str | None:
    """What a data test holds to be true, for people who see it fail; a file of SQL says so in its first comment."""
    if not (generic := test.get("test_metadata")):
        comment = takewhile(lambda line: line.startswith("--"), test["raw_code"].splitlines())
        return " ".join(line.removeprefix("--").strip() for line in comment) or None
    told: dict[str, Any] = generic["kwargs"]
    column = told.get("column_name")
    bounds = [f"at {side} {told[f'at_{side}']}" for side in ("least", "most") if told.get(f"at_{side}") is not None]
    claims = {
        "unique_key": f"No two rows share their {' and '.join(told.get('columns', []))}; none of it is null.",
        "unique": f"No two rows share {column}.",
        "not_null": f"{column} is never null.",
        "accepted_values": f"{column} is null or one of {', '.join(map(str, told.get('values', [])))}.",
        "accepted_range": f"{column} is null or {' and '.join(bounds)}.",
    }
    return claims.get(generic["name"])


def transform_assets(settings: Settings) -> dg.AssetsDefinition:
    """The dbt project of one dataset as one multi-asset; Dagster splits it where a Python asset stands between."""

    @dbt_assets(
        manifest=ensure_manifest(settings),
        name="warehouse_models",
        dagster_dbt_translator=LayerTranslator(
            DagsterDbtTranslatorSettings(enable_asset_checks=True, enable_duplicate_source_asset_keys=True)
        ),
        pool=POOL,
    )
    def warehouse_models(context: dg.AssetExecutionContext, housing: Housing) -> Iterator[Any]:
        layers = {key.path[0] for key in context.selected_asset_keys}
        full_refresh = needs_full_refresh(housing.settings, layers)
        if full_refresh:
            context.log.info("the first build, or models, macros or the contract changed: everything is rebuilt")
        with housing.lock(context):
            # nearly always there are none, and the warehouse need not be opened once more
            if "monitoring" in layers and died_runs(context.instance, housing.settings.dataset):
                with connect(housing.settings) as connection:
                    remember_died(connection, context.instance, housing.settings.dataset)
            yield from _build(context, housing.settings, *(["--full-refresh"] if full_refresh else []))
            remember_shape(housing.settings, layers)
            _observe_row_counts(context, housing.settings)

    return warehouse_models


def _build(context: dg.AssetExecutionContext, settings: Settings, *arguments: str) -> Iterator[Any]:
    """What dbt built and tested of the selected assets, as Dagster's events. Raises DbtError after the last of them."""
    # the translation of Dagster's selection into dbt's, and of dbt's events into Dagster's, are those of `dbt.cli(…)`
    run = get_updated_cli_invocation_params_for_context(context, {}, LayerTranslator())
    heard: list[DbtCoreCliEventMessage] = []
    # dbt's threads tell theirs at once, and two of them break the text of a stream
    one_by_one = threading.Lock()

    def hear(event: EventMsg) -> None:
        if event.info.level != "debug":
            with one_by_one:
                heard.append(DbtCoreCliEventMessage(raw_event=msg_to_dict(event), event_history_metadata={}))
                sys.stdout.write(f"{heard[-1]}\n")

    selected = [
        *run.selection_args,
        *(["--indirect-selection", run.indirect_selection] if run.indirect_selection else []),
    ]
    if "monitoring" in {key.path[0] for key in context.selected_asset_keys}:
        # by now all sources are written: no model would bring their tests along
        selected += ["--select", " ".join(_tests_of_sources(run.manifest))]
        # one model's work in Python beside another's in DuckDB: a fifth less to wait. The history is one long chain
        selected += ["--threads", "2"]
    failed: DbtError | None = None
    try:
        run_dbt(settings, "build", "--exclude-resource-type", "unit_test", *selected, *arguments, hear=hear)
    except DbtError as error:
        failed = error
    for event in heard:
        yield from event.to_default_asset_events(run.manifest, run.dagster_dbt_translator, context)
    if failed:
        raise failed


def _tests_of_sources(manifest: Mapping[str, Any]) -> list[str]:
    """Data tests of nothing but tables that Python writes: predictions, reasons, later prices."""
    return sorted(
        node["name"]
        for node in manifest["nodes"].values()
        if node["resource_type"] == "test"
        and node["depends_on"]["nodes"]
        and all(name.startswith("source.") for name in node["depends_on"]["nodes"])
    )


def _observe_row_counts(context: dg.AssetExecutionContext, settings: Settings) -> None:
    """Row counts of the tables just built. dbt has closed the file, so it can be opened again."""
    with connect(settings, read_only=True) as connection:
        tables = set(connection.execute("select schema_name, table_name from duckdb_tables()").fetchall())
        for key in sorted(context.selected_asset_keys):
            if tuple(key.path) in tables:
                name = ".".join(quoted(part) for part in key.path)
                row = connection.execute(f"select count(*) from {name}").fetchone()
                context.log_event(dg.AssetObservation(key, metadata={"dagster/row_count": row[0] if row else 0}))
