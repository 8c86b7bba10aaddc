"""Tensor names of LoRA and embedding files, and the names of a base's layers in other programs. Light: no torch.

In: a `.safetensors` file, or the weights of a base; no tensor is loaded. Out: a `Header`, checked, a `Layout` (every
layer's path and shape), and the names a path has in other programs.
Try it: `print(len(layout(find_base("portrait-128")).weights))`.

Paths are "unet.down_blocks.0.attentions.0....to_q" and "text_encoder[_2].encoder.layers.0.self_attn.q_proj", as
diffusers and transformers name their modules, without the "text_model." that comes and goes between versions.
A transformer's begin with "transformer.".
Names read in: AUTOMATIC1111 extensions-builtin/Lora/networks.py, ComfyUI comfy/lora.py and comfy/utils.py, InvokeAI
invokeai/backend/patches/lora_conversions/, kohya-ss/sd-scripts networks/lora.py, diffusers
loaders/lora_conversion_utils.py (versions of August 2026); for Z-Image also ComfyUI comfy/utils.py
(`z_image_to_diffusers`), InvokeAI's z_image_lora_conversion_utils.py, kohya-ss/musubi-tuner networks/lora_zimage.py.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pipelines.bases.architectures import FAMILIES
from pipelines.bases.registry import BASES, BaseRow
from pipelines.core.records import UserError

HEADER_LIMIT = 8 << 20  # bytes; a LoRA of every layer of SDXL has 0.4 MB
TENSOR_LIMIT = 12_000  # SDXL with every layer, alphas and magnitudes: about 4,500
METADATA_LIMIT = 4 << 20  # characters of one value: trainers store the tags of all their pictures
NUMBERS = ("F32", "F16", "BF16")  # what learned numbers may be stored as
SCALARS = (*NUMBERS, "F64", "I64", "I32")  # and a single number, such as alpha
# Bits of the exponent: all set means infinite, or no number at all.
_EXPONENT = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
PICKLE = "Files like that can run programs when they are opened, so they are not. Use its .safetensors version."


# ------------------------------------------------------------------------------------------------- a file's header


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: where its bytes lie, counted from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    tensors: dict[str, Entry]
    metadata: dict[str, str] = field(default_factory=dict)


def read_header(path: Path, *, called: str | None = None, size_limit: int | None = None) -> Header:
    """The header of a safetensors file that is not trusted. No tensor is read.

    Raises UserError, calling the file `called`, for another kind of file (by name and by content), one that is too
    large or cut short, and for a header that is too long, no JSON, or whose parts don't cover the file exactly.
    """
    from safetensors import SafetensorError, safe_open

    name = called or path.name
    if path.suffix.lower() != ".safetensors":
        raise UserError(f"{name} is not a .safetensors file. {PICKLE}")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            first, begins = file.read(8), file.read(1)
            # the first byte is a length's: a header of 128 bytes begins like a pickle, but a brace follows the length
            if first[:4] == b"PK\x03\x04" or (first[:1] == b"\x80" and begins != b"{"):
                raise UserError(f"{name} holds a Python pickle, whatever its name says. {PICKLE}")
            if size_limit is not None and size > size_limit:
                raise UserError(f"{name} has {size / 1e6:,.0f} MB; at most {size_limit / 1e6:,.0f} MB are taken.")
            length = int.from_bytes(first, "little")
            if length > HEADER_LIMIT:
                raise ValueError("its header is longer than any real one")
            with safe_open(path, "numpy"):  # it checks that the tensors fill the file without gap or overlap
                saved = json.loads(begins + file.read(length - 1))
    except OSError as error:
        raise UserError(f"{name} can't be read ({(error.strerror or 'unknown').lower()}). Try again.") from error
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{name} is damaged or no safetensors file: {error}. Get it again.") from error
    metadata = saved.pop("__metadata__", {})
    if not 1 <= len(saved) <= TENSOR_LIMIT:
        said = f"it names {len(saved):,} tensors, and 1 to {TENSOR_LIMIT:,} are taken"
        raise UserError(f"{name} is damaged or no safetensors file: {said}. Get it again.")
    tensors = {
        key: Entry(each["dtype"], tuple(each["shape"]), *(8 + length + at for at in each["data_offsets"]))
        for key, each in saved.items()
    }
    return Header(tensors, {key: value for key, value in metadata.items() if len(value) <= METADATA_LIMIT})


def broken_numbers(path: Path, entries: Iterable[Entry]) -> bool:
    """Whether one of these tensors (of NUMBERS) holds a NaN or an infinite number. Reads in pieces."""
    import numpy as np

    piece = 4 << 20
    with path.open("rb") as file:
        for each in entries:
            kind, mask = _EXPONENT[each.dtype]
            file.seek(each.start)
            left = each.end - each.start
            while left:
                block = np.frombuffer(file.read(min(piece, left)), kind)
                if not len(block):
                    return True  # the file was cut meanwhile
                if bool(((block & mask) == mask).any()):
                    return True
                left -= block.nbytes
    return False


def number(path: Path, entry: Entry) -> float:
    """The one number of a tensor of SCALARS, for instance alpha. Raises ValueError when there are several."""
    import numpy as np

    if entry.numbers != 1 or entry.dtype not in SCALARS:
        raise ValueError("not one number")
    with path.open("rb") as file:
        file.seek(entry.start)
        block = file.read(entry.end - entry.start)
    if entry.dtype == "BF16":
        return float(np.frombuffer(b"\0\0" + block, "<f4")[0])
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4"}
    return float(np.frombuffer(block, kinds[entry.dtype])[0])


def write(path: Path, source: Path, parts: Mapping[str, Entry], numbers: Mapping[str, float]) -> None:
    """A new safetensors file: `parts` of `source` byte by byte, and single float32 numbers. Its header is ordered."""
    begin, header = 0, {}
    for name, each in sorted(parts.items()):
        size = each.end - each.start
        header[name] = {"dtype": each.dtype, "shape": list(each.shape), "data_offsets": [begin, begin + size]}
        begin += size
    for name in sorted(numbers):
        header[name] = {"dtype": "F32", "shape": [], "data_offsets": [begin, begin + 4]}
        begin += 4
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with source.open("rb") as old, path.open("wb") as new:
        new.write(len(text).to_bytes(8, "little") + text)
        for _, each in sorted(parts.items()):
            old.seek(each.start)
            left = each.end - each.start
            while left:
                block = old.read(min(1 << 20, left))
                if not block:
                    raise UserError("The file became shorter while it was read. Try again.")
                new.write(block)
                left -= len(block)
        for name in sorted(numbers):
            new.write(struct.pack("<f", numbers[name]))


# ------------------------------------------------------------------------------------------------- a base's layers


@dataclass(frozen=True)
class Layout:
    """The weights of a base that can be learned on: path -> shape, (out, in) or (out, in, height, width)."""

    weights: dict[str, tuple[int, ...]]

    @cached_property
    def second_encoder(self) -> bool:
        """SDXL: two encoders, and a denoiser that others know by the names of Stability's own code."""
        return any(path.startswith("text_encoder_2.") for path in self.weights)

    @cached_property
    def layers_per_block(self) -> int:
        return len({path.split(".")[4] for path in self.weights if path.startswith("unet.down_blocks.0.resnets.")})

    def has_attention(self, block: str) -> bool:
        return any(path.startswith(f"unet.{block}.attentions.") for path in self.weights)

    @cached_property
    def names(self) -> dict[str, str]:
        """Every name another program may have for a layer, dots and all written as "_" -> its path."""
        return {name: path for path in self.weights for name in self._names(path)}

    def _names(self, path: str) -> Iterator[str]:
        part, _, rest = path.partition(".")
        flat = rest.replace(".", "_")
        if part == TRANSFORMER:
            spellings = [flat]
            if flat.endswith("to_out_0"):
                spellings += [flat.removesuffix("_0"), f"{flat.removesuffix('to_out_0')}out"]
            yield from (f"{prefix}{spelled}" for spelled in spellings for prefix in ("", *TRANSFORMER_PREFIXES))
            return
        if part == "unet":
            stability = self.stability(path).replace(".", "_")
            for spelled in dict.fromkeys((flat, flat.removesuffix("_0") if flat.endswith("to_out_0") else flat)):
                yield from (f"{prefix}{spelled}" for prefix in ("", *UNET_PREFIXES))
            yield from (f"{prefix}{stability}" for prefix in ("lora_unet_", "diffusion_model_"))
            return
        old = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
        head, _, tail = flat.rpartition("self_attn_")
        spellings = [flat, *([f"{head}self_attn_{old[tail]}"] if head and tail in old else [])]
        for prefix in TEXT_PREFIXES[part]:
            for spelled in spellings:
                yield f"{prefix}text_model_{spelled}"
                yield f"{prefix}transformer_text_model_{spelled}"
                yield f"{prefix}{spelled}"
        if part == "text_encoder":
            yield from (f"transformer_text_model_{spelled}" for spelled in spellings)

    @cached_property
    def fused(self) -> dict[str, tuple[str, str, str]]:
        """Names of one layer for query, key and value, as Z-Image's own code has it -> the three paths here."""
        return {
            f"{name.removesuffix('to_q')}qkv": (path, f"{path[:-1]}k", f"{path[:-1]}v")
            for name, path in self.names.items()
            if path.startswith(f"{TRANSFORMER}.") and name.endswith("to_q")
        }

    def flat(self, path: str) -> str:
        """The flat name, without its ending, that A1111, ComfyUI, InvokeAI, diffusers and sd-scripts all read.

        For Z-Image no name works in all of them. ComfyUI, InvokeAI and diffusers read this one; musubi-tuner's is
        "lora_unet_layers_0_attention_to_q", from which ComfyUI loads no attention layers, without an error.
        """
        part, _, rest = path.partition(".")
        if part == TRANSFORMER:
            return f"diffusion_model.{rest}"
        if part == "unet":
            # sd-scripts trains SDXL on Stability's UNet and SD 1.5 on diffusers'; A1111 finds SDXL's first upsampler
            # by Stability's name only
            spelled = self.stability(path) if self.second_encoder else rest
            return f"lora_unet_{spelled.replace('.', '_')}"
        if rest == "text_projection":
            return "lora_te2_text_projection"
        number = {"text_encoder": "1" if self.second_encoder else "", "text_encoder_2": "2"}[part]
        return f"lora_te{number}_text_model_{rest.replace('.', '_')}"

    def stability(self, path: str) -> str:
        """A denoiser's layer as Stability's own code (and a single-file checkpoint) names it."""
        rest = path.removeprefix("unet.")
        per_block = self.layers_per_block + 1
        match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", rest)
        if match:
            side, block, kind, layer = match[1], int(match[2]), match[3], int(match[4])
            place = block * per_block + layer + (1 if side == "down" else 0)
            inner = _RESNET.get(match[5], match[5]) if kind == "resnets" else match[5]
            return f"{'input' if side == 'down' else 'output'}_blocks.{place}.{int(kind == 'attentions')}.{inner}"
        match = re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", rest)
        if match:
            return f"input_blocks.{(int(match[1]) + 1) * per_block}.0.op"
        match = re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", rest)
        if match:
            block = int(match[1])
            after = 1 + self.has_attention(f"up_blocks.{block}")
            return f"output_blocks.{block * per_block + per_block - 1}.{after}.conv"
        match = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", rest)
        if match:
            if match[1] == "attentions":
                return f"middle_block.1.{match[3]}"
            return f"middle_block.{2 * int(match[2])}.{_RESNET.get(match[3], match[3])}"
        return _OUTSIDE.get(rest, rest)


