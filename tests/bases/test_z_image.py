"""Laws of the flow-matching family: what the stock pipeline and the stock training script do is what it does."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import shutil
from functools import lru_cache

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.bases.architectures import FAMILIES
from pipelines.bases.loading import load_family
from pipelines.bases.memory import memory_needs, memory_plan
from pipelines.bases.objective import FlowSchedule
from pipelines.bases.registry import BASES, default_base, find_base
from pipelines.bases.sampling import DISTILLED, SCHEDULERS, Row, sample, sample_latents, scheduler
from pipelines.core.control import Control
from pipelines.core.device import Device, noise
from pipelines.core.presets import recipe as preset_recipe
from pipelines.core.presets import style_problem, styles
from pipelines.core.records import Sampling, UserError
from pipelines.generation.generator import Generator
from pipelines.methods import imports, lora_files, lora_names, method
from pipelines.methods.lora_files import Layer
from pipelines.methods.lora_names import Layout
from pipelines.runs.jobspec import JobSpec
from pipelines.training.batches import Batches
from pipelines.training.estimates import estimate
from pipelines.training.loop import train
from tests.methods.test_methods import disturbed
from tests.runs import make_run
from tests.tiny import tiny_data, tiny_family, tiny_folder, tiny_recipe, tiny_run, tiny_subject

EXACT = Device("cpu", "float32", "exact in tests")
FLOW = FlowSchedule(1000, 6.0)
PROMPT = "portrait of man, navy background"


def stock(cls="ZImagePipeline"):
    import diffusers

    pipeline = getattr(diffusers, cls).from_pretrained(tiny_folder("z_image"))  # no dtype given, no code of ours
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_picture(pipeline, prompt, seed=5, guidance=3.0):
    family = tiny_family("z_image")
    latents = noise(seed, (1, *family.latent_shape()))
    shown = pipeline(
        prompt, num_inference_steps=3, guidance_scale=guidance, latents=latents, output_type="np", height=64, width=64
    )
    return shown.images[0] * 255


def picture(modules, prompt, seed=5, guidance=3.0):
    row = Row(prompt, seed, guidance=guidance)
    return sample(tiny_family("z_image"), modules, [row], steps=3)[0].astype(np.float32)


# ------------------------------------------------------------------------------------------------------- the row


def test_it_is_offered_by_name_and_by_folder_and_changes_no_default():
    row, folder = find_base("z-image"), find_base(str(tiny_folder("z_image")))
    assert row.repo == "Tongyi-MAI/Z-Image" and len(row.revision) == 40 and row.licence == "Apache-2.0"
    assert (folder.family, folder.resolution_px, folder.methods) == ("z_image", 64, ("lora",))
    assert folder.repo is None and not folder.aligned and folder.shapes == ((64, 64),)
    assert default_base() in ("portrait-128", "sd15")
    step = 16  # pixels per patch of the real transformer
    assert all(side % step == 0 for shape in row.shapes for side in shape)


def test_a_folder_that_says_no_size_is_as_large_as_the_registrys(tmp_path):
    folder = shutil.copytree(tiny_folder("z_image"), tmp_path / "base")
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "sample_size"}))
    row = find_base(str(folder))
    assert row.resolution_px == 1024 and row.shapes == BASES["z-image"].shapes


def test_the_transformer_alone_is_no_base(tmp_path):
    from safetensors.torch import save_file

    save_file({"model.diffusion_model.cap_embedder.1.weight": torch.zeros(1)}, str(tmp_path / "z.safetensors"))
    with pytest.raises(UserError, match="the transformer of a Z-Image model alone. Give the model's diffusers folder"):
        find_base(str(tmp_path / "z.safetensors"))


@pytest.mark.parametrize("name", ["textual_inversion", "dreambooth"])
def test_methods_it_does_not_offer_are_sentences(name, tmp_path):
    said = f"Z-Image does not offer {name}. Choose one of: lora"
    with pytest.raises(UserError, match=said):
        preset_recipe(find_base("z-image"), name, "draft", class_word="man")
    with pytest.raises(UserError, match=said):
        JobSpec(base="z-image", methods=(name,)).check()
    with pytest.raises(UserError, match="is not offered for z_image. Choose one of: lora"):
        tiny_run("z_image", name, tmp_path)


def test_the_family_agrees_with_its_row():
    architecture = FAMILIES["z_image"]
    assert BASES["z-image"].guidance == architecture.guidance
    assert BASES["z-image"].own_scheduler and not architecture.schedulers
    assert {row.family for row in BASES.values()} == set(FAMILIES)
    for name, each in FAMILIES.items():
        row = next(row for row in BASES.values() if row.family == name)
        assert row.own_scheduler == (not each.schedulers)


def test_recipes_estimates_and_styles_hold_for_it():
    row = BASES["z-image"]
    steps = []
    for quality in ("draft", "good", "best"):
        recipe = preset_recipe(find_base("z-image"), "lora", quality, class_word="man")
        assert (recipe.rank, recipe.alpha, recipe.learning_rate) == (32, 32.0, 1e-4)
        assert recipe.snr_gamma is None and recipe.text_learning_rate == 0
        steps.append(recipe.steps)
    assert steps == sorted(steps) and len(set(steps)) == 3
    found = estimate(row, {"lora": recipe}, {})
    assert found.seconds is None and found.memory_mb == 1e3 * row.vram_gb
    for style in styles().values():
        assert (style_problem(style, row) is None) == ("any" in style.bases or "z_image" in style.bases)
    assert sum(style_problem(style, row) is None for style in styles().values()) >= 18


# ------------------------------------------------------------------------------------------------------- loading


def test_the_hub_cache_is_used_without_asking_the_hub(tmp_path, monkeypatch):
    import huggingface_hub

    row = BASES["z-image"]
    snapshot = tmp_path / f"models--{row.repo.replace('/', '--')}" / "snapshots" / row.revision
    stock().save_pretrained(snapshot, max_shard_size="50KB")
    shards = sorted((snapshot / "transformer").glob("*-of-*.safetensors"))
    assert len(shards) > 1, "as the real one comes"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    family = load_family(row, EXACT)
    ours, real = family.new_unet(trainable=False).state_dict(), stock().transformer.state_dict()
    assert type(family).__name__ == "ZImage" and set(ours) == set(real)
    assert all(torch.equal(ours[name], real[name]) for name in real)

    def offline(*_args, local_files_only=False, **_options):
        if not local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    assert load_family(row, EXACT).folder == snapshot
    shards[0].unlink()  # a download that broke off
    with pytest.raises(UserError, match=f"hub did not answer.*--revision {row.revision}"):
        load_family(row, EXACT)


def test_xformers_is_a_sentence():
    with pytest.raises(UserError, match="z_image has no xformers attention. Leave --attention out"):
        load_family(find_base(str(tiny_folder("z_image"))), EXACT, attention="xformers")


# ---------------------------------------------------------------------------------------------------------- text


def test_prompts_are_told_as_the_stock_pipeline_tells_them():
    family = tiny_family("z_image")
    prompts = ["portrait of man", "a much longer portrait of the same man in a red jacket", "", "word " * 600]
    told = family.text.encode(family.text.ids(prompts))
    theirs, _ = stock().encode_prompt(list(prompts), device="cpu", do_classifier_free_guidance=False)
    for index, states in enumerate(theirs):
        own = told.states[index][told.mask[index]]
        assert own.shape == states.shape and torch.allclose(own, states, atol=1e-5)
    assert told.mask[3].all() and told.states.shape[1] == 512, "cut, as in the stock pipeline"


def test_parts_of_what_is_told_stay_together():
    family = tiny_family("z_image")
    told = family.text.encode(family.text.ids(["portrait of man", "a man in a red jacket"]))
    again = type(told).joined([told[torch.tensor([1])], told[torch.tensor([0])]])
    assert torch.equal(again.states[0], told.states[1]) and torch.equal(again.mask[1], told.mask[0])
    assert torch.equal(told.scaled(torch.tensor([1.0, 0.0])).mask, told.mask)


def test_memory_is_planned_as_for_every_base():
    """Counted, chosen from what is free, and said; a person's own choice of checkpointing is kept to."""
    row, recipe = BASES["z-image"], preset_recipe(find_base("z-image"), "lora", "good", class_word="man")
    needs = memory_needs(row, recipe)
    small, large, off = (memory_plan(needs, *asked) for asked in ((48.0,), (400.0,), (48.0, "off")))
    assert small.checkpointing and "is on: without it" in small.reason and small.peak_gb < 48
    assert not large.checkpointing and not large.offload and "memory is enough without" in large.reason
    assert not off.checkpointing and off.offload and "probably not fit" in off.reason


