"""dlib: the offline face detector with five landmarks, and the second judge, which is independent of ArcFace.

In: RGB uint8 (H, W, 3) pictures. Out: `Face` records, 128-d descriptors, `DlibJudge`. Weights come with the package
face_recognition_models. Try it: `python -m pipelines score render.png --against photo.jpg --judge dlib`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import threading
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from pipelines.faces import calibration
from pipelines.faces.calibration import Calibration
from pipelines.faces.face import NO_FACE, Face, Seen, sha256_of


def dlib_weights(name: str) -> Path:
    """Path of a weight file in the `face_recognition_models` package.

    The package is never imported: it needs `pkg_resources`, which setuptools no longer has.
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

    The image is doubled `upsample` times first, because HOG needs faces of about 80 px.
    """
    detector, predictor, _ = _dlib_models()
    boxes, scores, _ = detector.run(image, upsample, 0.0)
    faces = [_dlib_face(predictor(image, box), box, score) for box, score in zip(boxes, scores)]
    return sorted(faces, key=lambda face: -face.area_px)


def _dlib_face(shape, box, score: float) -> Face:
    points = np.array([(p.x, p.y) for p in shape.parts()], dtype=np.float64)
    # dlib's five points: 0-1 the corners of the eye on the right of the image, 2-3 those of the other eye, 4 the nose.
    eyes = np.stack([points[2:4].mean(0), points[0:2].mean(0)])
    return Face((box.left(), box.top(), box.right(), box.bottom()), points, eyes, points[4], float(score))


def dlib_embed(image: np.ndarray, face: Face, *, jitter: int = 0) -> np.ndarray:
    """dlib's descriptor (128,), not normalised: photos of one person have an L2 distance below 0.6."""
    import dlib

    _, predictor, recogniser = _dlib_models()
    left, top, right, bottom = (int(round(v)) for v in face.box)
    shape = predictor(image, dlib.rectangle(left, top, right, bottom))
    return np.array(recogniser.compute_face_descriptor(image, shape, jitter))


# Faces are detected in a copy whose sides have at most so many pixels: HOG's time grows with the area, and the person's
# face in a 12-megapixel photo is still large enough in the copy. Landmarks are found at full size.
DETECT_SIDE_PX = 800


# HOG finds false faces, for instance in folds of cloth, with scores near 0; one of them may be the largest. If a face
# has a score of at least SURE_SCORE (photos of people: 1 or more), those below DOUBTFUL_SCORE are dropped; if none has
# (some renders), they are kept.
SURE_SCORE, DOUBTFUL_SCORE = 0.5, 0.2


def detect_faces(image: np.ndarray) -> list[Face]:
    """Faces in an RGB uint8 (H, W, 3) image by dlib, largest first; [] when there is none. Works offline.

    Tries until a face reaches SURE_SCORE: the copy itself (doubled when it is small, because HOG needs faces of 80 px),
    doubled once more, and doubled with a border (for faces that fill the picture or touch its edge). If none does, the
    try with the highest score counts. The last picture's result is kept, because two judges ask for it in turn.
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
    with _one_detector:  # dlib's detector is not thread-safe: it stores the image pyramid
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


# The mean cosine of dlib's descriptors of two different people (23,578 pairs of LFW training people): all descriptors
# have similar directions. dlib's own limit, an L2 distance of 0.6, is a cosine of 0.909. See `DlibJudge.similarity`.
DLIB_STRANGER_COSINE = 0.834


class DlibJudge:
    """dlib's face_recognition_resnet_model_v1: independent of ArcFace, works offline, weights in the public domain."""

    name = "dlib"
    detector = "dlib"
    licence = "public domain (dlib_face_recognition_resnet_model_v1, Davis King)"

    @cached_property
    def weights_sha256(self) -> str:
        return sha256_of([dlib_weights("dlib_face_recognition_resnet_model_v1.dat")])

    @property
    def calibration(self) -> Calibration | None:
        return calibration.load(self.name, self.weights_sha256, "dlib")

    def look(self, image: np.ndarray, faces: Sequence[Face] | None = None) -> Seen:
        """The largest face. `faces`: the result of `detect_faces`, if the caller has it."""
        faces = detect_faces(image) if faces is None else faces
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
        """Cosine of two unit vectors (128,), rescaled: different people have 0 on average, the same picture has 1.

        dlib's own measure is the L2 distance (same person below 0.6). Its descriptors have nearly the same length
        (1.42, standard deviation 0.06), so the distance follows from the cosine; 0.6 is a similarity of 0.45. All
        descriptors have similar directions, and a plain cosine of different people is 0.83. The rescaling is linear,
        so order and ratios of differences (also the normalised identity) do not change: it only makes the number
        easier to read beside ArcFace's. It is not ArcFace's scale: compare numbers of one judge only.
        """
        return 1.0 - (1.0 - float(np.dot(a, b))) / (1.0 - DLIB_STRANGER_COSINE)
