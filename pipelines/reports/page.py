"""report.html, one self-contained page (no script, no other host), and all files of a report.

In: `Findings`. Out: report.html, report.json, cells.csv, figures.json and grid.png in the run's folder.
The page is templates/report.html; jinja2 escapes all values except the SVG drawings.
Try it: `python -m pipelines compare PHOTO_DIR --class-word man --out RUN`, then open RUN/report.html.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.core.files import read_json, told_when_full, write_file, write_json, write_text
from pipelines.core.records import is_imported, title_of
from pipelines.core.run import Run
from pipelines.evaluation import votes
from pipelines.evaluation.facts import COPY
from pipelines.evaluation.scale import imputed
from pipelines.reports import figures
from pipelines.reports.figures import figure
from pipelines.reports.findings import (
    Findings,
    ScoredRender,
    absent,
    caption,
    drawings,
    partial,
    rows_of,
    spoken,
    verdict,
    worst,
)
from pipelines.reports.grid import grid
from pipelines.reports.tables import METHOD_HEADS, WORTH, method_rows, to_csv, to_json, worth_rows

if TYPE_CHECKING:
    import numpy as np
    from jinja2 import Environment

VOTES_BEGIN, VOTES_END = "<!-- votes -->", "<!-- end of votes -->"


class Picture(NamedTuple):
    """One picture of the page. `source` is a data URI; "" if there is no picture."""

    source: str
    alt: str
    caption: str


@lru_cache(maxsize=1)
def templates() -> Environment:
    """The pages' templates. All values are escaped except `Markup`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("pipelines.reports"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.filters |= {"title_of": title_of, "figure": figure}
    return made


def to_html(findings: Findings, run: Run, learned_from: Mapping[str, np.ndarray] | None = None) -> str:
    """The page as HTML. `learned_from`: the training photos by name, in the base's framing, RGB uint8 (H, W, 3)."""
    from markupsafe import Markup

    def picture(cell: ScoredRender, alt: str, text: str) -> Picture:
        return Picture(_png_uri((run.folder / cell.path).read_bytes()), alt, text)

    return (
        templates()
        .get_template("report.html")
        .render(
            found=findings,
            verdict=verdict(findings),
            method_heads=METHOD_HEADS,
            methods={judge: method_rows(findings, judge) for judge in findings.marks},
            imported=any(map(is_imported, findings.columns)),
            partial={judge: partial(findings, judge) for judge in findings.marks},
            refused=refusals(findings),
            worth=worth_rows(findings),
            worth_heads={title: why for _, title, why in WORTH},
            worth_notes=[f"{title}: {why}" for _, title, why in WORTH],
            strips={judge: Markup(_strip(findings, judge)) for judge in findings.marks},
            drawings=Markup(figures.sections(drawings(findings))),
            side_by_side=list(_side_by_side(findings, picture)),
            brought=_brought(findings, picture),
            worst=list(_worst(findings, picture)),
            nearest=list(_nearest(findings, picture, learned_from or {})),
            copy=COPY,
            votes=Markup(VOTES_BEGIN + VOTES_END),  # `refresh_votes` fills it
            photos=list(_photo_lines(findings)),
        )
    )


def refusals(findings: Findings) -> str:
    """How many pictures of each column the image filter refused, in words; "" if none."""
    counts = {column: sum(name == column for name, _ in findings.refused) for column in findings.columns}
    return ", ".join(f"{title_of(column)} {count}" for column, count in counts.items() if count)


def _png_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


ToPicture = Callable[[ScoredRender, str, str], Picture]


def _side_by_side(findings: Findings, picture: ToPicture) -> Iterator[Picture]:
    """The pictures row by row; where there is none, the caption says why."""
    judge = next(iter(findings.marks), "")
    for asked, row in rows_of(findings.cells):
        for column in findings.drawn_here:
            cell = row.get(column)
            if cell is None:
                yield Picture("", "", absent(findings, column, asked))
            else:
                alt = f"{title_of(column)}, seed {asked.seed}: {spoken(findings, asked)}"
                yield picture(cell, alt, f"{caption(cell.score(judge))} · seed {asked.seed}")


def _brought(findings: Findings, picture: ToPicture) -> dict[str, list[Picture]]:
    """Pictures made elsewhere, by column; their prompts and seeds are not those of the other columns."""
    judge = next(iter(findings.marks), "")
    return {
        column: [
            picture(cell, f"{title_of(column)}, picture {cell.sampling.seed}", caption(cell.score(judge)))
            for cell in findings.of(column)
        ]
        for column in findings.columns
        if column not in findings.drawn_here
    }


