"""Wiring only: assets, checks, jobs, schedules and the command line over ``ml/`` and ``warehouse/``.

Logic does not belong here; asset bodies are short and call pure functions.
"""
