"""Augmentation: every training portrait with other backgrounds, jackets, tones, light, framings, media and faces.

In: `Portraits`. Out: `Variants`: 128x128 frames, the words that are true of each, and dlib's descriptor of each.
Exchanged frames have another portrait's inner face, with matched colours and blended in: a new identity with a measured
descriptor, so that the text space learns thousands of identities and not 1,500. Words are from the labels and, for
colours and tone, from `pipelines.photos.captions`; captions have no words for missing labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipelines.photos import captions
from tools.portrait_base import data

# the frames that are made of each portrait, in this order; `real` once unchanged and once mirrored
KINDS = ("real", "real", "changed", "exchanged", "exchanged", "media")
# how often each kind is used in training
SHARES = {"real": 0.45, "changed": 0.18, "exchanged": 0.26, "media": 0.11}
# groups of noun x skin x age are used in proportion to their size to this power: 1 unchanged, 0 all equally often
GROUP_EXPONENT = 0.5
AT_MOST = 6.0  # a portrait of a small group is used at most so many times as often as the mean
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
    noun: np.ndarray  # (n,) "man" | "woman" | "person"
    words: np.ndarray  # (n,) caption parts joined by "|"
    kind: np.ndarray  # (n,) one of KINDS
    chances: np.ndarray  # (n,) how often each is shown, summing to 1


def balanced(portraits: data.Portraits, source: np.ndarray, words: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """How often each frame is used, (n,), with sum 1.

    Nouns equally, groups of skin and age within them by `GROUP_EXPONENT`, kinds by `SHARES`; in three tenths of the
    cases every background and jacket colour equally often. Official portraits are blue and grey; without this, green
    and teal are not learned.
    """
    noun = portraits.noun[source]
    group = np.char.add(portraits.skin[source], portraits.age[source])
    chances = np.ones(len(noun))
    for names, exponent in ((np.char.add(noun, group), GROUP_EXPONENT), (np.where(noun == "woman", "woman", "man"), 0)):
        for name in np.unique(names):
            members = names == name
            chances[members] *= float(members.sum()) ** exponent / chances[members].sum()
    chances = np.minimum(chances, AT_MOST * chances.mean())
    for name in np.unique(kind):
        members = kind == name
        chances[members] *= SHARES[str(name)] / chances[members].sum()
    chances /= chances.sum()
    even = 0.7 * chances
    for ending in (" background", " jacket"):
        named = np.array([next((p for p in str(w).split("|") if p.endswith(ending)), "") for w in words])
        colours = np.unique(named)
        for colour in colours:
            members = named == colour
            even[members] += 0.15 / len(colours) * chances[members] / chances[members].sum()
    return even


def matte(frame: np.ndarray) -> np.ndarray:
    """Foreground of one packed crop (PACKED_PX square), 0..1: GrabCut, started from a usual head and shoulders."""
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


def _exchange(host: np.ndarray, guest: np.ndarray, amount: float) -> np.ndarray:
    """`guest`'s inner face in `host`'s head, with the host's mean and spread of colour; both are float frames with the
    margin.
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


def _skin(packed: np.ndarray) -> np.ndarray:
    """Median CIE Lab colour of the cheeks and the nose of one packed crop."""
    inside = packed[data.MARGIN_PX : -data.MARGIN_PX, data.MARGIN_PX : -data.MARGIN_PX]
    return np.median(captions._lab(inside[64:84, 48:80].reshape(-1, 3)), 0)


