"""The portraits: aligned once, packed into one file of about 20 MB, augmented when they are used.

In: folders with a table and its JPEGs: `portraits.csv` (file, gender, birth_year, grey; photos as they were taken) or
`portraits2.csv` (labels by eye; photos aligned at 216 px). Out: `Portraits`, all in memory. The pack has aligned crops,
labels and dlib's descriptors, but no file names and no names of people.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from pipelines.faces.dlib_faces import dlib_detect, dlib_embed
from pipelines.faces.face import PORTRAIT_EYES_MID, PORTRAIT_SIZE_PX, Face, align_by_eyes

MARGIN_PX = 8  # around the 128-pixel frame, so that shifts and rotations show the photo and not a repeated edge
PACKED_PX = PORTRAIT_SIZE_PX + 2 * MARGIN_PX
HELD_OUT = 40
PHOTO_YEAR = 2011  # the official portraits are from about 2007-2015; their table has only birth years
AGES = ((45, "young"), (63, "middle aged"), (200, "elderly"))
LABELS = ("noun", "age", "skin", "glasses", "beard", "smile", "hair", "grey", "background", "source")


@dataclass(frozen=True)
class Portraits:
    """One row per portrait. Labels are strings, empty if unknown."""

    pixels: np.ndarray  # (n, PACKED_PX, PACKED_PX, 3) uint8
    descriptors: np.ndarray  # (n, 128) float32, dlib
    held_out: np.ndarray  # (n,) bool; never trained on
    noun: np.ndarray  # "man" | "woman" | "person"
    age: np.ndarray  # "young" | "middle aged" | "elderly"
    skin: np.ndarray  # "light" | "medium" | "dark"
    glasses: np.ndarray  # "1" | "0"
    beard: np.ndarray
    smile: np.ndarray
    hair: np.ndarray  # "short" | "long" | "bald" | "covered"
    grey: np.ndarray  # "1" | "0"; a black-and-white photo
    background: np.ndarray  # "plain" | "scene"
    source: np.ndarray  # the collection it is from

    def frame(self, index) -> np.ndarray:
        """The 128x128 frame(s) without the margin."""
        return self.pixels[index][..., MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX, :]

    def of(self, index) -> Portraits:
        """Some of the rows."""
        return Portraits(*(getattr(self, field.name)[index] for field in fields(self)))


def age_word(birth_year: int) -> str:
    """The age word of a person in an official portrait; empty if the year is unknown."""
    if birth_year < 1900:
        return ""
    return next(word for limit, word in AGES if PHOTO_YEAR - birth_year < limit)


def _official(folder: Path) -> list[tuple[np.ndarray, np.ndarray, dict[str, str]]]:
    """(packed crop, descriptor, labels) of every photo of `portraits.csv` in which dlib finds a face."""
    rows, found = list(csv.DictReader((folder / "portraits.csv").open())), []
    mid = (PORTRAIT_EYES_MID[0] + MARGIN_PX, PORTRAIT_EYES_MID[1] + MARGIN_PX)
    for row in rows:
        image = np.array(Image.open(folder / row["file"]).convert("RGB"))
        if seen := dlib_detect(image):
            crop = align_by_eyes(image, seen[0].eyes, size_px=PACKED_PX, midpoint=mid)
            labels = {
                "noun": row["gender"],
                "age": age_word(int(row["birth_year"] or 0)),
                "grey": row["grey"],
                "background": "plain",
                "source": "congress",
            }
            found.append((crop, dlib_embed(image, seen[0]), labels))
    return found


def _labelled(folder: Path) -> list[tuple[np.ndarray, np.ndarray, dict[str, str]]]:
    """The same of the `train` rows of `portraits2.csv`, whose photos are aligned: 216 px are PACKED_PX."""
    found = []
    for row in csv.DictReader((folder / "portraits2.csv").open()):
        if row["split"] == "train":
            image = Image.open(folder / row["file"]).convert("RGB")
            crop = np.array(image.resize((PACKED_PX, PACKED_PX), Image.Resampling.LANCZOS))
            seen = dlib_detect(np.array(image))
            descriptor = dlib_embed(np.array(image), seen[0]) if seen else describe(crop[8:-8, 8:-8])
            found.append((crop, descriptor, row))
    return found


def pack(folders: list[Path], out: Path) -> None:
    """Align every portrait of `folders` and write the packed cache `out` (about 3 minutes for 1,567)."""
    kept = []
    for folder in folders:
        kept += _official(folder) if (folder / "portraits.csv").is_file() else _labelled(folder)
    official = [k for k, (_, _, labels) in enumerate(kept) if labels["source"] == "congress"]
    held = np.zeros(len(kept), bool)
    held[np.array(official)[np.random.default_rng(0).permutation(len(official))[:HELD_OUT]]] = True
    blobs = []
    for crop, _, _ in kept:
        buffer = io.BytesIO()
        Image.fromarray(crop).save(buffer, "JPEG", quality=97, subsampling=0)
        blobs.append(np.frombuffer(buffer.getvalue(), np.uint8))
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        out,
        jpeg=np.concatenate(blobs),
        ends=np.cumsum([len(b) for b in blobs]),
        descriptors=np.array([d for _, d, _ in kept], np.float32),
        held_out=held,
        **{name: np.array([labels.get(name, "") for _, _, labels in kept]) for name in LABELS},  # type: ignore[arg-type]
    )


def load(packed: Path) -> Portraits:
    data = np.load(packed, allow_pickle=False)
    ends = data["ends"]
    starts = np.concatenate([[0], ends[:-1]])
    raw = data["jpeg"].tobytes()
    pixels = np.stack([np.array(Image.open(io.BytesIO(raw[a:b])).convert("RGB")) for a, b in zip(starts, ends)])
    return Portraits(pixels, data["descriptors"], data["held_out"], *(data[name] for name in LABELS))


_ALIGNED = Face(
    (31, 38, 97, 104), np.zeros((0, 2)), np.array([[49.0, 58.0], [79.0, 58.0]]), np.array([64.0, 78.0]), 1.0
)


def describe(frame: np.ndarray) -> np.ndarray:
    """dlib's descriptor (128,) of an aligned 128-pixel frame. The box is fixed: where HOG finds aligned faces."""
    return dlib_embed(np.ascontiguousarray(frame), _ALIGNED)


