"""Imports XGBoost without scikit-learn, of whose 1.7 s of processor time 1.3 are scikit-learn's.

For this product's own processes, which use none of XGBoost's scikit-learn classes: import it before whatever imports
XGBoost. Not for what travels inside a bundle, because whoever loads one may want those classes.
"""

import importlib
import sys

if "sklearn" not in sys.modules:
    sys.modules["sklearn"] = None  # pyright: ignore[reportArgumentType] - so that importing it raises ImportError
    try:
        importlib.import_module("xgboost")
    finally:
        del sys.modules["sklearn"]