TRANSFORMER = "transformer"
TRANSFORMER_PREFIXES = ("transformer_", "diffusion_model_", "lora_unet_", "lora_unet__", "lycoris_",
                        "base_model_model_", "base_model_model_transformer_", "lora_transformer_")  # fmt: skip
UNET_PREFIXES = ("lora_unet_", "unet_", "base_model_model_", "diffusion_model_", "lycoris_unet_")
TEXT_PREFIXES = {
    "text_encoder": ("lora_te_", "lora_te1_", "text_encoder_", "lycoris_te1_"),
    "text_encoder_2": ("lora_te2_", "text_encoder_2_", "lycoris_te2_"),
}
_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
           "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
_OUTSIDE = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
            "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
            "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}  # fmt: skip


def path_of(part: str, name: str) -> str:
    """The path of a module called `name` in `part` ("unet", "text_encoder", "text_encoder_2")."""
    return f"{part}.{name.removeprefix('text_model.')}"


def layout(row: BaseRow) -> Layout:
    """The layers of a base, from the headers of its weight files.

    Raises UserError when those are not on this machine, or damaged.
    """
    if row.is_single_file:
        return Layout(_from_checkpoint(_weights(Path(str(row.path)))))
    folder = row.folder or _cached(row)
    found: dict[str, tuple[int, ...]] = {}
    # a transformer's text encoder is a chat model, which never trains
    whole = folder is not None and (folder / TRANSFORMER).is_dir()
    for part in (TRANSFORMER,) if whole else ("unet", "text_encoder", "text_encoder_2"):
        files = sorted((folder / part).glob("*.safetensors")) if folder else []
        for file in files:
            found |= {path_of(part, name): shape for name, shape in _weights(file).items()}
    if not any(path.startswith(("unet.", f"{TRANSFORMER}.")) for path in found):
        raise UserError(
            f"{row.title} is not on this machine yet, so nothing can be checked against it. Train or draw with it once."
        )
    return Layout(found)


