"""The portraits: aligned once, packed into one file of a few MB, augmented on the fly.

In: a folder with `portraits.csv` (file, gender, birth_year, grey) and its JPEGs. Out: `Portraits`, everything in
memory. The pack holds aligned crops, the CSV's figures and dlib's descriptors - no file names and no names of people.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from pipelines.faces.dlib_faces import dlib_detect, dlib_embed
from pipelines.faces.face import PORTRAIT_EYES_MID, PORTRAIT_SIZE_PX, align_by_eyes

MARGIN_PX = 8  # around the 128-pixel frame, so that shifts and turns show photo and not repeated edge
PACKED_PX = PORTRAIT_SIZE_PX + 2 * MARGIN_PX
HELD_OUT = 40


@dataclass(frozen=True)
class Portraits:
    pixels: np.ndarray  # (n, PACKED_PX, PACKED_PX, 3) uint8
    descriptors: np.ndarray  # (n, 128) float32, dlib
    gender: np.ndarray  # (n,) "man" | "woman"
    birth_year: np.ndarray  # (n,) int
    grey: np.ndarray  # (n,) bool
    held_out: np.ndarray  # (n,) bool; never trained on

    def frame(self, index) -> np.ndarray:
        """The 128x128 frame(s) without the margin."""
        return self.pixels[index][..., MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX, :]


def pack(folder: Path, out: Path) -> None:
    """Align every portrait in `folder` and write the packed cache `out` (about 1.5 minutes for 879)."""
    rows = list(csv.DictReader((folder / "portraits.csv").open()))
    blobs, descriptors, kept = [], [], []
    mid = (PORTRAIT_EYES_MID[0] + MARGIN_PX, PORTRAIT_EYES_MID[1] + MARGIN_PX)
    for row in rows:
        image = np.array(Image.open(folder / row["file"]).convert("RGB"))
        found = dlib_detect(image)
        if not found:
            continue
        crop = align_by_eyes(image, found[0].eyes, size_px=PACKED_PX, midpoint=mid)
        buffer = io.BytesIO()
        Image.fromarray(crop).save(buffer, "JPEG", quality=97, subsampling=0)
        blobs.append(np.frombuffer(buffer.getvalue(), np.uint8))
        descriptors.append(dlib_embed(image, found[0]))
        kept.append(row)
    held = np.zeros(len(kept), bool)
    held[np.random.default_rng(0).permutation(len(kept))[:HELD_OUT]] = True
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        out,
        jpeg=np.concatenate(blobs),
        ends=np.cumsum([len(b) for b in blobs]),
        descriptors=np.array(descriptors, np.float32),
        gender=np.array([r["gender"] for r in kept]),
        birth_year=np.array([int(r["birth_year"] or 0) for r in kept]),
        grey=np.array([r["grey"] == "1" for r in kept]),
        held_out=held,
    )


def load(packed: Path) -> Portraits:
    data = np.load(packed, allow_pickle=False)
    ends = data["ends"]
    starts = np.concatenate([[0], ends[:-1]])
    raw = data["jpeg"].tobytes()
    pixels = np.stack([np.array(Image.open(io.BytesIO(raw[a:b])).convert("RGB")) for a, b in zip(starts, ends)])
    keys = ("descriptors", "gender", "birth_year", "grey", "held_out")
    return Portraits(pixels, *(data[k] for k in keys))


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
    """Strong colour, light and background augmentation, so that photos from outside a studio also survive.

    Backgrounds are replaced outside a soft ellipse around the head and shoulders: the VAE only has to have seen
    such textures, the seam does not matter.
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
