"""Faces: find them, align them, and say how alike two of them are.

In: RGB images as uint8 arrays (H, W, 3). Out: `Face` records, aligned crops, unit-length embeddings.
Two independent recognisers sit behind one interface: ArcFace (InsightFace packs) and dlib's ResNet.
Try it: `python -m pipelines score render.png --against photo1.jpg photo2.jpg --json`.
Embeddings are biometric data: they live in memory only and are never written to disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import math
import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from pipelines.core.schema import UserError
from pipelines.faces import calibration
from pipelines.faces.calibration import Calibration

log = logging.getLogger(__name__)

# The framing the embedded base was trained on: eyes' midpoint and distance in a 128x128 crop, in pixels.
PORTRAIT_SIZE_PX = 128
PORTRAIT_EYES_MID = (64.0, 58.0)
PORTRAIT_EYES_APART_PX = 30.0


@dataclass(frozen=True)
class Face:
    """One detected face. Coordinates are image pixels (x, y)."""

    box: tuple[float, float, float, float]  # left, top, right, bottom
    points: np.ndarray  # (k, 2): the detector's own landmarks, in its own order
    eyes: np.ndarray  # (2, 2): eye centres, the one on the left of the image first
    nose: np.ndarray  # (2,)
    score: float  # the detector's own confidence; not comparable between detectors
    detector: str = "dlib"  # or "scrfd": whose landmarks `points` are

    @property
    def eye_distance_px(self) -> float:
        return float(np.linalg.norm(self.eyes[1] - self.eyes[0]))

    @property
    def height_px(self) -> float:
        return max(0.0, self.box[3] - self.box[1])

    @property
    def area_px(self) -> float:
        left, top, right, bottom = self.box
        return max(0.0, right - left) * max(0.0, bottom - top)


def moved(face: Face, shift: np.ndarray) -> Face:
    """`face` as seen from an image whose corner lies `shift` (x, y) pixels further up and left."""
    left, top, right, bottom = face.box
    x, y = float(shift[0]), float(shift[1])
    return replace(
        face,
        box=(left + x, top + y, right + x, bottom + y),
        points=face.points + shift,
        eyes=face.eyes + shift,
        nose=face.nose + shift,
    )


def dlib_weights(name: str) -> Path:
    """Path of a weight file that the `face_recognition_models` package carries.

    The package itself is never imported: it needs `pkg_resources`, which setuptools removed.
    """
    spec = importlib.util.find_spec("face_recognition_models")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        path = Path(folder) / "models" / name
        if path.is_file():
            return path
    raise FileNotFoundError(f"{name} is missing: install it with `pip install face_recognition_models==0.3.0`.")


@lru_cache(maxsize=1)
def _dlib_models():
    import dlib

    return (
        dlib.get_frontal_face_detector(),
        dlib.shape_predictor(str(dlib_weights("shape_predictor_5_face_landmarks.dat"))),
        dlib.face_recognition_model_v1(str(dlib_weights("dlib_face_recognition_resnet_model_v1.dat"))),
    )


def dlib_detect(image: np.ndarray, *, upsample: int = 1) -> list[Face]:
    """Faces found by dlib's HOG detector and 5-point predictor, largest first.

    `upsample` doubles the image that many times first; HOG needs faces of about 80 px.
    """
    detector, predictor, _ = _dlib_models()
    boxes, scores, _ = detector.run(image, upsample, 0.0)
    faces = [_dlib_face(predictor(image, box), box, score) for box, score in zip(boxes, scores)]
    return sorted(faces, key=lambda face: -face.area_px)


def _dlib_face(shape, box, score: float) -> Face:
    points = np.array([(p.x, p.y) for p in shape.parts()], dtype=np.float64)
    # dlib's five points: 0-1 the corners of the eye on the right of the image, 2-3 of the other, 4 the nose.
    eyes = np.stack([points[2:4].mean(0), points[0:2].mean(0)])
    return Face((box.left(), box.top(), box.right(), box.bottom()), points, eyes, points[4], float(score))


def align_by_eyes(
    image: np.ndarray,
    eyes: np.ndarray,
    *,
    size_px: int = PORTRAIT_SIZE_PX,
    midpoint: tuple[float, float] = PORTRAIT_EYES_MID,
    apart_px: float = PORTRAIT_EYES_APART_PX,
) -> np.ndarray:
    """Turn, scale and shift `image` so that the eyes land on fixed points. Returns (size, size, 3) uint8.

    Shrinking first with area averaging avoids the aliasing of one big warp; pixels outside the photo repeat
    its edge.
    """
    import cv2

    eyes = np.asarray(eyes, dtype=np.float64)
    across = eyes[1] - eyes[0]
    scale = apart_px / max(float(np.hypot(*across)), 1e-6)
    if scale < 0.75:
        reach = math.dist((0, 0), [max(m, size_px - m) for m in midpoint]) / scale
        image, corner = around(image, eyes.mean(0), reach)
        eyes = eyes - corner
        height, width = image.shape[:2]
        small = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        # cv2.resize maps pixel centres: x' = (x + 0.5) * ratio - 0.5
        ratio = np.array([small[0] / width, small[1] / height])
        eyes = (eyes + 0.5) * ratio - 0.5
        across = eyes[1] - eyes[0]
        scale = apart_px / max(float(np.hypot(*across)), 1e-6)
    angle = np.arctan2(across[1], across[0])
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    matrix = np.array([[cos, sin, 0.0], [-sin, cos, 0.0]])
    matrix[:, 2] = np.asarray(midpoint) - matrix[:, :2] @ eyes.mean(0)
    return cv2.warpAffine(image, matrix, (size_px, size_px), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def dlib_embed(image: np.ndarray, face: Face, *, jitter: int = 0) -> np.ndarray:
    """dlib's 128-d descriptor, not normalised: two photos of one person lie within L2 0.6 of each other."""
    import dlib

    _, predictor, recogniser = _dlib_models()
    left, top, right, bottom = (int(round(v)) for v in face.box)
    shape = predictor(image, dlib.rectangle(left, top, right, bottom))
    return np.array(recogniser.compute_face_descriptor(image, shape, jitter))