def _partners(portraits: data.Portraits, train: np.ndarray, skins: np.ndarray, index: int) -> np.ndarray:
    """Portraits whose inner face may go into this head: the same noun, age and tone, and no different skin, glasses or
    beard.
    """
    fits = train != index
    for name in ("noun", "grey", "age"):
        labels = getattr(portraits, name)
        fits &= labels[train] == labels[index]
    for name in ("skin", "glasses", "beard"):
        labels = getattr(portraits, name)
        fits &= (labels[train] == labels[index]) | (labels[train] == "") | (labels[index] == "")
    lightness = np.abs(skins[train] - skins[index])[:, 0]
    return train[fits & (lightness < 14)]


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
    """Give a dark jacket another colour: dark foreground pixels below the chin, with their shading."""
    size = frame.shape[0]
    yy, xx = np.mgrid[:size, :size] - data.MARGIN_PX
    chin = ((xx - 64) / 34) ** 2 + ((yy - 80) / 40) ** 2 < 1  # its shadow is dark, but is skin
    luma = frame.mean(-1)
    chroma = frame.max(-1) - frame.min(-1)
    cloth = (yy > 98) & ~chin & (alpha > 0.5) & (luma < 105) & (chroma < 60)
    if cloth.sum() < 600:
        return frame
    colour = np.array(BACKGROUNDS[str(rng.choice(JACKETS))], np.float64)
    shading = luma / max(float(np.median(luma[cloth])), 8.0)
    soft = cv2.GaussianBlur(cloth.astype(np.float32), (0, 0), 0.8)[..., None]
    dyed = np.clip(colour * np.clip(shading, 0.3, 2.2)[..., None] ** 0.7, 0, 255)
    return frame * (1 - soft) + dyed * soft


def _light(frame: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """The frame (float, 0-255) with another tone or light, and the words for it."""
    frame, draw = np.clip(frame, 0, 255), rng.random()
    if draw < 0.08:
        return frame @ np.array([0.299, 0.587, 0.114])[:, None] @ np.ones((1, 3)), []  # the pixel rule names it
    if draw < 0.14:
        return _sepia(frame), ["sepia"]
    if draw < 0.20:
        return np.clip(frame * np.array([1.12, 1.0, 0.78]), 0, 255), ["warm light"]
    if draw < 0.26:
        return np.clip(frame * np.array([0.84, 0.98, 1.16]), 0, 255), ["cool light"]
    if draw < 0.32:
        return 255 * (frame / 255) ** 0.65, ["bright"]
    if draw < 0.38:
        return 255 * (frame / 255) ** 1.55 * 0.92, ["dim"]
    if draw < 0.50:  # from one side, as by a window
        yy, xx = np.mgrid[: len(frame), : len(frame)] / len(frame) - 0.5
        angle, strength = rng.uniform(-np.pi, 0), rng.uniform(0.3, 0.7)
        shade = 1 + strength * (np.cos(angle) * xx + np.sin(angle) * 0.6 * yy)
        return np.clip(frame * shade[..., None], 0, 255), []
    if draw < 0.62:  # another camera: gain, contrast, white balance
        gain = np.exp(rng.normal(0, 0.06, 3) + rng.normal(0, 0.12))
        return np.clip((frame - 110) * rng.uniform(0.8, 1.15) + 110, 0, 255) * gain, []
    return frame, []


def _sepia(frame: np.ndarray) -> np.ndarray:
    grey = frame @ np.array([0.299, 0.587, 0.114])
    return np.clip(grey[..., None] * np.array([1.08, 0.9, 0.66]) + np.array([14, 6, 0]), 0, 255)


def _pencil(view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Grey divided by its blurred self (colour dodge), on paper."""
    grey = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)
    lines = cv2.divide(grey, cv2.GaussianBlur(grey, (0, 0), 4.5), scale=245).astype(np.float32)
    shade = 0.75 * lines + 0.25 * np.clip(grey.astype(np.float32) * 0.6 + 110, 0, 255)
    paper = shade + rng.normal(0, 4, shade.shape)
    return np.repeat(paper[..., None], 3, -1)


def _oil(view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every pixel gets the mean colour of the most frequent of 10 brightness levels around it."""
    level = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY).astype(int) * 10 // 256
    image = view.astype(np.float32)
    best, out = np.zeros(level.shape, np.float32), image.copy()
    for k in range(10):
        member = (level == k).astype(np.float32)
        count = cv2.boxFilter(member, -1, (5, 5), normalize=False)
        total = cv2.boxFilter(image * member[..., None], -1, (5, 5), normalize=False)
        more = count > best
        out[more] = (total / np.maximum(count, 1)[..., None])[more]
        best = np.maximum(best, count)
    mean = out.mean(-1, keepdims=True)
    return np.clip(mean + (out - mean) * 1.5, 0, 255) * 1.04


def _watercolour(view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Edge-preserving smoothing, pale, on a paper texture."""
    smooth = cv2.stylization(view, sigma_s=30, sigma_r=0.35).astype(np.float32)
    grain = cv2.GaussianBlur(rng.normal(0, 1, view.shape[:2]).astype(np.float32), (0, 0), 1.2) * 14
    return 255 - (255 - smooth) * 0.72 + grain[..., None]


def _comic(view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flat colours of 5 levels with black lines."""
    flat = view
    for _ in range(3):
        flat = cv2.bilateralFilter(flat, 7, 40, 5)
    hsv = cv2.cvtColor(flat, cv2.COLOR_RGB2HSV).astype(np.float32)
    hsv[..., 2] = np.clip((np.floor(hsv[..., 2] / 51) + 0.6) * 51, 0, 255)
    hsv[..., 1] = np.clip(hsv[..., 1] * 1.5, 0, 255)
    flat = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB).astype(np.float32)
    grey = cv2.medianBlur(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), 3)
    lines = cv2.adaptiveThreshold(grey, 1, cv2.ADAPTIVE_THRESH_GAUSSIAN_C, cv2.THRESH_BINARY, 9, 6)
    return flat * lines[..., None] + 20 * (1 - lines[..., None])


