"""How exact is a matte? Measured on composites with a known outline; and how often is a matte refused?

    python benchmarks/matte_composites.py [--portraits FOLDER] [--at-most 40] [--sheet FILE]

In: the synthetic sample person, cut out by colour alone (the wall behind her is blue, she is not); this outline is the
ground truth. She is put before five other walls, and the matte is calculated again. --portraits: a folder of portraits
without ground truth, of which only the refused mattes are counted; --sheet draws them. Out: per wall the overlap (IoU),
the mean error of alpha, seconds, and refusals.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipelines.core.device import machine
from pipelines.faces.dlib_faces import detect_faces
from pipelines.finishing import matte
from pipelines.photos.decode import decode
from pipelines.photos.gather import photo_files

SIDE_PX = 512


def own_outline(image: np.ndarray) -> np.ndarray:
    """Where the picture does not have the colour of its wall, float 0..1 (H, W); not by GrabCut, which is tested."""
    import cv2

    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    rim = max(4, SIDE_PX // 40)
    corners = np.concatenate([lab[: 4 * rim, : 3 * rim].reshape(-1, 3), lab[: 4 * rim, -3 * rim :].reshape(-1, 3)])
    away = np.hypot(lab[..., 1] - np.median(corners[:, 1]), lab[..., 2] - np.median(corners[:, 2]))
    darker = np.abs(lab[..., 0] - np.median(corners[:, 0])) / 2
    hard = ((away + darker) > 9).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))
    hard = cv2.morphologyEx(cv2.morphologyEx(hard, cv2.MORPH_OPEN, kernel), cv2.MORPH_CLOSE, kernel)
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(hard)
    person = (pieces == 1 + int(stats[1:, 4].argmax())).astype(np.uint8) if count > 1 else hard
    holes, outside = cv2.connectedComponents(np.pad(1 - person, ((1, 0), (1, 1)), constant_values=1))
    person = (outside[1:, 1:-1] != outside[0, 0]).astype(np.float32)
    return cv2.GaussianBlur(person, (0, 0), 1.5)


def walls() -> dict[str, np.ndarray]:
    rows, columns = np.mgrid[:SIDE_PX, :SIDE_PX].astype(np.float32)
    rng = np.random.default_rng(0)
    coarse = rng.uniform(60, 200, (6, 6, 3)).astype(np.float32)
    stripes = np.where((columns // 40) % 2, 190.0, 90.0)[..., None] * np.array([0.8, 1.0, 0.9])
    return {
        "plain light": np.full((SIDE_PX, SIDE_PX, 3), 225.0),
        "gradient": np.stack([90 + rows / 8, 130 + rows / 10, 170 + columns / 12], axis=2),
        "blurred room": np.asarray(Image.fromarray(coarse.astype(np.uint8)).resize((SIDE_PX, SIDE_PX), 3), np.float32),
        "stripes": stripes,
        "dark": np.full((SIDE_PX, SIDE_PX, 3), 38.0) + rng.normal(0, 3, (SIDE_PX, SIDE_PX, 1)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--portraits", type=Path)
    parser.add_argument("--at-most", type=int, default=40)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    print(f"{machine()}, {date.today().isoformat()}")
    people = []
    for path in sorted((ROOT / "presets" / "sample_person").glob("*.png")):
        image = np.asarray(Image.open(path).convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC))
        people.append((image, own_outline(image)))
    tiles: list[np.ndarray] = []
    for name, wall in walls().items():
        overlaps, errors, seconds, refused = [], [], [], 0
        for number, (image, truth) in enumerate(people):
            mixed = truth[..., None] * image + (1 - truth[..., None]) * wall
            picture = np.clip(mixed + 0.5, 0, 255).astype(np.uint8)
            found = detect_faces(picture)
            if not found:
                continue
            started = time.perf_counter()
            made = matte.matte(picture, found[0])
            seconds.append(time.perf_counter() - started)
            if made.problem:
                refused += 1
                continue
            person, real = made.alpha > 0.5, truth > 0.5
            overlaps.append(float((person & real).sum() / (person | real).sum()))
            errors.append(float(np.abs(made.alpha - truth).mean()))
            if number == 0:
                tiles.append(_tile(picture, made.alpha))
        said = f"IoU mean {np.mean(overlaps):.3f}, lowest {min(overlaps):.3f}, alpha error {np.mean(errors):.3f}"
        print(f"{name}: {said if overlaps else 'nothing accepted'}; {refused} of {len(seconds)} refused; "
              f"{np.median(seconds):.2f} s each")  # fmt: skip
    if options.portraits:
        files = photo_files(options.portraits)[:: max(1, len(photo_files(options.portraits)) // options.at_most)]
        refusals: list[str] = []
        seen = 0
        for file in files[: options.at_most]:
            image = decode(file)
            found = detect_faces(image)
            if found:
                seen += 1
                made = matte.matte(image, found[0])
                refusals += [made.problem] if made.problem else []
                tiles.append(_tile(image, made.alpha))
        print(f"portraits: {len(refusals)} of {seen} refused")
        for reason in sorted(set(refusals)):
            print(f"  {refusals.count(reason)}: {reason}")
    if options.sheet:
        Image.fromarray(np.concatenate(tiles)).save(options.sheet, quality=85)
    return 0


def _tile(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    parts = [image, np.repeat((alpha * 255).astype(np.uint8)[..., None], 3, 2)]
    parts += [matte.replaced(image, alpha, name) for name in ("studio", "white", "blur")]
    return np.concatenate([np.asarray(Image.fromarray(part).resize((192, 192))) for part in parts], axis=1)


if __name__ == "__main__":
    raise SystemExit(main())
