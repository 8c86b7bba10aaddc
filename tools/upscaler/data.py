"""The portraits in their full detail, the same decoded by the embedded base's autoencoder, and pictures that it draws.

In: a folder with `portraits.csv` and its JPEGs. Out: `Portraits`, all in memory, and pairs of a degraded small crop and
the original large one. Its files contain faces and stay in the work folder.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from pipelines.faces.dlib_faces import dlib_detect
from pipelines.faces.face import PORTRAIT_EYES_APART_PX, PORTRAIT_EYES_MID, PORTRAIT_SIZE_PX, align_by_eyes

# The portraits are 225 pixels wide, eyes about 53 px apart: in the base's framing (30 of 128) a side has 226 pixels.
LARGE_PX, SMALL_PX = 226, 113
HELD_OUT = 40
SAMPLES, HELD_OUT_SAMPLES = 320, 80


@dataclass(frozen=True)
class Portraits:
    large: np.ndarray  # (n, LARGE_PX, LARGE_PX, 3) uint8: the photos
    rebuilt: np.ndarray  # (n, 128, 128, 3) uint8: the same photos through the base's autoencoder
    held_out: np.ndarray  # (n,) bool; never trained on


def pack(folder: Path, out: Path) -> None:
    """Frame every portrait in `folder` by its eyes and rebuild it with the base's autoencoder (some 3 minutes)."""
    rows = list(csv.DictReader((folder / "portraits.csv").open()))
    scale = LARGE_PX / PORTRAIT_SIZE_PX
    mid = (PORTRAIT_EYES_MID[0] * scale, PORTRAIT_EYES_MID[1] * scale)
    frames = []
    for row in rows:
        image = np.array(Image.open(folder / row["file"]).convert("RGB"))
        found = dlib_detect(image)
        if found:
            apart = PORTRAIT_EYES_APART_PX * scale
            frames.append(align_by_eyes(image, found[0].eyes, size_px=LARGE_PX, midpoint=mid, apart_px=apart))
    # the same random choice as in tools/portrait_base/data.py, so that the same portraits are held out
    held = np.zeros(len(frames), bool)
    held[np.random.default_rng(0).permutation(len(frames))[:HELD_OUT]] = True
    large = np.stack(frames)
    save(out, large=large, rebuilt=rebuild(large), held_out=held)


def rebuild(large: np.ndarray) -> np.ndarray:
    """Photos (n, h, w, 3), encoded and decoded by the embedded base's autoencoder: (n, 128, 128, 3) uint8."""
    from diffusers import AutoencoderKL

    from pipelines.bases.registry import EMBEDDED
    from tools.portrait_base.autoencoder import rebuild

    vae = AutoencoderKL.from_pretrained(EMBEDDED / "portrait-128", subfolder="vae").float().eval()
    return rebuild(vae, np.stack([resized(one, PORTRAIT_SIZE_PX) for one in large]))


def resized(image: np.ndarray, size_px: int, kernel: Image.Resampling = Image.Resampling.LANCZOS) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size_px, size_px), kernel))


def save(path: Path, **arrays: np.ndarray) -> None:
    """Save arrays: pictures (4 axes) as JPEGs of quality 97 with full colour, others unchanged."""
    packed: dict[str, np.ndarray] = {}
    for name, value in arrays.items():
        if value.ndim != 4:
            packed[name] = value
            continue
        blobs = []
        for one in value:
            buffer = io.BytesIO()
            Image.fromarray(one).save(buffer, "JPEG", quality=97, subsampling=0)
            blobs.append(np.frombuffer(buffer.getvalue(), np.uint8))
        packed[f"{name}.jpeg"], packed[f"{name}.ends"] = np.concatenate(blobs), np.cumsum([len(b) for b in blobs])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.part.npz")
    np.savez(partial, **packed)  # type: ignore[arg-type]  # numpy's stub takes the first keyword for allow_pickle
    partial.replace(path)


def read(path: Path) -> dict[str, np.ndarray]:
    held = np.load(path, allow_pickle=False)
    out = {}
    for key in held.files:
        if key.endswith(".jpeg"):
            name, raw, ends = key[:-5], held[key].tobytes(), held[f"{key[:-5]}.ends"]
            starts = np.concatenate([[0], ends[:-1]])
            pictures = [np.array(Image.open(io.BytesIO(raw[a:b])).convert("RGB")) for a, b in zip(starts, ends)]
            out[name] = np.stack(pictures)
        elif not key.endswith(".ends"):
            out[key] = held[key]
    return out


def load(path: Path) -> Portraits:
    return Portraits(**read(path))


