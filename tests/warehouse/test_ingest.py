"""Ingestion: what lands is loaded whole or quarantined whole, once, and the reason is one clear sentence.

Rows inside a good file are judged by staging (``tests/warehouse/test_point_in_time.py`` and the dbt tests).
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dagster_project import pipeline
from dagster_project.raw.landing import FileOutcome, IngestResult, LandingError, ingest, land
from dagster_project.raw.structure import csv_layout, read_bytes
from expectations import predictions, raw_file, runner
from ml.contract import Contract, load
from ml.settings import Settings
from ml.warehouse import connect
from tests import factories
from tests.conftest import Home, real
from tests.prepared import forked

HEADER = "price,sqft,bedrooms,bathrooms,location,year_built,condition"
LINES = [f"{250_000 + i},{1000 + i},3,1.5,'Suburb',{1950 + i},Good" for i in range(50)]
WANTED = 7


def text(*lines: str, header: str = HEADER, end: str = "\n") -> bytes:
    return (end.join([header, *lines]) + end).encode()


def run(home: Home) -> IngestResult:
    with connect(home.settings) as connection:
        return ingest(home.settings, home.contract, connection)


def put(home: Home, name: str, content: bytes) -> Path:
    path = home.settings.landing / name
    path.write_bytes(content)
    return path


def outcome(result: IngestResult, name: str) -> FileOutcome:
    return next(f for f in result.files if f.file == name)


def rows(home: Home) -> list[tuple]:
    """Everything that was loaded, without the times."""
    table = home.query("select * exclude (_loaded_at) from raw.observations order by _batch, _row")
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def recorded(home: Home) -> list[tuple]:
    table = home.query("select file, sha256, rows, status, batch from raw.files order by batch")
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


# Files that cannot be read ------------------------------------------------------------------------------------------

NOT_UTF8 = text("1,2,3,4,'Zürich',1950,Good").decode().encode("latin-1")
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty.csv": (b"", r"is empty \(0 bytes\)"),
    "blank.csv": (b"\n\n\r\n", "holds only blank lines"),
    "header_only.csv": (text(), "has a header but no rows"),
    "header_without_line_end.csv": (HEADER.encode(), "has a header but no rows"),
    "utf16.csv": (text(*LINES).decode().encode("utf-16"), r"is encoded in UTF-16 .*byte 1, line 1.*iconv -f UTF-16"),
    "utf16_without_bom.csv": (text(*LINES).decode().encode("utf-16-be"), "iconv -f UTF-16BE"),
    "latin1.csv": (NOT_UTF8, r"is not UTF-8: byte \d+ in line 2 is 0xFC.*iconv -f WINDOWS-1252"),
    "nul.csv": (text(LINES[0], "1,2\0,3,4,'Suburb',1950,Good"), r"holds a NUL byte at byte \d+ in line 3"),
    "cut_in_a_character.csv": (text(LINES[0]) + "1,2,3,4,'Zü".encode()[:-1], "ends in the middle of a character"),
    "truncated.csv": (text(*LINES)[:-20], rf"was cut off: its last line 51 has \d of {WANTED} fields"),
    "few_fields.csv": (text(LINES[0], "1,2,3", *LINES[1:]), r": 1 line .*first is line 3 with only 3"),
    "many_fields.csv": (text(*LINES, "1,2,3,4,'A, B',1950,Good", LINES[0]), r"first is line 52 with more; quote"),
    "every_line_short.csv": (text(*(["1,2"] * 100)), "at least 20 lines have"),
    "open_quote.csv": (
        text(LINES[0], '1,"2,3,4,x,1950,Good', LINES[1]),
        "line 3 has a quotation mark that is not clos",
    ),
    "mixed_line_ends.csv": (text(LINES[0], end="\r\n") + "\n".join(LINES[1:]).encode(), r"mixes line ends.*tr -d"),
    "blank_lines_of_another_system.csv": (b"\r\n\n" + text(*LINES), "mixes line ends"),
    "carriage_return_in_a_field.csv": (text("1,2,3,4,a\rb,1950,Good", *LINES), "mixes line ends"),
    "one_line_of_10_mb.csv": (text("1" * 10_000_000), "line 2 is longer than 1 MB"),
    "header_of_10_mb.csv": (b"a," * 5_000_000, "line 1 is longer than 1 MB"),
    "twice.csv": (text(header=HEADER + ",sqft"), "several columns named 'sqft'"),
    "twice_but_for_case.csv": (text(header=HEADER + ",SQFT"), "several columns named 'SQFT', 'sqft'"),
    "other_case.csv": (text(header=HEADER.replace("sqft", "Sqft")), "spells the column 'sqft' as 'Sqft'"),
    "reserved.csv": (text(header=HEADER + ",_row"), "a column named '_row', which loading uses"),
    "no_sqft.csv": (
        text("1,3,1.5,Suburb,1950,Good", header=HEADER.replace("sqft,", "")),
        r"lacks the required column 'sqft'; its header is 'price', 'bedrooms'",
    ),
    "excel.csv": (b"PK\x03\x04" + bytes(100), "is an Excel or zip file"),
    "gzip.csv": (b"\x1f\x8b\x08" + bytes(100), "is a gzip file"),
    "text.parquet": (text(*LINES), "cannot be read as Parquet"),
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, IngestResult]:
    """All bad files at once between two good ones, after one ingestion."""
    home = Home(tmp_path_factory.mktemp("bad"), "house_data")
    landing = home.settings.landing
    landing.mkdir(parents=True)
    put(home, "a_good.csv", text(*LINES))
    put(home, "z_good.csv", text(*(line.replace("Good", "Fair") for line in LINES)))
    for name, (content, _) in BAD_FILES.items():
        put(home, name, content)
    (landing / "directory.csv").mkdir()
    (landing / "directory.csv" / "part-0.csv").write_bytes(text(*LINES))
    (landing / "dangling.csv").symlink_to(landing / "nowhere")
    os.mkfifo(landing / "pipe.csv")
    pq.write_table(pa.table({"sqft": list(range(5000))}), landing / "damaged.parquet")
    damaged = bytearray((landing / "damaged.parquet").read_bytes())
    put(home, "damaged.parquet", bytes(damaged[: len(damaged) // 2]))
    (landing / os.fsdecode(b"caf\xe9.csv")).write_bytes(text(*LINES))
    put(home, "notes.txt", b"not for loading")
    put(home, ".half.csv.part", text(*LINES[:3]))
    return home, run(home)


OTHERS = {
    "directory.csv": "is a directory, not a file; land the files inside it",
    "dangling.csv": "is a link to .*nowhere, which does not exist",
    "pipe.csv": "is a pipe, socket or device",
    "damaged.parquet": "cannot be read as Parquet",
    "caf\\xe9.csv": "is not UTF-8; rename the file",
}


@pytest.mark.parametrize("name", [*BAD_FILES, *OTHERS])
def test_a_bad_file_is_quarantined_whole_with_one_sentence(bad: tuple[Home, IngestResult], name: str) -> None:
    home, result = bad
    found = outcome(result, name)
    assert found.status == "quarantined"
    sentence = found.reason or ""
    wanted = BAD_FILES[name][1] if name in BAD_FILES else OTHERS[name]
    assert re.search(wanted, sentence), sentence
    # one sentence that says what, where and what to do, and no stack of library text
    assert name in sentence
    assert "\n" not in sentence
    assert len(sentence) < 420
    # moved with both reports, nothing of it loaded, remembered with its reason
    assert not os.path.lexists(home.settings.landing / name)
    assert os.path.lexists(home.settings.quarantine / name) or name.startswith("caf")
    report = json.loads((home.settings.quarantine / f"{name}.report.json").read_text(encoding="utf-8"))
    assert sentence.startswith(report["reason"])
    assert report["reason"] in (home.settings.quarantine / f"{name}.report.txt").read_text(encoding="utf-8")
    assert (name, "quarantined") in [(file, status) for file, _, _, status, _ in recorded(home)]
    assert name not in [row[-3] for row in rows(home)]


def test_the_good_files_beside_bad_ones_are_loaded(bad: tuple[Home, IngestResult]) -> None:
    home, result = bad
    assert [(f.file, f.rows) for f in result.of("loaded")] == [("a_good.csv", 50), ("z_good.csv", 50)]
    assert home.one("select count(*) from raw.observations") == 100
    assert result.rows_loaded == 100


def test_other_files_are_ignored_and_said_to_be(bad: tuple[Home, IngestResult]) -> None:
    home, result = bad
    assert [f.file for f in result.of("ignored")] == ["notes.txt"]
    assert "neither .csv nor .parquet" in (result.of("ignored")[0].reason or "")
    # half-copied files of `land` are nobody's business
    assert (home.settings.landing / ".half.csv.part").exists()


def test_a_report_names_up_to_twenty_lines(bad: tuple[Home, IngestResult]) -> None:
    home, _ = bad
    report = json.loads((home.settings.quarantine / "every_line_short.csv.report.json").read_text(encoding="utf-8"))
    examples = report["findings"][0]["examples"]
    assert [e["line"] for e in examples] == list(range(2, 22))
    assert examples[0] == {"line": 2, "defect": "missing columns", "text": "1,2"}


def test_a_defect_behind_the_first_chunk_is_found_at_its_place(tmp_path: Path) -> None:
    # chunks are decoded one by one: positions and characters must survive their borders
    path = tmp_path / "big.csv"
    good = ("é" * 99 + "\n").encode() * 20_000
    path.write_bytes(good)
    assert read_bytes(path, is_text=True).defect is None
    path.write_bytes(good + b"abc\xff\n")
    assert f"byte {len(good) + 4:,} in line 20,001 is 0xFF" in str(read_bytes(path, is_text=True).defect)
    path.write_bytes(b"x" * 600_000 + b"\n" + b"y" * 1_200_000 + b"\n")
    assert "line 2 is longer" in str(read_bytes(path, is_text=True).defect)


# Files that look odd but are fine -----------------------------------------------------------------------------------


def variant(name: str) -> bytes:
    plain = text(*LINES[:5])
    return {
        "bom": b"\xef\xbb\xbf" + plain,
        "bom_and_quotes": b"\xef\xbb\xbf" + text(*LINES[:5], header=",".join(f'"{h}"' for h in HEADER.split(","))),
        "crlf": plain.replace(b"\n", b"\r\n"),
        "cr": plain.replace(b"\n", b"\r"),
        "blank_lines": b"\n\n" + plain.replace(b"\n", b"\n\n"),
        "no_last_line_end": plain.rstrip(),
        "semicolons": plain.replace(b",", b";"),
        "tabs": plain.replace(b",", b"\t"),
        "spaces_in_header": plain.replace(b"sqft,bedrooms", b" sqft , bedrooms"),
        "columns_in_another_order": text(
            *(",".join(reversed(line.split(","))) for line in LINES[:5]),
            header=",".join(reversed(HEADER.split(","))),
        ),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "bom",
        "bom_and_quotes",
        "crlf",
        "cr",
        "blank_lines",
        "no_last_line_end",
        "semicolons",
        "tabs",
        "spaces_in_header",
        "columns_in_another_order",
    ],
)
def test_an_odd_but_clear_file_is_read_like_a_plain_one(home, tmp_path: Path, name: str) -> None:
    plain, odd = home("house_data", "plain"), home("house_data", "odd")
    put(plain, "file.csv", text(*LINES[:5]))
    put(odd, "file.csv", variant(name))
    run(plain)
    run(odd)
    assert rows(odd) == rows(plain)
    assert len(rows(odd)) == 5


def test_values_stay_as_they_stand_in_the_file(home) -> None:
    made = home("house_data")
    lines = ['0450000.50,1e3, 3 ,1.5,"\'A, ""B""\'",1950,Good', '"",1001,3,1.5,"two\nlines",1950, ?']
    put(made, "[odd] it's *.csv", text(*lines))
    run(made)
    found = made.query(
        "select price, sqft, bedrooms, location, condition, _row, _file from raw.observations order by _row"
    )
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        ("0450000.50", "1e3", " 3 ", "'A, \"B\"'", "Good", 1, "[odd] it's *.csv"),
        (None, "1001", "3", "two\nlines", " ?", 2, "[odd] it's *.csv"),
    ]


def test_rows_are_numbered_as_in_the_file_however_large_it_is(home) -> None:
    # reading in parallel must not mix them up
    made = home("house_data")
    put(made, "large.csv", text(*(f"250000,{i},3,1.5,Suburb,1950,Good" for i in range(300, 45_300))))
    run(made)
    assert made.one("select count(*) from raw.observations where cast(sqft as bigint) = _row + 299") == 45_000


def test_parquet_is_loaded_as_the_text_a_csv_would_hold(home) -> None:
    import datetime as dt

    as_csv, as_parquet = home("housets", "csv"), home("housets", "parquet")
    table = factories.housets_rows(zips=3)
    factories.write_csv(table, as_csv.settings.landing / "x.csv")
    typed = {
        "date": pa.array([dt.datetime.fromisoformat(d) for d in table["date"].to_pylist()], pa.timestamp("ns")),
        # what pandas makes of integers when one is missing
        "zipcode": pa.array([float(z) for z in table["zipcode"].to_pylist()]),
    }
    columns = {name: typed.get(name, table[name]) for name in table.column_names}
    pq.write_table(pa.table(columns), as_parquet.settings.landing / "x.parquet")
    assert run(as_csv).of("loaded")
    assert run(as_parquet).of("loaded")
    values = "select * exclude (_file, _loaded_at) from raw.observations order by _row"
    assert as_parquet.query(values).equals(as_csv.query(values))


def test_nan_in_parquet_is_missing_in_numbers_and_in_texts(home) -> None:
    made, table = home("housets"), factories.housets_rows(zips=3)

    def land(name: str, values: list[float]) -> None:
        columns = {c: pa.array(values) if c == name else table[c] for c in table.column_names}
        pq.write_table(pa.table(columns), made.settings.landing / f"{name}.parquet")

    land("median_dom", [1.5, math.nan, -math.nan, *map(float, table["median_dom"].to_pylist()[3:])])
    land("zipcode", [math.nan, *map(float, table["zipcode"].to_pylist()[1:])])
    found = run(made)
    assert [f.file for f in found.of("loaded")] == ["median_dom.parquet"]
    first = made.query("select median_dom from raw.observations order by _row limit 3")[0].to_pylist()
    assert first == ["1.5", None, None]
    # all others are equal, which statistics take for a constant
    land("median_list_ppsf", [math.nan, *[200.0] * (table.num_rows - 1)])
    run(made)
    where = "from raw.observations where _file = 'median_list_ppsf.parquet' order by _row limit 2"
    assert made.query(f"select median_list_ppsf {where}")[0].to_pylist() == [None, "200.0"]
    # the zip code is part of the key
    (refused,) = found.of("quarantined")
    assert refused.file == "zipcode.parquet" and "in 1 of" in (refused.reason or "")


# file systems and exports of a Mac take accents apart, and the same name looks like another
def test_a_header_with_its_accents_apart_is_the_column_it_looks_like(home) -> None:
    made, apart, composed = home("house_data"), "Gro\u0308\u00dfe", "Gr\u00f6\u00dfe"
    rows = factories.house_data_rows(5).append_column(apart, pa.array(list("abcde")))
    made.land("1.csv", rows)
    pq.write_table(
        rows.set_column(rows.num_columns - 1, apart, pa.array(list("fghij"))), made.settings.landing / "2.parquet"
    )
    assert len(run(made).of("loaded")) == 2
    assert made.query(f'select "{composed}" from raw.observations order by _batch, _row')[0].to_pylist() == list(
        "abcdefghij"
    )


def test_who_asks_for_a_file_to_be_loaded_is_told_that_it_was_refused(home) -> None:
    made = home("house_data")
    made.land("good.csv", factories.house_data_rows(5))
    made.land("bad.csv", factories.house_data_rows(5).drop_columns(["sqft"]))
    run(made)
    assert pipeline._refused(made.settings, ["good.csv"]) == []
    (said,) = pipeline._refused(made.settings, ["good.csv", "bad.csv"])
    assert said.startswith("bad.csv was quarantined: bad.csv lacks the required column 'sqft'")


def test_the_day_of_an_instant_does_not_depend_on_the_machine(home) -> None:
    made = home("housets")
    table = factories.housets_rows(zips=1)
    days = pa.array(table["date"].to_pylist()).cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))
    columns = {name: days if name == "date" else table[name] for name in table.column_names}
    pq.write_table(pa.table(columns), made.settings.landing / "x.parquet")
    with connect(made.settings) as connection:
        connection.execute("set TimeZone = 'America/New_York'")
        assert ingest(made.settings, made.contract, connection).of("loaded")
    assert (
        made.query("select date from raw.observations order by _row")["date"].to_pylist() == table["date"].to_pylist()
    )


def test_a_correction_is_loaded_after_what_it_corrects_though_neither_was(home, tmp_path: Path) -> None:
    made, source = home("house_data"), tmp_path / "sales.csv"
    for price in (250_000, 260_000):
        source.write_bytes(text(f"{price},1000,3,1.5,Suburb,1950,Good"))
        landed = land(made.settings, [source])[0]
    assert landed.name > "sales" and landed.name != "sales.csv"
    run(made)
    assert made.query("select price from raw.observations order by _batch")["price"].to_pylist() == ["250000", "260000"]


def test_added_columns_are_noticed_and_kept(home) -> None:
    made = home("house_data")
    put(made, "1.csv", text(*LINES[:2]))
    put(made, "2.csv", text(*(f"{line},yes,7" for line in LINES[2:4]), header=HEADER + ",Has Pool,"))
    result = run(made)
    assert outcome(result, "2.csv").extra_columns == ("Has Pool", "unnamed_9")
    assert made.query('select "Has Pool", unnamed_9 from raw.observations order by _batch, _row').to_pylist() == [
        {"Has Pool": value, "unnamed_9": number} for value, number in [(None, None)] * 2 + [("yes", "7")] * 2
    ]
    assert made.one("select extra_columns from raw.files where file = '2.csv'") == ["Has Pool", "unnamed_9"]


def test_a_file_without_a_price_is_loaded_to_be_scored(home) -> None:
    made = home("house_data")
    put(made, "to_score.csv", text(*(line.partition(",")[2] for line in LINES), header=HEADER.partition(",")[2]))
    assert outcome(run(made), "to_score.csv").status == "loaded"
    assert made.one("select count(*) from raw.observations where price is null") == 50


# Once and only once -------------------------------------------------------------------------------------------------


def test_a_second_run_changes_nothing_and_reads_nothing(home) -> None:
    made = home("house_data")
    path = put(made, "a.csv", text(*LINES))
    run(made)
    before = rows(made), recorded(made)
    # a file that cannot be opened shows that it was not
    path.chmod(0)
    path_status = path.stat()
    second = run(made) if os.geteuid() else _run_without(made, path, path_status)
    assert [f.status for f in second.files] == ["unchanged"]
    assert second.expectations == ()
    assert (rows(made), recorded(made)) == before


def _run_without(home: Home, path: Path, status: os.stat_result) -> IngestResult:
    """As root every file can be opened: other bytes of the same size and time show that nobody did."""
    path.write_bytes(path.read_bytes().replace(b"Good", b"Fair"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return run(home)


def test_a_touched_file_is_not_loaded_again(home) -> None:
    made = home("house_data")
    path = put(made, "a.csv", text(*LINES))
    run(made)
    before = rows(made), recorded(made)
    os.utime(path, ns=(1, 1))
    assert run(made).files == (FileOutcome("a.csv", "unchanged"),)
    assert (rows(made), recorded(made)) == before
    assert made.one("select mtime_ns from raw.files") == 1


def test_the_same_content_under_another_name_is_a_duplicate(home) -> None:
    made = home("house_data")
    put(made, "b.csv", text(*LINES))
    put(made, "c.csv", text(*LINES))  # in the same run
    run(made)
    put(made, "a.csv", text(*LINES))  # and later
    found = outcome(run(made), "a.csv")
    assert (found.status, found.reason) == ("duplicate", "a.csv has the same content as b.csv, which is loaded")
    assert [(file, status) for file, _, _, status, _ in recorded(made)] == [
        ("b.csv", "loaded"),
        ("c.csv", "duplicate"),
        ("a.csv", "duplicate"),
    ]
    assert {row[-3] for row in rows(made)} == {"b.csv"}
    assert [f.status for f in run(made).files] == ["unchanged"] * 3


def test_corrected_content_is_a_later_batch_and_so_is_its_withdrawal(home) -> None:
    made = home("house_data")
    first, second = text(*LINES), text(*(line.replace("Good", "Poor") for line in LINES))
    for day, content in enumerate((first, second, first)):
        os.utime(put(made, "a.csv", content), (day, day))
        run(made)
    # the latest load wins: without loading the first version again, the withdrawn correction would stay
    assert made.query(
        "select _batch, any_value(condition) as c from raw.observations group by 1 order by 1"
    ).to_pylist() == [
        {"_batch": 1, "c": "Good"},
        {"_batch": 2, "c": "Poor"},
        {"_batch": 3, "c": "Good"},
    ]


def test_a_bad_file_landed_again_is_judged_again_and_remembered_once(home) -> None:
    made = home("house_data")
    content = text("abc,1000,3,1.5,Suburb,1950,Good")
    for _ in range(3):
        put(made, "a.csv", content)
        assert outcome(run(made), "a.csv").status == "quarantined"
    assert len(recorded(made)) == 1
    assert len(list(made.settings.quarantine.glob("*.csv"))) == 2  # the name, and the name with its content's suffix
    put(made, "a.csv", text(*LINES))
    assert outcome(run(made), "a.csv").status == "loaded"


def test_a_file_that_is_still_being_written_is_left_for_the_next_run(home) -> None:
    made = home("house_data")
    path = put(made, "a.csv", text(*LINES)[:-20])
    writing = path.open("ab")

    def write_on(done: int, total: int) -> None:
        if not writing.closed:
            writing.write(text(*LINES)[-20:])
            writing.close()

    with connect(made.settings) as connection:
        first = ingest(made.settings, made.contract, connection, progress=write_on)
    assert [f.status for f in first.files] == ["changing"]
    assert [f.status for f in run(made).files] == ["loaded"]


# Killed -------------------------------------------------------------------------------------------------------------


class DiesAt:
    """A real connection, until the statement that begins with ``words`` is sent for the n-th time."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, words: str, n: int) -> None:
        self.connection, self.words, self.left = connection, words, n

    def execute(self, sql: str, *parameters: Any) -> duckdb.DuckDBPyConnection:
        if sql.startswith(self.words):
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.connection.execute(sql, *parameters)


