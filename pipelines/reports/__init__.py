"""Reports: what a comparison or a study found, for people and for programs.

In: `Findings` (renders with scores and facts). Out: report.html, report.json, cells.csv, figures.json, grid.png; the
same of a study over many people; settings.json and README.txt of a download.
Files: findings -> tables, grid, page; figures draws SVG; study; archive.
Try it: `python -m pipelines compare PHOTO_DIR --class-word man --out RUN`, then open RUN/report.html.
"""

from importlib import import_module
from typing import Any

_OFFERS = {
    "Findings": "pipelines.reports.findings",
    "write_report": "pipelines.reports.page",
    "write_study": "pipelines.reports.study",
}


def __getattr__(name: str) -> Any:
    if name in _OFFERS:
        return getattr(import_module(_OFFERS[name]), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
