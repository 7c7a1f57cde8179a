"""What stands in the published snapshot, for a person (text) or a program (JSON). Reads tables, computes nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import duckdb

from ml import verdicts
from ml.contract import load
from ml.settings import Settings, command, run_command
from ml.words import UNDATED, amount_digits, counted, learned

if TYPE_CHECKING:
    import pyarrow as pa

#: Loads, and those of QUARANTINED: a file that came again mended is quarantined no more.
FILES = """
select status, count(*) as files, sum(rows)::bigint as rows from (
    select status, rows, row_number() over (partition by file order by batch desc) = 1 as is_newest from raw.files
) where status <> 'quarantined' or is_newest group by status order by status
"""
#: Files that were refused and have not come again mended, under the same name.
QUARANTINED = """
select file, reason, strftime(loaded_at, '%Y-%m-%d') as day from raw.files
qualify row_number() over (partition by file order by batch desc) = 1 and status = 'quarantined'
order by loaded_at desc, file limit 5
"""
ROWS = """
select
    sum(landed)::bigint as landed, sum(accepted_train)::bigint as train, sum(accepted_eval)::bigint as eval,
    sum(accepted_holdout)::bigint as holdout, sum(accepted_to_score)::bigint as to_score,
    sum(rejected)::bigint as rejected, sum(difference)::bigint as difference
from monitoring.reconciliation
"""
REASONS = "select reason, n from monitoring.rejections_by_reason order by n desc, reason"
MODEL = """
select model_version, status, reasons, trained_through, eval_from, n_train, n_eval, features, model_sha256,
    evaluated_sha256,
    model_version in (select challenger from training.promotion_decisions where verdict = 'reject') as lost
from training.model_versions
order by created_at desc limit 1
"""
#: Features of the newest version that no row it learned from has.
EMPTY = f"""
select feature from training.training_profile
where model_version = (select model_version from ({MODEL}))
group by feature having max(point) = 0 order by feature
"""
CHAMPION = """
select model_version, strftime(moved_at, '%Y-%m-%d %H:%M') as since
from training.model_aliases where alias = 'champion'
order by moved_at desc limit 1
"""
#: Versions are measured in months of their own, persistence and last_year in those of the contract's split.
ACCURACY = """
select split, model_version, kind, n, mae, mdape_pct, within_10_pct, r2, median_ratio, months.first, months.last
from monitoring.accuracy
left join (
    select split, model_version, strftime(min(month), '%Y-%m') as first, strftime(max(month), '%Y-%m') as last
    from monitoring.accuracy_by_month where population = 'valid' group by split, model_version
) as months using (split, model_version)
where population = 'valid' and split in ('eval', 'holdout')
order by split, kind desc, mdape_pct
"""
CHALLENGER = """
select challenger, verdict, reason from monitoring.challenger_comparisons
where challenger in (select model_version from training.model_versions where status = 'challenger')
"""
DECISION = f"""
select decision, is_done, strftime(month, '%Y-%m') as month, array_to_string(reasons, ', ') as reasons
from ({verdicts.DECISION})
"""
#: Rows that the champion has not learned from, whose price is known, and that it has not priced.
UNSCORED = """
with champion as (
    select model_version, trained_through from training.model_versions where status = 'champion'
)
select
    count(*) as n, strftime(min(month), '%Y-%m') as first, strftime(max(month), '%Y-%m') as last
from training.training_dataset as observed cross join champion
where case when trained_through is null then split = 'holdout' else month > trained_through end
    and not exists (
        select 1 from predictions.predictions as made
        where made.observation_id = observed.observation_id and made.model_version = champion.model_version
    )
