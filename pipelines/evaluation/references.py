"""References and scores: how similar are pictures to a person's photos that training never saw?

In: pictures and a person's held-out photos. Out: a `Reference` (the mean embedding of the photos by one judge) and
`Score`s: a score's similarity is `Judge.similarity` of the picture's embedding and the reference. A reference is
biometric: it stays in memory and can't be pickled.
Try it: `python -m pipelines score a.png --against photo1.jpg photo2.jpg --json`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from pipelines.core.records import Photo, Score, UserError
from pipelines.faces import calibration
from pipelines.faces.face import NO_FACE, Judge, Seen
from pipelines.photos.decode import decode
from pipelines.photos.framing import person_view

if TYPE_CHECKING:
    from pipelines.photos.album import Album

Picture = Photo | Path | np.ndarray


@dataclass(frozen=True)
class Reference:
    """The normalised mean of the unit vectors that a judge makes of a person's photos."""

    judge: Judge
    mean: np.ndarray = field(repr=False)  # (d,), unit length
    photos: int  # how many photos the mean is of
    without_face: tuple[str, ...] = ()  # photos in which this judge saw no face
    notes: tuple[str, ...] = ()  # sentences about photos that were used in a way the person may not expect

    def __reduce__(self) -> NoReturn:
        raise TypeError("a reference is a face embedding and stays in memory; it can't be pickled")

    def similarity(self, vector: np.ndarray) -> float:
        return self.judge.similarity(vector, self.mean)


def reference(judge: Judge, photos: Sequence[Picture], album: Album | None = None) -> Reference:
    """The reference of some photos (`Photo`, path or RGB uint8 array each). `album` keeps what was computed.

    Photos in which this judge sees no face are left out and named. `UserError` when none is left.
    """
    seen = _look_at_all(judge, photos, album)
    vectors = [one.vector for one in seen.values() if one.vector is not None]
    missing = tuple(name for name, one in seen.items() if one.vector is None)
    if not vectors:
        raise UserError(
            f"{judge.name} finds no face in {', '.join(missing)}. Use photos where the face looks towards the camera."
        )
    notes = [f"{name}: {judge.name} finds no face in it, so it is not compared with." for name in missing]
    notes += [
        f"{name}: {one.faces} faces are in it; the largest is compared with."
        for name, one in seen.items()
        if one.faces > 1 and one.vector is not None
    ]
    return Reference(judge, mean_vector(vectors), len(vectors), missing, tuple(notes))


def vectors_of(judge: Judge, album: Album, others: Sequence[Path]) -> list[tuple[str, str, np.ndarray]]:
    """(part, name, unit vector) of every photo in which this judge sees a face; "other" are those of other people.

    Embeddings: for comparing in memory, never to be kept.
    """
    found: list[tuple[str, str, np.ndarray]] = []
    for part, pictures in (("train", album.photos.train), ("held_out", album.photos.held_out)):
        for name, seen in _look_at_all(judge, pictures, album).items():
            if seen.vector is not None:
                found.append((part, name, seen.vector))
    for number, path in enumerate(others, start=1):
        with contextlib.suppress(UserError):  # another person's photo that can't be read is left out
            vector = album.vector(judge, path)
            if vector is not None:
                found.append(("other", f"somebody else {number}", vector))
    return found


def _look_at_all(judge: Judge, pictures: Sequence[Picture], album: Album | None = None) -> dict[str, Seen]:
    """What a judge sees in each picture, by its name; a second picture of the same name gets a number."""
    out: dict[str, Seen] = {}
    for index, picture in enumerate(pictures, start=1):
        name = _name(picture) or f"picture {index}"
        if album is None or isinstance(picture, np.ndarray):
            seen = judge.look(pixels(picture))
        else:
            seen = album.seen(judge, picture)
        out[name if name not in out else f"{name} ({index})"] = seen
    return out


def vectors(judge: Judge, pictures: Sequence[Picture], album: Album | None = None) -> list[np.ndarray | None]:
    """The unit vector (d,) of each picture, in order; None where this judge sees no face."""
    return [seen.vector for seen in _look_at_all(judge, pictures, album).values()]


def pixels(picture: Picture) -> np.ndarray:
    """A picture as judges see it: upright RGB uint8; of a group photo only what is around the person's face."""
    if isinstance(picture, Photo):
        return person_view(decode(Path(picture.path)), picture)
    return decode(picture) if isinstance(picture, Path) else np.asarray(picture)


def _name(picture: Picture) -> str | None:
    return picture.name if isinstance(picture, Photo | Path) else None


def mean_vector(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """The normalised mean of unit vectors."""
    mean = np.mean(vectors, axis=0)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)


def score_renders(paths: Sequence[Path | str], reference: Reference) -> list[Score]:
    """One score per picture, in order. A picture without a face, or unreadable, keeps its row with the reason."""
    return [_score(Path(path), str(path), reference) for path in paths]


def _score(path: Path, render: str, reference: Reference) -> Score:
    try:
        seen = reference.judge.look(decode(path))
    except UserError as problem:
        return Score(render, reference.judge.name, None, str(problem))
    return score_of(seen, render, reference)


def score_of(seen: Seen, render: str, reference: Reference) -> Score:
    """What a judge saw in a picture, as a score against `reference`."""
    judge = reference.judge
    if seen.vector is None:
        return Score(render, judge.name, None, seen.reason or NO_FACE, verdict=calibration.NO_FACE)
    similarity, found = round(reference.similarity(seen.vector), 6), judge.calibration
    return Score(
        render,
        judge.name,
        similarity,
        verdict=calibration.verdict(found, similarity, reference.photos),
        face_px=None if seen.face_px is None else round(seen.face_px, 1),
        faces=seen.faces,
        note=_note(seen, found),
        words=calibration.in_words(found, similarity, reference.photos),
    )


def _note(seen: Seen, found: calibration.Calibration | None) -> str | None:
    """Sentences about what makes the similarity less reliable; None without any."""
    notes = []
    if seen.faces > 1:
        notes.append(f"{seen.faces} faces are in the picture; the largest was judged.")
    smallest = found.smallest_face_px if found else None
    if smallest is not None and seen.face_px is not None and seen.face_px < smallest:
        notes.append(
            f"The face is {seen.face_px:.0f} px high, too small to judge: below {smallest:.0f} px even real "
            "photos score low."
        )
    return " ".join(notes) or None