def test_gradient_checkpointing_is_the_plans_choice_and_changes_no_gradient():
    from pipelines.bases.family import checkpointed

    family, recipe, gradients = tiny_family("z_image"), tiny_recipe("z_image", "lora"), []
    for switched_on in (False, True):
        learner = disturbed(method("lora").learner(family, recipe), size=1.0)
        batches = Batches(family, learner, recipe, tiny_data("z_image"), "ohwx man", {})
        assert not learner.modules.unet.is_gradient_checkpointing
        with checkpointed(learner.modules, switched_on):
            assert learner.modules.unet.is_gradient_checkpointing == switched_on
            loss = batches.loss(learner, 0)
            loss.backward()
        gradients.append([loss.detach(), *(each.grad for each in learner.tensors().values())])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


# ------------------------------------------------------------------------------------------------------ objective


def test_uniform_places_are_the_stock_scripts_timesteps():
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs = FlowMatchEulerDiscreteScheduler(shift=6.0).timesteps.flip(0)  # what it draws from, every one alike
    places = torch.arange(1, 1001) / 1000
    assert torch.allclose(FLOW.timesteps(places), theirs, atol=1e-2)
    drawn = FLOW.timesteps(torch.rand(1000, generator=torch.Generator().manual_seed(0)))
    assert drawn.min() > 0 and drawn.max() < 1000
    assert FLOW.timesteps(torch.tensor([0.0])) == FLOW.timesteps(torch.tensor([1 / 1000]))


