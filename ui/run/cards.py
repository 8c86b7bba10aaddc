"""What the pages show of a run, as small records: photos, lanes, pictures, marks. No HTML, no disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipelines.core.records import Sampling

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class PhotoCard:
    name: str  # the person's own file name
    link: str | None  # None: a file that can't be read is not kept
    verdict: str  # "good" | "usable" | "leave_out" | "overruled": left out by us, used all the same
    text: str = ""  # the reason, or what could be better
    part: str = ""  # "training" | "validation" | "held out"
    key: str = ""  # what its buttons send back
    can_be_kept: bool = False  # the person may overrule us
    pin: str = ""  # "trained" | "held_out": where the person put it


@dataclass(frozen=True)
class CropCard:
    """What the base will see of one photo, and be told about it."""

    name: str
    link: str
    caption: str
    key: str
    learned: bool  # False: kept apart, no caption is needed
    zoom: float = 1.0
    own_caption: bool = False


@dataclass(frozen=True)
class Lane:
    """What one method's column in the Train tab shows."""

    method: str
    state: str  # a word for the tag: "waiting", "training", ...
    step: int = 0
    steps: int = 0
    seconds: float = 0.0
    seconds_left: float | None = None
    loss: float | None = None
    preview: str | None = None  # link
    note: str = ""
    likeness: tuple[tuple[int, float], ...] = ()  # (step, similarity to the validation photos)
    no_likeness: str = ""  # why there is no such curve, and how to get one
    strip: tuple[str, ...] = ()  # links of earlier previews, oldest first; always the same seed


@dataclass(frozen=True)
class Shot:
    """One render with its score."""

    method: str
    seed: int
    link: str
    prompt: str
    similarity: float | None = None
    reason: str | None = None  # why there is no similarity
    verdict: str | None = None  # "looks like you", "borderline", ...
    note: str | None = None  # what makes the number less than it seems
    words: str | None = None  # the similarity as people read it
    scored: bool = False  # False: not judged yet
    drawing: bool = False  # a painting or a cartoon: no recogniser can judge it
    id: str = ""  # what its buttons send back; "" = it has none
    path: str = ""  # inside the run; never on a page
    base: str = ""
    subject: str | None = None  # id of what was learned; None = the untrained base
    sampling: Sampling | None = None
    when_s: float = 0.0  # when it was drawn, in seconds since 1970
    favourite: bool = False


@dataclass(frozen=True)
class LookCard:
    """One look to pick."""

    id: str
    name: str
    thumbnail: str | None = None  # an address; None = words only
    prompt: str = ""


@dataclass(frozen=True)
class JobCard:
    """One generation job in the list of what was drawn."""

    number: int
    title: str
    detail: str  # methods, how many
    when_s: float
    link: str
    shown: bool = False


@dataclass(frozen=True)
class Mark:
    name: str
    value: float | None
    meaning: str
    low: float | None = None  # a mark may be a range
    high: float | None = None


@dataclass(frozen=True)
class StripData:
    judge: str
    marks: tuple[Mark, ...]
    dots: dict[str, tuple[float, ...]] = field(default_factory=dict)  # method -> similarities
    means: dict[str, float] = field(default_factory=dict)  # method -> mean, pictures without a face counting 0


@dataclass(frozen=True)
class MethodRow:
    method: str
    mean: float | None
    best: float | None
    normalised: float | None
    faces_found: int | None
    renders: int | None
    seconds: float | None
    megabytes: float | None
    parameters: int | None
