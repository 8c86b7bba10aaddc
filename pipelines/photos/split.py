"""Split: photos of one moment are found, and whole moments go to training, to validation or to the judge.

In: perceptual hashes; groups of photos. Out: groups of near-duplicates; a `PhotoSet` whose parts share no moment.
Try it: `split_sizes(10)` is (6, 1, 3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

import numpy as np

from pipelines.core.schema import Photo, PhotoSet, UserError

# Photos are takes of one moment when the 64-bit perceptual hashes of the pictures differ in at most 4 bits, or those
# of their aligned faces in at most 8. Measured on 13 people: copies that were cropped by a tenth, turned by 3 degrees,
# brightened, shrunk or recompressed differ in 0-8 bits once aligned (one crop of 14: in 14), without alignment in up to
# 30; of 953 pairs of two moments all but one (two alike studio poses, 4 bits) differ in 12 or more. A false alarm only
# keeps two photos together, a miss would let the judge see what training saw.
NEAR_DUPLICATE_BITS = 4
NEAR_DUPLICATE_FACE_BITS = 8


def perceptual_hash(image: np.ndarray) -> np.ndarray:
    """64 bits (bool) that survive scaling, recompression and small shifts in brightness.

    The sign of the 8x8 lowest frequencies of a 32x32 grey copy against their median (DCT "pHash", Zauner 2010).
    """
    import cv2

    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:8, :8].reshape(-1)
    return low > np.median(low[1:])


def near_duplicates(whole: np.ndarray, face: np.ndarray) -> list[list[int]]:
    """Indices of photos, grouped so that photos of one moment share a group (chains count). Sorted; does not depend on
    the order of the photos.

    `whole` and `face` are (n, 64) bool: perceptual hashes of the pictures and of the person's aligned face in each.
    """
    near = (whole[:, None] != whole[None]).sum(-1) <= NEAR_DUPLICATE_BITS
    near |= (face[:, None] != face[None]).sum(-1) <= NEAR_DUPLICATE_FACE_BITS
    label = np.arange(len(whole))
    for _ in range(len(whole)):
        label = np.where(near, label[None, :], len(whole)).min(1)
    return [np.flatnonzero(label == one).tolist() for one in np.unique(label)]


def split_sizes(count: int) -> tuple[int, int, int]:
    """(train, validation, held out) for `count` photos: a quarter held out; validation 1 from 8, 2 from 12 photos.

    5 photos are 4 + 1. Validation chooses checkpoints, so it may neither train nor judge.
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
    """Divide groups of near-duplicates into the three parts; a group is never divided.

    The order of the draw is a hash of the seed and the pictures, so neither upload order nor file names matter.
    Photos named in `held_out` or `trained` (by the person, or because a method has seen them) are pinned there, and
    take the photos of their moment with them.
    At least 2 groups. `weak` where one photo, or one moment, is all there is to judge with.
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
    stay = 0 if learning else 1  # one moment at least is learned from
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