def _cached(row: BaseRow) -> Path | None:
    """The folder of a base of the hub, where the hub's cache has it."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(str(row.repo), "model_index.json", revision=row.revision)
    return Path(found).parent if isinstance(found, str) else None


def _weights(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a base's own matrices and kernels by module name."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file.name} of the base is damaged. Get it again.") from error
    return {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if name.endswith((".weight", "_weight")) and len(shape) in (2, 4)
    }


def _from_checkpoint(found: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The same of a single-file checkpoint, whose UNet has two layers per block and Stability's names."""
    out: dict[str, tuple[int, ...]] = {}
    for name, shape in found.items():
        if name.startswith("model.diffusion_model."):
            out[f"unet.{_from_stability(name.removeprefix('model.diffusion_model.'))}"] = shape
        for prefix in ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer."):
            if name.startswith(prefix):
                out[path_of("text_encoder", name.removeprefix(prefix))] = shape
        if name.startswith("conditioner.embedders.1.model."):
            out |= {f"text_encoder_2.{each}": of for each, of in _from_open_clip(name[30:], shape)}
    return out


def _from_stability(name: str) -> str:
    inner = {new: old for old, new in _RESNET.items()}
    match = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)", name)
    if match and (match[1], match[2]) != ("input", "0"):
        place = int(match[2]) - (1 if match[1] == "input" else 0)
        block, layer, rest = place // 3, place % 3, match[4]
        side = "down" if match[1] == "input" else "up"
        if rest == "op":
            return f"down_blocks.{block}.downsamplers.0.conv"
        if rest == "conv":
            return f"up_blocks.{block}.upsamplers.0.conv"
        if match[3] == "0":
            return f"{side}_blocks.{block}.resnets.{layer}.{inner.get(rest, rest)}"
        return f"{side}_blocks.{block}.attentions.{layer}.{rest}"
    match = re.fullmatch(r"middle_block\.(\d)\.(.+)", name)
    if match:
        if match[1] == "1":
            return f"mid_block.attentions.0.{match[2]}"
        return f"mid_block.resnets.{int(match[1]) // 2}.{inner.get(match[2], match[2])}"
    return {new: old for old, new in _OUTSIDE.items()}.get(name, name)


