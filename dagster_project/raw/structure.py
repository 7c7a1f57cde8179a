"""Can this file be read at all? Bytes, encoding, lines, header. Each defect is told in one sentence.

What the values mean is judged by ``expectations/raw_file.py``; what happens to a bad file by ``landing.py``.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import os
import stat
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml.contract import Contract
from ml.warehouse import PROVENANCE

CHUNK = 1 << 20
#: Far above any real record, and never above what DuckDB's reader takes.
LONGEST_LINE = 1 << 20
DELIMITERS = ",;\t|"
#: Names that loading needs for itself.
RESERVED = {*PROVENANCE, "file_row_number"}
MAGIC = {
    b"PK\x03\x04": "an Excel or zip file",
    b"\x1f\x8b": "a gzip file",
    b"PAR1": "a Parquet file",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
}


@dataclass(frozen=True)
class Finding:
    """One reason against a file. ``examples`` name rows or lines, columns and values."""

    rule: str
    sentence: str
    column: str | None = None
    observed: float | None = None
    limit: str | None = None
    examples: tuple[dict[str, Any], ...] = ()


class BadFileError(ValueError):
    """A file that cannot be loaded, with the finding that says why."""

    def __init__(self, rule: str, sentence: str, examples: tuple[dict[str, Any], ...] = ()) -> None:
        super().__init__(sentence)
        self.finding = Finding(rule, sentence, examples=examples)


@dataclass(frozen=True)
class Bytes:
    """What one pass over a file's bytes tells. ``defect`` is the first thing wrong with a text file."""

    sha256: str
    lines: int
    ends_with_newline: bool
    has_quotes: bool
    defect: BadFileError | None


@dataclass(frozen=True)
class Layout:
    """How a CSV file is to be read: names in the order of the file, without surrounding white space."""

    headers: tuple[str, ...]
    delimiter: str
    blank_lines_before: int


def require_file(path: Path) -> os.stat_result:
    """Status of a regular, readable file. Raises BadFileError for anything else of that name."""
    name = path.name
    if path.is_symlink() and not path.exists():
        target = path.readlink()
        raise BadFileError("file", f"{name} is a link to {target}, which does not exist; land the file itself")
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise BadFileError("file", f"{name} is a directory, not a file; land the files inside it")
    if not stat.S_ISREG(status.st_mode):
        raise BadFileError("file", f"{name} is a pipe, socket or device, not a file; land an ordinary file")
    if not os.access(path, os.R_OK):
        raise BadFileError("file", f"{name} may not be read by this user; change its permissions and land it again")
    if status.st_size == 0:
        raise BadFileError("file", f"{name} is empty (0 bytes); land it again when it has content")
    return status


def read_bytes(path: Path, *, is_text: bool) -> Bytes:
    """One pass over the file in chunks: hash and, for a text file, encoding, NUL bytes and line lengths."""
    digest = hashlib.sha256()
    decoder = codecs.getincrementaldecoder("utf-8")()
    defect: BadFileError | None = None
    position = lines = line_start = 0
    last = b""
    has_quotes = False
    with path.open("rb", buffering=0) as handle:
        while chunk := handle.read(CHUNK):
            digest.update(chunk)
            if is_text:
                if not defect:
                    defect = _defect(path.name, chunk, decoder, position=position, lines=lines, line_start=line_start)
                lines += chunk.count(b"\n")
                newline = chunk.rfind(b"\n")
                line_start = position + newline + 1 if newline >= 0 else line_start
                has_quotes = has_quotes or b'"' in chunk
            position += len(chunk)
            last = chunk[-1:]
    if is_text and not defect and decoder.getstate()[0]:
        defect = BadFileError(
            "encoding",
            f"{path.name} ends in the middle of a character at byte {position:,}: it was cut off; "
            "land the complete file",
        )
    return Bytes(digest.hexdigest(), lines + (last != b"\n"), last in (b"\n", b"\r"), has_quotes, defect)


