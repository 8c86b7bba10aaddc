"""Reports: what a comparison found, as JSON, as one self-contained HTML page, as a CSV table and as one picture.

In: `Findings`. Out: report.json (the shape other programs rely on), report.html (no outside host, pictures inside),
cells.csv (one row per render) and grid.png (rows: prompts and seeds, columns: methods, a held-out photo beside them).
Try it: `python -m pipelines compare PHOTO_DIR --class-word man --out RUN`, then open RUN/report.html.
"""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.core import workspace
from pipelines.core.schema import ALL_METHODS, PhotoSet, Sampling, Score, Subject, is_imported
from pipelines.core.workspace import Run
from pipelines.evaluation import votes
from pipelines.evaluation.metrics import COPY, Facts, Worth, asked_for, is_counted, usable
from pipelines.evaluation.scoring import Bootstrap, IdentitySummary, Marks, cluster_bootstrap, paired_bootstrap, summary
from pipelines.faces.calibration import Calibration
from pipelines.reports import figures
from pipelines.reports.figures import COLOURS, NAMES, OTHER_COLOUR, name_of, title_of

if TYPE_CHECKING:
    import numpy as np

SCHEMA = 1
TILE_PX, GAP_PX = 176, 10
WORST = 8


@dataclass(frozen=True)
class Cell:
    """One picture of the comparison with its scores, one per judge."""

    column: str
    sampling: Sampling
    path: str  # relative to the run
    scores: tuple[Score, ...]

    def score(self, judge: str) -> Score | None:
        return next((score for score in self.scores if score.judge == judge), None)


@dataclass(frozen=True)
class Findings:
    """Everything a report says."""

    base: str
    title: str
    class_word: str
    quality: str
    seed: int
    wall_s: float
    photo_set: PhotoSet
    columns: tuple[str, ...]  # in order; "none" first
    cells: tuple[Cell, ...]
    marks: dict[str, Marks]  # by judge, the one that counts first
    subjects: dict[str, Subject]  # by method; one that failed is not here
    errors: tuple[str, ...] = ()
    facts: dict[str, Facts] = field(default_factory=dict)  # by path; {} where nobody looked closer
    worth: dict[str, Worth] = field(default_factory=dict)  # by column
    stylised: tuple[str, ...] = ()  # prompts whose pictures no recogniser can judge: out of the identity figures
    refused: tuple[tuple[str, Sampling], ...] = ()  # pictures by column that the image filter did not let through
    heat: dict[str, Any] | None = None  # {"photos": [{"name", "part"}], "rows": [{"column", "file", "values"}]}
    curves: dict[str, Any] = field(default_factory=dict)  # by method, its watch.json
    clip: str | None = None  # the backbone behind clip_t
    strengths: dict[str, Any] | None = None  # the LoRA's strengths.json
    calibration: Calibration | None = None  # of the first judge
    command: str = ""  # that repeats it

    @property
    def drawn_here(self) -> tuple[str, ...]:
        """The columns that answered the same prompts and seeds."""
        return tuple(column for column in self.columns if column in NAMES or is_imported(column))

    def of(self, column: str) -> list[Cell]:
        return [cell for cell in self.cells if cell.column == column]

    def counted(self, column: str) -> list[Cell]:
        return [cell for cell in self.of(column) if is_counted(cell.sampling, self.stylised)]

    def scores(self, column: str, judge: str) -> list[Score]:
        """Of pictures that should show the person as a photograph would, in the order of the cells."""
        found = (cell.score(judge) for cell in self.counted(column))
        return [score for score in found if score is not None]

    def identity(self, column: str, judge: str) -> IdentitySummary | None:
        """One method under one judge; None when nothing was drawn."""
        scores = self.scores(column, judge)
        return summary(scores, self.marks[judge]) if scores else None

    def against_base(self, column: str, judge: str) -> Bootstrap | None:
        """A method's similarities minus the untrained base's, picture by picture; None where there is no such pair.

        Where the image filter refused one of two pictures, the other one has no partner.
        """
        alone = {sampling for name, sampling in self.refused if name in (column, "none")}
        cells = [[each for each in self.counted(name) if each.sampling not in alone] for name in (column, "none")]
        one, base = ([_zero(score) for each in side if (score := each.score(judge)) is not None] for side in cells)
        asked, basis = ([each.sampling for each in side] for side in cells)
        if column == "none" or not one or len(one) != len(base) or asked != basis:
            return None
        return paired_bootstrap(one, base, resamples=5000, seed=0)

    def best_column(self) -> str | None:
        """The method that looks most like the person to the first judge."""
        judge = next(iter(self.marks), None)
        if judge is None:
            return None
        means = {c: found.mean_zero_imputed for c in self.columns if (found := self.identity(c, judge)) is not None}
        known = {column: mean for column, mean in means.items() if mean is not None and column in ALL_METHODS}
        return max(known, key=lambda column: known[column]) if known else None


