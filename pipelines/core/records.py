"""The records that all stages pass on: frozen dataclasses. No torch, no access to files.

`f(records, options) -> records`: photos -> PhotoSet -> Subject -> Render -> Score. Units stand in the names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")
UNTRAINED = "none"  # the column of the untrained base
IMPORTED = "imported-"  # begins the column of a LoRA or embedding that was not trained here
OPTIMIZERS = ("adamw", "adamw8bit", "prodigy")
CHECKPOINTING = ("auto", "on", "off")
Quality = Literal["draft", "good", "best"]
QUALITIES: tuple[str, ...] = ("draft", "good", "best")
ATTENTIONS = ("sdpa", "xformers")
CLASS_WORDS: tuple[str, ...] = ("person", "man", "woman")

# Why a photo is left out, and remarks about photos that are used: stable codes for other programs -> what to do.
LEAVE_OUT = {
    "unreadable": "it can't be read",
    "picture_too_small": "the picture is too small; use a larger copy",
    "no_face": "no face was found; use one where the face looks towards the camera",
    "face_too_small": "the face is too small for this base; use a closer photo",
    "another_person": "this is probably another person; leave it out, or keep it if you know better",
    "same_picture": "it is the same picture as another one; it counts once",
}
REMARKS = {
    "several_faces": "several faces; the one that agrees with the other photos is used",
    "blurred": "the face looks blurred; a sharper photo teaches more",
    "dark": "the face is dark; a photo in daylight teaches more",
    "bright": "the face is overexposed; a photo in softer light teaches more",
    "low_contrast": "the face has little contrast; a photo in clearer light teaches more",
    "turned": "the face is strongly turned; it helps only beside frontal photos",
    "tilted": "the head is strongly tilted; it helps only beside upright photos",
    "cropped_head": "part of the head is cut off; a photo with the whole head teaches more",
    "rotated_left": "it lay on its side and was turned by a quarter to the left",
    "rotated_right": "it lay on its side and was turned by a quarter to the right",
    "rotated_half": "it was upside down and was turned by a half",
    "near_duplicate": "nearly the same picture as another one; they stay together and count little more than one",
}
REASONS = LEAVE_OUT | REMARKS
LOW_CEILING = (
    "The photos agree less with each other than 95% of people's do: different ages, glasses or strong filters make one "
    "face hard to learn. The pictures can't be more alike than the photos are."
)


def title_of(column: str) -> str:
    """A column's title as plain text; pictures made elsewhere carry the name they were given."""
    if is_imported(column):
        return f"{column.removeprefix(IMPORTED)} (imported)"
    if column == UNTRAINED:
        return "Untrained base"
    return METHOD_ROWS[column].title if column in METHOD_ROWS else column


def is_imported(column: str) -> bool:
    return re.fullmatch(r"imported-[a-z0-9][a-z0-9-]{0,23}", column) is not None


def place_of(column: str) -> tuple[int, str]:
    """A sort key of columns: those of `COLUMNS` first, in their order, then the imported ones by name."""
    return (COLUMNS.index(column) if column in COLUMNS else len(COLUMNS), column)


LEARNS = ("words", "adapters", "weights")


@dataclass(frozen=True)
class MethodRow:
    """A method as data. Other code reads these fields and never tests for a method's name."""

    name: str
    title: str
    # What trains: "words" (vectors of the text encoders), "adapters" (low-rank changes of layers), "weights" (the whole
    # denoiser). () = nothing trains, but the method is a column of the comparison too.
    learns: tuple[str, ...]
    usual: bool = True  # trained by default


METHOD_ROWS: dict[str, MethodRow] = {
    row.name: row
    for row in (
        MethodRow("zero_shot", "Instant (zero-shot)", ()),
        MethodRow("textual_inversion", "Textual inversion", ("words",)),
        MethodRow("dreambooth", "DreamBooth", ("weights",)),
        MethodRow("lora", "LoRA", ("adapters",)),
        MethodRow("pivotal", "Pivotal tuning", ("words", "adapters"), usual=False),
    )
}


