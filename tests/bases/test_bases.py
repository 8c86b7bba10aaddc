"""The registry, loading (folder, hub cache, single file), and that our sampler is the stock pipeline's."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.bases import family as family_module
from pipelines.bases import loading
from pipelines.bases.family import compiled_blocks, running
from pipelines.bases.loading import load_family
from pipelines.bases.registry import BASES, find_base, unknown_words, vocabulary
from pipelines.bases.sampling import DISTILLED, SCHEDULERS, Row, sample, sample_latents, scheduler
from pipelines.core.device import (
    COMPILE_FROM_TFLOP,
    Device,
    derived_seed,
    is_worth_compiling,
    noise,
    peak_memory_mb,
    pick_device,
    tune,
)
from pipelines.core.records import METHODS, UserError
from pipelines.methods import method
from pipelines.methods.base import trained
from tests.tiny import add_checker, tiny_family, tiny_folder, tiny_recipe, tiny_run

KINDS = ("portrait", "sd15", "sdxl")
EXACT = Device("cpu", "float32", "exact in tests")


def test_rows_are_complete_and_pinned():
    assert set(BASES) == {"portrait-128", "sd15", "sdxl", "z-image"}
    for row in BASES.values():
        assert row.licence and row.about and row.methods
        assert row.repo is None or re.fullmatch(r"[0-9a-f]{40}", row.revision or "")
    assert BASES["sdxl"].methods == BASES["sd15"].methods == BASES["sd15"].usual == METHODS
    assert BASES["sdxl"].usual == ("textual_inversion", "lora"), "what needs 50 GB is taught when it is asked for"
    assert BASES["z-image"].methods == BASES["z-image"].usual == ("lora",)


@pytest.mark.parametrize("base", ["sd15", "sdxl", "z-image"])
def test_buckets_have_a_squares_area_and_sides_the_networks_halve(base):
    row = BASES[base]
    own = row.resolution_px
    assert row.shapes[0] == (own, own) and len(row.shapes) > 2
    for height, width in row.shapes:
        assert height >= width and (height % 64 == width % 64 == 0 or base == "z-image") and height % 16 == 0
        assert 0.88 * own**2 <= height * width <= 1.02 * own**2
    if base == "sd15":
        assert all(height * width <= 512**2 for height, width in row.shapes)


def test_a_local_base_is_as_large_as_its_files_say(tmp_path):
    like = BASES["sdxl"]
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    for part, config in (("unet", {"sample_size": 128}), ("vae", {"block_out_channels": [1, 1, 1, 1]})):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    for size, denoiser_m, usual in ((int(2 * 743e6), 743, METHODS), (int(5.2e9), 2567, like.usual)):
        with weights.open("wb") as file:
            file.truncate(size)  # a distilled one, and the whole one
        row = find_base(str(tmp_path))
        assert row.footprint.denoiser_m == denoiser_m and row.usual == usual and row.methods == METHODS


@pytest.mark.parametrize("kind", KINDS)
def test_a_local_folder_becomes_a_row(kind):
    row = find_base(str(tiny_folder(kind)))
    assert row.family == kind and row.repo is None
    assert row.resolution_px == {"portrait": 128, "sd15": 64, "sdxl": 64}[kind]
    assert row.aligned == (kind == "portrait")
    assert row.identifier == (" ".join(["<subject>"] * 4) if kind == "portrait" else "ohwx")
    assert "dreambooth" in row.methods  # this SDXL is small


def test_what_is_not_a_base_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="no base model nowhere. Choose portrait-128, sd15, sdxl"):
        find_base("nowhere")
    with pytest.raises(UserError, match="no model_index.json"):
        find_base(str(tmp_path))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(UserError, match="holds a FluxPipeline"):
        find_base(str(tmp_path))
    (tmp_path / "a.ckpt").write_bytes(b"pickle")
    with pytest.raises(UserError, match="not a .safetensors"):
        find_base(str(tmp_path / "a.ckpt"))
    (tmp_path / "a.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not a readable safetensors"):
        find_base(str(tmp_path / "a.safetensors"))
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, str(tmp_path / "b.safetensors"))
    with pytest.raises(UserError, match="not a whole"):
        find_base(str(tmp_path / "b.safetensors"))


def test_unknown_words_are_named():
    row = find_base(str(tiny_folder("portrait")))
    assert {"portrait", "navy", "background"} <= (vocabulary(row) or set())
    assert unknown_words(row, "portrait of {subject}, navy background, Spaceship, a spaceship, helmet") == [
        "spaceship",
        "helmet",
    ]
    assert unknown_words(row, "portrait of <subject> <subject> man") == []
    assert vocabulary(BASES["sd15"]) is None and unknown_words(BASES["sd15"], "spaceship") == []


def test_an_unreachable_hub_is_one_sentence_with_the_way_out(monkeypatch):
    import huggingface_hub

    def offline(*_args, **_options):
        raise huggingface_hub.errors.LocalEntryNotFoundError("nothing here, and no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError) as caught:
        load_family(BASES["sd15"], EXACT)
    assert str(caught.value).startswith(
        "stable-diffusion-v1-5 is not on this machine and the hub did not answer; pick portrait-128 or download it "
        "with: hf download stable-diffusion-v1-5/stable-diffusion-v1-5 "
        "--revision 451f4fe16113bff5a5d2269ed5ad43b0592e9a14 "
    )


def test_a_missing_embedded_base_is_a_sentence(tmp_path):
    import dataclasses

    row = dataclasses.replace(BASES["portrait-128"], path=str(tmp_path / "portrait-128"))
    with pytest.raises(UserError, match="portrait-128 is missing"):
        load_family(row, EXACT)


def test_a_damaged_folder_is_a_sentence(tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(tiny_folder("sd15"), folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="can't be loaded"):
        load_family(find_base(str(folder)), EXACT)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_the_hub_cache_is_used_without_asking_the_hub(name, tmp_path, monkeypatch):
    """A tiny model of the same classes, in the hub's own cache layout, in float16 under variant names."""
    import huggingface_hub
    from diffusers import DiffusionPipeline

    row = BASES[name]
    snapshot = tmp_path / f"models--{row.repo.replace('/', '--')}" / "snapshots" / row.revision
    pipeline = DiffusionPipeline.from_pretrained(tiny_folder(name)).to(torch.float16)
    pipeline.save_pretrained(snapshot, variant="fp16")
    lender = BASES["sd15"]  # whose image filter the others use
    lent = tmp_path / f"models--{lender.repo.replace('/', '--')}" / "snapshots" / lender.revision
    lent.mkdir(parents=True, exist_ok=True)
    if not (lent / "model_index.json").exists():
        (lent / "model_index.json").write_text("{}")
    add_checker(lent, True, variant="fp16")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    told = []
    family = load_family(row, EXACT, progress=lambda text, share: told.append((text, share)))
    assert told[-1] == (f"{row.title} is ready", 1.0)
    weight = family.new_unet(trainable=True).conv_in.weight
    saved = load_file(str(tiny_folder(name) / "unet" / "diffusion_pytorch_model.safetensors"))["conv_in.weight"]
    assert weight.dtype == torch.float32 and torch.allclose(weight, saved, atol=1e-3)
    assert family.unfiltered is None and family.refused(np.zeros((2, 64, 64, 3), np.uint8)) == [True, True]