def test_the_velocity_leads_from_any_noise_level_to_the_picture():
    generator = torch.Generator().manual_seed(0)
    latents, still = (torch.randn((5, 4, 8, 8), generator=generator) for _ in range(2))
    timesteps = torch.tensor([1.0, 250.0, 500.0, 900.0, 1000.0])
    noisy, target = FLOW.noisy(latents, still, timesteps), FLOW.target(latents, still, timesteps)
    sigmas = (timesteps / 1000)[:, None, None, None]
    assert torch.allclose(noisy - sigmas * target, latents, atol=1e-5)
    assert torch.allclose(noisy + (1 - sigmas) * target, still, atol=1e-5)
    assert FLOW.losses(target, latents, still, timesteps, snr_gamma=None).max() == 0
    assert torch.equal(FLOW.noisy(latents, still, torch.full((5,), 1000.0)), still)
    further = FLOW.losses(target + 2, latents, still, timesteps, snr_gamma=None)
    assert torch.allclose(further, torch.full((5,), 4.0))


def test_min_snr_weighs_the_pictures_error():
    timesteps = torch.tensor([10.0, 200.0, 500.0, 800.0, 990.0])
    sigmas = timesteps.double() / 1000
    snr = ((1 - sigmas) / sigmas) ** 2
    expected = snr.clamp(max=5.0) * sigmas**2  # of the velocity's error, whose sigma^2-fold is the picture's
    assert torch.allclose(FLOW.weights(timesteps, 5.0), expected.float())
    assert torch.equal(FLOW.weights(timesteps, None), torch.ones(5))


def test_the_loss_is_the_stock_scripts():
    """diffusers' train_dreambooth_lora_z_image.py: noise, negated answer, velocity target, no weights."""
    family, pipeline = tiny_family("z_image"), stock()
    frames = tiny_data("z_image").frames[:3]
    latents = family.encode_images(np.stack(frames)).latents(None)
    with torch.no_grad():
        pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
        mode = pipeline.vae.encode(pixels).latent_dist.mode()
    config = pipeline.vae.config
    assert torch.allclose(latents, (mode - config.shift_factor) * config.scaling_factor, atol=1e-6)
    still = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    timesteps = family.schedule.timesteps(torch.tensor([0.1, 0.5, 0.9]))
    prompts = [PROMPT, "portrait of man", "a man in red"]
    told = family.text.encode(family.text.ids(prompts))
    ours = family.objective(family.shared().unet, latents, told, still, timesteps, snr_gamma=None)
    embeds, _ = pipeline.encode_prompt(list(prompts), device="cpu", do_classifier_free_guidance=False)
    sigmas = (timesteps / 1000)[:, None, None, None]
    noisy = ((1 - sigmas) * latents + sigmas * still).unsqueeze(2)
    with torch.no_grad():
        answers = pipeline.transformer(list(noisy.unbind()), (1000 - timesteps) / 1000, embeds, return_dict=False)[0]
    predicted = -torch.stack(answers).squeeze(2)
    assert torch.allclose(ours, (predicted - (still - latents)).square().mean((1, 2, 3)), rtol=1e-4)


# -------------------------------------------------------------------------------------------------------- drawing


@pytest.mark.parametrize("guidance", [0.0, 1.0, 4.0])
def test_our_sampler_is_the_stock_pipelines(guidance):
    family = tiny_family("z_image")
    for seed, prompt in ((1, PROMPT), (2, "a portrait of man that says more, and longer")):
        ours = picture(family.shared(), prompt, seed, guidance)
        assert np.abs(stock_picture(stock(), prompt, seed, guidance) - ours).max() <= 1.0
    assert type(family.pipeline()) is type(stock())
    assert np.abs(stock_picture(family.pipeline(), prompt, seed, guidance) - ours).max() <= 1.0


def test_a_picture_does_not_depend_on_its_batch():
    family = tiny_family("z_image")
    rows = [Row("portrait of man " * k, k, guidance=float(k)) for k in range(3)]
    together = sample(family, family.shared(), rows, steps=3).astype(int)
    for row, frame in zip(rows, together, strict=True):
        assert np.abs(sample(family, family.shared(), [row], steps=3)[0] - frame).max() <= 1


