"""LoRAs as other programs read them: kohya's flat names, one alpha per layer, and metadata that say what it is.

In: what PEFT learned, as diffusers names it. Out: `likeness_lora.safetensors`, which A1111, ComfyUI, InvokeAI,
sd-scripts and diffusers load; and back from any of their formats. Both go through one normal form: path -> `Layer`.
Names and shapes are in `methods/lora_names.py`. Try it: `from_kohya(load_file("lora.safetensors"), layout(row))`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file

from pipelines.bases.architectures import FAMILIES
from pipelines.bases.family import Family, Modules
from pipelines.bases.registry import BASES, BaseRow
from pipelines.core.files import write_file
from pipelines.core.records import UserError
from pipelines.methods.base import sort_header
from pipelines.methods.lora_names import Layout, path_of, role_of

# Web UIs trigger on a file's name, so there is no < or > in it. A1111 also calls a LoRA by its ss_output_name.
FILE = "likeness_lora.safetensors"
STABILITY = "https://github.com/Stability-AI/generative-models"  # ModelSpec's name for SDXL's original names


@dataclass(frozen=True)
class Layer:
    """What a LoRA changes about one weight: W + alpha / rank * up @ down, and with DoRA a length per row or column."""

    down: torch.Tensor  # (rank, in) or (rank, in, height, width)
    up: torch.Tensor  # (out, rank) or (out, rank, 1, 1)
    alpha: float
    magnitude: torch.Tensor | None = None  # DoRA: (out,), or (in,) where `per_input`
    per_input: bool = False

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def change(self, shape: tuple[int, ...] | torch.Size) -> torch.Tensor:
        """scale * up @ down in the shape of the weight, float32."""
        return (self.scale * (self.up.float().flatten(1) @ self.down.float().flatten(1))).reshape(shape)


Layers = dict[str, Layer]


# ------------------------------------------------------------------------------------------------- names


def layout_of(modules: Modules, family: Family) -> Layout:
    """The layers of live modules, adapters of PEFT on them or not."""
    architecture = family.architecture
    parts: dict[str, torch.nn.Module] = {architecture.denoiser: modules.unet}
    if architecture.text_learns:
        parts |= {name: each for (_, name), each in zip(architecture.text_parts, modules.text.encoders, strict=True)}
    return Layout(
        {
            path_of(part, name.removesuffix(".weight").removesuffix(".base_layer").replace(".base_layer.", ".")): tuple(
                weight.shape
            )
            for part, module in parts.items()
            for name, weight in module.named_parameters()
            if name.endswith(".weight") and weight.ndim in (2, 4) and ".lora_" not in name
        }
    )


def layers_of(state: Mapping[str, torch.Tensor], settings: Mapping[str, Mapping[str, Any]]) -> Layers:
    """The normal form of a diffusers state ("unet.<module>.lora_A.weight") with PEFT's settings of each part.

    rsLoRA divides alpha by the square root of the rank; every loader divides by the rank. So its alpha becomes
    alpha * sqrt(rank), which gives the same scale.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        for ending, role in _PEFT.items():
            if rest.endswith(ending):
                found.setdefault(path_of(part, rest.removesuffix(ending)), {})[role] = tensor
                break
        else:
            raise ValueError(f"{name} is no tensor of a LoRA")
    layers: Layers = {}
    for path, tensors in found.items():
        part, _, module = path.partition(".")
        rank = tensors["down"].shape[0]
        alpha = _alpha(module, settings[part])
        if settings[part].get("use_rslora"):
            alpha *= math.sqrt(rank)
        magnitude = tensors.get("magnitude")
        layers[path] = Layer(
            tensors["down"], tensors["up"], alpha, None if magnitude is None else magnitude.reshape(-1)
        )
    return layers


_PEFT = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}


def _alpha(module: str, settings: Mapping[str, Any]) -> float:
    patterns = dict(settings.get("alpha_pattern") or {})
    own = [value for name, value in patterns.items() if module == name or module.endswith(f".{name}")]
    return float(own[0] if own else settings["lora_alpha"])


