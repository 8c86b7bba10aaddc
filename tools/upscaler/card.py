"""The model card of upscale-x2-mini: `README.md` and `evaluation.json`, from measured figures only."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from pipelines.core.device import machine
from pipelines.core.files import write_json

TEXT = """---
license: apache-2.0
library_name: safetensors
pipeline_tag: image-to-image
tags: [super-resolution, gan, portraits]
---

# upscale-x2-mini

Two small networks that work with nothing downloaded and no GPU. The **enlarger** ({enlarger_m:.2f} million parameters,
{enlarger_mb:.2f} MB) makes a picture twice as large, in the way of ESRGAN; it learned from portraits of 226 pixels and
from what `portrait-128`'s autoencoder does to them. The **critic** ({critic_m:.2f} million, {critic_mb:.2f} MB), which
it was trained against, says patch by patch where a portrait looks drawn and not photographed. float16 on disk, float32
in the arithmetic, any picture size.

    from pipelines.finishing.enlarge import flaw_map, load_upscaler, overlay
    large = load_upscaler("upscale-x2-mini").enlarge(picture)  # (H, W, 3) uint8 -> (2H, 2W, 3)
    flaws = flaw_map(large)                                    # .values (h, w) and .score, both 0..1
    shown = overlay(large, flaws)

## What it learned from, and under which right

879 official portraits of members of the US Congress (public domain, US Government Printing Office; repository
`unitedstates/images`), 40 of them held out - the same 40 as by `portrait-128`, so its autoencoder has not seen them
either - and 24 more only watched. 722 men, 157 women, mostly older, in front of studio backdrops. The photos are 225
pixels wide: framed as the base frames, their own detail ends at 226 pixels. So it learned 113 -> 226, and a picture of
512 is its 256 enlarged by Lanczos. The small pictures were spoiled on the way: four in ten came out of the base's
autoencoder, a quarter were only shrunk, the others blurred (up to 0.9 small pixels) and shrunk by one of four kernels;
grain, JPEG of quality 60 to 96 or both were laid over most of the others and some of the rebuilt.

First L1 alone ({pixels_steps} steps, {pixels_s:.0f} s), then L1, the first layers of `arcface-mini` as a perceptual
term and the relativistic critic with weight {gan_weight} ({gan_steps} steps, {gan_s:.0f} s). Then the critic went on
alone ({critic_steps} steps, {critic_s:.0f} s) with {samples} pictures of nobody that `portrait-128` drew. One thread
of a busy machine. The tool was changed twice on the way: after 306 steps of the second stage its critic began anew with
free outer layers (bounded ones had stayed at chance), and other hues were added about step 1,500. What ships lies half
way between the two stages (network interpolation, as ESRGAN does it): all the way, sharpness is 0.84 even on soft
pictures, but a fine dither shows on hair and teeth of drawn ones. Licence of the weights: Apache-2.0.

## Figures: enlarging

{portraits:.0f} held-out portraits, 113 -> 226. *clean*: shrunk by Lanczos. *soft*: shrunk by Pillow's bicubic, which
takes more detail away. *drawn*: through the base's autoencoder at
128 first, which is what a finished render of this project looks like. Measured on the exported files by

    {command}

on {machine}, {day}{noisy}.

| what | bar | clean | bicubic | soft | bicubic | drawn | bicubic |
|---|---|---|---|---|---|---|---|
{rows}

Sharpness is the energy of neighbours' luminance differences over the original's. The feature distance is LPIPS-like:
differences in the first layers of `arcface-mini`; **it was trained on just these**, so read the identity figures, which
it was not trained on, beside it. dlib's distance: two photos of one person lie below 0.6.

{verdict}

One picture 128 -> 256 takes {seconds:.2f} s by the clock and {processor_seconds:.2f} s of processor time on {threads}
thread(s) (bar: < 1.5 s on 2 cores; load of the machine meanwhile {load:.1f}).

## Figures: finding flaws

{portraits:.0f} held-out portraits against {drawings:.0f} held-out drawings of the untrained base. **Both come through
the same chain** (113 pixels, the same kernels and ways to enlarge, the same light, hue, blur, grain and JPEG), or the
critic would find the resizing and not the drawing. AUC: 0.5 is chance, 1 is perfect.

| what is told apart | AUC |
|---|---|
{auc_rows}

## What it cannot do

- It invents texture: pores, hair and lashes are likely ones, not the person's. Compare the likeness score before and
  after; the refining stage does.
- It has seen few women, few young people, few skin tones other than light, and only studio light.
- What the base's autoencoder wiped out - the look of the eyes at 30 px apart - is not brought back: see "drawn".
- The map is a hint where to look, no proof. It learned the flaws of *this* base, at *its* framing; on pictures of other
  models and on uncropped photos its numbers mean little. Compare only pictures that were made the same way.
