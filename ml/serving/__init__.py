"""The REST API: raw rows in, prices out, from the published snapshot and the bundle of the version it names.

Knows neither Dagster nor dbt and never opens the working warehouse. ``server.py`` listens, ``middleware.py``
stands around every request, ``app.py`` has the routes; ``service.py`` holds what answers and swaps it, ``engine.py``
answers, ``recorder.py`` and ``journal.py`` remember, ``security.py`` guards. Batch scoring is in ``ml/score.py``.
"""