def _from_open_clip(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name)
    if name == "token_embedding":
        yield "embeddings.token_embedding", shape
    if not match:
        return
    layer = f"encoder.layers.{match[1]}"
    if match[2] == "attn.in_proj_weight":
        for one in ("q_proj", "k_proj", "v_proj"):
            yield f"{layer}.self_attn.{one}", (shape[0] // 3, shape[1])
    elif match[2] in _OPEN_CLIP:
        yield f"{layer}.{_OPEN_CLIP[match[2]]}", shape


_OPEN_CLIP = {"attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}


# ------------------------------------------------------------------------------------------------- a tensor's name

# The ending of a tensor's name -> its role. The product of "up" and "down" is the change of the layer's weight.
_ENDINGS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), role)
    for pattern, role in (
        (r"(.+)\.lora_down\.weight", "down"),
        (r"(.+)\.lora_up\.weight", "up"),
        (r"(.+)\.lora_A(?:\.[^.]+)?\.weight", "down"),
        (r"(.+)\.lora_B(?:\.[^.]+)?\.weight", "up"),
        (r"(.+)[._]lora\.down\.weight", "down"),
        (r"(.+)[._]lora\.up\.weight", "up"),
        (r"(.+)\.lora_linear_layer\.down\.weight", "down"),
        (r"(.+)\.lora_linear_layer\.up\.weight", "up"),
        (r"(.+)\.lora_magnitude_vector(?:\.(?!weight$)[^.]+)?(?:\.weight)?", "magnitude"),  # PEFT: one per output
        (r"(.+)\.dora_scale", "scale"),  # LyCORIS and kohya: per output or input, by its shape
        (r"(.+?)(?:\.lora|_lora)?\.alpha", "alpha"),
    )
)