- A low score is no proof of a photo, and it is no detector of fakes.
"""


def write(out: Path, figures: dict[str, float], *, command: str, work: Path) -> None:
    from pipelines.finishing import enlarge
    from pipelines.training.checkpoints import load_tensors
    from tools.upscaler import critic, data, training

    meta = {name: load_tensors(work / f"{name}.safetensors")[1] for name in ("pixels", "gan", "critic")}
    ways = [f"{name}_{way}" for name in ("clean", "soft", "rebuilt") for way in ("ours", "bicubic")]
    told = [
        ("dlib calls it the same person", ">= 0.97", "same_person", "{:.3f}"),
        ("dlib's distance to the original, mean", "", "dlib_distance", "{:.3f}"),
        ("PSNR (dB)", "bicubic's - 0.5", "psnr_db", "{:.2f}"),
        ("sharpness", ">= 0.8", "sharpness", "{:.2f}"),
        ("feature distance", "", "feature_distance", "{:.3f}"),
        ("ArcFace (arcface-mini) with the original", "", "arcface_mini", "{:.3f}"),
        ("ArcFace (buffalo_sc) with the original", "", "buffalo_sc", "{:.3f}"),
    ]
    rows = [
        f"| {title} | {bar} | " + " | ".join(form.format(figures[f"{way}_{key}"]) for way in ways) + " |"
        for title, bar, key, form in told
        if f"clean_ours_{key}" in figures
    ]
    aucs = [
        ("photos from drawings, by the map's score", "auc_drawn"),
        ("the same, but as the product meets them: nothing added to either", "auc_drawn_plain"),
        ("photos from the same photos rebuilt by the base's autoencoder", "auc_rebuilt"),
        ("by place: a wrong patch within a photo (rebuilt or bent)", "auc_place"),
        (
            "{} photos of people that no studio took from drawings".format(int(figures.get("people", 0))),
            "auc_people_drawn",
        ),
        ("*for comparison* photos from drawings by sharpness alone", "auc_by_sharpness"),
        ("*for comparison* by saturation alone", "auc_by_saturation"),
        ("*for comparison* by brightness alone", "auc_by_brightness"),
    ]
    nets = [enlarge._weights(file) for file in ("enlarger.safetensors", "critic.safetensors")]
    counts = [sum(t.numel() for t in net.values()) / 1e6 for net in nets]
    text = TEXT.format(
        enlarger_m=counts[0],
        critic_m=counts[1],
        enlarger_mb=figures["enlarger_bytes"] / 1e6,
        critic_mb=figures["critic_bytes"] / 1e6,
        gan_weight=training.GAN["gan"],
        samples=data.SAMPLES - critic.WATCHED,
        **{f"{name}_steps": one["step"] for name, one in meta.items()},
        **{f"{name}_s": one["spent_s"] for name, one in meta.items()},
        command=command,
        machine=machine(),
        day=date.today().isoformat(),
        noisy=", while other work ran on it" if figures["load"] > 1.5 else "",
        rows="\n".join(rows),
        verdict=verdict(figures),
        auc_rows="\n".join(f"| {title} | {figures[key]:.3f} |" for title, key in aucs if key in figures),
        **{k: figures[k] for k in ("portraits", "seconds", "processor_seconds", "threads", "load", "drawings")},
    )
    (out / "README.md").write_text(text)
    write_json(out / "evaluation.json", {name: round(value, 5) for name, value in figures.items()})


def verdict(figures: dict[str, float]) -> str:
    """Which bars hold, in words; separately for clean and for drawn pictures."""
    said = []
    for name, title in (("clean", "On clean pictures"), ("soft", "On soft ones"), ("rebuilt", "On drawn ones")):
        gain = figures[f"{name}_ours_psnr_db"] - figures[f"{name}_bicubic_psnr_db"]
        bars = {
            "the same person": figures[f"{name}_ours_same_person"] >= 0.97,
            f"PSNR ({gain:+.2f} dB against bicubic)": gain >= -0.5,
            f"sharpness ({figures[f'{name}_ours_sharpness']:.2f})": figures[f"{name}_ours_sharpness"] >= 0.8,
        }
        held = [what for what, holds in bars.items() if holds]
        missed = [what for what, holds in bars.items() if not holds]
        said.append(
            f"{title} {'every bar holds' if not missed else 'these bars hold: ' + (', '.join(held) or 'none')}"
            + (f"; not reached: {', '.join(missed)}." if missed else f": {', '.join(held)}.")
        )
    return " ".join(said)
