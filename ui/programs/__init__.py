"""The same work for programs: named endpoints for `gradio_client` (docs/api.md).

In: typed arguments. Out: the dictionaries of `types`. `endpoints` are the calls, `answers` what they say of a run.
"""
