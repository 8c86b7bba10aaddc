"""Refinement: improve a raw render without a change of the person's identity.

In: an RGB uint8 (H, W, 3) picture, steps, and the person that it must stay similar to (`Baseline`). Out: `Refined`: the
picture, and for each step whether it was kept, dropped (with the reason) or not needed. After every step each judge
measures the similarity to the person again. If it is lower than in the raw picture, by more than re-saving a picture
may change it (presets/refining.json), the step is dropped. No step retouches skin.
Try it: `python -m pipelines finish render.png --out portrait.jpg`. Face embeddings stay in memory.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from pipelines.core.files import REPOSITORY
from pipelines.core.records import PhotoSet, UserError
from pipelines.evaluation import references
from pipelines.evaluation.references import Reference
from pipelines.faces.dlib_faces import detect_faces
from pipelines.faces.face import NO_FACE, Face, Judge, Seen
from pipelines.finishing import matte
from pipelines.finishing.enlarge import fitted, restored, sharpened

FILE = REPOSITORY / "presets" / "refining.json"
SIZE_PX, LEAST_PX = 512, 16
KEPT, DROPPED, NOT_NEEDED = "kept", "dropped", "not needed"
HELD_OUT, ITSELF = "the photos that training never saw", "the raw picture itself"
# The limit for a picture without a run, which is compared only with itself: the 95% quantile of the similarities of
# pairs of photos of one person. Two pictures of one moment are above it.
SAME_QUANTILE = "0.95"
SKIN_LIMIT = 3.0  # CIE76, mean over the face: about the smallest difference that people see between two pictures
WORTH_IT = 0.7  # CIE76, mean over the picture: a smaller correction is not needed
PROMINENT = 0.6  # share of the largest face's height; a face at least so high may be the person
Box = tuple[float, float, float, float]  # left, top, right, bottom
NOISE_LEVEL = 1.6  # standard deviation in grey levels; lower noise is not visible


@dataclass(frozen=True)
class Kind:
    """One kind of step: its name and description for menus and sentences, and its defaults."""

    name: str
    about: str
    by_default: bool
    strength: float = 0.5  # default for a `Step` without its own


# In the order in which they are done: colour before steps that add detail, the background last and at full size.
STEPS = {
    "exposure": Kind("White balance and exposure", "Small corrections; skin may not visibly change its colour.", True),
    "denoise": Kind("Denoise", "Light, against grain. It never smooths skin on purpose.", False, 0.4),
    "enlarge": Kind("Super-resolution", "A small network draws the detail that plain enlarging lacks.", True, 1.0),
    "restore": Kind("Face restoration", "A network that redraws faces. It often changes who it is.", False, 1.0),
    "sharpen": Kind("Gentle sharpening", "Without bright rims, and not in flat areas such as skin.", True),
    "background": Kind("Background", "Blurred, plain, or a studio's.", False, 1.0),
}
DEFAULT_STEPS = tuple(name for name, kind in STEPS.items() if kind.by_default)


@dataclass(frozen=True)
class Step:
    """One step with its settings. Raises UserError for wrong settings."""

    id: str  # a key of STEPS
    strength: float = -1.0  # 0..1; below 0: the default of its kind
    choice: str = ""  # background: one of `matte.BACKGROUNDS`; enlarge, restore: a model's name or path

    def __post_init__(self) -> None:
        if self.id not in STEPS:
            raise UserError(f"There is no step {self.id}. Choose of: {', '.join(STEPS)}.")
        if not math.isfinite(self.strength) or self.strength > 1:
            raise UserError(f"The strength of {self.name} must be a number from 0 to 1.")
        if self.id == "background" and self.choice not in matte.BACKGROUNDS:
            raise UserError(f"There is no such background. Choose of: {', '.join(matte.BACKGROUNDS)}.")

    @property
    def name(self) -> str:
        return STEPS[self.id].name

    @property
    def power(self) -> float:
        return STEPS[self.id].strength if self.strength < 0 else self.strength


def steps_of(names: Sequence[str], *, background: str = "", upscaler: str = "", restorer: str = "") -> tuple[Step, ...]:
    """Steps by their names, in the order of STEPS, with default strengths. Raises UserError for an unknown name."""
    wanted = {*names, *(("background",) if background else ())}
    if unknown := sorted(wanted - set(STEPS)):
        raise UserError(f"There is no step {', '.join(unknown)}. Choose of: {', '.join(STEPS)}.")
    choices = {"background": background or matte.BLUR, "enlarge": upscaler, "restore": restorer}
    return tuple(Step(name, choice=choices.get(name, "")) for name in STEPS if name in wanted)


@dataclass(frozen=True)
class Outcome:
    """The result of one step."""

    step: Step
    state: str  # KEPT | DROPPED | NOT_NEEDED
    sentence: str
    seconds: float = 0.0
    before: dict[str, float | None] = field(default_factory=dict)  # judge -> similarity before the step
    after: dict[str, float | None] = field(default_factory=dict)  # ... after it; {} if it made no picture
    pictures: tuple[np.ndarray, np.ndarray] | None = field(default=None, repr=False)  # before and after


@dataclass(frozen=True)
class Refined:
    """A refined picture. Similarities are by judge, to the `reference`."""

    image: np.ndarray = field(repr=False)
    steps: tuple[Outcome, ...]
    face: Face | None  # the person's, in `image`
    reference: str  # HELD_OUT | ITSELF
    photos: int  # number of photos in the reference
    raw: dict[str, float | None]
    similarity: dict[str, float | None]
    tolerance: dict[str, float]  # judge -> how far below `raw` a step may end
    seconds: float
    notes: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------- who it has to be


@dataclass(frozen=True)
class Baseline:
    """The person that a picture must stay similar to: one `Reference` per judge that has one. In a picture of several
    people the face most similar to that person is used, not the largest.
    """

    references: tuple[Reference, ...]
    of: str  # HELD_OUT | ITSELF
    notes: tuple[str, ...] = ()
    tolerance: Mapping[str, float] = field(default_factory=dict)  # by judge, in place of what `tolerance_of` measures

    def look(self, image: np.ndarray) -> tuple[dict[str, float | None], Box | None]:
        """{judge: similarity of the most similar face in a picture to the person, None if it finds no face}, and the
        box of that face as shares of the picture's sides.
        """
        found: dict[str, float | None] = {}
        place = None
        for one in self.references:
            seen = nearest(one, image)
            found[one.judge.name] = None if seen.vector is None else round(one.similarity(seen.vector), 4)
            if place is None and seen.box is not None:
                left, top, right, bottom = seen.box
                height, width = image.shape[:2]
                place = left / width, top / height, right / width, bottom / height
        return found, place


def nearest(reference: Reference, image: np.ndarray) -> Seen:
    """The face in a picture that is most similar to the person, by the reference's judge; its `vector` is None if the
    judge finds no face.
    """
    best, most = Seen(None, NO_FACE), -math.inf
    for seen in reference.judge.look_at_each(image):
        if seen.vector is not None and (similarity := reference.similarity(seen.vector)) > most:
            best, most = seen, similarity
    return best


def _holds(box: Box, point: Sequence[float] | np.ndarray) -> bool:
    return bool(box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3])


def _middle(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def baseline_of(judges: Sequence[Judge], photo_set: PhotoSet) -> Baseline:
    """The person of a run, from the held-out photos. Raises UserError when no judge finds a face in them."""
    found: list[Reference] = []
    notes: list[str] = []
    for judge in judges:
        try:
            found.append(references.reference(judge, photo_set.held_out))
        except UserError as problem:
            notes.append(str(problem))
    if not found:
        raise UserError(" ".join(notes) or "No photo is held out to compare with.")
    return Baseline(tuple(found), HELD_OUT, tuple(notes))


def baseline_itself(judges: Sequence[Judge], image: np.ndarray, *, number: int | None = None) -> Baseline:
    """Without a run: the face in the raw picture. It shows that a face did not change, not whose face it is.

    `number` chooses one of several prominent faces, from 1 at the left. Raises `SeveralFacesError` without it, and
    UserError for a number that the picture does not have.
    """
    every = [judge.look_at_each(image) for judge in judges]
    boxes = next(([one.box for one in seen if one.box is not None] for seen in every if seen), [])
    least_px = PROMINENT * max((box[3] - box[1] for box in boxes), default=0.0)
    large = sorted(box for box in boxes if box[3] - box[1] >= least_px)
    if number is None and len(large) > 1:
        raise SeveralFacesError(
            f"{len(large)} faces in the picture are prominent, and nothing says which person is meant. Crop it.",
            len(large),
        )
    if number is not None and not 1 <= number <= len(large):
        raise UserError(f"There is no face {number}: {len(large)} in the picture are prominent. Count from the left.")
    meant = large[(number or 1) - 1] if large else None
    known, notes = [], []
    for judge, found in zip(judges, every, strict=True):
        vectors = [one.vector for one in found if meant is None or one.box is None or _holds(meant, _middle(one.box))]
        if vectors and vectors[0] is not None:
            known.append(Reference(judge, vectors[0], 1))
        else:
            notes.append(f"{judge.name} finds no face in the raw picture.")
    return Baseline(tuple(known), ITSELF, tuple(notes))


class SeveralFacesError(UserError):
    """A picture has several prominent faces, and none was chosen."""

    def __init__(self, sentence: str, count: int) -> None:
        super().__init__(sentence)
        self.count = count


@lru_cache(maxsize=1)
def _measured() -> dict[str, float]:
    """{judge: how much re-saving a picture may lower a similarity}, measured by benchmarks/refine_tolerance.py."""
    saved = json.loads(FILE.read_text(encoding="utf-8"))
    return {str(judge): float(value) for judge, value in saved["tolerance"].items()}


def tolerance_of(reference: Reference, of: str, image: np.ndarray) -> float:
    """How much a similarity may fall. For a judge without a measured value, it is measured on this picture."""
    calibration = reference.judge.calibration
    if of == ITSELF and calibration is not None:
        return round(1.0 - calibration.kind(1).same[SAME_QUANTILE], 4)
    known = _measured().get(reference.judge.name)
    if known is not None and of == HELD_OUT:
        return known
    raw = nearest(reference, image).vector
    if raw is None:
        return 0.0
    copies = [nearest(reference, copy).vector for copy in harmless_copies(image)]
    losses = [1.0 if one is None else reference.similarity(raw) - reference.similarity(one) for one in copies]
    return round(max([0.01, *losses]), 4)


def harmless_copies(image: np.ndarray) -> list[np.ndarray]:
    """Copies of the picture that do not change the person: saved as JPEG (quality 90), and shifted by one pixel."""
    import cv2

    def saved(pixels: np.ndarray) -> np.ndarray:
        done, packed = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        assert done, "a JPEG of a picture in memory"
        return np.ascontiguousarray(np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR))[:, :, ::-1])

    copies = [saved(image)]
    for x, y in ((1, 0), (0, 1), (-1, -1)):
        moved = np.array([[1, 0, x], [0, 1, y]], np.float32)
        size = image.shape[1], image.shape[0]
        copies.append(saved(cv2.warpAffine(image, moved, size, borderMode=cv2.BORDER_REPLICATE)))
    return copies


class _Guard:
    """Compares a picture with the baseline by every judge, and says why a step must be dropped."""

    def __init__(self, baseline: Baseline, raw: np.ndarray) -> None:
        self.baseline = baseline
        self.raw, self.place = baseline.look(raw)
        self.tolerance = {}
        for one in baseline.references:
            name = one.judge.name
            if self.raw[name] is not None:
                given = baseline.tolerance.get(name)
                self.tolerance[name] = tolerance_of(one, baseline.of, raw) if given is None else given

    def face(self, image: np.ndarray) -> Face | None:
        """The person's face, found by dlib at its place in the raw picture (no step moves it); None if dlib finds none
        there.
        """
        size = image.shape[1], image.shape[0]
        inside = (
            face for face in detect_faces(image) if not self.place or _holds(self.place, face.eyes.mean(0) / size)
        )
        return next(inside, None)

    @property
    def blind(self) -> bool:
        return not self.tolerance

    def against(self, after: dict[str, float | None]) -> str | None:
        """A sentence that says why a picture with these similarities is no longer the same person's; None if it is."""
        for judge, allowed in self.tolerance.items():
            raw, now = self.raw[judge], after[judge]
            if now is None:
                return f"{judge} finds no face in it any more."
            assert raw is not None
            if raw - now > allowed + 1e-9:
                of = "the raw picture" if self.baseline.of == ITSELF else "the person"
                return (
                    f"{judge} finds less of {of} in it: {now:.2f} instead of {raw:.2f}, and at most {allowed:.2f} "
                    "may be lost."
                )
        return None

    def kept(self, after: dict[str, float | None]) -> str:
        seen = [judge for judge in self.tolerance if after[judge] is not None]
        said = ", ".join(f"{judge} {self.raw[judge]:.2f} → {after[judge]:.2f}" for judge in seen)
        return f"Who it is did not change ({said})."


