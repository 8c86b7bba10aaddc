"""Checks: what is wrong with each photo, what to do about it, and what is missing in the whole set.

In: pictures of one person, as upright RGB arrays. Out: one `PhotoCheck` per picture - good, usable or leave out, with
fixed reason codes - and a `SetReport`. Measured by rules and by the embedded recogniser; no age is estimated.
Try it: `python -m pipelines check PHOTO_DIR --json`. Embeddings live in memory only.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pipelines.core.records import LEAVE_OUT, REASONS, REMARKS, PhotoCheck, SetReport
from pipelines.faces import calibration
from pipelines.faces import mouth as mouths
from pipelines.faces.dlib_faces import SURE_SCORE, detect_faces
from pipelines.faces.face import Face, align_by_eyes

OVERRULABLE = {"face_too_small", "another_person", *REMARKS}  # codes of a photo that the person may use all the same

SMALLEST_SIDE_PX = 64  # of a picture
SHARPNESS_LOW = 25.0  # variance of the Laplacian in the aligned 128 px face; below, the face looks blurred
DARK, BRIGHT = 50.0, 210.0  # mean luma of the face, 0..255
CONTRAST_LOW = 16.0  # standard deviation of the face's luma
TURNED = (
    0.28  # |yaw|: how far the nose lies off the middle between the eyes, in eye distances; 0.28 is about 35 degrees
)
TILTED_DEGREES = 25.0
HEAD_ABOVE_BOX = 0.25  # how far a head goes above dlib's box, as a share of the box's height
# If fewer photos than this share of the set show the same person, no photo is called another person.
MAJORITY_SHARE = 0.5


@dataclass(frozen=True)
class Examined:
    """What was found in one picture. `vectors` are biometric: kept in memory, never written or printed."""

    shape: tuple[int, int]  # height, width
    faces: tuple[Face, ...] = ()  # largest first
    measures: tuple[Measures, ...] = ()  # one per face
    vectors: np.ndarray = field(default_factory=lambda: np.zeros((0, 1)), repr=False)  # (faces, d) unit vectors
    rotated: str | None = None  # a key of ROTATIONS: how the picture was turned before it was examined


@dataclass(frozen=True)
class Measures:
    """Measures of one face. The angles are rough (five landmarks): good only for left, right and strongly turned."""

    sharpness: float
    luma: float
    contrast: float
    side_light: float  # luma of the left half of the face minus the right half's
    yaw: float  # + : turned towards the right of the picture
    pitch: float  # + : nose low, looking down
    tilt_degrees: float
    cropped: bool
    mouth: str | None = None  # "open" | "closed"; None: not sure


def examine(image: np.ndarray, recogniser: Recogniser | None) -> Examined:
    """Find the faces in an upright RGB uint8 (H, W, 3) picture and describe each of them."""
    shape = (image.shape[0], image.shape[1])
    found = tuple(detect_faces(image)) if min(shape) >= SMALLEST_SIDE_PX else ()
    measures = tuple(measure(image, face, mouth=True) for face in found)
    if recogniser is None or not found:
        return Examined(shape, found, measures)
    return Examined(shape, found, measures, np.stack([recogniser.embed_face(image, face) for face in found]))


# How a picture that lies on its side or upside down is turned: quarter turns to the left.
ROTATIONS = {"rotated_left": 1, "rotated_right": -1, "rotated_half": 2}


def examine_upright(image: np.ndarray, recogniser: Recogniser | None) -> tuple[np.ndarray, Examined]:
    """`examine`, and the picture (H, W, 3) that was examined. If the detector is sure of a face only after the picture
    is turned by a quarter or a half, it is the turned picture.
    """
    found = examine(image, recogniser)
    if min(image.shape[:2]) < SMALLEST_SIDE_PX or _surest(found.faces) >= SURE_SCORE:
        return image, found
    turned = {code: np.ascontiguousarray(np.rot90(image, quarters)) for code, quarters in ROTATIONS.items()}
    sure = {code: _surest(detect_faces(picture)) for code, picture in turned.items()}
    code = max(sure, key=lambda each: sure[each])
    if sure[code] < SURE_SCORE:
        return image, found
    return turned[code], replace(examine(turned[code], recogniser), rotated=code)


def _surest(faces: Sequence[Face]) -> float:
    return max((face.score for face in faces), default=-1.0)


class Recogniser:
    """The embedded arcface-mini, for faces that are already found, and its calibration."""

    def __init__(self) -> None:
        from pipelines.faces.arcface_mini import ArcFaceMini

        self._judge = ArcFaceMini()
        self.calibration = self._judge.calibration

    def embed_face(self, image: np.ndarray, face: Face) -> np.ndarray:
        return self._judge.embed_face(image, face)


def measure(image: np.ndarray, face: Face, *, mouth: bool = False) -> Measures:
    """Measure one face of an RGB uint8 (H, W, 3) picture; with `mouth`, also ask the mouth network."""
    import cv2

    aligned = align_by_eyes(image, face.eyes)
    grey = cv2.cvtColor(aligned, cv2.COLOR_RGB2GRAY)
    inner = grey[38:100, 38:90].astype(np.float64)
    middle = inner.shape[1] // 2
    across = face.eyes[1] - face.eyes[0]
    apart = max(float(np.hypot(*across)), 1e-6)
    along, down = across / apart, np.array([-across[1], across[0]]) / apart
    nose = face.nose - face.eyes.mean(0)
    left, top, right, bottom = face.box
    height, width = image.shape[:2]
    reach = HEAD_ABOVE_BOX * (bottom - top)
    return Measures(
        sharpness=float(cv2.Laplacian(grey[30:100, 30:98], cv2.CV_64F).var()),
        luma=float(inner.mean()),
        contrast=float(inner.std()),
        side_light=float(inner[:, :middle].mean() - inner[:, middle:].mean()),
        yaw=float(nose @ along) / apart,
        pitch=float(nose @ down) / apart - NOSE_BELOW_EYES,
        tilt_degrees=math.degrees(math.atan2(float(across[1]), float(across[0]))),
        cropped=top - reach < 0 or bottom > height or left < 0 or right > width,
        mouth=mouths.read(image, face) if mouth else None,
    )


NOSE_BELOW_EYES = 0.74  # how far dlib's nose point lies below the eyes of a level frontal face, in eye distances


def subjects(examined: Sequence[Examined | None]) -> list[int]:
    """The index of the person's face in each picture: the face most similar to faces of the other pictures.

    Each face is compared with all faces of the other pictures; its best similarity in each of them counts. Without a
    recogniser, or when there is nothing to compare with, it is the largest face.
    """
    chosen = []
    for index, one in enumerate(examined):
        others = [o.vectors for k, o in enumerate(examined) if k != index and o is not None and len(o.vectors)]
        if one is None or len(one.vectors) < 2 or not others:
            chosen.append(0)
            continue
        agreement = [float(np.median([float((other @ vector).max()) for other in others])) for vector in one.vectors]
        chosen.append(int(np.argmax(agreement)))
    return chosen


def leave_one_out(vectors: np.ndarray, threshold: float) -> np.ndarray:
    """Similarity (n,) of each unit vector (n, d) to the normalised mean of the person's other photos.

    The person's photos are the largest group of photos that are similar to each other. Photos outside it are not in the
    mean: with two photos of another person in it, each would seem to belong to the set.
    """
    count = len(vectors)
    cosines = vectors @ vectors.T
    core = _core(cosines, threshold)
    out = np.empty(count)
    for k in range(count):
        rest = [j for j in core if j != k]
        if not rest:
            out[k] = 1.0
            continue
        mean = vectors[rest].mean(0)
        out[k] = float(vectors[k] @ mean / max(float(np.linalg.norm(mean)), 1e-12))
    return out


def _core(cosines: np.ndarray, threshold: float) -> list[int]:
    """Indices of the photo that most others are similar to, and of those others. `cosines` (n, n)."""
    agrees = cosines >= threshold
    votes = agrees.sum(1) + cosines.mean(1) / 10  # with equal counts, the photo most similar to all
    return np.flatnonzero(agrees[int(np.argmax(votes))]).tolist()


def check_set(
    names: Sequence[str],
    examined: Sequence[Examined | None],
    problems: dict[str, str],
    *,
    min_eye_distance_px: float,
    near: Sequence[Sequence[int]] = (),
    same: dict[int, int] | None = None,
    keep: Collection[str] = (),
    known: calibration.Calibration | None = None,
) -> tuple[list[PhotoCheck], SetReport, list[int]]:
    """Returns (one check per picture, the set's report, the index of the person's face in each picture).

    `examined[k]` is None when `names[k]` could not be read; `problems` then says why. `near`: groups of indices of
    near-duplicates. `same[k]`: the index of the picture that k is equal to. `keep`: names of photos that the person
    wants to use although a check says no (a photo without a face can't be used). Without a calibration (`known`) there
    is no threshold, so no photo is called another person.
    """
    same = same or {}
    who = subjects(examined)
    shown = [k for k, one in enumerate(examined) if one is not None and one.faces and k not in same]
    similarity: dict[int, float] = {}
    stranger: set[int] = set()
    with_vector = [k for k in shown if len(_of(examined, k).vectors)]
    if known is not None and len(with_vector) >= 3:
        vectors = np.stack([_of(examined, k).vectors[who[k]] for k in with_vector])
        single, several = known.kind(1), known.kind(3)
        scores = leave_one_out(vectors, single.thresholds[calibration.LOOSE_RATE])
        similarity = dict(zip(with_vector, scores.tolist(), strict=True))
        limit = several.thresholds[calibration.STRICT_RATE]
        own = [k for k, score in similarity.items() if score >= limit]
        if len(own) >= max(2, MAJORITY_SHARE * len(with_vector)):
            stranger = set(with_vector) - set(own)
    copies = {k: [names[j] for j in group if j != k] for group in near for k in group if len(group) > 1}

    checks, measures = [], {}
    for k, name in enumerate(names):
        one, codes = examined[k], []
        if one is None:
            checks.append(PhotoCheck(name, "leave_out", ("unreadable",), problems.get(name, REASONS["unreadable"])))
            continue
        if k in same:
            text = REASONS["same_picture"].replace("another one", names[same[k]])
            checks.append(PhotoCheck(name, "leave_out", ("same_picture",), text))
            continue
        if min(one.shape) < SMALLEST_SIDE_PX:
            codes.append("picture_too_small")
        elif not one.faces:
            codes.append("no_face")
        else:
            face = one.faces[who[k]]
            found = measures[k] = one.measures[who[k]]
            codes += ["face_too_small"] if face.eye_distance_px < min_eye_distance_px else []
            codes += ["another_person"] if k in stranger else []
            codes += ["several_faces"] if len(one.faces) > 1 else []
            codes += ["near_duplicate"] if copies.get(k) else []
            codes += [one.rotated] if one.rotated else []
            codes += remarks(found)
        verdict = "leave_out" if set(codes) & set(LEAVE_OUT) else "usable" if codes else "good"
        overruled = verdict == "leave_out" and name in keep and set(codes) <= OVERRULABLE
        text = "; ".join(REASONS[code] for code in codes)
        text = text.replace("another one", ", ".join(copies[k])) if copies.get(k) else text
        score = similarity.get(k)
        score = None if score is None else round(score, 4)
        checks.append(PhotoCheck(name, verdict, tuple(codes), text, score, overruled))
    kept = [k for k in shown if checks[k].verdict != "leave_out" or checks[k].kept]
    agreement = [similarity[k] for k in kept if k in similarity]
    return checks, report(checks, [measures[k] for k in kept], agreement, known), who


def _of(examined: Sequence[Examined | None], k: int) -> Examined:
    one = examined[k]
    assert one is not None
    return one


def remarks(found: Measures) -> list[str]:
    codes = ["blurred"] if found.sharpness < SHARPNESS_LOW else []
    codes += ["dark"] if found.luma < DARK else ["bright"] if found.luma > BRIGHT else []
    codes += ["low_contrast"] if found.contrast < CONTRAST_LOW else []
    codes += ["turned"] if abs(found.yaw) > TURNED else []
    codes += ["tilted"] if abs(found.tilt_degrees) > TILTED_DEGREES else []
    codes += ["cropped_head"] if found.cropped else []
    return codes


SLIGHTLY_TURNED, VARIED_LIGHT, SIDE_LIGHT = 0.08, 45.0, 15.0
CEILING_LOW_QUANTILE = "0.05"  # this share of comparisons of one person's photos is less similar


def report(
    checks: Sequence[PhotoCheck],
    kept: Sequence[Measures],
    similarities: Sequence[float],
    known: calibration.Calibration | None,
) -> SetReport:
    """The report of the whole set: which views and light it has, and which photo to add next."""
    ceiling = float(np.mean(similarities)) if similarities else None
    low = ceiling is not None and known is not None and ceiling < known.kind(3).same[CEILING_LOW_QUANTILE]
    has = {
        "a frontal photo": any(abs(m.yaw) < SLIGHTLY_TURNED for m in kept),
        "turned to the left": any(m.yaw < -SLIGHTLY_TURNED for m in kept),
        "turned to the right": any(m.yaw > SLIGHTLY_TURNED for m in kept),
        "different light": bool(kept) and max(m.luma for m in kept) - min(m.luma for m in kept) > VARIED_LIGHT,
        "sharp photos": sum(m.sharpness >= 2 * SHARPNESS_LOW for m in kept) >= max(1, len(kept) // 2),
    }
    if any(m.mouth for m in kept):  # the mouth network was there
        has["mouth closed"] = any(m.mouth == "closed" for m in kept)
        has["mouth open or teeth showing"] = any(m.mouth == "open" for m in kept)
    return SetReport(
        good=sum(check.verdict == "good" for check in checks),
        usable=sum(check.verdict == "usable" for check in checks),
        left_out=sum(check.verdict == "leave_out" for check in checks),
        ceiling=None if ceiling is None else round(ceiling, 4),
        ceiling_low=bool(low),
        angles=tuple((round(m.yaw, 3), round(m.pitch, 3)) for m in kept),
        checklist=has,
        next_photo=_next_photo(kept, has),
    )


def _next_photo(kept: Sequence[Measures], has: dict[str, bool]) -> str | None:
    """The most useful photo to add, in words; None when nothing is missing."""
    if len(kept) < 5:
        return "any clear photo of the face: at least 5 are needed"
    light = "in daylight" if np.mean([m.luma for m in kept]) < 100 else "in other light than the rest"
    if not has["a frontal photo"]:
        return "a photo that looks straight into the camera"
    if not has["sharp photos"]:
        return "a sharp photo, taken close up"
    for side in ("left", "right"):
        if not has[f"turned to the {side}"]:
            where = "" if has["different light"] else f" {light},"
            return f"a photo{where} with the face turned a little to the {side} of the picture"
    if not has["different light"]:
        return f"a photo {light}"
    if not has.get("mouth closed", True):
        return "a photo with the mouth closed"
    if not has.get("mouth open or teeth showing", True):
        return "a photo with a smile that shows teeth"
    return "more photos from other days" if len(kept) < 10 else None
