"""The dbt project as files: its manifest, and whether its meaning changed since the last build.

Assets stand in ``assets.py``. Nothing here imports Dagster.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from dagster_project.transform.dbt import PROJECT, run_dbt, write_manifest
from ml.settings import PROJECT_ROOT, Settings


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
    """Has the shape changed since the last successful build of this warehouse?"""
    stamp = settings.warehouse.with_suffix(".shape")
    return stamp.exists() and stamp.read_text(encoding="utf-8") != shape_fingerprint(settings)


def remember_shape(settings: Settings) -> None:
    """Record, after a successful build, which shape the stored rows have."""
    settings.warehouse.with_suffix(".shape").write_text(shape_fingerprint(settings), encoding="utf-8")


def ensure_manifest(settings: Settings) -> Path:
    """Path of an up-to-date ``manifest.json``; runs ``dbt parse`` when files changed. Raises DbtError."""
    manifest = settings.dbt_target / "manifest.json"
    stamp = settings.dbt_target / "manifest.fingerprint"
    wanted = fingerprint(project_files(settings))
    if manifest.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return manifest
    settings.dbt_target.mkdir(parents=True, exist_ok=True)
    settings.warehouse.parent.mkdir(parents=True, exist_ok=True)
    write_manifest(settings)
    stamp.write_text(wanted, encoding="utf-8")
    return manifest


def build_staging(settings: Settings) -> None:
    """Make the views that tell the key of every landed row. The caller holds the lock, and no connection. DbtError."""
    selected = ("--select", "+int_observations_checked", "--resource-type", "model", "--resource-type", "seed")
    run_dbt(settings, "build", *selected)
