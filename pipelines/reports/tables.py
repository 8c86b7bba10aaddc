"""The results of a comparison as tables: report.json for programs, cells.csv for spreadsheets, rows for the page.

In: `Findings`. Out: a JSON-able dict (other programs rely on its keys), CSV text with one row per render, and text
rows, one per method.
"""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, fields
from typing import Any

from pipelines.core.records import ALL_METHODS, title_of
from pipelines.evaluation.facts import COPY, Facts, Worth, is_counted, usable
from pipelines.evaluation.scale import IdentitySummary
from pipelines.reports.figures import figure
from pipelines.reports.findings import Findings, rounded

SCHEMA = 1
PICTURE = ("copy_paste", "others")  # of every picture, by the first judge


def to_json(findings: Findings) -> dict[str, Any]:
    """The data of report.json. A figure that does not apply is null.

    `mean` counts a picture without a face as 0, so that failures lower it; `normalised` is calculated from this mean.
    `faces_found` is the first judge's count; those of the others are in cells.csv.
    """
    photos = findings.photo_set
    return {
        "schema": SCHEMA,
        "base": findings.base,
        "wall_s": rounded(findings.wall_s, 3),
        "photos": {
            "train": [photo.name for photo in photos.train],
            "held_out": [photo.name for photo in photos.held_out],
            "rejected": dict(sorted(photos.rejected.items())),
        },
        "judges": {
            name: {
                "ceiling": rounded(mark.ceiling),
                "impostor": rounded(mark.impostor),
                "threshold": rounded(mark.threshold),
                **(
                    {"genuine": rounded(mark.genuine), "strangers": [rounded(each) for each in mark.strangers]}
                    if mark.strangers
                    else {}
                ),
            }
            for name, mark in findings.marks.items()
        },
        "methods": {column: _method_json(findings, column) for column in findings.columns},
        "clip": findings.clip,
    }


def _method_json(findings: Findings, column: str) -> dict[str, object]:
    subject = findings.subjects.get(column)
    first = findings.identity(column, next(iter(findings.marks))) if findings.marks else None
    drawn = findings.counted(column)
    return {
        "steps": subject.steps if subject else None,
        "train_s": rounded(subject.train_s, 3) if subject else None,
        "peak_mem_mb": rounded(subject.peak_mem_mb, 1) if subject else None,
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
    return {name: rounded(value) if isinstance(value, float) else value for name, value in values.items()}


def _identity_json(found: IdentitySummary | None) -> dict[str, float | None]:
    if found is None:
        return {"mean": None, "best": None, "normalised": None}
    return {
        "mean": rounded(found.mean_zero_imputed),
        "best": rounded(found.best),
        "normalised": rounded(found.normalised),
    }


def to_csv(findings: Findings) -> str:
    """CSV text with one row per render: its settings, and each judge's similarity or the reason why there is none."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    judges = list(findings.marks)
    heads = ["method", "seed", "prompt", "negative_prompt", "steps", "guidance", "scheduler", "file", "counted"]
    closer = (
        ["usable", "following", "clip_t", "flaws", "copy_score", "nearest_photo", *PICTURE] if findings.facts else []
    )
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
    similar = ("" if value is None else f"{value:.4f}" for value in (getattr(seen, name) for name in PICTURE))
    return [asked, clip_t, " ".join(seen.quality), copy, _cell_text(seen.nearest or ""), *similar]


def _cell_text(text: str) -> str:
    """A text that a spreadsheet does not run as a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


METHOD_HEADS = ("Method", "Mean", "Best", "Normalised", "Against the base", "Faces", "Seconds", "MB", "Parameters")


def method_rows(findings: Findings, judge: str) -> list[tuple[str, ...]]:
    """One row of text per column, with the headings METHOD_HEADS."""
    rows: list[tuple[str, ...]] = []
    for column in findings.columns:
        found, subject = findings.identity(column, judge), findings.subjects.get(column)
        gain = findings.against_base(column, judge)
        rows.append(
            (
                title_of(column),
                figure(found.mean_zero_imputed if found else None),
                figure(found.best if found else None),
                figure(found.normalised if found else None),
                f"{gain.difference:+.2f} ({gain.low:+.2f} to {gain.high:+.2f})" if gain else "–",
                f"{found.faces_found} of {found.renders}" if found else "–",
                figure(subject.train_s if subject else None, 0),
                figure(subject.artifact_bytes / 1e6 if subject else None),
                f"{subject.trainable_params:,}" if subject else "–",
            )
        )
    return rows


WORTH = (
    ("usable", "Usable", "one prominent face that looks like the person, as asked, in good quality"),
    ("following", "As asked", "share of the asked attributes that the picture shows"),
    ("clip_t", "CLIP-T", "cosine of picture and prompt, the person's token replaced by the class word"),
    ("diversity", "Variety", "1 - structural similarity of two pictures' faces"),
    ("copy_score", "Copy score", f"highest structural similarity with a training photo; from {COPY} on it is a copy"),
    ("copies", "Copies", "pictures that repeat a training photo"),
    ("memorisation_gap", "Memorised", "similarity to the training photos minus to the held-out ones"),
    (
        "copy_paste",
        "Copy-paste",
        "how much nearer to a training photo than to a held-out one: 1 = that photo, 0 = neither (MultiID-Bench)",
    ),
    ("others", "Others", "similarity to photos of other people, to be read beside the untrained base's"),
    ("drift", "Drift", "how much more a class-only prompt looks like the person than the untrained base's"),
    ("preserved", "Base kept", "structural similarity of a class-only prompt with the untrained base's same seed"),
)


def worth_rows(findings: Findings) -> list[tuple[str, ...]]:
    """One row per column: its title, then the figures of WORTH; [] when these were not measured."""
    if not findings.worth:
        return []
    rows = []
    for column in findings.columns:
        found = _worth_json(findings.worth.get(column))
        values = (found[name] for name, _, _ in WORTH)
        rows.append((title_of(column), *(f"{v}" if isinstance(v, int) else figure(v) for v in values)))
    return rows