def to_kohya(layers: Layers, layout: Layout) -> dict[str, torch.Tensor]:
    """Flat names: `.lora_down.weight`, `.lora_up.weight`, `.alpha`, and `.dora_scale` with DoRA.

    PEFT's magnitudes count per output, LyCORIS's per output (`wd_on_output`, its default) or per input, told apart by
    shape: (out, 1, ...) and (1, in, ...). Per output is what LyCORIS and, by the rows of the untouched weight, ComfyUI
    (weight_adapter/base.py, `weight_decompose`) read; A1111 and InvokeAI (layers/dora_layer.py) always read
    `.dora_scale` per input, so they apply other magnitudes than were learned. No file is right for all of them.
    """
    out: dict[str, torch.Tensor] = {}
    for path, layer in sorted(layers.items()):
        name = layout.flat(path)
        out[f"{name}.lora_down.weight"] = layer.down.contiguous()
        out[f"{name}.lora_up.weight"] = layer.up.contiguous()
        out[f"{name}.alpha"] = torch.tensor(layer.alpha, dtype=torch.float32)
        if layer.magnitude is not None:
            rest = [1] * (len(layout.weights[path]) - 2)
            shape = (1, -1, *rest) if layer.per_input else (-1, 1, *rest)
            out[f"{name}.dora_scale"] = layer.magnitude.reshape(shape).contiguous()
    return out


