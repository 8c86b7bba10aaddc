"""The part of torchvision.transforms that diffusers' example scripts use, on PIL, for machines without torchvision.

If torchvision is missing, the scripts import it as `torchvision.transforms`. It uses Pillow, as torchvision does for
PIL pictures, with the same filters and crops, so it is neither faster nor slower.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps


class InterpolationMode(enum.Enum):
    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


_FILTERS = {
    InterpolationMode.NEAREST: Image.Resampling.NEAREST,
    InterpolationMode.NEAREST_EXACT: Image.Resampling.NEAREST,
    InterpolationMode.BILINEAR: Image.Resampling.BILINEAR,
    InterpolationMode.BICUBIC: Image.Resampling.BICUBIC,
    InterpolationMode.BOX: Image.Resampling.BOX,
    InterpolationMode.HAMMING: Image.Resampling.HAMMING,
    InterpolationMode.LANCZOS: Image.Resampling.LANCZOS,
}


class Compose:
    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


class Resize:
    """Resize so that the shorter side is `size`, or to the given (height, width)."""

    def __init__(
        self, size: int | Sequence[int], interpolation: InterpolationMode = InterpolationMode.BILINEAR
    ) -> None:
        self.size, self.filter = size, _FILTERS[interpolation]

    def __call__(self, image: Image.Image) -> Image.Image:
        if not isinstance(self.size, int):
            height, width = self.size
            return image.resize((width, height), self.filter)
        width, height = image.size
        if width <= height:
            return image.resize((self.size, int(self.size * height / width)), self.filter)
        return image.resize((int(self.size * width / height), self.size), self.filter)


def _crop(image: Image.Image, left: int, top: int, size: int) -> Image.Image:
    return image.crop((left, top, left + size, top + size))


class CenterCrop:
    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        return _crop(image, round((width - self.size) / 2), round((height - self.size) / 2), self.size)


class RandomCrop:
    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        if width < self.size or height < self.size:
            raise ValueError(f"a crop of {self.size} px does not fit into {width} x {height}")
        top = int(torch.randint(0, height - self.size + 1, (1,)))
        left = int(torch.randint(0, width - self.size + 1, (1,)))
        return _crop(image, left, top, self.size)


class RandomHorizontalFlip:
    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.mirror(image) if float(torch.rand(1)) < self.p else image


class ToTensor:
    """A picture -> float32 (c, h, w) in 0..1."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(image, np.uint8, copy=True))
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        return pixels.permute(2, 0, 1).contiguous().float().div(255)


class Normalize:
    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = list(mean), list(std)

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        mean = torch.tensor(self.mean, dtype=tensor.dtype)[:, None, None]
        std = torch.tensor(self.std, dtype=tensor.dtype)[:, None, None]
        return (tensor - mean) / std
