"""Split: find near-duplicates (photos of one moment), and divide photos into training, validation and held-out part.

In: perceptual hashes and face patches; groups of photos. Out: groups of near-duplicates; a `PhotoSet`. Photos of one
moment always go to the same part.
Try it: `split_sizes(10)` is (6, 1, 3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

import numpy as np

from pipelines.core.records import Photo, PhotoSet, UserError
from pipelines.faces.face import PORTRAIT_EYES_APART_PX, PORTRAIT_EYES_MID, PORTRAIT_SIZE_PX, align_by_eyes

# Photos are near-duplicates (of one moment) when the 64-bit perceptual hashes of the pictures differ in at most 4 bits,
# or when the person's faces match. Faces match when the recogniser's cosine is high (this also finds copies with a part
# covered), or when their registered patches correlate and the cosine is at least ALIKE_COSINE. Patches alone are not
# enough: smooth drawn faces in one framing correlate up to 0.957, but have a cosine of 0.55 at most; of 280 copies all
# but one reach 0.6. Measured on 157 photos of 13 people and on the sample person by `benchmarks/near_duplicates.py`:
# two moments of one person stay below these limits, copies are above. A near-duplicate that is not found could be
# trained on and also held out for the score.
NEAR_DUPLICATE_BITS = 4
NEAR_DUPLICATE_CORRELATION = 0.95
NEAR_DUPLICATE_COSINE = 0.95
ALIKE_COSINE = 0.6
PATCH_PX, PATCH_BLUR_PX = 64, 1.5
WORTH_REGISTERING = 0.4  # copies correlate at least so much before they are registered; other patches are skipped
SHARED_PX = 400  # two patches that share fewer pixels are not compared


def perceptual_hash(image: np.ndarray) -> np.ndarray:
    """64 bits, (64,) bool, that hardly change with scaling, recompression and small changes of brightness.

    Whether each of the 8x8 lowest frequencies of a 32x32 grey copy is above their median (DCT "pHash", Zauner 2010).
    `image`: RGB uint8 (H, W, 3).
    """
    import cv2

    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:8, :8].reshape(-1)
    return low > np.median(low[1:])


def face_patch(image: np.ndarray, eyes: np.ndarray) -> np.ndarray:
    """A face with its eyes on fixed points, in grey and slightly blurred: (64, 64) float32, NaN outside the picture.

    `image` is RGB uint8 (H, W, 3), `eyes` (2, 2) pixels (x, y), the one on the left of the picture first.
    """
    import cv2

    side = PORTRAIT_SIZE_PX
    grey = cv2.cvtColor(align_by_eyes(image, eyes), cv2.COLOR_RGB2GRAY)
    patch = cv2.resize(
        cv2.GaussianBlur(grey, (0, 0), PATCH_BLUR_PX), (PATCH_PX, PATCH_PX), interpolation=cv2.INTER_AREA
    )
    across = (eyes[1] - eyes[0]) / PORTRAIT_EYES_APART_PX
    y, x = (np.mgrid[:PATCH_PX, :PATCH_PX] + 0.5) * (side / PATCH_PX) - 0.5
    right, down = x - PORTRAIT_EYES_MID[0], y - PORTRAIT_EYES_MID[1]
    at_x = eyes[:, 0].mean() + right * across[0] - down * across[1]
    at_y = eyes[:, 1].mean() + right * across[1] + down * across[0]
    edge = 2 * float(np.hypot(*across)) + 1  # width of the border that is blurred with pixels outside the picture
    height, width = image.shape[:2]
    inside = (at_x >= edge) & (at_x < width - edge) & (at_y >= edge) & (at_y < height - edge)
    return np.where(inside, patch.astype(np.float32), np.float32(np.nan))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of two face patches (64, 64) where both have pixels, -1 to 1: the higher of `other` and its mirror.

    `other` is registered on `one` (ECC, affine; Evangelidis and Psarakis 2008), as eyes are found a few pixels off.
    """
    import cv2

    best = -1.0
    for turned in (other, np.ascontiguousarray(other[:, ::-1])):
        found = _correlation(one, turned)
        best = max(best, found)
        if WORTH_REGISTERING <= found < NEAR_DUPLICATE_CORRELATION:
            mean, seen = np.nan_to_num(turned, nan=float(np.nanmean(turned))), np.isfinite(turned).astype(np.uint8)
            first, mask = np.nan_to_num(one, nan=float(np.nanmean(one))), np.isfinite(one).astype(np.uint8)
            try:
                _, move = cv2.findTransformECC(
                    first, mean, np.eye(2, 3, dtype=np.float32), cv2.MOTION_AFFINE, (3, 40, 1e-4), mask * 255, 3
                )
            except cv2.error:  # the registration did not converge
                continue
            flags = cv2.WARP_INVERSE_MAP
            moved = cv2.warpAffine(mean, move, one.shape[::-1], flags=cv2.INTER_LINEAR | flags)
            shown = cv2.warpAffine(seen, move, one.shape[::-1], flags=cv2.INTER_NEAREST | flags) > 0
            best = max(best, _correlation(one, np.where(shown, moved, np.nan)))
    return best


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    both = np.isfinite(one) & np.isfinite(other)
    if both.sum() < SHARED_PX:
        return -1.0
    a, b = one[both] - one[both].mean(), other[both] - other[both].mean()
    return float((a * b).sum() / max(float(np.sqrt((a * a).sum() * (b * b).sum())), 1e-6))


