"""Champion and challenger as an asset: carries out what SQL says. How an alias moves stands in ``ml/promotion.py``."""

import dagster as dg

from dagster_project.resources import POOL, Housing
from ml.promotion import carry_out, latest_comparison
from ml.registry import champion


@dg.asset(
    key=["monitoring", "promotion"],
    group_name="monitoring",
    deps=[dg.AssetKey(["monitoring", "challenger_comparisons"])],
    pool=POOL,
    kinds={"mlflow"},
    description="Promotes or rejects the challenger as monitoring.challenger_comparisons says; each move is a row.",
)
def promotion(context: dg.AssetExecutionContext, housing: Housing) -> dg.MaterializeResult:
    with housing.write(context) as connection:
        found = latest_comparison(connection)
        moves = carry_out(connection, housing.settings, housing.contract, actor=f"run {context.run_id[:8]}")
        standing = champion(connection)
    for move in moves:
        context.log.info(move)
    told = {k: v for k, v in vars(found).items() if v is not None and k != "month"} if found else {}
    return dg.MaterializeResult(
        metadata={"champion": standing.model_version if standing else "nobody", "moves": moves, **told}
    )