def _zero(score: Score) -> float:
    return 0.0 if score.similarity is None else score.similarity


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), digits)


def verdict(findings: Findings) -> str:
    """The outcome in one or two sentences, by the first judge; no better than the figures are."""
    best, judge = findings.best_column(), next(iter(findings.marks), None)
    if best is None or judge is None:
        return "No method could be compared."
    found, mark, gain = findings.identity(best, judge), findings.marks[judge], findings.against_base(best, judge)
    mean = found.mean_zero_imputed if found else None
    scale = f"Real photos of this person reach {_figure(mark.ceiling)}"
    scale += f", 99.9% of different people stay below {mark.impostor:.2f}." if mark.impostor is not None else "."
    if gain is None or not (gain.significant and gain.difference > 0):
        return f"No method is clearly closer to the person than the untrained base, by {judge}. {scale}"
    return f"{name_of(best)} comes closest to the person: mean similarity {_figure(mean)} by {judge}. {scale}"


# ------------------------------------------------------------------------------------------------- JSON and CSV


def to_json(findings: Findings) -> dict[str, Any]:
    """report.json. A figure that does not apply is null.

    `mean` counts a picture without a face as 0, so that failures cost; `normalised` is of that mean. `faces_found` is
    the first judge's count; the others' are in cells.csv.
    """
    photos = findings.photo_set
    return {
        "schema": SCHEMA,
        "base": findings.base,
        "wall_s": _rounded(findings.wall_s, 3),
        "photos": {
            "train": [photo.name for photo in photos.train],
            "held_out": [photo.name for photo in photos.held_out],
            "rejected": dict(sorted(photos.rejected.items())),
        },
        "judges": {
            name: {
                "ceiling": _rounded(mark.ceiling),
                "impostor": _rounded(mark.impostor),
                "threshold": _rounded(mark.threshold),
            }
            for name, mark in findings.marks.items()
        },
        "methods": {column: _method_json(findings, column) for column in findings.columns},
        "clip": findings.clip,
    }


def _method_json(findings: Findings, column: str) -> dict[str, Any]:
    subject = findings.subjects.get(column)
    first = findings.identity(column, next(iter(findings.marks))) if findings.marks else None
    drawn = findings.counted(column)
    return {
        "steps": subject.steps if subject else None,
        "train_s": _rounded(subject.train_s, 3) if subject else None,
        "peak_mem_mb": _rounded(subject.peak_mem_mb, 1) if subject else None,
        "artifact_bytes": subject.artifact_bytes if subject else None,
        "trainable_params": subject.trainable_params if subject else None,
        "renders": len(drawn) if column not in ALL_METHODS or subject else None,
        "faces_found": first.faces_found if first else None,
        "refused": sum(name == column for name, _ in findings.refused),
        "identity": {judge: _identity_json(findings.identity(column, judge)) for judge in findings.marks},
        **_worth_json(findings.worth.get(column)),
    }


def _worth_json(found: Worth | None) -> dict[str, float | int | None]:
    names = [each.name for each in fields(Worth)]
    values = asdict(found) if found else dict.fromkeys(names)
    return {name: _rounded(value) if isinstance(value, float) else value for name, value in values.items()}


def _identity_json(found: IdentitySummary | None) -> dict[str, float | None]:
    if found is None:
        return {"mean": None, "best": None, "normalised": None}
    return {
        "mean": _rounded(found.mean_zero_imputed),
        "best": _rounded(found.best),
        "normalised": _rounded(found.normalised),
    }