def around(image: np.ndarray, middle: np.ndarray, reach_px: float) -> tuple[np.ndarray, np.ndarray]:
    """The part of `image` within `reach_px` of a point, and its corner (x, y): shrinking a face needs no more of a
    12-megapixel photo.
    """
    height, width = image.shape[:2]
    left, top = (int(max(0.0, v - reach_px - 4)) for v in middle)
    right, bottom = int(min(width, middle[0] + reach_px + 5)), int(min(height, middle[1] + reach_px + 5))
    if right - left < 2 or bottom - top < 2:
        return image, np.zeros(2)
    return image[top:bottom, left:right], np.array([left, top], np.float64)


# Detection works on a copy of at most this many pixels a side: HOG's cost grows with the area, and a face
# that matters in a 12-megapixel photo is still large enough in the copy. Landmarks are read at full size.
DETECT_SIDE_PX = 800
# HOG sees faces in folds of cloth, with scores near 0, and such a "face" may be the largest. Where it is sure of one
# (photos of people: 1 and more), doubtful ones do not count; where it is sure of none (renders), they do.
SURE_SCORE, DOUBTFUL_SCORE = 0.5, 0.2


def detect_faces(image: np.ndarray) -> list[Face]:
    """Faces in an RGB uint8 (H, W, 3) image by dlib, largest first; [] when there is none. Works offline.

    Tries, until HOG is sure of one: the copy as it is (doubled when it is small: HOG needs faces of 80 px), doubled
    once more, and doubled with a border around it (faces that fill the picture or touch its edge). If it never is,
    the try with the highest score counts. The last picture's answer is kept: two judges ask for it one after the other.
    """
    key = hashlib.sha1(np.ascontiguousarray(image).data, usedforsecurity=False).digest() + repr(image.shape).encode()
    if (known := _last_found.get(key)) is not None:
        return list(known)
    found = _detect(image)
    _last_found.clear()
    _last_found[key] = found
    return list(found)


_last_found: dict[bytes, list[Face]] = {}