def near_duplicates(whole: np.ndarray, faces_match: np.ndarray) -> list[list[int]]:
    """Indices of photos, grouped by near-duplicates: if a matches b and b matches c, all three are one group. Sorted.

    `whole` is (n, 64) bool: perceptual hashes of the pictures; `faces_match` is (n, n) bool, symmetric.
    """
    near = (whole[:, None] != whole[None]).sum(-1) <= NEAR_DUPLICATE_BITS
    near |= faces_match
    label = np.arange(len(whole))
    for _ in range(len(whole)):
        label = np.where(near, label[None, :], len(whole)).min(1)
    return [np.flatnonzero(label == one).tolist() for one in np.unique(label)]


def split_sizes(count: int) -> tuple[int, int, int]:
    """(train, validation, held out) for `count` photos: a quarter held out; 1 for validation from 8 photos, 2 from 12.

    5 photos are 4 + 1. Validation chooses checkpoints, so its photos are neither trained on nor used for the score.
    """
    held_out = max(1, int(count * 0.25 + 0.5)) if count > 5 else 1
    validation = 2 if count >= 12 else 1 if count >= 8 else 0
    return count - validation - held_out, validation, held_out


def split(
    groups: Sequence[Sequence[Photo]],
    *,
    rejected: dict[str, str] | None = None,
    seed: int = 0,
    held_out: Collection[str] = (),
    trained: Collection[str] = (),
) -> PhotoSet:
    """Divide groups of near-duplicates between the three parts; the photos of a group stay together.

    The groups are ordered by a hash of the seed and the pictures, so neither upload order nor file names matter.
    Photos named in `held_out` or `trained` (by the person, or because a method has seen them) go there with their
    whole group. Needs at least 2 groups. The result is `weak` when only one photo, or one moment, is held out.
    """
    if len(groups) < 2:
        raise UserError("All photos are nearly the same picture. Add photos from other moments.")

    def draw(group: Sequence[Photo]) -> str:
        return hashlib.sha256(f"{seed}:{min(photo.sha256 for photo in group)}".encode()).hexdigest()

    waiting = sorted((sorted(group, key=lambda photo: photo.sha256) for group in groups), key=draw)
    _, validation_size, held_out_size = split_sizes(sum(len(group) for group in waiting))
    judging = _pinned(waiting, held_out)
    learning = _pinned(waiting, trained)
    if not (learning or waiting):
        raise UserError(
            "No photo is left to learn from: each is pinned to be held out, or shows the moment of one that is. Unpin "
            "some, or add photos of other moments."
        )
    if not (judging or waiting):
        raise UserError(
            "No photo is left to judge with: each is pinned to be learned from, was learned from before, or shows the "
            "moment of one that is or was. Add photos of other moments, or pin one to be held out."
        )
    stay = 0 if learning else 1  # leave at least one group for training
    judging += _fill(waiting, held_out_size - _count(judging), at_least_one=not judging, stay=stay)
    validation = _fill(waiting, validation_size, at_least_one=False, stay=stay)
    waiting = [*learning, *waiting]

    def flat(part: Sequence[Sequence[Photo]]) -> tuple[Photo, ...]:
        return tuple(sorted((photo for group in part for photo in group), key=lambda photo: photo.path))

    return PhotoSet(
        train=flat(waiting),
        validation=flat(validation),
        held_out=flat(judging),
        rejected=dict(rejected or {}),
        weak=len(judging) < 2,
    )


def _count(groups: Sequence[Sequence[Photo]]) -> int:
    return sum(len(group) for group in groups)


def _pinned(waiting: list[list[Photo]], names: Collection[str]) -> list[list[Photo]]:
    """Take the groups that hold one of these photos out of `waiting`."""
    found = [group for group in waiting if any(photo.name in names for photo in group)]
    waiting[:] = [group for group in waiting if group not in found]
    return found


def _fill(waiting: list[list[Photo]], size: int, *, at_least_one: bool, stay: int) -> list[list[Photo]]:
    """Take groups out of `waiting`, in order, while they fit into `size` and more than `stay` are left."""
    part: list[list[Photo]] = []
    for group in list(waiting):
        if len(waiting) > stay and _count(part) + len(group) <= size:
            part.append(group)
            waiting.remove(group)
    if not part and at_least_one:
        smallest = min(waiting, key=len)
        part.append(smallest)
        waiting.remove(smallest)
    return part
