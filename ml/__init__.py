"""Pure Python on tables and matrices: contract, data set, training, scoring, bundle, registry.

Nothing here imports Dagster or dbt. Features, splits and verdicts are SQL and live in ``warehouse/``;
wiring into assets and the command line lives in ``dagster_project/``.
"""
