"""Many pictures from few: every training portrait in other backgrounds, jackets, tones, framings - and with other
faces.

In: `Portraits`. Out: `Variants`: 128x128 frames, the words that are true of each, and dlib's descriptor of each.
Half of the variants carry another portrait's inner face, colour-matched and blended in: it is a new identity with a
measured descriptor, so the text space sees thousands of identities and not 839. Measured words come from
`pipelines.photos.captions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.faces.dlib_faces import dlib_embed
from pipelines.faces.face import Face
from pipelines.photos import captions
from tools.portrait_base import data

PER_PORTRAIT = 10
PHOTO_YEAR = 2011  # the portraits are from about 2007-2015; the CSV has only birth years
AGES = ((45, "young"), (63, "middle aged"), (200, "elderly"))
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (14, 14, 16),
    "grey": (120, 120, 122),
    "white": (236, 236, 236),
    "navy": (26, 34, 70),
    "blue": (85, 135, 200),
    "teal": (30, 125, 125),
    "green": (60, 120, 62),
    "yellow": (226, 206, 90),
    "orange": (215, 120, 50),
    "brown": (96, 66, 46),
    "red": (165, 38, 42),
    "pink": (228, 162, 182),
    "purple": (118, 70, 146),
}
JACKETS = ("black", "grey", "navy", "blue", "brown", "red", "green", "purple", "white")


@dataclass(frozen=True)
class Variants:
    frames: np.ndarray  # (n, 128, 128, 3) uint8
    descriptors: np.ndarray  # (n, 128) float32, dlib, of the frame itself
    source: np.ndarray  # (n,) index of the portrait
    gender: np.ndarray  # (n,) "man" | "woman"
    words: np.ndarray  # (n,) caption parts joined by "|"


def balanced(words: np.ndarray) -> np.ndarray:
    """How often each frame is shown (n,), summing to 1: half by chance, a quarter each so that every background and
    every jacket colour comes up equally often. Official portraits are blue and grey; without this, green and teal
    are never learned.
    """
    chances = np.full(len(words), 0.5 / len(words))
    for kind in (" background", " jacket"):
        named = np.array([next((p for p in str(w).split("|") if p.endswith(kind)), "") for w in words])
        colours, which, counts = np.unique(named, return_inverse=True, return_counts=True)
        chances += 0.25 / len(colours) / counts[which]
    return chances


def matte(frame: np.ndarray) -> np.ndarray:
    """Foreground of one packed crop (PACKED_PX square), 0..1: GrabCut from a head-and-shoulders guess."""
    import cv2

    size = frame.shape[0]
    yy, xx = np.mgrid[:size, :size]
    x, y = xx - data.MARGIN_PX - 64.0, yy - data.MARGIN_PX
    labels = np.full((size, size), cv2.GC_PR_BGD, np.uint8)
    head = (x / 37) ** 2 + ((y - 56) / 50) ** 2 < 1
    body = (y > 102 + (x / 64) ** 2 * 20) & (np.abs(x) < 66)
    labels[head | body] = cv2.GC_PR_FGD
    labels[(x / 20) ** 2 + ((y - 66) / 30) ** 2 < 1] = cv2.GC_FGD
    labels[(y > 122) & (np.abs(x) < 34)] = cv2.GC_FGD
    labels[(y < 90) & (np.abs(x) > 56)] = cv2.GC_BGD
    labels[y < 0] = cv2.GC_BGD
    cv2.setRNGSeed(0)
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    picture = np.ascontiguousarray(frame[..., ::-1])
    cv2.grabCut(picture, labels, (0, 0, 1, 1), background, foreground, 5, cv2.GC_INIT_WITH_MASK)
    solid = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    solid = cv2.morphologyEx(solid, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    return cv2.GaussianBlur(solid.astype(np.float32), (0, 0), 1.1)


def age_word(birth_year: int) -> str | None:
    if birth_year < 1900:
        return None
    return next(word for limit, word in AGES if PHOTO_YEAR - birth_year < limit)


def _swap_face(host: np.ndarray, guest: np.ndarray, amount: float) -> np.ndarray:
    """`guest`'s inner face in `host`'s head, both float frames with the margin, matched in mean and spread of
    colour.
    """
    size = host.shape[0]
    yy, xx = np.mgrid[:size, :size]
    x, y = xx - data.MARGIN_PX - 64.0, yy - data.MARGIN_PX - 72.0
    distance = np.sqrt((x / 29) ** 2 + (y / 37) ** 2)
    mask = np.clip((1.12 - distance) / 0.3, 0, 1)[..., None] * amount
    core = distance < 0.75
    mean_h, std_h = host[core].mean(0), host[core].std(0) + 1e-3
    mean_g, std_g = guest[core].mean(0), guest[core].std(0) + 1e-3
    matched = (guest - mean_g) * np.clip(std_h / std_g, 0.7, 1.4) + mean_h
    return host * (1 - mask) + matched * mask


def _ground(rng: np.random.Generator, size: int, colour: tuple[int, int, int]) -> tuple[np.ndarray, str | None]:
    """A studio backdrop of one colour: plain, darker towards one side, or lit in the middle."""
    base = np.clip(np.array(colour) + rng.normal(0, 7, 3), 0, 255)
    yy, xx = np.mgrid[:size, :size] / size
    kind = rng.choice(["plain", "gradient", "spotlight"], p=[0.5, 0.25, 0.25])
    if kind == "gradient":
        shade = 1.25 - 0.6 * (yy if rng.random() < 0.7 else xx)
    elif kind == "spotlight":
        shade = 1.35 - 1.0 * np.hypot(xx - 0.5, yy - 0.42)
    else:
        shade = np.ones((size, size))
    ground = np.clip(base[None, None] * shade[..., None], 0, 255)
    return ground, None if kind == "plain" else str(kind)


def _dress(frame: np.ndarray, alpha: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Dye a dark jacket: the dark pixels of the foreground below the chin keep their shading."""
    size = frame.shape[0]
    yy, xx = np.mgrid[:size, :size] - data.MARGIN_PX
    chin = ((xx - 64) / 34) ** 2 + ((yy - 80) / 40) ** 2 < 1  # its shadow is dark, but it is skin
    luma = frame.mean(-1)
    chroma = frame.max(-1) - frame.min(-1)
    cloth = (yy > 98) & ~chin & (alpha > 0.5) & (luma < 105) & (chroma < 60)
    if cloth.sum() < 600:
        return frame
    colour = np.array(BACKGROUNDS[str(rng.choice(JACKETS))], np.float64)
    shading = luma / max(float(np.median(luma[cloth])), 8.0)
    import cv2

    soft = cv2.GaussianBlur(cloth.astype(np.float32), (0, 0), 0.8)[..., None]
    dyed = np.clip(colour * np.clip(shading, 0.3, 2.2)[..., None] ** 0.7, 0, 255)
    return frame * (1 - soft) + dyed * soft