# ------------------------------------------------------------------------------------------------- the stage


@dataclass(frozen=True)
class Tools:
    """Functions that need a model. `enlarge` doubles a picture (None: the embedded network), `restore` redraws its face
    (None: not possible).
    """

    enlarge: Callable[[np.ndarray], np.ndarray] | None = None
    restore: Callable[[np.ndarray], np.ndarray] | None = None


def refine(
    image: np.ndarray,
    steps: Sequence[Step],
    *,
    baseline: Baseline,
    size_px: int = SIZE_PX,
    tools: Tools = Tools(),
    on_step: Callable[[Outcome], None] = lambda outcome: None,
) -> Refined:
    """Do the steps on `image`, RGB uint8 (H, W, 3), in the order of `STEPS`; keep those that do not change the person.

    `size_px` is the longer side that the picture is enlarged to; a larger one keeps its size. Raises UserError for a
    picture smaller than `LEAST_PX`. If a model can't be read, only its step is dropped.
    """
    started = time.perf_counter()
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or min(image.shape[:2]) < LEAST_PX:
        raise UserError(f"The picture is too small, or none. Finishing starts at {LEAST_PX} px.")
    raw = np.ascontiguousarray(image)
    guard = _Guard(baseline, raw)
    chosen = {step.id: step for step in steps}
    outcomes: list[Outcome] = []
    current, similarity = raw, guard.raw
    for name in STEPS:
        if name == "sharpen":  # this step and the next work at full size, also when "enlarge" was dropped
            current = fitted(current, size_px)
        step = chosen.get(name)
        if step is None:
            continue
        outcome, made = _tried(step, current, similarity, guard, size_px, tools)
        if made is not None:
            current, similarity = made, outcome.after
        outcomes.append(outcome)
        on_step(outcome)
    return Refined(
        current, tuple(outcomes), guard.face(current), baseline.of,
        max((one.photos for one in baseline.references), default=0),
        guard.raw, baseline.look(current)[0] if similarity is guard.raw else similarity, guard.tolerance,
        round(time.perf_counter() - started, 3), baseline.notes,
    )  # fmt: skip


