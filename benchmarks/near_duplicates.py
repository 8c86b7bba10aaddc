"""Are copies of a photo found as near-duplicates, and photos of two moments of one person not?

In: a folder with one folder of photos per person, no two of one moment. Every photo is compared with all others of its
person; the first `--each` of every person also with copies: mirrored, cropped to 60% around the face, rotated by 10
degrees, with a sticker in a corner, and mirrored and cropped. Out: a table on stdout. No file is written.

    python benchmarks/near_duplicates.py ../shared/data/people --each 5
"""

from __future__ import annotations

import argparse
import sys
from itertools import combinations
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.photos import intake
from pipelines.photos.checks import Recogniser, examine
from pipelines.photos.decode import decode
from pipelines.photos.gather import photo_files
from pipelines.photos.split import NEAR_DUPLICATE_BITS


def crop(image: np.ndarray, share: float, box: tuple[float, float, float, float]) -> np.ndarray:
    height, width = image.shape[:2]
    tall, wide = int(height * share), int(width * share)
    x = int(np.clip((box[0] + box[2] - wide) / 2, 0, width - wide))
    y = int(np.clip((box[1] + box[3] - tall) / 2, 0, height - tall))
    return image[y : y + tall, x : x + wide]


def turn(image: np.ndarray, degrees: float) -> np.ndarray:
    import cv2

    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    return cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)


def sticker(image: np.ndarray) -> np.ndarray:
    import cv2

    out, side = image.copy(), min(image.shape[:2]) // 4
    out[-side:, -side:] = (250, 210, 40)
    cv2.circle(out, (image.shape[1] - side // 2, image.shape[0] - side // 2), side // 3, (200, 30, 60), -1)
    return out


def copies(image: np.ndarray, box: tuple[float, float, float, float]) -> dict[str, np.ndarray]:
    width = image.shape[1]
    mirrored = (width - box[2], box[1], width - box[0], box[3])
    return {
        "mirrored": image[:, ::-1],
        "cropped to 60%": crop(image, 0.6, box),
        "turned by 10 degrees": turn(image, 10),
        "sticker in a corner": sticker(image),
        "mirrored, cropped to 70%": crop(image[:, ::-1], 0.7, mirrored),
    }


def one_moment(first: intake.Measured, second: intake.Measured) -> bool:
    """Whether intake would group two pictures; in the second, the face most similar to the person's is used."""
    if int((first.hash_bits != second.hash_bits).sum()) <= NEAR_DUPLICATE_BITS:
        return True
    if not len(second.patches):
        return False
    who = int(np.argmax(second.examined.vectors @ first.examined.vectors[0]))
    return intake.faces_match(first, 0, second, who)


def measured(image: np.ndarray) -> intake.Measured:
    return intake.measured(image, examine(image, RECOGNISER))


RECOGNISER = Recogniser()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("people", type=Path)
    parser.add_argument("--each", type=int, default=5, help="photos per person of which copies are made (5)")
    asked = parser.parse_args()
    pairs: list[bool] = []
    grouped: dict[str, list[bool]] = {}
    photos = 0
    for folder in sorted(path for path in asked.people.iterdir() if path.is_dir()):
        images = [decode(path) for path in photo_files(folder)]
        found = [(image, one) for image, one in ((i, measured(i)) for i in images) if len(one.patches)]
        photos += len(found)
        pairs += [one_moment(a, b) for (_, a), (_, b) in combinations(found, 2)]
        for image, one in found[: asked.each]:
            for kind, copy in copies(image, one.examined.faces[0].box).items():
                made = measured(np.ascontiguousarray(copy))
                grouped.setdefault(kind, []).append(one_moment(one, made))
        print(f"{folder.name}: {photos} photos so far", file=sys.stderr, flush=True)
    print("| pictures | pairs | one moment |\n|---|---|---|")
    for kind, said in grouped.items():
        print(f"| a photo and a copy, {kind} | {len(said)} | {100 * np.mean(said):.1f}% |")
    print(f"| different photos of one person | {len(pairs)} | {100 * np.mean(pairs):.2f}% |")


if __name__ == "__main__":
    main()
