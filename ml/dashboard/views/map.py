"""Where the homes are, how far off the predictions are there, and what they cost. For contracts with coordinates."""

from __future__ import annotations

import streamlit as st

from ml.dashboard import charts, queries
from ml.dashboard.page import Page, chart, head, nothing
from ml.dashboard.views import predictions
from ml.words import counted

#: What a dot's colour tells, by the words on the page.
MEASURES = {"error": "pct_error", "size of error": "mdape_pct", "price": "predicted_price"}


def coordinates(page: Page) -> tuple[str, str] | None:
    """Names of the latitude and longitude columns, where the contract has both."""
    found = {
        kind: next((c.name for c in page.contract.columns if c.role == "feature" and c.name.endswith(kind)), None)
        for kind in ("latitude", "longitude")
    }
    names = (found["latitude"], found["longitude"])
    return names if page.snapshot.has("training.training_dataset", *(n or "" for n in names)) else None  # pyright: ignore


def render(page: Page) -> None:
    head("Map", f"{page.contract.title}: where predictions are too high or too low.")
    place = coordinates(page)
    if place is None:
        nothing("This dataset has no coordinates.", "A contract with latitude and longitude columns gets a map.")
        return
    filters = predictions.choose(page)
    if filters is None:
        return
    latitude, longitude = place
    sql = queries.PLACED.format(scored=filters.scored, latitude=latitude, longitude=longitude)
    filters = filters.on(page.snapshot.prepare(f"placed {filters.scored}", sql))
    measure = st.segmented_control("Colour", list(MEASURES), default="error", required=True, key="colour")
    rows = page.snapshot.rows(queries.cells(filters), **filters.parameters)
    column = MEASURES[measure or "error"]
    drawn = [r for r in rows if r[column] is not None]
    if not drawn:
        nothing("Nothing to draw here.", "Choose a wider period or place, or another colour.")
        return
    figure = charts.places(
        drawn,
        page.snapshot.rows(queries.centres(filters)),
        measure=column,
        currency=page.contract.currency,
    )
    chart(figure, key="map", alt=f"Map of the homes; colour is the {measure}, size the number of homes")
    dots, drawn_homes = counted(len(drawn), "dot"), counted(sum(r["n"] for r in drawn), "home")
    st.caption(f"{drawn_homes} in {dots}; a dot gathers its neighbourhood, and grows with its homes.")