def die(home: Path, words: str, n: int) -> None:
    """An ingestion whose process is killed at a statement."""
    settings = Settings(home=home, dataset="house_data")
    with connect(settings) as connection:
        ingest(settings, load("house_data"), DiesAt(connection, words, n))  # pyright: ignore[reportArgumentType]


def test_killed_in_the_middle_then_run_again_gives_the_rows_of_an_undisturbed_run(home) -> None:
    undisturbed, killed = home("house_data", "undisturbed"), home("house_data", "killed")
    for made in (undisturbed, killed):
        put(made, "a.csv", text(*LINES, header=HEADER))
        put(made, "b_bad.csv", text("abc,1000,3,1.5,Suburb,1950,Good"))
        put(made, "c.csv", text(*(f"{99 * i},{i},3,1.5,Suburb,1950,Good" for i in range(1_000, 31_000))))
        put(made, "d.csv", text(*(f"{line},x" for line in LINES), header=HEADER + ",extra"))
    run(undisturbed)
    # all rows of c.csv are written, its transaction, the third, is about to be committed
    died = forked(die, killed.settings.home, "commit", 3, environment=killed.environment)
    died.join()
    assert died.exitcode == -signal.SIGKILL
    assert [row[:1] + row[3:] for row in recorded(killed)] == [("a.csv", "loaded", 1), ("b_bad.csv", "quarantined", 2)]
    landed = killed.query("select _file, count(*) as n from raw.observations group by _file")
    assert landed.to_pylist() == [{"_file": "a.csv", "n": 50}]
    run(killed)
    assert rows(killed) == rows(undisturbed)
    assert recorded(killed) == recorded(undisturbed)
    assert sorted(p.name for p in killed.settings.quarantine.iterdir()) == sorted(
        p.name for p in undisturbed.settings.quarantine.iterdir()
    )
    assert [p.name for p in killed.settings.warehouse.parent.iterdir()] == [killed.settings.warehouse.name]


