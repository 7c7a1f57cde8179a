"""How far long work is: assets report, and whoever runs them decides how it is shown.

The command line installs a reporter that draws bars; under the Dagster daemon there is none and the run's log
gets a line for every tenth of the way.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

import dagster as dg

#: Called with what is being done, how much is done and how much there is (0 when unknown).
Reporter = Callable[[str, int, int], None]

reporter: ContextVar[Reporter | None] = ContextVar("reporter", default=None)


def progress(context: dg.AssetExecutionContext | dg.OpExecutionContext, task: str) -> Callable[[int, int], None]:
    """A callback ``(done, total)`` for the work named ``task``."""
    show = reporter.get()
    if show:
        show(task, 0, 0)
        return lambda done, total: show(task, done, total)
    context.log.info(task)
    told = [0]

    def log_each_tenth(done: int, total: int) -> None:
        tenth = done * 10 // max(total, 1)
        if tenth > told[0]:
            told[0] = tenth
            context.log.info(f"{task}: {done} of {total}")

    return log_each_tenth


def tasks(context: dg.AssetExecutionContext) -> Reporter:
    """A callback ``(task, done, total)`` for work that names its own tasks."""
    return reporter.get() or (lambda task, done, total: context.log.debug(f"{task} {done}/{total}"))