def _tried(
    step: Step,
    image: np.ndarray,
    similarity: dict[str, float | None],
    guard: _Guard,
    size_px: int,
    tools: Tools,
) -> tuple[Outcome, np.ndarray | None]:
    """The outcome of one step, and its picture if it is kept, else None."""
    started = time.perf_counter()

    def ended(state: str, sentence: str, **more: object) -> Outcome:
        spent = round(time.perf_counter() - started, 3)
        return Outcome(step, state, sentence, spent, similarity, **more)  # type: ignore[arg-type]

    if guard.blind:
        return ended(DROPPED, "No recogniser finds a face in the raw picture, so nothing can watch over it."), None
    try:
        made = _done(step, image, size_px, tools, guard)
    except UserError as problem:  # a damaged or missing model; the other steps go on
        return ended(DROPPED, str(problem)), None
    if isinstance(made, str):
        return ended(DROPPED if step.id == "background" else NOT_NEEDED, made), None
    after = guard.baseline.look(made)[0]
    pictures = (image, made)
    if against := guard.against(after):
        return ended(DROPPED, against, after=after, pictures=pictures), None
    return ended(KEPT, guard.kept(after), after=after, pictures=pictures), made


def _done(step: Step, image: np.ndarray, size_px: int, tools: Tools, guard: _Guard) -> np.ndarray | str:
    """The picture after a step, or a sentence that says why there is none."""
    if step.id == "exposure":
        return balanced(image, guard.face(image), step.power)
    if step.id == "denoise":
        return denoised(image, step.power)
    if step.id == "enlarge":
        if max(image.shape[:2]) >= size_px:
            return f"The picture has {max(image.shape[:2])} px already, so nothing had to be drawn."
        return fitted((tools.enlarge or enlarger(step.choice))(image), size_px)
    if step.id == "restore":
        restore = tools.restore or (enlarger(step.choice) if step.choice else None)
        if restore is None:
            return "No face restorer is installed here, so nothing was redrawn."
        return restored(image, guard.face(image), restore)
    if step.id == "sharpen":
        return sharpened(image, step.power)
    return matte.before_another(image, guard.face(image), step.choice)


