"""Findings: everything that a report says, as records; the outcome in a sentence; the numbers behind the drawings.

In: renders with their scores and facts. Out: `Findings`, `verdict`, `drawings` (figures.json).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.core.records import (
    ALL_METHODS,
    COLUMNS,
    PhotoSet,
    Sampling,
    Score,
    Subject,
    is_imported,
    is_instant,
    title_of,
)
from pipelines.evaluation.facts import Facts, Worth, asked_for, is_counted
from pipelines.evaluation.scale import IdentitySummary, Scale, imputed, summary
from pipelines.evaluation.statistics import Bootstrap, cluster_bootstrap, paired_bootstrap
from pipelines.faces.calibration import Calibration
from pipelines.reports.figures import figure

WORST = 8


@dataclass(frozen=True)
class ScoredRender:
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
    cells: tuple[ScoredRender, ...]
    marks: dict[str, Scale]  # by judge, the one that counts first
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
    face_encoder: str | None = None  # the judge whose descriptor went into the columns that train nothing
    command: str = ""  # that repeats it

    @property
    def drawn_here(self) -> tuple[str, ...]:
        """The columns that answered the same prompts and seeds."""
        return tuple(column for column in self.columns if column in COLUMNS or is_imported(column))

    def of(self, column: str) -> list[ScoredRender]:
        return [cell for cell in self.cells if cell.column == column]

    def counted(self, column: str) -> list[ScoredRender]:
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
        one, base = ([imputed(score) for each in side if (score := each.score(judge)) is not None] for side in cells)
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


def partial(findings: Findings, judge: str) -> str:
    """Which columns a judge is no independent witness of, in a sentence; "" where it is one of all."""
    known = [title_of(column) for column in findings.columns if is_instant(column)]
    if judge != findings.face_encoder or not known:
        return ""
    return (
        f" {' and '.join(known)} was made from this judge's own descriptor of the photos: of it, trust the other one."
    )


def rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), digits)


def verdict(findings: Findings) -> str:
    """The outcome in one or two sentences, by the first judge; no better than the figures are."""
    best, judge = findings.best_column(), next(iter(findings.marks), None)
    if best is None or judge is None:
        return "No method could be compared."
    found, mark, gain = findings.identity(best, judge), findings.marks[judge], findings.against_base(best, judge)
    mean = found.mean_zero_imputed if found else None
    scale = f"Real photos of this person reach {figure(mark.ceiling)}"
    scale += f", 99.9% of different people stay below {mark.impostor:.2f}." if mark.impostor is not None else "."
    if gain is None or not (gain.significant and gain.difference > 0):
        return f"No method is clearly closer to the person than the untrained base, by {judge}. {scale}"
    return f"{title_of(best)} comes closest to the person: mean similarity {figure(mean)} by {judge}. {scale}"


def rows_of(cells: Sequence[ScoredRender]) -> list[tuple[Sampling, dict[str, ScoredRender]]]:
    """Cells of one sampling side by side, in the order in which they were asked for; none that were made elsewhere."""
    rows: dict[Sampling, dict[str, ScoredRender]] = {}
    for cell in (each for each in cells if each.sampling.prompt):
        rows.setdefault(cell.sampling, {})[cell.column] = cell
    return list(rows.items())


def absent(findings: Findings, column: str, asked: Sampling) -> str:
    return "refused" if (column, asked) in findings.refused else "not drawn"


def spoken(findings: Findings, asked: Sampling) -> str:
    """The prompt as a person reads it."""
    said = asked.prompt.replace("{subject}", f"the {findings.class_word}")
    return said if asked.source is None else f"{said} (a variation, {asked.change:.0%} drawn anew)"


def caption(score: Score | None) -> str:
    if score is None:
        return "not scored"
    if score.similarity is None:
        return score.reason or "no face found"
    return f"{score.similarity:.2f}{f' {score.verdict}' if score.verdict else ''}"


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
            "similarities": [rounded(value) for value in values],
        }
    return {
        "judge": judge,
        "ceiling": rounded(mark.ceiling),
        "threshold": rounded(mark.threshold),
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


def worst(findings: Findings) -> list[ScoredRender]:
    """The pictures least like the person to the first judge; one without a face is worst of all."""
    judge = next(iter(findings.marks), "")
    cells = [cell for column in findings.columns if column != "none" for cell in findings.counted(column)]
    scored = [(score.similarity, cell) for cell in cells if (score := cell.score(judge)) is not None]
    return [cell for _, cell in sorted(scored, key=lambda each: -9.0 if each[0] is None else each[0])][:WORST]