def test_a_shift_that_grows_with_the_picture_is_the_stock_pipelines(tmp_path):
    folder = shutil.copytree(tiny_folder("z_image"), tmp_path / "base")
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dynamic_shifting": True, "max_shift": 9.0}))
    family = load_family(find_base(str(folder)), EXACT)
    from diffusers import ZImagePipeline

    pipeline = ZImagePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    ours = sample(family, family.shared(), [Row(PROMPT, 5, guidance=3.0)], steps=3)[0]
    assert np.abs(stock_picture(pipeline, PROMPT) - ours).max() <= 1.0
    assert family.schedule.shift != tiny_family("z_image").schedule.shift


def test_other_schedulers_are_a_sentence():
    family = tiny_family("z_image")
    for name in SCHEDULERS[1:]:
        with pytest.raises(UserError, match="z_image draws with its own scheduler only. Choose default"):
            scheduler(family, name)
    with pytest.raises(UserError, match="There is no scheduler magic"):
        scheduler(family, "magic")
    spec = JobSpec("generate", "z-image", methods=("none",), samplings=(Sampling("{subject}", scheduler="ddim"),))
    with pytest.raises(UserError, match="Z-Image draws with its own scheduler only"):
        spec.check()


def test_the_page_offers_what_it_draws_with():
    from ui.generate.values import schedulers

    assert schedulers(BASES["z-image"]) == ("default",)
    assert schedulers(BASES["sd15"]) == tuple(name for name in SCHEDULERS if name not in DISTILLED)
    assert all(size % 16 == 0 for size in BASES["z-image"].sizes_px)


def test_a_variation_is_the_stock_img2img_pipelines():
    family = tiny_family("z_image")
    source = tiny_data("z_image").frames[:1]
    row = Row(PROMPT, 7, guidance=3.0)
    ours = sample(family, family.shared(), [row], steps=4, sources=np.stack(source), change=0.5)[0].astype(np.float32)
    pipeline = stock("ZImageImg2ImgPipeline")
    sampler = scheduler(family)
    family.set_timesteps(sampler, 4, family.latent_shape())
    begin = sampler.sigmas[2]
    encoded = family.encode_images(np.stack(source)).latents(None)
    latents = (1 - begin) * encoded + begin * noise(7, (1, *family.latent_shape()))
    shown = pipeline(
        PROMPT, image=torch.zeros(1, 3, 64, 64), strength=0.5, num_inference_steps=4, guidance_scale=3.0,
        latents=latents, height=64, width=64, output_type="np",
    ).images[0]  # fmt: skip
    assert np.abs(shown * 255 - ours).max() <= 1.0


def test_a_change_of_one_leaves_nothing_of_the_source_and_a_small_one_most():
    family = tiny_family("z_image")
    source = np.stack(tiny_data("z_image").frames[:1])
    row = Row(PROMPT, 7, guidance=3.0)
    without = sample_latents(family, family.shared(), [row], steps=10)
    assert torch.equal(sample_latents(family, family.shared(), [row], steps=10, sources=source, change=1.0), without)
    kept = family.encode_images(source).latents(None)
    apart = [
        float((sample_latents(family, family.shared(), [row], steps=10, sources=source, change=change) - kept).norm())
        for change in (0.1, 0.5, 1.0)
    ]
    assert apart[0] < apart[1] < apart[2]


# ----------------------------------------------------------------------------------------------------------- LoRA


def test_a_fresh_lora_changes_nothing():
    family = tiny_family("z_image")
    learner = method("lora").learner(family, tiny_recipe("z_image", "lora"))
    assert np.array_equal(picture(learner.modules, PROMPT), picture(family.shared(), PROMPT))


@pytest.mark.parametrize("targets", ["attention", "attention+feed_forward", "all"])
def test_the_layers_that_learn_are_the_architectures(targets):
    family = tiny_family("z_image")
    learner = method("lora").learner(family, tiny_recipe("z_image", "lora", targets=targets))
    layers = {name.removeprefix("unet.").split(".lora_")[0] for name in learner.tensors()}
    ends = FAMILIES["z_image"].targets[targets]
    linear = {n for n, m in family.shared().unet.named_modules() if isinstance(m, torch.nn.Linear)}
    assert layers == {name for name in linear if name.endswith(ends)}
    assert all(any(name.endswith(end) for name in layers) for end in ends)


