"""The dbt project as files, and whether its meaning changed since the last build.

Running dbt is ``dbt.py``, assets stand in ``assets.py``. Nothing here imports either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

from ml.settings import PROJECT_ROOT, Settings

PROJECT = PROJECT_ROOT / "warehouse"


def project_files(settings: Settings) -> list[Path]:
    """Files that decide what dbt builds for this dataset, sorted."""
    others = {p for p in (PROJECT / "models" / "staging").iterdir() if p.is_dir() and p.name != settings.dataset}
    files = [PROJECT / "dbt_project.yml", PROJECT / "profiles.yml"]
    for folder in ("models", "macros", "seeds", "tests"):
        files += [p for p in (PROJECT / folder).rglob("*") if p.is_file() and not others.intersection(p.parents)]
    return sorted(files)


def fingerprint(files: list[Path]) -> str:
    """sha256 over names and contents."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(PROJECT_ROOT).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


#: What is built from landed rows, and what follows predictions: a run builds the one, then Python, then the other.
HISTORY = frozenset({"staging", "intermediate", "features"})
EVIDENCE = frozenset({"predictions", "monitoring"})
SHAPING = {HISTORY: {*HISTORY, "macros", "seeds"}, EVIDENCE: {*HISTORY, "training", *EVIDENCE, "macros", "seeds"}}


def shape_fingerprint(settings: Settings, half: frozenset[str]) -> str:
    """Fingerprint of what shapes a half's stored rows: a change means that increments no longer fit it."""
    files = [p for p in project_files(settings) if SHAPING[half].intersection(p.relative_to(PROJECT).parts)]
    return fingerprint([p for p in files if _is_code(p)])


def _is_code(path: Path) -> bool:
    return path.suffix in {".sql", ".csv"} or "staging" in path.parts


def needs_full_refresh(settings: Settings, layers: Collection[str] = HISTORY) -> bool:
    """Has the shape of these layers changed since they were last built, or were they never built to their end?

    A first build that failed has left tables, which a mended contract does not fit.
    """
    return any(
        not (stamp := _stamp(settings, half)).exists()
        or stamp.read_text(encoding="utf-8") != shape_fingerprint(settings, half)
        for half in SHAPING
        if half.intersection(layers)
    )


def remember_shape(settings: Settings, layers: Collection[str]) -> None:
    """Record, after a successful build of these layers, which shape the stored rows have."""
    for half in SHAPING:
        if half.issubset(layers):
            _stamp(settings, half).write_text(shape_fingerprint(settings, half), encoding="utf-8")


def _stamp(settings: Settings, half: frozenset[str]) -> Path:
    return settings.warehouse.with_suffix(".shape" if half == HISTORY else ".evidence_shape")
