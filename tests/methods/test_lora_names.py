"""Files that load everywhere: every name we write is one each program maps, and what it maps is what was learned.

The programs' rules are written down here as they stood in August 2026, from reading: AUTOMATIC1111
extensions-builtin/Lora/networks.py, ComfyUI comfy/lora.py, InvokeAI patches/lora_conversions/, sd-scripts
library/train_util.py. diffusers is asked itself. The layouts are the real ones, without a single weight.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import math
import re
from functools import lru_cache

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from pipelines.bases.family import Modules
from pipelines.bases.registry import BASES, find_base
from pipelines.core.records import UserError
from pipelines.methods import lora_files, lora_names, method
from pipelines.methods.lora import TARGETS, TEXT_TARGETS
from pipelines.methods.lora_files import Layer
from pipelines.methods.lora_names import Layout, path_of
from pipelines.methods.textual_inversion import TOKEN
from tests.methods.test_methods import KINDS, disturbed, picture, stock, stock_picture
from tests.tiny import tiny_family, tiny_folder, tiny_recipe

REAL = ("sd15", "sdxl")


# -- the real layouts ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def real_parts(kind: str) -> dict[str, torch.nn.Module]:
    """UNet and text encoders as the real bases have them, on the meta device: names and shapes, no numbers."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    small = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    large = CLIPTextConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280
    )
    with torch.device("meta"):
        if kind == "sd15":
            unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
            return {"unet": unet, "text_encoder": CLIPTextModel(small)}
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        encoders = {"text_encoder": CLIPTextModel(small), "text_encoder_2": CLIPTextModelWithProjection(large)}
        return {"unet": unet, **encoders}


@lru_cache(maxsize=2)
def real_layout(kind: str) -> Layout:
    return Layout(
        {
            path_of(part, name.removesuffix(".weight")): tuple(weight.shape)
            for part, module in real_parts(kind).items()
            for name, weight in module.named_parameters()
            if name.endswith(".weight") and weight.ndim in (2, 4)
        }
    )


def written(kind: str) -> dict[str, str]:
    """Path -> the name we write, of everything our widest LoRA trains on a real base."""
    layout = real_layout(kind)
    wanted = {"unet": TARGETS["all"]}
    paths = [
        path
        for path in layout.weights
        for target in wanted.get(path.split(".")[0], TEXT_TARGETS)
        if path.endswith(f".{target}")
    ]
    return {path: layout.flat(path) for path in paths}


def test_the_real_layouts_are_whole():
    found = {kind: sum(path.startswith("unet.") and ".attn" in path for path in written(kind)) for kind in REAL}
    assert found == {"sd15": 128, "sdxl": 560}  # what every trainer counts for attention
    assert sum(path.startswith("text_encoder_2.") for path in written("sdxl")) == 4 * 32


@pytest.mark.parametrize("kind", REAL)
def test_stabilitys_names_are_those_diffusers_converts(kind):
    """diffusers reads a single-file checkpoint: each of our names has to arrive at the layer it stands for."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    layout, unet = real_layout(kind), real_parts(kind)["unet"]
    names = list(unet.state_dict())
    marked = {}
    for index, name in enumerate(names):
        stem, _, ending = name.rpartition(".")
        marked[f"model.diffusion_model.{layout.stability(f'unet.{stem}')}.{ending}"] = torch.tensor([index])
    assert len(marked) == len(names)
    config = dict(unet.config)
    if kind == "sd15":
        config |= {"addition_embed_type": None, "class_embed_type": None}
    back = convert_ldm_unet_checkpoint(marked, config)
    assert {name: int(tensor) for name, tensor in back.items()} == {name: k for k, name in enumerate(names)}


# -- what each program maps ----------------------------------------------------------------------------------------


def compvis(kind: str) -> set[str]:
    """Flat names of the layers as Stability's code has them (A1111 and ComfyUI run that)."""
    layout = real_layout(kind)
    return {layout.stability(path).replace(".", "_") for path in layout.weights if path.startswith("unet.")}


def clip_names(kind: str) -> dict[str, set[str]]:
    layout = real_layout(kind)
    return {
        part: {path.partition(".")[2].replace(".", "_") for path in layout.weights if path.startswith(f"{part}.")}
        for part in ("text_encoder", "text_encoder_2")
    }


