"""Who does a picture look like? Any picture, and every face in it, against one person's held-out photos.

In: a picture and a `Known` per judge. Out: `Answer`: per face and judge the score in words, and which of three it is
most similar to: this person, the synthetic sample person, or the untrained base's pictures. There is no database of
other people, and the picture is not kept. Try it: `python -m pipelines score a.png --run RUN`.
Face embeddings stay in memory: a `Known` can't be pickled, and `forget` drops those of a run.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np

from pipelines.core.records import Photo, PhotoSet, Score, UserError
from pipelines.core.said import Said
from pipelines.evaluation import references
from pipelines.evaluation.references import Reference
from pipelines.evaluation.scale import Scale, scale_of
from pipelines.faces import calibration
from pipelines.faces.face import Judge, Seen
from pipelines.faces.judges import resident_judges

PERSON, SAMPLE, BASE = "this person", "the sample person", "the untrained base's pictures"
PERHAPS, NONE, UNKNOWN = "perhaps this person", "none of them", "unknown"
SENTENCES = {
    PERSON: Said("It looks like this person."),
    PERHAPS: Said("It may be this person: 1 in 100 strangers gets as near."),
    SAMPLE: Said("It looks like the sample person, who does not exist, and not like this person."),
    BASE: Said("It looks like a face that the untrained base drew, and not like this person."),
    NONE: Said("It looks like none of those it was compared with."),
}
NOT_THIS_PERSON = Said("It does not look like this person.")  # when there is nobody else to compare with
THE_PHOTO_ITSELF = 0.995  # similarity from which two files are the same photo; two photos of the same moment have less
KNOWN_AT_MOST = 16  # people whose photos are remembered


@dataclass(frozen=True)
class Known:
    """The face embeddings that one judge compares with. They are never saved."""

    person: Reference  # of the held-out photos
    marks: Scale
    singles: dict[str, tuple[np.ndarray, ...]] = field(repr=False)  # who -> the unit vector of each picture

    def __reduce__(self) -> NoReturn:
        raise TypeError("face embeddings stay in memory; they can't be pickled")


@dataclass(frozen=True)
class Nearest:
    """The most similar picture of one of the three."""

    who: str
    similarity: float
    pictures: int  # how many pictures were compared with
    verdict: str  # of one picture against one picture


@dataclass(frozen=True)
class Opinion:
    """One judge about one face."""

    score: Score
    nearest: tuple[Nearest, ...] = ()  # the nearest first; () where the judge saw no such face
    is_held_out: bool = False  # it is one of the held-out photos itself

    @property
    def verdict(self) -> str:
        """Who it looks like: PERSON, SAMPLE, BASE, PERHAPS or NONE; UNKNOWN where the judge has no scale or no face."""
        if self.score.verdict in (calibration.NO_FACE, calibration.UNCALIBRATED):
            return UNKNOWN
        if self.score.verdict == calibration.LOOKS_LIKE:
            return PERSON
        first = self.nearest[0] if self.nearest else None
        if first is not None and first.who != PERSON and first.verdict == calibration.LOOKS_LIKE:
            return first.who
        return PERHAPS if self.score.verdict == calibration.BORDERLINE else NONE

    @property
    def said(self) -> Said | None:
        """The verdict as people read it; None where it is UNKNOWN: `score` says why."""
        if self.verdict == NONE and len(self.nearest) < 2:
            return NOT_THIS_PERSON
        return SENTENCES.get(self.verdict)

    @property
    def sentence(self) -> str:
        """`said` in English; without a verdict, the reason."""
        if self.said is not None:
            return str(self.said)
        return self.score.words or f"{self.score.reason or 'This judge sees no face here'}."


@dataclass(frozen=True)
class JudgedFace:
    """One face of a picture and each judge's opinion."""

    box: tuple[float, float, float, float]  # left, top, right, bottom in the picture, px
    opinions: tuple[Opinion, ...]  # in the order of the judges


@dataclass(frozen=True)
class Answer:
    """Faces from left to right; () when no judge finds one."""

    faces: tuple[JudgedFace, ...]
    judges: tuple[str, ...]
    marks: dict[str, Scale]
    notes: tuple[str, ...] = ()