def to_csv(findings: Findings) -> str:
    """One row per render: what was asked for, and each judge's similarity or the reason why there is none."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    judges = list(findings.marks)
    heads = ["method", "seed", "prompt", "negative_prompt", "steps", "guidance", "scheduler", "file", "counted"]
    closer = ["usable", "following", "clip_t", "flaws", "copy_score", "nearest_photo"] if findings.facts else []
    table.writerow([*heads, *(part for judge in judges for part in (judge, f"{judge} reason")), *closer])
    for cell in findings.cells:
        asked = cell.sampling
        row: list[Any] = [cell.column, asked.seed, _cell_text(asked.prompt), _cell_text(asked.negative_prompt)]
        row += [asked.steps, asked.guidance, asked.scheduler, cell.path, int(is_counted(asked, findings.stylised))]
        for judge in judges:
            score = cell.score(judge)
            known = score is not None and score.similarity is not None
            row += [
                f"{score.similarity:.4f}" if known and score else "",
                (score.reason or "") if score else "not scored",
            ]
        if findings.facts:
            seen = findings.facts.get(cell.path)
            row += [int(usable(seen, cell.scores)), *_closer(seen)] if seen else [""] * len(closer)
        table.writerow(row)
    return out.getvalue()


def _closer(seen: Facts) -> list[str]:
    asked, clip_t, copy = ("" if v is None else f"{v:.3f}" for v in (seen.following, seen.clip_t, seen.copy))
    return [asked, clip_t, " ".join(seen.quality), copy, _cell_text(seen.nearest or "")]


def _cell_text(text: str) -> str:
    """A spreadsheet runs a cell that begins like a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


# ------------------------------------------------------------------------------------------------- the picture


def grid(findings: Findings, run: Run, held_out: np.ndarray) -> Any:
    """Side by side, as a PIL image: a row per prompt and seed, a column per method, a held-out photo beside each row.

    `held_out` (n, H, W, 3) uint8 are the photos as the base sees them; rows take turns with them.
    """
    from PIL import Image, ImageDraw, ImageFont

    judges = list(findings.marks)
    rows = _rows(findings.cells)
    columns = [*findings.drawn_here, "photo"]
    label_px, head_px = 190, 34
    score_px = 6 + 15 * max(1, len(judges))
    width = label_px + len(columns) * (TILE_PX + GAP_PX) + GAP_PX
    height = head_px + len(rows) * (TILE_PX + score_px + GAP_PX) + GAP_PX
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    title, text = ImageFont.load_default(15), ImageFont.load_default(12)
    for index, column in enumerate(columns):
        x = label_px + index * (TILE_PX + GAP_PX)
        head = "Held-out photo" if column == "photo" else title_of(column)[:24]
        draw.text((x, 9), head, fill=COLOURS.get(column, "black"), font=title)
    for number, (asked, cells) in enumerate(rows):
        y = head_px + number * (TILE_PX + score_px + GAP_PX)
        lines = [f"seed {asked.seed}", *_wrapped(_spoken(findings, asked), 28)]
        draw.multiline_text((GAP_PX, y), "\n".join(lines[:10]), fill="black", font=text, spacing=3)
        for index, column in enumerate(columns):
            x = label_px + index * (TILE_PX + GAP_PX)
            cell = cells.get(column)
            if column == "photo":
                if len(held_out):
                    tile = Image.fromarray(held_out[number % len(held_out)])
                    picture.paste(tile.resize((TILE_PX, TILE_PX), Image.Resampling.LANCZOS), (x, y))
                continue
            if cell is None:
                draw.rectangle((x, y, x + TILE_PX - 1, y + TILE_PX - 1), outline="#bbbbbb")
                draw.text((x + 8, y + 8), _absent(findings, column, asked), fill="#666666", font=text)
                continue
            with Image.open(run.folder / cell.path) as drawn:
                tile = drawn.convert("RGB")
                tile.thumbnail((TILE_PX, TILE_PX), Image.Resampling.LANCZOS)
                if max(tile.size) < TILE_PX:
                    scale = TILE_PX / max(tile.size)
                    tile = tile.resize(
                        (round(tile.width * scale), round(tile.height * scale)), Image.Resampling.LANCZOS
                    )
                picture.paste(tile, (x, y))
            for line, judge in enumerate(judges):
                said = f"{judge} {_said(cell.score(judge))}"
                draw.text((x, y + TILE_PX + 3 + 15 * line), said, fill="black", font=text)
    return picture


def _rows(cells: Sequence[Cell]) -> list[tuple[Sampling, dict[str, Cell]]]:
    """Cells of one sampling side by side, in the order in which they were asked for; none that were made elsewhere."""
    rows: dict[Sampling, dict[str, Cell]] = {}
    for cell in (each for each in cells if each.sampling.prompt):
        rows.setdefault(cell.sampling, {})[cell.column] = cell
    return list(rows.items())


def _absent(findings: Findings, column: str, asked: Sampling) -> str:
    return "refused" if (column, asked) in findings.refused else "not drawn"


def _spoken(findings: Findings, asked: Sampling) -> str:
    """The prompt as a person reads it."""
    said = asked.prompt.replace("{subject}", f"the {findings.class_word}")
    return said if asked.source is None else f"{said} (a variation, {asked.change:.0%} drawn anew)"


