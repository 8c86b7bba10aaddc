"""A portrait's matte without any download: which pixels are the person; and pictures with another background.

In: an RGB uint8 (H, W, 3) portrait and the face in it. Out: `Matte` (alpha, or why it can't be used), and pictures with
another background. GrabCut starts from the eyes, and a guided filter softens its edge: no neural network. It uses only
colours: strands of hair, and parts with the colour of the background behind them, are lost. Figures and pictures:
docs/finishing.md. Try it: `python -m pipelines finish render.png --background blur --out out.jpg`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pipelines.faces.face import Face

WORK_PX = 256  # side for GrabCut, whose time grows with the area; the guided filter finds the edge at full size
ROUNDS = 4  # iterations of GrabCut; more change nothing on the measured composites
PLAIN = {
    "white": (250, 250, 250),
    "light grey": (214, 217, 221),
    "charcoal": (52, 56, 62),
    "navy": (27, 42, 73),
    "teal": (38, 94, 98),
    "sand": (222, 209, 190),
}
BLUR, STUDIO = "blur", "studio"
BACKGROUNDS = (BLUR, STUDIO, *PLAIN)
UNLIKE = 12.0  # CIE76 difference from which a colour is not one of the wall (the background)
# Limits for a matte of a portrait; outside them GrabCut has usually lost the head or included the wall.
# docs/finishing.md says how often this was right.
AREA = (0.15, 0.88)  # share of the picture that is the person
LEAST_FACE = 0.97  # share of the face that has to be person
LEAST_HAIR = 0.9  # the same of the parts of the head without the wall's colours
LEAST_CLOTHES = 0.75  # the same of the parts below the chin without the wall's colours
LEAST_CORNERS = 0.5  # share of the two upper corners that has to be background
LEAST_CONTRAST = 7.0  # median CIE76 difference across the edge; below it the edge is not reliable


@dataclass(frozen=True)
class Matte:
    alpha: np.ndarray = field(repr=False)  # (H, W) float32: 1 = the person
    area: float  # share of the picture that is the person
    contrast: float  # median CIE76 difference across the edge
    problem: str | None = None  # a sentence: why it can't be used


def matte(image: np.ndarray, face: Face) -> Matte:
    """The matte of the person with this `face` in a portrait, RGB uint8 (H, W, 3)."""
    import cv2

    height, width = image.shape[:2]
    scale = WORK_PX / max(height, width)
    small = cv2.resize(image, (max(8, round(width * scale)), max(8, round(height * scale))), interpolation=_way(scale))
    eyes = face.eyes * scale
    middle, apart = eyes.mean(0), max(4.0, float(np.linalg.norm(eyes[1] - eyes[0])))
    cv2.setRNGSeed(0)  # the same picture always gives the same matte
    seeds = _seeds(small, middle, apart)
    labels = seeds.labels.copy()
    state = np.zeros((1, 65)), np.zeros((1, 65))
    bgr = np.ascontiguousarray(cv2.GaussianBlur(small, (0, 0), 1.0)[:, :, ::-1])
    cv2.grabCut(bgr, labels, (0, 0, 1, 1), *state, ROUNDS, cv2.GC_INIT_WITH_MASK)  # it uses the mask, not the rectangle
    person = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    person = _one_piece(person, middle, apart)
    alpha = _soft(image, person, apart / scale)
    contrast = _edge_contrast(small, person, apart)
    area = float(alpha.mean())
    return Matte(alpha, area, contrast, _problem(person, seeds, area, contrast))


def lab(image: np.ndarray) -> np.ndarray:
    """RGB (H, W, 3) in 0..255 -> CIELAB, float32 (H, W, 3)."""
    import cv2

    return np.asarray(cv2.cvtColor(np.clip(image, 0, 255).astype(np.float32) / 255, cv2.COLOR_RGB2LAB))


def difference(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """CIE76 colour difference per pixel, (H, W)."""
    return np.asarray(np.linalg.norm(lab(before) - lab(after), axis=2))


def face_core(shape: tuple[int, ...], face: Face) -> np.ndarray | None:
    """The middle of a face, (H, W) bool; None if it is outside the picture."""
    eyes, apart = face.eyes.mean(0), face.eye_distance_px
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    inside = ((columns - eyes[0]) / apart) ** 2 + ((rows - eyes[1] - 0.45 * apart) / (1.1 * apart)) ** 2 < 0.8**2
    return inside if inside.any() else None


def _way(scale: float) -> int:
    import cv2

    return int(cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


@dataclass(frozen=True)
class Seeds:
    labels: np.ndarray  # (h, w) GrabCut's labels
    face: np.ndarray  # (h, w) bool: the middle of the face, certainly person
    hair: np.ndarray  # (h, w) bool: parts of the head without the wall's colours
    clothes: np.ndarray  # (h, w) bool: parts below the chin without the wall's colours


def _seeds(image: np.ndarray, middle: np.ndarray, apart: float) -> Seeds:
    """The start for GrabCut: head, neck and shoulders by usual proportions, in eye distances.

    Where a person may be but the colours are those beside the head, the label is "probably background": otherwise
    GrabCut learns the wall between head and shoulders as a colour of the person.
    """
    import cv2

    shape = image.shape[:2]
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    across, down = (columns - middle[0]) / apart, (rows - middle[1]) / apart

    def oval(centre: float, wide: float, high: float) -> np.ndarray:
        return np.asarray((across / wide) ** 2 + ((down - centre) / high) ** 2)

    face = oval(0.5, 0.95, 1.35) < 1
    # neck and below: 0.45 eye distances to each side at the chin, then wider, like narrow shoulders
    body = (down > 1.2) & (np.abs(across) < 0.45 + 1.3 * np.clip(down - 2.05, 0, 1.2))
    head = oval(0.15, 1.75, 2.15) < 1
    shoulders = (down > 1.7) & (np.abs(across) < 1.0 + 2.4 * np.clip((down - 1.7) / 1.1, 0, 1))
    far = (oval(0.15, 2.35, 2.75) > 1) & (down < 1.0)
    edge = (down < 1.0) & ((columns < 2) | (columns > shape[1] - 3) | (rows < 2)) & (oval(0.15, 2.0, 2.5) > 1)
    band = max(3, shape[1] // 20)  # the picture's border above the chin: rarely hair or shoulders
    rim = (down < 0.8) & ((columns < band) | (columns >= shape[1] - band) | (rows < band)) & (far | edge)
    labels = np.full(shape, cv2.GC_PR_BGD, np.uint8)
    unlike = _unlike(image, rim)
    labels[(head | shoulders) & (unlike > UNLIKE)] = cv2.GC_PR_FGD
    labels[far | edge] = cv2.GC_BGD
    # dark clothes before a dark wall: without this GrabCut makes everything except skin and hair background
    labels[face | body | (shoulders & (unlike > 2 * UNLIKE))] = cv2.GC_FGD
    return Seeds(labels, face, head & (unlike > UNLIKE), (shoulders | body) & (unlike > UNLIKE))


def _unlike(image: np.ndarray, wall: np.ndarray) -> np.ndarray:
    """CIE76 difference, (h, w), of each pixel from the nearest of the three main colours of the wall."""
    import cv2

    pixels = lab(image)
    known = pixels[wall]
    if len(known) < 30:
        return np.full(wall.shape, 100.0, np.float32)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 10, 0.5)
    _, which, colours = cv2.kmeans(known, 3, np.empty(0, np.int32), stop, 2, cv2.KMEANS_PP_CENTERS)
    often = np.bincount(which.ravel(), minlength=3) > 0.15 * len(known)  # a rare colour may be hair at the border
    return np.asarray(np.min([np.linalg.norm(pixels - colour, axis=2) for colour in colours[often]], axis=0))


def _one_piece(person: np.ndarray, middle: np.ndarray, apart: float) -> np.ndarray:
    """The connected part with the face, smoothed and with its holes filled."""
    import cv2

    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_odd(apart / 7), _odd(apart / 7)))
    person = cv2.morphologyEx(person, cv2.MORPH_OPEN, kernel)
    person = cv2.morphologyEx(person, cv2.MORPH_CLOSE, kernel)
    count, pieces = cv2.connectedComponents(person)
    at = tuple(int(np.clip(v, 0, side - 1)) for v, side in zip(middle[::-1] + (apart / 2, 0), person.shape))
    whole = (pieces == pieces[at]).astype(np.uint8) if count > 1 and pieces[at] else person
    _, outside = cv2.connectedComponents(np.pad(1 - whole, ((1, 0), (1, 1)), constant_values=1))
    return (outside[1:, 1:-1] != outside[0, 0]).astype(np.uint8)


def _odd(size: float) -> int:
    return max(3, 2 * round(size / 2) + 1)


def _soft(image: np.ndarray, person: np.ndarray, apart_px: float) -> np.ndarray:
    """The binary matte at full size, with its edge moved to the picture's own edges (guided filter, He et al. 2013)."""
    import cv2

    height, width = image.shape[:2]
    hard = cv2.resize(person.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    guide = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    radius = _odd(apart_px / 5)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.blur(values, (radius, radius)))

    middle, level = mean(guide), mean(hard)
    slope = (mean(guide * hard) - middle * level) / (mean(guide * guide) - middle * middle + 1e-3)
    offset = level - slope * middle
    soft = np.clip(mean(slope) * guide + mean(offset), 0, 1)
    soft = np.clip((soft - 0.12) / 0.76, 0, 1)  # nearly 1 becomes 1, so that the face is opaque
    kernel = np.ones((_odd(apart_px / 4), _odd(apart_px / 4)), np.uint8)
    inside, around = cv2.erode(hard, kernel) > 0.99, cv2.dilate(hard, kernel) < 0.01
    return np.where(inside, 1.0, np.where(around, 0.0, soft)).astype(np.float32)


