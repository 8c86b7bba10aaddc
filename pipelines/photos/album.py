"""Album: a cache of one job: each photo of a person is decoded, searched for faces and embedded only once.

In: a `PhotoSet` (and paths of other pictures). Out: pixels, faces, crops, a judge's embeddings. Faces and embeddings
are biometric: an album stays in memory, is never written, can't be pickled, and ends with its job.
Try it: `album = Album(photo_set); album.vector(judge, album.photos.held_out[0]).shape`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from pipelines.core.records import Photo, PhotoSet
from pipelines.faces.dlib_faces import detect_faces, dlib_embed
from pipelines.faces.face import Face, Judge, Seen
from pipelines.photos import framing
from pipelines.photos.decode import decode

# Decoded pixels that are kept: 14 photos of 12 megapixels. Further photos are decoded again each time they are needed;
# their faces and embeddings are small and always kept.
LIMIT_BYTES = 512 << 20
NOBODY = PhotoSet((), (), ())


class Album:
    """A person's photos, and other pictures by their path. For one thread at a time.

    All methods raise `UserError` for a file that can't be read.
    """

    def __init__(self, photos: PhotoSet = NOBODY, *, limit_bytes: int = LIMIT_BYTES):
        self.photos = photos
        self._room = limit_bytes
        self._images: dict[Path, np.ndarray] = {}
        self._faces: dict[Path, tuple[Face, ...]] = {}
        self._seen: dict[tuple[str, str, Path], Seen] = {}
        self._descriptor: np.ndarray | None = None

    def __reduce__(self) -> NoReturn:
        raise TypeError("an album holds face embeddings and stays in memory; it can't be pickled")

    def image(self, picture: Photo | Path) -> np.ndarray:
        """The upright picture, RGB uint8 (H, W, 3), read-only: all callers share one array."""
        return self._read(_path(picture))

    def _read(self, path: Path) -> np.ndarray:
        known = self._images.get(path)
        if known is not None:
            return known
        image = decode(path)
        image.flags.writeable = False
        if image.nbytes <= self._room:
            self._room -= image.nbytes
            self._images[path] = image
        return image

    def view(self, picture: Photo | Path) -> np.ndarray:
        """What judges get, RGB uint8 (h, w, 3): the picture; of a group photo only the part with the person's head."""
        image = self.image(picture)
        return framing.person_view(image, picture) if isinstance(picture, Photo) else image

    def faces(self, picture: Photo | Path) -> tuple[Face, ...]:
        """Every face that dlib finds in the whole picture, largest first."""
        path = _path(picture)
        return self._faces[path] if path in self._faces else self._faces_in(path, self._read(path))

    def _faces_in(self, path: Path, image: np.ndarray) -> tuple[Face, ...]:
        if path not in self._faces:
            self._faces[path] = tuple(detect_faces(image))
        return self._faces[path]

    def face(self, photo: Photo) -> Face | None:
        """The person's face: of all faces found now, the one at the place that intake noted; None if there is none."""
        left, top, right, bottom = photo.face_box
        x, y = (left + right) / 2, (top + bottom) / 2
        there = [one for one in self.faces(photo) if one.box[0] <= x <= one.box[2] and one.box[1] <= y <= one.box[3]]
        return min(there, key=lambda one: abs(one.height_px - (bottom - top)), default=None)

    def seen(self, judge: Judge, picture: Photo | Path) -> Seen:
        """What a judge sees of the person in a picture; kept per picture and per judge (its name and weights)."""
        key = (judge.name, judge.weights_sha256, _path(picture))
        if key not in self._seen:
            image = self.image(picture)
            view = framing.person_view(image, picture) if isinstance(picture, Photo) else image
            if view is image and getattr(judge, "detector", "") == "dlib":
                self._seen[key] = judge.look(view, self._faces_in(_path(picture), image))  # type: ignore[call-arg]
            else:
                self._seen[key] = judge.look(view)
        return self._seen[key]

    def vector(self, judge: Judge, picture: Photo | Path) -> np.ndarray | None:
        """The unit vector (d,) of `seen`; None where this judge finds no face."""
        return self.seen(judge, picture).vector

    def descriptor(self) -> np.ndarray:
        """dlib's descriptor (128,) of the person: of the training photos, each as much as it shows of the face."""
        if self._descriptor is None:
            photos = self.photos.train
            each = np.stack([dlib_embed(self.image(photo), _face_at_intake(photo)) for photo in photos])
            self._descriptor = consensus(each, np.array([weight_of(photo) for photo in photos]))
        return self._descriptor

    def best_faces(self, count: int, size_px: int) -> np.ndarray:
        """Up to `count` training photos that show most of the face: (n, size, size, 3) uint8, eyes at one place."""
        best = sorted(self.photos.train, key=lambda photo: -weight_of(photo))[:count]
        return self.aligned_frames(best, size_px)

    def frames(self, photos: Sequence[Photo], row: framing.Framing | int) -> np.ndarray:
        """`framing.frames`, from the decoded pictures of the album: (n, resolution, resolution, 3) uint8."""
        return framing.frames(photos, row, read=self._read)

    def aligned_frames(self, photos: Sequence[Photo], size_px: int) -> np.ndarray:
        """The faces, aligned by the eyes as for the embedded base: (n, size, size, 3) uint8."""
        return framing.frames(photos, aligned=True, resolution_px=size_px, read=self._read)

    def crops(self, photos: Sequence[Photo], row: framing.Bucketed) -> list[np.ndarray]:
        """`framing.crops`, from the decoded pictures of the album: (H, W, 3) uint8 each."""
        return framing.crops(photos, row, read=self._read)


CLEAR_EYE_DISTANCE_PX = 60.0  # from here on a larger face tells dlib, which reads 150 px, hardly more
HALF = {"blurred", "dark", "bright", "low_contrast", "turned", "tilted", "near_duplicate"}


def weight_of(photo: Photo) -> float:
    """How much a photo tells of the face, above 0 up to 1: half for each remark, less for a small face."""
    remarks = len(HALF & set(photo.reasons))
    return 0.5**remarks * min(1.0, max(photo.eye_distance_px, 1.0) / CLEAR_EYE_DISTANCE_PX)


def consensus(descriptors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(n, 128) and (n,) -> (128,): the weighted mean, in which those count less that lie far from it (Huber)."""
    mean = np.average(descriptors, axis=0, weights=weights)
    for _ in range(5):
        away = np.maximum(np.linalg.norm(descriptors - mean, axis=1), 1e-9)
        mean = np.average(descriptors, axis=0, weights=weights * np.minimum(1.0, np.median(away) / away))
    return mean


def _face_at_intake(photo: Photo) -> Face:
    """The person's face where it was found then: nothing is searched again."""
    eyes = np.array(photo.eyes)
    return Face(photo.face_box, eyes, eyes, eyes.mean(0), 1.0)


def _path(picture: Photo | Path) -> Path:
    return Path(picture.path) if isinstance(picture, Photo) else picture