def _said(score: Score | None) -> str:
    if score is None:
        return "not scored"
    if score.similarity is None:
        return score.reason or "no face found"
    return f"{score.similarity:.2f}{f' {score.verdict}' if score.verdict else ''}"


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)


# ------------------------------------------------------------------------------------------------- the page

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


def drawings(findings: Findings) -> dict[str, Any]:
    """What `figures` draws, by the first judge: figures.json of a run. Numbers and file names only."""
    judge = next(iter(findings.marks), None)
    if judge is None:
        return {"judge": None, "methods": {}}
    mark, held_out = findings.marks[judge], len(findings.photo_set.held_out)
    known = findings.calibration.kind(held_out) if findings.calibration else None
    methods: dict[str, Any] = {}
    for column in findings.columns:
        cells = findings.counted(column)
        values = [score.similarity if (score := cell.score(judge)) else None for cell in cells]
        asked = [
            (cell.sampling.prompt, (seen.following or 0.0) if seen.faces else 0.0)
            for cell in cells
            if (seen := findings.facts.get(cell.path))
            and (seen.following is not None or asked_for(cell.sampling.prompt))
        ]
        methods[column] = {
            "identity": _span([v or 0.0 for v in values], [cell.sampling.prompt for cell in cells]),
            "following": _span([value for _, value in asked], [prompt for prompt, _ in asked]),
            "similarities": [_rounded(value) for value in values],
        }
    return {
        "judge": judge,
        "ceiling": _rounded(mark.ceiling),
        "threshold": _rounded(mark.threshold),
        "different": known.different if known else None,
        "same": known.same if known else None,
        "methods": methods,
        "curves": findings.curves,
        "strengths": findings.strengths,
        "heat": findings.heat,
        "worst": [cell.path for cell in worst(findings)],
    }


def _span(values: Sequence[float], prompts: Sequence[str]) -> dict[str, float] | None:
    """Mean and 95% interval; pictures of one prompt are no independent witnesses, where each prompt has as many."""
    import numpy as np

    if not values:
        return None
    groups: dict[str, list[float]] = {}
    for value, prompt in zip(values, prompts, strict=True):
        groups.setdefault(prompt, []).append(value)
    sizes = {len(group) for group in groups.values()}
    array = np.array(list(groups.values()) if len(sizes) == 1 and len(groups) > 1 else [[v] for v in values])
    found = cluster_bootstrap(array[None, None])
    return {"mean": round(found.difference, 4), "low": round(found.low, 4), "high": round(found.high, 4)}


def worst(findings: Findings) -> list[Cell]:
    """The pictures least like the person to the first judge; one without a face is worst of all."""
    judge = next(iter(findings.marks), "")
    cells = [cell for column in findings.columns if column != "none" for cell in findings.counted(column)]
    scored = [(score.similarity, cell) for cell in cells if (score := cell.score(judge)) is not None]
    return [cell for _, cell in sorted(scored, key=lambda each: -9.0 if each[0] is None else each[0])][:WORST]


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


def _figure(value: float | None, digits: int = 2) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


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


def write(findings: Findings, run: Run, held_out: np.ndarray, learned_from: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Write report.json, cells.csv, grid.png and report.html into the run; returns what report.json holds."""
    from PIL import PngImagePlugin

    report = to_json(findings)
    workspace.write_text(run.cells, to_csv(findings))
    about = PngImagePlugin.PngInfo()
    about.add_text(
        "Description", "Likeness: methods side by side; the last column is a photo, the others are generated"
    )
    sheet = grid(findings, run, held_out)
    with workspace.told_when_full():
        workspace.write_file(run.grid, lambda partial: sheet.save(partial, format="PNG", pnginfo=about))
    workspace.write_json(run.figures, drawings(findings))
    workspace.write_text(run.page, to_html(findings, run, learned_from))
    workspace.write_json(run.report, report)
    return refresh_votes(run) or report


# ------------------------------------------------------------------------------------------------- votes

VOTES_BEGIN, VOTES_END = "<!-- votes -->", "<!-- end of votes -->"


def refresh_votes(run: Run) -> dict[str, Any] | None:
    """Bring the votes in report.json and report.html up to date: friends answer after a report is written. Returns
    what report.json holds; None where there is no report.
    """
    report = workspace.read_json(run.report)
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
            workspace.write_text(run.page, before + begin + votes_html(found) + end + after)
        workspace.write_json(run.report, report)
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
