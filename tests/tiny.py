"""Tiny, randomly initialised Stable Diffusion pipelines of the stock classes, saved in diffusers' own folder layout.

In: an empty folder and a kind. Out: that folder, loadable by `from_pretrained` and by `bases.registry.find_base`.
Try it: `make_tiny_sd(tmp_path / "base", "portrait")`. They draw noise, not people: they are for laws, not for looks.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pipelines.bases.family import Family
    from pipelines.core.records import Event, Recipe
    from pipelines.training.batches import TrainingData

SUBJECT, SUBJECT_VECTORS = "<subject>", 4
_SAID = (
    "a photo portrait of man woman person young middle aged elderly background jacket and light warm cool bright dim "
    "gradient spotlight sepia close up black grey white navy blue teal green yellow orange brown red pink purple"
)
WORDS = tuple(_SAID.split())


@dataclass(frozen=True)
class Kind:
    """What distinguishes one tiny pipeline from another."""

    latent_channels: int
    image_px: int
    text_width: int
    max_tokens: int
    v_prediction: bool
    second_encoder: bool = False
    flow: bool = False


KINDS = {
    "portrait": Kind(latent_channels=16, image_px=128, text_width=32, max_tokens=32, v_prediction=True),
    "sd15": Kind(latent_channels=4, image_px=64, text_width=32, max_tokens=77, v_prediction=False),
    "sdxl": Kind(latent_channels=4, image_px=64, text_width=32, max_tokens=77, v_prediction=False, second_encoder=True),
    "z_image": Kind(latent_channels=4, image_px=64, text_width=32, max_tokens=512, v_prediction=False, flow=True),
}
UNETS = tuple(name for name, kind in KINDS.items() if not kind.flow)


def _merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges that make every word one token. No trainer: it breaks ties at random, and the base that is made
    with its vocabulary would differ from process to process.
    """
    merges: dict[tuple[str, str], int] = {}  # a pair -> its rank
    for word in words:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            pairs = list(zip(parts, parts[1:]))
            first = min(pairs, key=lambda pair: merges.get(pair, len(merges)))
            merges.setdefault(first, len(merges))
            place = pairs.index(first)
            parts[place : place + 2] = ["".join(first)]
    return list(merges)


def make_tokenizer(folder: Path, max_tokens: int, *, subject: bool):
    """A stock CLIPTokenizer whose byte-pair merges make every word of WORDS one token."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    merges = _merges(WORDS)
    letters = list(bytes_to_unicode().values())
    names = dict.fromkeys([*letters, *(c + "</w>" for c in letters), *("".join(pair) for pair in merges)])
    vocabulary = {name: index for index, name in enumerate([*names, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    tokenizer = CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=max_tokens
    )
    if subject:
        tokenizer.add_tokens([SUBJECT], special_tokens=True)
    return tokenizer


def make_checker(flags: bool, *, concept: int = 0) -> tuple[Any, Any]:
    """(a tiny safety checker of the stock class, its feature extractor). It refuses every picture, or none."""
    import torch
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=small, vision_config={**small, "image_size": 32, "patch_size": 16}, projection_dim=8
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        checker = StableDiffusionSafetyChecker(config)
    # a cosine lies in -1..1: these thresholds are always, or never, passed
    checker.concept_embeds_weights.data.fill_(2.0)
    checker.special_care_embeds_weights.data.fill_(2.0)
    if flags:
        checker.concept_embeds_weights.data[concept] = -2.0
    return checker, CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def add_checker(folder: Path, flags: bool, *, variant: str | None = None) -> None:
    """Give a diffusers folder a safety checker, as Stable Diffusion 1.5's has one."""
    checker, extractor = make_checker(flags)
    checker.save_pretrained(folder / "safety_checker", variant=variant)
    extractor.save_pretrained(folder / "feature_extractor")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": True,
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def make_tiny_sd(folder: Path, kind: str = "portrait", *, seed: int = 0) -> Path:
    """Write a tiny pipeline of `kind`, one of KINDS, to `folder` and return `folder`.

    About 0.3 M parameters. "portrait" has what models/portrait-128 has: 16 latent channels, v-prediction, zero terminal
    SNR, a `<subject>` token, `likeness.json` and a (random) identity projector.
    """
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    shape = KINDS[kind]
    if shape.flow:
        return _make_tiny_flow(Path(folder), shape, seed)
    portrait = kind == "portrait"
    folder = Path(folder)
    width = shape.text_width
    tokenizer = make_tokenizer(folder / "tokenizer", shape.max_tokens, subject=portrait)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=shape.max_tokens,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            hidden_act="gelu" if shape.second_encoder else "quick_gelu",
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=shape.latent_channels,
            norm_num_groups=4,
            sample_size=shape.image_px,
            scaling_factor=1.0 if portrait else 0.18215,
        )
        added = (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 6 * 8 + width,
                "transformer_layers_per_block": (1, 2),
                "use_linear_projection": True,
            }
            if shape.second_encoder
            else {}
        )
        unet = UNet2DConditionModel(
            sample_size=shape.image_px // 8,
            in_channels=shape.latent_channels,
            out_channels=shape.latent_channels,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=(2, 4),
            cross_attention_dim=2 * width if shape.second_encoder else width,
            norm_num_groups=8,
            **added,
        )
        text_encoder = CLIPTextModel(text_config)
        scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction" if shape.v_prediction else "epsilon",
            rescale_betas_zero_snr=shape.v_prediction,
            timestep_spacing="trailing" if shape.v_prediction else "leading",
            clip_sample=False,
            set_alpha_to_one=shape.v_prediction,
            steps_offset=1,
        )
        if shape.second_encoder:
            pipeline = StableDiffusionXLPipeline(
                vae=vae,
                text_encoder=text_encoder,
                text_encoder_2=CLIPTextModelWithProjection(text_config),
                tokenizer=tokenizer,
                tokenizer_2=tokenizer,
                unet=unet,
                scheduler=scheduler,
                add_watermarker=False,
            )
        else:
            pipeline = StableDiffusionPipeline(
                vae=vae,
                text_encoder=text_encoder,
                tokenizer=tokenizer,
                unet=unet,
                scheduler=scheduler,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        pipeline.save_pretrained(folder)
        if portrait:
            _write_portrait_extras(folder, width)
    return folder


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
)


