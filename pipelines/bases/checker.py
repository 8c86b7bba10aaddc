"""The image filter of the real bases: the stock safety checker of Stable Diffusion, always on.

In: drawn pictures. Out: which of them are refused. It compares the CLIP embedding of a picture with 17 sexual concepts,
with a stricter limit if the picture seems to show a child (described by Rando et al. 2022). Stock pipelines make a
refused picture black; here it is never written, and the person gets a message.
Try it: `load_family(find_base("sd15")).refused(frames)`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipelines.core.device import Device, quiet
from pipelines.core.records import UserError

CHECKER, EXTRACTOR = "safety_checker", "feature_extractor"  # names of folders and of parts of a stock pipeline
BATCH = 8
MISSING = (
    "This base brings no image filter and Stable Diffusion 1.5's is not on this machine: only prompts are filtered. "
    "Get it with: "
)
NOT_HOSTED = (
    "This base brings no image filter and Stable Diffusion 1.5's is not on this machine. A hosted page does not draw "
    "without one. Get it with: "
)


class ImageFilter:
    """A safety checker on the device, in half precision on a GPU. Pictures do not leave the machine."""

    def __init__(self, checker: nn.Module, extractor: Any, device: Device) -> None:
        dtype = torch.float16 if device.kind == "cuda" else torch.float32
        self.checker = nn.Module.to(checker, device.name, dtype).requires_grad_(False).eval()
        self._extractor, self._device, self._dtype = extractor, device.name, dtype

    @torch.no_grad()
    def refused(self, frames: np.ndarray) -> list[bool]:
        """Whether each of the uint8 RGB frames (n, H, W, 3) is refused."""
        from PIL import Image

        found: list[bool] = []
        for start in range(0, len(frames), BATCH):
            part = [Image.fromarray(frame) for frame in frames[start : start + BATCH]]
            seen = self._extractor(part, return_tensors="pt").pixel_values.to(self._device, self._dtype)
            # it makes refused pictures black in `images`, which is not used here: so it gets tiny ones
            with quiet():
                _, refused = self.checker(clip_input=seen, images=np.zeros((len(part), 1, 1, 3), np.float32))
            found += [bool(each) for each in refused]
        return found


def has_checker(folder: Path) -> bool:
    """Whether a diffusers folder has a safety checker, with its weights."""
    weights = any((folder / CHECKER).glob("*.safetensors"))
    return weights and (folder / CHECKER / "config.json").is_file() and has_extractor(folder)


def has_extractor(folder: Path) -> bool:
    return (folder / EXTRACTOR / "preprocessor_config.json").is_file()


def load_checker(folder: Path, variant: str | None, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """(checker, feature extractor) of a diffusers folder. Raises UserError when a weight is missing: diffusers would
    fill it with random numbers, and the filter would accept everything.
    """
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from safetensors import SafetensorError
    from transformers import CLIPImageProcessor

    files = {file.name for file in (folder / CHECKER).glob("*.safetensors")}
    if variant is not None and not any(f".{variant}." in name for name in files):
        variant = None
    elif variant is None and all(".fp16." in name for name in files):
        variant = "fp16"
    try:
        checker, found = StableDiffusionSafetyChecker.from_pretrained(
            folder / CHECKER,
            variant=variant,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        extractor = CLIPImageProcessor.from_pretrained(folder / EXTRACTOR, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"The image filter can't be loaded: {reason} Restore its folder {CHECKER}.") from error
    missing = [name for name in (*found["missing_keys"], *found["mismatched_keys"]) if "position_ids" not in str(name)]
    if missing:
        raise UserError(f"The image filter lacks {len(missing)} of its weights. Restore the folder {CHECKER}.")
    return checker, extractor


def is_hosted() -> bool:
    """Whether this runs as a Space on the Hugging Face hub, where anybody may draw."""
    return "SPACE_ID" in os.environ


def command(repo: str, revision: str, patterns: Sequence[str]) -> str:
    """The command that downloads the checker."""
    include = " ".join(f'"{pattern}"' for pattern in patterns)
    return f"hf download {repo} --revision {revision} --include {include}"