# ------------------------------------------------------------------------------------------------- colour and light


def balanced(image: np.ndarray, face: Face | None, strength: float = 0.5) -> np.ndarray | str:
    """Small corrections of white balance and contrast, RGB uint8 (H, W, 3) in and out; or a sentence why none is
    needed.

    The colour of the light is that of nearly grey pixels (robust grey world); levels are stretched between the 0.5th
    and the 99.5th percentile. Neither uses the skin, so there is no target skin tone; both are reduced until the face's
    mean colour changes by at most `SKIN_LIMIT`.
    """
    corrected = _levels(_neutral(image.astype(np.float32)))
    skin = None if face is None else matte.face_core(image.shape[:2], face)
    for share in (1.0, 0.75, 0.5, 0.25, 0.1):
        mix = np.clip(image + strength * share * (corrected - image), 0, 255)
        shift = matte.difference(image, mix)
        if skin is None or float(shift[skin].mean()) <= SKIN_LIMIT:
            break
    if float(shift.mean()) < WORTH_IT:
        return "Colours and light are balanced already, as far as the skin tone lets them be."
    return (mix + 0.5).astype(np.uint8)


def _neutral(image: np.ndarray) -> np.ndarray:
    """White balance: removes the colour of the light, by at most 8% per channel."""
    lab = matte.lab(image)
    chroma = np.hypot(lab[..., 1], lab[..., 2])
    grey = (chroma < 12) & (lab[..., 0] > 25) & (lab[..., 0] < 96)
    if grey.mean() < 0.05:  # too few grey pixels to know the colour of the light
        return image
    light = np.median(image[grey], axis=0)
    return np.asarray(image * np.clip(light.mean() / np.maximum(light, 1), 0.92, 1.08))


