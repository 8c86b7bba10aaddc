"""The model card of arcface-mini: `README.md`, `evaluation.json` and the densities, from measured figures only."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pipelines.core.device import machine
from pipelines.faces import arcface_mini, calibration

TEXT = """---
license: apache-2.0
library_name: onnx
tags: [face-recognition, arcface]
---

# arcface-mini

A small face recogniser, {parameters:.2f} million parameters and {megabytes:.1f} MB, that works with nothing downloaded:
Likeness judges with it where no InsightFace pack is present. Input `face`: RGB in 0..1, (n, 3, 112, 112), on the
standard ArcFace five-point template; output `embedding`: (n, 512), compare by cosine. float16 on disk, float32
in the arithmetic.

    from pipelines.faces import judge_named
    judge = judge_named("arcface-mini")
    print(judge.similarity(judge.look(photo_a).vector, judge.look(photo_b).vector))

## What it learned from, and under which right

It starts from the weights of Intel's `face-reidentification-retail-0095` (Apache-2.0), a MobileFaceNet-like network
with squeeze-and-excitation, and keeps that network's topology; its 256 outputs became 512 and its framing the standard
one. It was then trained for {spent_s:.0f} s ({steps} steps of {batch}) with the additive angular margin (ArcFace) loss
over training people, and distillation from that same network, which saw the clean photo while ours saw a spoiled one
(shifted, small down to 24 pixels of face, blurred, JPEG, other light). Photos: the training people of Labeled Faces in
the Wild (research use; one in eight kept aside for validation) and 879 official portraits of members of the US Congress
(public domain). No test person was read. No photo and no embedding is in this folder.

It is not independent of the embedded base: `portrait-128`'s autoencoder was trained with a term by the same teacher.
dlib, another network trained on other photos, always gives the second opinion; it is not independent of that base
either, whose text space was shaped by dlib's descriptor. An InsightFace pack shares nothing with both. Licence of the
weights: Apache-2.0.

## Figures

Identity-disjoint LFW test people, balanced pairs, the same pairs for every judge, each through its own detector and
aligner; the threshold is the best one on training people. Measured by

    {command}

on {machine}, {day}.

| judge | pairs | without a face | accuracy | true accepts at 1% false accepts |
|---|---|---|---|---|
{rows}

{spearman}

{first}

![Densities: one person, different people, generated faces](densities.png)

*Similarities by arcface-mini of pairs of one person, of different people, and of pictures that the untrained embedded
base drew of nobody against photos of people; the line is the calibrated threshold of "looks like you" for one photo
(1 in 1000 different-person pairs reaches it).*

What a number means is measured apart, by `tools/calibrate_judge.py`, and lies in `presets/judges/arcface-mini.json`
with its own command: quantiles, thresholds by false-match rate, and what small faces cost.

{groups}

## What it cannot do

- It compares faces; it does not prove who somebody is. Its threshold was measured on photos, not on generated faces.
- Recognisers are less reliable for some groups of people, and LFW is mostly of men and of light skin: see the groups in
  the calibration file, and read a score of anybody else with care.