having count(*) > 0
"""
FAILING = f"""
select check_name, status, value, strftime(month, '%Y-%m') as month, strftime(since, '%Y-%m') as since
from ({verdicts.CHECKS}) where status in ('fail', 'warn')
order by status, check_name
"""
PUBLISHED = "select * from published.about"


class NothingPublishedError(RuntimeError):
    """There is no snapshot yet; the message says what to type."""


def collect(settings: Settings) -> dict[str, Any]:
    """All figures of the summary by name. Raises NothingPublishedError before the first run."""
    if not settings.published.exists():
        raise NothingPublishedError(
            f"nothing has been published for {settings.dataset} below {settings.home}; "
            f"type: {run_command(settings.dataset)}"
        )
    with duckdb.connect(str(settings.published), read_only=True) as connection:

        def ask(query: str) -> list[dict[str, Any]]:
            return connection.execute(query).to_arrow_table().to_pylist()

        latest = next(iter(ask(MODEL)), None)
        return {
            "dataset": settings.dataset,
            "published": ask(PUBLISHED)[0],
            "files": ask(FILES),
            "quarantined": ask(QUARANTINED),
            "rows": ask(ROWS)[0],
            "rejected_by_reason": ask(REASONS),
            "latest_version": latest,
            "empty_features": [row["feature"] for row in ask(EMPTY)] if latest else [],
            "champion": next(iter(ask(CHAMPION)), None),
            "challenger": next(iter(ask(CHALLENGER)), None),
            "unscored": next(iter(ask(UNSCORED)), None),
            "decision": next(iter(ask(DECISION)), None),
            "failing_checks": ask(FAILING),
            "accuracy": ask(ACCURACY),
        }


def as_json(settings: Settings) -> str:
    return json.dumps(collect(settings), default=str, indent=2)


def as_text(settings: Settings) -> str:
    """The summary that ends a run."""
    figures = collect(settings)
    rows = figures["rows"]
    lines = ["", f"{figures['dataset']}: {_files(figures['files'])}"]
    lines += [f"  quarantined  {q['file']} on {q['day']}: {q['reason']}" for q in figures["quarantined"]]
    lines += [
        f"  landed       {_n(rows['landed'])} rows",
        f"  accepted     {_n(rows['train'])} train, {_n(rows['eval'])} eval, {_n(rows['holdout'])} holdout, "
        f"{_n(rows['to_score'])} to be scored",
        f"  rejected     {_n(rows['rejected'])}"
        + "".join(f"\n    {_n(r['n']):>10}  {r['reason']}" for r in figures["rejected_by_reason"]),
    ]
    lines += _model(figures)
    is_dated = load(settings.dataset).observed_on is not None
    lines += _accuracy(figures["accuracy"], dated=is_dated)
    lines += [
        "",
        "Next: make ui                      see every step at http://127.0.0.1:3000",
        f'      housing sql -d {figures["dataset"]} "select * from monitoring.accuracy_by_month"',
    ]
    if figures["champion"]:
        # all rows of a dataset without dates are of one month
        month = "YYYY-MM" if is_dated else f"{UNDATED:%Y-%m}"
        lines += [f"      housing {what} -d {figures['dataset']} --month {month}" for what in ("score", "report")]
    return "\n".join(lines)


def _files(files: list[dict[str, Any]]) -> str:
    return ", ".join(f"{f['files']} file{'s' if f['files'] != 1 else ''} {f['status']}" for f in files) or "no files"


def _model(figures: dict[str, Any]) -> list[str]:
    latest, champion = figures["latest_version"], figures["champion"]
    if not latest:
        return [f"  model        none yet; type: {command('train', figures['dataset'])}"]
    judge = "beside the champion" if latest["lost"] else "by its gate"
    # the reasons stay with a version that a person promoted all the same
    verdict = f"was REJECTED {judge}" if latest["reasons"] else "passed its gate"
    n_eval, needed = latest["n_eval"], load(figures["dataset"]).gate.min_compared_rows
    if n_eval < needed and not latest["reasons"]:
        verdict += f", compared with no baseline: {counted(n_eval, 'evaluation row')}, {needed} are needed"
    n, last = learned(latest)
    through = ""
    if last:
        evaluated = f"{latest['eval_from']:%Y-%m} to {latest['trained_through']:%Y-%m}"
        through = f" through {last:%Y-%m}, evaluated on {evaluated}{' before' if n > latest['n_train'] else ''}"
    out = [
        f"  model        {latest['model_version']} {verdict}; learned from {_n(n)} rows and {latest['features']} "
        f"features{through}"
    ]
    out += [f"    {reason}" for reason in latest["reasons"] or []]
    if empty := figures["empty_features"]:
        out.append(f"  empty        {', '.join(empty)}: no row that it learned from has a value; see source and type")
    out.append(
        f"  champion     {champion['model_version']} since {champion['since']} UTC"
        if champion
        else "  champion     none"
    )
    if rival := figures["challenger"]:
        out.append(f"  challenger   {rival['challenger']}, verdict {rival['verdict']}: {rival['reason']}")
    if rows := figures["unscored"]:
        months = "" if rows["first"] == f"{UNDATED:%Y-%m}" else f" of {rows['first']} to {rows['last']}"
        todo = run_command(figures["dataset"])
        out.append(f"  not scored   {_n(rows['n'])} rows{months} whose price is known; type: {todo}")
    if decision := figures["decision"]:
        why = f" ({decision['reasons']})" if decision["reasons"] else ""
        todo = f"; type: {command('retrain', figures['dataset'])}" if decision["decision"] == "retrain" else ""
        act = "; done" if decision["is_done"] else todo
        out.append(f"  decision     {decision['decision']} after {decision['month']}{why}{act}")
    for check in figures["failing_checks"]:
        value = "" if check["value"] is None else f", {check['value']:.2f}"
        out.append(f"  {check['status']:<12} {check['check_name']}{value} in {check['month']}, since {check['since']}")
    return out


def _accuracy(rows: list[dict[str, Any]], *, dated: bool) -> list[str]:
    if not rows:
        return []
    head = f"  {'split':<9}{'model':<16}{'n':>9}{'MAE':>12}{'MdAPE %':>9}{'within 10 %':>13}{'R2':>8}{'ratio':>8}"
    head += "  months" if dated else ""
    # one absurd price would rule MAE and R2; the population `all` stands beside it in monitoring.accuracy
    out = ["", "  prices that are valid by the contract's rules:", head]
    for r in rows:
        out.append(
            f"  {r['split']:<9}{r['model_version']:<16}{_n(r['n']):>9}{_amount(r['mae']):>12}{_f(r['mdape_pct'], 2):>9}"
            f"{_f(r['within_10_pct'], 1):>13}{_f(r['r2'], 3):>8}{_f(r['median_ratio'], 3):>8}"
            + (f"  {r['first']} to {r['last']}" if dated else "")
        )
    return out


def _n(value: float | None) -> str:
    return f"{int(value or 0):,}"


def _amount(value: float | None) -> str:
    return _f(value, amount_digits(value))


def _f(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def model_selection(settings: Settings) -> str:
    """The candidates' mean error over the folds, best first, as text. Reads the warehouse: nothing was published."""
    from ml.warehouse import connect

    with connect(settings, read_only=True) as connection:
        rows = connection.execute(
            """
            select candidate, count(*), avg(mae), avg(mdape_pct), avg(within_10_pct), avg(median_ratio), avg(rmse_log),
                avg(fit_seconds), avg(size_bytes) / 1e6
            from training.model_selection group by candidate order by avg(mae)
            """
        ).fetchall()
    lines = ["candidate         folds         MAE  MdAPE %  within 10 %   ratio  RMSE log    fit s  size MB"]
    lines += [
        f"{name:<16}{folds:>7}{mae:>12,.0f}{mdape:>9.2f}{within:>13.1f}{ratio:>8.3f}{rmse:>10.4f}{fit:>9.1f}{size:>9.1f}"
        for name, folds, mae, mdape, within, ratio, rmse, fit, size in rows
    ]
    return "\n".join(lines)


