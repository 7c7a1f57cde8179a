"""Imports Great Expectations without the statistics of SciPy, which take a third of its 4 s of processor time.

Three of its expectations need them, none of ours; whoever uses them gets them then.
"""

import sys
from importlib.util import LazyLoader, find_spec, module_from_spec

import scipy

if "scipy.stats" not in sys.modules and (spec := find_spec("scipy.stats")) and spec.loader:
    spec.loader = LazyLoader(spec.loader)
    module = sys.modules["scipy.stats"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    # where `from scipy import stats` finds it; by its name it would load
    scipy.stats = module  # pyright: ignore[reportAttributeAccessIssue] - a submodule

# after what they import
import great_expectations as gx
from great_expectations.data_context.types.base import ProgressBarsConfig

__all__ = ["ProgressBarsConfig", "gx"]