- Strongly turned faces are often not found by dlib's detector, and count as a failure.
"""


def write(
    out: Path,
    figures: dict[str, dict[str, float]],
    found: dict[str, tuple[np.ndarray, np.ndarray]],
    generated: np.ndarray,
    *,
    command: str,
    work: Path,
) -> None:
    from pipelines.training.checkpoints import load_tensors
    from tools.arcface_mini.training import BATCH, averaged

    meta = load_tensors(work / "student.safetensors")[1]
    rows = [
        f"| {name} | {one['pairs']} | {one['pairs_without_face']} | {one['accuracy']:.4f} | "
        f"{one['tar_at_far_1pct']:.4f} |"
        for name, one in figures.items()
    ]
    ours, dlib = figures["arcface-mini"], figures["dlib"]
    better = ours["accuracy"] > dlib["accuracy"]
    spearman = ""
    if "spearman_with_buffalo_sc" in ours:
        spearman = (
            f"Rank correlation (Spearman) of its pair similarities with buffalo_sc's: "
            f"{ours['spearman_with_buffalo_sc']:.3f} over all pairs, {ours['spearman_same']:.3f} among pairs of one "
            f"person, {ours['spearman_different']:.3f} among different people."
        )
    first = (
        "It is more accurate than dlib on these pairs, so it is the first judge where no pack is present."
        if better
        else "It is not more accurate than dlib on these pairs, so dlib leads and it gives the second opinion."
    )
    text = TEXT.format(
        parameters=sum(p.numel() for p in averaged(work).parameters()) / 1e6,
        megabytes=(out / "arcface_mini.onnx").stat().st_size / 1e6,
        spent_s=meta["spent_s"],
        steps=meta["step"],
        batch=BATCH,
        command=command,
        machine=machine(),
        day=date.today().isoformat(),
        rows="\n".join(rows),
        spearman=spearman,
        first=first,
        groups=_groups(),
    )
    (out / "README.md").write_text(text)
    rounded = {name: {k: round(v, 5) for k, v in one.items()} for name, one in figures.items()}
    (out / "evaluation.json").write_text(json.dumps(rounded, indent=2) + "\n")
    known = arcface_mini.ArcFaceMini().calibration
    threshold = known.kind(1).thresholds[calibration.STRICT_RATE] if known else None
    same, different = found["arcface-mini"]
    curves = {"one person": same, "different people": different, "generated": generated}
    densities(curves, threshold).save(out / "densities.png")


def _groups() -> str:
    """Similarities of different people within each group, from the calibration of these weights."""
    known = arcface_mini.ArcFaceMini().calibration
    if known is None or not known.groups:
        return "Figures by group were not measured for these weights."
    rows = [
        f"| {name} | {one['people']} | {one['pairs_different']} | {one['mean']:.3f} | {one['0.99']:.3f} |"
        for name, one in known.groups.items()
    ]
    head = "| different people among | people | pairs | mean similarity | 99% stay below |\n|---|---|---|---|---|\n"
    return (
        head + "\n".join(rows) + "\n\nFrom the portraits' CSV, which knows nothing else, and one photo per person: no "
        "same-person figure by group can be had from it."
    )


COLOURS = {"one person": (20, 120, 60), "different people": (190, 50, 40), "generated": (60, 90, 200)}


def densities(
    curves: dict[str, np.ndarray], threshold: float | None, *, size: tuple[int, int] = (900, 420)
) -> Image.Image:
    """Smoothed histograms of similarities in -0.4..1, each with area 1, and the threshold as a line."""
    width, height = size
    low, high, left, bottom = -0.4, 1.0, 40, height - 40
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * (width - 2 * left)

    edges = np.linspace(low, high, 141)
    kernel = np.exp(-0.5 * (np.arange(-6, 7) / 2.0) ** 2)
    shapes = {
        name: np.convolve(np.histogram(values[values > -1], edges, density=True)[0], kernel / kernel.sum(), "same")
        for name, values in curves.items()
    }
    top = max(shape.max() for shape in shapes.values())
    for tick in np.arange(low, high + 0.01, 0.2):
        draw.line([(at(tick), bottom), (at(tick), bottom + 5)], "black")
        draw.text((at(tick), bottom + 8), f"{tick:.1f}", "black", anchor="ma", font_size=14)
    draw.line([(left, bottom), (width - left, bottom)], "black")
    for row, (name, shape) in enumerate(shapes.items()):
        middles = (edges[1:] + edges[:-1]) / 2
        line = [(at(x), bottom - y / top * (bottom - 30)) for x, y in zip(middles, shape)]
        draw.line(line, COLOURS[name], width=3)
        draw.text((left + 10, 14 + 20 * row), f"{name} ({len(curves[name])})", COLOURS[name], font_size=16)
    if threshold is not None:
        draw.line([(at(threshold), 10), (at(threshold), bottom)], (90, 90, 90), width=2)
        draw.text((at(threshold) + 6, 12), f"looks like you from {threshold:.2f}", (90, 90, 90), font_size=14)
    return image