def test_killed_between_remembering_and_moving_a_bad_file_it_is_quarantined_once(home) -> None:
    made = home("house_data")
    content = text("abc,1000,3,1.5,Suburb,1950,Good")
    put(made, "a.csv", content)
    run(made)
    # the state such a kill leaves behind: remembered and reported, not moved
    (made.settings.quarantine / "a.csv").rename(made.settings.landing / "a.csv")
    before = recorded(made)
    run(made)
    assert recorded(made) == before
    assert (made.settings.quarantine / "a.csv").read_bytes() == content
    assert not any(made.settings.landing.iterdir())


# The gate -----------------------------------------------------------------------------------------------------------


def hdb_lines(**changes: tuple[int, str]) -> list[dict[str, str]]:
    """200 flats; ``column=(n, value)`` puts the value into the first n of them."""
    found = factories.hdb_rows(months=1).to_pylist()
    for column, (n, value) in changes.items():
        for row in found[:n]:
            row[column] = value
    return found


#: expectation: (what passes, what fails), by the limits of the contract's landing block on 200 rows
GATES: dict[str, tuple[dict[str, tuple[int, str]], dict[str, tuple[int, str]]]] = {
    "missing_key": ({}, {"_id": (1, "")}),
    "missing_date": ({"month": (2, "")}, {"month": (3, " ")}),
    "unparsable__sold_month": ({"month": (4, "2018-13")}, {"month": (5, "Jan 2018")}),
    "unparsable__resale_price": ({"resale_price": (4, "n/a")}, {"resale_price": (5, "NaN")}),
    "unparsable__floor_area_sqm": ({"floor_area_sqm": (200, " 1e2 ")}, {"floor_area_sqm": (5, "92,5")}),
    "implausible__floor_area_sqm": ({"floor_area_sqm": (40, "501")}, {"floor_area_sqm": (41, "14.9")}),
    "implausible__resale_price": ({"resale_price": (200, "")}, {"resale_price": (200, "1")}),
}


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, IngestResult]:
    home = Home(tmp_path_factory.mktemp("gated"), "hdb")
    for name, cases in GATES.items():
        for verdict, changes in zip(("pass", "fail"), cases, strict=True):
            table = pa.Table.from_pylist(hdb_lines(**changes))
            factories.write_csv(table, home.settings.landing / f"{name}.{verdict}.csv")
    return home, run(home)


