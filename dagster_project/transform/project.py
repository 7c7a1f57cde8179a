"""The dbt project as files, and whether its meaning changed since the last build.

Running dbt is ``dbt.py``, assets stand in ``assets.py``. Nothing here imports either.
"""

from __future__ import annotations

import hashlib
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


def shape_fingerprint(settings: Settings) -> str:
    """Fingerprint of what shapes stored rows: a change means that increments no longer fit and all is rebuilt."""
    shaping = ("staging", "intermediate", "features", "macros", "seeds")
    return fingerprint([p for p in project_files(settings) if set(p.parts).intersection(shaping) and _is_code(p)])


def _is_code(path: Path) -> bool:
    return path.suffix in {".sql", ".csv"} or "staging" in path.parts


def needs_full_refresh(settings: Settings) -> bool:
    """Has the shape changed since the last successful build of this warehouse, or was there none?

    A first build that failed has left tables, which a mended contract does not fit.
    """
    stamp = settings.warehouse.with_suffix(".shape")
    return not stamp.exists() or stamp.read_text(encoding="utf-8") != shape_fingerprint(settings)


def remember_shape(settings: Settings) -> None:
    """Record, after a successful build, which shape the stored rows have."""
    settings.warehouse.with_suffix(".shape").write_text(shape_fingerprint(settings), encoding="utf-8")
