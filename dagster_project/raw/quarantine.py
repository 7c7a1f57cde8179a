"""Moves a bad file out of the landing folder and writes why beside it: ``.report.json`` and ``.report.txt``.

Whether a file is bad is decided elsewhere (``structure.py``, ``expectations/raw_file.py``).
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from dagster_project.raw.structure import Finding

ADVICE = "Correct the file and land it again, or change the limits under `landing` in the dataset's contract."


def free_place(folder: Path, name: str, sha256: str | None) -> Path:
    """Where a file goes in ``folder``: under its name, or with a suffix when another file has that name."""
    path = folder / name
    if not os.path.lexists(path):
        return path
    if sha256:  # the same content replaces itself, so trying a bad file again and again fills no disk
        return with_suffix(path, sha256[:8])
    number = 2
    while os.path.lexists(with_suffix(path, str(number))):
        number += 1
    return with_suffix(path, str(number))


def with_suffix(path: Path, suffix: str) -> Path:
    """``sales.csv`` with suffix ``ab12`` is ``sales-ab12.csv``."""
    return path.with_name(f"{path.stem}-{suffix}{path.suffix}")


def write_reports(
    place: Path, *, dataset: str, sha256: str | None, rows: int | None, at: datetime, findings: Sequence[Finding]
) -> Path:
    """Both reports beside ``place``. Returns the path of the readable one."""
    report = {
        "file": place.name,
        "dataset": dataset,
        "quarantined_at": at.isoformat(sep=" ", timespec="seconds") + " UTC",
        "sha256": sha256,
        "rows": rows,
        "reason": findings[0].sentence,
        "findings": [asdict(f) for f in findings],
    }
    readable = place.with_name(f"{place.name}.report.txt")
    _write(place.with_name(f"{place.name}.report.json"), json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    _write(readable, "\n".join(_lines(report, findings)) + "\n")
    return readable


def _lines(report: dict, findings: Sequence[Finding]) -> list[str]:
    known = {"dataset": report["dataset"], "rows": report["rows"], "sha256": report["sha256"]}
    out = [
        f"{report['file']} was quarantined at {report['quarantined_at']}; nothing of it was loaded.",
        "  ".join(f"{k}: {v}" for k, v in known.items() if v is not None),
    ]
    for number, finding in enumerate(findings, 1):
        out += ["", f"{number}. {finding.sentence}"]
        out += ["   " + "  ".join(f"{k} {v!r}" for k, v in example.items()) for example in finding.examples]
    return [*out, "", ADVICE]


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def move(source: Path, target: Path) -> None:
    """Rename; between file systems copy under a hidden name, rename, then delete the source."""
    try:
        source.replace(target)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    part = target.with_name(f".{target.name}.part")
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, part, symlinks=True, dirs_exist_ok=True)
        part.replace(target)
        shutil.rmtree(source)
    else:
        part.unlink(missing_ok=True)
        shutil.copy2(source, part, follow_symlinks=False)
        part.replace(target)
        source.unlink()
