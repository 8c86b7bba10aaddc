"""Linear probes: whether a frame shows what a label says (glasses, a beard, a smile, hair, skin, age).

In: frames and labels. Out: one ridge classifier per label on the recogniser's middle maps and coarse colours. They
check what the base draws for a prompt, and replace missing labels where an estimate is enough (which portraits may
exchange faces, how often a portrait is shown); captions never use their estimates. They are no part of the product.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from tools.portrait_base import data
from tools.portrait_base.recogniser import IdentityNet

LABELS = ("glasses", "beard", "smile", "hair", "skin", "age")
RIDGE = 0.3
SURE = 0.03  # margin from which a face counts as dark-skinned; right for all 24 official portraits above it, by eye


@torch.no_grad()
def features(frames: np.ndarray, recogniser: Path) -> np.ndarray:
    """(n, d) float32: rows of unit length, half from the recogniser's last two middle maps, half from 8x8 colours."""
    net, out = IdentityNet(recogniser), []
    for start in range(0, len(frames), 32):
        x = torch.tensor(frames[start : start + 32]).permute(0, 3, 1, 2).float() / 255
        _, maps = net.look(x)
        seen = torch.cat([F.avg_pool2d(maps[2], 2).flatten(1), maps[3].flatten(1)], 1)
        colour = F.avg_pool2d(x, 16).flatten(1) - 0.5
        out.append(torch.cat([F.normalize(seen, dim=1), F.normalize(colour, dim=1) * 0.5], 1).numpy())
    return np.concatenate(out)


@dataclass(frozen=True)
class Probe:
    """A classifier of one label from features (n, d)."""

    words: tuple[str, ...]
    middle: np.ndarray  # (d,)
    weights: np.ndarray  # (d, len(words))

    def scores(self, seen: np.ndarray) -> np.ndarray:
        return (seen - self.middle) @ self.weights

    def tell(self, seen: np.ndarray) -> np.ndarray:
        return np.array(self.words)[self.scores(seen).argmax(1)]


def fit(seen: np.ndarray, labels: np.ndarray) -> Probe:
    """Ridge regression onto the classes, all with equal weight. Rows without a label are left out."""
    seen, labels = seen[labels != ""], labels[labels != ""]
    words, which, counts = np.unique(labels, return_inverse=True, return_counts=True)
    targets = np.eye(len(words))[which] - 1 / len(words)
    weight = np.sqrt(len(labels) / len(words) / counts[which])[:, None]
    middle = np.mean([seen[which == k].mean(0) for k in range(len(words))], 0)
    rows = (seen - middle) * weight
    dual = np.linalg.solve(rows @ rows.T + RIDGE * np.eye(len(rows)), targets * weight)
    return Probe(tuple(str(w) for w in words), middle, rows.T @ dual)


def sureness(seen: np.ndarray, labels: np.ndarray, *, folds: int = 5) -> float:
    """Balanced accuracy by cross-validation: mean over the classes of the share of right answers."""
    seen, labels = seen[labels != ""], labels[labels != ""]
    fold = np.random.default_rng(0).permutation(len(labels)) % folds
    told = labels.copy()
    for k in range(folds):
        told[fold == k] = fit(seen[fold != k], labels[fold != k]).tell(seen[fold == k])
    return float(np.mean([(told[labels == word] == word).mean() for word in np.unique(labels)]))


def completed(portraits: data.Portraits, recogniser: Path) -> data.Portraits:
    """The same portraits, with estimates of glasses, beard and dark skin for missing labels."""
    seen, filled = features(portraits.frame(slice(None)), recogniser), {}
    for name in ("glasses", "beard"):
        labels = getattr(portraits, name)
        filled[name] = np.where(labels == "", fit(seen, labels).tell(seen), labels)
    probe = fit(seen, portraits.skin)
    scores = probe.scores(seen)
    dark = probe.words.index("dark")
    sure = (scores[:, dark] - np.delete(scores, dark, 1).max(1) > SURE) & (portraits.grey == "0")
    filled["skin"] = np.where((portraits.skin == "") & sure, "dark", portraits.skin)
    return replace(portraits, **filled)
