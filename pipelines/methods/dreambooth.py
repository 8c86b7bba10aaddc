"""DreamBooth (Ruiz et al. 2023): fine-tune the whole denoiser, and the text encoders if asked.

The saved folder is a complete stock pipeline: `StableDiffusionPipeline.from_pretrained(folder)`. Only what was learned
is written (`unet/`, in float16, and `text_encoder/` when it trained); the rest is hard-linked from the base where the
disk allows it, so a person costs one denoiser and not one base.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipelines.bases.checker import CHECKER, EXTRACTOR
from pipelines.bases.family import PARKED, Family, Modules, moved
from pipelines.core.device import quiet
from pipelines.core.files import write_folder
from pipelines.core.records import Recipe, UserError
from pipelines.methods.base import Artifact, Group, Learner, Method

UNET_FILE = "unet/diffusion_pytorch_model.safetensors"


class DreamBooth(Method):
    def learner(self, family: Family, recipe: Recipe, *, identity: np.ndarray | None = None) -> DreamBoothLearner:
        return DreamBoothLearner(family, recipe)

    def apply(
        self, family: Family, folder: Path, recipe: Recipe, *, strength: float = 1.0, exact: bool = False
    ) -> Modules:
        """`strength` is ignored: the trained weights replace the base's. `exact`: float32 weights on the CPU, to
        compute differences; else in the number format and on the device that pictures are drawn with.
        """
        where = PARKED if exact else None
        unet = family.new_unet(trainable=exact, device=where).requires_grad_(False)
        _load(unet, folder / "unet", "diffusion_pytorch_model.safetensors", family)
        text = family.text
        if recipe.text_learning_rate > 0:
            text = family.new_text(device=where)
            for (_, name), encoder in zip(family.architecture.text_parts, text.encoders, strict=True):
                _load(encoder, folder / name, "model.safetensors", family)
                encoder.requires_grad_(False)
        return Modules(unet, text)


def _load(module: torch.nn.Module, folder: Path, name: str, family: Family) -> None:
    try:
        module.load_state_dict(load_file(str(folder / name)))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder.name}/{name} is missing or was not learned on {family.row.title}. Train again, or choose its "
            "base."
        ) from error


class DreamBoothLearner(Learner):
    def __init__(self, family: Family, recipe: Recipe) -> None:
        self._family, self._recipe = family, recipe
        self.live_text = recipe.text_learning_rate > 0
        unet = family.new_unet(trainable=True).train()
        text = family.new_text() if self.live_text else family.text
        if self.live_text:
            for encoder in text.encoders:
                encoder.requires_grad_(True)
        self.modules = Modules(unet, text)

    def _encoders(self) -> tuple[torch.nn.Module, ...]:
        return self.modules.text.encoders if self.live_text else ()

    def groups(self) -> list[Group]:
        recipe = self._recipe
        groups = [Group(tuple(self.modules.unet.parameters()), recipe.learning_rate, recipe.weight_decay)]
        if self.live_text:
            words = tuple(parameter for encoder in self._encoders() for parameter in encoder.parameters())
            groups.append(Group(words, recipe.text_learning_rate, recipe.weight_decay))
        return groups

    def tensors(self) -> dict[str, torch.nn.Parameter]:
        named = {f"unet.{name}": parameter for name, parameter in self.modules.unet.named_parameters()}
        for index, encoder in enumerate(self._encoders()):
            named |= {f"encoder_{index}.{name}": parameter for name, parameter in encoder.named_parameters()}
        return named

    def start_from(self, folder: Path) -> None:
        _load(self.modules.unet, folder / "unet", "diffusion_pytorch_model.safetensors", self._family)
        for (_, name), encoder in zip(self._family.architecture.text_parts, self._encoders(), strict=False):
            _load(encoder, folder / name, "model.safetensors", self._family)

    def export(self, folder: Path) -> Artifact:
        """Write the learned parts in float16 and link the others, then `model_index.json`, which makes it complete."""
        parts = {"unet": self.modules.unet}
        if self.live_text:
            names = [name for _, name in self._family.architecture.text_parts]
            parts |= dict(zip(names, self._encoders(), strict=True))
        learned = []
        for name, module in parts.items():
            write_folder(folder / name, lambda path, module=module: _save_half(module, path))  # type: ignore[misc]
            learned += sorted(f"{name}/{file.name}" for file in (folder / name).glob("*.safetensors"))
        _complete(self._family, folder, skip=set(parts))
        return Artifact(UNET_FILE, tuple(learned))


def _save_half(module: torch.nn.Module, folder: Path) -> None:
    half = moved(copy.deepcopy(module), "cpu", torch.float16)
    with quiet():
        half.save_pretrained(folder, max_shard_size="100GB")  # type: ignore[operator]
    _as_stock_loads(folder)


def _as_stock_loads(folder: Path) -> None:
    """Set the dtype in a part's configuration to float32. transformers follows it and diffusers loads float32 anyway,
    so a stored half format would give an encoder and a denoiser of different formats.
    """
    config = folder / "config.json"
    if not config.is_file():  # a tokenizer, a scheduler
        return
    settings = json.loads(config.read_text())
    wanted = {name: "float32" if name in ("dtype", "torch_dtype") else value for name, value in settings.items()}
    wanted.pop("_name_or_path", None)  # a path of this machine does not belong in a file that people share
    if wanted != settings:
        config.unlink()  # it may be a hard link to the base's own
        config.write_text(json.dumps(wanted, indent=2) + "\n")


def _complete(family: Family, folder: Path, *, skip: set[str]) -> None:
    """Everything else a stock pipeline needs: linked or copied from the base's folder, else saved from memory."""
    source = family.folder
    pipeline = family.pipeline(Modules(family.loaded(family.architecture.denoiser), family.text))
    present = [name for name, part in pipeline.components.items() if part is not None and name not in skip]

    def write(name: str, path: Path) -> None:
        if source is not None and (source / name).is_dir() and (name == CHECKER or _plain_weights(source / name)):
            _link_tree(source / name, path)
        else:
            family.loaded(name).save_pretrained(path)
        _as_stock_loads(path)

    for name in present:
        if not (folder / name).exists():
            write_folder(folder / name, partial(write, name))
    pipeline.save_config(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index.pop("_name_or_path", None)
    if index.get(EXTRACTOR, [None])[0]:
        index[EXTRACTOR] = ["transformers", "CLIPImageProcessor"]  # the stock class
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def _plain_weights(folder: Path) -> bool:
    """False for a folder with only a variant of its weights (`model.fp16.safetensors`), which loads by name alone."""
    weights = list(folder.glob("*.safetensors"))
    return not weights or any(".fp16" not in file.name for file in weights)


def _link_tree(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    plain = _plain_weights(source)
    for file in sorted(source.iterdir()):
        wanted = ".fp16" not in file.name or not plain
        if file.is_file() and wanted and file.suffix not in (".bin", ".onnx", ".xml", ".msgpack"):
            real = file.resolve()  # the hub's cache holds symbolic links
            name = file.name.replace(".fp16", "")
            try:
                os.link(real, target / name)
            except OSError:  # another disk, or a file system without links
                shutil.copyfile(real, target / name)
