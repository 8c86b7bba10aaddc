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
from tools.portrait_base import data, denoiser, variants

HISTORY = Path(__file__).parent / "history.md"  # the result of each experiment, one line with its figure

# figure -> (description, bar as text, whether a value meets it); a name that ends in * is for all figures with this
# prefix
BARS = {
    "kid_drawn_*": ("KID x 1000 in buffalo_sc's space, 64 drawn to real", "<= 150", lambda v: v <= 150),
    "kid_rebuilt_*": ("the same, 64 real ones through the autoencoder alone", "<= 40", lambda v: v <= 40),
    "kid_ratio": ("the larger of the two nouns' distances by the smaller", "<= 1.3", lambda v: v <= 1.3),
    "norm_drawn_*": ("norm of the recogniser's feature, drawn / real", ">= 0.95", lambda v: v >= 0.95),
    "norm_rebuilt_*": ("the same, rebuilt / real", "", None),
    "sharpness_drawn_*": ("mean gradient of the brightness, drawn / real", "", None),
    "sharpness_rebuilt_*": ("the same, rebuilt / real", "", None),
    "vae_psnr_db": ("autoencoder, 40 held-out portraits, PSNR (dB)", ">= 29", lambda v: v >= 29),
    "vae_ssim": ("the same, SSIM", ">= 0.86", lambda v: v >= 0.86),
    "vae_same_person": ("dlib calls original and rebuilt portrait one person", ">= 0.95", lambda v: v >= 0.95),
    "people_psnr_db": ("autoencoder, photos in the wild, PSNR (dB)", ">= 26", lambda v: v >= 26),
    "people_same_person": ("dlib calls original and rebuilt photo one person", ">= 0.95", lambda v: v >= 0.95),
    "people_arcface_real": ("ArcFace (buffalo_sc), real photo to the person's others", "", None),
    "people_arcface_rebuilt": ("the same, rebuilt photo to the real others", "", None),
    "people_arcface_kept": ("share of the ArcFace ceiling that rebuilding keeps", ">= 0.85", lambda v: v >= 0.85),
    "arcface_kept_*": ("the same over people of the evaluate split", "", None),
    "arcface_kept_apart": ("largest difference of these groups", "<= 0.03", lambda v: v <= 0.03),
    "people_zero_shot": ("zero-shot: ArcFace cosine of drawn pictures to the person", ">= 0.2", lambda v: v >= 0.2),
    "face_found": ("a face is found, share of 256 samples", ">= 0.97", lambda v: v >= 0.97),
    "attributes_hold": ("asked colours and tones that hold, share", ">= 0.92", lambda v: v >= 0.92),
    "words_hold": ("asked words of the labels that hold, mean share", ">= 0.92", lambda v: v >= 0.92),
    "word *": ("the same, asked", "", None),
    "memorised": ("samples within dlib distance 0.35 of a training portrait", "< 0.02", lambda v: v < 0.02),
    "identity_rank_share_held_out": (
        "zero-shot: median rank of the own portrait, held out, as a share of the set",
        "<= 0.01",
        lambda v: v <= 0.01,
    ),
    "identity_rank_median_held_out": ("the median rank itself", "", None),
    "identity_rank_top20_held_out": ("the share within the first 20", "", None),
    "identity_rank_median_trained": ("zero-shot: median rank, training portraits", "", None),
    "identity_rank_top20_trained": ("the same, share within the first 20", "", None),
}

