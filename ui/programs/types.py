"""What the named endpoints answer: typed dictionaries, so that Gradio describes them to programs."""

from __future__ import annotations

from typing import TypedDict


class Verdict(TypedDict):
    """About one photo."""

    name: str  # the file's own name
    verdict: str  # "good", "usable" or "leave_out"
    text: str  # why, and what to do
    part: str  # "training", "validation", "held out"; "" while it is not used


class Photos(TypedDict):
    """What has become of the photos."""

    key: str  # names your run in every other call; whoever has it can see and delete everything in it
    verdicts: list[Verdict]
    missing: int  # how many more photos are needed
    ready: bool  # training can start
    problem: str  # why not, as a sentence; "" when it can


class Method(TypedDict):
    """Where one method stands."""

    method: str
    state: str  # "waiting", "training", "done", "stopped" or "failed"
    step: int
    steps: int
    seconds: float


class Status(TypedDict):
    """Where a run stands."""

    state: str  # "none", "queued", "running", "done", "cancelled", "failed" or "interrupted"
    busy: bool  # something is under way: ask again in a few seconds
    kind: str  # "train", "generate" or "finish": what is, or was last, under way
    text: str  # what is being done just now
    problem: str  # why it failed, as a sentence
    ahead: int  # jobs of others before this one, while it is queued
    starts_in_s: float | None  # until its turn, where it is known
    seconds_left: float | None  # until training is done, where it is known
    methods: list[Method]
    trained: list[str]  # methods that fit the photos and can draw
    pictures: int  # how many are there
    drawn: int  # of the pictures of this job
    to_draw: int
    unread: list[str]  # ends of prompts that are longer than the base reads: they were not drawn


class Picture(TypedDict):
    """One picture with its score by the chosen judge."""

    file: str  # its name within the run; `source` of a variation
    link: str  # relative address of the PNG
    method: str  # "none" is the untrained base
    seed: int
    prompt: str
    scored: bool
    similarity: float | None  # with the photos that training never saw
    verdict: str  # "looks like you", "borderline", "someone else" ...; "" where there is none
    words: str  # the similarity as people read it, or why there is none


class Row(TypedDict):
    """One column of the comparison."""

    method: str
    mean: float | None  # a picture without a face counts as 0
    best: float | None
    normalised: float | None  # 0 at the untrained base, 1 at this person's own photos
    faces_found: int
    pictures: int
    seconds: float | None  # of training
    megabytes: float | None  # of what was learned


class Scores(TypedDict):
    """The comparison."""

    judge: str  # the face recogniser
    judges: list[str]  # all that have scored
    about: str  # its licence, and what its numbers mean
    table: list[Row]
    pictures: list[Picture]


class FinishedStep(TypedDict):
    """What became of one step."""

    step: str
    state: str  # "kept", "dropped" or "not needed"
    sentence: str  # why


class Likeness(TypedDict):
    """One face recogniser about one finished picture."""

    judge: str
    raw: float | None  # similarity of the picture as it was drawn
    delivered: float | None  # of the file
    may_lose: float | None  # a step that loses more was dropped


class FinishedPicture(TypedDict):
    """One finished picture."""

    file: str  # of the picture it was made from
    link: str  # relative address of the finished file
    format: str
    width_px: int
    height_px: int
    bytes: int
    compared_with: str  # what the similarities are with
    likeness: list[Likeness]
    steps: list[FinishedStep]
    notes: list[str]


class Link(TypedDict):
    """One file to fetch."""

    text: str
    link: str  # relative to the app's address; good for two to four hours


class Receipt(TypedDict):
    """What was deleted."""

    files: int
    bytes: int
    forgotten: str  # when
    verified: str  # what was checked afterwards
    note: str