def _worst(findings: Findings, picture: ToPicture) -> Iterator[Picture]:
    judge = next(iter(findings.marks), "")
    for cell in worst(findings):
        name = title_of(cell.column)
        yield picture(cell, f"{name}, one of the least alike", f"{name} · {caption(cell.score(judge))}")


def _nearest(findings: Findings, picture: ToPicture, learned_from: Mapping[str, np.ndarray]) -> Iterator[Picture]:
    """For each method the picture most similar to a training photo, followed by that photo."""
    from PIL import Image

    for column in findings.columns:
        seen = [(found, cell) for cell in findings.counted(column) if (found := findings.facts.get(cell.path))]
        known = [(found, cell) for found, cell in seen if found.copy is not None and found.nearest in learned_from]
        if column == "none" or not known:
            continue
        found, cell = max(known, key=lambda each: each[0].copy or 0.0)
        name, photo = title_of(column), found.nearest or ""
        copied = " - a copy" if (found.copy or 0) >= COPY else ""
        yield picture(cell, f"{name}, its nearest picture", f"{name}: {figure(found.copy)}{copied}")
        packed = io.BytesIO()
        Image.fromarray(learned_from[photo]).save(packed, format="PNG")
        yield Picture(_png_uri(packed.getvalue()), "The photo it is most like", photo)


def _photo_lines(findings: Findings) -> Iterator[str]:
    photos = findings.photo_set
    parts = (("Learned from", photos.train), ("Watched while training", photos.validation))
    for title, part in (*parts, ("Held out to judge with", photos.held_out)):
        yield f"{title}: {', '.join(photo.name for photo in part) or 'none'}"
    for name, why in sorted(photos.rejected.items()):
        yield f"{name} was not used: {why}"


def _strip(findings: Findings, judge: str) -> str:
    scale = findings.marks[judge]
    named = {
        "different people": scale.impostor,
        "untrained base": scale.floor,
        "best this base can draw": scale.best_possible,
        "own photos": scale.ceiling,
    }
    dots = {c: [imputed(score) for score in findings.scores(c, judge)] for c in findings.columns}
    return figures.strip(judge, named, dots)


def write_report(
    findings: Findings, run: Run, held_out: np.ndarray, learned_from: Mapping[str, np.ndarray]
) -> dict[str, object]:
    """Write report.json, cells.csv, grid.png and report.html into the run; returns the data of report.json."""
    from PIL import PngImagePlugin

    report = to_json(findings)
    write_text(run.cells, to_csv(findings))
    about = PngImagePlugin.PngInfo()
    about.add_text(
        "Description", "Likeness: methods side by side; the last column is a photo, the others are generated"
    )
    sheet = grid(findings, run, held_out)
    with told_when_full():
        write_file(run.grid, lambda partial: sheet.save(partial, format="PNG", pnginfo=about))
    write_json(run.figures, drawings(findings))
    write_text(run.page, to_html(findings, run, learned_from))
    write_json(run.report, report)
    return refresh_votes(run) or report


def refresh_votes(run: Run) -> dict[str, object] | None:
    """Update the votes in report.json and report.html, since friends vote after a report is written. Returns the data
    of report.json; None if there is no report.
    """
    report = read_json(run.report)
    if not isinstance(report, dict):
        return None
    judge = next(iter(report["judges"]), None)
    means = {column: (method["identity"].get(judge) or {}).get("mean") for column, method in report["methods"].items()}
    found = votes.summary(run, judge, means)
    if report.get("votes") != found:
        report = {name: part for name, part in report.items() if name != "votes"}
        report |= {"votes": found} if found else {}  # without votes the key is left out
        page = run.page.read_text(encoding="utf-8") if run.page.is_file() else ""
        before, begin, rest = page.partition(VOTES_BEGIN)
        _, end, after = rest.partition(VOTES_END)
        if begin and end:
            write_text(run.page, before + begin + votes_html(found) + end + after)
        write_json(run.report, report)
    return report


def votes_html(found: Mapping[str, Any] | None) -> str:
    """The results of friends' blind votes, compared with the first judge, as HTML; "" while nobody has voted."""
    if found is None:
        return ""
    rows = [
        (
            title_of(column),
            f"{one['wins']} of {one['appearances']}",
            figure(one["share"]),
            f"{figure(one['low'])} to {figure(one['high'])}",
            figure(one["chance"]),
        )
        for column, one in found["methods"].items()
    ]
    return templates().get_template("votes.html").render(found=found, rows=rows)