@pytest.mark.parametrize("file", ["pytorch_lora_weights.safetensors", "likeness_lora.safetensors"])
def test_lora_with_half_alpha_loads_in_stock_diffusers(file, tmp_path):
    family = tiny_family("z_image")
    recipe = tiny_recipe("z_image", "lora", rank=4, alpha=2.0, targets="all")
    learner = disturbed(method("lora").learner(family, recipe), size=1.0)
    artifact = learner.export(tmp_path)
    assert artifact.learned == ("pytorch_lora_weights.safetensors",) and (tmp_path / lora_files.FILE).is_file()
    live = picture(learner.modules, PROMPT)
    assert np.abs(live - picture(family.shared(), PROMPT)).mean() > 1.0, "it learned something"
    pipeline = stock()
    pipeline.load_lora_weights(tmp_path, weight_name=file)
    assert np.abs(stock_picture(pipeline, PROMPT) - live).max() <= 2.0  # float16 on disk
    applied = method("lora").apply(family, tmp_path, recipe)
    assert np.abs(picture(applied, PROMPT) - live).max() <= 2.0
    assert applied.text is family.text, "what learned nothing is not copied"


def test_its_names_are_those_that_other_programs_map(tmp_path):
    family = tiny_family("z_image")
    method("lora").learner(family, tiny_recipe("z_image", "lora", rank=4, alpha=2.0)).export(tmp_path)
    own = load_file(str(tmp_path / "pytorch_lora_weights.safetensors"))
    generic = load_file(str(tmp_path / "likeness_lora.safetensors"))
    layer = "layers.0.attention.to_q"
    assert {f"transformer.{layer}.lora_A.weight", f"transformer.{layer}.lora_B.weight"} <= set(own)
    assert float(generic[f"diffusion_model.{layer}.alpha"]) == 2.0
    spelled = {"lora_A": "lora_down", "lora_B": "lora_up", "transformer.": "diffusion_model."}
    renamed = {}
    for name, tensor in own.items():
        for old, new in spelled.items():
            name = name.replace(old, new, 1)
        renamed[name] = tensor
    assert {name for name in generic if not name.endswith(".alpha")} == set(renamed)
    assert all(torch.equal(generic[name], tensor) for name, tensor in renamed.items())


@lru_cache(maxsize=1)
def real_layout():
    """The transformer of Tongyi-MAI/Z-Image: names and shapes, no numbers."""
    from diffusers import ZImageTransformer2DModel

    with torch.device("meta"):
        transformer = ZImageTransformer2DModel()
    return Layout(
        {
            f"transformer.{name.removesuffix('.weight')}": tuple(weight.shape)
            for name, weight in transformer.named_parameters()
            if name.endswith(".weight") and weight.ndim == 2
        }
    )


def learned_paths():
    ends = FAMILIES["z_image"].targets["all"]
    return [path for path in real_layout().weights if path.endswith(ends)]


def comfyui(name):
    """comfy/lora.py, `model_lora_keys_unet`: diffusers' names of every block behind "diffusion_model.", "transformer."
    or nothing, with dots; behind "lycoris_" flat; behind "lora_unet_" its own flat names, which have qkv in one layer.
    """
    layers = r"attention\.(to_[qkv]|to_out\.0)|feed_forward\.w[123]"
    dotted = rf"(diffusion_model\.|transformer\.|)(layers|noise_refiner|context_refiner)\.\d+\.({layers})"
    own = r"lora_unet_(layers|noise_refiner|context_refiner)_\d+_(attention_(qkv|out)|feed_forward_w[123])"
    return re.fullmatch(rf"{dotted}|{own}", name) is not None


def test_each_program_maps_every_name_of_the_real_transformer():
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_z_image_lora_to_diffusers

    layout, paths = real_layout(), learned_paths()
    assert len(paths) == 7 * (30 + 2 + 2) and layout.weights["transformer.layers.0.attention.to_q"] == (3840, 3840)
    layers = {path: Layer(torch.full((2, 1), float(k)), torch.full((1, 2), float(k)), 1.0)
              for k, path in enumerate(paths)}  # fmt: skip
    state = lora_files.to_kohya(layers, layout)
    stems = {layout.flat(path): path for path in paths}
    assert len(stems) == len(paths) and all(comfyui(stem) for stem in stems)
    assert not comfyui("lora_unet_layers_0_attention_to_q"), "musubi-tuner's name, which ComfyUI does not know"
    # InvokeAI, z_image_lora_conversion_utils.py: the prefix goes, the rest is a module; alphas only beside lora_down
    assert all(
        stem.removeprefix("diffusion_model.") == path.removeprefix("transformer.") for stem, path in stems.items()
    )
    ends = {name.removeprefix(stem) for stem in stems for name in (f"{stem}.lora_down.weight", f"{stem}.alpha")}
    assert ends <= {name[len(stem) :] for stem in stems for name in state if name.startswith(f"{stem}.")}
    # diffusers applies alpha / rank to the first factor
    converted = _convert_non_diffusers_z_image_lora_to_diffusers(dict(state))
    for k, path in enumerate(paths):
        assert torch.equal(converted[f"{path}.lora_A.weight"], torch.full((2, 1), k / 2))
        assert torch.equal(converted[f"{path}.lora_B.weight"], torch.full((1, 2), float(k)))
    assert len(converted) == 2 * len(paths)