@pytest.mark.parametrize("name", GATES)
def test_each_expectation_has_a_file_that_passes_and_one_that_fails(
    gated: tuple[Home, IngestResult], name: str
) -> None:
    _, result = gated
    verdicts = {e.subject: e for e in result.expectations if e.expectation == name}
    passed, failed = verdicts[f"{name}.pass.csv"], verdicts[f"{name}.fail.csv"]
    assert passed.success
    assert not failed.success
    assert failed.observed is not None
    assert failed.observed > float(failed.limit.removeprefix("≤ "))
    assert outcome(result, f"{name}.pass.csv").status in {"loaded", "duplicate"}
    assert outcome(result, f"{name}.fail.csv").status == "quarantined"
    # it fails for this reason only
    assert [e.expectation for e in result.expectations if e.subject == f"{name}.fail.csv" and not e.success] == [name]


def test_rows_and_required_columns_are_expectations_too(bad: tuple[Home, IngestResult]) -> None:
    _, result = bad
    failed = {(e.subject, e.expectation) for e in result.expectations if not e.success}
    assert ("header_only.csv", raw_file.ROWS) in failed
    assert ("no_sqft.csv", raw_file.MISSING_COLUMNS) in failed
    assert not {name for subject, name in failed if subject in {"a_good.csv", "z_good.csv"}}