def _detect(image: np.ndarray) -> list[Face]:
    height, width = image.shape[:2]
    if min(height, width) < 16:
        return []
    scale = min(1.0, DETECT_SIDE_PX / max(height, width))
    copy = np.ascontiguousarray(image)
    if scale < 1.0:
        import cv2

        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        copy = cv2.resize(copy, size, interpolation=cv2.INTER_AREA)
    first = 1 if max(copy.shape[:2]) <= 400 else 0
    border = max(32, max(copy.shape[:2]) // 4)
    best: list[tuple[np.ndarray, float]] = []
    for upsample, margin in ((first, 0), (first + 1, 0), (1, border)):
        found = _detect_on_copy(copy, upsample, margin)
        if max((score for _, score in found), default=-1.0) > max((score for _, score in best), default=-1.0):
            best = found
        if any(score >= SURE_SCORE for _, score in best):
            best = [(box, score) for box, score in best if score >= DOUBTFUL_SCORE]
            break
    return _faces_at_full_size(image, best, copy.shape)


_one_detector = threading.Lock()


def _detect_on_copy(copy: np.ndarray, upsample: int, margin: int) -> list[tuple[np.ndarray, float]]:
    """Boxes (left, top, right, bottom) on `copy`, with scores; `margin` pixels of repeated edge are added first."""
    if margin:
        import cv2

        copy = cv2.copyMakeBorder(copy, margin, margin, margin, margin, cv2.BORDER_REPLICATE)
    with _one_detector:  # it keeps the picture's pyramid in itself
        boxes, scores, _ = _dlib_models()[0].run(copy, upsample, 0.0)
    return [
        (np.array([b.left(), b.top(), b.right(), b.bottom()], np.float64) - margin, float(score))
        for b, score in zip(boxes, scores)
    ]


def _faces_at_full_size(
    image: np.ndarray, found: list[tuple[np.ndarray, float]], copy_shape: tuple[int, ...]
) -> list[Face]:
    import dlib

    predictor = _dlib_models()[1]
    whole = np.ascontiguousarray(image)
    ratio = np.array([image.shape[1] / copy_shape[1], image.shape[0] / copy_shape[0]] * 2)
    faces = []
    for box, score in found:
        left, top, right, bottom = (int(round(v)) for v in box * ratio)
        rectangle = dlib.rectangle(left, top, right, bottom)
        faces.append(_dlib_face(predictor(whole, rectangle), rectangle, score))
    return sorted(faces, key=lambda face: -face.area_px)


# ---------------------------------------------------------------------------------------------------- judges


@dataclass(frozen=True)
class Seen:
    """What a judge saw in a picture: the largest face."""

    vector: np.ndarray | None = field(repr=False)  # unit length; None: see reason
    reason: str | None = None
    face_px: float | None = None  # height of the face in the picture
    faces: int = 0  # how many the detector found
    box: tuple[float, float, float, float] | None = None  # left, top, right, bottom in the picture


class Judge(Protocol):
    """One face recogniser. Larger similarity = more alike; 1 is the same picture, about 0 two strangers."""

    name: str
    licence: str

    @property
    def weights_sha256(self) -> str:
        """SHA-256 over the weight files, for a manifest."""

    @property
    def calibration(self) -> Calibration | None:
        """What these very weights were measured to say; None: uncalibrated."""

    def look(self, image: np.ndarray) -> Seen:
        """The largest face in an RGB uint8 (H, W, 3) image."""

    def look_at_each(self, image: np.ndarray) -> list[Seen]:
        """Every face in an RGB uint8 (H, W, 3) image, largest first; [] when there is none."""

    def similarity(self, a: np.ndarray, b: np.ndarray) -> float:
        """How alike two unit vectors are, at most 1."""


NO_FACE = "no face found"


def sha256_of(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda p: p.name):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


# dlib's descriptors all point roughly one way: the mean cosine of two strangers (23,578 pairs of LFW training people).
# Among them an L2 distance of 0.6, dlib's own limit, goes with a cosine of 0.909. See `DlibJudge.similarity`.
DLIB_STRANGER_COSINE = 0.834


class DlibJudge:
    """dlib's face_recognition_resnet_model_v1: independent of every ArcFace, offline, public-domain weights."""

    name = "dlib"
    licence = "public domain (dlib_face_recognition_resnet_model_v1, Davis King)"

    @cached_property
    def weights_sha256(self) -> str:
        return sha256_of([dlib_weights("dlib_face_recognition_resnet_model_v1.dat")])

    @property
    def calibration(self) -> Calibration | None:
        return calibration.load(self.name, self.weights_sha256, "dlib")

    def look(self, image: np.ndarray) -> Seen:
        faces = detect_faces(image)
        if not faces:
            return Seen(None, NO_FACE)
        return self._seen(image, faces[0], len(faces))

    def look_at_each(self, image: np.ndarray) -> list[Seen]:
        faces = detect_faces(image)
        return [self._seen(image, face, len(faces)) for face in faces]

    def _seen(self, image: np.ndarray, face: Face, count: int) -> Seen:
        vector = dlib_embed(np.ascontiguousarray(image), face)
        return Seen(vector / np.linalg.norm(vector), None, face.height_px, count, face.box)

    def similarity(self, a: np.ndarray, b: np.ndarray) -> float:
        """Cosine, stretched so that photos of two strangers are 0 on average and the same picture is 1.

        dlib is meant to be read as an L2 distance (same person below 0.6). Its descriptors have nearly one
        length (1.42, standard deviation 0.06), so the distance follows from the cosine: 0.6 is a similarity
        of 0.45. But all descriptors lie in a narrow cone, and a plain cosine would call strangers 0.83 alike. The
        stretch is linear and the same for everything, so it changes no order and no ratio of differences (the
        normalised identity is what it was): it only makes the number readable beside ArcFace's. It is not
        ArcFace's scale: compare numbers of one judge only.
        """
        return 1.0 - (1.0 - float(np.dot(a, b))) / (1.0 - DLIB_STRANGER_COSINE)


# Preference order: the strongest pack that is there judges. Weights: non-commercial research, see
# https://github.com/deepinsight/insightface/tree/master/model_zoo.
ARCFACE_PACKS: tuple[str, ...] = ("buffalo_l", "antelopev2", "buffalo_sc")
ARCFACE_DETECT_PX = 256


def pack_root(pack_folder: Path | None = None) -> Path:
    """The folder that holds `models/<pack>/*.onnx`: the argument, else $LIKENESS_FACE_MODELS, else ~/.insightface."""
    return Path(pack_folder or os.environ.get("LIKENESS_FACE_MODELS") or "~/.insightface").expanduser()


def find_pack(name: str, pack_folder: Path | None = None) -> Path | None:
    """Folder of a complete pack (at least a detector and a recogniser), or None. Reads no model."""
    root = pack_root(pack_folder)
    # antelopev2's archive holds a folder of its own name, so unpacked it lies one level deeper.
    for folder in (root / "models" / name, root / "models" / name / name, root / name):
        with contextlib.suppress(OSError):
            if len([path for path in folder.glob("*.onnx") if path.stat().st_size > 0]) >= 2:
                return folder
    return None


class ArcFaceJudge:
    """An InsightFace pack: SCRFD finds the face, ArcFace describes it with 512 numbers.

    The models are read at the first picture, not before: making a judge costs nothing.
    """

    def __init__(self, name: str, pack: Path, *, providers: list[str] | None = None):
        self.name = name
        self.licence = "non-commercial research (InsightFace weights; code MIT)"
        self._pack = pack
        self._providers = providers
        self._models: tuple | None = None
        self._lock = threading.Lock()

    @cached_property
    def weights_sha256(self) -> str:
        return sha256_of(list(self._pack.glob("*.onnx")))

    @property
    def calibration(self) -> Calibration | None:
        return calibration.load(self.name, self.weights_sha256, "scrfd")

    def _load(self) -> tuple:
        with self._lock:
            if self._models is None:
                self._models = _load_pack(self.name, self._pack, self._providers)
            return self._models

    def detection_model(self):
        """Its SCRFD, for whoever wants the five landmarks."""
        return self._load()[0]

    def look(self, image: np.ndarray) -> Seen:
        bgr = np.ascontiguousarray(image[:, :, ::-1])
        found = _largest(self.detection_model(), bgr)
        return Seen(None, NO_FACE) if found is None else self._seen(bgr, *found)

    def look_at_each(self, image: np.ndarray) -> list[Seen]:
        bgr = np.ascontiguousarray(image[:, :, ::-1])
        found = _every(self.detection_model(), bgr)
        return [self._seen(bgr, box, points, len(found)) for box, points in found]

    def _seen(self, bgr: np.ndarray, box: np.ndarray, points: np.ndarray, count: int) -> Seen:
        _, recogniser, face_class = self._load()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # insightface 2.1 calls a scikit-image function that is being renamed
            vector = recogniser.get(bgr, face_class(kps=points.astype(np.float32)))
        length = float(np.linalg.norm(vector))
        if not np.isfinite(length) or length == 0.0:
            return Seen(None, "the recogniser gave no answer for this face")
        return Seen(np.asarray(vector, np.float64) / length, None, float(box[3] - box[1]), count, _corners(box))

    def similarity(self, a: np.ndarray, b: np.ndarray) -> float:
        return float(np.dot(a, b))


def _load_pack(name: str, pack: Path, providers: list[str] | None) -> tuple:
    """(detector, recogniser, insightface's Face class) of a pack that lies on this machine."""
    try:
        import onnxruntime

        with contextlib.redirect_stdout(sys.stderr):  # a command's stdout is its JSON
            from insightface.app import FaceAnalysis
            from insightface.app.common import Face as InsightFace

            if providers is None:
                usable = onnxruntime.get_available_providers()
                providers = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in usable]
            options = onnxruntime.SessionOptions()
            # onnxruntime ignores OMP_NUM_THREADS by itself, and would take every core of a shared machine.
            with contextlib.suppress(ValueError):
                options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
            # A folder as the name keeps insightface from ever asking the network.
            app = FaceAnalysis(
                name=str(pack),
                allowed_modules=["detection", "recognition"],
                providers=providers,
                sess_options=options,
            )
        if "recognition" not in app.models:
            raise _without("recogniser", name, pack)
        gpu = providers and providers[0] != "CPUExecutionProvider"
        app.prepare(ctx_id=0 if gpu else -1, det_size=(ARCFACE_DETECT_PX, ARCFACE_DETECT_PX))
        return app.models["detection"], app.models["recognition"], InsightFace
    except ImportError as error:
        raise UserError(
            f"The judge {name} needs insightface and onnxruntime ({error}). Install them with "
            "`pip install -r requirements.txt`, or judge with dlib."
        ) from error
    except UserError:
        raise
    except AssertionError as error:  # insightface asserts that there is a detector
        raise _without("detector", name, pack) from error
    except Exception as error:  # onnxruntime and protobuf raise their own kinds for a damaged file
        raise UserError(
            f"The face pack {name} could not be read: {_damaged(pack) or type(error).__name__}. Delete its folder and "
            "download it again, or choose another judge."
        ) from error