def test_its_file_says_what_it_is(tmp_path):
    family = tiny_family("z_image")
    method("lora").learner(family, tiny_recipe("z_image", "lora", rank=4, alpha=2.0)).export(tmp_path)
    header = lora_names.read_header(tmp_path / lora_files.FILE)
    said = header.metadata
    assert (said["ss_base_model_version"], said["modelspec.architecture"]) == ("z_image", "Z-Image/lora")
    assert (said["ss_network_dim"], said["ss_network_alpha"], said["ss_v2"]) == ("4", "2", "False")
    assert said["modelspec.trigger_phrase"] == f"{family.row.identifier} man"
    assert json.loads(said["ss_tag_frequency"]) == {"likeness": {f"{family.row.identifier} man": 1}}
    assert "modelspec.prediction_type" not in said, "ModelSpec has no word for a flow"
    assert said["modelspec.hash_sha256"] == f"0x{said['sshs_model_hash']}"
    assert lora_names.made_for(header) == lora_names.kind_of(family.row) == BASES["z-image"].title


def effective(learner, path):
    """The weight that a layer works with while it trains."""
    layer = learner.modules.unet.get_submodule(path.removeprefix("transformer."))
    wide = layer.in_features
    with torch.no_grad():
        zero = layer(torch.zeros(1, wide))
        return (layer(torch.eye(wide)) - zero).T


@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"dora": True}, {"rslora": True, "dora": True}])
def test_who_divides_alpha_by_the_rank_applies_what_was_learned(options, tmp_path):
    family = tiny_family("z_image")
    recipe = tiny_recipe("z_image", "lora", rank=4, alpha=2.0, targets="all", **options)
    learner = disturbed(method("lora").learner(family, recipe), size=1.0)
    learner.export(tmp_path)
    saved, plain = load_file(str(tmp_path / lora_files.FILE)), dict(family.shared().unet.named_parameters())
    assert not any("magnitude" in name for name in saved)
    stems = {name.removesuffix(".alpha") for name in saved if name.endswith(".alpha")}
    for stem in stems:
        path = stem.replace("diffusion_model.", "transformer.")
        before = plain[f"{path.removeprefix('transformer.')}.weight"]
        up, down = saved[f"{stem}.lora_up.weight"].float(), saved[f"{stem}.lora_down.weight"].float()
        after = before + float(saved[f"{stem}.alpha"]) / 4 * (up @ down)
        if options.get("dora"):
            lengths = saved[f"{stem}.dora_scale"].float()
            assert lengths.shape == (len(before), 1), "ComfyUI takes it per output by this shape"
            after = after * lengths / after.norm(dim=1, keepdim=True)
        learned = effective(learner, path)
        assert (after - learned).norm() < 0.01 * (learned - before).norm(), stem
    # and diffusers' own file draws it
    prompt = "portrait of man"
    live = picture(learner.modules, prompt)
    pipeline = stock()
    pipeline.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    assert np.abs(stock_picture(pipeline, prompt) - live).max() <= 3.0
    assert np.abs(picture(method("lora").apply(family, tmp_path, recipe), prompt) - live).max() <= 3.0


# -------------------------------------------------------------------------------------------------- from elsewhere


def spelled(layers, spelling):
    """A LoRA as other programs write it."""
    out = {}
    for path, layer in layers.items():
        dotted = path.removeprefix("transformer.")
        flat = dotted.replace(".", "_")
        stem = {
            "ai-toolkit": f"diffusion_model.{dotted}", "musubi": f"lora_unet_{flat}", "fun": f"lora_unet__{flat}",
            "peft": f"base_model.model.{dotted}", "lycoris": f"lycoris_{flat}", "plain": dotted,
            "fused": f"lora_unet_{flat.replace('to_out_0', 'out')}",
        }[spelling]  # fmt: skip
        ends = ("lora_A", "lora_B") if spelling in ("ai-toolkit", "peft") else ("lora_down", "lora_up")
        out |= {f"{stem}.{ends[0]}.weight": layer.down, f"{stem}.{ends[1]}.weight": layer.up}
        out[f"{stem}.alpha"] = torch.tensor(layer.alpha)
    if spelling == "fused":  # musubi-tuner's convert_z_image_lora_to_comfy.py
        for stem in sorted({name.split("_to_")[0] for name in out if "_to_q" in name}):
            parts = [{end: out.pop(f"{stem}_to_{one}.{end}") for end in ("lora_down.weight", "lora_up.weight", "alpha")}
                     for one in "qkv"]  # fmt: skip
            out[f"{stem}_qkv.lora_down.weight"] = torch.cat([each["lora_down.weight"] for each in parts])
            out[f"{stem}_qkv.lora_up.weight"] = torch.block_diag(
                *(each["lora_up.weight"].float() for each in parts)
            ).half()
            out[f"{stem}_qkv.alpha"] = 3 * parts[0]["alpha"]
    return {name: tensor.contiguous() for name, tensor in out.items()}