def _pop_art(view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Four brightness levels in four bright colours."""
    grey = cv2.GaussianBlur(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), (0, 0), 0.8)
    levels = np.digitize(grey, np.quantile(grey, [0.25, 0.5, 0.78]))
    hue = rng.uniform(0, 180)
    colours = [(hue, 220, 70), (hue + 40, 230, 190), (hue + 85, 200, 235), (hue + 110, 70, 255)]
    palette = np.array([[(h % 180, s, v) for h, s, v in colours]], np.uint8)
    return cv2.cvtColor(palette, cv2.COLOR_HSV2RGB)[0][levels].astype(np.float32)


def _sepia_film(view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pale and brown, with noise and darker corners."""
    yy, xx = np.mgrid[: len(view), : len(view)] / len(view) - 0.5
    faded = _sepia(view.astype(np.float64)) * 0.8 + 34
    return faded * (1.08 - 0.7 * (xx**2 + yy**2))[..., None] + rng.normal(0, 7, view.shape[:2])[..., None]


# word -> filter of a (128, 128, 3) uint8 frame; gives the same shape in 0..255, before rounding
MEDIA: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "pencil sketch": _pencil,
    "oil painting": _oil,
    "watercolour": _watercolour,
    "comic": _comic,
    "pop art": _pop_art,
    "sepia film": _sepia_film,
}


def _labelled(portraits: data.Portraits, host: int, guest: int) -> list[str]:
    """The words of the labels; `guest` is the portrait of the inner face (the host itself, or another one)."""
    words = [str(portraits.age[host])] if portraits.age[host] == portraits.age[guest] else []
    for name, word in (("glasses", "glasses"), ("beard", "beard")):
        labels = getattr(portraits, name)
        words += [word] if labels[host] == labels[guest] == "1" else []
    words += ["smile"] if portraits.smile[guest] == "1" else []
    hair = str(portraits.hair[host])
    words += [hair if hair == "bald" else f"{hair} hair"] if hair else []
    words += [f"{portraits.skin[host]} skin"] if portraits.skin[host] else []
    return [word for word in words if word]


