"""Pictures of a training run and of a replay. What they show is computed elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import xgboost as xgb

if TYPE_CHECKING:
    import pyarrow as pa

INK, BLUE, ORANGE = "#22303c", "#2f6690", "#d1752c"


def importance(booster: xgb.Booster, path: Path, *, title: str, top: int = 20) -> dict[str, float]:
    """Horizontal bars of the ``top`` features' share of the total gain; returns the share of every feature."""
    gains = {name: float(gain) for name, gain in booster.get_score(importance_type="total_gain").items()}  # pyright: ignore
    total = sum(gains.values()) or 1.0
    shares = {name: gains.get(name, 0.0) / total for name in booster.feature_names or gains}
    best = sorted(shares.items(), key=lambda item: item[1])[-top:]
    figure, axes = _canvas(8, 0.6 + 0.32 * len(best))
    bars = axes.barh([name for name, _ in best], [100 * share for _, share in best], color=BLUE, height=0.7)
    axes.bar_label(bars, fmt="%.1f", padding=4, fontsize=8, color=INK)
    axes.set_xlabel("share of total gain, percent")
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.margins(x=0.1, y=0.01)
    figure.savefig(path, dpi=130)
    return shares


def learning_curve(curves: dict[str, list[float]], path: Path, *, title: str, metric: str, rounds: int) -> None:
    """Error by round on the training and evaluation rows, with the round that was kept."""
    figure, axes = _canvas(8, 4)
    for (name, curve), colour in zip(curves.items(), (INK, BLUE), strict=False):
        axes.plot(range(1, len(curve) + 1), curve, color=colour, label=name, linewidth=1.6)
    axes.axvline(rounds, color=ORANGE, linestyle="--", linewidth=1.2, label=f"kept: {rounds} rounds")
    axes.set_xlabel("round")
    axes.set_ylabel(f"{metric} of the log ratio")
    axes.set_yscale("log")
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def replayed(months: pa.Table, path: Path, *, title: str) -> None:
    """Error by month of each replayed policy; trainings are ticks below, promotions dots on the line."""
    rows = months.to_pylist()
    figure, axes = _canvas(11, 4.6)
    replayed = {row["policy"] for row in rows}
    below = 0
    for policy, colour in (("never", INK), ("on-decision", ORANGE), ("every-month", BLUE)):
        if policy not in replayed:
            continue
        own = [row for row in rows if row["policy"] == policy and row["mdape_pct"] is not None]
        when, error = [row["month"] for row in own], [row["mdape_pct"] for row in own]
        axes.plot(when, error, color=colour, linewidth=1.8, label=f"{policy} (mean {sum(error) / len(error):.2f} %)")
        moved = [i for i, row in enumerate(own) if row["promoted_version"]]
        axes.plot([when[i] for i in moved], [error[i] for i in moved], "o", color=colour, markersize=6)
        trained = [row["month"] for row in own if row["trained_version"]]
        axes.plot(trained, [-0.03 - 0.035 * below] * len(trained), "|", color=colour, markersize=9,
                  transform=axes.get_xaxis_transform(), clip_on=False)  # fmt: skip
        below += bool(trained)
    axes.set_ylabel("median absolute error, percent")
    axes.margins(y=0.2)
    axes.tick_params(axis="x", pad=22)
    axes.set_xlabel("month scored (ticks below the axis: trainings; dots: a challenger was promoted after that month)")
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.legend(frameon=False, ncols=3, loc="upper left")
    figure.savefig(path, dpi=130)


def _canvas(width: float, height: float):
    """Figure without the pyplot state, so that threads and servers may draw."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=INK)
    return figure, axes