def _light(frame: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    frame, draw = np.clip(frame, 0, 255), rng.random()
    if draw < 0.08:
        return frame @ np.array([0.299, 0.587, 0.114])[:, None] @ np.ones((1, 3)), []  # the pixel rule names it
    if draw < 0.14:
        grey = frame @ np.array([0.299, 0.587, 0.114])
        return np.clip(grey[..., None] * np.array([1.08, 0.9, 0.66]) + np.array([14, 6, 0]), 0, 255), ["sepia"]
    if draw < 0.20:
        return np.clip(frame * np.array([1.12, 1.0, 0.78]), 0, 255), ["warm light"]
    if draw < 0.26:
        return np.clip(frame * np.array([0.84, 0.98, 1.16]), 0, 255), ["cool light"]
    if draw < 0.32:
        return 255 * (frame / 255) ** 0.65, ["bright"]
    if draw < 0.38:
        return 255 * (frame / 255) ** 1.55 * 0.92, ["dim"]
    return frame, []


def _describe(frame: np.ndarray) -> np.ndarray:
    """dlib's descriptor of an aligned frame. The box is where HOG finds aligned faces: no search is needed."""
    return dlib_embed(np.ascontiguousarray(frame), _ALIGNED)


_ALIGNED = Face(
    (31, 38, 97, 104), np.zeros((0, 2)), np.array([[49.0, 58.0], [79.0, 58.0]]), np.array([64.0, 78.0]), 1.0
)


def make(portraits: data.Portraits, *, seed: int = 0, per_portrait: int = PER_PORTRAIT) -> Variants:
    """About 12 minutes for 839 portraits on one core, most of it dlib."""
    import cv2

    train = np.flatnonzero(~portraits.held_out)
    frames, descriptors, sources, words = [], [], [], []
    for index in train:
        packed = portraits.pixels[index]
        alpha = matte(packed)
        inside = alpha[data.MARGIN_PX : -data.MARGIN_PX, data.MARGIN_PX : -data.MARGIN_PX]
        sound = 0.28 < inside.mean() < 0.75 and alpha[20, 72] > 0.5
        partners = train[
            (portraits.gender[train] == portraits.gender[index]) & (portraits.grey[train] == portraits.grey[index])
        ]
        partners = partners[partners != index]
        for k in range(per_portrait):
            rng = np.random.default_rng((seed, int(index), k))
            frame = packed.astype(np.float64)
            swapped = k >= per_portrait // 2 and len(partners) > 0
            if swapped:
                guest = portraits.pixels[rng.choice(partners)].astype(np.float64)
                guest = guest[:, ::-1] if rng.random() < 0.5 else guest
                frame = _swap_face(frame, guest, float(rng.uniform(0.75, 1.0)))
            extra: list[str] = []
            if k > 0 and sound and not portraits.grey[index]:
                # long hair on the shoulders would be dyed too
                if portraits.gender[index] == "man" and rng.random() < 0.6:
                    frame = _dress(frame, alpha, rng)
                if rng.random() < 0.6:
                    ground, kind = _ground(rng, len(frame), BACKGROUNDS[str(rng.choice(list(BACKGROUNDS)))])
                    frame = frame * alpha[..., None] + ground * (1 - alpha[..., None])
                    extra += [kind] if kind else []
            if k > 0 and not portraits.grey[index]:
                frame, light = _light(frame, rng)
                extra += light
            close = k > 0 and rng.random() < 0.08
            zoom = float(rng.uniform(1.2, 1.3) if close else rng.uniform(0.97, 1.03))
            extra += ["close up"] if close else []
            turn = float(rng.normal(0, 1.0))
            middle = (data.PACKED_PX - 1) / 2
            matrix = cv2.getRotationMatrix2D((middle, middle - 5), turn, zoom)
            shift = rng.normal(0, 0.6, 2) - data.MARGIN_PX
            matrix[0, 2] += float(shift[0])
            matrix[1, 2] += float(shift[1])
            view = cv2.warpAffine(
                np.clip(frame, 0, 255).astype(np.uint8),
                matrix,
                (128, 128),
                flags=cv2.INTER_CUBIC,
                borderMode=cv2.BORDER_REPLICATE,
            )
            if rng.random() < 0.5:
                view = np.ascontiguousarray(view[:, ::-1])
            seen = captions.measure(view)
            age = age_word(int(portraits.birth_year[index])) if not swapped else None
            parts = [age] if age else []
            parts += [f"{seen.background} background"] if seen.background else []
            parts += [f"{seen.jacket} jacket"] if seen.jacket and not close else []
            parts += ["black and white"] if seen.tone == "black and white" else []
            frames.append(view)
            descriptors.append(_describe(view))
            sources.append(index)
            words.append("|".join([*parts, *extra]))
    source = np.array(sources)
    return Variants(
        np.stack(frames), np.array(descriptors, np.float32), source, portraits.gender[source], np.array(words)
    )


def save(variants: Variants, path: Path) -> None:
    np.savez(path, **vars(variants))


def load(path: Path) -> Variants:
    stored = np.load(path, allow_pickle=False)
    return Variants(*(stored[k] for k in ("frames", "descriptors", "source", "gender", "words")))