def _edge_contrast(image: np.ndarray, person: np.ndarray, apart: float) -> float:
    """Median CIE76 difference of the colours on the two sides of the edge."""
    import cv2

    pixels = lab(image)
    step = _odd(apart / 6)
    kernel = np.ones((step, step), np.uint8)
    inside = cv2.subtract(person, cv2.erode(person, kernel))
    outside = cv2.subtract(cv2.dilate(person, kernel), person)
    near = (2 * step + 1, 2 * step + 1)

    def colour(mask: np.ndarray) -> np.ndarray:
        weight = cv2.blur(mask.astype(np.float32), near)
        return np.asarray(cv2.blur(pixels * mask[..., None], near) / np.maximum(weight, 1e-4)[..., None])

    edge = (cv2.blur(inside.astype(np.float32), near) > 0.05) & (outside > 0)
    if not edge.any():
        return 0.0
    return float(np.median(np.linalg.norm(colour(inside) - colour(outside), axis=2)[edge]))


def _problem(person: np.ndarray, seeds: Seeds, area: float, contrast: float) -> str | None:
    """A sentence that says why this can't be the matte of a portrait; None if it can."""
    if not AREA[0] <= area <= AREA[1]:
        return f"the outline found covers {area:.0%} of the picture, which no portrait's does"
    if seeds.face.any() and float(person[seeds.face].mean()) < LEAST_FACE:
        return "the outline found cuts into the face"
    if seeds.hair.any() and float(person[seeds.hair].mean()) < LEAST_HAIR:
        return "the outline found cuts off part of the hair"
    if seeds.clothes.any() and float(person[seeds.clothes].mean()) < LEAST_CLOTHES:
        return "the outline found cuts off part of the clothes"
    side = max(2, person.shape[1] // 10)
    corners = np.concatenate([person[:side, :side].ravel(), person[:side, -side:].ravel()])
    if 1 - float(corners.mean()) < LEAST_CORNERS:
        return "the background could not be told from the head: both reach the upper corners"
    if contrast < LEAST_CONTRAST:
        return "hair or clothes and the background have nearly one colour, so the outline would be a guess"
    return None


# ------------------------------------------------------------------------------------------------- backgrounds


def before_another(image: np.ndarray, face: Face | None, background: str) -> np.ndarray | str:
    """The picture with another background (see `replaced`), or a sentence that says why it is unchanged."""
    if face is None:
        return "No face was found, so the person could not be told from the background."
    cut = matte(image, face)
    if cut.problem:
        return f"The background stays as it is: {cut.problem}."
    return replaced(image, cut.alpha, background)


def replaced(image: np.ndarray, alpha: np.ndarray, background: str) -> np.ndarray:
    """The picture with another background, one of `BACKGROUNDS`. RGB uint8 (H, W, 3) in and out; `alpha` (H, W).

    Raises ValueError for a background that is none of them.
    """
    own = image.astype(np.float32)
    person, behind = _unmixed(own, alpha)
    weight = alpha[..., None]
    out = weight * person + (1 - weight) * _drawn(background, image.shape[:2], behind, alpha)
    return np.clip(out + 0.5, 0, 255).astype(np.uint8)


def _unmixed(image: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The colours of the person and of the background, separated where the edge mixes them, so that no border of the
    old background stays (blur fusion, Forte 2021, arXiv:2006.14970).
    """
    import cv2

    weight = alpha[..., None]
    person = behind = image
    for radius in (_odd(max(image.shape) / 12), _odd(max(image.shape) / 85)):
        size = (radius, radius)
        most = cv2.blur(alpha, size)[..., None]
        near_person = cv2.blur(person * weight, size) / np.maximum(most, 1e-3)
        near_behind = cv2.blur(behind * (1 - weight), size) / np.maximum(1 - most, 1e-3)
        rest = image - weight * near_person - (1 - weight) * near_behind
        person, behind = np.clip(near_person + weight * rest, 0, 255), np.clip(near_behind, 0, 255)
    return np.where(weight > 0.999, image, person), behind


def _drawn(background: str, shape: tuple[int, int], behind: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    import cv2

    height, width = shape
    if background == BLUR:
        # blur only background pixels and fill the place of the person with them, so that the head has no halo
        far = (1 - alpha)[..., None] * behind
        sigma = max(height, width) / 28
        weight = cv2.GaussianBlur(1 - alpha, (0, 0), sigma)[..., None]
        return np.asarray(cv2.GaussianBlur(far, (0, 0), sigma) / np.maximum(weight, 1e-3))
    if background == STUDIO:
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        away = np.hypot((columns / width - 0.5) / 0.75, (rows / height - 0.38) / 0.85)
        light = np.clip(1.0 - 0.55 * away**1.6, 0.25, 1.0)[..., None]
        # noise of one level, so that the gradient has no visible bands with 8 bits
        grain = np.random.default_rng(0).uniform(-1, 1, (height, width, 1)).astype(np.float32)
        return np.asarray(light * np.array([196, 200, 206], np.float32) + grain)
    if background not in PLAIN:
        raise ValueError(f"there is no background {background}")
    return np.broadcast_to(np.array(PLAIN[background], np.float32), (height, width, 3))