def _make_tiny_flow(folder: Path, shape: Kind, seed: int) -> Path:
    """The parts of Tongyi-MAI/Z-Image: Qwen3 and its chat tokenizer, a flow transformer, a VAE with a shift."""
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    tokenizer = Qwen2Tokenizer(
        vocab={letter: index for index, letter in enumerate(letters)},
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=131072,
    )
    tokenizer.chat_template = CHAT
    width = shape.text_width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = ZImagePipeline(
            tokenizer=tokenizer,
            text_encoder=Qwen3Model(
                Qwen3Config(
                    vocab_size=len(tokenizer),
                    hidden_size=width,
                    intermediate_size=2 * width,
                    num_hidden_layers=3,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    head_dim=8,
                )
            ),
            vae=AutoencoderKL(
                block_out_channels=(8, 8, 16, 16),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=1,
                latent_channels=shape.latent_channels,
                norm_num_groups=4,
                sample_size=shape.image_px,
                scaling_factor=0.3611,
                shift_factor=0.1159,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
            transformer=ZImageTransformer2DModel(
                in_channels=shape.latent_channels,
                dim=48,
                n_layers=2,
                n_refiner_layers=1,
                n_heads=2,
                n_kv_heads=2,
                cap_feat_dim=width,
                axes_dims=[8, 8, 8],
                axes_lens=[1024, 64, 64],
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        )
        for token in (pipeline.transformer.x_pad_token, pipeline.transformer.cap_pad_token):
            torch.nn.init.normal_(token, std=0.02)
        pipeline.save_pretrained(folder)
    return folder


def _write_portrait_extras(folder: Path, width: int) -> None:
    """`likeness.json` and a random identity projector with the keys of models/portrait-128."""
    import torch
    from safetensors.torch import save_file

    hidden, out = 16, SUBJECT_VECTORS * width
    projector = {
        "mean": torch.zeros(128),
        "std": torch.ones(128),
        "linear.weight": torch.randn(out, 128) * 0.1,
        "linear.bias": torch.zeros(out),
        "expand.weight": torch.randn(hidden, 128) * 0.1,
        "expand.bias": torch.zeros(hidden),
        "project.weight": torch.randn(out, hidden) * 0.1,
        "project.bias": torch.zeros(out),
    }
    save_file(projector, str(folder / "identity_projector.safetensors"))
    facts = {
        "family": "portrait",
        "vocabulary": sorted(WORDS),
        "subject_token": SUBJECT,
        "subject_vectors": SUBJECT_VECTORS,
    }
    (folder / "likeness.json").write_text(json.dumps(facts, indent=2) + "\n")


# -- shared by tests of one session: read-only ---------------------------------------------------------------------


@lru_cache(maxsize=1)
def _session_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="likeness-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@lru_cache(maxsize=8)
def tiny_folder(kind: str) -> Path:
    """One tiny pipeline per kind and session. Don't write into it."""
    return make_tiny_sd(_session_folder() / kind, kind)


@lru_cache(maxsize=8)
def tiny_family(kind: str) -> Family:
    """It, loaded in float32 on the CPU, so that results can be compared closely."""
    from pipelines.bases.loading import load_family
    from pipelines.bases.registry import find_base
    from pipelines.core.device import Device

    return load_family(find_base(str(tiny_folder(kind))), Device("cpu", "float32", "exact in tests"))


def tiny_data(kind: str, *, photos: int = 4, validation: int = 0) -> TrainingData:
    """Smooth random pictures with captions of words the tiny bases know."""
    from pipelines.training.batches import TrainingData

    size = KINDS[kind].image_px
    coarse = np.random.default_rng(3).integers(0, 256, (photos + validation, 8, 8, 3), dtype=np.uint8)
    frames = coarse.repeat(size // 8, 1).repeat(size // 8, 2)
    colours = ("grey", "blue", "red", "teal", "navy", "green")
    captions = tuple(f"portrait of {{subject}}, {colours[k % 6]} background" for k in range(photos))
    return TrainingData(frames[:photos], captions, frames[photos:])


def tiny_recipe(kind: str, method: str, **changes: Any) -> Recipe:
    """A few quick steps."""
    from pipelines.core.records import Recipe

    plain = Recipe(
        base=str(tiny_folder(kind)),
        method=method,
        class_word="man",
        steps=4,
        batch=2,
        learning_rate=1e-3 if method == "dreambooth" else 1e-2,
        warmup_steps=1,
        rank=4,
        alpha=2.0,
        vectors=2,
        checkpoint_every=2,
        preview_every_s=0.0,
    )
    return plain.replaced(**changes)


def tiny_run(kind: str, method: str, out: Path, **changes: Any) -> list[Event]:
    """All events of one short training."""
    from pipelines.training.loop import train

    recipe = tiny_recipe(kind, method, **changes)
    return list(train(recipe, tiny_data(kind), out, family=tiny_family(kind)))


@lru_cache(maxsize=16)
def tiny_subject(kind: str, method: str) -> Path:
    """The folder of a trained subject, one per kind, method and session. Don't write into it."""
    out = _session_folder() / f"{kind}-{method}"
    events = tiny_run(kind, method, out, steps=3, targets="all")
    assert events[-1].kind == "done"
    return out
