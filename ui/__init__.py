"""The Gradio pages. One file per tab; `theme`, `views`, `media`, `errors` and `sessions` serve them all.

This package is the only place, with `app.py`, that imports Gradio. It calls downwards and nothing calls it.
"""
