"""The script that Streamlit runs for each visitor and click: finds the snapshot and shows the page that was chosen."""

from __future__ import annotations

import duckdb
import streamlit as st

from ml.contract import Contract, available, load
from ml.dashboard import queries
from ml.dashboard.page import ICON, STYLE, Options, Page, age_label, banner, ignored, plain, time_label
from ml.dashboard.snapshot import SNAPSHOTS, SnapshotError, published_datasets, unreadable
from ml.dashboard.views import data, map, model, monitoring, overview, predictions, what_if
from ml.settings import Settings

VIEWS = {
    "Overview": (":material/monitor_heart:", overview),
    "Predictions": (":material/sell:", predictions),
    "Map": (":material/map:", map),
    "Monitoring": (":material/monitoring:", monitoring),
    "What if": (":material/calculate:", what_if),
    "Data": (":material/database:", data),
    "Model": (":material/account_tree:", model),
}


@st.cache_data
def contract(dataset: str) -> Contract:
    return load(dataset)


def main() -> None:
    st.set_page_config(page_title="housing", page_icon=ICON, layout="wide")
    st.html(STYLE)
    chosen = st.navigation(
        [
            st.Page(lambda: None, title=title, icon=icon, url_path=path(title), default=title == "Overview")
            for title, (icon, _) in VIEWS.items()
        ]
    )
    settings = dataset()
    try:
        page = opened(settings)
        VIEWS[chosen.title][1].render(page)
    except SnapshotError as error:
        banner("insufficient_data", "No snapshot to show", str(error))
    except duckdb.OutOfMemoryException:
        banner(
            "fail",
            "There is not enough memory for this",
            f"DuckDB may use {settings.memory_limit}. Choose a single year or place, or start the dashboard with more: "
            f"HOUSING_MEMORY_LIMIT=4GB housing dashboard --dataset {settings.dataset}",
        )
    except (duckdb.CatalogException, duckdb.BinderException) as error:
        banner(
            "fail",
            "This snapshot lacks what the page needs",
            f"{str(error).splitlines()[0]}. It was published by another version; type: "
            f"housing run --force --dataset {settings.dataset}",
        )
    except duckdb.Error as error:
        # damage further inside, which opening does not meet
        banner("insufficient_data", "No snapshot to show", unreadable(settings, error))


def path(title: str) -> str:
    return title.lower().replace(" ", "-")


def dataset() -> Settings:
    """Settings of the chosen dataset; the switch is there when several are published."""
    settings = Settings()
    published = [name for name in published_datasets(settings) if name in available()]
    if len(published) < 2:
        return settings if settings.dataset in published or not published else Settings(dataset=published[0])
    first = published.index(settings.dataset) if settings.dataset in published else 0
    with st.sidebar:
        if (given := st.query_params.get("dataset")) and given not in published:
            ignored("dataset", given)
        name = st.selectbox("Dataset", published, first, key="dataset", bind="query-params")
    return Settings(dataset=name)


def opened(settings: Settings) -> Page:
    """The newest snapshot, with its age in the sidebar and a banner where it is old. Raises SnapshotError."""
    snapshot = SNAPSHOTS.newest(settings)
    with st.sidebar:
        st.caption(
            f"{plain(contract(settings.dataset).title)}  \nSnapshot {snapshot.fingerprint[:8]}, "
            f"published {age_label(snapshot.published_at)}",
            help=f"{time_label(snapshot.published_at)}. It is replaced when something new is published.",
        )
    options = Options()
    if snapshot.age_days > options.stale_days:
        banner(
            "warn",
            f"This snapshot is {snapshot.age_days:.0f} days old",
            f"Nothing new was published for more than {options.stale_days:g} days. Look for failed runs in Dagster "
            f"(make ui), or land new files: housing ingest FILES --dataset {settings.dataset}",
        )
    champion = snapshot.first(queries.CHAMPION)
    return Page(settings, contract(settings.dataset), snapshot, champion, options)


main()
