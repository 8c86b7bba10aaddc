"""The Gradio pages: with `app.py` the only place that imports Gradio. It calls downwards and nothing calls it.

How a click travels:

    browser -> web (guard: who asks, what they may) -> <tab>/events (one handler per button)
        -> run/start (a job in the line) -> pipelines.runs (the worker does it and writes the folder)
    browser <- <tab>/layout `show` <- run/view (one look at the folder) <- page/refresh (once a second)

Rooms: `upload`, `train`, `generate`, `score` (a tab each: layout, events, html, scripts), `run` (what a run is
and can do: no Gradio, no HTML), `web` (strangers, limits, files, votes), `programs` (the API), `words` (languages),
`page` (how tabs meet, theme, errors).
"""