@pytest.mark.parametrize("spelling", ["ai-toolkit", "musubi", "fun", "peft", "lycoris", "plain", "fused"])
def test_other_peoples_loras_are_imported_and_draw_the_same(spelling, tmp_path):
    family = tiny_family("z_image")
    recipe = tiny_recipe("z_image", "lora", rank=4, alpha=2.0, targets="all")
    learner = disturbed(method("lora").learner(family, recipe), size=1.0)
    learner.export(tmp_path)
    layers = lora_files.from_kohya(load_file(str(tmp_path / lora_files.FILE)), lora_names.layout(family.row))
    file = tmp_path / "theirs.safetensors"
    save_file(spelled(layers, spelling), str(file))
    run = make_run(tmp_path / "run")
    card = imports.add(run, file, family.row, name="theirs", class_word="man")
    applied = method(card.method).apply(family, run.method("imported-theirs"), card.recipe)
    live = picture(learner.modules, PROMPT)
    assert np.abs(live - picture(family.shared(), PROMPT)).mean() > 1.0
    assert np.abs(picture(applied, PROMPT) - live).max() <= 2.0
    assert applied.text is family.text


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", lora_files.FILE])
@pytest.mark.parametrize("dora", [False, True])
def test_its_own_files_are_imported_too(name, dora, tmp_path):
    family = tiny_family("z_image")
    recipe = tiny_recipe("z_image", "lora", rank=4, alpha=2.0, rslora=True, dora=dora)
    learner = disturbed(method("lora").learner(family, recipe), size=1.0)
    learner.export(tmp_path)
    run = make_run(tmp_path / "run")
    card = imports.add(run, tmp_path / name, family.row, name="own", class_word="man")
    applied = method(card.method).apply(family, run.method("imported-own"), card.recipe)
    assert np.abs(picture(applied, PROMPT) - picture(learner.modules, PROMPT)).max() <= 3.0


def test_what_does_not_fit_it_is_a_sentence(tmp_path, monkeypatch):
    row = tiny_family("z_image").row
    layout = lora_names.layout(row)
    assert layout == lora_files.layout_of(tiny_family("z_image").shared(), tiny_family("z_image"))
    assert all(path.startswith("transformer.") for path in layout.weights), "the chat model never learns"
    file = tmp_path / "x.safetensors"
    save_file({"emb_params": torch.ones(2, 32)}, str(file))
    with pytest.raises(UserError, match="told by a chat model and reads no embeddings. Import a LoRA instead"):
        imports.look(file, row)
    stem = "diffusion_model.layers.0.attention.qkv"
    for down, up in (((4, 48), (145, 4)), ((4, 48), (96, 4)), ((4, 47), (144, 4))):
        save_file({f"{stem}.lora_down.weight": torch.ones(down), f"{stem}.lora_up.weight": torch.ones(up)}, str(file))
        with pytest.raises(UserError, match="does not fit z_image"):
            imports.look(file, row)
    save_file(
        {f"{stem}.lora_down.weight": torch.ones(4, 3840), f"{stem}.lora_up.weight": torch.ones(11520, 4)}, str(file)
    )
    with pytest.raises(UserError, match="made for Z-Image, not for sd15"):
        imports.look(file, find_base(str(tiny_folder("sd15"))))
    monkeypatch.setattr(lora_names, "_cached", lambda row: None)
    with pytest.raises(UserError, match="not on this machine yet"):
        lora_names.layout(BASES["z-image"])
    monkeypatch.setattr(lora_names, "_cached", lambda row: tiny_folder("z_image"))  # as a run has downloaded it
    assert lora_names.layout(BASES["z-image"]) == layout


def test_its_text_encoder_does_not_learn():
    with pytest.raises(UserError, match="text encoder of z_image does not learn"):
        method("lora").learner(tiny_family("z_image"), tiny_recipe("z_image", "lora", text_learning_rate=1e-5))