def replayed(months: pa.Table) -> str:
    """Each policy's months in one line: mean monthly error, trainings, promotions."""
    rows = months.to_pylist()
    lines = ["policy         months  mean MdAPE %  last 12  persistence  trainings  promotions  minutes"]
    for policy in dict.fromkeys(row["policy"] for row in rows):
        own = [row for row in rows if row["policy"] == policy]
        errors = [row["mdape_pct"] for row in own if row["mdape_pct"] is not None]
        known = [row["persistence_mdape_pct"] for row in own if row["persistence_mdape_pct"] is not None]
        lines.append(
            f"{policy:<14}{len(own):>7}{_mean(errors):>14.2f}{_mean(errors[-12:]):>9.2f}{_mean(known):>13.2f}"
            f"{sum(row['trained_version'] is not None for row in own):>11}"
            f"{sum(row['promoted_version'] is not None for row in own):>12}{sum(r['seconds'] for r in own) / 60:>9.1f}"
        )
    return "\n".join(lines)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def actuals(settings: Settings) -> str:
    """What became of all prices that came later, as text; files that were refused first."""
    with duckdb.connect(str(settings.published), read_only=True) as connection:
        refused = connection.execute(
            "select file, reason from raw.files where status = 'quarantined' and file like 'actuals/%' order by batch"
        ).fetchall()
        rows = connection.execute(
            "select source, status, count(*), any_value(reason) from raw.actuals group by all order by all"
        ).fetchall()
    lines = [f"quarantined  {file}: {reason}" for file, reason in refused]
    lines += [f"{n:>10,}  {source} {status}{f': {why}' if why else ''}" for source, status, n, why in rows]
    return "\n".join(lines) or "no later price is known"
