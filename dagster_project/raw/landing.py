"""From a landing folder into ``raw``: each new file is read, judged, and then loaded whole or quarantined whole.

Which folders there are and where their rows go stands in ``inbox.py`` and ``actuals.py``, what makes a file unreadable
in ``structure.py``, what makes it implausible in ``expectations/``, where bad files go in ``quarantine.py``. Rows are
not judged here: staging labels them. No Dagster; the assets are in ``assets.py``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import duckdb

from dagster_project.raw import quarantine
from dagster_project.raw.inbox import Inbox, Observations
from dagster_project.raw.reading import EXAMPLES, Rows, read
from dagster_project.raw.structure import BadFileError, Finding, require_file
from expectations import raw_file
from expectations.runner import ExpectationResult, Profile, Rule, prepare, profile, run
from ml.contract import Contract
from ml.settings import Settings
from ml.warehouse import create_tables, quoted, transaction, utc_now

SUFFIXES = (".csv", ".parquet")

#: ``unchanged``: seen before. ``ignored``: not a CSV or Parquet file. ``changing``: still being written, next time.
Status = Literal["loaded", "duplicate", "quarantined", "unchanged", "ignored", "changing"]
Progress = Callable[[int, int], None]


class LandingError(ValueError):
    """What the user asked to land cannot be landed; the message says which path and why."""


@dataclass(frozen=True)
class FileOutcome:
    """What became of one entry of the landing folder. ``reason`` is one sentence unless it was simply loaded."""

    file: str
    status: Status
    reason: str | None = None
    rows: int | None = None
    batch: int | None = None
    extra_columns: tuple[str, ...] = ()
    report: Path | None = None


@dataclass(frozen=True)
class IngestResult:
    """Outcomes by file name, and the verdict on every expectation for every new file."""

    files: tuple[FileOutcome, ...]
    expectations: tuple[ExpectationResult, ...]
    seconds: float

    def of(self, *status: Status) -> list[FileOutcome]:
        return [f for f in self.files if f.status in status]

    @property
    def rows_loaded(self) -> int:
        return sum(f.rows or 0 for f in self.of("loaded"))


@dataclass
class _Candidate:
    """A new file on its way: what was found out about it so far."""

    path: Path
    file: str
    status: os.stat_result
    sha256: str | None = None
    rows: Rows | None = None
    profile: Profile = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def count(self) -> int | None:
        return self.rows.count if self.rows else None

    @property
    def megabytes(self) -> int:
        return max(1, round(self.status.st_size / 1e6))

    @property
    def is_changing(self) -> bool:
        """Whether somebody wrote to the file since it was first looked at."""
        return self.path.exists() and _version(self.path.stat()) != _version(self.status)


def landing_state(settings: Settings) -> list[str]:
    """Name, size and time of each landed file, sorted: equal as long as there is nothing new to ingest."""
    return sorted(
        # lstat: a link to nothing is news as well, ingestion says what is wrong with it
        f"{p.relative_to(settings.landing)}:{p.lstat().st_size}:{p.lstat().st_mtime_ns}"
        for folder in (settings.landing, settings.landed_actuals)
        for p in (folder.iterdir() if folder.is_dir() else ())
        if p.suffix.lower() in SUFFIXES
    )


def land(settings: Settings, paths: Sequence[Path], *, folder: Path | None = None) -> list[Path]:
    """Copy files, and the CSV and Parquet files of folders, into the landing folder. Returns where they now stand.

    Each appears there by an atomic rename, so nobody loads half a file. The same content under the same name is left
    alone; other content under a known name gets a suffix. Raises LandingError before anything is copied.
    """
    sources = [file for path in paths for file in files_of(Path(path).expanduser())]
    folder = folder or settings.landing
    folder.mkdir(parents=True, exist_ok=True)
    return [_copy(source, folder) for source in sources]


def files_of(path: Path) -> list[Path]:
    """The file itself, or the CSV and Parquet files of a folder. Raises LandingError."""
    kinds = " or ".join(SUFFIXES)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        if not found:
            raise LandingError(f"{path} holds no {kinds} file; name the folder that directly contains them")
        nested = next((entry for entry in found if entry.is_dir()), None)
        if nested:
            raise LandingError(f"{nested} is a directory, not a file; land it by itself, or rename it")
        return [file for entry in found for file in files_of(entry)]
    if not path.exists():
        raise LandingError(f"{path} does not exist; give the path of a {kinds} file or of a folder with such files")
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        raise LandingError(f"{path} is not a {kinds} file; convert it to one of these and land it again")
    if not os.access(path, os.R_OK):
        raise LandingError(f"{path} may not be read by this user; change its permissions and land it again")
    return [path]


def _copy(source: Path, folder: Path) -> Path:
    target = folder / source.name
    if target.exists() and target.samefile(source):
        return target
    if os.path.lexists(target):
        digest = _sha256(source)
        if target.is_file() and target.stat().st_size == source.stat().st_size and _sha256(target) == digest:
            return target
        target = quarantine.with_suffix(target, digest[:8])
        if target.exists():  # the suffix is the content
            return target
    part = folder / f".{target.name}.part"
    shutil.copyfile(source, part)
    part.replace(target)
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def ingest(
    settings: Settings,
    contract: Contract,
    connection: duckdb.DuckDBPyConnection,
    progress: Progress = lambda done, total: None,
) -> IngestResult:
    """Load every new CSV and Parquet file of the dataset's landing folder, in the order of their names.

    ``progress`` is given megabytes done and in all; for the rest see ``take_in``.
    """
    create_tables(connection, contract)
    return take_in(Observations(settings, contract, connection), progress)


def take_in(inbox: Inbox, progress: Progress = lambda done, total: None) -> IngestResult:
    """Load or quarantine every new file of an inbox, in the order of their names.

    A file is known by its content: what was loaded once is not loaded again under any name. Each file is one
    transaction with its row in ``raw.files``. The caller holds the warehouse lock. Errors of the machine (disk full,
    out of memory) are raised; those of a file quarantine it.
    """
    started = time.perf_counter()
    settings = inbox.settings
    work = _Ingestion(inbox)
    looked = [work.look(p) for p in inbox.entries()]
    outcomes = [found for found in looked if isinstance(found, FileOutcome)]
    candidates = [found for found in looked if isinstance(found, _Candidate)]
    expectations: list[ExpectationResult] = []
    if candidates:
        prepare()
        # half of the way is reading, half is loading
        done, total = 0, 2 * sum(c.megabytes for c in candidates)
        with _staging_folder(settings) as folder:
            for number, candidate in enumerate(candidates):
                progress(done, total)
                work.read(candidate, folder / f"{number}.parquet")
                done += candidate.megabytes
            expectations = work.judge(candidates)
            for candidate in candidates:
                progress(done, total)
                outcomes.append(work.settle(candidate))
                done += candidate.megabytes
        progress(total, total)
    return IngestResult(
        tuple(sorted(outcomes, key=lambda o: o.file)), tuple(expectations), time.perf_counter() - started
    )


class _Ingestion:
    """The steps of one file, in order: look, read, judge, settle. Only settle writes."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox, self._settings, self._connection = inbox, inbox.settings, inbox.connection
        self._rules = inbox.rules()
        self._ledger = _Ledger(inbox.connection, inbox.prefix)
        self._now = utc_now()

    def look(self, path: Path) -> _Candidate | FileOutcome:
        """Cheap first look, by name and status only."""
        name = os.fsencode(path.name).decode("utf-8", "backslashreplace")
        file = self._inbox.prefix + name
        if path.suffix.lower() not in SUFFIXES:
            reason = f"{file} is neither {' nor '.join(SUFFIXES)} and was ignored; convert it or remove it"
            return FileOutcome(file, "ignored", reason)
        candidate = _Candidate(path, file, path.stat() if path.exists() else path.lstat())
        try:
            require_file(path)
            if name != path.name:
                raise BadFileError("file", f"the name of {file} is not UTF-8; rename the file and land it again")
        except BadFileError as error:
            candidate.findings.append(error.finding)
            return candidate
        return FileOutcome(file, "unchanged") if self._ledger.knows(candidate) else candidate

    def read(self, candidate: _Candidate, staged: Path) -> None:
        """Find out everything about a file: hash, structure, its rows as text in ``staged``, their profile."""
        if candidate.findings:
            return
        try:
            found = read(self._connection, candidate.path, self._inbox.columns, staged)
            candidate.sha256 = found.content.sha256
            if self._ledger.has_content(candidate):
                return
            rows = candidate.rows = found.rows
            candidate.profile = {
                **profile(self._connection, self._rules, rows.relation, rows.headers),
                raw_file.MISSING_COLUMNS: len(self._inbox.absent(rows.headers)),
            }
        except BadFileError as error:
            candidate.findings.append(error.finding)

    def judge(self, candidates: list[_Candidate]) -> list[ExpectationResult]:
        """One Great Expectations validation over the profiles of all readable files."""
        by_file = {c.file: c for c in candidates if c.profile}
        by_name = {rule.name: rule for rule in self._rules}
        results = run(self._rules, {file: c.profile for file, c in by_file.items()})
        for result in results:
            if not result.success:
                candidate = by_file[result.subject]
                candidate.findings.append(self._finding(candidate, by_name[result.expectation], result))
        return results

    def _finding(self, candidate: _Candidate, rule: Rule, result: ExpectationResult) -> Finding:
        """A broken expectation as a sentence, with the first rows that broke it."""
        file, rows = candidate.file, candidate.rows
        assert rows is not None  # only readable files have a profile
        examples: list[dict[str, Any]] = []
        if rule.name == raw_file.ROWS:
            sentence = f"{file} has a header but no rows; land it again when it has data"
        elif rule.name == raw_file.MISSING_COLUMNS:
            absent = self._inbox.absent(rows.headers)
            sentence = (
                f"{file} lacks the required column{'s' * (len(absent) > 1)} {_listed(absent)}; its header is "
                f"{_listed(rows.headers)[:300]}; {rule.remedy}"
            )
        else:
            found = self._connection.execute(
                f"select _row, {', '.join(map(quoted, rule.columns))} from {rows.relation} where {rule.bad} "
                f"order by _row limit {EXAMPLES}"
            ).fetchall()
            examples = [{"row": row, **dict(zip(rule.columns, values, strict=True))} for row, *values in found]
            total = rows.count
            row, *values = found[0]
            shown = ", ".join("empty" if v is None else repr(v[:80]) for v in values)
            sentence = (
                f"{file}: in {round((result.observed or 0) * total):,} of {total:,} rows {rule.description} (allowed "
                f"is {rule.maximum:.1%}), first in row {row:,}: {shown}; {rule.remedy}"
            )
        return Finding(rule.name, sentence, result.column, result.observed, result.limit, tuple(examples))

    def settle(self, candidate: _Candidate) -> FileOutcome:
        """Write what was decided: quarantine, remember or load."""
        file = candidate.file
        if candidate.is_changing:
            return FileOutcome(file, "changing", f"{file} is still being written; it is read when it rests")
        if candidate.findings:
            return self._quarantine(candidate)
        if not self._ledger.has_content(candidate):
            return self._load(candidate)
        original = self._ledger.original(candidate)
        if self._ledger.last_content(file) == candidate.sha256 or original is None:
            self._ledger.touch(candidate)
            return FileOutcome(file, "unchanged")
        reason = f"{file} has the same content as {original[0]}, which is loaded"
        with transaction(self._connection):
            return self._ledger.record(candidate, FileOutcome(file, "duplicate", reason, original[1]), self._now)

    def _load(self, candidate: _Candidate) -> FileOutcome:
        """All rows and the row in ``raw.files``, in one transaction: a killed process leaves none of them."""
        rows = candidate.rows
        assert rows is not None  # what has no findings and is not known was read
        extra = self._inbox.prepare(rows.headers)
        outcome = FileOutcome(candidate.file, "loaded", None, candidate.count, extra_columns=extra)
        with transaction(self._connection):
            outcome = self._ledger.record(candidate, outcome, self._now)
            assert outcome.batch is not None  # record gives it
            self._inbox.insert(rows, candidate.file, outcome.batch, self._now)
        return outcome

    def _quarantine(self, candidate: _Candidate) -> FileOutcome:
        """Report, remember, then move: whenever the process is killed, the next run does the same again."""
        place = quarantine.free_place(self._settings.quarantine, candidate.file, candidate.sha256)
        place.parent.mkdir(parents=True, exist_ok=True)
        report = quarantine.write_reports(
            place,
            dataset=self._settings.dataset,
            sha256=candidate.sha256,
            rows=candidate.count,
            at=self._now,
            findings=candidate.findings,
        )
        reason = candidate.findings[0].sentence
        if len(candidate.findings) > 1:
            reason += f" (and {len(candidate.findings) - 1} more, see {report.name})"
        outcome = FileOutcome(candidate.file, "quarantined", reason, candidate.count, report=report)
        with transaction(self._connection):
            outcome = self._ledger.record(candidate, outcome, self._now)
        quarantine.move(candidate.path, place)
        return outcome


