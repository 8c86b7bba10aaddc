"""ArcFace: InsightFace packs (SCRFD finds faces, ArcFace describes them) on this machine, and their download.

In: RGB uint8 (H, W, 3) pictures and a pack's folder. Out: `ArcFaceJudge`, SCRFD's faces with five landmarks.
Try it: `python -m pipelines score render.png --against photo.jpg --judge buffalo_l`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import threading
import warnings
from functools import cached_property
from pathlib import Path

import numpy as np

from pipelines.core.records import UserError
from pipelines.faces import calibration
from pipelines.faces.calibration import Calibration
from pipelines.faces.face import NO_FACE, Face, Seen, sha256_of

# In order of preference: the first pack that is installed is used. Weights: non-commercial research only, see
# https://github.com/deepinsight/insightface/tree/master/model_zoo.
ARCFACE_PACKS: tuple[str, ...] = ("buffalo_l", "antelopev2", "buffalo_sc")


ARCFACE_DETECT_PX = 256


def pack_root(pack_folder: Path | None = None) -> Path:
    """The folder that holds `models/<pack>/*.onnx`: the argument, else $LIKENESS_FACE_MODELS, else ~/.insightface."""
    return Path(pack_folder or os.environ.get("LIKENESS_FACE_MODELS") or "~/.insightface").expanduser()


def find_pack(name: str, pack_folder: Path | None = None) -> Path | None:
    """Folder of a complete pack (at least a detector and a recogniser), or None. Reads no model."""
    root = pack_root(pack_folder)
    # antelopev2's archive contains a folder of the same name, so its files are one level deeper.
    for folder in (root / "models" / name, root / "models" / name / name, root / name):
        with contextlib.suppress(OSError):
            if len([path for path in folder.glob("*.onnx") if path.stat().st_size > 0]) >= 2:
                return folder
    return None


class ArcFaceJudge:
    """An InsightFace pack: SCRFD finds the face, ArcFace describes it with 512 numbers.

    The models are read at the first picture, so making a judge is cheap.
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
        """Its SCRFD detector, which other code uses for the five landmarks."""
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
            warnings.simplefilter("ignore")  # insightface 2.1 calls a deprecated scikit-image function
            vector = recogniser.get(bgr, face_class(kps=points.astype(np.float32)))
        length = float(np.linalg.norm(vector))
        if not np.isfinite(length) or length == 0.0:
            return Seen(None, "the recogniser gave no answer for this face")
        return Seen(np.asarray(vector, np.float64) / length, None, float(box[3] - box[1]), count, _corners(box))

    def similarity(self, a: np.ndarray, b: np.ndarray) -> float:
        return float(np.dot(a, b))


def _load_pack(name: str, pack: Path, providers: list[str] | None) -> tuple:
    """(detector, recogniser, insightface's Face class) of a pack on this machine."""
    try:
        import onnxruntime

        with contextlib.redirect_stdout(sys.stderr):  # a command's stdout has only its JSON
            from insightface.app import FaceAnalysis
            from insightface.app.common import Face as InsightFace

            if providers is None:
                usable = onnxruntime.get_available_providers()
                providers = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in usable]
            options = onnxruntime.SessionOptions()
            # onnxruntime ignores OMP_NUM_THREADS, and would use every core of a shared machine.
            with contextlib.suppress(ValueError):
                options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
            # With a folder as the name insightface never uses the network.
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
    except AssertionError as error:  # insightface's check that there is a detector
        raise _without("detector", name, pack) from error
    except Exception as error:  # onnxruntime and protobuf raise errors of their own types for a damaged file
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
    """Words for an error message that name the first file of a pack that is no model; None if all are."""
    import onnxruntime

    for path in sorted(pack.glob("*.onnx")):
        try:
            onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception:
            return f"{path.name} is no ONNX model that can be read"
    return None


Points = tuple[np.ndarray, np.ndarray]  # a face's box and its five landmarks, in image pixels


def _largest(detector, bgr: np.ndarray) -> tuple[np.ndarray, np.ndarray, int] | None:
    """(box, 5 points, number of faces) of the largest face in a BGR image (H, W, 3), or None.

    SCRFD is run at 256 px with a border: at its usual 640 px it misses faces that fill the picture.
    """
    found = _found(detector, bgr)
    return (*_closer(detector, bgr, *found[0]), len(found)) if found else None


def _every(detector, bgr: np.ndarray) -> list[Points]:
    """Every face, largest first: those found at 256 px (see `_largest`), and small ones, found only at 640 px."""
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
    """Find a small face again in a crop around it, so that its landmarks are as exact as in a portrait. If the crop has
    several faces, take the one nearest to its middle.
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
    """Faces that SCRFD finds in the image, scaled to `side_px` and with a border of `margin`, largest first."""
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
    """Download an InsightFace pack (buffalo_l: 280 MB) and return its folder. Call it only after the person agreed.

    It is unpacked in a temporary folder and then moved, so that a broken download never looks like a pack. An empty
    folder of an earlier failure is replaced. Raises UserError when the network or the disk fails.
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
    except Exception as error:  # requests, urllib3, zipfile and the disk raise errors of different types
        raise UserError(
            f"The face pack {name} could not be downloaded ({type(error).__name__}): the server did not answer or the "
            f"disk is full. Try again with a network, or put the pack's .onnx files into {target}. "
            "Until then the embedded arcface-mini and dlib judge."
        ) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