def draw(out: Path, *, count: int = SAMPLES + HELD_OUT_SAMPLES, steps: int = 12) -> None:
    """Draw `count` pictures with the untrained embedded base (about a second each), for the critic."""
    from pipelines.bases.loading import load_family
    from pipelines.bases.registry import find_base
    from pipelines.bases.sampling import Row, sample
    from tools.portrait_base.evaluate import asked_prompts

    family = load_family(find_base("portrait-128"))
    rng = np.random.default_rng(1)
    asked = [
        Row(prompt, seed=50_000 + k, guidance=float(rng.choice([1.5, 3.0, 5.0])))
        for k, (prompt, *_) in enumerate(asked_prompts(count, seed=7))
    ]
    frames = []
    for start in range(0, count, 8):
        part = sample(family, family.shared(), asked[start : start + 8], steps=steps)
        assert part is not None
        frames.append(part)
        print(f"drawn {start + len(part)} of {count}", flush=True)
    save(out, frames=np.concatenate(frames))


def tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 (n, h, w, 3) -> float 0..1 (n, 3, h, w)."""
    return torch.tensor(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255


# ------------------------------------------------------------------------------------------------ spoiled pictures

KERNELS = (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BOX, Image.Resampling.HAMMING)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0 if quality > 90 else 2)
    return np.array(Image.open(buffer))


def blurred(image: np.ndarray, sigma_px: float) -> np.ndarray:
    import cv2

    return cv2.GaussianBlur(image, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT_101)


def spoiled(large: np.ndarray, rebuilt: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A degraded small picture (SMALL_PX square, uint8) of a photo, like a drawing or an upload.

    Four in ten are from the base's autoencoder; a quarter are only shrunk, so that clean pictures are learned too.
    """
    kernel = KERNELS[rng.integers(len(KERNELS))]
    kind = rng.random()
    if kind < 0.4:
        small = resized(rebuilt, SMALL_PX, kernel)
        rough = rng.random() < 0.4
    elif kind < 0.65:
        return resized(large, SMALL_PX, kernel)
    else:
        sigma = float(rng.uniform(0.2, 1.8)) if rng.random() < 0.7 else 0.0  # in pixels of the large picture
        small = resized(blurred(large, sigma) if sigma else large, SMALL_PX, kernel)
        rough = True
    if rough and rng.random() < 0.5:
        level = rng.uniform(0.5, 5.0)
        grain = rng.normal(0, level, small.shape[:2] + (3 if rng.random() < 0.6 else 1,))
        small = np.clip(small + grain, 0, 255).round().astype(np.uint8)
    if rough and rng.random() < 0.5:
        small = jpeg(small, int(rng.integers(60, 97)))
    return small


def hue_turn(angle: float) -> np.ndarray:
    """Hue: a rotation around the grey axis of RGB, as a matrix (3, 3) for row vectors."""
    axis = np.full(3, 1 / math.sqrt(3))
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turn = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    return turn.T.astype(np.float32)  # type: ignore[no-any-return]


def recoloured(images: tuple[np.ndarray, ...], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """All images with the same random hue and saturation: prompts ask for colours that studio portraits do not have."""
    turn, saturation = hue_turn(float(rng.uniform(0, 2 * math.pi))), float(rng.uniform(0.5, 2.0))
    out = []
    for image in images:
        grey = image.mean(2, keepdims=True, dtype=np.float32)
        coloured = grey + (image - grey) @ turn * saturation
        out.append(np.clip(coloured, 0, 255).round().astype(np.uint8))
    return tuple(out)


def pairs(
    portraits: Portraits, chosen: np.ndarray, rng: np.random.Generator, *, crop_px: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Degraded small crops (b, 3, crop, crop) and the original large ones (b, 3, 2 crop, 2 crop), both in 0..1.

    `crop_px` None gives whole frames. Half are mirrored at random, a third have other colours.
    """
    small, large = [], []
    for k in chosen:
        true = portraits.large[k]
        low = spoiled(true, portraits.rebuilt[k], rng)
        if crop_px is not None:
            # two thirds of the crops are on the face, which matters most
            face = rng.random() < 0.67
            x, y = (
                int(rng.integers(a, max(a + 1, b - crop_px + 1)))
                for a, b in (((22, 92), (16, 104)) if face else ((0, SMALL_PX),) * 2)
            )
            x, y = min(x, SMALL_PX - crop_px), min(y, SMALL_PX - crop_px)
            low = low[y : y + crop_px, x : x + crop_px]
            true = true[2 * y : 2 * (y + crop_px), 2 * x : 2 * (x + crop_px)]
        if rng.random() < 0.35:
            low, true = recoloured((low, true), rng)
        if rng.random() < 0.5:
            low, true = low[:, ::-1], true[:, ::-1]
        small.append(low)
        large.append(true)
    return tensor(np.stack(small)), tensor(np.stack(large))


def luminance(x: torch.Tensor) -> torch.Tensor:
    red, green, blue = x.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def gradient_energy(x: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of neighbouring pixels' luminance, per picture (b,): a measure of sharpness."""
    y = luminance(x)
    return (y.diff(dim=3) ** 2).mean((1, 2, 3)) + (y.diff(dim=2) ** 2).mean((1, 2, 3))


def bicubic(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False).clamp(0, 1)


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """dB per picture (b,)."""
    return torch.tensor([10 * math.log10(1 / max(float(e), 1e-9)) for e in ((a - b) ** 2).mean((1, 2, 3))])