def is_instant(column: str) -> bool:
    """True for the column of a method that trains nothing."""
    return column in METHOD_ROWS and not METHOD_ROWS[column].learns


class _Names(Sequence[str]):
    """Names of rows in `METHOD_ROWS`, in its order. It is read at each use, so later rows are included."""

    def __init__(self, chosen: Callable[[MethodRow], bool], *before: str) -> None:
        self._chosen, self._before = chosen, before

    def _now(self) -> tuple[str, ...]:
        return (*self._before, *(row.name for row in METHOD_ROWS.values() if self._chosen(row)))

    def __getitem__(self, index: Any) -> Any:
        return self._now()[index]

    def __len__(self) -> int:
        return len(self._now())

    def __eq__(self, other: object) -> bool:
        return self._now() == (other._now() if isinstance(other, _Names) else other)

    def __hash__(self) -> int:
        return hash(self._now())


METHODS: Sequence[str] = _Names(lambda row: bool(row.learns) and row.usual)  # trained by default
TRAINABLE: Sequence[str] = _Names(lambda row: bool(row.learns))  # all that train
ALL_METHODS: Sequence[str] = _Names(lambda row: True)  # those that train nothing too
COLUMNS: Sequence[str] = _Names(lambda row: True, UNTRAINED)  # all that are compared


class UserError(Exception):
    """An error that the person can do something about: one or two sentences, what happened and what to do."""


class OutOfMemory(UserError):
    """Memory ran out. The process should end before the next job."""


@dataclass(frozen=True)
class Within:
    """The limits of a number, both included. `decode` and `check_record` check them."""

    low: float
    high: float

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return handler(source) | {"ge": self.low, "le": self.high}


@dataclass(frozen=True)
class OneOf:
    """The texts that a field can be."""

    values: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.literal_schema(list(self.values))


MOST = 2**53  # what JSON and sliders carry without rounding
Seed = Annotated[int, Within(0, MOST)]
Share = Annotated[float, Within(0, 1)]
Pixels = Annotated[int, Within(64, 4096)]


@dataclass(frozen=True)
class Photo:
    """One accepted photo. Coordinates are pixels of the upright picture."""

    name: str  # the person's own file name, for messages
    path: str  # the stored, metadata-free copy
    sha256: str  # of the stored copy's bytes
    width_px: int
    height_px: int
    face_box: tuple[float, float, float, float]
    eyes: tuple[tuple[float, float], tuple[float, float]]
    eye_distance_px: float
    notes: tuple[str, ...] = ()  # remarks about it, as sentences
    reasons: tuple[str, ...] = ()  # the codes of REASONS behind the notes
    caption: str | None = None  # the person's own caption, with "{subject}"; None: one is made from measurements
    zoom: float = 1.0  # the person's own framing: above 1 closer than the base's, below 1 wider


@dataclass(frozen=True)
class PhotoCheck:
    """The result of the checks of one photo. Numbers and words only, no embedding."""

    name: str  # the person's own file name
    verdict: str  # "good" | "usable" | "leave_out"
    reasons: tuple[str, ...] = ()  # stable codes, keys of REASONS
    text: str = ""  # one line: why, and what to do
    similarity: float | None = None  # to the other photos of the set
    kept: bool = False  # the person uses it although the verdict is "leave_out"


@dataclass(frozen=True)
class SetReport:
    """The result of the checks of all photos together."""

    good: int = 0
    usable: int = 0
    left_out: int = 0
    ceiling: float | None = None  # similarity of the photos to each other: about the highest that a render can reach
    ceiling_low: bool = False  # lower than for 95% of people
    angles: tuple[tuple[float, float], ...] = ()  # (yaw, pitch) proxies per kept photo, in eye distances
    checklist: dict[str, bool] = field(default_factory=dict)
    next_photo: str | None = None  # the one most useful photo to add