@pytest.mark.parametrize("kind", KINDS)
def test_our_sampler_is_the_stock_pipelines(kind):
    from diffusers import DiffusionPipeline

    family = tiny_family(kind)
    rows = [Row(f"portrait of man, {colour} jacket", seed, guidance=4.0) for seed, colour in ((1, "red"), (2, "blue"))]
    ours = sample(family, family.shared(), rows, steps=4)
    pipeline = DiffusionPipeline.from_pretrained(tiny_folder(kind))
    pipeline.set_progress_bar_config(disable=True)
    size = family.row.resolution_px
    stock = pipeline(
        [row.prompt for row in rows],
        num_inference_steps=4,
        guidance_scale=4.0,
        latents=torch.cat([noise(row.seed, (1, *family.latent_shape())) for row in rows]),
        height=size,
        width=size,
        output_type="np",
    ).images
    assert np.abs(stock * 255 - ours).max() <= 1.0
    # and a pipeline handed out by the family is one of them
    assert type(family.pipeline()) is type(pipeline)


@pytest.mark.parametrize("name", DISTILLED)
@pytest.mark.parametrize("steps", [4, 60])
def test_samplers_of_distilled_weights_draw_the_stock_pipelines_pictures(name, steps):
    """Noise between steps included: it is the row's own, whoever else is in the batch. LCM alone allows 50 steps."""
    family = tiny_family("sd15")
    rows = [Row("portrait of man", 3, guidance=1.0), Row("portrait of woman", 4, guidance=1.0)]
    ours = sample_latents(family, family.shared(), rows, steps=steps, scheduler_name=name)
    alone = sample_latents(family, family.shared(), rows[1:], steps=steps, scheduler_name=name)
    assert torch.allclose(ours[1:], alone, rtol=1e-3, atol=1e-3 * float(ours.std()))
    if steps > 50:
        return
    pipeline = family.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler(family, name)
    stock = pipeline(
        [row.prompt for row in rows],
        num_inference_steps=steps,
        guidance_scale=1.0,
        latents=torch.cat([noise(row.seed, (1, *family.latent_shape())) for row in rows]),
        generator=[torch.Generator().manual_seed(derived_seed(row.seed, 1)) for row in rows],
        eta=0.3,
        output_type="latent",
    ).images
    assert torch.allclose(ours, stock, rtol=1e-3, atol=1e-3 * float(stock.std()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name not in DISTILLED])  # these weights are not
