"""Zero-shot: nothing trains. A portrait base's own projector makes words of a face's descriptor, within a second;
SD 1.5 and SDXL look at pictures of the face through an IP-Adapter (`ip_adapter.py`).

Words are saved as textual inversion saves them: `learned_embeds.safetensors` for diffusers' `load_textual_inversion`,
and `likeness.safetensors` for web UIs.
"""

from __future__ import annotations

from pathlib import Path

from pipelines.bases.family import Family, Modules
from pipelines.bases.registry import BaseRow
from pipelines.core.records import Recipe, UserError
from pipelines.methods import ip_adapter
from pipelines.methods.base import Artifact, Faces, Method
from pipelines.methods.textual_inversion import (
    neutral_row,
    save_rows,
    saved_rows,
    text_with_rows,
    tokens,
    zero_shot_rows,
)


class ZeroShot(Method):
    def phrase(self, row: BaseRow, recipe: Recipe) -> str:
        return " ".join([*(() if row.face_adapter else tokens(len(row.identifier.split()))), recipe.class_word])

    def encode(self, family: Family, folder: Path, faces: Faces) -> Artifact:
        if family.row.face_adapter is not None:
            return ip_adapter.encode(family, folder, faces)
        rows = zero_shot_rows(family, faces.descriptor())
        if rows is None:
            raise UserError(f"{family.row.title} can't draw a face without training. Choose another method or base.")
        return save_rows(folder, [rows])

    def apply(self, family: Family, folder: Path, recipe: Recipe, *, strength: float = 1.0) -> Modules:
        """`strength` 0 draws nobody in particular, 1 the person, above 1 what sets the person apart, exaggerated."""
        if family.row.face_adapter is not None:
            return ip_adapter.apply(family, folder, strength)
        neutral = neutral_row(family).to(family.device.name)
        rows = [neutral + strength * (each - neutral) for each in saved_rows(family, folder)]
        return Modules(family.shared().unet, text_with_rows(family, rows))
