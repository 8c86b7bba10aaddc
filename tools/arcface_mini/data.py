"""Faces for the recogniser: aligned once, packed into one file, augmented when they are used.

In: Labeled Faces in the Wild with its identity-disjoint lists, and the portraits that the embedded base learned from.
Out: `Crops`, all in memory. The pack has no names, only numbers for people.
"""

from __future__ import annotations

import csv
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from pipelines.faces import arcface_mini
from pipelines.faces.dlib_faces import detect_faces, dlib_detect
from pipelines.faces.face import Face, moved

MARGIN_PX = 8  # around the 112-pixel crop, so that shifts and rotations show the photo and not a repeated edge
PACKED_PX = arcface_mini.SIZE_PX + 2 * MARGIN_PX
TRAIN, VALIDATION, PORTRAIT = 0, 1, 2
VALIDATION_SHARE = 8  # every 8th training person is used to choose the threshold and the best step


@dataclass(frozen=True)
class Crops:
    pixels: np.ndarray  # (n, PACKED_PX, PACKED_PX, 3) uint8
    person: np.ndarray  # (n,) int
    part: np.ndarray  # (n,) TRAIN, VALIDATION or PORTRAIT

    def crop(self, index) -> np.ndarray:
        """The 112x112 crop(s) without the margin."""
        return self.pixels[index][..., MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX, :]


def people(lfw: Path, names_file: Path) -> list[list[Path]]:
    names = [line.strip() for line in names_file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [sorted((lfw / name).glob("*.jpg")) for name in names]


def pack(lfw: Path, portraits: Path, out: Path) -> None:
    """Align every training photo by dlib's points and write `out` (5 minutes on one core). No test person is read."""
    blobs, owners, parts = [], [], []
    missed = 0

    def add(path: Path, owner: int, part: int) -> None:
        nonlocal missed
        image = np.array(Image.open(path).convert("RGB"))
        face = _middle_face(image)
        if face is None:
            missed += 1
            return
        crop = arcface_mini.align(image, face, margin_px=MARGIN_PX)
        buffer = io.BytesIO()
        Image.fromarray(crop).save(buffer, "JPEG", quality=97, subsampling=0)
        blobs.append(np.frombuffer(buffer.getvalue(), np.uint8))
        owners.append(owner)
        parts.append(part)

    known = people(lfw, lfw / "train_people.txt")
    for owner, files in enumerate(known):
        for path in files:
            add(path, owner, VALIDATION if owner % VALIDATION_SHARE == 0 else TRAIN)
        if owner % 500 == 499:
            print(f"aligned {owner + 1} of {len(known)} people", file=sys.stderr, flush=True)
    rows = list(csv.DictReader((portraits / "portraits.csv").open()))
    for owner, row in enumerate(rows, start=len(known)):
        add(portraits / row["file"], owner, PORTRAIT)
    print(f"{len(blobs)} faces of {len(set(owners))} people; none found in {missed}", file=sys.stderr, flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        out,
        jpeg=np.concatenate(blobs),
        ends=np.cumsum([len(b) for b in blobs]),
        person=np.array(owners),
        part=np.array(parts),
    )


def _middle_face(image: np.ndarray) -> Face | None:
    """The face nearest to the middle: whom the photo is of. Looks at the middle first, where it nearly always is."""
    height, width = image.shape[:2]
    cut = (height // 6, width // 6)
    inner = np.ascontiguousarray(image[cut[0] : height - cut[0], cut[1] : width - cut[1]])
    found = dlib_detect(inner, upsample=1)
    if found:
        shift = np.array(cut[::-1], np.float64)
        moved = [moved(face, shift) for face in found]
    else:
        moved = detect_faces(image)
    middle = np.array([width / 2, height / 2])
    return min(moved, key=lambda face: float(np.linalg.norm(face.eyes.mean(0) - middle)), default=None)


def load(packed: Path) -> Crops:
    stored = np.load(packed, allow_pickle=False)
    ends = stored["ends"]
    starts = np.concatenate([[0], ends[:-1]])
    raw = stored["jpeg"].tobytes()
    pixels = np.stack([np.array(Image.open(io.BytesIO(raw[a:b])).convert("RGB")) for a, b in zip(starts, ends)])
    return Crops(pixels, stored["person"], stored["part"])


def views(pixels: torch.Tensor, generator: torch.Generator, *, strength: float = 1.0) -> torch.Tensor:
    """Random views of packed crops: (b, 3, PACKED_PX, PACKED_PX) in 0..1 -> (b, 3, 112, 112).

    What a render or a web photo may have gone through: inexact landmarks, mirrored, small and enlarged again (a face
    down to 24 pixels), blurred, noisy, JPEG, other light and colour.
    """
    b, size = len(pixels), arcface_mini.SIZE_PX

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(b, 1, 1, 1, generator=generator) * (high - low) + low

    def chance(p: float) -> torch.Tensor:
        return (torch.rand(b, 1, 1, 1, generator=generator) < p * strength).float()

    angle = uniform(-0.1, 0.1)[:, 0, 0, 0] * strength
    scale = torch.exp(uniform(-0.09, 0.09)[:, 0, 0, 0] * strength)
    shift = (torch.rand(b, 2, generator=generator) - 0.5) * 7.0 * strength
    mirror = (torch.rand(b, generator=generator) < 0.5).float() * -2 + 1
    axis = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    yy, xx = torch.meshgrid(axis, axis, indexing="ij")
    cos, sin = (torch.cos(angle) / scale)[:, None, None], (torch.sin(angle) / scale)[:, None, None]
    x = (cos * xx - sin * yy) * mirror[:, None, None] + shift[:, 0, None, None]
    y = sin * xx + cos * yy + shift[:, 1, None, None]
    grid = torch.stack([x, y], -1) * 2 / PACKED_PX
    view = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)

    small = chance(0.45)
    if small.any():
        # a face is about 0.62 of the crop's side: 24 px of face are 39 px of crop; one size per batch, on some rows
        side = int(torch.randint(39, 100, (1,), generator=generator))
        low = F.interpolate(view, (side, side), mode="bilinear", antialias=True, align_corners=False)
        back = F.interpolate(low, (size, size), mode="bicubic", align_corners=False)
        view = view + small * (back - view)
    soft = F.avg_pool2d(F.pad(view, (1, 1, 1, 1), mode="replicate"), 3, 1)
    view = view + chance(0.3) * uniform(0, 1) * (soft - view)
    luma = view.mean(1, keepdim=True)
    view = luma + (view - luma) * (1 + uniform(-1, 0.5) * chance(0.4))
    view = view * (1 + (torch.rand(b, 3, 1, 1, generator=generator) - 0.5) * 0.3 * chance(0.4))
    middle = view.mean((1, 2, 3), keepdim=True)
    view = middle + (view - middle) * torch.exp(uniform(-0.4, 0.3) * chance(0.4))
    view = view.clamp(0, 1) ** torch.exp(uniform(-0.5, 0.5) * chance(0.4))
    view = view + torch.randn(view.shape, generator=generator) * 0.04 * uniform(0, 1) * chance(0.3)
    return _jpeg(view.clamp(0, 1), chance(0.25)[:, 0, 0, 0].bool(), generator)


def _jpeg(view: torch.Tensor, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    view = view.clone()
    for row in torch.nonzero(rows).flatten().tolist():
        quality = int(torch.randint(20, 80, (1,), generator=generator))
        buffer = io.BytesIO()
        array = (view[row].permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(array).save(buffer, "JPEG", quality=quality)
        view[row] = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).float() / 255
    return view
