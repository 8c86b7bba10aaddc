"""The embedded recogniser: `models/arcface-mini`, a small ArcFace that works with nothing downloaded.

In: an RGB uint8 (H, W, 3) image. Out: a unit vector of 512 numbers. Made by `tools/build_arcface_mini.py`.
Try it: `python -m pipelines score render.png --against photo.jpg --judge arcface-mini`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from pipelines.core.files import REPOSITORY
from pipelines.core.records import UserError
from pipelines.faces import calibration
from pipelines.faces.arcface import ArcFaceJudge, scrfd_face, scrfd_faces
from pipelines.faces.calibration import Calibration
from pipelines.faces.dlib_faces import detect_faces
from pipelines.faces.face import NO_FACE, Face, Seen, around, sha256_of

NAME = "arcface-mini"
MODEL = REPOSITORY / "models" / NAME / "arcface_mini.onnx"
SIZE_PX, EMBEDDING = 112, 512
# The standard 112x112 five-point template (InsightFace): eyes, nose tip, mouth corners; (x, y).
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
# The mean positions of dlib's eye centres and nose point (the base of the nose, not the tip) in crops that were aligned
# to that template by SCRFD's points: 263 LFW training people, standard deviation 2 px. dlib has no mouth corners.
DLIB_TEMPLATE = np.array([[38.03, 53.50], [72.74, 53.16], [55.57, 79.59]])


def similarity_transform(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The least-squares rotation, scale and shift (2, 3) that maps points `source` (k, 2) to `target` (k, 2)."""
    source_mean, target_mean = source.mean(0), target.mean(0)
    s, t = source - source_mean, target - target_mean
    size = max(float((s * s).sum()), 1e-9)
    a = float((s * t).sum()) / size
    b = float((s[:, 0] * t[:, 1] - s[:, 1] * t[:, 0]).sum()) / size
    turn = np.array([[a, -b], [b, a]])
    return np.column_stack([turn, target_mean - turn @ source_mean])


def align(image: np.ndarray, face: Face, *, margin_px: int = 0) -> np.ndarray:
    """`face` aligned to the template: (s, s, 3) uint8 with s = SIZE_PX + 2 * margin_px. If the face has five points
    they are SCRFD's, else dlib's points are used.

    A large face is first shrunk with area averaging, because a single warp would alias. Pixels outside the image repeat
    its edge.
    """
    import cv2

    is_scrfd = face.detector == "scrfd"
    points = face.points if is_scrfd else np.vstack([face.eyes, face.nose])
    target = (TEMPLATE if is_scrfd else DLIB_TEMPLATE) + margin_px
    matrix = similarity_transform(points, target)
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if scale < 0.75:
        image, corner = around(image, points.mean(0), (SIZE_PX + 2 * margin_px) / scale)
        points = points - corner
        height, width = image.shape[:2]
        small = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        ratio = np.array([small[0] / width, small[1] / height])
        matrix = similarity_transform((points + 0.5) * ratio - 0.5, target)
    side = SIZE_PX + 2 * margin_px
    return cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


class ArcFaceMini:
    """The embedded recogniser as a judge. The model is read at the first picture, so making a judge is cheap.

    With `pack` (name, folder), the pack's SCRFD detector finds the face and its landmarks; otherwise dlib does.
    """

    name = NAME
    licence = "Apache-2.0 (this project's own weights; see models/arcface-mini/README.md for what they learned from)"

    def __init__(self, pack: tuple[str, Path] | None = None, *, model: Path = MODEL):
        if not model.is_file():
            raise UserError(f"{model.name} is missing from models/{NAME}. Restore it, or choose another judge.")
        self._model = model
        self._pack = ArcFaceJudge(*pack) if pack else None
        self._session = None
        self._lock = threading.Lock()

    @cached_property
    def weights_sha256(self) -> str:
        return sha256_of([self._model])

    @property
    def detector(self) -> str:
        return "scrfd" if self._pack else "dlib"

    @property
    def calibration(self) -> Calibration | None:
        return calibration.load(self.name, self.weights_sha256, self.detector)

    def _load(self):
        with self._lock:
            if self._session is None:
                self._session = _session(self._model)
            return self._session

    def look(self, image: np.ndarray, faces: Sequence[Face] | None = None) -> Seen:
        """The largest face. `faces`: the result of `detect_faces`, if the caller has it and `detector` is dlib."""
        found = self._face(image, faces)
        if found is None:
            return Seen(None, NO_FACE)
        return self._seen(image, *found)

    def look_at_each(self, image: np.ndarray) -> list[Seen]:
        found = scrfd_faces(self._pack.detection_model(), image) if self._pack else detect_faces(image)
        return [self._seen(image, face, len(found)) for face in found]

    def _seen(self, image: np.ndarray, face: Face, count: int) -> Seen:
        vector = self.embed_face(image, face)
        if not np.isfinite(vector).all():
            return Seen(None, "the recogniser gave no answer for this face")
        return Seen(vector, None, face.height_px, count, face.box)

    def embed_face(self, image: np.ndarray, face: Face) -> np.ndarray:
        """Unit vector (512,) of one face that is already found; NaN if the network gives no finite answer."""
        crop = align(image, face).astype(np.float32).transpose(2, 0, 1)[None] / 255
        # the mean over a face and its mirror image is more stable than either
        vector = self._load().run(None, {"face": np.concatenate([crop, crop[..., ::-1]])})[0].sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return vector.astype(np.float64) / float(np.linalg.norm(vector))

    def _face(self, image: np.ndarray, faces: Sequence[Face] | None) -> tuple[Face, int] | None:
        if self._pack:
            return scrfd_face(self._pack.detection_model(), image)
        found = detect_faces(image) if faces is None else faces
        return (found[0], len(found)) if found else None

    def similarity(self, a: np.ndarray, b: np.ndarray) -> float:
        return float(np.dot(a, b))


def _session(model: Path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0") or 0)
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime and protobuf raise errors of their own types for a damaged file
        raise UserError(
            f"{model.name} is no ONNX model that can be read. Restore it, or choose another judge."
        ) from error
    face, embedding = session.get_inputs(), session.get_outputs()
    shapes = (list(face[0].shape[1:]), list(embedding[0].shape[1:]))
    if (face[0].name, *shapes) != ("face", [3, SIZE_PX, SIZE_PX], [EMBEDDING]):
        raise UserError(
            f"{model.name} takes {shapes[0]} and gives {shapes[1]}, not [3, {SIZE_PX}, {SIZE_PX}] and [{EMBEDDING}]: "
            "it is another model. Restore it, or choose another judge."
        )
    return session
