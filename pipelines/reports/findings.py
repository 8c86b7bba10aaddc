"""Findings: the data of a report as records; its result as a sentence (`verdict`); the data of the drawings.

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
from pipelines.evaluation.statistics import Bootstrap, cluster_bootstrap, paired_bootstrap, sign_flip_p
from pipelines.faces.calibration import Calibration
from pipelines.reports.figures import figure

WORST = 8


@dataclass(frozen=True)
class ScoredRender:
    """One picture of the comparison and its scores, one per judge."""

    column: str
    sampling: Sampling
    path: str  # relative to the run
    scores: tuple[Score, ...]

    def score(self, judge: str) -> Score | None:
        return next((score for score in self.scores if score.judge == judge), None)


@dataclass(frozen=True)
class Findings:
    """All data of a report."""

    base: str
    title: str
    class_word: str
    quality: str
    seed: int
    wall_s: float
    photo_set: PhotoSet
    columns: tuple[str, ...]  # in order; "none" (the untrained base) is first
    cells: tuple[ScoredRender, ...]
    marks: dict[str, Scale]  # by judge; the first one is the judge of the main results
    subjects: dict[str, Subject]  # by method, without methods that failed
    errors: tuple[str, ...] = ()
    facts: dict[str, Facts] = field(default_factory=dict)  # by path; {} when nothing else was measured
    worth: dict[str, Worth] = field(default_factory=dict)  # by column
    stylised: tuple[str, ...] = ()  # prompts for which recognisers do not work; not in the identity figures
    refused: tuple[tuple[str, Sampling], ...] = ()  # (column, sampling) of pictures that the image filter refused
    heat: dict[str, Any] | None = None  # {"photos": [{"name", "part"}], "rows": [{"column", "file", "values"}]}
    curves: dict[str, Any] = field(default_factory=dict)  # method -> its watch.json
    clip: str | None = None  # the CLIP model of clip_t
    strengths: dict[str, Any] | None = None  # the LoRA's strengths.json
    calibration: Calibration | None = None  # of the first judge
    face_encoder: str | None = None  # the judge whose descriptor was the input of the columns that train nothing
    command: str = ""  # the command that repeats it

    @property
    def drawn_here(self) -> tuple[str, ...]:
        """The columns that were drawn here, with the same prompts and seeds."""
        return tuple(column for column in self.columns if column in COLUMNS or is_imported(column))

    def of(self, column: str) -> list[ScoredRender]:
        return [cell for cell in self.cells if cell.column == column]

    def counted(self, column: str) -> list[ScoredRender]:
        return [cell for cell in self.of(column) if is_counted(cell.sampling, self.stylised)]

    def scores(self, column: str, judge: str) -> list[Score]:
        """Scores of a column's pictures in the order of the cells, without those of stylised prompts."""
        found = (cell.score(judge) for cell in self.counted(column))
        return [score for score in found if score is not None]

    def identity(self, column: str, judge: str) -> IdentitySummary | None:
        """The identity figures of one column by one judge; None when nothing was drawn."""
        scores = self.scores(column, judge)
        return summary(scores, self.marks[judge]) if scores else None

    def differences(self, column: str, judge: str, other: str = "none") -> list[float] | None:
        """A column's similarities minus another's, picture by picture; None where there is no such pair.

        Where the image filter refused one of two pictures, the other one has no partner.
        """
        alone = {sampling for name, sampling in self.refused if name in (column, other)}
        cells = [[each for each in self.counted(name) if each.sampling not in alone] for name in (column, other)]
        one, base = ([imputed(score) for each in side if (score := each.score(judge)) is not None] for side in cells)
        asked, basis = ([each.sampling for each in side] for side in cells)
        if column == other or not one or len(one) != len(base) or asked != basis:
            return None
        return [a - b for a, b in zip(one, base, strict=True)]

    def against_base(self, column: str, judge: str) -> Bootstrap | None:
        """The mean of `differences` with the untrained base; None where there is no such pair."""
        found = self.differences(column, judge)
        return None if found is None else paired_bootstrap(found, [0.0] * len(found), resamples=5000, seed=0)

    def is_closer(self, column: str, judge: str, other: str = "none") -> bool:
        """Whether these pictures show that a column is more like the person than another; never fewer than 6."""
        found = self.differences(column, judge, other)
        if found is None or sign_flip_p(found) >= 0.05:
            return False
        test = paired_bootstrap(found, [0.0] * len(found), resamples=5000, seed=0)
        return test.significant and test.difference > 0

    def best_column(self) -> str | None:
        """The method with the highest identity by the first judge; None without one."""
        judge = next(iter(self.marks), None)
        if judge is None:
            return None
        means = {c: found.mean_zero_imputed for c in self.columns if (found := self.identity(c, judge)) is not None}
        known = {column: mean for column, mean in means.items() if mean is not None and column in ALL_METHODS}
        return max(known, key=lambda column: known[column]) if known else None