def test_every_scheduler_ends_in_a_picture_of_the_same_scale(kind, name):
    family = tiny_family(kind)
    rows = [Row("portrait of man", 3)]
    latents = sample_latents(family, family.shared(), rows, steps=6, scheduler_name=name)
    reference = sample_latents(family, family.shared(), rows, steps=6)
    assert torch.isfinite(latents).all()
    assert 0.5 < latents.std() / reference.std() < 2.0


def test_an_unknown_scheduler_is_a_sentence():
    family = tiny_family("sd15")
    with pytest.raises(UserError, match="no scheduler magic"):
        sample(family, family.shared(), [Row("man", 1)], scheduler_name="magic")


def test_pictures_survive_the_scale_of_latents():
    """encode_images and decode are inverse in scale: the moments are what the denoiser was trained on."""
    family = tiny_family("sd15")
    frames = np.full((2, 64, 64, 3), 128, np.uint8)
    moments = family.encode_images(frames)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        posterior = family.vae.encode(pixels).latent_dist
    assert torch.allclose(moments.mean, posterior.mean * 0.18215)
    assert torch.allclose(moments.std, posterior.std * 0.18215)
    assert family.decode(moments.mean).shape == frames.shape


def test_zero_terminal_snr_is_kept():
    assert tiny_family("portrait").schedule.alphas[-1] == 0
    assert tiny_family("sd15").schedule.alphas[-1] > 0


def test_copies_do_not_share_weights_with_the_base():
    family = tiny_family("sd15")
    copy = family.new_unet(trainable=True)
    with torch.no_grad():
        copy.conv_in.weight.add_(1.0)
    assert not torch.equal(copy.conv_in.weight, family.shared().unet.conv_in.weight)
    assert torch.equal(family.new_unet(trainable=True).conv_in.weight, family.shared().unet.conv_in.weight)
    assert not any(parameter.requires_grad for parameter in family.shared().unet.parameters())


def test_noise_is_of_the_seed_alone():
    assert torch.equal(noise(5, (1, 4, 8, 8)), noise(5, (1, 4, 8, 8)))
    assert not torch.equal(noise(5, (1, 4, 8, 8)), noise(6, (1, 4, 8, 8)))
    assert len({derived_seed(seed, step) for seed in range(10) for step in range(10)}) == 100


def test_a_device_has_a_reason_and_an_absent_one_is_a_sentence():
    device = pick_device()
    assert device.reason and device.dtype in ("bfloat16", "float32")
    assert pick_device("cpu").name == "cpu"
    for name in ("tpu", *(() if torch.cuda.is_available() else ("cuda",))):
        with pytest.raises(UserError):
            pick_device(name)
    assert peak_memory_mb() > 50