def test_values_that_stand_for_missing_are_neither_unparsable_nor_implausible() -> None:
    contract = load("ames")
    rules = [r for r in raw_file.rules(contract) if r.columns == ("LotFrontage",)]
    connection = duckdb.connect()
    measured = runner.profile(connection, rules, "(select unnest(['NA', '', null, '65']) as \"LotFrontage\")")
    assert set(measured.values()) == {0.0}
    housets = [r for r in raw_file.rules(load("housets")) if r.columns == ("Median Rent",)]
    measured = runner.profile(connection, housets, "(select unnest(['0.0', '49', 'x', '60']) as \"Median Rent\")")
    assert measured == {"unparsable__median_rent": 0.25, "implausible__median_rent": 0.25}


@pytest.mark.parametrize("dataset", ["housets", "hdb", "ames", "house_data"])
def test_expectations_have_stable_names_that_asset_checks_accept(dataset: str) -> None:
    names = [rule.name for rule in raw_file.rules(load(dataset))]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)


def test_a_report_names_rows_columns_and_values(gated: tuple[Home, IngestResult]) -> None:
    home, result = gated
    file = "unparsable__floor_area_sqm.fail.csv"
    assert outcome(result, file).reason == (
        f"{file}: in 5 of 200 rows 'floor_area_sqm' is not a number (allowed is 2.0%), first in row 1: '92,5'; "
        "correct the file, or name what stands for a missing value there in the contract (missing)"
    )
    report = json.loads((home.settings.quarantine / f"{file}.report.json").read_text(encoding="utf-8"))
    assert report["rows"] == 200
    assert report["findings"][0]["column"] == "floor_area_sqm"
    assert report["findings"][0]["examples"] == [{"row": n, "floor_area_sqm": "92,5"} for n in range(1, 6)]
    readable = (home.settings.quarantine / f"{file}.report.txt").read_text(encoding="utf-8")
    assert "row 5  floor_area_sqm '92,5'" in readable
    many = json.loads((home.settings.quarantine / "implausible__resale_price.fail.csv.report.json").read_text())
    assert [e["row"] for e in many["findings"][0]["examples"]] == list(range(1, 21))