def from_kohya(
    tensors: Mapping[str, torch.Tensor], layout: Layout, alphas: Mapping[str, float] | None = None
) -> Layers:
    """The normal form of kohya's flat names, or of any other spelling `pipelines.methods.lora_names` knows.

    `alphas` (path -> alpha) are those that a file states elsewhere than in a tensor. Raises UserError, naming it, for a
    tensor that is none of a LoRA on this base.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        role = role_of(name)
        path = layout.names.get(role[0]) if role else None
        if role is None or path is None:
            raise UserError(f"{name} is no layer of this base. Choose the base the LoRA was made for.")
        found.setdefault(path, {})[role[1]] = tensor
    return {path: _layer(path, tensors, layout, (alphas or {}).get(path)) for path, tensors in found.items()}


def _layer(path: str, tensors: Mapping[str, torch.Tensor], layout: Layout, stated: float | None) -> Layer:
    if not {"down", "up"} <= set(tensors):
        raise UserError(f"{path} has only one of its two factors. Get the file again.")
    down, up, shape = tensors["down"], tensors["up"], layout.weights[path]
    alpha = float(tensors["alpha"].item()) if "alpha" in tensors else float(down.shape[0]) if stated is None else stated
    per_input, magnitude = False, tensors.get("magnitude")
    if (scale := tensors.get("scale")) is not None:
        per_input = scale.ndim > 1 and scale.shape[0] == 1 and scale.shape[1] == shape[1]
        magnitude = scale
    return Layer(down, up, alpha, None if magnitude is None else magnitude.reshape(-1), per_input)


# ------------------------------------------------------------------------------------------------- applying


@torch.no_grad()
def merge(parts: Mapping[str, torch.nn.Module], layers: Layers, *, strength: float = 1.0) -> None:
    """Add the LoRA to the float32 weights of `parts` ("unet", "text_encoder", ...), in place."""
    weights = {
        path_of(part, name.removesuffix(".weight")): weight
        for part, module in parts.items()
        for name, weight in module.named_parameters()
        if name.endswith(".weight")
    }
    for path, layer in layers.items():
        weight = weights[path]
        on = replace(layer, down=layer.down.to(weight.device), up=layer.up.to(weight.device))
        changed = weight.float() + on.change(weight.shape)
        if layer.magnitude is not None:
            kept, rest = (1, 0) if layer.per_input else (0, 1)
            others = [rest, *range(2, weight.ndim)]
            shape = [1] * weight.ndim
            shape[kept] = weight.shape[kept]
            length = torch.linalg.vector_norm(changed, dim=others, keepdim=True).clamp(min=1e-12)
            changed *= layer.magnitude.to(weight.device).float().reshape(shape) / length
        weight.add_(strength * (changed - weight))


# ------------------------------------------------------------------------------------------------- the file


def write(
    path: Path,
    layers: Layers,
    layout: Layout,
    row: BaseRow,
    *,
    phrase: str,
    prediction: str | None,
    title: str = "Likeness LoRA",
    max_steps: int | None = None,
    more: Mapping[str, str] | None = None,
) -> None:
    """The whole file. The same layers give the same bytes; no date, path, person or photo is named in it.

    `phrase` is what stands for the person in a prompt; `prediction` "epsilon" or "v_prediction", None for a flow.
    """
    tensors = to_kohya(layers, layout)
    training = _training(layers, row, phrase, path.stem, max_steps)
    # sd-scripts (library/train_util.py): hashes over the file as it would be with training metadata alone
    plain = save(tensors, training)
    begin = 8 + int.from_bytes(plain[:8], "little")
    whole = hashlib.sha256(plain[begin:]).hexdigest()
    legacy = hashlib.sha256(plain[0x100000:0x110000]).hexdigest()[:8]
    metadata = (
        training
        | {"sshs_model_hash": whole, "sshs_legacy_hash": legacy}
        | _model_spec(row, phrase, prediction, title, whole)
        | dict(more or {})
    )

    def fill(partial: Path) -> None:
        save_file(tensors, str(partial), metadata)
        sort_header(partial)

    write_file(path, fill)


def _training(layers: Layers, row: BaseRow, phrase: str, name: str, max_steps: int | None) -> dict[str, str]:
    """kohya's `ss_` metadata; every value is a text."""
    height, width = row.shapes[0]
    linear = [layer for layer in layers.values() if layer.down.ndim == 2]
    kernels = [layer for layer in layers.values() if layer.down.ndim == 4]
    arguments: dict[str, str] = {}
    if kernels and linear:
        arguments |= {"conv_dim": _one(layer.rank for layer in kernels), "conv_alpha": _one(k.alpha for k in kernels)}
    decomposed = any(layer.magnitude is not None for layer in layers.values())
    if decomposed:
        arguments |= {"algo": "lora", "dora_wd": "True", "wd_on_output": "True"}
    said = {
        "ss_v2": "False",
        "ss_base_model_version": FAMILIES[row.family].lora_names[0],
        "ss_network_module": "lycoris.kohya" if decomposed else "networks.lora",
        "ss_network_dim": _one(layer.rank for layer in linear or kernels),
        "ss_network_alpha": _one(layer.alpha for layer in linear or kernels),
        "ss_network_args": json.dumps(arguments),
        "ss_output_name": name,
        "ss_resolution": f"({width}, {height})",
        # web UIs suggest these words; the frequency is always 1, so that it does not tell the number of photos
        "ss_tag_frequency": json.dumps({"likeness": {phrase: 1}}),
    }
    if row.name in BASES:  # a local base's name is a path of this machine
        said["ss_sd_model_name"] = row.repo or row.name
    if max_steps is not None:
        said["ss_max_train_steps"] = str(max_steps)
    return said


def _one(values: Any) -> str:
    """The value, if all are equal, else "Dynamic", as kohya's resize script writes."""
    found = {float(value) for value in values}
    return f"{found.pop():g}" if len(found) == 1 else "Dynamic"


def _model_spec(row: BaseRow, phrase: str, prediction: str | None, title: str, sha256: str) -> dict[str, str]:
    """ModelSpec 1.0.1; the date is left out, so that equal trainings give equal files."""
    height, width = row.shapes[0]
    predicts = {"epsilon": "epsilon", "v_prediction": "v"}.get(prediction or "")  # a flow has no value there
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{FAMILIES[row.family].lora_names[1]}/lora",
        "modelspec.implementation": STABILITY if len(FAMILIES[row.family].text_parts) > 1 else "diffusers",
        "modelspec.title": title,
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.trigger_phrase": phrase,
        "modelspec.hash_sha256": f"0x{sha256}",
    } | ({"modelspec.prediction_type": predicts} if predicts else {})