@dataclass(frozen=True)
class PhotoSet:
    """The accepted photos in three disjoint parts, and why the others were refused."""

    train: tuple[Photo, ...]
    validation: tuple[Photo, ...]
    held_out: tuple[Photo, ...]
    rejected: dict[str, str] = field(default_factory=dict)  # file name -> sentence
    weak: bool = False  # too few photos for a reliable verdict
    checks: tuple[PhotoCheck, ...] = ()  # of every file that came in
    report: SetReport | None = None

    @property
    def photos(self) -> tuple[Photo, ...]:
        return self.train + self.validation + self.held_out

    @property
    def digest(self) -> str:
        """A hash of which photos are in which part, with their captions and framing; their order does not matter."""
        parts = (sorted(_mark(p) for p in part) for part in (self.train, self.validation, self.held_out))
        return hashlib.sha256("|".join(",".join(part) for part in parts).encode()).hexdigest()


def _mark(photo: Photo) -> str:
    changed = photo.caption is not None or photo.zoom != 1.0
    return f"{photo.sha256}{f'/{photo.zoom:g}/{photo.caption}' if changed else ''}"


@dataclass(frozen=True)
class Recipe:
    """How to train. Recipe + PhotoSet alone determine the result."""

    base: str  # a registry name or a path
    method: str  # one of ALL_METHODS
    class_word: str = "person"
    steps: Annotated[int, Within(1, 100_000)] = 300
    batch: Annotated[int, Within(1, 256)] = 8
    learning_rate: Share = 1e-4
    text_learning_rate: Share = 0.0  # > 0: the text encoder learns too (DreamBooth, LoRA)
    warmup_steps: Annotated[int, Within(0, 100_000)] = 20
    weight_decay: Annotated[float, Within(0, 10)] = 1e-2
    clip_norm: Annotated[float, Within(0, 1000)] = 1.0
    ema: Annotated[float, Within(0, 0.999999)] = 0.0  # 0 = off
    snr_gamma: Annotated[float, Within(0, 1000)] | None = 5.0  # min-SNR weighting; None = uniform
    noise_from: Annotated[float, Within(0, 0.99)] = (
        0.0  # train only on noise levels above this share of the schedule; below it the prompt has no effect
    )
    vectors: Annotated[int, Within(1, 8)] = 4  # textual inversion: learned vectors per text encoder, 1..8
    init: str = "class_word"  # textual inversion: "class_word" | "zero_shot" (bases that carry a projector)
    rank: Annotated[int, Within(1, 256)] = 16  # LoRA
    alpha: Annotated[float, Within(0, 1024)] = 16.0
    targets: str = "attention"  # LoRA: "attention" | "attention+feed_forward" | "all" (with convolutions)
    prior_weight: Annotated[float, Within(0, 10)] = 0.0  # DreamBooth: weight of generated class images, 0 = off
    prior_images: Annotated[int, Within(1, 1000)] = 32
    mirror: bool = False  # mirrored copies of the photos
    caption_dropout: Share = 0.1
    seed: Seed = 0
    watch_every: Annotated[int, Within(0, 100_000)] = (
        0  # judge validation pictures every so many steps and keep the best checkpoint; 0 = keep the last
    )
    patience: Annotated[int, Within(0, 1000)] = 0  # stop after so many looks (`Look`) without a better one; 0 = never
    start_from: str = ""  # sha256 of what this method learned before, in the same folder; "" = from the base
    choose_strength: bool = False  # LoRA: scale the learned change by the factor with the best `Look`
    checkpoint_every: Annotated[int, Within(1, 100_000)] = 50
    preview_every_s: Annotated[float, Within(0, 86_400)] = 10.0
    vector_learning_rate: Share = 5e-4  # pivotal: of the word vectors; `learning_rate` is the LoRA's
    freeze_vectors_after: Share = 1.0  # pivotal: the vectors are frozen after this share of the steps; 1 = never
    dora: bool = False  # LoRA: magnitudes and directions of the weights train separately (Liu et al. 2024)
    rslora: bool = False  # LoRA: alpha is divided by the root of the rank, not by the rank (Kalajdzievski 2023)
    face_weight: Annotated[float, Within(0, 100)] = 1.0  # weight of the head in the loss
    background_weight: Annotated[float, Within(0, 100)] = (
        1.0  # weight of all around the head; only the ratio of both matters, equal = no mask
    )
    optimizer: Annotated[str, OneOf(OPTIMIZERS)] = (
        "adamw"  # one of OPTIMIZERS; "prodigy" finds its learning rate itself and ignores the recipe's
    )
    gradient_checkpointing: Annotated[str, OneOf(CHECKPOINTING)] = (
        "auto"  # one of CHECKPOINTING: compute layers twice to need less memory
    )

    @property
    def weighs_faces(self) -> bool:
        return self.face_weight != self.background_weight

    def replaced(self, **changes: Any) -> Recipe:
        return Recipe(**{**asdict(self), **changes})


