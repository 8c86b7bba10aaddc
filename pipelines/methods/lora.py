"""LoRA (Hu et al. 2021): learn small low-rank changes of the denoiser's layers, and of the text encoders' if asked.

With `dora` each weight's size learns apart from its direction (Liu et al. 2024); with `rslora` alpha is divided by the
root of the rank (Kalajdzievski 2023).

PEFT makes the adapters, diffusers' own writer saves them (`pytorch_lora_weights.safetensors`) with the metadata that
keeps alpha: without it loaders assume alpha = rank and apply the wrong strength. `load_lora_weights(folder)` reads it.
Beside it lies the same for A1111, ComfyUI and InvokeAI (`likeness_lora.safetensors`, see `methods.lora_files`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipelines.bases.family import PARKED, Family, Modules, moved
from pipelines.core.device import derived_seed, quiet
from pipelines.core.files import write_file
from pipelines.core.records import Recipe, UserError
from pipelines.methods import lora_files
from pipelines.methods.base import Artifact, Group, Learner, Method, sort_header

FILE = "pytorch_lora_weights.safetensors"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "conv", "time_emb_proj")
TARGETS: dict[str, tuple[str, ...]] = {
    "attention": ATTENTION,
    "attention+feed_forward": ATTENTION + FEED_FORWARD,
    "all": ATTENTION + FEED_FORWARD + CONVOLUTIONS,
}
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


class LoRA(Method):
    def learner(self, family: Family, recipe: Recipe, *, identity: np.ndarray | None = None) -> LoRALearner:
        if recipe.targets not in TARGETS:
            raise UserError(f"LoRA targets are one of {', '.join(TARGETS)}, not {recipe.targets}.")
        if recipe.rank < 1 or not recipe.alpha > 0:
            raise UserError("LoRA needs a rank of at least 1 and an alpha above 0.")
        if recipe.text_learning_rate > 0 and not family.architecture.text_learns:
            raise UserError(
                f"The text encoder of {family.row.title} does not learn. Set the text encoder's learning rate to 0."
            )
        return LoRALearner(family, recipe)

    def apply(self, family: Family, folder: Path, recipe: Recipe, *, strength: float = 1.0) -> Modules:
        """Loaded by diffusers and merged into float32 copies of the weights: drawing is as fast as with the base."""
        where = PARKED if family.parked else None  # float32 copies need twice the memory
        unet = family.new_unet(trainable=True, device=where).requires_grad_(False)
        # a file may hold layers of text encoders: they must not change the base's shared encoders
        text = family.new_text(device=where) if family.architecture.text_learns else family.text
        modules = Modules(unet, text)
        scaled = recipe.dora and strength != 1  # diffusers' scale of a DoRA is not linear: 0 would not give the base
        plain = [part.clone() for part in _weights(modules)] if scaled else []
        pipeline = family.pipeline(modules)
        try:
            with quiet():
                pipeline.load_lora_weights(
                    str(folder), weight_name=FILE, adapter_name="likeness", local_files_only=True
                )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise UserError(
                f"{FILE} is missing, damaged or was not learned on {family.row.title}. Train again, or choose its base."
            ) from error
        adapted = [name for name, part in pipeline.components.items() if getattr(part, "peft_config", None)]
        pipeline.fuse_lora(components=adapted, lora_scale=1.0 if scaled else strength)
        pipeline.unload_lora_weights()
        for merged, before in zip(_weights(modules), plain, strict=bool(plain)):
            merged.copy_(before + strength * (merged - before))
        moved(modules.unet, family.device.name, family.device.torch_dtype).requires_grad_(False).eval()
        if not any(name in adapted for _, name in family.architecture.text_parts):
            return Modules(modules.unet, family.text)  # the copies were not changed
        for encoder in modules.text.encoders:
            # in float32, as in training, since `previews.verify` compares them with the trained ones
            moved(encoder, family.device.name, torch.float32).requires_grad_(False).eval()
        return modules


class LoRALearner(Learner):
    def __init__(self, family: Family, recipe: Recipe) -> None:
        self._family, self._recipe = family, recipe
        self.live_text = recipe.text_learning_rate > 0
        unet = family.new_unet(trainable=False).train()
        text = family.new_text() if self.live_text else family.text
        with torch.random.fork_rng(devices=[]):  # PEFT takes its first weights from the global generator
            torch.manual_seed(derived_seed(recipe.seed, 11))
            _add_adapter(unet, recipe, (family.architecture.targets or TARGETS)[recipe.targets], dora=recipe.dora)
            if self.live_text:
                for encoder in text.encoders:
                    # never DoRA: diffusers' loader drops the magnitudes of text encoders in silence (0.42.1 with
                    # transformers 5.23), so that every other program would draw something else
                    _add_adapter(encoder, recipe, TEXT_TARGETS)
        self.modules = Modules(unet, text)

    def _encoders(self) -> tuple[torch.nn.Module, ...]:
        return self.modules.text.encoders if self.live_text else ()

    def groups(self) -> list[Group]:
        recipe = self._recipe
        groups = [Group(_adapters(self.modules.unet), recipe.learning_rate, recipe.weight_decay)]
        if self.live_text:
            words = tuple(parameter for encoder in self._encoders() for parameter in _adapters(encoder))
            groups.append(Group(words, recipe.text_learning_rate, recipe.weight_decay))
        return groups

    def tensors(self) -> dict[str, torch.nn.Parameter]:
        parts = {"unet": self.modules.unet} | {f"encoder_{k}": each for k, each in enumerate(self._encoders())}
        return {
            f"{part}.{name}": parameter
            for part, module in parts.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def scales(self) -> tuple[str, ...]:
        """The change is B @ A, so scaling B scales it. DoRA's change is no such product and can't be scaled."""
        if self._recipe.dora:
            return ()
        return tuple(name for name in self.tensors() if ".lora_B." in name)

    @torch.no_grad()
    def start_from(self, folder: Path) -> None:
        parts = {"unet": self._family.architecture.denoiser} | {
            f"encoder_{k}": name for k, (_, name) in enumerate(self._family.architecture.text_parts)
        }
        try:
            saved = load_file(str(folder / FILE))
            for name, parameter in self.tensors().items():
                part, _, rest = name.partition(".")
                wanted = rest.replace(".default.", ".")
                if "lora_magnitude_vector" in rest:
                    wanted = wanted.removesuffix(".weight")
                named = (f"{parts[part]}.{wanted}", f"{parts[part]}.text_model.{wanted}")
                parameter.copy_(saved[next(each for each in named if each in saved)])
        except (OSError, SafetensorError, StopIteration, RuntimeError) as error:
            raise UserError(
                "What LoRA learned before does not fit: it has another rank or kind, or other layers learned. Choose "
                "the same, or train afresh."
            ) from error

    def export(self, folder: Path) -> Artifact:
        import diffusers

        architecture = self._family.architecture
        options: dict[str, Any] = {
            f"{architecture.denoiser}_lora_layers": _layers(self.modules.unet),
            f"{architecture.denoiser}_lora_adapter_metadata": _settings(self.modules.unet),
        }
        for (_, name), encoder in zip(self._family.architecture.text_parts, self._encoders(), strict=False):
            layers = _layers(encoder)
            if not hasattr(encoder, "text_model"):
                # transformers 5 flattened this class; every other program's loader still expects the old names
                layers = {f"text_model.{key}": tensor for key, tensor in layers.items()}
            options |= {f"{name}_lora_layers": layers, f"{name}_lora_adapter_metadata": _settings(encoder)}
        writer = getattr(diffusers, self._family.architecture.pipeline).save_lora_weights

        def write(path: Path) -> None:
            writer(str(path.parent), weight_name=path.name, safe_serialization=True, **options)
            sort_header(path)

        write_file(folder / FILE, write)
        self._export_flat(folder, options)
        return Artifact(FILE, (FILE,))

    def _export_flat(self, folder: Path, options: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the same LoRA with the names that web UIs know. This project reads the other file only."""
        family = self._family
        parts = [
            family.architecture.denoiser,
            *(name for (_, name), _ in zip(family.architecture.text_parts, self._encoders(), strict=False)),
        ]
        state = {f"{part}.{name}": each for part in parts for name, each in options[f"{part}_lora_layers"].items()}
        lora_files.write(
            folder / lora_files.FILE,
            lora_files.layers_of(state, {part: options[f"{part}_lora_adapter_metadata"] for part in parts}),
            lora_files.layout_of(self.modules, family),
            family.row,
            phrase=LoRA().phrase(family.row, self._recipe),
            prediction=getattr(family.schedule, "prediction", None),
            max_steps=self._recipe.steps,
        )