def _without(what: str, name: str, pack: Path) -> UserError:
    names = ", ".join(sorted(path.name for path in pack.glob("*.onnx")))
    return UserError(
        f"The face pack {name} holds no usable {what}: none of {names} has the inputs and outputs of one. Delete its "
        "folder and download it again, or choose another judge."
    )


def _damaged(pack: Path) -> str | None:
    """Which file of a pack is no model."""
    import onnxruntime

    for path in sorted(pack.glob("*.onnx")):
        try:
            onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception:
            return f"{path.name} is no ONNX model that can be read"
    return None


Points = tuple[np.ndarray, np.ndarray]  # a face's box and its five landmarks, in image pixels


def _largest(detector, bgr: np.ndarray) -> tuple[np.ndarray, np.ndarray, int] | None:
    """(box, 5 points, number of faces) of the largest face in a BGR image, or None.

    SCRFD is run at 256 px with a border: at its usual 640 px it misses tight crops.
    """
    found = _found(detector, bgr)
    return (*_closer(detector, bgr, *found[0]), len(found)) if found else None


def _every(detector, bgr: np.ndarray) -> list[Points]:
    """Every face, largest first: those of `_largest`, and the small ones that only 640 px show."""
    found = _found(detector, bgr)
    for box, points in _scrfd(detector, bgr, 640, 32):
        middle = (box[:2] + box[2:]) / 2
        if not any((known[:2] <= middle).all() and (middle <= known[2:]).all() for known, _ in found):
            found.append((box, points))
    return [_closer(detector, bgr, *face) for face in sorted(found, key=lambda face: -_area(face[0]))]