def a1111(name: str, kind: str) -> bool:
    """networks.py: names of diffusers are converted by pattern, anything else is looked up as it stands."""
    inner = {"conv1": "in_layers_2", "conv2": "out_layers_3", "time_emb_proj": "emb_layers_1",
             "conv_shortcut": "skip_connection"}  # fmt: skip
    known = compvis(kind)
    if match := re.fullmatch(r"lora_unet_(down|up)_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)", name):
        side, block, what, layer, rest = match.groups()
        place = 3 * int(block) + int(layer) + (side == "down")
        rest = inner.get(rest, rest) if what == "resnets" else rest
        return f"{'input' if side == 'down' else 'output'}_blocks_{place}_{int(what == 'attentions')}_{rest}" in known
    if match := re.fullmatch(r"lora_unet_mid_block_(attentions|resnets)_(\d+)_(.+)", name):
        place = 1 if match[1] == "attentions" else 2 * int(match[2])
        rest = inner.get(match[3], match[3]) if match[1] == "resnets" else match[3]
        return f"middle_block_{place}_{rest}" in known
    if match := re.fullmatch(r"lora_unet_down_blocks_(\d+)_downsamplers_0_conv", name):
        return f"input_blocks_{3 + 3 * int(match[1])}_0_op" in known
    if match := re.fullmatch(r"lora_unet_up_blocks_(\d+)_upsamplers_0_conv", name):
        return f"output_blocks_{2 + 3 * int(match[1])}_{2 if int(match[1]) > 0 else 1}_conv" in known
    if name.startswith("lora_unet_"):  # "SDXL loras seem to already have correct compvis keys"
        return name.removeprefix("lora_unet_") in known
    if match := re.fullmatch(r"lora_te(1?)_text_model_(encoder_layers_\d+_.+)", name):
        return match[2] in clip_names(kind)["text_encoder"] and (match[1] == "1") == (kind == "sdxl")
    match = re.fullmatch(r"lora_te2_text_model_encoder_layers_\d+_(self_attn_(?:[qkv]|out)_proj|mlp_fc[12])", name)
    return match is not None


def comfyui(name: str, kind: str) -> bool:
    """lora.py: Stability's and diffusers' names of the UNet; of each CLIP six linear layers per block."""
    if name.startswith("lora_unet_"):
        layout = real_layout(kind)
        diffusers = {p.partition(".")[2].replace(".", "_") for p in layout.weights if p.startswith("unet.")}
        return name.removeprefix("lora_unet_") in compvis(kind) | diffusers
    match = re.fullmatch(r"lora_te([12]?)_text_model_encoder_layers_(\d+)_(.+)", name)
    six = ("mlp_fc1", "mlp_fc2", *(f"self_attn_{one}_proj" for one in ("k", "q", "v", "out")))
    if match is None or match[3] not in six or int(match[2]) >= 32:
        return False
    return (match[1] in ("", "1")) if kind == "sd15" else match[1] in ("", "1", "2")


def invokeai(names: list[str], kind: str) -> list[str]:
    """sdxl_lora_conversion_utils.py and layer_patcher.py: the names that reach no module; SDXL must be of one kind."""
    modules = {path.partition(".")[2].replace(".", "_"): path for path in real_layout(kind).weights}
    table: dict[str, str] = {}
    if kind == "sdxl":
        inner = {"in_layers_0": "norm1", "in_layers_2": "conv1", "out_layers_0": "norm2", "out_layers_3": "conv2",
                 "emb_layers_1": "time_emb_proj", "skip_connection": "conv_shortcut"}  # fmt: skip
        for i in range(3):
            for j in range(3):
                for side, place in (("down", f"input_blocks_{3 * i + j + 1}"), ("up", f"output_blocks_{3 * i + j}")):
                    if side == "up" or j < 2:
                        table[f"{place}_1"] = f"{side}_blocks_{i}_attentions_{j}"
                        for new, old in inner.items():
                            table[f"{place}_0_{new}"] = f"{side}_blocks_{i}_resnets_{j}_{old}"
            table[f"input_blocks_{3 * i + 3}_0_op"] = f"down_blocks_{i}_downsamplers_0_conv"
            table[f"output_blocks_{3 * i + 2}_2"] = f"up_blocks_{i}_upsamplers_0"
        table["middle_block_1"] = "mid_block_attentions_0"
        for j in range(2):
            table |= {f"middle_block_{2 * j}_{new}": f"mid_block_resnets_{j}_{old}" for new, old in inner.items()}
    order = sorted(table)
    lost, converted = [], set()
    for name in names:
        prefix = "lora_unet_" if name.startswith("lora_unet_") else re.match(r"lora_te[12]?_text_model_", name)[0]
        rest = name.removeprefix(prefix)
        if kind == "sdxl" and prefix == "lora_unet_":
            head = order[bisect.bisect_right(order, rest) - 1]
            converted.add(rest.startswith(head))
            rest = rest.replace(head, table[head]) if rest.startswith(head) else rest
        if rest not in modules:
            lost.append(name)
    assert len(converted) <= 1, "InvokeAI raises for a mixture"
    return lost


