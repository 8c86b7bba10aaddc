"""Encode: a method that trains nothing makes what stands for the person from their photos, within a second.

In: a recipe, the album of the photos, a loaded base. Out: events, and in the folder the artefact and its card, as
`train` leaves them. Its seconds are those of reading the photos' faces and of writing the artefact.
Try it: `for event in encode(recipe, album, Path("out"), family): print(event)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.core.control import Clock
from pipelines.core.device import peak_memory_mb
from pipelines.core.records import Event, Recipe, Subject, UserError, title_of
from pipelines.methods import method as find_method
from pipelines.methods.base import digest
from pipelines.training import world
from pipelines.training.subjects import ended, finished, save_subject

if TYPE_CHECKING:
    from pipelines.bases.family import Family
    from pipelines.photos.album import Album


def encode(recipe: Recipe, album: Album, out: Path, family: Family) -> Iterator[Event]:
    """The last event is "done". What is there from the same recipe and photos is not made again.

    Raises UserError where the base is not offered this method.
    """
    here, photos, row = world.current(), album.photos, family.row
    if here.first and finished(out, recipe, photos.digest) is None:
        if recipe.method not in row.offered:
            raise UserError(row.why_not(recipe.method))
        clock, way = Clock(), find_method(recipe.method)
        text = f"{title_of(recipe.method)} reads the faces of {len(photos.train)} photos"
        yield Event("start", recipe.method, text=text)
        out.mkdir(parents=True, exist_ok=True)
        artifact = way.encode(family, out, album)
        learned = digest(out, artifact.learned)
        subject = Subject(
            id=f"{recipe.method}-{learned[:12]}",
            method=recipe.method,
            base=row.name,
            base_revision=row.revision,
            class_word=recipe.class_word,
            phrase=way.phrase(row, recipe),
            recipe=recipe,
            photo_digest=photos.digest,
            artifact=artifact.file,
            sha256=learned,
            steps=0,
            train_s=round(clock.seconds, 3),
            peak_mem_mb=round(peak_memory_mb(), 1),
            artifact_bytes=sum((out / name).stat().st_size for name in artifact.learned),
            trainable_params=0,
        )
        save_subject(out, subject, artifact.learned)
    here.wait()
    made = finished(out, recipe, photos.digest)
    assert made is not None, "the first process made it"
    yield ended("done", made, out)
