"""What landed, what became of it, and why some of it counts for nothing."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from ml.dashboard import queries
from ml.dashboard.page import (
    Column,
    Page,
    age_label,
    banner,
    head,
    month_label,
    nothing,
    plain,
    section,
    table,
    tiles,
    time_label,
)
from ml.dashboard.snapshot import Row
from ml.words import MISSING, number

STATES = ["all files", "quarantined", "with rejected rows"]


def render(page: Page) -> None:
    head("Data", f"{page.contract.title}: every landed row is accepted or rejected with reasons; none is lost.")
    rows = page.snapshot.rows(queries.ROWS_BY_LAYER)[0]
    if not rows["files"]:
        nothing("No file has landed yet.", f"Type: housing ingest FILES --dataset {page.contract.name}")
        return
    if rows["difference"]:
        lost = f"{number(rows['difference'])} rows are unaccounted for"
        banner("fail", lost, "See the files below whose Lost is not 0.")
    share = f"{number(100 * rows['rejected'] / rows['landed'], 2)} % of them" if rows["landed"] else ""
    newest = f"newest month {month_label(rows['newest_month'])}" if page.dated else "no dates"
    tiles(
        [
            ("Files", number(rows["files"]), f"{number(rows['quarantined'])} quarantined"),
            ("Landed rows", number(rows["landed"]), f"last file {age_label(rows['loaded_at'])}"),
            ("Accepted", number(rows["accepted"]), newest),
            ("Rejected", number(rows["rejected"]), share),
            ("To be scored", number(rows["to_score"]), "price not known yet"),
            ("Lost", number(rows["difference"]), "neither accepted nor rejected"),
        ]
    )
    _reasons(page)
    _quarantined(page)
    _files(page)


def _reasons(page: Page) -> None:
    section("Why rows were rejected", "A row with two reasons counts in both.")
    reasons = page.snapshot.rows(queries.REASONS)
    if not reasons:
        nothing("No row was rejected.", "Reasons appear here when rows break the contract's rules.")
        return
    columns = [Column("reason", "Reason"), Column("n", "Rows", 0), Column("share_pct", "% of landed", 2)]
    columns += [Column("example_file", "For example in"), Column("example_row", "row", 0)]
    table(reasons, columns, label="Rejected rows by reason")


def _quarantined(page: Page) -> None:
    section("Quarantine", "Files that broke the contract as a whole: nothing of them was loaded.")
    files = page.snapshot.rows(queries.QUARANTINED)
    if not files:
        nothing("No file is quarantined.", "A bad file appears here with a report that names its rows and columns.")
    for file in files:
        with st.expander(plain(f"{file['file']}: {file['reason']}")):
            st.caption(f"{time_label(file['loaded_at'])}, {number(file['rows'])} rows")
            st.code(_report(page, file), language=None, wrap_lines=True)


def _report(page: Page, file: Row) -> str:
    """Text of the report beside the file; only what stands in the quarantine folder is opened."""
    path = Path(file["report"] or "")
    if not path.resolve().is_relative_to(page.settings.quarantine.resolve()) or not path.is_file():
        return f"{file['reason']}\n(the report {file['report'] or ''} is not there any more)"
    return path.read_text(encoding="utf-8", errors="replace")[:20_000]


def _files(page: Page) -> None:
    section("Files", "The newest first.")
    state = st.segmented_control("Show", STATES, default=STATES[0], required=True, key="state")
    files = page.snapshot.ask(queries.files({"quarantined": "quarantined", STATES[2]: "rejected"}.get(state or "")))
    if not files.num_rows:
        nothing("No such file.", "Choose another state.")
        return
    count = st.column_config.NumberColumn
    st.dataframe(
        files,
        hide_index=True,
        height=min(420, 38 + 35 * files.num_rows),
        column_config={
            "file": "File",
            "state": "State",
            "loaded_at": st.column_config.DatetimeColumn("Loaded (UTC)", format="YYYY-MM-DD HH:mm"),
            "rows": count("Rows", format="localized"),
            "landed": count("Landed", format="localized"),
            "accepted": count("Accepted", format="localized"),
            "rejected": count("Rejected", format="localized"),
            "difference": count("Lost", format="localized"),
            "megabytes": count("MB", format="%.1f"),
            "batch": count("Load"),
        },
        placeholder=MISSING,
        alt="Landed files with their rows",
    )