def _levels(image: np.ndarray) -> np.ndarray:
    """Levels: stretches dark and bright, with at most a fifth more contrast."""
    grey = image @ np.array([0.299, 0.587, 0.114], np.float32)
    low, high = (float(value) for value in np.percentile(grey, (0.5, 99.5)))
    to_low, to_high = min(low, 8.0), max(high, 240.0)
    gain = min(1.2, (to_high - to_low) / max(high - low, 1.0))
    middle = (low + high) / 2
    return np.asarray((image - middle) * gain + min(middle * gain, (to_low + to_high) / 2))


# ------------------------------------------------------------------------------------------------- noise, detail


def noise_level(image: np.ndarray) -> float:
    """Standard deviation of the noise in grey levels, from second differences, which smooth surfaces do not have
    (Immerkaer 1996): their median over the picture, so that hair and eyes do not count as noise.
    """
    import cv2

    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    response = np.abs(cv2.filter2D(grey, -1, kernel, borderType=cv2.BORDER_REFLECT))
    return float(np.median(response) / (0.6745 * 6.0))


def denoised(image: np.ndarray, strength: float = 0.4) -> np.ndarray | str:
    """Remove noise with non-local means, as strong as the noise is. RGB uint8 (H, W, 3) in and out; or a sentence why
    not.
    """
    import cv2

    level = noise_level(image)
    if level < NOISE_LEVEL:
        return f"There is no grain worth removing ({level:.1f} grey levels)."
    power = float(np.clip(level * strength * 2, 0.5, 10))
    return np.asarray(cv2.fastNlMeansDenoisingColored(image, None, power, power, 5, 15))


@lru_cache(maxsize=2)
def enlarger(name_or_path: str = "") -> Callable[[np.ndarray], np.ndarray]:
    """The enlarging network of this name or file; without one the embedded network. It is kept for the next picture.
    Raises UserError as `load_upscaler` does.
    """
    from pipelines.finishing.enlarge import load_upscaler

    return load_upscaler(name_or_path).enlarge if name_or_path else load_upscaler().enlarge