def _found(detector, bgr: np.ndarray) -> list[Points]:
    longest = max(bgr.shape[:2])
    for side_px, margin in ((ARCFACE_DETECT_PX, max(32, longest // 16)), (ARCFACE_DETECT_PX, longest // 2), (640, 32)):
        found = _scrfd(detector, bgr, side_px, margin)
        if found:
            return found
    return []


def _closer(detector, bgr: np.ndarray, box: np.ndarray, points: np.ndarray) -> Points:
    """A face that is small in the picture is cut out and found again there, so that its landmarks are as exact as a
    portrait's. Of several in the cut it is the one nearest to the middle.
    """
    face_px = max(box[2] - box[0], box[3] - box[1])
    if face_px * 5 >= max(bgr.shape[:2]):
        return box, points
    middle = points.mean(0)
    left, top = (max(0, int(v - 1.5 * face_px)) for v in middle)
    right, bottom = (int(v + 1.5 * face_px) for v in middle)
    again = _scrfd(detector, np.ascontiguousarray(bgr[top:bottom, left:right]), ARCFACE_DETECT_PX, 32)
    if not again:
        return box, points
    shift = np.array([left, top], np.float64)
    near = min(again, key=lambda face: float(np.linalg.norm(face[1].mean(0) + shift - middle)))
    return near[0] + np.tile(shift, 2), near[1] + shift


def _scrfd(detector, bgr: np.ndarray, side_px: int, margin: int) -> list[Points]:
    """Faces with the image shown at `side_px` with a border, largest first."""
    import cv2

    framed = cv2.copyMakeBorder(bgr, margin, margin, margin, margin, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    boxes, points = detector.detect(framed, input_size=(side_px, side_px))
    if len(boxes) == 0 or points is None:
        return []
    order = np.argsort(-(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), kind="stable")
    return [(boxes[k, :4].astype(np.float64) - margin, points[k].astype(np.float64) - margin) for k in order]


def _area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _corners(box: np.ndarray) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(v) for v in box)
    return left, top, right, bottom


def scrfd_face(detector, image: np.ndarray) -> tuple[Face, int] | None:
    """The largest face in an RGB image by an SCRFD model, and how many there are."""
    found = _largest(detector, np.ascontiguousarray(image[:, :, ::-1]))
    return (_scrfd_face(found[0], found[1]), found[2]) if found else None


def scrfd_faces(detector, image: np.ndarray) -> list[Face]:
    """Every face in an RGB image by an SCRFD model, largest first."""
    return [_scrfd_face(*face) for face in _every(detector, np.ascontiguousarray(image[:, :, ::-1]))]


def _scrfd_face(box: np.ndarray, points: np.ndarray) -> Face:
    return Face(_corners(box), points, points[:2], points[2], 1.0, "scrfd")


def download_pack(name: str, pack_folder: Path | None = None) -> Path:
    """Fetch an InsightFace pack (buffalo_l: 280 MB) - only ever called after the person agreed.

    It is unpacked beside its place and moved there whole: a broken download never looks like a pack. An empty
    folder that an earlier failure left is replaced. `UserError` when the network or the disk fails.
    """
    if name not in ARCFACE_PACKS:
        raise UserError(f"There is no face pack called {name}. Choose one of: {', '.join(ARCFACE_PACKS)}.")
    here = find_pack(name, pack_folder)
    if here is not None:
        return here
    target = pack_root(pack_folder) / "models" / name
    partial: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
        with contextlib.redirect_stdout(sys.stderr):
            from insightface.utils import storage

            storage.download("models", name, force=True, root=str(partial))
        fresh = find_pack(name, partial)
        if fresh is None:
            raise OSError("the archive held no models")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(fresh, target)
        return target
    except ImportError as error:
        raise UserError("Face packs need insightface. Install it with `pip install -r requirements.txt`.") from error
    except Exception as error:  # requests, urllib3, zipfile and the disk each raise their own kinds
        raise UserError(
            f"The face pack {name} could not be downloaded ({type(error).__name__}): the server did not answer or the "
            f"disk is full. Try again with a network, or put the pack's .onnx files into {target}. "
            "Until then the embedded arcface-mini and dlib judge."
        ) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def available_judges(
    pack_folder: Path | None = None,
    allow_download: bool = False,
    *,
    on_problem: Callable[[str], None] | None = None,
) -> list[Judge]:
    """The judges that work here: the best ArcFace pack that is present, else the embedded arcface-mini; then dlib, as
    the independent second opinion. Costs no model loading.

    Nothing is downloaded unless `allow_download` (the person agreed); a download that fails is told to
    `on_problem` in a sentence (else logged). `UserError` when there is no judge at all.
    """
    from pipelines.faces import arcface_mini

    say = on_problem or log.warning
    packs = [(name, find_pack(name, pack_folder)) for name in ARCFACE_PACKS]
    judges: list[Judge] = []
    present = [(name, folder) for name, folder in packs if folder is not None]
    if not present and allow_download:
        try:
            present = [("buffalo_l", download_pack("buffalo_l", pack_folder))]
        except UserError as problem:
            say(str(problem))
    if present and importlib.util.find_spec("insightface") is None:
        say("A face pack is here but insightface is not installed: `pip install -r requirements.txt` adds it.")
        present = []
    try:
        dlib_weights("dlib_face_recognition_resnet_model_v1.dat")
        if importlib.util.find_spec("dlib") is None:
            raise FileNotFoundError("dlib is missing: install it with `pip install dlib-bin`.")
        judges.append(DlibJudge())
    except FileNotFoundError as problem:
        say(str(problem))
    first: Judge | None = ArcFaceJudge(*present[0]) if present else None
    if first is None and judges:  # the embedded recogniser reads dlib's landmarks
        try:
            first = arcface_mini.ArcFaceMini()
        except UserError as problem:
            say(str(problem))
    judges = [first, *judges] if first is not None else judges
    if not judges:
        raise UserError("No face recogniser is installed. Run `pip install -r requirements.txt`.")
    return judges


def judge_names() -> tuple[str, ...]:
    from pipelines.faces import arcface_mini

    return (*ARCFACE_PACKS, arcface_mini.NAME, DlibJudge.name)


def judge(name: str, pack_folder: Path | None = None) -> Judge:
    """One judge by its name. `UserError` when there is none of that name, or its pack is not on this machine."""
    from pipelines.faces import arcface_mini

    if name not in judge_names():
        raise UserError(f"There is no judge called {name}. Choose one of: {', '.join(judge_names())}.")
    if name == DlibJudge.name:
        return DlibJudge()
    packs = [(pack, find_pack(pack, pack_folder)) for pack in ARCFACE_PACKS]
    if name == arcface_mini.NAME:
        # with a pack on this machine its detector's five landmarks are the better ones
        return arcface_mini.ArcFaceMini(next(((pack, folder) for pack, folder in packs if folder is not None), None))
    folder = dict(packs)[name]
    if folder is None:
        raise UserError(
            f"The face pack {name} is not in {pack_root(pack_folder) / 'models' / name}{_incomplete(name, pack_folder)}"
            ". Download it, point LIKENESS_FACE_MODELS at the folder that holds models/, or choose another judge."
        )
    return ArcFaceJudge(name, folder)


def _incomplete(name: str, pack_folder: Path | None) -> str:
    """What is there of a pack that can't work."""
    folder = pack_root(pack_folder) / "models" / name
    files = sorted(path for path in folder.glob("*.onnx")) if folder.is_dir() else []
    if not files:
        return ""
    empty = [path.name for path in files if path.stat().st_size == 0]
    if empty:
        return f" as a whole: {', '.join(empty)} is empty"
    return f" as a whole: it needs a detector and a recogniser, and only {files[0].name} is there"