class _Ledger:
    """``raw.files`` as ingestion asks it: what is known of an inbox, and the next batch."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, prefix: str) -> None:
        self._connection = connection
        self._is_mine = f"starts_with(file, '{prefix}')" if prefix else "not contains(file, '/')"
        self._versions = {
            file: version
            for file, *version in connection.execute(
                "select file, max_by(bytes, batch), max_by(mtime_ns, batch) from raw.files "
                f"where status in ('loaded', 'duplicate') and {self._is_mine} group by file"
            ).fetchall()
        }

    def knows(self, candidate: _Candidate) -> bool:
        """Whether this very version was the last that was taken in under this name, so that it need not be read."""
        return self._versions.get(candidate.file) == list(_version(candidate.status))

    def last_content(self, file: str) -> str | None:
        """Hash of what was last loaded under this name."""
        row = self._first("select sha256 from raw.files where file = ? and status = 'loaded' order by batch desc", file)
        return row[0] if row else None

    def original(self, candidate: _Candidate) -> tuple[str, int] | None:
        """Name and rows of another file of the same content that was loaded."""
        return self._first(
            "select file, rows from raw.files "
            f"where sha256 = ? and file <> ? and status = 'loaded' and {self._is_mine} order by batch",
            candidate.sha256,
            candidate.file,
        )

    def has_content(self, candidate: _Candidate) -> bool:
        """Whether loading would change nothing: the content is the last of its name, or stands under another name.

        An older version of a known name, landed again, is a correction: it has to win over the version between.
        """
        last = self.last_content(candidate.file)
        return last == candidate.sha256 or (last is None and self.original(candidate) is not None)

    def touch(self, candidate: _Candidate) -> None:
        """Remember a new modification time of the content that was loaded last."""
        self._connection.execute(
            "update raw.files set mtime_ns = ? where batch = "
            "(select max(batch) from raw.files where file = ? and status = 'loaded')",
            [candidate.status.st_mtime_ns, candidate.file],
        )

    def record(self, candidate: _Candidate, outcome: FileOutcome, now: datetime) -> FileOutcome:
        """Write an outcome and give it the next batch. The same bad or doubled file keeps one row, the newest."""
        self._connection.execute(
            "delete from raw.files where file = ? and sha256 is not distinct from ? "
            "and status in ('duplicate', 'quarantined')",
            [candidate.file, candidate.sha256],
        )
        outcome = replace(outcome, batch=next_batch(self._connection))
        row = {
            "file": outcome.file,
            "sha256": candidate.sha256,
            "bytes": candidate.status.st_size,
            "mtime_ns": candidate.status.st_mtime_ns,
            "rows": outcome.rows,
            "status": outcome.status,
            "reason": outcome.reason,
            "batch": outcome.batch,
            "loaded_at": now,
            "extra_columns": list(outcome.extra_columns),
            "report": str(outcome.report) if outcome.report else None,
        }
        self._connection.execute(
            f"insert into raw.files ({', '.join(row)}) values ({', '.join('?' * len(row))})", list(row.values())
        )
        return outcome

    def _first(self, sql: str, *parameters: Any) -> Any:
        return self._connection.execute(f"{sql} limit 1", parameters).fetchone()


def next_batch(connection: duckdb.DuckDBPyConnection) -> int:
    """Batches number the loads of a warehouse, whatever they load."""
    row = connection.execute("select coalesce(max(batch), 0) + 1 from raw.files").fetchone()
    assert row is not None  # an aggregate without groups always has a row
    return row[0]


@contextmanager
def _staging_folder(settings: Settings) -> Iterator[Path]:
    """A folder for temporary copies, empty at the start and gone at the end; only one process ingests at a time."""
    folder = settings.warehouse.parent / f".{settings.dataset}.ingest"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _version(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