# -- single-file checkpoints: a tiny model under the names of the original Stable Diffusion repository --------------

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def _unet_name(name: str, layers: int, levels: int) -> str:
    """diffusers' name of a UNet tensor -> the original one."""
    simple = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    for ours, theirs in simple.items():
        if name.startswith(ours + "."):
            return theirs + name[len(ours) :]
    parts = name.split(".")
    if parts[0] == "mid_block":
        place = {"resnets": 2 * int(parts[2]), "attentions": 1}[parts[1]]
        prefix, rest = f"middle_block.{place}", parts[3:]
    else:
        level, kind, index, rest = int(parts[1]), parts[2], int(parts[3]), parts[4:]
        down = parts[0] == "down_blocks"
        if kind in ("downsamplers", "upsamplers"):
            place = (layers + 1) * (level + 1) if down else (layers + 1) * level + layers
            prefix = f"input_blocks.{place}.0.op" if down else f"output_blocks.{place}.2.conv"
            return ".".join([prefix, *rest[1:]])
        block = (layers + 1) * level + index + (1 if down else 0)
        prefix = f"{'input' if down else 'output'}_blocks.{block}.{int(kind == 'attentions')}"
    if rest[0] in _RESNET:
        rest = [_RESNET[rest[0]], *rest[1:]]
    return ".".join([prefix, *rest])


def _vae_name(name: str, levels: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"(en|de)coder\.mid_block\.resnets\.(\d)", lambda m: f"{m[1]}coder.mid.block_{int(m[2]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1")
    if "attn_1" in name:
        parts = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
        for ours, theirs in parts.items():
            name = name.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", name)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)


def _single_file(folder, path):
    def tensors(part, file):
        return load_file(str(folder / part / file))

    out = {}
    for name, tensor in tensors("unet", "diffusion_pytorch_model.safetensors").items():
        out["model.diffusion_model." + _unet_name(name, layers=1, levels=2)] = tensor
    for name, tensor in tensors("vae", "diffusion_pytorch_model.safetensors").items():
        attention = "attentions" in name and tensor.ndim == 2
        out["first_stage_model." + _vae_name(name, levels=4)] = tensor[:, :, None, None] if attention else tensor
    for name, tensor in tensors("text_encoder", "model.safetensors").items():
        out["cond_stage_model.transformer.text_model." + name.removeprefix("text_model.")] = tensor
    save_file({name: tensor.contiguous() for name, tensor in out.items()}, str(path))


def test_a_single_file_checkpoint_is_the_same_model(tmp_path):
    folder = tiny_folder("sd15")
    checkpoint = tmp_path / "photoreal.safetensors"
    _single_file(folder, checkpoint)
    beside = shutil.copytree(folder, tmp_path / "photoreal", ignore=shutil.ignore_patterns("*.safetensors"))
    row = find_base(str(checkpoint))
    assert (row.family, row.resolution_px, row.is_single_file) == ("sd15", 64, True)
    family = load_family(row, EXACT)
    rows = [Row("portrait of man, navy background", 4)]
    expected = sample(tiny_family("sd15"), tiny_family("sd15").shared(), rows, steps=3)
    assert np.abs(sample(family, family.shared(), rows, steps=3).astype(int) - expected).max() <= 1

    # DreamBooth has no folder to link the other parts from: it saves them
    from pipelines.methods import method
    from tests.tiny import tiny_recipe

    out = tmp_path / "out"
    out.mkdir()
    method("dreambooth").learner(family, tiny_recipe("sd15", "dreambooth")).export(out)
    from diffusers import StableDiffusionPipeline

    stock = StableDiffusionPipeline.from_pretrained(out)
    stock.set_progress_bar_config(disable=True)
    size, prompt = 64, rows[0].prompt
    again = stock(
        prompt,
        num_inference_steps=3,
        guidance_scale=3.0,
        latents=noise(4, (1, *family.latent_shape())),
        height=size,
        width=size,
        output_type="np",
    ).images
    assert np.abs(again * 255 - expected).mean() < 0.5  # untrained so far: the base's own picture

    shutil.rmtree(beside)

    def offline(*_args, **_options):
        raise UserError("offline")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "_from_hub", offline)
        with pytest.raises(UserError, match="needs the configuration and tokenizer of Stable Diffusion 1.5"):
            load_family(find_base(str(checkpoint)), EXACT)


