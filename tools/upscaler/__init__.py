"""Stages of `tools/build_upscaler.py`."""