def test_limits_come_from_the_contract(home) -> None:
    made = home("house_data")
    put(made, "a.csv", text("abc,1000,3,1.5,Suburb,1950,Good", *LINES))
    put(made, "b.csv", text("abc,1000,3,1.5,Suburb,1950,Good", "abc,1000,3,1.5,Suburb,1950,Good", *LINES))
    contract: Contract = made.contract
    lenient = contract.model_copy(
        update={"landing": contract.landing.model_copy(update={"max_unparsable_share": 0.02})}
    )
    with connect(made.settings) as connection:
        result = ingest(made.settings, lenient, connection)
    assert [f.status for f in result.files] == ["loaded", "quarantined"]


PRICES = "(select unnest(range(100))::varchar as observation_id, 'v1' as model_version, 300000.0 as predicted_price)"


@pytest.mark.parametrize(
    ("name", "expression", "rows_to_score"),
    [
        ("rows_without_prediction", "predicted_price", 101),
        ("rows_without_prediction", "predicted_price", 99),
        ("duplicate_keys", "predicted_price", 100),
        ("missing_price", "case when observation_id <> '7' then predicted_price end", 100),
        ("missing_price", "case when observation_id = '7' then 'nan'::double else predicted_price end", 100),
        ("price_not_positive", "case when observation_id = '7' then 0 else predicted_price end", 100),
        ("implausible_price", "case when observation_id::int < 2 then 9e9 else predicted_price end", 100),
    ],
)
def test_outgoing_predictions_that_cannot_be_prices_are_warned_about(
    name: str, expression: str, rows_to_score: int
) -> None:
    observation = "'1'" if name == "duplicate_keys" else "observation_id"
    relation = f"(select {observation} as observation_id, model_version, {expression} as predicted_price from {PRICES})"
    suite = predictions.rules(rows_to_score, 50_000, 2_000_000)
    found = predictions.check(duckdb.connect(), relation, "2022-01", suite)
    assert [r.expectation for r in found if not r.success] == [name]
    assert {r.severity for r in found} == {"warn"}