def _defect(
    name: str, chunk: bytes, decoder: codecs.IncrementalDecoder, *, position: int, lines: int, line_start: int
) -> BadFileError | None:
    """First thing wrong in a chunk that begins at byte ``position``, after ``lines`` complete lines."""
    if position == 0:
        for magic, kind in MAGIC.items():
            if chunk.startswith(magic):
                return BadFileError("encoding", f"{name} is {kind}, not text; export it as UTF-8 CSV")
        wide = _utf16(chunk)
        if wide:
            return BadFileError(
                "encoding",
                f"{name} is encoded in {wide} instead of UTF-8 (seen at byte 1, line 1); "
                f"convert it with: iconv -f {wide} -t UTF-8 '{name}' > utf8.csv",
            )
    pending = len(decoder.getstate()[0])
    try:
        decoder.decode(chunk)
    except UnicodeDecodeError as error:
        at = position - pending + error.start
        line = lines + 1 + (chunk.count(b"\n", 0, max(at - position, 0)))
        return BadFileError(
            "encoding",
            f"{name} is not UTF-8: byte {at + 1:,} in line {line:,} is 0x{error.object[error.start]:02X}; if it was "
            f"saved on Windows, convert it with: iconv -f WINDOWS-1252 -t UTF-8 '{name}' > utf8.csv",
        )
    nul = chunk.find(b"\0")
    if nul >= 0:
        line = lines + 1 + chunk.count(b"\n", 0, nul)
        return BadFileError(
            "encoding",
            f"{name} holds a NUL byte at byte {position + nul + 1:,} in line {line:,}: it is damaged or not text; "
            "export it again as UTF-8 CSV",
        )
    # a chunk is no longer than the limit, so only a line that began before it can be too long
    newline = chunk.find(b"\n")
    if position + (newline if newline >= 0 else len(chunk)) - line_start > LONGEST_LINE:
        return BadFileError(
            "lines",
            f"{name}: line {lines + 1:,} is longer than {LONGEST_LINE >> 20} MB; "
            "line ends are missing, export the file again",
        )
    return None


def _utf16(start: bytes) -> str | None:
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    sample = start[:1000]
    for offset, name in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        if len(sample) >= 8 and sample[offset::2].count(0) > len(sample) // 4:
            return name
    return None


def csv_layout(path: Path, contract: Contract) -> Layout:
    """Header and delimiter of a CSV file that ``read_bytes`` found to be text."""
    with path.open(encoding="utf-8-sig", newline="") as handle:
        text = handle.read(CHUNK)
    body = text.lstrip("\r\n")
    before = text[: len(text) - len(body)]
    if not body.strip():
        raise BadFileError("header", f"{path.name} holds only blank lines; land it again when it has content")
    blank = before.replace("\r\n", "\n").replace("\r", "\n")
    if blank and _ends(before + body.partition("\n")[0] + "\n" * ("\n" in body)) > 1:
        raise unequal_line_ends(path.name)

    def split(delimiter: str) -> list[str]:
        try:
            return [as_header(h) for h in next(csv.reader(io.StringIO(body, newline=""), delimiter=delimiter))]
        except csv.Error as error:
            raise BadFileError(
                "header", f"{path.name}: the header line cannot be read ({error}); correct its first line"
            ) from None

    # the comma unless another delimiter finds more of the contract's columns
    delimiter = max(DELIMITERS, key=lambda d: (len(set(split(d)) & set(contract.sources)), d == ","))
    headers = [h or f"unnamed_{position}" for position, h in enumerate(split(delimiter), 1)]
    return Layout(tuple(headers), delimiter, len(blank))


def require_headers(name: str, headers: tuple[str, ...], contract: Contract) -> None:
    """Refuse headers that cannot become columns. Absent ones are left to the gate."""
    folded = [h.casefold() for h in headers]
    repeated = sorted({h for h in headers if folded.count(h.casefold()) > 1})
    if repeated:
        raise BadFileError(
            "header", f"{name} has several columns named {_listed(repeated)}; give every column its own name"
        )
    reserved = sorted(h for h in headers if h.casefold() in RESERVED)
    if reserved:
        raise BadFileError(
            "header", f"{name} has a column named {_listed(reserved)}, which loading uses itself; rename it"
        )
    sources = {h.casefold(): h for h in contract.sources}
    for header in headers:
        wanted = sources.get(header.casefold(), header)
        if wanted != header:
            raise BadFileError("header", f"{name} spells the column {wanted!r} as {header!r}; rename it to {wanted!r}")


def as_header(text: str) -> str:
    """A column's name without blanks around it, accents composed as the contract has them: a Mac takes them apart."""
    return unicodedata.normalize("NFC", text.strip())


def _listed(names: list[str]) -> str:
    return ", ".join(repr(n) for n in names)


def has_unequal_line_ends(path: Path) -> bool:
    """Whether LF, CRLF and CR ends stand in one file, which nobody can split into lines for sure."""
    with path.open(encoding="utf-8-sig", newline="") as handle:
        return _ends(handle.read()) > 1


def filled_lines(path: Path) -> int:
    """Lines that are not empty, whatever ends them. Without quotation marks each of them is a record."""
    with path.open(encoding="utf-8-sig") as handle:
        return sum(line != "\n" for line in handle)


def _ends(text: str) -> int:
    """How many kinds of line ends a text has."""
    windows = text.count("\r\n")
    return sum(n > 0 for n in (windows, text.count("\n") - windows, text.count("\r") - windows))


def unequal_line_ends(name: str) -> BadFileError:
    return BadFileError(
        "lines", f"{name} mixes line ends (LF, CRLF, CR); make them equal with: tr -d '\\r' < '{name}' > fixed.csv"
    )