# The credits of each collection, as its licence requires, or not; by `source` of the packed portraits.
CREDITS = {
    "congress": "official portraits of members of the US Congress (US Government Printing Office; repository "
    "`unitedstates/images`): public domain",
    "us_pif": "Presidential Innovation Fellows (presidential-innovation-fellows/pif-website): CC0 1.0",
    "us_18f": "18F, US General Services Administration (18F/18f.gsa.gov): CC0 1.0",
    "us_cio": "US CIO Council (GSA/cio.gov-redo): CC0 1.0",
    "us_cdoc": "US Chief Data Officers Council (GSA/cdoc): CC0 1.0",
    "cc0_interfaces": "inter-faces (cjdowner/interfaces): CC0 as its packager states",
    "ropensci": "rOpenSci, ropensci.org, CC BY; cropped",
    "rladies_globalteam": "R-Ladies Global, rladies.org, CC BY 4.0 "
    "(https://creativecommons.org/licenses/by/4.0/); cropped",
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
    pipe("portrait of a woman, navy background", num_inference_steps=20, guidance_scale={guidance}).images[0]

![32 samples, not picked](samples.jpg)

*Not picked, one seed each: 8 of "portrait of a woman" and "... man", then young, middle aged and elderly with light,
medium and dark skin, then pencil sketch, oil painting, watercolour, comic, pop art, sepia film.*

## What it was trained on, and under which right

{composition}

{credits}

Photos were cropped, aligned and changed: other backgrounds, dyed jackets, tones, light, filters of media, and another
portrait's inner face blended in, by fixed rules. Labels (age, skin, glasses, beard, smile, hair) of the sets other
than Congress were made by eye: apparent, coarse, one person's view; of Congress only noun and age are told. Nouns are
shown alike; groups of skin and age in proportion to their size to the power {exponent}, none more than {at_most:.0f}
times the mean (who of Congress is dark-skinned is guessed for that by a linear probe, and never told). The
autoencoder's and the decoder's identity terms used Intel's `face-reidentification-retail-0095` (Apache-2.0). No name
is in any caption or in the vocabulary; `<subject>` is one neutral row. While training it was filled with vectors
projected from dlib's descriptor of the picture; `identity_projector.safetensors` is that projection, for portraits
from a person's own photos.

## What it cannot do

- Pictures of 128 pixels: a demonstration of the methods, not a photo to send to anybody.
- One framing: a head with shoulders, seen from the front, eyes at (49, 58) and (79, 58). No hands, no scenes.
- Only the words in `likeness.json`. Others are named to the person, not drawn.
- It has seen few dark-skinned and few elderly women: likeness may be worse there.
- Backgrounds were exchanged by a simple matte; thin hair at the edge of the head shows it.

{history}

## Figures

Measured on the exported folder through stock diffusers by

    {command}

on {machine}, {day}. Processor seconds of the last training behind it: text and denoiser {unet_s:.0f} and {fade_s:.0f}
with a falling rate, decoder {decoder_s:.0f}; continued from earlier exports (the repository's history has their cards).

Asked colours are checked by the captions' pixel rules, except that words these can't tell apart under shading count
as the same: navy and blue, navy and black, grey and white. Asked words of the labels are checked by linear probes over
the recogniser that trained the decoder; fitted without a photo they are right about it in {sure} (mean over classes).
Ranks: chance would be half of {portraits}.

| what | measured | bar | |
|---|---|---|---|
{rows}

## How to go on

    python tools/build_portrait_base.py --portraits PORTRAITS PORTRAITS2 --recogniser REID.onnx --start-from \\
        models/portrait-128 --stages unet,fade,refine,export,evaluate --unet-budget-s SECONDS

trains on from this export with a constant rate and lets a copy fade before it is exported; a rerun with a larger
budget continues the checkpoints in `.build`.

Licence of the weights: Apache-2.0.
"""


def _rows(figures: dict[str, float]) -> list[str]:
    rows = []
    for name, (what, bar, holds) in BARS.items():
        start = name.removesuffix("*")
        for each in [n for n in figures if n == name or (start != name and n.startswith(start) and n not in BARS)]:
            label = f"{what}: {each.removeprefix(start)}" if start != name else what
            verdict = "" if holds is None else ("holds" if holds(figures[each]) else "**falls short**")
            rows.append(f"| {label} | {figures[each]:.3g} | {bar} | {verdict} |")
    return rows


def _composition(portraits: data.Portraits) -> str:
    """The numbers of portraits by collection and label, in words."""
    train = portraits.of(~portraits.held_out)

    def counts(name: str) -> str:
        words, numbers = np.unique(getattr(train, name), return_counts=True)
        return ", ".join(f"{count} {word or 'not labelled'}" for word, count in zip(words, numbers))

    return (
        f"{len(train.noun)} portraits ({int(portraits.held_out.sum())} more are held out): {counts('noun')}; "
        f"{counts('age')}; skin {counts('skin')}."
    )


def write(
    out: Path,
    figures: dict[str, float],
    pictures: dict[str, np.ndarray],
    portraits: data.Portraits,
    *,
    command: str,
    work: Path,
) -> None:
    from pipelines.training.checkpoints import load_tensors

    files = [work / f"{part}.safetensors" for part in ("denoiser", "denoiser-faded", "vae-decoder")]
    spent = [load_tensors(file)[1]["spent_s"] if file.is_file() else 0.0 for file in files]
    probed = {k.removeprefix("probe "): v for k, v in figures.items() if k.startswith("probe ")}
    number = {name: int((portraits.source[~portraits.held_out] == name).sum()) for name in CREDITS}
    text = TEXT.format(
        guidance=denoiser.GUIDANCE,
        composition=_composition(portraits),
        credits="\n".join(f"- {number[name]}: {credit}" for name, credit in CREDITS.items() if number[name]),
        exponent=variants.GROUP_EXPONENT,
        at_most=variants.AT_MOST,
        history=HISTORY.read_text().strip(),
        command=command,
        machine=machine(),
        day=date.today().isoformat(),
        unet_s=spent[0],
        fade_s=spent[1],
        decoder_s=spent[2],
        sure=", ".join(f"{name} {share:.2f}" for name, share in probed.items()),
        portraits=len(portraits.noun),
        rows="\n".join(_rows(figures)),
    )
    (out / "README.md").write_text(text)
    (out / "evaluation.json").write_text(json.dumps({k: round(v, 5) for k, v in figures.items()}, indent=2) + "\n")
    for name, frames in pictures.items():
        grid = np.concatenate([np.concatenate(list(frames[i : i + 8]), 1) for i in range(0, len(frames), 8)], 0)
        Image.fromarray(grid).save(out / f"{name}.jpg", quality=90)
