"""Laws of the three methods: what they may change, and that stock diffusers reads what they save."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pipelines.bases.architectures import FAMILIES
from pipelines.bases.family import moved
from pipelines.bases.loading import load_family
from pipelines.bases.registry import find_base
from pipelines.bases.sampling import Row, sample
from pipelines.core.device import Device, noise
from pipelines.core.records import TRAINABLE as METHODS
from pipelines.core.records import UserError
from pipelines.methods import method
from pipelines.methods.textual_inversion import TOKEN, tokens
from tests.tiny import tiny_family, tiny_folder, tiny_recipe

KINDS = ("portrait", "sd15", "sdxl")
STEPS, GUIDANCE = 3, 3.0


def disturbed(learner, size=0.2, seed=0):
    """The learner with every trainable number moved, as training would, only faster."""
    with torch.no_grad():
        for index, tensor in enumerate(learner.tensors().values()):
            generator = torch.Generator().manual_seed(seed + index)
            tensor.add_(size * (tensor.abs().mean() + 0.05) * torch.randn(tensor.shape, generator=generator))
    return learner


def picture(family, modules, prompt, seed=5):
    frames = sample(family, modules, [Row(prompt, seed, guidance=GUIDANCE)], steps=STEPS)
    return frames[0].astype(np.float32)


def stock_picture(family, pipeline, prompt, seed=5):
    pipeline.set_progress_bar_config(disable=True)
    size = family.row.resolution_px
    image = pipeline(
        prompt,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        latents=noise(seed, (1, *family.latent_shape())),
        output_type="np",
        height=size,
        width=size,
    ).images[0]
    return image * 255


def stock(kind, folder=None):
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(folder or tiny_folder(kind))  # no dtype given, no code of ours


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_lora_changes_nothing(kind):
    family = tiny_family(kind)
    recipe = tiny_recipe(kind, "lora", text_learning_rate=1e-3)
    learner = method("lora").learner(family, recipe)
    prompt = "portrait of man, navy background"
    assert np.array_equal(picture(family, learner.modules, prompt), picture(family, family.shared(), prompt))


@pytest.mark.parametrize("kind", KINDS)
def test_textual_inversion_leaves_every_other_row_equal(kind, tmp_path):
    family = tiny_family(kind)
    before = [encoder.get_input_embeddings().weight.clone() for encoder in family.text.encoders]
    plain = "portrait of man, navy background"
    untouched = picture(family, family.shared(), plain)
    learner = disturbed(method("textual_inversion").learner(family, tiny_recipe(kind, "textual_inversion")))
    assert np.array_equal(picture(family, learner.modules, plain), untouched)  # a prompt without the token
    learner.export(tmp_path)
    for encoder, table in zip(family.text.encoders, before, strict=True):
        assert torch.equal(encoder.get_input_embeddings().weight, table)
    assert all(len(tokenizer) == len(table) for tokenizer, table in zip(family.text.tokenizers, before, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_textual_inversion_loads_in_stock_diffusers(kind, tmp_path):
    family = tiny_family(kind)
    recipe = tiny_recipe(kind, "textual_inversion", vectors=3)
    learner = disturbed(method("textual_inversion").learner(family, recipe), size=3.0)
    learner.export(tmp_path)
    live = picture(family, learner.modules, f"portrait of {method('textual_inversion').phrase(family.row, recipe)}")
    pipeline = stock(kind)
    rows = len(pipeline.text_encoder.get_input_embeddings().weight)
    old = pipeline.text_encoder.get_input_embeddings().weight.detach().clone()
    pipeline.load_textual_inversion(tmp_path, weight_name="learned_embeds.safetensors")
    if kind == "sdxl":
        file = load_file(str(tmp_path / "learned_embeds_2.safetensors"))
        pipeline.load_textual_inversion(
            file, text_encoder=pipeline.text_encoder_2, tokenizer=pipeline.tokenizer_2, token=TOKEN
        )
    assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight[:rows], old)
    # diffusers expands the token to all of its vectors
    assert np.abs(stock_picture(family, pipeline, f"portrait of {TOKEN} man") - live).max() <= 1.0
    text = learner.modules.text
    ours = text.encode(text.ids([f"portrait of {' '.join(tokens(3))} man"]))
    theirs = pipeline.encode_prompt(
        f"portrait of {TOKEN} man", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert torch.allclose(theirs[0], ours.states, atol=1e-5)
    assert kind != "sdxl" or torch.allclose(theirs[2], ours.pooled, atol=1e-5)
    without = family.text.encode(family.text.ids(["portrait of man"]))
    assert (without.states - ours.states).abs().mean() > 0.01  # and it says something else
    saved = load_file(str(tmp_path / "likeness.safetensors"))  # what A1111 and ComfyUI read
    assert set(saved) == ({"clip_l", "clip_g"} if kind == "sdxl" else {"emb_params"})


@pytest.mark.parametrize("with_text", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_lora_with_half_alpha_loads_in_stock_diffusers(kind, with_text, tmp_path):
    family = tiny_family(kind)
    rate = 1e-3 if with_text else 0.0
    recipe = tiny_recipe(kind, "lora", rank=4, alpha=2.0, targets="all", text_learning_rate=rate)
    learner = disturbed(method("lora").learner(family, recipe), size=1.0)
    learner.export(tmp_path)
    prompt = f"portrait of {method('lora').phrase(family.row, recipe)}"
    live, base = picture(family, learner.modules, prompt), picture(family, family.shared(), prompt)
    pipeline = stock(kind)
    pipeline.load_lora_weights(tmp_path)
    loaded = pipeline.unet.peft_config["default_0"]
    assert (loaded.r, loaded.lora_alpha) == (4, 2.0)
    effect = np.abs(live - base).mean()
    assert effect > 0.5
    # float16 on disk; alpha forgotten (twice the strength) or layers left out would be a large part of the effect
    assert np.abs(stock_picture(family, pipeline, prompt) - live).mean() < 0.05 * effect + 0.3
    names = {name for name, _ in pipeline.unet.named_parameters() if "lora_A" in name}
    with safe_open(str(tmp_path / "pytorch_lora_weights.safetensors"), framework="pt") as file:
        keys = list(file.keys())
        assert len([key for key in keys if key.startswith("unet.") and "lora_A" in key]) == len(names)
        saved = [key for key in keys if key.startswith("text_encoder.")]
        assert all(key.startswith("text_encoder.text_model.") for key in saved) and bool(saved) == with_text


@pytest.mark.parametrize("with_text", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_dreambooth_folder_is_a_stock_pipeline(kind, with_text, tmp_path):
    family = tiny_family(kind)
    recipe = tiny_recipe(kind, "dreambooth", text_learning_rate=1e-3 if with_text else 0.0)
    learner = disturbed(method("dreambooth").learner(family, recipe))
    artifact = learner.export(tmp_path)
    prompt = f"portrait of {method('dreambooth').phrase(family.row, recipe)}"
    live, base = picture(family, learner.modules, prompt), picture(family, family.shared(), prompt)
    effect = np.abs(live - base).mean()
    assert effect > 0.5
    assert np.abs(stock_picture(family, stock(kind, tmp_path), prompt) - live).mean() < 0.05 * effect + 0.3
    learned = {name.split("/")[0] for name in artifact.learned}
    encoders = {name for _, name in family.architecture.text_parts}
    assert learned == ({"unet"} | encoders if with_text else {"unet"})
    with safe_open(str(tmp_path / artifact.file), framework="pt") as file:
        assert file.get_tensor("conv_in.weight").dtype == torch.float16
    # the parts that nobody changed share their bytes with the base
    weights = "vae/diffusion_pytorch_model.safetensors"
    assert (tmp_path / weights).samefile(tiny_folder(kind) / weights)


@pytest.mark.parametrize("source", ["fp16 files only", "its config says half"])
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_what_was_trained_in_half_loads_in_stock_diffusers(kind, source, tmp_path):
    """On a card the encoders compute in bfloat16 and are loaded in float16; `from_pretrained` must not notice."""
    base = shutil.copytree(tiny_folder(kind), tmp_path / "base")
    encoders = [name for _, name in FAMILIES[kind].text_parts]
    if source == "fp16 files only":
        for weights in base.glob("*/*.safetensors"):
            weights.rename(weights.with_name(weights.name.replace(".safetensors", ".fp16.safetensors")))
    else:
        for name in encoders:
            config = base / name / "config.json"
            config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float16"}))
    before = {file: file.read_bytes() for file in base.rglob("*") if file.is_file()}
    family = load_family(find_base(str(base)), Device("cpu", "float32", "as a card, but for the encoders"))
    for name, encoder in zip(encoders, family.text.encoders, strict=True):
        moved(family.loaded(name), "cpu", torch.float16)
        moved(encoder, "cpu", torch.bfloat16)
    out = tmp_path / "out"
    out.mkdir()
    learner = disturbed(method("dreambooth").learner(family, tiny_recipe(kind, "dreambooth")))
    learner.export(out)
    pipeline = stock(kind, out)
    for name in encoders:
        part, plain = getattr(pipeline, name), getattr(stock(kind), name)
        assert part.dtype == torch.float32
        for one, other in zip(part.parameters(), plain.parameters(), strict=True):
            assert torch.allclose(one, other, atol=1e-3), "float16 has ten binary digits, bfloat16 seven"
    stock_picture(family, pipeline, "portrait of man")
    assert {file: file.read_bytes() for file in base.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("name", METHODS)
def test_saved_files_carry_no_path_of_this_machine(name, tmp_path):
    family = tiny_family("portrait")
    recipe = tiny_recipe("portrait", name, text_learning_rate=1e-3)
    method(name).learner(family, recipe).export(tmp_path)
    secret = str(tiny_folder("portrait").parent).encode()
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or secret not in file.read_bytes(), file.name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_apply_draws_what_the_live_modules_draw(kind, name, tmp_path):
    family = tiny_family(kind)
    recipe = tiny_recipe(kind, name, targets="all")
    learner = disturbed(method(name).learner(family, recipe), size=0.5)
    learner.export(tmp_path)
    prompt = f"portrait of {method(name).phrase(family.row, recipe)}"
    applied = method(name).apply(family, tmp_path, recipe)
    assert np.abs(picture(family, applied, prompt) - picture(family, learner.modules, prompt)).mean() < 0.3
    clean = [parameter.clone() for parameter in family.shared().unet.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(clean, family.shared().unet.parameters(), strict=True))


def test_learned_vectors_are_clamped():
    family = tiny_family("portrait")
    learner = method("textual_inversion").learner(family, tiny_recipe("portrait", "textual_inversion"))
    (rows,) = learner.tensors().values()
    with torch.no_grad():
        rows[0].mul_(1000)
        small = rows[1].mul_(0.5).clone()
    learner.after_step()
    longest = family.text.encoders[0].get_input_embeddings().weight.norm(dim=1).max()
    assert rows[0].norm() <= 2 * longest
    assert torch.equal(rows[1], small)  # only what is too long is shortened


def test_zero_shot_start_is_the_projector_of_the_face():
    family = tiny_family("portrait")
    recipe = tiny_recipe("portrait", "textual_inversion", init="zero_shot", vectors=4)
    learn = method("textual_inversion").learner
    known = np.random.default_rng(0).normal(size=128).astype(np.float32)
    (rows,) = learn(family, recipe, identity=known).tensors().values()
    weights = load_file(str(tiny_folder("portrait") / "identity_projector.safetensors"))
    face = torch.tensor(known)
    hidden = torch.nn.functional.silu(weights["expand.weight"] @ face)
    guess = 0.1 * (weights["linear.weight"] @ face + weights["project.weight"] @ hidden).view(4, -1)
    table = family.text.encoders[0].get_input_embeddings().weight
    neutral = table[family.text.tokenizers[0].convert_tokens_to_ids("<subject>")]
    assert torch.allclose(rows, neutral + guess, atol=1e-5)
    (without,) = learn(family, recipe).tensors().values()
    assert torch.equal(without[0], neutral)
    # a base without a projector starts from the class word
    other = tiny_family("sd15")
    (word,) = learn(other, tiny_recipe("sd15", "textual_inversion", init="zero_shot", vectors=1)).tensors().values()
    man = other.text.tokenizers[0]("man", add_special_tokens=False).input_ids
    assert torch.equal(word, other.text.encoders[0].get_input_embeddings().weight[man])


def test_tokens_are_found_whole():
    family = tiny_family("portrait")
    learner = method("textual_inversion").learner(family, tiny_recipe("portrait", "textual_inversion", vectors=3))
    text = learner.modules.text
    first = text.learned.first_ids[0]
    ids = text.ids([f"portrait of {' '.join(tokens(3))} man"])[0][0].tolist()
    assert [each for each in ids if each >= first] == [first, first + 1, first + 2]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("textual_inversion", {"vectors": 0}),
        ("textual_inversion", {"vectors": 9}),
        ("textual_inversion", {"init": "magic"}),
        ("lora", {"rank": 0}),
        ("lora", {"targets": "everything"}),
    ],
)
def test_impossible_recipes_are_refused(name, changes):
    with pytest.raises(UserError):
        method(name).learner(tiny_family("portrait"), tiny_recipe("portrait", name, **changes))


@pytest.mark.parametrize("name", METHODS)
def test_an_artefact_of_another_base_or_none_is_refused(name, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    sdxl = tiny_family("sdxl")
    method(name).learner(sdxl, tiny_recipe("sdxl", name)).export(tmp_path)
    portrait = tiny_family("portrait")
    if name != "textual_inversion":  # its vectors are as wide as the tiny portrait's: they do fit
        with pytest.raises(UserError):
            method(name).apply(portrait, tmp_path, tiny_recipe("portrait", name))
    with pytest.raises(UserError):
        method(name).apply(portrait, empty, tiny_recipe("portrait", name))


def test_model_index_is_complete(tmp_path):
    family = tiny_family("sdxl")
    method("dreambooth").learner(family, tiny_recipe("sdxl", "dreambooth")).export(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    parts = {name for name, value in index.items() if isinstance(value, list) and value[0]}
    assert parts == {"unet", "vae", "scheduler", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"}
    assert index["force_zeros_for_empty_prompt"] is True


# -- pivotal tuning ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_text", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_pivotal_tuning_loads_in_stock_diffusers_and_draws_the_same(kind, with_text, tmp_path):
    family = tiny_family(kind)
    recipe = tiny_recipe(kind, "pivotal", vectors=3, targets="all", text_learning_rate=1e-3 if with_text else 0.0)
    learner = disturbed(method("pivotal").learner(family, recipe), size=1.0)
    artifact = learner.export(tmp_path)
    prompt = f"portrait of {method('pivotal').phrase(family.row, recipe)}"
    live, base = picture(family, learner.modules, prompt), picture(family, family.shared(), "portrait of man")
    pipeline = stock(kind)
    pipeline.load_textual_inversion(tmp_path, weight_name="learned_embeds.safetensors")
    if kind == "sdxl":
        file = load_file(str(tmp_path / "learned_embeds_2.safetensors"))
        pipeline.load_textual_inversion(
            file, text_encoder=pipeline.text_encoder_2, tokenizer=pipeline.tokenizer_2, token=TOKEN
        )
    pipeline.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    effect = np.abs(live - base).mean()
    assert effect > 0.5
    assert np.abs(stock_picture(family, pipeline, f"portrait of {TOKEN} man") - live).mean() < 0.05 * effect + 0.3
    # each half alone is another picture: both are needed
    pipeline.unload_lora_weights()
    assert np.abs(stock_picture(family, pipeline, f"portrait of {TOKEN} man") - live).mean() > 0.3
    embeds = ["learned_embeds.safetensors"] + ["learned_embeds_2.safetensors"] * (kind == "sdxl")
    assert artifact.learned == (*embeds, "pytorch_lora_weights.safetensors") and artifact.file == artifact.learned[-1]
    assert (tmp_path / "likeness.safetensors").is_file()


def test_pivotal_tuning_is_its_two_parts():
    family, recipe = tiny_family("sdxl"), tiny_recipe("sdxl", "pivotal", vector_learning_rate=5e-3, weight_decay=0.1)
    whole = method("pivotal").learner(family, recipe)
    words = method("textual_inversion").learner(family, recipe.replaced(method="textual_inversion"))
    adapters = method("lora").learner(family, recipe.replaced(method="lora"))
    expected = {f"words.{k}": v for k, v in words.tensors().items()}
    expected |= {f"adapters.{k}": v for k, v in adapters.tensors().items()}
    assert list(whole.tensors()) == list(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in whole.tensors().items()), "they start alike"
    first, second = whole.groups()
    assert (first.learning_rate, first.weight_decay, second.learning_rate) == (5e-3, 0.0, recipe.learning_rate)
    assert set(whole.scales()) == {name for name in expected if ".lora_B." in name}
    assert whole.modules.text.learned.rows[0] is whole.tensors()["words.encoder_0"]


# -- kinds of LoRA -------------------------------------------------------------------------------------------------

KINDS_OF_LORA = [{"dora": True}, {"rslora": True}, {"dora": True, "rslora": True, "text_learning_rate": 1e-3}]


@pytest.mark.parametrize("changes", KINDS_OF_LORA, ids=["dora", "rslora", "both with text"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_lora_load_in_stock_diffusers(kind, changes, tmp_path):
    family, recipe = tiny_family(kind), tiny_recipe(kind, "lora", rank=4, alpha=2.0, targets="all", **changes)
    learner = method("lora").learner(family, recipe)
    prompt = f"portrait of {method('lora').phrase(family.row, recipe)}"
    base = picture(family, family.shared(), prompt)
    assert np.abs(picture(family, learner.modules, prompt) - base).max() <= 1, "fresh, it changes nothing"
    disturbed(learner, size=0.5).export(tmp_path)
    live = picture(family, learner.modules, prompt)
    effect = np.abs(live - base).mean()
    assert effect > 0.5
    pipeline = stock(kind)
    pipeline.load_lora_weights(tmp_path)
    assert np.abs(stock_picture(family, pipeline, prompt) - live).mean() < 0.05 * effect + 0.3
    loaded = pipeline.unet.peft_config["default_0"]
    assert (loaded.use_dora, loaded.use_rslora) == (bool(changes.get("dora")), bool(changes.get("rslora")))
    applied = method("lora").apply(family, tmp_path, recipe)
    assert np.abs(picture(family, applied, prompt) - live).mean() < 0.3
    without = method("lora").apply(family, tmp_path, recipe, strength=0.0)
    assert np.abs(picture(family, without, prompt) - base).max() <= 1, "at strength 0 nothing is left of it"
    again = method("lora").learner(family, recipe)
    again.start_from(tmp_path)
    for name, tensor in again.tensors().items():
        assert torch.allclose(tensor, learner.tensors()[name], atol=2e-3), name


def test_rslora_divides_by_the_root_of_the_rank():
    family = tiny_family("sd15")
    seen = {}
    for name, changes in (("plain", {}), ("rs", {"rslora": True})):
        learner = method("lora").learner(family, tiny_recipe("sd15", "lora", rank=4, alpha=2.0, **changes))
        scales = {s for m in learner.modules.unet.modules() for s in getattr(m, "scaling", {}).values()}
        (seen[name],) = scales
    assert seen == {"plain": 0.5, "rs": 1.0}


def test_only_a_change_that_is_a_product_can_be_scaled(tmp_path):
    family = tiny_family("sd15")
    recipe = tiny_recipe("sd15", "lora", rslora=True)
    learner = disturbed(method("lora").learner(family, recipe), size=0.5)
    learner.export(tmp_path)
    prompt = f"portrait of {method('lora').phrase(family.row, recipe)}"
    half = picture(family, method("lora").apply(family, tmp_path, recipe, strength=0.5), prompt)
    with torch.no_grad():
        for name in learner.scales():
            learner.tensors()[name].mul_(0.5)
    assert np.abs(picture(family, learner.modules, prompt) - half).mean() < 0.3, "scales() is what strength means"
    assert method("lora").learner(family, tiny_recipe("sd15", "lora", dora=True)).scales() == ()


# -- text encoders that learn --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lora", "dreambooth", "pivotal"])
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_every_text_encoder_learns_and_is_put_back(kind, name, tmp_path):
    from pipelines.training.loop import train
    from tests.tiny import tiny_data

    family = tiny_family(kind)
    before = [{k: v.clone() for k, v in encoder.state_dict().items()} for encoder in family.text.encoders]
    recipe = tiny_recipe(kind, name, steps=2, text_learning_rate=1e-3)
    fresh = method(name).learner(family, recipe)
    start = {key: tensor.detach().clone() for key, tensor in fresh.tensors().items()}
    events = list(train(recipe, tiny_data(kind), tmp_path, family=family))  # verified by itself
    assert events[-1].kind == "done"
    ended = method(name).learner(family, recipe)
    ended.start_from(tmp_path)
    for index in range(len(family.text.encoders)):
        part = {key for key in start if f"encoder_{index}." in key and "words" not in key}
        assert part and any(not torch.equal(start[key], ended.tensors()[key]) for key in part), index
    for encoder, untouched in zip(family.text.encoders, before, strict=True):
        assert all(torch.equal(tensor, untouched[key]) for key, tensor in encoder.state_dict().items())
    # what is applied says what the live encoders say, to each encoder's own part of it
    applied = method(name).apply(family, tmp_path, recipe)
    prompt = f"portrait of {method(name).phrase(family.row, recipe)}"
    said = [modules.text.encode(modules.text.ids([prompt])) for modules in (applied, ended.modules)]
    assert torch.allclose(said[0].states, said[1].states, atol=2e-2)
    assert kind != "sdxl" or torch.allclose(said[0].pooled, said[1].pooled, atol=2e-2)
