"""Which versions there are, how one came to be champion, what it is made of, and where its rows come from."""

from __future__ import annotations

import re
from html import escape

import streamlit as st

from ml.dashboard import charts, queries
from ml.dashboard.page import Column, Page, chart, choose_one, head, month_label, nothing, section, table, tiles
from ml.dashboard.snapshot import Row
from ml.words import MISSING, feature_label, learned, number, series_label

#: The way of a row: a table of the snapshot and what it holds.
WAY = [
    ("raw.files", "files landed"),
    ("training.training_dataset", "accepted homes with features"),
    ("training.model_versions", "model versions"),
    ("predictions.predictions", "predictions, baselines among them"),
    ("predictions.predictions_matched", "matched with prices"),
    ("monitoring.accuracy_by_month", "verdicts by month"),
]


def render(page: Page) -> None:
    head("Model", f"{page.contract.title}: versions, what they are made of, and where their rows come from.")
    versions = page.snapshot.rows(queries.VERSIONS)
    if not versions:
        nothing("No version has been trained yet.", f"Type: housing train --dataset {page.contract.name}")
        return
    names = [v["model_version"] for v in versions]
    champion = page.champion["model_version"] if page.champion else names[0]
    name = choose_one("Version", "card", names, first=champion)
    version = next(v for v in versions if v["model_version"] == name)
    _card(page, version)
    _importance(page, version)
    _versions(versions)
    _aliases(page)
    _lineage(page)


def _card(page: Page, v: Row) -> None:
    n, last = learned(v)
    span = "a share of the keys"
    if page.dated:
        span = f"{month_label(v['trained_from'])} to {month_label(last)}"
    better = ""
    if v["eval_baseline_mae"]:
        better = f"baseline {page.money(v['eval_baseline_mae'])}"
    tiles(
        [
            ("Version", v["model_version"], v["status"]),
            ("Learned from", number(n), f"homes, {span}"),
            ("Features", number(v["features"]), f"{number(v['best_iteration'])} rounds of trees"),
            ("Evaluation MAE", page.money(v["eval_mae"]), better),
            ("Evaluation error", f"{number(v['eval_mdape_pct'], 2)} %", f"median, {number(v['n_eval'])} homes"),
            ("Evaluation R²", number(v["eval_r2"], 3), "1 is perfect"),
        ]
    )
    split = page.snapshot.first(queries.SPLIT, version=v["model_version"])
    if split:
        section(
            "Beside its baselines",
            f"Valid prices of the split {split['split']}, which it did not learn from; of each the "
            "homes that it has a price for.",
        )
        rows = page.snapshot.rows(queries.BESIDE_BASELINES, version=v["model_version"], split=split["split"])
        columns = [
            Column("name", "Who says it"),
            Column("n", "n", 0),
            Column("mae", f"MAE, {page.contract.currency}", money=True),
        ]
        columns += [Column("mdape_pct", "Median error, %", 2), Column("within_10_pct", "Within 10 %", 1)]
        columns += [Column("r2", "R²", 3), Column("median_ratio", "Median ratio", 3), Column("status", "Verdict")]
        table([r | {"name": series_label(r["model_version"])} for r in rows], columns, label="Model and baselines")
    left_out = [c for c in page.contract.columns if c.role == "leak"]
    late = [c.name for c in page.contract.columns if c.known == "after_month" and c.role == "feature"]
    section("Model card")
    earlier, unlike = "", "places or kinds of homes"
    if page.dated:
        earlier, unlike = "; of prices only those of earlier months", "places, kinds of homes or times"
    scale = "logarithm"
    if page.contract.level:
        scale = "log ratio to the price level" + (" known before its month" if page.dated else "")
    points = [
        f"**What it says:** the price of a home, as its {scale}, by boosted trees (XGBoost), with reasons "
        "and comparable sales, and with a range and a grade where enough of its errors are known.",
        f"**What it learned from:** {number(n)} homes, {span}{earlier}.",
    ]
    if left_out:
        points.append(f"**Left out, because it gives the price away:** {', '.join(c.name for c in left_out)}.")
    if late:
        points.append(f"**A nowcast:** {len(late)} features are known only after the month: {', '.join(late)}.")
    points.append(
        f"**Not for:** {unlike} unlike those it learned from; ranges widen there"
        + (", and where nothing is known of a place no price is given." if page.contract.level else ".")
    )
    st.markdown("\n".join(f"- {point}" for point in points))


