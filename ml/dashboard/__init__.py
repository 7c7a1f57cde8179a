"""The dashboard: what stands in the published snapshot, for people who write no SQL. Started by ``launch.py``.

Every figure is one SQL query (``queries.py``) on the snapshot (``snapshot.py``); Python chooses words (``words.py``),
places (``views/``) and colours (``charts.py``). Knows neither Dagster nor dbt and never opens the working warehouse.
"""