def sample_views(
    pixels: torch.Tensor,
    size_px: int,
    generator: torch.Generator,
    *,
    zoom: tuple[float, float],
    turn: float,
    shift_px: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random similarity views. `pixels` (b, 3, PACKED_PX, PACKED_PX) in 0..1 -> (b, 3, size, size) and the frame
    coordinates (b, size, size, 2) in pixels of the 128 frame that each view pixel shows.

    `zoom` is output pixels per frame pixel (drawn log-uniformly), `turn` the largest rotation in radians.
    """
    b = len(pixels)

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(b, generator=generator) * (high - low) + low

    scale = torch.exp(uniform(float(np.log(zoom[0])), float(np.log(zoom[1]))))
    angle, flip = uniform(-turn, turn), (torch.rand(b, generator=generator) < 0.5).float() * -2 + 1
    centre = torch.stack([uniform(-shift_px, shift_px), uniform(-shift_px, shift_px)], -1) + 63.5
    axis = torch.arange(size_px, dtype=torch.float32) - (size_px - 1) / 2
    yy, xx = torch.meshgrid(axis, axis, indexing="ij")
    cos, sin = (torch.cos(angle) / scale)[:, None, None], (torch.sin(angle) / scale)[:, None, None]
    x = (cos * xx - sin * yy) * flip[:, None, None] + centre[:, 0, None, None]
    y = sin * xx + cos * yy + centre[:, 1, None, None]
    where = torch.stack([x, y], -1)
    grid = (where + MARGIN_PX + 0.5) / PACKED_PX * 2 - 1
    view = F.grid_sample(pixels, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return view.clamp(0, 1), where


def _low_frequency(b: int, channels: int, size: int, cells: int, generator: torch.Generator) -> torch.Tensor:
    noise = torch.rand(b, channels, cells, cells, generator=generator)
    return F.interpolate(noise, (size, size), mode="bicubic", align_corners=True).clamp(0, 1)


def recolour(view: torch.Tensor, where: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Strong augmentation of colour, light and background, so that the autoencoder also works for other photos.

    Backgrounds are replaced outside a soft ellipse around head and shoulders: the VAE only has to see such textures, so
    the visible edge does not matter.
    """
    b, _, size, _ = view.shape

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(b, 1, 1, 1, generator=generator) * (high - low) + low

    def chance(p: float) -> torch.Tensor:
        return (torch.rand(b, 1, 1, 1, generator=generator) < p).float()

    # background: plain colour + blobs of several sizes + stripes
    blobs = torch.stack([_low_frequency(b, 3, size, c, generator) for c in (3, 8, 20)]).mean(0)
    colour = torch.rand(b, 3, 1, 1, generator=generator)
    stripes = torch.sin(where[..., 0] * uniform(0.1, 1.2)[:, 0] + where[..., 1] * uniform(-1, 1)[:, 0])
    busy = uniform(0, 1.5)
    ground = (colour + busy * (blobs - 0.5) + chance(0.3) * 0.3 * stripes[:, None].sign()).clamp(0, 1)
    head = ((where[..., 0] - 63.5) / 34) ** 2 + ((where[..., 1] - 62) / 46) ** 2
    body = ((where[..., 0] - 63.5) / 62) ** 2 + ((where[..., 1] - 132) / 30) ** 2
    mask = torch.sigmoid(8 * (1 - torch.minimum(head, body)))[:, None] * chance(0.5)
    mask = torch.where(mask.amax((1, 2, 3), keepdim=True) > 0, mask, torch.ones_like(mask))
    view = view * mask + ground * (1 - mask)
    # light: gradient, gain per channel, gamma, contrast, saturation, hue by mixing channels
    light = 1 + chance(0.4) * (_low_frequency(b, 1, size, 3, generator) - 0.5) * uniform(0, 1.4)
    view = (view * light).clamp(0, 1) ** torch.exp(uniform(-0.5, 0.5) * chance(0.6))
    gain = 1 + (torch.rand(b, 3, 1, 1, generator=generator) - 0.5) * 0.5 * chance(0.6)
    view = view * gain * torch.exp(uniform(-0.35, 0.35) * chance(0.6))
    luma = view.mean(1, keepdim=True)
    view = luma + (view - luma) * (1 + uniform(-1, 0.9) * chance(0.5))
    swap = torch.argsort(torch.rand(b, 3, generator=generator), 1)
    swapped = torch.gather(view, 1, swap[:, :, None, None].expand_as(view))
    view = torch.where(chance(0.06) > 0, swapped, view)
    view = view + torch.randn(view.shape, generator=generator) * 0.03 * uniform(0, 1) * chance(0.25)
    return view.clamp(0, 1)
