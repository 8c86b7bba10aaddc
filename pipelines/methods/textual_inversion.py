"""Textual inversion (Gal et al. 2022): learn a few word vectors, change nothing else.

Trains one (n, d) parameter per text encoder. The token table stays frozen and untouched, so no row of it has to be
restored; the vectors join it only while a prompt is encoded (`bases.text`). Saved twice: as diffusers loads it
(`learned_embeds.safetensors`, key = token) and as A1111, ComfyUI and InvokeAI do (`likeness.safetensors`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipelines.bases.family import Family, Modules
from pipelines.bases.registry import PROJECTOR, BaseRow
from pipelines.bases.text import LearnedRows, Text
from pipelines.core.device import derived_seed
from pipelines.core.files import write_file
from pipelines.core.records import Recipe, UserError
from pipelines.methods.base import Artifact, Group, Learner, Method

TOKEN = "<likeness>"
WEB_UI_FILE = "likeness.safetensors"  # other programs trigger on the file's name: no < or > in it
MAX_VECTORS = 8
# Largest norm of a learned vector, as a multiple of real words': much longer ones make the base ignore the prompt.
NORM_HEADROOM = 1.5


def tokens(count: int) -> tuple[str, ...]:
    """ "<likeness>", "<likeness>_1", ...: the names diffusers gives the vectors of one token."""
    return (TOKEN, *(f"{TOKEN}_{index}" for index in range(1, count)))


def embedding_file(encoder: int) -> str:
    return "learned_embeds.safetensors" if encoder == 0 else f"learned_embeds_{encoder + 1}.safetensors"


def text_with_rows(
    family: Family, rows: Sequence[torch.Tensor], encoders: tuple[torch.nn.Module, ...] | None = None
) -> Text:
    """A `text` with the words: one (n, d) tensor of rows per encoder. `encoders`: instead of the base's."""
    first_ids = tuple(len(tokenizer) for tokenizer in family.text.tokenizers)
    text = family.text_with(LearnedRows(tokens(len(rows[0])), tuple(rows), first_ids))
    text.encoders = encoders or text.encoders
    return text


class TextualInversion(Method):
    def phrase(self, row: BaseRow, recipe: Recipe) -> str:
        return " ".join([*tokens(recipe.vectors), recipe.class_word])

    def learner(
        self,
        family: Family,
        recipe: Recipe,
        *,
        identity: np.ndarray | None = None,
        modules: Modules | None = None,
    ) -> TextualInversionLearner:
        """`modules`: the modules that train with the words, where they are not the base's own."""
        if not 1 <= recipe.vectors <= MAX_VECTORS:
            raise UserError(f"Textual inversion learns 1 to {MAX_VECTORS} vectors, not {recipe.vectors}.")
        return TextualInversionLearner(family, recipe, identity, modules or family.shared())

    def apply(self, family: Family, folder: Path, recipe: Recipe, *, strength: float = 1.0) -> Modules:
        """`strength` is ignored: word vectors can't be applied in part."""
        return Modules(family.shared().unet, text_with_rows(family, saved_rows(family, folder)))


def saved_rows(family: Family, folder: Path) -> list[torch.Tensor]:
    """The learned vectors of each text encoder, (n, d). Raises UserError when they are not there or do not fit."""
    rows = []
    for index, encoder in enumerate(family.text.encoders):
        try:
            saved = load_file(str(folder / embedding_file(index)))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{embedding_file(index)} is missing or damaged. Train again.") from error
        width = _table(encoder).shape[1]
        row = saved.get(TOKEN)
        if row is None or row.ndim != 2 or row.shape[1] != width:
            raise UserError(
                f"{embedding_file(index)} was not learned on {family.row.title}. Choose the base it belongs to."
            )
        rows.append(row.to(family.device.name, torch.float32))
    return rows


