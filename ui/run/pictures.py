"""A run's pictures as the Generate tab needs them: what each says about itself, which are liked, what was drawn when.

In: the run's PNGs, its events and favourites.json. Out: `Drawing`s and favourites. Nothing is booked twice: a
picture's settings lie inside it, and jobs are told apart by their events, so a reload and a restart see the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.core import inscription
from pipelines.core.files import read_json, write_json
from pipelines.core.records import Event, Sampling, UserError
from pipelines.core.run import Run
from ui.run.cards import Shot

GONE = "That picture is no longer here. Reload the page and try again."


@dataclass(frozen=True)
class Drawing:
    """The pictures of one generation job."""

    number: int  # its place among the run's jobs; events are only appended, so it never changes
    shots: tuple[Shot, ...]

    @property
    def when_s(self) -> float:
        """Of its newest picture, in seconds since 1970."""
        return max(shot.when_s for shot in self.shots)

    @property
    def samplings(self) -> tuple[Sampling, ...]:
        return tuple(dict.fromkeys(shot.sampling for shot in self.shots if shot.sampling))

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(shot.method for shot in self.shots))


def picture_id(path: str, base: str, subject: str | None) -> str:
    """What a page calls a picture: names no file, and another training's picture of the same name is another one."""
    return hashlib.sha256(json.dumps([path, base, subject]).encode()).hexdigest()[:16]


def find(shots: Iterable[Shot], wanted: object) -> Shot:
    """The picture of this id among `shots`. Takes anything: the id comes from a browser. Raises UserError."""
    for shot in shots:
        if isinstance(wanted, str) and shot.id and shot.id == wanted:
            return shot
    raise UserError(GONE)


def drawings(events: Iterable[Event], shots: Sequence[Shot], inside: Callable[[str], str]) -> tuple[Drawing, ...]:
    """The run's generation jobs, oldest first, with those of their pictures that are still among `shots`.

    `inside` turns an event's path into the path inside the run. A job counts its pictures from 1; of two jobs with the
    same pictures (drawn again with the same seed) the later stands for both.
    """
    there = {shot.path: shot for shot in shots}
    jobs: list[dict[str, Shot]] = []
    for event in events:
        if event.kind != "render" or not event.path:
            continue
        if event.step <= 1 or not jobs:
            jobs.append({})
        path = inside(event.path)
        if path in there:
            jobs[-1][path] = there[path]
    last = {frozenset(job): number for number, job in enumerate(jobs)}
    return tuple(
        Drawing(number, tuple(job.values()))
        for number, job in enumerate(jobs)
        if job and last[frozenset(job)] == number
    )


# ------------------------------------------------------------------------------------------------- favourites

Liked = tuple[str, str, str | None]  # path inside the run, base, subject


def favourites(run: Run) -> tuple[Liked, ...]:
    """What was liked, in that order; a list that is none of ours counts as empty."""
    saved = read_json(run.favourites)
    entries = saved.get("pictures") if isinstance(saved, dict) else None
    found = []
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("path"), str):
            subject = entry.get("subject")
            found.append((entry["path"], str(entry.get("base")), None if subject is None else str(subject)))
    return tuple(found)


def like(run: Run, shot: Shot, wanted: bool) -> None:
    """Remember, or forget, that a picture is liked. Doing it twice changes nothing."""
    this = (shot.path, shot.base, shot.subject)
    kept = [each for each in favourites(run) if each != this] + ([this] if wanted else [])
    entries = [{"path": path, "base": base, "subject": subject} for path, base, subject in kept]
    write_json(run.favourites, {"schema": 1, "pictures": entries})


def favourite_files(run: Run) -> list[Path]:
    """The liked pictures' files, also of those that a later training has set aside."""
    found = []
    for path, base, subject in favourites(run):
        file = run.folder / path
        renders = run.folder.resolve() / "renders"
        if not file.resolve().is_relative_to(renders):
            continue
        aside = file.parent / "earlier" / f"{subject or 'untrained'}-{file.name}"
        for one in (file, aside):
            said = inscription.read_again(one)
            if said is not None and (said.base, said.subject) == (base, subject):
                found.append(one)
                break
    return list(dict.fromkeys(found))
