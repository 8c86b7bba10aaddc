"""The two embedded networks of `enlarge`: one enlarges a picture twice, the other looks for flaws in it.

In: RGB float tensors (b, 3, h, w) in 0..1, any size from 8 pixels on. This module needs torch: import it where it is
used. Made by `tools/build_upscaler.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm


class Shape(NamedTuple):
    """Numbers of channels of the enlarging network; stored in `config.json` beside its weights."""

    edge: int = 24  # channels at the picture's own resolution
    body: int = 64  # channels at half of it, where most layers are
    blocks: int = 10


DEFAULT_SHAPE = Shape()


class Residual(nn.Module):
    """A residual block: two convolutions, without normalisation and scaled down (as in EDSR and ESRGAN)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.scale = nn.Parameter(torch.full((1, channels, 1, 1), 0.2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * self.second(F.leaky_relu(self.first(x), 0.2))


class Enlarger(nn.Module):
    """(b, 3, h, w) -> (b, 3, 2h, 2w): bicubic plus what the network adds to it.

    Most layers work at half of the picture's resolution (pixel-unshuffle, as in Real-ESRGAN x2): there a convolution
    covers twice the distance and takes a quarter of the time.
    """

    def __init__(self, shape: Shape = DEFAULT_SHAPE) -> None:
        super().__init__()
        edge, body = shape.edge, shape.body
        self.shape = shape
        self.head = nn.Conv2d(3, edge, 3, padding=1)
        self.down = nn.Conv2d(4 * edge, body, 3, padding=1)
        self.blocks = nn.ModuleList([Residual(body) for _ in range(shape.blocks)])
        self.join = nn.Conv2d(body, body, 3, padding=1)
        self.up = nn.Conv2d(body, 4 * edge, 3, padding=1)
        self.fuse = nn.Conv2d(2 * edge, edge, 3, padding=1)
        self.tail = nn.Conv2d(edge, 12, 3, padding=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                # with torch's default initialisation the signal shrinks at every layer, and training starts slowly
                nn.init.kaiming_normal_(layer.weight, a=0.2)
                nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.tail.weight.mul_(0.05)  # so that the untrained network is nearly bicubic

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        plain = F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
        # half resolution needs an even side
        x = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
        edges = F.leaky_relu(self.head(x - 0.5), 0.2)
        deep = start = F.leaky_relu(self.down(F.pixel_unshuffle(edges, 2)), 0.2)
        for block in self.blocks:
            deep = block(deep)
        deep = start + self.join(deep)
        deep = F.leaky_relu(F.pixel_shuffle(self.up(deep), 2), 0.2)
        added = F.pixel_shuffle(self.tail(F.leaky_relu(self.fuse(torch.cat([deep, edges], 1)), 0.2)), 2)
        return plain + added[..., : 2 * height, : 2 * width]


class Critic(nn.Module):
    """A patch discriminator (b, 3, h, w) -> logits (b, 1, h/8, w/8): above zero a patch looks like a photo.

    The inner layers have spectral norm in training; `plain()` merges it into the weights. The outer layers have none:
    the difference of a soft and a sharp picture is so small that a network with spectral norm everywhere misses it.
    """

    WIDTHS = (32, 64, 128, 160)

    def __init__(self, *, normalised: bool = True) -> None:
        super().__init__()
        norm = spectral_norm if normalised else (lambda layer: layer)
        one, two, three, four = self.WIDTHS
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(3, one, 4, 2, 1),
                norm(nn.Conv2d(one, two, 4, 2, 1)),
                norm(nn.Conv2d(two, three, 4, 2, 1)),
                norm(nn.Conv2d(three, four, 3, 1, 1)),
                norm(nn.Conv2d(four, four, 3, 1, 2, dilation=2)),
                nn.Conv2d(four, 1, 1),
            ]
        )
        for layer in (self.layers[0], self.layers[-1]):
            assert isinstance(layer, nn.Conv2d) and layer.bias is not None
            nn.init.kaiming_normal_(layer.weight, a=0.2)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * 2 - 1
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), 0.2)
        out: torch.Tensor = self.layers[-1](x)
        return out

    def plain(self) -> Critic:
        """The same network with spectral norm merged into its weights."""
        other = Critic(normalised=False)
        with torch.no_grad():
            for ours, theirs in zip(self.layers, other.layers):
                assert isinstance(ours, nn.Conv2d) and isinstance(theirs, nn.Conv2d)
                assert ours.bias is not None and theirs.bias is not None
                theirs.weight.copy_(ours.weight)
                theirs.bias.copy_(ours.bias)
        return other.eval()
