"""IP-Adapter (Ye et al. 2023): SD 1.5 and SDXL look at pictures of a face while they draw; nothing trains.

In: a base whose adapter is on this machine, and pictures of a face. Out: what CLIP sees in them, saved as
`image_embeds.safetensors`, which a stock pipeline takes as `ip_adapter_image_embeds`; and modules that draw with it.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipelines.bases.family import Family, Modules
from pipelines.core.device import quiet
from pipelines.core.files import write_file
from pipelines.core.records import UserError
from pipelines.methods.base import Artifact, Faces

FILE, KEY = "image_embeds.safetensors", "image_embeds"
SCALE = 0.6  # at strength 1; its authors' examples lie between 0.5 and 0.7
MOST_PICTURES = 4  # each adds 16 tokens to what every layer reads


def files(family: Family) -> tuple[Path, Path]:
    """(weights, image encoder's folder). Raises UserError with the command that fetches them."""
    adapter = family.row.face_adapter
    found = adapter.find(family.row.folder) if adapter is not None else None
    if found is None:
        raise UserError(family.row.why_not("zero_shot"))
    return found


@torch.no_grad()
def encode(family: Family, folder: Path, faces: Faces) -> Artifact:
    """Save (2, n, t, d): what the encoder sees in nothing, as stock pipelines do it, and in n pictures of the face."""
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    encoder: Any = CLIPVisionModelWithProjection.from_pretrained(str(files(family)[1]), local_files_only=True).eval()
    encoder.to(family.device.name)
    side = encoder.config.image_size
    pictures = list(faces.best_faces(MOST_PICTURES, side))
    pixels = CLIPImageProcessor(size=side, crop_size=side)(pictures, return_tensors="pt").pixel_values
    pixels = pixels.to(family.device.name, encoder.dtype)
    seen = [encoder(each, output_hidden_states=True).hidden_states[-2] for each in (torch.zeros_like(pixels), pixels)]
    saved = torch.stack(seen).float().cpu().contiguous()
    write_file(folder / FILE, lambda path: save_file({KEY: saved}, str(path)))
    return Artifact(FILE, (FILE,))


def apply(family: Family, folder: Path, strength: float) -> Modules:
    """A copy of the denoiser that reads the face's pictures, `strength` times as much as usual."""
    from diffusers.loaders import IPAdapterMixin

    try:
        embeds = load_file(str(folder / FILE))[KEY]
    except (OSError, KeyError, SafetensorError) as error:
        raise UserError(f"{FILE} is missing or damaged. Make the instant column anew.") from error
    unet: Any = family.new_unet(trainable=False)
    with quiet():
        unet._load_ip_adapter_weights([read_weights(files(family)[0])])
    IPAdapterMixin.set_ip_adapter_scale(SimpleNamespace(unet=unet), SCALE * strength)
    return Modules(unet.requires_grad_(False), family.text, embeds.to(family.device.name))


def read_weights(file: Path) -> dict[str, dict[str, torch.Tensor]]:
    """As `load_ip_adapter` reads them: the projection of the pictures, and keys and values for every layer."""
    parts: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    try:
        for name, tensor in load_file(str(file)).items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
    except (OSError, KeyError, SafetensorError) as error:
        raise UserError(f"{file.name} is no IP-Adapter, or damaged. Get it again.") from error
    return parts