class TextualInversionLearner(Learner):
    live_text = True

    def __init__(self, family: Family, recipe: Recipe, identity: np.ndarray | None, modules: Modules) -> None:
        self._family, self._recipe = family, recipe
        starts = [
            _start(family, encoder, index, recipe, identity) for index, encoder in enumerate(family.text.encoders)
        ]
        self._rows = [torch.nn.Parameter(start.to(family.device.name, torch.float32).clone()) for start in starts]
        self._max_norms = [
            NORM_HEADROOM * max(float(_table(encoder).float().norm(dim=1).max()), float(start.norm(dim=1).max()))
            for encoder, start in zip(family.text.encoders, starts, strict=True)
        ]
        self.modules = Modules(modules.unet, text_with_rows(family, self._rows, modules.text.encoders))

    def groups(self) -> list[Group]:
        # no weight decay: the limit of the norm is enough, and does not pull the vectors towards zero
        return [Group(tuple(self._rows), self._recipe.learning_rate, 0.0)]

    def tensors(self) -> dict[str, torch.nn.Parameter]:
        return {f"encoder_{index}": rows for index, rows in enumerate(self._rows)}

    @torch.no_grad()
    def start_from(self, folder: Path) -> None:
        for rows, saved in zip(self._rows, saved_rows(self._family, folder), strict=True):
            if saved.shape != rows.shape:
                raise UserError(
                    f"Textual inversion learned {len(saved)} vectors before, not {len(rows)}. Choose as many, or train "
                    "afresh."
                )
            rows.copy_(saved)

    @torch.no_grad()
    def after_step(self) -> None:
        for rows, limit in zip(self._rows, self._max_norms, strict=True):
            rows.mul_((limit / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1.0))

    def export(self, folder: Path) -> Artifact:
        return save_rows(folder, self._rows)


def save_rows(folder: Path, every: Sequence[torch.Tensor]) -> Artifact:
    """Save the vectors of each text encoder, (n, d), under the names that diffusers and web UIs read."""
    saved = [rows.detach().cpu().float().contiguous() for rows in every]
    files = []
    for index, rows in enumerate(saved):
        files.append(embedding_file(index))
        write_file(folder / files[-1], lambda path, rows=rows: save_file({TOKEN: rows}, str(path)))  # type: ignore[misc]
    names = ("emb_params",) if len(saved) == 1 else ("clip_l", "clip_g")
    web_ui = dict(zip(names, saved, strict=True))
    write_file(folder / WEB_UI_FILE, lambda path: save_file(web_ui, str(path)))
    return Artifact(files[0], tuple(files))


def _table(encoder: torch.nn.Module) -> torch.Tensor:
    weight = encoder.get_input_embeddings().weight  # type: ignore[operator]
    assert isinstance(weight, torch.Tensor)
    return weight.detach()


def _start(
    family: Family, encoder: torch.nn.Module, index: int, recipe: Recipe, identity: np.ndarray | None
) -> torch.Tensor:
    """Where the vectors start, (n, d): the class word, or what the base's projector makes of the face."""
    table = _table(encoder).float().cpu()
    tokenizer = family.text.tokenizers[index]
    if recipe.init == "zero_shot":
        rows = zero_shot_rows(family, identity)
        if rows is not None:
            return rows[[k % len(rows) for k in range(recipe.vectors)]]
    elif recipe.init != "class_word":
        raise UserError(f'A recipe starts textual inversion from "class_word" or "zero_shot", not "{recipe.init}".')
    word = tokenizer(recipe.class_word, add_special_tokens=False).input_ids
    rows = table[word].mean(0).expand(recipe.vectors, -1).clone()
    if recipe.vectors > 1:  # equal vectors would get equal gradients and stay equal
        generator = torch.Generator().manual_seed(derived_seed(recipe.seed, 7, index))
        rows += 0.1 * table.std() * torch.randn(rows.shape, generator=generator)
    return rows


def neutral_row(family: Family) -> torch.Tensor:
    """The vector (d,) of a portrait base's word for an average person."""
    word = family.text.tokenizers[0].convert_tokens_to_ids(family.row.identifier.split()[0])
    return _table(family.text.encoders[0]).float().cpu()[word]


def zero_shot_rows(family: Family, identity: np.ndarray | None) -> torch.Tensor | None:
    """The vectors (k, d) that the base's projector predicts from a dlib descriptor (128,); None: an average person's.

    None where a base has no projector. Source: tools/portrait_base/denoiser.py, `IdentityProjector`.
    """
    file = family.folder / PROJECTOR if family.folder else None
    if file is None or not file.is_file():
        return None
    neutral = neutral_row(family)
    count = len(family.row.identifier.split())
    if identity is None:
        return neutral.expand(count, -1).clone()
    weights = {name: tensor.float() for name, tensor in load_file(str(file)).items()}
    x = (torch.tensor(np.asarray(identity, np.float32)) - weights["mean"]) / weights["std"]
    hidden = torch.nn.functional.silu(weights["expand.weight"] @ x + weights["expand.bias"])
    out = weights["linear.weight"] @ x + weights["linear.bias"] + weights["project.weight"] @ hidden
    return neutral + (out + weights["project.bias"]).view(count, -1) * 0.1
