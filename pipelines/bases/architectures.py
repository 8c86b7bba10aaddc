"""The families of base models, as data: which stock pipeline runs each and what its code has to know. Light: no torch.

In: a family's name, as in `BaseRow.family`. Out: an `Architecture`. How to add one: docs/extend.md.
Try it: `from pipelines.bases.architectures import FAMILIES; print(FAMILIES["sd15"])`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.core.records import ATTENTIONS

# name -> (class in diffusers, options), besides "default", which is the base's own
DIFFUSION_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
PLAIN_SD = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
ATTENTION_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
GATED_LAYERS = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
CLIP_TEXT = (("tokenizer", "text_encoder"),)


@dataclass(frozen=True)
class Architecture:
    """What the code of one family has to know. Defaults are those of the UNet families."""

    pipeline: str  # stock class in diffusers
    guidance: float  # that previews and class images are drawn with
    prompt_guidance: float  # for a prompt that comes without a style, as the stock pipeline counts it
    text_parts: tuple[tuple[str, str], ...] = CLIP_TEXT  # (tokenizer, encoder) attributes of the pipeline
    penultimate: bool = False  # the denoiser is told the encoders' last layer but one
    sampled_latents: bool = False  # train on samples of the VAE's posterior, or on its mean as the base itself was
    size_conditioned: bool = False  # the denoiser is told the picture's size and crop (SDXL)
    filtered: bool = True  # its pictures are looked at; a base that can only draw heads and shoulders needs no filter
    checker: bool = False  # its stock pipeline holds the filter; to the others one is lent
    loading: Mapping[str, Any] = field(default_factory=dict)  # what the stock pipeline's `from_pretrained` is told
    stored: str = "float16"  # format its real weights are stored in, and loaded in on a GPU
    code: tuple[str, str] = ("pipelines.bases.family", "Family")  # module and class
    told_by_pipeline: bool = True  # a folder of its pipeline class is one of this family
    denoiser: str = "unet"  # the pipeline's part that learns; also the prefix of its layers in LoRA files
    attentions: tuple[str, ...] = ATTENTIONS
    schedulers: Mapping[str, tuple[str, dict[str, Any]]] = field(default_factory=lambda: DIFFUSION_SCHEDULERS)
    quick_scheduler: str = "ddim"  # for previews and looks: good pictures in few steps
    targets: Mapping[str, tuple[str, ...]] | None = None  # LoRA's layers by name; None: those of UNets
    text_learns: bool = True  # LoRA may adapt the text encoders too
    sizes_px: tuple[int, ...] = ()  # sides of square pictures that the page offers besides the base's own
    single_file: str | None = None  # how a tensor's name in a single-file checkpoint of this family begins
    # What LoRA files call the family: (sd-scripts' base version, ModelSpec's architecture), and words that tell it
    lora_names: tuple[str, str] = ("", "")
    lora_words: tuple[str, ...] = ()
    context_width: int | None = None  # of what cross-attention reads, which tells a LoRA's family where no word does


# What sd-scripts calls the bases (library/model_util.py, sdxl_model_util.py), and musubi-tuner Z-Image
# (dataset/architectures.py, utils/sai_model_spec.py). A1111 sorts files into SD1, SD2 and SDXL by the first name of
# `lora_names` (network.py, `detect_version`).
FAMILIES: dict[str, Architecture] = {
    "portrait": Architecture(
        "StableDiffusionPipeline",
        guidance=3.0,
        prompt_guidance=3.0,
        filtered=False,
        loading=PLAIN_SD,
        stored="float32",
        told_by_pipeline=False,  # but by the likeness.json in it
        lora_names=("likeness_portrait_128", "likeness-portrait-128"),
        lora_words=("likeness_portrait", "likeness-portrait"),
    ),
    "sd15": Architecture(
        "StableDiffusionPipeline",
        guidance=7.0,
        prompt_guidance=7.0,
        sampled_latents=True,
        checker=True,
        loading=PLAIN_SD,
        sizes_px=(512, 640, 768),
        single_file="cond_stage_model.transformer.",
        lora_names=("sd_v1", "stable-diffusion-v1"),
        lora_words=("sd_v1", "sd_1.5", "stable-diffusion-v1"),
        context_width=768,
    ),
    "sdxl": Architecture(
        "StableDiffusionXLPipeline",
        guidance=6.0,
        prompt_guidance=7.0,
        text_parts=(*CLIP_TEXT, ("tokenizer_2", "text_encoder_2")),
        penultimate=True,
        sampled_latents=True,
        size_conditioned=True,
        loading={"add_watermarker": False},
        sizes_px=(768, 896, 1024),
        single_file="conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight",
        lora_names=("sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
        lora_words=("sdxl", "stable-diffusion-xl"),
        context_width=2048,
    ),
    "z_image": Architecture(
        "ZImagePipeline",
        guidance=4.0,  # this pipeline counts from 0: what others call 5
        prompt_guidance=4.0,
        penultimate=True,
        sampled_latents=False,  # the stock script trains on the posterior's mode
        stored="bfloat16",
        code=("pipelines.bases.z_image", "ZImage"),
        denoiser="transformer",
        attentions=("sdpa",),
        schedulers={},
        quick_scheduler="default",
        text_learns=False,
        targets={
            "attention": ATTENTION_LAYERS,
            "attention+feed_forward": (*ATTENTION_LAYERS, *GATED_LAYERS),
            "all": (*ATTENTION_LAYERS, *GATED_LAYERS),  # there are no convolutions
        },
        sizes_px=(768, 896, 1024),
        lora_names=("z_image", "Z-Image"),
        lora_words=("z_image", "z-image", "zimage"),
    ),
}


def family_of_pipeline(kind: str) -> str | None:
    """The family of a diffusers folder by the pipeline class in its `model_index.json`; the first that fits."""
    return next((name for name, each in FAMILIES.items() if each.told_by_pipeline and each.pipeline == kind), None)