# Settings that were added later. At their default they are left out of fingerprints, so that checkpoints of earlier
# versions stay valid.
_LATER = (
    "vector_learning_rate", "freeze_vectors_after", "dora", "rslora", "face_weight", "background_weight", "optimizer",
    "gradient_checkpointing",
)  # fmt: skip


def recipe_fields(recipe: Recipe) -> dict[str, object]:
    """A recipe's settings for a hash: those that were added later are left out at their default."""
    usual = {each.name: each.default for each in fields(Recipe)}
    return {name: value for name, value in vars(recipe).items() if name not in _LATER or value != usual[name]}


@dataclass(frozen=True)
class Style:
    """A style of pictures. `prompt` holds `{subject}`; the base has to know all of `words`."""

    id: str
    name: str
    prompt: str
    negative_prompt: str = ""
    guidance: Annotated[float, Within(0, 50)] = 3.0
    steps: Annotated[int, Within(1, 200)] = 20
    words: tuple[str, ...] = ()
    bases: tuple[str, ...] = ("any",)  # families the style is written for: "portrait", "sd15", "sdxl", "z_image", "any"
    photoreal: bool = True  # False: recognisers can't judge it, so it does not count in the identity mean
    thumbnail: str | None = None


@dataclass(frozen=True)
class Sampling:
    """Everything that determines a picture, given a subject. `prompt` still holds `{subject}`."""

    prompt: str
    negative_prompt: str = ""
    steps: Annotated[int, Within(1, 200)] = 20
    guidance: Annotated[float, Within(0, 50)] = 3.0
    seed: Seed = 0
    width_px: Pixels | None = None  # None = the base's own size
    height_px: Pixels | None = None
    scheduler: str = "default"
    strength: Annotated[float, Within(0, 3)] = 1.0  # LoRA strength
    source: str | None = None  # a picture of the run to vary, relative to its folder; None: draw from noise alone
    change: Annotated[float, Within(0.05, 1)] = (
        1.0  # share of the schedule that is drawn again from `source`; 1 keeps nothing of it
    )
    draft: bool = False  # with the base's distilled LoRA, see pipelines.methods.drafts; not counted in any figure


# Settings of a sampling that were added later.
_ADDED: dict[str, Any] = {"source": None, "change": 1.0, "draft": False}


def sampling_fields(sampling: Sampling) -> dict[str, object]:
    """A sampling's settings for JSON and hashes. Those that were added later are left out at their default, so that
    names and hashes of pictures from noise are the same as in earlier versions.
    """
    return {name: value for name, value in vars(sampling).items() if name not in _ADDED or value != _ADDED[name]}


@dataclass(frozen=True)
class Finish:
    """How pictures of a run are to be finished; `pipelines.finishing.stage` checks it."""

    pictures: tuple[str, ...]  # paths inside the run, as in `Sampling.source`
    steps: tuple[str, ...] = ()  # of `refine.STEPS`
    background: str = ""  # of `matte.BACKGROUNDS`; "" = as it is
    upscaler: str = ""  # a registered name; "" = the embedded one
    restorer: str = ""
    size: str = "linkedin"  # of `deliver.sizes`
    max_kb: int = 200
    format_name: str = "JPEG"