def test_a_base_that_draws_no_squares_keeps_its_shape(tmp_path):
    folder = tmp_path / "upright"
    shutil.copytree(tiny_folder("sd15"), folder)
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": [10, 8]}))
    row = find_base(str(folder))
    assert row.resolution_px == 64 and row.shapes == ((80, 64),)
    family = load_family(row, EXACT)
    assert family.latent_shape()[1:] == (10, 8) and family.latent_shape(64, 64)[1:] == (8, 8)


def test_attention_is_a_choice_that_every_copy_keeps(monkeypatch):
    from pipelines.core.device import Device

    cuda = Device("cuda", "bfloat16", "pretended")
    unet = copy.deepcopy(tiny_family("sd15").new_unet(trainable=False))
    loading.choose_attention(unet, EXACT, "sdpa")
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        loading.choose_attention(unet, EXACT, "xformers")
    with pytest.raises(UserError, match="no attention magic"):
        loading.choose_attention(unet, cuda, "magic")
    found = loading.importlib.util.find_spec
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None if name == "xformers" else found(name))
    with pytest.raises(UserError, match="requirements-gpu.txt"):
        loading.choose_attention(unet, cuda, "xformers")
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: object())
    called = []
    # what diffusers does, without the GPU it would try itself on
    monkeypatch.setattr(type(unet), "enable_xformers_memory_efficient_attention", lambda self: called.append(self))
    loading.choose_attention(unet, cuda, "xformers")
    assert called == [unet]


@pytest.mark.parametrize("kind", ["portrait", "sd15", "sdxl", "z_image"])
def test_the_words_that_a_long_prompt_loses_are_known(kind):
    text = tiny_family(kind).text
    words = ["portrait", *["light"] * 600]
    assert text.unread("portrait of man") == "" == text.unread("")
    unread = text.unread(" ".join(words)).split()
    read = words[: len(words) - len(unread)]
    assert unread and read and text.unread(" ".join(read)) == ""
    whole, cut = (text.ids([" ".join(each)]) for each in (words, [*read, "teal"]))
    if kind != "z_image":  # its message ends with the template, which is cut too
        kept = text.ids([" ".join(read)])
        assert all(torch.equal(one, other) for one, other in zip(whole, kept, strict=True))
        assert all(torch.equal(one, other) for one, other in zip(cut, kept, strict=True)), "the next word is not read"


def test_tiny_bases_are_the_same_in_every_process(tmp_path):
    """Else what a test measures on one depends on the process that it runs in."""
    import subprocess
    import sys

    from tests.tiny import WORDS, make_tokenizer

    code = "import sys; from pathlib import Path; from tests.tiny import make_tokenizer as make; "
    code += "make(Path(sys.argv[1]), 32, subject=True)"
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "other")], cwd=root, check=True)
    tokenizer = make_tokenizer(tmp_path / "here", 32, subject=True)
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert all(len(tokenizer.tokenize(word)) == 1 for word in WORDS)


def test_only_long_trainings_on_nvidia_cards_are_compiled(monkeypatch):
    import importlib.util

    card = Device("cuda:1", "bfloat16", "a card")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "triton" else found(name))
    assert is_worth_compiling(card, COMPILE_FROM_TFLOP)
    assert not is_worth_compiling(card, COMPILE_FROM_TFLOP - 1)
    assert not is_worth_compiling(Device("cuda", "float32", "an old card"), COMPILE_FROM_TFLOP)
    assert not any(is_worth_compiling(Device(name, "bfloat16", ""), 10**6) for name in ("cpu", "mps"))
    monkeypatch.setenv("LIKENESS_COMPILE", "0")
    assert not is_worth_compiling(card, COMPILE_FROM_TFLOP)
    monkeypatch.delenv("LIKENESS_COMPILE")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else found(name))
    assert not is_worth_compiling(card, COMPILE_FROM_TFLOP), "there is nothing to compile with"