@pytest.mark.parametrize("kind", REAL)
def test_every_name_is_mapped_by_each_program(kind):
    names = list(written(kind).values())
    assert len(set(names)) == len(names) > 250
    assert [name for name in names if not a1111(name, kind)] == []
    assert [name for name in names if not comfyui(name, kind)] == []
    assert invokeai(names, kind) == []


def test_those_rules_can_fail():
    """What other writers get wrong is caught: transformers' flattened names, te1 for SD 1.5, SDXL's first upsampler."""
    assert not a1111("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", "sd15")
    assert not comfyui("lora_te_encoder_layers_0_self_attn_q_proj", "sd15")
    assert not a1111("lora_unet_up_blocks_0_upsamplers_0_conv", "sdxl")
    assert invokeai(["lora_unet_down_blocks_0_attentions_0_proj_out_lora"], "sd15")


@pytest.mark.parametrize("kind", REAL)
def test_diffusers_maps_every_name_onto_its_layer(kind):
    from diffusers.loaders.lora_conversion_utils import (
        _convert_non_diffusers_lora_to_diffusers,
        _maybe_map_sgm_blocks_to_diffusers,
    )
    from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft

    layout, names = real_layout(kind), written(kind)
    layers = {path: Layer(torch.full((1,), float(k)), torch.full((1,), float(k)), 1.0) for k, path in enumerate(names)}
    state = lora_files.to_kohya(layers, layout)
    if kind == "sdxl":
        state = _maybe_map_sgm_blocks_to_diffusers(state, real_parts(kind)["unet"].config)
    state, alphas = _convert_non_diffusers_lora_to_diffusers(state)
    assert len(alphas) == len(names)
    order = list(names)
    arrived = {}
    for part in real_parts(kind):
        own = {name.removeprefix(f"{part}."): each for name, each in state.items() if name.startswith(f"{part}.")}
        convert = convert_unet_state_dict_to_peft if part == "unet" else convert_state_dict_to_peft
        for name, tensor in convert(own).items():
            arrived.setdefault(path_of(part, re.sub(r"\.lora_[AB]\.weight$", "", name)), set()).add(int(tensor))
    assert arrived == {path: {order.index(path)} for path in order}


# -- our files -----------------------------------------------------------------------------------------------------


def made(kind, folder, **changes):
    family = tiny_family(kind)
    recipe = tiny_recipe(
        kind, "lora", **({"rank": 4, "targets": "all", "alpha": 1.0, "text_learning_rate": 1e-3} | changes)
    )
    learner = disturbed(method("lora").learner(family, recipe), size=1.0)
    learner.export(folder)
    return family, recipe, learner


def merged(family, layers, strength=1.0):
    modules = Modules(family.new_unet(trainable=True).requires_grad_(False), family.new_text())
    names = [name for _, name in family.architecture.text_parts]
    lora_files.merge(
        {"unet": modules.unet} | dict(zip(names, modules.text.encoders, strict=True)), layers, strength=strength
    )
    return modules


