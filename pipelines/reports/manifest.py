"""Write the report of a run, and then the manifest, from which the run can be repeated.

In: a run, the album of its photos, `Findings` and their `Origin`. Out: report.json, report.html, cells.csv and others
in the run's folder, manifest.json last. The manifest has no embedding, and no path except a local base's. Try it: `for
event in report(run, album, findings, origin, control=Control()): print(event)`.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pipelines.bases.registry import base_sha256
from pipelines.core.control import Control
from pipelines.core.device import threads, versions
from pipelines.core.files import file_sha256, jsonable, read_json, timestamp, write_json
from pipelines.core.records import Event, Sampling, is_imported, sampling_fields
from pipelines.core.run import Run
from pipelines.training.teach import subject_of

if TYPE_CHECKING:
    from pipelines.bases.registry import BaseRow
    from pipelines.core.device import Device
    from pipelines.faces.face import Judge
    from pipelines.photos.album import Album
    from pipelines.reports.findings import Findings

SCHEMA = 1


@dataclass(frozen=True)
class Origin:
    """How a report was made: the data of its manifest that are not in the findings."""

    kind: str  # of the job
    key: str  # a hash of everything that the report depends on; with the same key it is not made again
    started: str  # date and time, UTC
    row: BaseRow
    device: Device
    samplings: Sequence[Sampling]
    judges: Sequence[Judge]
    memory: dict[str, str]  # method -> a sentence about its plan for the GPU's memory
    notes: Sequence[str]


def report(
    run: Run, album: Album, findings: Findings, origin: Origin, *, control: Control
) -> Generator[Event, None, None]:
    """Write the report, and last the manifest. Raises Stopped only before it begins."""
    from pipelines.reports.page import write_report

    control.check()
    yield Event("phase", text="Writing the report")
    train, held_out = (album.frames(part, origin.row) for part in (album.photos.train, album.photos.held_out))
    learned_from = dict(zip((photo.name for photo in album.photos.train), train, strict=True))
    written = write_report(findings, run, held_out, learned_from)
    seconds = round(control.clock.seconds, 3)
    write_json(run.manifest, manifest(run, findings, origin) | {"wall_s": seconds, "report": written})


def forget_report(run: Run) -> None:
    """Remove a report that is out of date."""
    for stale in (run.manifest, run.report, run.page, run.cells, run.figures, run.grid):
        stale.unlink(missing_ok=True)


def is_written(run: Run, key: str) -> bool:
    """True when the run has a complete report with this key, without errors, and all its pictures. Light: no torch."""
    saved = read_json(run.manifest)
    if not isinstance(saved, dict) or saved.get("key") != key or saved.get("errors"):
        return False
    files = [run.report, *(run.folder / path for path in saved.get("renders", {}))]
    return all(path.is_file() for path in files)


def manifest(run: Run, findings: Findings, origin: Origin) -> dict[str, object]:
    """All that is needed to repeat a run, and its results."""
    from pipelines.core.device import peak_memory_mb

    row, photos = origin.row, findings.photo_set
    against = {
        column: {judge: gain for judge in findings.marks if (gain := findings.against_base(column, judge))}
        for column in findings.columns
    }
    return {
        "schema": SCHEMA,
        "kind": origin.kind,
        "key": origin.key,
        "consent": read_json(run.consent),
        "started": origin.started,
        "finished": timestamp(),
        "wall_s": round(findings.wall_s, 3),
        "peak_mem_mb": round(peak_memory_mb(), 1),
        "versions": versions(),
        "machine": {"system": platform.platform(), "cpus": os.cpu_count(), "threads": threads()},
        "device": asdict(origin.device),
        "memory": origin.memory,
        "base": {
            "name": row.name,
            "family": row.family,
            "repo": f"{row.repo}@{row.revision}" if row.repo else None,
            "sha256": base_sha256(row),
        },
        "class_word": findings.class_word,
        "quality": findings.quality,
        "seed": findings.seed,
        "photos": {
            "digest": photos.digest,
            **{
                part: [{"name": photo.name, "sha256": photo.sha256} for photo in getattr(photos, part)]
                for part in ("train", "validation", "held_out")
            },
            "rejected": photos.rejected,
            "weak": photos.weak,
        },
        "methods": {
            name: {"recipe": asdict(card.recipe), "subject": card.id, "artifact": card.artifact,
                   "sha256": card.sha256, "steps": card.steps, "train_s": card.train_s, "phrase": card.phrase}
            for name, card in findings.subjects.items()
        },
        "imported": {
            name: {"subject": card.id, "kind": card.method, "sha256": card.sha256, "phrase": card.phrase}
            for name in findings.columns
            if is_imported(name) and (card := subject_of(run, name)) is not None
        },
        "samplings": [sampling_fields(each) for each in origin.samplings],
        "renders": {cell.path: file_sha256(run.folder / cell.path) for cell in findings.cells},
        "judges": {
            judge.name: {"weights_sha256": judge.weights_sha256, "licence": judge.licence,
                         "marks": jsonable(findings.marks[judge.name])}
            for judge in origin.judges
        },
        "against_untrained_base": against,
        "refused": [{"column": name, "seed": each.seed, "prompt": each.prompt} for name, each in findings.refused],
        "notes": list(origin.notes),
        "errors": list(findings.errors),
    }  # fmt: skip
