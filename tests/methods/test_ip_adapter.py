"""Laws of the IP-Adapter: it draws what the stock pipeline draws, its dial works, and the base stays as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipelines.bases.loading import load_family
from pipelines.bases.registry import BASES, find_base
from pipelines.bases.sampling import Row, sample_latents
from pipelines.core.device import Device, noise
from pipelines.core.records import UserError
from pipelines.methods import ip_adapter, method
from tests.tiny import make_tiny_sd, tiny_recipe

ZERO_SHOT, RECIPE = method("zero_shot"), tiny_recipe("sd15", "zero_shot")
PROMPT, STEPS, GUIDANCE, SEED = "portrait of man", 3, 5.0, 5
HIDDEN, SEEN, TOKENS, SIDE = 32, 16, 4, 32


class Faces:
    def best_faces(self, count, size_px):
        coarse = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
        return coarse.repeat(size_px // 4, 1).repeat(size_px // 4, 2)


def some(*shape):
    return 0.3 * torch.randn(shape)


def random_projection(width):
    """The resampler of a plus-face adapter, under the names of the published file."""
    parts = {"latents": some(1, TOKENS, HIDDEN), "proj_in.weight": some(HIDDEN, SEEN), "proj_in.bias": some(HIDDEN)}
    parts |= {"proj_out.weight": some(width, HIDDEN), "proj_out.bias": some(width)}
    parts |= {"norm_out.weight": some(width), "norm_out.bias": some(width)}
    for layer in (f"layers.{index}" for index in range(4)):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            parts |= {f"{layer}.{norm}.{kind}": some(HIDDEN) for kind in ("weight", "bias")}
        parts |= {f"{layer}.0.to_q.weight": some(64, HIDDEN), f"{layer}.0.to_kv.weight": some(128, HIDDEN)}
        parts |= {f"{layer}.0.to_out.weight": some(HIDDEN, 64), f"{layer}.1.1.weight": some(4 * HIDDEN, HIDDEN)}
        parts |= {f"{layer}.1.3.weight": some(HIDDEN, 4 * HIDDEN)}
    return parts


def add_adapter(folder: Path, unet: torch.nn.Module) -> None:
    """A random adapter and a random CLIP encoder, of the real classes, beside a local base."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    width = unet.config.cross_attention_dim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        saved = {f"image_proj.{name}": tensor for name, tensor in random_projection(width).items()}
        crossing = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
        for index, name in enumerate(crossing):
            size = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
            saved |= {f"ip_adapter.{2 * index + 1}.to_{kind}_ip.weight": some(size, width) for kind in ("k", "v")}
        config = CLIPVisionConfig(
            hidden_size=SEEN, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=SIDE,
            patch_size=8, projection_dim=8,
        )  # fmt: skip
        encoder = CLIPVisionModelWithProjection(config)
    encoder.save_pretrained(folder / "ip_adapter" / "image_encoder")
    save_file(saved, str(folder / "ip_adapter" / weights_name(folder)))


def weights_name(folder):
    return Path(find_base(str(folder)).face_adapter.weights).name


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def base(request, tmp_path_factory):
    folder = make_tiny_sd(tmp_path_factory.mktemp("bases") / request.param, request.param)
    row = find_base(str(folder))
    assert "zero_shot" not in row.offered
    family = load_family(row, Device("cpu", "float32", "exact in tests"))
    add_adapter(folder, family.shared().unet)
    assert row.offered[0] == row.compared[0] == "zero_shot", "it is offered once the files are there"
    out = tmp_path_factory.mktemp("zero_shot")
    assert ZERO_SHOT.encode(family, out, Faces()).file == "image_embeds.safetensors"
    return family, out, folder


def ours(family, modules, **more):
    rows = [Row(PROMPT, SEED, guidance=GUIDANCE), Row(PROMPT, SEED + 1, guidance=GUIDANCE)]
    return sample_latents(family, modules, rows, steps=STEPS, **more)


def test_it_draws_the_stock_pipelines_pictures(base):
    from diffusers import DiffusionPipeline
    from diffusers.models.attention_processor import AttnProcessor

    family, out, folder = base
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.set_attn_processor(AttnProcessor())  # as ours computes on a CPU
    pipeline.load_ip_adapter(str(folder / "ip_adapter"), subfolder="", weight_name=weights_name(folder))
    pipeline.set_ip_adapter_scale(ip_adapter.SCALE)
    pipeline.unet.to(memory_format=torch.channels_last)
    faces = [Image.fromarray(each) for each in Faces().best_faces(4, SIDE)]
    embeds = load_file(str(out / "image_embeds.safetensors"))["image_embeds"]
    size = family.row.resolution_px
    latents = torch.cat([noise(seed, (1, *family.latent_shape())) for seed in (SEED, SEED + 1)])
    drawn = ours(family, ZERO_SHOT.apply(family, out, RECIPE))
    for shown in ({"ip_adapter_image": [faces]}, {"ip_adapter_image_embeds": [embeds]}):
        theirs = pipeline(
            PROMPT, num_images_per_prompt=2, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
            latents=latents.clone(), output_type="latent", height=size, width=size, **shown,
        ).images  # fmt: skip
        print("greatest difference", (drawn - theirs).abs().max().item())
        assert torch.allclose(drawn, theirs, atol=1e-4)
    plain = ours(family, family.shared())
    assert (drawn - plain).abs().mean() > 0.01, "and it is not what the base draws by itself"


def test_the_dial_ends_at_the_base_which_stays_as_it_was(base):
    family, out, _ = base
    before = ours(family, family.shared())
    nobody, half, whole = (
        ours(family, ZERO_SHOT.apply(family, out, RECIPE, strength=strength)) for strength in (0.0, 0.5, 1.0)
    )
    assert torch.allclose(nobody, before, atol=1e-4)
    assert (half - before).abs().mean() < (whole - before).abs().mean()
    assert torch.equal(ours(family, family.shared()), before)
    assert family.shared().unet.encoder_hid_proj is None and family.shared().image_embeds is None


def test_two_pictures_at_once_are_as_drawn_one_by_one(base):
    family, out, _ = base
    modules = ZERO_SHOT.apply(family, out, RECIPE)
    alone = sample_latents(family, modules, [Row(PROMPT, SEED, guidance=GUIDANCE)], steps=STEPS)
    assert torch.allclose(ours(family, modules)[:1], alone, atol=1e-4)
    unguided = sample_latents(family, modules, [Row(PROMPT, SEED, guidance=1.0)], steps=STEPS)
    assert unguided.shape == alone.shape


def test_damaged_files_are_named(base, tmp_path):
    family, _, _ = base
    with pytest.raises(UserError, match="image_embeds.safetensors is missing or damaged"):
        ip_adapter.apply(family, tmp_path, 1.0)
    (tmp_path / "adapter.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="adapter.safetensors is no IP-Adapter"):
        ip_adapter.read_weights(tmp_path / "adapter.safetensors")


def test_the_embedded_base_never_takes_one():
    """Its layers that only cross-attend can't read what an IP-Adapter adds to the text."""
    assert BASES["portrait-128"].face_adapter is None
    for name in ("sd15", "sdxl"):
        adapter = BASES[name].face_adapter
        assert len(adapter.revision) == 40 and adapter.licence == "Apache-2.0" and "plus-face" in adapter.weights
        assert adapter.revision in adapter.fetch and all(each in adapter.fetch for each in adapter.files)