def partial(findings: Findings, judge: str) -> str:
    """A sentence that names the columns that were made from this judge's own descriptor, so that its scores of them are
    not independent; "" if there are none.
    """
    known = [title_of(column) for column in findings.columns if is_instant(column)]
    if judge != findings.face_encoder or not known:
        return ""
    return (
        f" {' and '.join(known)} was made from this judge's own descriptor of the photos: of it, trust the other one."
    )


def rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), digits)


def verdict(findings: Findings) -> str:
    """The result by the first judge in one or two sentences; a difference is named only if it is significant."""
    best, judge = findings.best_column(), next(iter(findings.marks), None)
    if best is None or judge is None:
        return "No method could be compared."
    mark = findings.marks[judge]
    scale = f"Real photos of this person reach {figure(mark.ceiling)}"
    scale += f", 99.9% of different people stay below {mark.impostor:.2f}." if mark.impostor is not None else "."
    if not findings.is_closer(best, judge):
        return f"No method is clearly closer to the person than the untrained base, by {judge}. {scale}"
    found = {c: findings.identity(c, judge) for c in findings.columns if c in ALL_METHODS}
    means = {column: figure(each.mean_zero_imputed) for column, each in found.items() if each is not None}
    level = [column for column in means if column != best and not findings.is_closer(best, judge, column)]
    if level:
        names = listed([f"{title_of(column)} ({means[column]})" for column in (best, *level)])
        return f"{names} come closest to the person by {judge}; no difference between them is shown. {scale}"
    return f"{title_of(best)} comes closest to the person: mean similarity {means[best]} by {judge}. {scale}"


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def rows_of(cells: Sequence[ScoredRender]) -> list[tuple[Sampling, dict[str, ScoredRender]]]:
    """(sampling, {column: cell}) in the order of the samplings, without pictures made elsewhere."""
    rows: dict[Sampling, dict[str, ScoredRender]] = {}
    for cell in (each for each in cells if each.sampling.prompt):
        rows.setdefault(cell.sampling, {})[cell.column] = cell
    return list(rows.items())


def absent(findings: Findings, column: str, asked: Sampling) -> str:
    return "refused" if (column, asked) in findings.refused else "not drawn"


def spoken(findings: Findings, asked: Sampling) -> str:
    """The prompt as it is shown to people."""
    said = asked.prompt.replace("{subject}", f"the {findings.class_word}")
    return said if asked.source is None else f"{said} (a variation, {asked.change:.0%} drawn anew)"


def caption(score: Score | None) -> str:
    if score is None:
        return "not scored"
    if score.similarity is None:
        return score.reason or "no face found"
    return f"{score.similarity:.2f}{f' {score.verdict}' if score.verdict else ''}"


def drawings(findings: Findings) -> dict[str, object]:
    """figures.json of a run, the data of the drawings (`figures`), by the first judge. Only numbers and file names."""
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
    """Mean and 95% interval. If each prompt has equally many pictures, the bootstrap is over prompts, because pictures
    of one prompt are not independent.
    """
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
    """The pictures with the lowest similarity by the first judge; those without a face are the worst."""
    judge = next(iter(findings.marks), "")
    cells = [cell for column in findings.columns if column != "none" for cell in findings.counted(column)]
    scored = [(score.similarity, cell) for cell in cells if (score := cell.score(judge)) is not None]
    return [cell for _, cell in sorted(scored, key=lambda each: -9.0 if each[0] is None else each[0])][:WORST]