@dataclass(frozen=True)
class Subject:
    """What one method has learned of the person, without the weights: from what, and where the artefact is."""

    id: str
    method: str
    base: str
    base_revision: str | None
    class_word: str
    phrase: str  # what `{subject}` becomes in a prompt, e.g. "<likeness> <likeness>_1 man"
    recipe: Recipe
    photo_digest: str
    artifact: str  # path relative to the folder of subject.json
    sha256: str
    steps: int  # optimizer steps taken
    train_s: float
    peak_mem_mb: float | None
    artifact_bytes: int
    trainable_params: int
    complete: bool = True  # False: stopped early, what was learned is kept


@dataclass(frozen=True)
class Render:
    path: str
    method: str  # one of COLUMNS
    subject_id: str | None  # None = the untrained base
    sampling: Sampling


@dataclass(frozen=True)
class Score:
    render: str  # path of the picture
    judge: str  # "buffalo_l", "antelopev2", "buffalo_sc", "arcface-mini", "dlib"
    similarity: float | None  # None: see reason
    reason: str | None = None  # "no face"
    split: str = "held_out"
    verdict: str | None = None  # "looks like you" | "borderline" | "someone else" | "no face" | "uncalibrated"
    face_px: float | None = None  # height of the face in the picture
    faces: int | None = None  # how many the detector found
    note: str | None = None  # what makes the number less reliable, e.g. a face too small to judge
    words: str | None = None  # the similarity as a sentence: how many pairs of different people are less similar


@dataclass(frozen=True)
class Look:
    """The measures of the validation pictures of one checkpoint, or of one strength."""

    value: float  # what is maximised: identity (at least 0) x following
    identity: float  # mean similarity to the validation photos; a picture without a face counts as 0
    following: float | None  # mean share of what the prompts ask for that is shown
    trained: float  # mean similarity to the training photos


@dataclass(frozen=True)
class Watch:
    """How a training judges its checkpoints: it draws `prompts` and calls `look` with the pictures."""

    judge: str  # the judge's name; never the report's first judge
    prompts: tuple[str, ...]  # each with "{subject}"
    look: Callable[[np.ndarray], Look]  # of one frame per prompt, (n, H, W, 3) uint8


@dataclass(frozen=True)
class Started:
    """What a method that begins to learn is given."""

    trainable_params: int
    memory: str  # one sentence: what is done to fit the GPU's memory


@dataclass(frozen=True)
class Validated:
    """The loss on the validation photos after a step."""

    validation_loss: float


@dataclass(frozen=True)
class Counted:
    """What the steps of a note count."""

    what: str  # "photos" | "pictures"


@dataclass(frozen=True)
class Failed:
    """Why a method was not trained."""

    out_of_memory: bool


Details = Started | Validated | Look | Sampling | Score | Counted | Failed
# by the event's kind
DETAILS: dict[str, type[Details]] = {
    "start": Started,
    "step": Validated,
    "watch": Look,
    "render": Sampling,
    "refused": Sampling,
    "score": Score,
    "note": Counted,
    "failed": Failed,
}


@dataclass(frozen=True)
class Event:
    """One event of a job, for the app, the command line and the tests. Can be written as JSON."""

    # "start", "step", "preview", "watch", "note", "phase", "render", "refused", "score", "done", "stopped", "paused",
    # "failed", "unread": a prompt is longer than the base reads
    kind: str
    method: str | None = None
    step: int = 0
    steps: int = 0
    loss: float | None = None
    seconds: float = 0.0  # spent so far on this method
    seconds_left: float | None = None
    path: str | None = None  # of a preview, render or artefact
    text: str | None = None  # one sentence for people; of "unread" the words that are lost
    data: Details | None = None  # of the class that DETAILS has for the kind
