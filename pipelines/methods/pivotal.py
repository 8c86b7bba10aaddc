"""Pivotal tuning (Roich et al. 2022, as Ryu 2023 does it for words): textual inversion and LoRA that learn together.

The word vectors and the LoRA train together with one loss and a learning rate each. Both are saved in one folder with
their usual file names: `load_textual_inversion` and `load_lora_weights` read them, as do programs that read both.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pipelines.bases.family import Family, Modules
from pipelines.bases.registry import BaseRow
from pipelines.core.records import Recipe
from pipelines.methods.base import Artifact, Group, Learner, Method
from pipelines.methods.lora import LoRA, LoRALearner
from pipelines.methods.textual_inversion import TextualInversion, TextualInversionLearner, saved_rows, text_with_rows

WORDS, ADAPTERS = "words", "adapters"


class Pivotal(Method):
    def phrase(self, row: BaseRow, recipe: Recipe) -> str:
        return TextualInversion().phrase(row, recipe)

    def learner(self, family: Family, recipe: Recipe, *, identity: np.ndarray | None = None) -> PivotalLearner:
        adapters = LoRA().learner(family, recipe)
        words = TextualInversion().learner(
            family,
            recipe.replaced(learning_rate=recipe.vector_learning_rate),
            identity=identity,
            modules=adapters.modules,
        )
        return PivotalLearner(words, adapters, recipe)

    def apply(self, family: Family, folder: Path, recipe: Recipe, *, strength: float = 1.0) -> Modules:
        """`strength` scales the LoRA only: word vectors can't be applied in part."""
        rows = saved_rows(family, folder)
        adapted = LoRA().apply(family, folder, recipe, strength=strength)
        return Modules(adapted.unet, text_with_rows(family, rows, adapted.text.encoders))


class PivotalLearner(Learner):
    live_text = True

    def __init__(self, words: TextualInversionLearner, adapters: LoRALearner, recipe: Recipe) -> None:
        self._words, self._adapters, self._recipe = words, adapters, recipe
        self.modules = words.modules  # the denoiser with the LoRA, and the text encoders with the words

    def groups(self) -> list[Group]:
        until = self._recipe.freeze_vectors_after
        words = [Group(each.parameters, each.learning_rate, each.weight_decay, until) for each in self._words.groups()]
        return [*words, *self._adapters.groups()]

    def tensors(self) -> dict[str, torch.nn.Parameter]:
        parts: dict[str, Learner] = {WORDS: self._words, ADAPTERS: self._adapters}
        return {f"{part}.{name}": tensor for part, each in parts.items() for name, tensor in each.tensors().items()}

    def scales(self) -> tuple[str, ...]:
        return tuple(f"{ADAPTERS}.{name}" for name in self._adapters.scales())

    def start_from(self, folder: Path) -> None:
        self._words.start_from(folder)
        self._adapters.start_from(folder)

    def after_step(self) -> None:
        self._words.after_step()

    def export(self, folder: Path) -> Artifact:
        words, adapters = self._words.export(folder), self._adapters.export(folder)
        return Artifact(adapters.file, (*words.learned, *adapters.learned))
