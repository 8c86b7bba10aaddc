"""The families of base models, as data: which stock pipeline runs each, and the settings of its code. Light: no torch.

In: a family's name, as in `BaseRow.family`. Out: an `Architecture`. How to add one: docs/extend.md.
Try it: `from pipelines.bases.architectures import FAMILIES; print(FAMILIES["sd15"])`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.core.records import ATTENTIONS

# name -> (class in diffusers, options); there is also "default", the base's own scheduler
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
    """The data of one family. The defaults are those of the UNet families."""

    pipeline: str  # stock class in diffusers
    guidance: float  # of previews and class images
    prompt_guidance: float  # of a prompt without a style, as the stock pipeline counts it
    text_parts: tuple[tuple[str, str], ...] = CLIP_TEXT  # (tokenizer, encoder) attributes of the pipeline
    penultimate: bool = False  # the denoiser gets the encoders' last layer but one
    sampled_latents: bool = False  # train on samples of the VAE's posterior; False: on its mean
    size_conditioned: bool = False  # the denoiser gets the picture's size and crop (SDXL)
    filtered: bool = True  # the image filter checks its pictures; a base that draws only heads needs no filter
    checker: bool = False  # its stock pipeline has an image filter; other families use that of `loading.LENDER`
    loading: Mapping[str, Any] = field(default_factory=dict)  # options of the stock pipeline's `from_pretrained`
    stored: str = "float16"  # the format of its weight files, also used on a GPU
    code: tuple[str, str] = ("pipelines.bases.family", "Family")  # module and class
    told_by_pipeline: bool = True  # a folder with its pipeline class belongs to this family
    denoiser: str = "unet"  # name of the denoiser in the pipeline; also the prefix of its layers in LoRA files
    attentions: tuple[str, ...] = ATTENTIONS
    schedulers: Mapping[str, tuple[str, dict[str, Any]]] = field(default_factory=lambda: DIFFUSION_SCHEDULERS)
    quick_scheduler: str = "ddim"  # for previews: good pictures in few steps
    targets: Mapping[str, tuple[str, ...]] | None = None  # LoRA's layers by name; None: those of UNets
    text_learns: bool = True  # LoRA may also train the text encoders
    sizes_px: tuple[int, ...] = ()  # sides of square pictures that the page offers besides the base's own
    single_file: str | None = None  # a prefix of tensor names by which a single-file checkpoint is recognised
    # The family's names in LoRA files: (sd-scripts' base version, ModelSpec's architecture), and words that identify it
    lora_names: tuple[str, str] = ("", "")
    lora_words: tuple[str, ...] = ()
    clip_judges: bool = True  # CLIP measures how well pictures fit their prompts; False: rules about pixels do
    context_width: int | None = None  # input width of cross-attention; identifies a LoRA's family if no word does


# `lora_names`: the names of the bases in sd-scripts (library/model_util.py, sdxl_model_util.py), and of Z-Image in
# musubi-tuner (dataset/architectures.py, utils/sai_model_spec.py). By the first one A1111 divides files into SD1, SD2
# and SDXL (network.py, `detect_version`).
FAMILIES: dict[str, Architecture] = {
    "portrait": Architecture(
        "StableDiffusionPipeline",
        guidance=3.0,
        prompt_guidance=3.0,
        filtered=False,
        clip_judges=False,  # its few words are all checked by rules
        loading=PLAIN_SD,
        stored="float32",
        told_by_pipeline=False,  # its folders are recognised by their likeness.json
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
        guidance=4.0,  # this pipeline counts from 0: its 4 is 5 in other pipelines
        prompt_guidance=4.0,
        penultimate=True,
        sampled_latents=False,  # as diffusers' training script for it
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
    """The first family whose pipeline class is `kind`, the class in a folder's `model_index.json`; None if none."""
    return next((name for name, each in FAMILIES.items() if each.told_by_pipeline and each.pipeline == kind), None)