def role_of(name: str) -> tuple[str, str] | None:
    """(the layer's name with "_" for dots, what the tensor is) of a LoRA's tensor; None for anything else."""
    for pattern, role in _ENDINGS:
        match = pattern.fullmatch(name)
        if match:
            return match[1].replace(".processor", "").replace(".", "_"), role
    return None


# ------------------------------------------------------------------------------------------------- which base


def made_for(header: Header) -> str | None:
    """The title of the kind of base a file was made for, by its metadata or its shapes; None when they don't tell."""
    said = header.metadata.get("modelspec.architecture", "") + " " + header.metadata.get("ss_base_model_version", "")
    for words, title in (*_own_words(), *OTHER_WORDS):
        if any(word in said.lower() for word in words):
            return title
    for name, each in header.tensors.items():
        # what cross-attention reads is as wide as the base's text
        found = role_of(name)
        if found and found[1] == "down" and re.search(r"attn2_to_[kv]$", found[0]) and len(each.shape) >= 2:
            return _widths().get(each.shape[1])
        if found and found[1] == "down" and re.search(r"layers_\d+_attention_(to_[qkv]|qkv)$", found[0]):
            return BASES["z-image"].title if each.shape[1:] == (Z_IMAGE_WIDTH,) else None
        if re.search(r"double_blocks|single_transformer_blocks|joint_blocks", name):
            return "FLUX or another transformer base"
    return None


def kind_of(row: BaseRow) -> str:
    """The same title for a base."""
    return _title(row.family)


def _title(family: str) -> str:
    return next(known.title for known in BASES.values() if known.family == family)


def _own_words() -> list[tuple[tuple[str, ...], str]]:
    return [(each.lora_words, _title(family)) for family, each in FAMILIES.items() if each.lora_words]


def _widths() -> dict[int, str]:
    own = {each.context_width: _title(family) for family, each in FAMILIES.items() if each.context_width is not None}
    return {1024: SD2} | own


SD2 = "Stable Diffusion 2"
OTHER_WORDS = (
    (("sd_v2", "stable-diffusion-v2"), SD2),
    (("flux",), "FLUX"),
    (("sd3", "stable-diffusion-3"), "Stable Diffusion 3"),
)
Z_IMAGE_WIDTH = 3840
