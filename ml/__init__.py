"""Pure Python on tables and matrices: contract, data set, training, scoring, bundle, registry.

Nothing here imports Dagster or dbt. Features, splits and verdicts are SQL and live in ``warehouse/``;
wiring into assets and the command line lives in ``dagster_project/``.
"""

import os
import warnings

# XGBoost's threads spin while they wait for each other, unless told before it is loaded: beside any other work on the
# same cores, training then takes ten times as long
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# DuckDB 2.0 advises against Arrow from `execute`; what it advises takes twenty times as long with 1.5
warnings.filterwarnings("ignore", "Arrow output on a DB-API result", UserWarning)