def test_good_predictions_pass_every_expectation() -> None:
    found = predictions.check(duckdb.connect(), PRICES, "2022-01", predictions.rules(100, 50_000, 2_000_000))
    assert [r.success for r in found] == [True] * 5
    assert found[0] == replace(found[0], subject="2022-01", observed=0.0, limit="≥ 0 and ≤ 0")


# Landing ------------------------------------------------------------------------------------------------------------


def test_files_and_folders_are_landed_under_their_names(home, tmp_path: Path) -> None:
    made = home("house_data")
    folder = tmp_path / "folder"
    folder.mkdir()
    for path, content in [(folder / "b.CSV", b"b"), (folder / "c.parquet", b"c"), (folder / "readme.md", b"")]:
        path.write_bytes(content)
    single = tmp_path / "a.csv"
    single.write_bytes(b"a")
    landed = land(made.settings, [single, folder])
    assert [p.name for p in landed] == ["a.csv", "b.CSV", "c.parquet"]
    assert sorted(p.name for p in made.settings.landing.iterdir()) == ["a.csv", "b.CSV", "c.parquet"]
    assert land(made.settings, [made.settings.landing]) == landed


def test_landing_loses_nothing_of_the_same_name(home, tmp_path: Path) -> None:
    made = home("house_data")
    source = tmp_path / "a.csv"
    names = []
    for content in (b"one", b"one", b"two", b"two", b"one"):
        source.write_bytes(content)
        names += [p.name for p in land(made.settings, [source])]
    assert names == ["a.csv", "a.csv", "a-3fc4ccfe.csv", "a-3fc4ccfe.csv", "a.csv"]
    assert sorted(p.read_bytes() for p in made.settings.landing.iterdir()) == [b"one", b"two"]


