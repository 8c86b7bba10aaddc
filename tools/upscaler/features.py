"""Features of a frozen face network, for the perceptual term of the enlarger's loss.

The network is `models/arcface-mini` (this project's own, Apache-2.0); only its first layers are used, which are fully
convolutional. At 226 pixels a face has nearly the size of that network's input, so nothing is resized.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tools.arcface_mini.network import Block, MobileFaceNet

BLOCKS = 3  # the stem and so many blocks: edges, eyelids, hair; an eighth of the network's computation


def from_onnx(path: Path) -> MobileFaceNet:
    """The torch network that was exported to `path`."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    arrays = {t.name.removesuffix(".half"): numpy_helper.to_array(t).astype(np.float32) for t in graph.initializer}
    net = MobileFaceNet()
    state = net.state_dict()
    slopes = [arrays[n.input[1]].reshape(-1) for n in graph.node if n.op_type == "PRelu"]
    acts = ["stem_act", "stem_act2"]
    acts += [f"blocks.{k}.act{i}" for k in range(len(net.blocks)) for i in (1, 2, 3)] + ["last_act"]
    named = dict(zip((f"{name}.weight" for name in acts), slopes, strict=True))
    for name in state:
        state[name] = torch.tensor(named[name] if name in named else arrays[name])
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


class Features(nn.Module):
    """Pictures (b, 3, h, w) in 0..1 -> maps, each channel divided by its spread over photos (`fit`)."""

    def __init__(self, net: MobileFaceNet) -> None:
        super().__init__()
        self.stem = nn.Sequential(net.stem, net.stem_act, net.stem_depth, net.stem_act2)
        self.blocks = nn.ModuleList([net.blocks[k] for k in range(BLOCKS)])
        widths = [int(net.stem.out_channels)]
        widths += [int(block.project.out_channels) for block in self.blocks if _is(block)]  # type: ignore[arg-type, union-attr]
        self.spread = nn.ParameterList([nn.Parameter(torch.ones(1, w, 1, 1), requires_grad=False) for w in widths])

    def raw(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = [self.stem(x)]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return maps

    @torch.no_grad()
    def fit(self, photos: torch.Tensor) -> Features:
        for spread, one in zip(self.spread, self.raw(photos)):
            spread.copy_(one.std((0, 2, 3), keepdim=True).clamp(min=1e-4))
        return self

    def distance(self, made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        """Mean absolute difference over channels and positions, averaged over the maps."""
        with torch.no_grad():
            wanted = self.raw(true)
        pairs = zip(self.raw(made), wanted, self.spread)
        return torch.stack([((a - b).float() / s).abs().mean() for a, b, s in pairs]).mean()


def _is(block: nn.Module) -> bool:
    assert isinstance(block, Block)
    return True
