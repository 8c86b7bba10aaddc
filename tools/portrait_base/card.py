"""Stage 5, the model card: `README.md`, `evaluation.json` and a picture of samples, written from measured figures
only.
"""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.core.device import machine

# figure -> (what it is, bar as text, whether the value meets it)
BARS = {
    "vae_psnr_db": ("autoencoder, 40 held-out portraits, PSNR (dB)", ">= 29", lambda v: v >= 29),
    "vae_ssim": ("the same, SSIM", ">= 0.86", lambda v: v >= 0.86),
    "vae_same_person": ("dlib calls original and rebuilt portrait one person", ">= 0.95", lambda v: v >= 0.95),
    "people_psnr_db": ("autoencoder, photos in the wild, PSNR (dB)", ">= 26", lambda v: v >= 26),
    "people_same_person": ("dlib calls original and rebuilt photo one person", ">= 0.95", lambda v: v >= 0.95),
    "people_arcface_real": ("ArcFace (buffalo_sc), real photo to the person's others", "", None),
    "people_arcface_rebuilt": ("the same, rebuilt photo to the real others", "", None),
    "people_arcface_kept": ("share of the ArcFace ceiling that rebuilding keeps", ">= 0.8", lambda v: v >= 0.8),
    "face_found": ("a face is found, share of 256 samples", ">= 0.97", lambda v: v >= 0.97),
    "attributes_hold": ("asked attributes that hold, share", ">= 0.8", lambda v: v >= 0.8),
    "memorised": ("samples within dlib distance 0.35 of a training portrait", "< 0.05", lambda v: v < 0.05),
    "identity_rank_median_held_out": (
        "zero-shot: median rank of the own portrait of 879, held out",
        "< 20",
        lambda v: v < 20,
    ),
    "identity_rank_top20_held_out": ("the same, share within the first 20", "", None),
    "identity_rank_median_trained": ("zero-shot: median rank, training portraits", "", None),
    "identity_rank_top20_trained": ("the same, share within the first 20", "", None),
}

TEXT = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [stable-diffusion, portraits, 128px]
---

# portrait-128

A small text-to-image model in Stable Diffusion's own architecture, 128x128 pixels, trained from nothing by this
project so that textual inversion, DreamBooth and LoRA can be tried on real faces with nothing downloaded and no GPU.

    from diffusers import StableDiffusionPipeline
    pipe = StableDiffusionPipeline.from_pretrained("models/portrait-128")
    pipe("portrait of a woman, navy background, grey jacket", num_inference_steps=20, guidance_scale=3.0).images[0]

![32 samples, not picked](samples.jpg)

*32 of the 256 evaluation samples, the first ones, not picked: what it can and what it cannot do.*

## What it was trained on, and under which right

879 official portraits of members of the US Congress (public domain, US Government Printing Office; repository
`unitedstates/images`), of which 40 are held out: 722 men, 157 women, mostly older, in front of studio backdrops.
Variants of them (other backgrounds, dyed jackets, tones, another portrait's inner face blended in) were made by fixed
rules. The autoencoder's identity term used Intel's `face-reidentification-retail-0095` (Apache-2.0). No name is in
any caption or in the vocabulary; `<subject>` is one neutral row. While training it was filled with vectors projected
from dlib's descriptor of the picture; `identity_projector.safetensors` is that projection, for portraits from a
person's own photos.

## What it cannot do

- Pictures of 128 pixels: a demonstration of the methods, not a photo to send to anybody.
- One framing: a frontal head with shoulders, eyes at (49, 58) and (79, 58). No hands, no scenes, no profile.
- Only the words in `likeness.json`. Others are named to the person, not drawn.
- It has seen few women, few young people and few skin tones other than light: likeness will be worse there.
- Backgrounds were exchanged by a simple matte; thin hair at the edge of the head shows it.

## Figures

Measured on the exported folder through stock diffusers by

    {command}

on {machine}, {day}. Wall clock of the last training behind it: autoencoder {vae_s:.0f} s, text and
denoiser {unet_s:.0f} s; continued from earlier exports where `--start-from` was given (the
repository's history has their cards).

Asked attributes are checked by the captions' pixel rules, except that words these can't tell apart under shading count
as the same: navy and blue, navy and black, grey and white. Ranks: chance would be about 440.

| what | measured | bar | |
|---|---|---|---|
{rows}

Licence of the weights: Apache-2.0.
"""


def write(out: Path, figures: dict[str, float], pictures: dict[str, np.ndarray], *, command: str, work: Path) -> None:
    from pipelines.training.checkpoints import load_tensors

    rows = []
    for name, (what, bar, holds) in BARS.items():
        if name in figures:
            verdict = "" if holds is None else ("holds" if holds(figures[name]) else "**falls short**")
            rows.append(f"| {what} | {figures[name]:.3g} | {bar} | {verdict} |")
    spent = [load_tensors(work / f"{part}.safetensors")[1].get("spent_s", 0.0) for part in ("vae", "denoiser")]
    text = TEXT.format(
        command=command,
        machine=machine(),
        day=date.today().isoformat(),
        vae_s=spent[0],
        unet_s=spent[1],
        rows="\n".join(rows),
    )
    (out / "README.md").write_text(text)
    (out / "evaluation.json").write_text(json.dumps({k: round(v, 5) for k, v in figures.items()}, indent=2) + "\n")
    for name, frames in pictures.items():
        grid = np.concatenate([np.concatenate(list(frames[i : i + 8]), 1) for i in range(0, len(frames), 8)], 0)
        Image.fromarray(grid).save(out / f"{name}.jpg", quality=90)