def _view(frame: np.ndarray, zoom: float, turn: float, shift: np.ndarray) -> np.ndarray:
    """The 128-pixel view of a packed crop, zoomed, rotated (degrees) and shifted (px)."""
    middle = (data.PACKED_PX - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle - 5), turn, zoom)
    matrix[:, 2] += shift - data.MARGIN_PX
    pixels = np.clip(frame, 0, 255).astype(np.uint8)
    return cv2.warpAffine(pixels, matrix, (128, 128), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def make(
    portraits: data.Portraits, completed: data.Portraits, *, seed: int = 0, kinds: tuple[str, ...] = KINDS
) -> Variants:
    """Make all frames: about 13 minutes for 1,527 portraits on one core, most of it for dlib.

    `completed`: the same portraits with estimated labels, which decide who may exchange faces with whom, and how often
    each portrait is used.
    """
    train = np.flatnonzero(~portraits.held_out)
    skins = np.array([_skin(pixels) for pixels in portraits.pixels])
    rows = []
    for index in train:
        packed = portraits.pixels[index]
        colour = portraits.grey[index] == "0"
        alpha = matte(packed)
        inside = alpha[data.MARGIN_PX : -data.MARGIN_PX, data.MARGIN_PX : -data.MARGIN_PX]
        sound = 0.28 < inside.mean() < 0.75 and alpha[20, 72] > 0.5
        tidy = portraits.noun[index] == "man" or portraits.hair[index] in ("short", "bald")
        partners = _partners(completed, train, skins, int(index))
        for k, kind in enumerate(kinds):
            rng = np.random.default_rng((seed, int(index), k))
            frame, guest, extra = packed.astype(np.float64), int(index), []
            if kind == "exchanged" and len(partners):
                guest = int(rng.choice(partners))
                inner = portraits.pixels[guest].astype(np.float64)
                inner = inner[:, ::-1] if rng.random() < 0.5 else inner
                frame = _exchange(frame, inner, float(rng.uniform(0.75, 1.0)))
            new_ground = False
            if kind != "real" and sound and colour:
                # long hair on the shoulders would get the jacket's colour too
                if tidy and rng.random() < 0.5:
                    frame = _dress(frame, alpha, rng)
                new_ground = rng.random() < (0.9 if kind == "changed" else 0.4)
                if new_ground:
                    ground, shape = _ground(rng, len(frame), BACKGROUNDS[str(rng.choice(list(BACKGROUNDS)))])
                    frame = frame * alpha[..., None] + ground * (1 - alpha[..., None])
                    extra += [shape] if shape else []
            if kind in ("changed", "exchanged") and colour:
                frame, light = _light(frame, rng)
                extra += light
            close = kind != "real" and rng.random() < 0.08
            zoom = float(rng.uniform(1.2, 1.3) if close else rng.uniform(0.98, 1.03))
            extra += ["close up"] if close else []
            view = _view(frame, zoom, float(rng.normal(0, 0.8)), rng.normal(0, 0.5, 2))
            if k == 1 or (k > 1 and rng.random() < 0.5):
                view = np.ascontiguousarray(view[:, ::-1])
            seen = captions.measure(view)
            # a room or a street has several colours
            plain = new_ground or portraits.background[index] == "plain"
            words = _labelled(portraits, int(index), guest)
            words += [f"{seen.background} background"] if seen.background and plain else []
            words += [f"{seen.jacket} jacket"] if seen.jacket and not close else []
            words += ["black and white"] if seen.tone == "black and white" else []
            words += extra
            descriptor = data.describe(view)
            if kind == "media":
                medium = str(rng.choice(list(MEDIA)))
                view = np.clip(MEDIA[medium](view, rng), 0, 255).round().astype(np.uint8)
                colourless = medium in ("pencil sketch", "sepia film", "pop art")
                kept = [w for w in words if not (colourless and w.endswith((" background", " jacket", " white")))]
                words = [medium, *kept]
            rows.append((view, descriptor, index, "|".join(words), kind))
    frames, descriptors, source, told, kinds_made = (np.array(column) for column in zip(*rows))
    chances = balanced(completed, source, told, kinds_made)
    nouns = portraits.noun[source]
    return Variants(frames, descriptors.astype(np.float32), source, nouns, told, kinds_made, chances)


def save(variants: Variants, path: Path) -> None:
    np.savez(path, **vars(variants))


def load(path: Path) -> Variants:
    stored = np.load(path, allow_pickle=False)
    return Variants(*(stored[k] for k in ("frames", "descriptors", "source", "noun", "words", "kind", "chances")))
