"""Whether a mouth is closed or open (visible teeth count as open). No other expression is measured.

In: an upright RGB uint8 (H, W, 3) picture and a face in it. Out: "open", "closed", or None where `models/mouth` is not
sure. Made by `tools/build_mouth.py`; its card says how often it is right.
Try it: `python -m pipelines check PHOTO_DIR`; the checklist says which of the two is missing in a set.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache

import numpy as np

from pipelines.core.files import REPOSITORY
from pipelines.faces.face import Face, align_by_eyes

FOLDER = REPOSITORY / "models" / "mouth"
MODEL, CARD = FOLDER / "mouth.onnx", FOLDER / "evaluation.json"
# The lower half of the face: a square of 64 px, with 32 px between the eyes, which are just above its upper edge.
SIZE_PX, EYES_APART_PX, EYES_MID = 64, 32.0, (32.0, -5.0)


def crop(image: np.ndarray, face: Face) -> np.ndarray:
    """The lower half of a face, (64, 64, 3) uint8."""
    return align_by_eyes(image, face.eyes, size_px=SIZE_PX, midpoint=EYES_MID, apart_px=EYES_APART_PX)


def read(image: np.ndarray, face: Face) -> str | None:
    """ "open" | "closed" | None: not sure, or onnxruntime or the model is missing. `image`: RGB uint8 (H, W, 3)."""
    loaded = _session()
    if loaded is None:
        return None
    session, margins = loaded
    picture = crop(image, face).astype(np.float32).transpose(2, 0, 1)[None] / 255
    # the mean over a mouth and its mirror image is more stable than either
    logit = float(session.run(None, {"mouth": np.concatenate([picture, picture[..., ::-1]])})[0].mean())
    return word(logit, margins)


def word(logit: float, margins: dict[str, float]) -> str | None:
    """The word for a log-odds; None between -margins["closed"] and margins["open"], and for NaN."""
    if logit >= margins["open"]:
        return "open"
    return "closed" if logit <= -margins["closed"] else None


@lru_cache(maxsize=1)
def _session():
    """(the network, its margins), or None."""
    try:
        import onnxruntime
    except ImportError:
        return None
    if not (MODEL.is_file() and CARD.is_file()):
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0") or 0)
    session = onnxruntime.InferenceSession(str(MODEL), options, providers=["CPUExecutionProvider"])
    return session, json.loads(CARD.read_text(encoding="utf-8"))["margins"]
