"""Repeat a run from its manifest, and say what came out differently.

In: RUN/manifest.json with the run's own photos and spec beside it. Out: a new run, and a comparison of the two: the
same processor, thread count and library versions give the same artefacts and pictures to the bit.
Try it: `python -m pipelines replay RUN/manifest.json --out AGAIN`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.core.files import read_json
from pipelines.core.records import Photo, PhotoSet, UserError
from pipelines.core.run import Run, imported_columns, is_run, load_photo_set, open_run, run_at, save_photo_set
from pipelines.runs.jobspec import JobSpec, spec_from_json

CONDITIONS = ("versions", "machine", "device", "base")  # these must be equal for bit-equal results


def prepare(manifest: Path, out: Path) -> tuple[Run, JobSpec]:
    """A new run with the same photos, split and settings. Raises UserError when the old run is not whole."""
    if not manifest.is_file():
        raise UserError(f"There is no manifest {manifest}. A finished comparison has one: RUN/manifest.json.")
    old = open_run(manifest.parent)
    photos, saved = load_photo_set(old), read_json(manifest)
    if photos is None or not isinstance(saved, dict) or saved.get("kind") != "compare":
        raise UserError(f"{manifest.parent.name} is not a whole comparison, so it can't be repeated.")
    if photos.digest != saved["photos"]["digest"]:
        raise UserError(f"The photos of {manifest.parent.name} changed after its report, so it can't be repeated.")
    if is_run(out) and load_photo_set(Run(out)) is not None:
        again = Run(out)
        if _needed(load_photo_set(again)).digest != photos.digest:
            raise UserError(f"{out.name} holds another run. Name a new folder.")
    else:
        again = run_at(out)
        again.photos.mkdir(mode=0o700, exist_ok=True)
        parts = ((_copied(each, again) for each in part) for part in (photos.train, photos.validation, photos.held_out))
        train, validation, held_out = (tuple(part) for part in parts)
        save_photo_set(again, replace(photos, train=train, validation=validation, held_out=held_out))
    if old.consent.exists() and not again.consent.exists():
        shutil.copy(old.consent, again.consent)
    for column in imported_columns(old):
        shutil.copytree(old.method(column), again.method(column), dirs_exist_ok=True)
    spec = replace(spec_from_json(read_json(old.spec)), photos=())
    if spec.kind != "compare":
        raise UserError(f"{manifest.parent.name} was used for other work since its report. Repeat it from a copy.")
    return again, spec


def _needed(photos: PhotoSet | None) -> PhotoSet:
    assert photos is not None
    return photos


def _copied(photo: Photo, run: Run) -> Photo:
    target = run.photos / Path(photo.path).name
    try:
        shutil.copy(photo.path, target)
    except OSError as error:
        raise UserError(f"{photo.name} is no longer in the run ({error.strerror}), so it can't be repeated.") from error
    return replace(photo, path=str(target))


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What differs between two manifests: conditions, artefacts, pictures, scores. `identical`: the artefacts and the
    pictures are the same.
    """
    conditions = [name for name in CONDITIONS if before.get(name) != after.get(name)]
    names = sorted({*before["methods"], *after["methods"]})
    artefacts = [n for n in names if _of(before["methods"], n, "sha256") != _of(after["methods"], n, "sha256")]
    files = sorted({*before["renders"], *after["renders"]})
    pictures = [name for name in files if before["renders"].get(name) != after["renders"].get(name)]
    scores = _changed(before["report"]["methods"], after["report"]["methods"])
    return {
        "identical": not artefacts and not pictures,
        "artefacts": len(names),
        "pictures": len(files),
        "different": {"conditions": conditions, "artefacts": artefacts, "pictures": pictures, "scores": scores},
    }


def _of(methods: Mapping[str, Any], name: str, key: str) -> Any:
    return methods.get(name, {}).get(key)


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """ "lora dlib mean" -> [before, after], of identity figures that are not the same."""
    found = {}
    for column in sorted({*before, *after}):
        judged = [side.get(column, {}).get("identity", {}) for side in (before, after)]
        for judge in sorted({*judged[0], *judged[1]}):
            values = [side.get(judge, {}).get("mean") for side in judged]
            if values[0] != values[1]:
                found[f"{column} {judge} mean"] = values
    return found
