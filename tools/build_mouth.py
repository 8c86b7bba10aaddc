"""Rebuild `models/mouth`, which tells an open mouth from a closed one: crop -> train -> export -> evaluate -> card.

    python tools/build_mouth.py --data DATA

DATA has `lfw/`, `portraits/` and `people/`; `tools/mouth_labels.csv` has the labels, made by eye from the lower half of
each face (part, file, open). Faces that were labelled differently the second time are not in it. Takes minutes on one
core.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipelines.core.device import machine
from pipelines.faces import mouth
from pipelines.faces.dlib_faces import detect_faces
from pipelines.photos.decode import decode

LABELS = ROOT / "tools" / "mouth_labels.csv"
INPUT_PX = 32
RIGHT_OF_CLAIMED = 0.97  # each margin is the smallest with this share of right answers about left-out faces
FOLDS = 3  # cross-validation: margins are measured on faces that the network did not learn from
TESTED = ("lfw_test", "people")


class Net(nn.Module):
    """Log-odds that a mouth is open, from (n, 3, 64, 64) RGB in 0..1. 52 thousand parameters."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(_block(i, o) for i, o in ((3, width), (width, 2 * width), (2 * width, 3 * width)))
        )
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(3 * width * 4 * 4, 1)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        x = F.avg_pool2d(picture, mouth.SIZE_PX // INPUT_PX)
        x = x - x.mean((1, 2, 3), keepdim=True)  # so that light and contrast have no effect
        x = x / (x.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-3)
        return self.head(self.dropout(self.features(x).flatten(1)))[:, 0]


def _block(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
    )  # fmt: skip


def read(data: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """part -> crops (n, 3, 64, 64) in 0..1, labels (n,)."""
    rows: dict[str, list[tuple[np.ndarray, int]]] = {}
    with LABELS.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            image = decode(data / row["file"])
            found = detect_faces(image)
            if found:
                rows.setdefault(row["part"], []).append((mouth.crop(image, found[0]), int(row["open"])))
    return {
        part: (
            torch.from_numpy(np.stack([crop for crop, _ in each])).permute(0, 3, 1, 2).float() / 255,
            torch.tensor([label for _, label in each]).float(),
        )
        for part, each in rows.items()
    }


def spoiled(pictures: torch.Tensor) -> torch.Tensor:
    """Augmentation: the same mouths with other light, colour, size, position and sharpness, some partly covered."""
    count, side = len(pictures), pictures.shape[-1]
    turn, size = (torch.rand(count) - 0.5) * 0.4, 1 / (1.15 + 0.25 * torch.randn(count).clamp(-1.5, 1.5))
    flip = (torch.rand(count) < 0.5).float() * 2 - 1
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0], matrix[:, 0, 1] = turn.cos() * size * flip, -turn.sin() * size
    matrix[:, 1, 0], matrix[:, 1, 1] = turn.sin() * size * flip, turn.cos() * size
    matrix[:, :, 2] = torch.randn(count, 2) * 0.08
    field = F.affine_grid(matrix, list(pictures.shape), align_corners=False)
    out = F.grid_sample(pictures, field, padding_mode="border", align_corners=False)
    grey = (torch.rand(count, 1, 1, 1) < 0.25).float()
    out = out * (1 - grey) + out.mean(1, keepdim=True) * grey
    out = out * (1 + 0.12 * torch.randn(count, 3, 1, 1)) * (1 + 0.2 * torch.randn(count, 1, 1, 1))
    small = torch.rand(count) < 0.4
    if small.any():
        factor = float(torch.empty(1).uniform_(0.25, 0.7))
        shrunk = F.interpolate(out[small], scale_factor=factor, mode="area")
        out[small] = F.interpolate(shrunk, size=(side, side), mode="bilinear")
    out = out + torch.randn_like(out) * 0.03 * torch.rand(count, 1, 1, 1)
    for index in torch.nonzero(torch.rand(count) < 0.2)[:, 0].tolist():
        height, width = torch.randint(8, 24, (2,)).tolist()
        top, left = int(torch.randint(0, side - height, (1,))), int(torch.randint(0, side - width, (1,)))
        out[index, :, top : top + height, left : left + width] = torch.rand(3, 1, 1)
    return out


def train(pictures: torch.Tensor, labels: torch.Tensor, *, steps: int, seed: int) -> Net:
    torch.manual_seed(seed)
    net = Net().train()
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    sides = [torch.nonzero(labels == side)[:, 0] for side in (0, 1)]  # as many closed as open ones in every batch
    for step in range(1, steps + 1):
        rows = torch.cat([side[torch.randint(len(side), (32,))] for side in sides])
        target = labels[rows] * 0.9 + 0.05
        loss = F.binary_cross_entropy_with_logits(net(spoiled(pictures[rows])), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(f"step {step}/{steps}, loss {loss.item():.3f}", flush=True)
    return net.eval()


@torch.no_grad()
def logits(net: Net, pictures: torch.Tensor) -> np.ndarray:
    return ((net(pictures) + net(pictures.flip(-1))) / 2).numpy()


def left_out(pictures: torch.Tensor, labels: torch.Tensor, *, steps: int, seed: int) -> np.ndarray:
    """The log-odds (n,) of each face by a network that was trained on the other folds."""
    scores = np.zeros(len(labels))
    fold_of = torch.arange(len(labels)) % FOLDS
    for fold in range(FOLDS):
        inside = fold_of == fold
        net = train(pictures[~inside], labels[~inside], steps=steps, seed=seed + 1 + fold)
        scores[inside.numpy()] = logits(net, pictures[inside])
    return scores


def margin_of(scores: np.ndarray, right: np.ndarray) -> float:
    """The smallest margin for which `RIGHT_OF_CLAIMED` of the answers beyond it are right."""
    sizes = np.abs(scores)
    for margin in np.sort(sizes):
        if right[sizes >= margin].mean() >= RIGHT_OF_CLAIMED:
            return float(margin)
    return float(sizes.max())


def figures(scores: np.ndarray, labels: np.ndarray, margins: dict[str, float]) -> dict[str, float | int]:
    from scipy.stats import mannwhitneyu

    claimed = np.array([mouth.word(score, margins) is not None for score in scores])
    right = (scores > 0) == labels.astype(bool)
    wins = mannwhitneyu(scores[labels == 1], scores[labels == 0]).statistic
    return {
        "faces": len(labels),
        "open": int(labels.sum()),
        "auc": round(float(wins) / float(labels.sum() * (1 - labels).sum()), 4),
        "claimed": round(float(claimed.mean()), 4),
        "right_of_claimed": round(float(right[claimed].mean()), 4),
        "open_claims_right": round(float(right[claimed & (scores > 0)].mean()), 4),
        "closed_claims_right": round(float(right[claimed & (scores < 0)].mean()), 4),
    }


def export(net: Net, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    side = mouth.SIZE_PX
    torch.onnx.export(
        net,
        (torch.zeros(1, 3, side, side),),
        str(path),
        dynamo=False,
        input_names=["mouth"],
        output_names=["open"],
        dynamic_axes={"mouth": {0: "n"}, "open": {0: "n"}},
        opset_version=17,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=mouth.FOLDER)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    parts = read(options.data)
    learned = [part for part in parts if part not in TESTED]
    pictures = torch.cat([parts[part][0] for part in learned])
    labels = torch.cat([parts[part][1] for part in learned])
    scores, truth = left_out(pictures, labels, steps=options.steps, seed=options.seed), labels.numpy()
    margins = {
        "open": round(margin_of(scores[scores > 0], truth[scores > 0] == 1), 4),
        "closed": round(margin_of(scores[scores < 0], truth[scores < 0] == 0), 4),
    }
    net = train(pictures, labels, steps=options.steps, seed=options.seed)
    found = {part: figures(logits(net, parts[part][0]), parts[part][1].numpy(), margins) for part in TESTED}
    export(net, options.out / "mouth.onnx")
    saved = {
        "margins": margins,
        "parameters": sum(each.numel() for each in net.parameters()),
        "trained_on": len(labels),
        "measured": found,
        "command": f"python tools/build_mouth.py --data DATA --steps {options.steps} --seed {options.seed}",
        "machine": machine(),
        "date": date.today().isoformat(),
        "seconds": round(time.monotonic() - started),
    }
    (options.out / "evaluation.json").write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
    (options.out / "README.md").write_text(card(saved), encoding="utf-8")
    print(json.dumps(saved, indent=1))
    return 0


TITLES = {
    "lfw_test": "LFW test people, in the wild",
    "people": "13 other people, most of them at a microphone or smiling",
}


def card(saved: dict) -> str:
    rows = "\n".join(
        f"| {TITLES[part]} | {m['faces']} ({m['open']} open) | {m['auc']:.3f} | {m['claimed']:.0%} | "
        f"{m['right_of_claimed']:.1%} | {m['open_claims_right']:.1%} | {m['closed_claims_right']:.1%} |"
        for part, m in saved["measured"].items()
    )
    return f"""---
license: apache-2.0
library_name: onnx
tags: [facial-expression]
---

# mouth

Tells an open mouth (teeth showing counts) from a closed one, {saved["parameters"]:,} parameters, so that Likeness
can say which of the two a person's photos lack. Input `mouth`: RGB in 0..1, (n, 3, 64, 64), the lower half of a face as
`pipelines.faces.mouth.crop` cuts it; output `open`: log-odds. Between -{saved["margins"]["closed"]:.2f} and
{saved["margins"]["open"]:.2f} nothing is claimed. It knows no emotion and nobody.

## What it learned from, and under which right

{saved["trained_on"]} faces of training people of Labeled Faces in the Wild (research use) and of official portraits of
members of the US Congress (public domain), labelled by eye for this project (`tools/mouth_labels.csv`; faces that could
be taken for either were left out, so the figures hold for clear cases). The margins come from networks that did not
learn from the faces they judged. No photo is in this folder. Licence of the weights: Apache-2.0.

## Figures

| faces it never saw | | AUC | claimed | right | of "open" | of "closed" |
|---|---|---|---|---|---|---|
{rows}

Measured by `{saved["command"]}` on {saved["machine"]}, {saved["date"]}, {saved["seconds"]} s.
"""


if __name__ == "__main__":
    sys.exit(main())
