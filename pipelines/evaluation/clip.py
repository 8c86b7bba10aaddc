"""Does a picture show what a prompt asks for? CLIP-T, for bases that know all words.

In: pictures and prompts. Out: cosines of image and text embeddings (raw, not times 2.5), and how often a picture fits
its own prompt better than the run's other prompts (as in CLIP R-precision, Park et al. 2021). The person's token is
replaced by the class word, since CLIP does not know the person. The CLIP model is pinned and named beside every figure,
because figures of two models can't be compared.
Try it: LIKENESS_CLIP=FOLDER (or the hub's cache) and a comparison on sd15; report.json then holds `clip_t`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.core.records import UserError

CLIP_REPO, CLIP_REVISION = "openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41"  # MIT
FILES = ("*.json", "*.txt", "model.safetensors")
CLIP_ENV = "LIKENESS_CLIP"  # a folder with another CLIP in transformers' layout


class ClipText:
    """One CLIP on the CPU. Raises UserError when its files are not on this machine and may not be downloaded."""

    def __init__(self, folder: Path | None = None, *, allow_download: bool = False) -> None:
        from transformers import CLIPModel, CLIPProcessor

        given = folder or (Path(os.environ[CLIP_ENV]) if os.environ.get(CLIP_ENV) else None)
        where = given or _from_hub(allow_download)
        self.name = f"{CLIP_REPO}@{CLIP_REVISION[:8]}" if given is None else given.name
        try:
            self._model = CLIPModel.from_pretrained(where, local_files_only=True, use_safetensors=True).eval()
            self._processor: Any = CLIPProcessor.from_pretrained(where, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{where.name} holds no CLIP model that can be read. Give another folder.") from error

    def texts(self, prompts: Sequence[str]) -> np.ndarray:
        """(n, d) unit vectors of texts; a text is cut after CLIP's 77 tokens."""
        import torch

        asked = self._processor.tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            return _unit(self._model.get_text_features(**asked))

    def images(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """(n, d) unit vectors of RGB uint8 (H, W, 3) pictures."""
        import torch
        from PIL import Image

        seen = self._processor.image_processor([Image.fromarray(each) for each in pictures], return_tensors="pt")
        with torch.no_grad():
            return _unit(self._model.get_image_features(pixel_values=seen["pixel_values"]))


def _unit(features: Any) -> np.ndarray:
    pooled = getattr(features, "pooler_output", features)  # transformers 5 wraps what 4 returned as a tensor
    values = pooled.float().numpy()
    return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12)


def _from_hub(allow_download: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                CLIP_REPO, revision=CLIP_REVISION, allow_patterns=list(FILES), local_files_only=not allow_download
            )
        )
    except Exception as error:  # errors of the hub, of httpx and of the system all mean the same to the person
        include = " ".join(f'"{pattern}"' for pattern in FILES)
        raise UserError(
            f"CLIP is not on this machine, so prompt-following is not measured. Get it with: hf download {CLIP_REPO} "
            f"--revision {CLIP_REVISION} --include {include}"
        ) from error


def rank(cosines: np.ndarray, own: int) -> float | None:
    """The share of the other prompts that fit less well than a picture's own, ties as halves; None without others."""
    others = np.delete(np.asarray(cosines, np.float64), own)
    if not len(others):
        return None
    return float(np.mean((others < cosines[own]) + 0.5 * (others == cosines[own])))
