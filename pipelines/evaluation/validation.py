"""Choosing a checkpoint or a LoRA's strength, without touching what the report is made from.

In: a person's photos. Out: a `Watch` for the training loop, which hands it pictures of the validation prompts: it says
how much they look like the validation photos (never the held-out ones) and whether they show what was asked. The judge
is not the report's first one: a checkpoint that was chosen by a judge has too good a score by the same judge.
Try it: a recipe with `watch_every`; `methods/<name>/watch.json` then says what was seen.
"""

from __future__ import annotations

import numpy as np

from pipelines.core import presets
from pipelines.core.records import Look, UserError, Watch
from pipelines.evaluation.facts import followed
from pipelines.evaluation.references import Reference, reference
from pipelines.faces.face import Judge
from pipelines.faces.judges import available_judges, judge_named
from pipelines.photos.album import Album

PROMPTS = "validation"  # of presets/prompts; shares no prompt with the sets that are reported


def watch(album: Album) -> Watch | None:
    """The `Watch` of a person; None without validation photos, and without a second judge that finds a face in them."""
    photos = album.photos
    if not photos.validation:
        return None
    chooser = _chooser()
    if chooser is None:
        return None
    try:
        validation, trained = (reference(chooser, part, album) for part in (photos.validation, photos.train))
    except UserError:
        return None
    prompts = tuple(each.prompt for each in presets.prompts(PROMPTS))

    def look(frames: np.ndarray) -> Look:
        return look_at(frames, prompts, validation, trained)

    return Watch(chooser.name, prompts, look)


def look_at(frames: np.ndarray, prompts: tuple[str, ...], validation: Reference, trained: Reference) -> Look:
    """The `Look` of `frames`, (n, H, W, 3) uint8, one per prompt."""
    identity, learned, shown = [], [], []
    for frame, prompt in zip(frames, prompts, strict=True):
        seen = validation.judge.look(frame)
        identity.append(0.0 if seen.vector is None else validation.similarity(seen.vector))
        learned.append(0.0 if seen.vector is None else trained.similarity(seen.vector))
        asked = followed(frame, prompt)
        if asked is not None:
            shown.append(asked)
    following = float(np.mean(shown)) if shown else None
    mean = float(np.mean(identity))
    value = max(0.0, mean) * (1.0 if following is None else following)
    return Look(round(value, 5), round(mean, 5), None if following is None else round(following, 5),
                round(float(np.mean(learned)), 5))  # fmt: skip


def _chooser() -> Judge | None:
    """The judge that chooses: arcface-mini if an ArcFace pack is the report's first judge, else the second judge."""
    judges = available_judges(on_problem=lambda _: None)
    if judges[0].name not in ("arcface-mini", "dlib"):
        try:
            return judge_named("arcface-mini")
        except UserError:
            pass
    return judges[1] if len(judges) > 1 else None