def _add_adapter(module: torch.nn.Module, recipe: Recipe, targets: tuple[str, ...], *, dora: bool = False) -> None:
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type]  # any positive number works
        target_modules=list(targets),
        init_lora_weights="gaussian",
        use_dora=dora,
        use_rslora=recipe.rslora,
    )
    module.add_adapter(config)  # type: ignore[operator]
    for part in module.modules():
        if isinstance(part, LoraLayer):
            # autocast chooses the format; PEFT's own cast would copy every input to float32 first
            part.cast_input_dtype_enabled = False
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _weights(modules: Modules) -> list[torch.Tensor]:
    """All weights, in an order that is the same before and after adapters are merged."""
    parts = (modules.unet, *modules.text.encoders)
    return [parameter.detach() for part in parts for _, parameter in sorted(part.named_parameters())]


def _adapters(module: torch.nn.Module) -> tuple[torch.nn.Parameter, ...]:
    return tuple(parameter for parameter in module.parameters() if parameter.requires_grad)


def _layers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The adapters in float16, all named `lora_A`/`lora_B`.

    diffusers' example scripts also run `convert_state_dict_to_diffusers`, which renames attention layers only. Its
    loader then looks at the first name alone: with adapters on other layers too, all of attention is silently left out
    (seen in 0.42.1).
    """
    from peft.utils import get_peft_model_state_dict

    state = get_peft_model_state_dict(module)
    return {name: tensor.detach().cpu().half().contiguous() for name, tensor in state.items()}


def _settings(module: torch.nn.Module) -> dict[str, object]:
    """The adapter's configuration, as diffusers stores it in the file's metadata."""
    settings = dict(module.peft_config["default"].to_dict())  # type: ignore[index, operator, union-attr]
    settings["base_model_name_or_path"] = None  # a path of this machine does not belong in a file that people share
    return {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}