def known(
    judges: Sequence[Judge],
    photo_set: PhotoSet,
    *,
    sample: Sequence[Path] = (),
    base: Sequence[Path] = (),
    on_photo: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Known], list[Said | str]]:
    """Embed a person's photos, the sample person's and the base's pictures: a `Known` per judge, and sentences about
    what could not be used. The sample person and the base have no more pictures than the person has held-out photos:
    with more, one of them would be more similar by chance.

    Raises UserError when there are no held-out photos, or no judge finds a face in any.
    """
    if not photo_set.held_out:
        raise UserError("No photo is held out to compare with. Add photos until some are kept for judging.")
    wanted = len(photo_set.held_out)
    parts = (("held_out", photo_set.held_out), ("train", photo_set.train))
    pictures: list[tuple[str, Photo | Path]] = [(part, photo) for part, photos in parts for photo in photos]
    others: list[tuple[str, Photo | Path]] = [
        (who, path) for who, paths in ((SAMPLE, sample), (BASE, base)) for path in paths[:wanted]
    ]
    seen: dict[str, dict[str, list[np.ndarray | None]]] = {judge.name: {} for judge in judges}
    broken: dict[str, str] = {}
    notes: list[Said | str] = []
    for number, (part, picture) in enumerate([*pictures, *others], start=1):
        try:
            image = references.pixels(picture)
        except UserError as problem:
            notes.append(str(problem))
            continue
        for judge in judges:  # one picture at a time, so that its faces are looked for once
            try:
                if judge.name not in broken:
                    seen[judge.name].setdefault(part, []).append(judge.look(image).vector)
            except UserError as problem:  # a damaged model file: the other judges go on
                broken[judge.name] = str(problem)
        on_photo(number, len(pictures) + len(others))
    out = []
    for judge in judges:
        of = seen[judge.name]
        held_out = of.get("held_out", [])
        own = [vector for vector in held_out if vector is not None]
        if judge.name in broken or not own:
            nowhere = Said("{judge} finds no face in the held-out photos.", judge=judge.name)
            notes.append(broken.get(judge.name) or nowhere)
            continue
        train = [vector for vector in of.get("train", []) if vector is not None]
        who = {PERSON: own} | {name: [v for v in of.get(name, []) if v is not None] for name in (SAMPLE, BASE)}
        out.append(
            Known(
                Reference(judge, references.mean_vector(own), len(own)),
                scale_of(judge, held_out, train),
                {name: tuple(vectors) for name, vectors in who.items() if vectors},
            )
        )
    if not out:
        raise UserError(" ".join(map(str, notes)))
    return out, notes


def look_at_any(image: np.ndarray, knowing: Sequence[Known]) -> Answer:
    """Compare every face in an upright RGB uint8 (H, W, 3) image with one person. Faces that several judges find at the
    same place are one face; it has the box of the first judge that finds it.
    """
    found: list[tuple[tuple[float, float, float, float], dict[str, Seen]]] = []
    for one in knowing:
        name = one.person.judge.name
        for seen in one.person.judge.look_at_each(image):
            if seen.box is None:
                continue
            same = next((s for box, s in found if name not in s and _one_face(box, seen.box)), None)
            if same is None:
                found.append((seen.box, {name: seen}))
            else:
                same[name] = seen
    found.sort(key=lambda face: face[0][0] + face[0][2])
    return Answer(
        tuple(JudgedFace(box, tuple(_opinion(one, seen, len(found)) for one in knowing)) for box, seen in found),
        tuple(one.person.judge.name for one in knowing),
        {one.person.judge.name: one.marks for one in knowing},
    )


def _one_face(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    """Whether two boxes are of the same face: the middle of each lies in the other."""

    def holds(box: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
        x, y = (other[0] + other[2]) / 2, (other[1] + other[3]) / 2
        return box[0] <= x <= box[2] and box[1] <= y <= box[3]

    return holds(a, b) and holds(b, a)


def _opinion(one: Known, seen_by: dict[str, Seen], count: int) -> Opinion:
    judge = one.person.judge
    seen = seen_by.get(judge.name)
    if seen is None or seen.vector is None:
        reason = seen.reason if seen else "this judge does not see this face"
        return Opinion(Score("", judge.name, None, reason, verdict=calibration.NO_FACE))
    alone = Seen(seen.vector, None, seen.face_px, 1, seen.box)  # as if it were the only face
    nearest = []
    for who, vectors in one.singles.items():
        best = max(judge.similarity(seen.vector, vector) for vector in vectors)
        nearest.append(Nearest(who, best, len(vectors), calibration.verdict(judge.calibration, best, 1)))
    nearest.sort(key=lambda each: -each.similarity)
    own = next((each.similarity for each in nearest if each.who == PERSON), 0.0)
    return Opinion(references.score_of(alone, "", one.person), tuple(nearest), own >= THE_PHOTO_ITSELF)


# ------------------------------------------------------------------------------------------------- per run


_remembered: OrderedDict[tuple[str, str, tuple[str, ...]], tuple[list[Known], list[Said | str]]] = OrderedDict()
_lock = threading.Lock()


def known_of(
    folder: Path,
    photo_set: PhotoSet,
    *,
    sample: Sequence[Path] = (),
    base: Sequence[Path] = (),
    on_photo: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Known], list[Said | str]]:
    """`known` of a run, cached in this process until the photos or the base's pictures change, or until `forget`."""
    named = tuple(str(path) for path in (*sample, *base))
    key = (str(folder.resolve()), photo_set.digest, named)
    with _lock:
        found = _remembered.get(key)
    if found is None:
        found = known(resident_judges(), photo_set, sample=sample, base=base, on_photo=on_photo)
        forget(folder)
        with _lock:
            if folder.is_dir():  # a deleted run is not cached
                _remembered[key] = found
            while len(_remembered) > KNOWN_AT_MOST:
                _remembered.popitem(last=False)
    return found


def forget(folder: Path) -> None:
    """Remove a run from the cache."""
    with _lock:
        for key in [key for key in _remembered if key[0] == str(folder.resolve())]:
            del _remembered[key]