def test_it_trains_saves_and_draws():
    family, folder = tiny_family("z_image"), tiny_subject("z_image", "lora")
    before = {name: tensor.clone() for name, tensor in family.text.encoders[0].state_dict().items()}
    generator = Generator(family.row, family=family)
    filled = f"{family.row.identifier} man"
    drawn = [
        np.asarray(image, np.float32)
        for strength in (0.0, 0.5, 1.0)
        for _, image in generator.render(
            [Sampling("portrait of {subject}", steps=3, strength=strength)], folder, class_word="man"
        )
    ]
    base = sample(family, family.shared(), [Row(f"portrait of {filled}", 0, guidance=3.0)], steps=3)[0].astype(float)
    distances = [float(np.abs(image - base).mean()) for image in drawn]
    assert distances[0] < 0.01 < distances[2] and distances[1] < distances[2]
    assert all(torch.equal(before[name], tensor) for name, tensor in family.text.encoders[0].state_dict().items())


def test_the_encoder_is_asked_before_training_only(monkeypatch):
    family = tiny_family("z_image")
    learner = method("lora").learner(family, tiny_recipe("z_image", "lora"))
    assert not learner.live_text
    batches = Batches(
        family, learner, tiny_recipe("z_image", "lora"), tiny_data("z_image", validation=2), "ohwx man", {}
    )

    def asked(*_args):
        raise AssertionError("the encoder was asked during training")

    monkeypatch.setattr(family.text.encoders[0], "forward", asked)
    assert torch.isfinite(batches.loss(learner, 0)) and batches.validation_loss(learner) > 0


def test_a_step_is_of_its_seed_and_number_alone():
    family, data = tiny_family("z_image"), tiny_data("z_image")
    recipe = tiny_recipe("z_image", "lora")
    learner = method("lora").learner(family, recipe)
    one, other = (Batches(family, learner, recipe, data, "ohwx man", {}) for _ in range(2))
    for field in ("latents", "texts", "noise", "timesteps", "weights"):
        assert torch.equal(getattr(one.at(3), field), getattr(other.at(3), field))
    assert not torch.equal(one.at(3).timesteps, one.at(4).timesteps)
    assert torch.equal(one.loss(learner, 3), other.loss(learner, 3))


def test_resume_equals_uninterrupted(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    recipe, data, family = tiny_recipe("z_image", "lora", steps=5), tiny_data("z_image"), tiny_family("z_image")
    list(train(recipe, data, whole, family=family))
    steps: list[int] = []

    def enough():
        return len(steps) >= 3

    for event in train(recipe, data, parts, family=family, control=Control(over=enough)):
        steps += [event.step] if event.kind == "step" else []
    assert event.kind == "paused" and event.step == 3
    assert list(train(recipe, data, parts, family=family))[0].step == 3
    for name in ("pytorch_lora_weights.safetensors", "likeness_lora.safetensors"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()


def test_it_learns_the_photos():
    """Of one photo and fixed noise the loss falls by far: the gradients point the right way."""
    family = tiny_family("z_image")
    recipe = tiny_recipe("z_image", "lora", rank=8, alpha=8.0)
    learner = method("lora").learner(family, recipe)
    batches = Batches(family, learner, recipe, tiny_data("z_image", photos=1), "ohwx man", {})
    optimizer = torch.optim.AdamW(learner.tensors().values(), lr=2e-2)
    losses = []
    for _ in range(40):
        loss = batches.loss(learner, 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_it_goes_on_from_what_was_learned(tmp_path):
    family = tiny_family("z_image")
    recipe = tiny_recipe("z_image", "lora")
    first = disturbed(method("lora").learner(family, recipe), size=1.0)
    first.export(tmp_path)
    second = method("lora").learner(family, recipe)
    second.start_from(tmp_path)
    for name, tensor in second.tensors().items():
        assert torch.allclose(tensor, first.tensors()[name], atol=1e-3)


def test_prior_pictures_and_several_shapes_train(tmp_path):
    family = copy.copy(tiny_family("z_image"))
    family.row = dataclasses.replace(family.row, buckets=((64, 64), (96, 64)))
    data = tiny_data("z_image")
    frames = [np.concatenate([frame, frame[:32]]) if index % 2 else frame for index, frame in enumerate(data.frames)]
    recipe = tiny_recipe("z_image", "lora", steps=3, prior_weight=0.5, prior_images=2, mirror=True)
    shaped = dataclasses.replace(data, frames=frames)
    assert list(train(recipe, shaped, tmp_path, family=family))[-1].kind == "done"


def test_half_precision_trains_and_proves_what_it_saved(tmp_path):
    half = Device("cpu", "bfloat16", "as on a GPU")
    family = load_family(find_base(str(tiny_folder("z_image"))), half)
    assert next(family.shared().unet.parameters()).dtype == torch.bfloat16
    events = list(train(tiny_recipe("z_image", "lora"), tiny_data("z_image"), tmp_path, family=family))
    assert events[-1].kind == "done"
    assert all(parameter.dtype == torch.float32 for parameter in method("lora").learner(
        family, tiny_recipe("z_image", "lora")).tensors().values())  # fmt: skip
