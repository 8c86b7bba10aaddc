"""report.html, one self-contained page (no script, no outside host), and all files of a report.

In: `Findings`. Out: report.html, report.json, cells.csv, figures.json and grid.png in the run's folder.
Try it: `python -m pipelines compare PHOTO_DIR --class-word man --out RUN`, then open RUN/report.html.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.core.files import read_json, told_when_full, write_file, write_json, write_text
from pipelines.core.records import PhotoSet, is_imported
from pipelines.core.run import Run
from pipelines.evaluation import votes
from pipelines.evaluation.facts import COPY
from pipelines.reports import figures
from pipelines.reports.figures import COLOURS, OTHER_COLOUR, name_of
from pipelines.reports.findings import (
    Findings,
    _absent,
    _figure,
    _rows,
    _said,
    _spoken,
    _zero,
    drawings,
    verdict,
    worst,
)
from pipelines.reports.grid import grid
from pipelines.reports.tables import _worth_json, to_csv, to_json

if TYPE_CHECKING:
    import numpy as np


STYLE = """
:root{color-scheme:light dark;--line:#d4d8de;--soft:#5b6470}
body{font:16px/1.5 system-ui,sans-serif;max-width:1120px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}
table{border-collapse:collapse;width:100%}caption{text-align:left;color:var(--soft)}
th,td{text-align:right;padding:.35rem .6rem;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left}.scroll{overflow-x:auto}.soft{color:var(--soft)}
.grid{display:grid;gap:.7rem;min-width:640px}.grid figure{margin:0}
.grid img{width:100%;height:auto;display:block;border-radius:4px}
figcaption{font-size:.82rem;color:var(--soft)}svg{width:100%;height:auto}
.scroll svg{min-width:520px}ul{padding-left:1.2rem}
"""


def to_html(findings: Findings, run: Run, learned_from: Mapping[str, np.ndarray] | None = None) -> str:
    """One page that needs nothing else: styles and pictures inside, no script, no outside host (its policy says so)."""
    judges = list(findings.marks)
    lead = f"<p><b>{escape(verdict(findings))}</b></p>"
    weak = (
        "<p>Only one photo was held out, so this verdict is weak: add photos for a firmer one.</p>"
        if findings.photo_set.weak
        else ""
    )
    problems = "".join(f"<li>{escape(sentence)}</li>" for sentence in findings.errors)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">",
        f"<title>Likeness report</title><style>{STYLE}</style></head><body>",
        "<h1>Which way of teaching looks most like the person?</h1>",
        lead,
        weak,
        f'<p class="soft">{escape(findings.title)}, quality {escape(findings.quality)}, seed {findings.seed}, '
        f"{len(findings.photo_set.train)} photos learned from, {len(findings.photo_set.held_out)} held out to judge "
        f"with, {findings.wall_s:.0f} s in all.</p>",
        f"<h2>What did not work</h2><ul>{problems}</ul>" if problems else "",
        "<h2>Methods</h2>",
        *(_table(findings, judge) for judge in judges),
        _refusals(findings),
        _worth_table(findings),
        "<h2>On one scale</h2>",
        *(_strip(findings, judge) for judge in judges),
        figures.sections(drawings(findings)),
        "<h2>Side by side</h2>",
        _side_by_side(findings, run),
        _worst(findings, run),
        _nearest(findings, run, learned_from or {}),
        VOTES_BEGIN + VOTES_END,  # `refresh_votes` fills it
        "<h2>Photos</h2>",
        _photo_list(findings.photo_set),
        f"<h2>Again</h2><p><code>{escape(findings.command)}</code></p>" if findings.command else "",
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _nearest(findings: Findings, run: Run, learned_from: Mapping[str, np.ndarray]) -> str:
    """Of each method the picture that is most like a photo it learned from, beside that photo."""
    pairs = []
    for column in findings.columns:
        seen = [(found, cell) for cell in findings.counted(column) if (found := findings.facts.get(cell.path))]
        known = [(found, cell) for found, cell in seen if found.copy is not None and found.nearest in learned_from]
        if column != "none" and known:
            found, cell = max(known, key=lambda each: each[0].copy or 0.0)
            copied = " - a copy" if (found.copy or 0) >= COPY else ""
            pairs.append(
                f'<figure><img src="{_data_uri(run.folder / cell.path)}" alt="{name_of(column)}, its nearest picture">'
                f"<figcaption>{name_of(column)}: {_figure(found.copy)}{copied}</figcaption></figure>"
                f'<figure><img src="{_pixels_uri(learned_from[found.nearest or ""])}" alt="The photo it is most like">'
                f"<figcaption>{escape(found.nearest or '')}</figcaption></figure>"
            )
    if not pairs:
        return ""
    columns = "grid-template-columns:repeat(2,minmax(0,1fr));max-width:420px"
    why = f"Structural similarity of aligned faces; from {COPY} on a picture repeats a photo."
    return f'<h2>Nearest photos</h2><p class="soft">{why}</p><div class="grid" style="{columns}">{"".join(pairs)}</div>'


def _pixels_uri(picture: np.ndarray) -> str:
    from PIL import Image

    packed = io.BytesIO()
    Image.fromarray(picture).save(packed, format="PNG")
    return "data:image/png;base64," + base64.b64encode(packed.getvalue()).decode()


def _worst(findings: Findings, run: Run) -> str:
    judge = next(iter(findings.marks), "")
    shown = "".join(
        f'<figure><img src="{_data_uri(run.folder / cell.path)}" alt="{name_of(cell.column)}, one of the least alike">'
        f"<figcaption>{name_of(cell.column)} · {escape(_said(cell.score(judge)))}</figcaption></figure>"
        for cell in worst(findings)
    )
    columns = "grid-template-columns:repeat(4,minmax(0,1fr))"
    title = f"<h2>The worst {len(worst(findings))}</h2>"
    return f'{title}<div class="scroll"><div class="grid" style="{columns}">{shown}</div></div>' if shown else ""


def _table(findings: Findings, judge: str) -> str:
    heads = ("Method", "Mean", "Best", "Normalised", "Against the base", "Faces", "Seconds", "MB", "Parameters")
    rows = []
    for column in findings.columns:
        found, subject = findings.identity(column, judge), findings.subjects.get(column)
        gain = findings.against_base(column, judge)
        cells = (
            _figure(found.mean_zero_imputed if found else None),
            _figure(found.best if found else None),
            _figure(found.normalised if found else None),
            f"{gain.difference:+.2f} ({gain.low:+.2f} to {gain.high:+.2f})" if gain else "–",
            f"{found.faces_found} of {found.renders}" if found else "–",
            _figure(subject.train_s if subject else None, 0),
            _figure(subject.artifact_bytes / 1e6 if subject else None),
            f"{subject.trainable_params:,}" if subject else "–",
        )
        rows.append(f"<tr><td>{name_of(column)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    others = " Imported files were not trained here: what they learned from, for how long and at what cost is unknown."
    told = others if any(map(is_imported, findings.columns)) else ""
    return (
        f'<div class="scroll"><table><caption>Judge: {escape(judge)}. Pictures without a face count as 0.{told}'
        "</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _refusals(findings: Findings) -> str:
    """What the image filter did not let through: neither a picture nor a figure."""
    counts = {column: sum(name == column for name, _ in findings.refused) for column in findings.columns}
    said = ", ".join(f"{name_of(column)} {count}" for column, count in counts.items() if count)
    if not said:
        return ""
    return (
        f"<p>The image filter took some pictures for sexual content: {said}. They were not saved and count in no "
        "figure.</p>"
    )


WORTH = (
    ("usable", "Usable", "one prominent face that looks like the person, as asked, in good quality"),
    ("following", "As asked", "share of the asked attributes that the picture shows"),
    ("clip_t", "CLIP-T", "cosine of picture and prompt, the person's token replaced by the class word"),
    ("diversity", "Variety", "1 - structural similarity of two pictures' faces"),
    ("copy_score", "Copy score", f"highest structural similarity with a training photo; from {COPY} on it is a copy"),
    ("copies", "Copies", "pictures that repeat a training photo"),
    ("memorisation_gap", "Memorised", "similarity to the training photos minus to the held-out ones"),
    ("drift", "Drift", "how much more a class-only prompt looks like the person than the untrained base's"),
    ("preserved", "Base kept", "structural similarity of a class-only prompt with the untrained base's same seed"),
)


def _worth_table(findings: Findings) -> str:
    if not findings.worth:
        return ""
    rows = []
    for column in findings.columns:
        found = _worth_json(findings.worth.get(column))
        cells = (
            f"{found[name]}" if isinstance(found[name], int) else _figure(found[name])  # type: ignore[arg-type]
            for name, _, _ in WORTH
        )
        rows.append(f"<tr><td>{name_of(column)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    by = f"; CLIP-T by {escape(findings.clip)}" if findings.clip else ""
    heads = "".join(f'<th scope="col" title="{escape(why)}">{title}</th>' for _, title, why in WORTH)
    notes = "".join(f"<li>{title}: {escape(why)}</li>" for _, title, why in WORTH)
    return (
        f'<div class="scroll"><table><caption>What else counts, by measured rules{by}.</caption>'
        f'<thead><tr><th scope="col">Method</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        f'<ul class="soft">{notes}</ul>'
    )


def _strip(findings: Findings, judge: str) -> str:
    """All similarities on one axis with the four marks, as an inline drawing."""
    mark = findings.marks[judge]
    named = [
        ("different people", mark.impostor),
        ("untrained base", mark.floor),
        ("best this base can draw", mark.best_possible),
        ("own photos", mark.ceiling),
    ]
    dots = {column: [_zero(score) for score in findings.scores(column, judge)] for column in findings.columns}
    values = [value for _, value in named if value is not None] + [v for each in dots.values() for v in each]
    low = min([0.0, *values]) - 0.03
    high = max([1.0, *values])

    def at(value: float) -> float:
        return 170 + (value - low) / (high - low) * 810

    height = 26 * len(dots) + 20 * len(named) + 16
    lines = []
    for index, (name, value) in enumerate(named):
        y = 26 * len(dots) + 20 * (index + 1) + 4
        if value is None:
            lines.append(f'<text x="170" y="{y}" font-size="13" fill="currentColor">{name}: not measured</text>')
            continue
        x = at(value)
        anchor, shift = ("end", -6) if x > 700 else ("start", 6)
        lines.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{y}" stroke="currentColor" '
            f'stroke-dasharray="4 3" opacity=".6"/>'
            f'<text x="{x + shift:.1f}" y="{y}" font-size="13" text-anchor="{anchor}" fill="currentColor">{name} '
            f"{value:.2f}</text>"
        )
    for index, (column, each) in enumerate(dots.items()):
        y = 26 * index + 16
        lines.append(f'<text x="0" y="{y + 5}" font-size="14" fill="currentColor">{name_of(column)}</text>')
        colour = COLOURS.get(column, OTHER_COLOUR)
        lines += [f'<circle cx="{at(value):.1f}" cy="{y}" r="5" fill="{colour}" fill-opacity=".65"/>' for value in each]
    said = "; ".join(f"{name} {_figure(value)}" for name, value in named)
    return (
        f'<h3>{escape(judge)}</h3><svg viewBox="0 0 1000 {height}" role="img" aria-label="Similarities by '
        f'{escape(judge)}. {escape(said)}">{"".join(lines)}</svg>'
    )


def _side_by_side(findings: Findings, run: Run) -> str:
    judge = next(iter(findings.marks), "")
    cells = [f"<div><b>{name_of(column)}</b></div>" for column in findings.drawn_here]
    for asked, row in _rows(findings.cells):
        for column in findings.drawn_here:
            cell = row.get(column)
            if cell is None:
                cells.append(f"<figure><figcaption>{_absent(findings, column, asked)}</figcaption></figure>")
                continue
            alt = f"{name_of(column)}, seed {asked.seed}: {_spoken(findings, asked)}"
            cells.append(
                f'<figure><img src="{_data_uri(run.folder / cell.path)}" alt="{escape(alt)}">'
                f"<figcaption>{escape(_said(cell.score(judge)))} · seed {asked.seed}</figcaption></figure>"
            )
    columns = f"grid-template-columns:repeat({len(findings.drawn_here)},minmax(0,1fr))"
    page = f'<div class="scroll"><div class="grid" style="{columns}">{"".join(cells)}</div></div>'
    for column in findings.columns:
        if column not in findings.drawn_here:
            page += f"<h3>{name_of(column)}, made elsewhere</h3>{_brought(findings, run, column, judge)}"
    return page


def _brought(findings: Findings, run: Run, column: str, judge: str) -> str:
    """Pictures made elsewhere: they share no prompt and no seed with the others."""
    figures = (
        f'<figure><img src="{_data_uri(run.folder / cell.path)}" alt="{name_of(column)}, picture {cell.sampling.seed}">'
        f"<figcaption>{escape(_said(cell.score(judge)))}</figcaption></figure>"
        for cell in findings.of(column)
    )
    columns = "grid-template-columns:repeat(4,minmax(0,1fr))"
    return f'<div class="scroll"><div class="grid" style="{columns}">{"".join(figures)}</div></div>'


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _photo_list(photos: PhotoSet) -> str:
    def names(title: str, part: Sequence[Any]) -> str:
        return f"<li>{title}: {escape(', '.join(photo.name for photo in part)) or 'none'}</li>"

    refused = "".join(
        f"<li>{escape(name)} was not used: {escape(why)}</li>" for name, why in sorted(photos.rejected.items())
    )
    return (
        f"<ul>{names('Learned from', photos.train)}{names('Watched while training', photos.validation)}"
        f"{names('Held out to judge with', photos.held_out)}{refused}</ul>"
    )


def write_report(
    findings: Findings, run: Run, held_out: np.ndarray, learned_from: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Write report.json, cells.csv, grid.png and report.html into the run; returns what report.json holds."""
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


VOTES_BEGIN, VOTES_END = "<!-- votes -->", "<!-- end of votes -->"


def refresh_votes(run: Run) -> dict[str, Any] | None:
    """Bring the votes in report.json and report.html up to date: friends answer after a report is written. Returns
    what report.json holds; None where there is no report.
    """
    report = read_json(run.report)
    if not isinstance(report, dict):
        return None
    judge = next(iter(report["judges"]), None)
    means = {column: (method["identity"].get(judge) or {}).get("mean") for column, method in report["methods"].items()}
    found = votes.summary(run, judge, means)
    if report.get("votes") != found:
        report = {name: part for name, part in report.items() if name != "votes"}
        report |= {"votes": found} if found else {}  # the shape without votes stays what programs know
        page = run.page.read_text(encoding="utf-8") if run.page.is_file() else ""
        before, begin, rest = page.partition(VOTES_BEGIN)
        _, end, after = rest.partition(VOTES_END)
        if begin and end:
            write_text(run.page, before + begin + votes_html(found) + end + after)
        write_json(run.report, report)
    return report


def votes_html(found: Mapping[str, Any] | None) -> str:
    """What friends said in blind votes, beside the first judge; "" while nobody has voted."""
    if found is None:
        return ""
    rows = "".join(
        f"<tr><td>{name_of(column)}</td><td>{one['wins']} of {one['appearances']}</td>"
        f"<td>{_figure(one['share'])}</td><td>{_figure(one['low'])} to {_figure(one['high'])}</td>"
        f"<td>{_figure(one['chance'])}</td></tr>"
        for column, one in found["methods"].items()
    )
    heads = "".join(
        f'<th scope="col">{head}</th>' for head in ("Method", "Picked", "Share", "95% interval", "Picking blindly")
    )
    agreed, said = found["agreement"], ""
    if agreed and agreed["rounds"]:
        said = (
            f"<p>{escape(agreed['judge'])} orders {agreed['agreeing']} of {agreed['pairs']} pairs of methods as these "
            f"people do; in {agreed['same_pick']} of {agreed['rounds']} rounds they picked the picture it finds most "
            f"alike (by chance {agreed['by_chance']:.1f}).</p>"
        )
    return (
        "<h2>Blind votes</h2>"
        f'<p class="soft">{found["voters"]} voted, {found["rounds"]} rounds: pictures of one prompt and seed beside a '
        f"held-out photo, without names, in random order. None of them: {found['none_of_them']}; can't say (not "
        f"counted): {found['cant_say']}.</p>"
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{said}'
    )