def test_paths_that_cannot_be_landed_are_refused_before_anything_is_copied(home, tmp_path: Path) -> None:
    made = home("house_data")
    good = tmp_path / "good.csv"
    good.write_bytes(text(*LINES))
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "outer" / "inner.csv").mkdir(parents=True)
    for path, sentence in [
        ("missing.csv", "does not exist; give the path of a .csv or .parquet file"),
        ("x.txt", "is not a .csv or .parquet file"),
        ("empty", "holds no .csv or .parquet file"),
        ("outer", "inner.csv is a directory, not a file"),
    ]:
        with pytest.raises(LandingError, match=sentence):
            land(made.settings, [good, tmp_path / path])
    assert not any(made.settings.landing.iterdir())


def test_quarantine_on_another_file_system_works_the_same(home) -> None:
    made = home("house_data")
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == made.settings.landing.stat().st_dev:
        pytest.skip("no second file system here")
    folder = other / f"housing-test-{os.getpid()}"
    folder.mkdir()
    made.settings.quarantine.parent.mkdir(parents=True)
    made.settings.quarantine.symlink_to(folder)
    try:
        put(made, "a.csv", b"")
        (made.settings.landing / "b.csv").mkdir()
        (made.settings.landing / "b.csv" / "part").write_bytes(b"x")
        run(made)
        assert sorted(p.name for p in folder.iterdir() if "report" not in p.name) == ["a.csv", "b.csv"]
        assert (folder / "b.csv" / "part").read_bytes() == b"x"
        assert not any(made.settings.landing.iterdir())
    finally:
        shutil.rmtree(folder)


# Real files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "parts", "expected"),
    [
        ("housets", ("housets", "HouseTS_sample.csv"), 3_057),
        ("hdb", ("hdb", "2017-01.csv"), 1_185),
        ("ames", ("ames",), 2_919),
        ("house_data", ("house_data",), 84),
    ],
)
def test_real_files_pass_their_gate(home, dataset: str, parts: tuple[str, ...], expected: int) -> None:
    made = home(dataset)
    land(made.settings, [real(*parts)])
    result = run(made)
    assert {f.status for f in result.files} == {"loaded"}
    assert result.rows_loaded == expected
    assert all(e.success for e in result.expectations)


def test_the_delimiter_is_the_one_that_finds_the_contracts_columns(tmp_path: Path) -> None:
    contract = load("house_data")
    path = tmp_path / "a.csv"
    for header, delimiter in [(HEADER, ","), (HEADER.replace(",", ";"), ";"), ("a;b", ","), ("sqft", ",")]:
        path.write_text(header + "\n", encoding="utf-8")
        assert csv_layout(path, contract).delimiter == delimiter


def test_nothing_landed_is_nothing_done(home, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "fresh", dataset="house_data")
    with connect(settings) as connection:
        result = ingest(settings, load("house_data"), connection)
    assert (result.files, result.expectations) == ((), ())