def test_which_shipped_recipes_are_compiled_on_a_card(monkeypatch):
    from pipelines.core import presets

    def work(base, method, quality):
        recipe = presets.recipe(find_base(base), method, quality, class_word="man")
        return recipe.steps * recipe.batch * (BASES[base].forward_tflop or 0.0)

    long = {
        ("sd15", "textual_inversion", "best"), ("sdxl", "textual_inversion", "good"),
        ("sdxl", "textual_inversion", "best"), ("sdxl", "lora", "best"), ("sdxl", "pivotal", "best"),
        ("z-image", "lora", "draft"), ("z-image", "lora", "good"), ("z-image", "lora", "best"),
    }  # fmt: skip
    found = {
        (row.name, method, quality)
        for row in BASES.values()
        for method in row.offered
        for quality in ("draft", "good", "best")
        if work(row.name, method, quality) >= COMPILE_FROM_TFLOP
    }
    assert {each for each in found if each[1] != "dreambooth"} == long


def compiled_by(backend, kind):
    """(loss, gradients) of one step as it is, compiled, and as it is again; how many graphs were made."""
    family = tiny_family("sd15")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    recipe = tiny_recipe("sd15", kind)
    learner = method(kind).learner(family, recipe)
    parameters = trained(learner.groups())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    latents, still = (torch.randn((2, *family.latent_shape()), generator=generator) for _ in range(2))
    blocks = compiled_blocks(learner.modules.unet, backend=backend)
    assert len(blocks) == 7, "the transformer of each attention"

    def step(used):
        with running(used):
            told = learner.modules.text.encode(learner.modules.text.ids([method(kind).phrase(family.row, recipe)] * 2))
            loss = family.objective(
                learner.modules.unet, latents, told, still, torch.tensor([100, 700]), snr_gamma=5.0
            ).mean()
            return loss.detach(), torch.autograd.grad(loss, parameters)

    with torch._dynamo.config.patch(suppress_errors=False):
        found = step({}), step(blocks), step({})
    return found, torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "textual_inversion"])
def test_compiled_blocks_learn_what_plain_ones_do(kind):
    builds = any(shutil.which(name) for name in ("g++", "clang++"))
    (plain, compiled, again), graphs = compiled_by("inductor" if builds else "aot_eager", kind)
    assert graphs >= 1, "something was compiled"
    assert torch.equal(plain[0], again[0]) and all(map(torch.equal, plain[1], again[1])), "and left as it was"
    assert torch.allclose(compiled[0], plain[0], rtol=1e-5)
    for one, other in zip(compiled[1], plain[1], strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def test_only_steps_run_compiled(tmp_path, monkeypatch):
    """Textual inversion trains through the denoiser that others draw with: they must not see it."""
    calls = []

    def counted(unet):
        def forward(block):
            plain = block.forward

            def run(*args, **options):
                calls.append(torch.is_grad_enabled())
                return plain(*args, **options)

            return run

        return {block: forward(block) for block in unet.modules() if type(block).__name__ == "BasicTransformerBlock"}

    family = tiny_family("sd15")
    plain = tiny_run("sd15", "textual_inversion", tmp_path / "plain", steps=3, preview_every_s=1e-9)
    monkeypatch.setattr(family_module, "compiled_blocks", counted)
    tiny_run("sd15", "textual_inversion", tmp_path / "short", steps=3)
    assert calls == [], "a CPU never compiles"
    monkeypatch.setattr(family_module, "is_worth_compiling", lambda *_: True)
    with torch._dynamo.config.patch(suppress_errors=False):
        long = tiny_run("sd15", "textual_inversion", tmp_path / "long", steps=3, preview_every_s=1e-9)
    blocks = [each for each in family.shared().unet.modules() if type(each).__name__ == "BasicTransformerBlock"]
    assert calls == [True] * (3 * len(blocks)), "each block once per step, and never to draw"
    assert not any("forward" in vars(block) for block in blocks)
    assert [event.loss for event in long] == [event.loss for event in plain]


def test_cards_compute_in_tf32_and_nothing_else_is_touched():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    try:
        matmul.allow_tf32 = False
        tune(Device("cpu", "float32", "no card"))
        assert matmul.allow_tf32 is False
        tune(Device("cuda:0", "bfloat16", "a card"))
        assert matmul.allow_tf32 is True and cudnn.benchmark == before[2]
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