@pytest.mark.parametrize("with_text", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_both_loras_give_the_same_picture_in_stock_diffusers(kind, with_text, tmp_path):
    family, recipe, learner = made(kind, tmp_path, text_learning_rate=1e-3 if with_text else 0.0)
    prompt = f"portrait of {method('lora').phrase(family.row, recipe)}"
    drawn = []
    for name in ("pytorch_lora_weights.safetensors", lora_files.FILE):
        pipeline = stock(kind)
        pipeline.load_lora_weights(tmp_path, weight_name=name)
        drawn.append(stock_picture(family, pipeline, prompt))
    assert np.array_equal(*drawn)
    live, base = picture(family, learner.modules, prompt), picture(family, family.shared(), prompt)
    effect = np.abs(live - base).mean()
    # alpha is a quarter of the rank: forgotten, the change would be four times as large
    assert effect > 0.3 and np.abs(drawn[1] - live).mean() < 0.05 * effect + 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_a_kohya_file_comes_back_exactly(kind, tmp_path):
    family, _, learner = made(kind, tmp_path)
    layout = lora_names.layout(family.row)
    assert layout == lora_files.layout_of(learner.modules, family)  # adapters on the live modules change no name
    saved = load_file(str(tmp_path / lora_files.FILE))
    layers = lora_files.from_kohya(saved, layout)
    again = lora_files.to_kohya(layers, layout)
    assert set(again) == set(saved) and all(torch.equal(again[name], saved[name]) for name in saved)
    assert {layer.alpha for layer in layers.values()} == {1.0} and {layer.rank for layer in layers.values()} == {4}
    stock_names = load_file(str(tmp_path / "pytorch_lora_weights.safetensors"))
    other = lora_files.from_kohya(stock_names, layout, dict.fromkeys(layers, 1.0))
    assert set(other) == set(layers)
    for path, layer in layers.items():
        assert torch.equal(layer.down, other[path].down) and torch.equal(layer.up, other[path].up)
    kernels = [layer for layer in layers.values() if layer.down.ndim == 4]
    assert kernels and all(layer.up.shape[2:] == (1, 1) for layer in kernels)


@pytest.mark.parametrize("kind", KINDS)
def test_merging_draws_what_the_adapters_draw(kind, tmp_path):
    family, recipe, learner = made(kind, tmp_path)
    layers = lora_files.from_kohya(load_file(str(tmp_path / lora_files.FILE)), lora_names.layout(family.row))
    prompt = f"portrait of {method('lora').phrase(family.row, recipe)}"
    live = picture(family, learner.modules, prompt)
    assert np.abs(picture(family, merged(family, layers), prompt) - live).mean() < 0.3
    untouched = picture(family, family.shared(), prompt)
    assert np.abs(picture(family, merged(family, layers, 0.0), prompt) - untouched).max() <= 1


def adapted(kind, **options):
    """The tiny UNet with a PEFT adapter of any kind, and what diffusers would save of it."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    family = tiny_family(kind)
    unet = family.new_unet(trainable=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        unet.add_adapter(LoraConfig(target_modules=list(TARGETS["all"]), init_lora_weights="gaussian", **options))
        for name, parameter in unet.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
            if "magnitude" in name:
                parameter.data *= 1.0 + 0.2 * torch.rand_like(parameter)
    state = {f"unet.{name}": each.detach().clone() for name, each in get_peft_model_state_dict(unet).items()}
    return family, unet, lora_files.layers_of(state, {"unet": unet.peft_config["default"].to_dict()})


@pytest.mark.parametrize("kind", ["portrait", "sdxl"])
def test_rslora_keeps_its_strength_for_everybody_who_divides_by_the_rank(kind):
    family, unet, layers = adapted(kind, r=4, lora_alpha=3, use_rslora=True)
    assert all(math.isclose(layer.scale, 3 / math.sqrt(4)) for layer in layers.values())
    layout = lora_files.layout_of(family.shared(), family)
    back = lora_files.from_kohya(lora_files.to_kohya(layers, layout), layout)
    live = picture(family, Modules(unet, family.text), "portrait of man")
    assert np.abs(picture(family, merged(family, back), "portrait of man") - live).mean() < 0.3


def test_dora_lengths_are_written_per_output_and_come_back():
    family, unet, layers = adapted("sd15", r=4, lora_alpha=2, use_dora=True)
    layout = lora_files.layout_of(family.shared(), family)
    saved = lora_files.to_kohya(layers, layout)
    for path, layer in layers.items():
        scale, weight = saved[f"{layout.flat(path)}.dora_scale"], layout.weights[path]
        assert scale.shape == (weight[0], *[1] * (len(weight) - 1))  # LyCORIS with wd_on_output
        assert torch.equal(scale.flatten(), layer.magnitude)
    back = lora_files.from_kohya(saved, layout)
    assert not any(layer.per_input for layer in back.values())
    live = picture(family, Modules(unet, family.text), "portrait of man")
    assert np.abs(picture(family, merged(family, back), "portrait of man") - live).mean() < 0.3
    plain = {path: Layer(layer.down, layer.up, layer.alpha) for path, layer in back.items()}
    assert np.abs(picture(family, merged(family, plain), "portrait of man") - live).mean() > 1  # the lengths matter


def test_dora_per_input_is_told_apart_by_its_shape():
    """What sd-scripts' and OneTrainer's DoRA files hold: W' = (W + BA) m / ||W + BA|| with a column's length."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 6, bias=False)
    before = layer.weight.detach().clone()
    layout = Layout({"unet.down_blocks.0.resnets.0.time_emb_proj": (6, 6)})
    name, lengths = "lora_unet_down_blocks_0_resnets_0_time_emb_proj", torch.rand(1, 6) + 1
    down, up = torch.randn(2, 6), torch.randn(6, 2)
    found = lora_files.from_kohya(
        {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.dora_scale": lengths}, layout
    )
    (only,) = found.values()
    assert only.per_input and only.alpha == 2.0  # no alpha is the rank
    box = torch.nn.Module()
    box.down_blocks = torch.nn.ModuleList([torch.nn.Module()])
    box.down_blocks[0].resnets = torch.nn.ModuleList([torch.nn.Module()])
    box.down_blocks[0].resnets[0].time_emb_proj = layer
    lora_files.merge({"unet": box}, found)
    whole = before + up @ down
    assert torch.allclose(layer.weight, whole * lengths / whole.norm(dim=0), atol=1e-5)
    assert lora_files.to_kohya(found, layout)[f"{name}.dora_scale"].shape == (1, 6)


def test_a_layer_of_another_base_is_named():
    layout = lora_names.layout(tiny_family("sd15").row)
    with pytest.raises(UserError, match="lora_unet_input_blocks_99"):
        lora_files.from_kohya({"lora_unet_input_blocks_99_1_proj_in.lora_down.weight": torch.zeros(1, 1)}, layout)


# -- metadata ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_say_what_it_is_and_nothing_about_anybody(kind, tmp_path):
    family, _, _ = made(kind, tmp_path)
    with safe_open(str(tmp_path / lora_files.FILE), framework="pt") as file:
        said, names = file.metadata(), list(file.keys())
    assert all(isinstance(value, str) for value in said.values())
    version = {"portrait": "likeness_portrait_128", "sd15": "sd_v1", "sdxl": "sdxl_base_v1-0"}[kind]
    assert said["ss_base_model_version"] == version
    assert version.startswith("sdxl_") == (kind == "sdxl")  # how A1111 tells SDXL from SD1
    assert (said["ss_network_dim"], said["ss_network_alpha"], said["ss_v2"]) == ("4", "1", "False")
    assert said["ss_output_name"] == lora_files.FILE.removesuffix(".safetensors") and "<" not in lora_files.FILE
    phrase = f"{family.row.identifier} man"
    assert json.loads(said["ss_tag_frequency"]) == {"likeness": {phrase: 1}}
    assert said["modelspec.trigger_phrase"] == phrase
    assert said["modelspec.sai_model_spec"] == "1.0.1" and said["modelspec.architecture"].endswith("/lora")
    assert said["modelspec.prediction_type"] == ("v" if kind == "portrait" else "epsilon")
    prefix = {"portrait": "lora_te_", "sd15": "lora_te_", "sdxl": ("lora_te1_", "lora_te2_")}[kind]
    words = [name for name in names if name.startswith("lora_te")]
    assert words and all(name.startswith(prefix) and "_text_model_encoder_" in name for name in words)
    blob = (tmp_path / lora_files.FILE).read_bytes()
    assert str(tiny_folder(kind).parent).encode() not in blob
    # sd-scripts: the numbers' hash, and the old one over a window of the file with its training metadata alone
    begin = 8 + int.from_bytes(blob[:8], "little")
    whole = hashlib.sha256(blob[begin:]).hexdigest()
    assert said["sshs_model_hash"] == whole and said["modelspec.hash_sha256"] == f"0x{whole}"
    plain = save(load_file(str(tmp_path / lora_files.FILE)), {k: v for k, v in said.items() if k.startswith("ss_")})
    assert said["sshs_legacy_hash"] == hashlib.sha256(plain[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]


def test_equal_trainings_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made("portrait", tmp_path / name)
    assert (tmp_path / "a" / lora_files.FILE).read_bytes() == (tmp_path / "b" / lora_files.FILE).read_bytes()


# -- embeddings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_both_spellings_of_the_learned_words_give_the_same_picture(kind, tmp_path):
    family = tiny_family(kind)
    recipe = tiny_recipe(kind, "textual_inversion", vectors=3)
    learner = disturbed(method("textual_inversion").learner(family, recipe), size=3.0)
    learner.export(tmp_path)
    assert not any(set("<>") & set(file.name) for file in tmp_path.iterdir())  # other programs trigger on the name
    words = load_file(str(tmp_path / "likeness.safetensors"))
    drawn = []
    for spelling in ("token", "web"):
        pipeline = stock(kind)
        for index, (_, part) in enumerate(family.architecture.text_parts):
            own = load_file(str(tmp_path / ("learned_embeds.safetensors", "learned_embeds_2.safetensors")[index]))
            other = words["emb_params" if len(words) == 1 else ("clip_l", "clip_g")[index]]
            pipeline.load_textual_inversion(
                own if spelling == "token" else {TOKEN: other},
                token=TOKEN,
                text_encoder=getattr(pipeline, part),
                tokenizer=getattr(pipeline, part.replace("text_encoder", "tokenizer")),
            )
        drawn.append(stock_picture(family, pipeline, f"portrait of {TOKEN} man"))
    assert np.array_equal(*drawn)
    plain = stock_picture(family, stock(kind), "portrait of man")
    assert np.abs(drawn[0] - plain).mean() > 0.3
    if kind != "sdxl":  # as a file, the way A1111's users have it
        pipeline = stock(kind)
        pipeline.load_textual_inversion(tmp_path, weight_name="likeness.safetensors", token=TOKEN)
        assert np.array_equal(stock_picture(family, pipeline, f"portrait of {TOKEN} man"), drawn[0])


@pytest.mark.parametrize("kind", REAL)
def test_learned_words_have_the_widths_programs_tell_bases_by(kind):
    layout = real_layout(kind)
    widths = [
        shape[1] for path, shape in layout.weights.items() if path.endswith("embeddings.token_embedding")
    ]  # clip_l, clip_g
    assert widths == ([768] if kind == "sd15" else [768, 1280])


# -- bases on this machine -----------------------------------------------------------------------------------------


def test_the_layout_of_a_single_file_checkpoint_is_that_of_the_folder(tmp_path):
    """Stability's names back to paths, for both real bases."""
    for kind in REAL:
        layout = real_layout(kind)
        tensors: dict[str, tuple[int, ...]] = {}
        for path, shape in layout.weights.items():
            part, _, rest = path.partition(".")
            if part == "unet":
                tensors[f"model.diffusion_model.{layout.stability(path)}"] = shape
            elif part == "text_encoder":
                middle = "cond_stage_model" if kind == "sd15" else "conditioner.embedders.0"
                tensors[f"{middle}.transformer.text_model.{rest}"] = shape
        found = lora_names._from_checkpoint(tensors)
        assert found == {path: shape for path, shape in layout.weights.items() if not path.startswith("text_encoder_2")}
    second = lora_names._from_checkpoint(
        {
            "conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_weight": (3840, 1280),
            "conditioner.embedders.1.model.transformer.resblocks.3.mlp.c_fc": (5120, 1280),
            "conditioner.embedders.1.model.token_embedding": (49408, 1280),
        }
    )
    expected = real_layout("sdxl").weights
    assert second and all(expected[path] == shape for path, shape in second.items())


def test_a_base_that_is_not_here_is_said_so(monkeypatch, tmp_path):
    monkeypatch.setattr(lora_names, "_cached", lambda row: None)
    with pytest.raises(UserError, match="not on this machine"):
        lora_names.layout(BASES["sdxl"])
    assert len(lora_names.layout(find_base("portrait-128")).weights) > 100


def test_a_header_tells_the_base(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight":
               torch.zeros(4, 2048)}, str(file))  # fmt: skip
    assert lora_names.made_for(lora_names.read_header(file)) == BASES["sdxl"].title
    save_file({"x": torch.zeros(1)}, str(file), {"modelspec.architecture": "flux-1-dev/lora"})
    assert lora_names.made_for(lora_names.read_header(file)) == "FLUX"