def _importance(page: Page, v: Row) -> None:
    rows = page.snapshot.rows(queries.IMPORTANCE, version=v["model_version"])
    if not rows:
        return
    when = f"Predictions of {month_label(rows[0]['month'])}. " if page.dated else ""
    section("What moves its prices", f"{when}Mean absolute contribution (SHAP), % of each price.")
    labelled = [r | {"label": feature_label(page.contract, r["feature"])} for r in rows]
    chart(charts.importance(labelled), key="importance", alt="Bars: how much each feature moves prices")


def _versions(versions: list[Row]) -> None:
    section("All versions", "The newest first.")
    columns = [
        Column("model_version", "Version"),
        Column("status", "State"),
        Column("created_at", "Trained (UTC)"),
        Column("trained_through", "Through"),
        Column("n_train", "Homes", 0),
        Column("eval_mdape_pct", "Evaluation error, %", 2),
        Column("eval_r2", "R²", 3),
        Column("reasons", "Why not"),
    ]
    table(versions, columns, label="Model versions")


def _aliases(page: Page) -> None:
    section("Moves of the aliases", "Who made which version champion or challenger, when, and why.")
    moves = page.snapshot.rows(queries.MOVES)
    if not moves:
        nothing("No alias has moved yet.", "A version becomes champion when it passes its gate.")
        return
    columns = [Column("at", "When (UTC)"), Column("alias", "Alias"), Column("model_version", "To")]
    columns += [Column("previous_version", "From"), Column("actor", "Who"), Column("reason", "Why")]
    table(moves, columns, label="Moves of the aliases")
    if page.snapshot.has("monitoring.challenger_comparisons"):
        _comparison(page)


def _comparison(page: Page) -> None:
    section("Challenger against champion", "On the newest homes that neither learned from; mean absolute error, %.")
    rows = page.snapshot.rows(queries.COMPARISONS)
    if not rows:
        nothing("There is no challenger now.", "The next version that passes its gate becomes one.")
        return
    columns = [Column("challenger", "Challenger"), Column("champion", "Champion"), Column("n", "n", 0)]
    columns += [Column("challenger_mape_pct", "Challenger's", 2), Column("champion_mape_pct", "Champion's", 2)]
    columns += [
        Column("error_reduction_pct", "Less error, %", 1),
        Column("verdict", "Verdict"),
        Column("reason", "Why"),
    ]
    table(rows, columns, label="Comparison of challenger and champion")


def _lineage(page: Page) -> None:
    section("Where its rows come from", "Each box is a table and a Dagster asset; the links need Dagster (make ui).")
    counts = {r["table"]: r["n"] for r in page.snapshot.rows(queries.ROWS_BY_TABLE)}
    boxes = []
    for name, about in WAY:
        url = f"{page.options.dagster_url}/assets/{name.replace('.', '/')}"
        breakable = re.sub(r"([._])", r"\1<wbr>", escape(name))
        boxes.append(
            f'<a class="h-tile" href="{escape(url)}" target="_blank" rel="noreferrer"><b>{breakable}</b>'
            f"<strong>{number(counts.get(name))}</strong><small>{escape(about)}</small></a>"
        )
    st.html(f'<div class="h-tiles h-way">{"".join(boxes)}</div>')
    if page.champion:
        run = page.champion["run_id"]
        store = page.settings.mlflow_uri
        base = store if store.startswith("http") else page.options.mlflow_url
        st.markdown(
            f"The champion's [MLflow run]({base}/#/runs/{run}) holds parameters, learning curve and the bundle "
            f"(commit `{(page.champion['git_commit'] or MISSING)[:10]}`, "
            f"data `{page.champion['data_fingerprint'][:10]}`)."
        )
        if not store.startswith("http"):
            st.code(f"mlflow ui --backend-store-uri {store}", language="bash", wrap_lines=True)
