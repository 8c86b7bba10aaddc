"""The network: MobileFaceNet's inverted residuals with squeeze-and-excitation, 112x112 RGB -> 512 numbers.

Topology and starting weights are Intel's `face-reidentification-retail-0095` (Apache-2.0), which is also the teacher;
its 256 outputs become 512, and the network itself converts the standard ArcFace crop to the teacher's framing.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tools.portrait_base.recogniser import OnnxNet

# (channels in the middle, channels out, stride), as in the teacher
BLOCKS = (
    (128, 64, 2),
    *((128, 64, 1),) * 4,
    (256, 128, 2),
    *((256, 128, 1),) * 6,
    (512, 128, 2),
    *((256, 128, 1),) * 2,
)
STEM, LAST, EMBEDDING, INSIDE_PX = 64, 512, 512, 128
# From the ArcFace template to the teacher's (least squares over five points): x' = SCALE * x + SHIFT.
SCALE, SHIFT = 1.21487, (-3.939, -5.201)


def resampling(shift: float) -> torch.Tensor:
    """Bilinear interpolation along one side as a matrix (INSIDE_PX, 112); the edge is repeated."""
    place = ((torch.arange(INSIDE_PX, dtype=torch.float32) - shift) / SCALE).clamp(0, 111)
    return (1 - (place[:, None] - torch.arange(112)[None]).abs()).clamp(min=0)


class Block(nn.Module):
    def __init__(self, inside: int, middle: int, outside: int, stride: int) -> None:
        super().__init__()
        squeezed = 8 if outside == 64 else 16
        self.expand = nn.Conv2d(inside, middle, 1)
        self.act1 = nn.PReLU()
        self.depth = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle)
        self.act2 = nn.PReLU()
        self.project = nn.Conv2d(middle, outside, 1)
        self.squeeze = nn.Conv2d(outside, squeezed, 1)
        self.act3 = nn.PReLU()
        self.excite = nn.Conv2d(squeezed, outside, 1)
        self.residual = stride == 1 and inside == outside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.act2(self.depth(self.act1(self.expand(x)))))
        y = y * torch.sigmoid(self.excite(self.act3(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + y if self.residual else y


class MobileFaceNet(nn.Module):
    """RGB in 0..1, (b, 3, 112, 112) -> (b, 512), not normalised. 1.2 M parameters."""

    rows: torch.Tensor
    columns: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, STEM, 3, 2, 1)
        self.stem_act = nn.PReLU()
        self.stem_depth = nn.Conv2d(STEM, STEM, 3, 1, 1, groups=STEM)
        self.stem_act2 = nn.PReLU()
        blocks, inside = [], STEM
        for middle, outside, stride in BLOCKS:
            blocks.append(Block(inside, middle, outside, stride))
            inside = outside
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Conv2d(inside, LAST, 1)
        self.last_act = nn.PReLU()
        self.whole = nn.Conv2d(LAST, LAST, 8, groups=LAST)  # global depthwise: each position has its own weight
        self.embed = nn.Conv2d(LAST, EMBEDDING, 1)
        self.register_buffer("rows", resampling(SHIFT[1]), persistent=False)
        self.register_buffer("columns", resampling(SHIFT[0]), persistent=False)

    def framed(self, x: torch.Tensor) -> torch.Tensor:
        """The ArcFace crop (b, 3, 112, 112) in the teacher's framing (b, 3, 128, 128)."""
        return self.rows @ x @ self.columns.T

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem_act2(self.stem_depth(self.stem_act(self.stem(self.framed(x)))))
        x = self.last_act(self.last(self.blocks(x)))
        return self.embed(self.whole(x)).flatten(1)


def from_teacher(path: Path) -> MobileFaceNet:
    """A network whose first 256 outputs are the teacher's; the other 256 start with small weights."""
    teacher, net = OnnxNet(path), MobileFaceNet()
    queue: list[tuple[str, torch.Tensor]] = []  # the teacher's weights in the order of its operations
    for kind, inputs, _, _ in teacher.steps:
        held = [getattr(teacher, teacher.slots[name]) for name in inputs if name in teacher.slots]
        if kind == "Conv":
            queue.append(("weight", held[0]))
            if len(held) > 1:
                queue.append(("bias", held[1].flatten()))
        elif kind in ("Mul", "Add", "PRelu") and held:
            queue.append(("scale" if kind == "Mul" else "slope" if kind == "PRelu" else "bias", held[0].flatten()))
    (_, scale), (_, offset) = queue.pop(0), queue.pop(0)  # of the input: BGR 0..255
    layers: list[nn.Module] = [net.stem, net.stem_act, net.stem_depth, net.stem_act2]
    for block in net.blocks:
        assert isinstance(block, Block)
        layers += [block.expand, block.act1, block.depth, block.act2, block.project]
        layers += [block.squeeze, block.act3, block.excite]
    layers += [net.last, net.last_act, net.whole]
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.PReLU):
                layer.weight.copy_(queue.pop(0)[1])
                continue
            assert isinstance(layer, nn.Conv2d) and layer.bias is not None
            layer.weight.copy_(queue.pop(0)[1])
            if queue and queue[0][0] == "bias":
                layer.bias.copy_(queue.pop(0)[1])
            else:
                layer.bias.zero_()
        last = queue.pop(0)[1]
        net.embed.weight.mul_(0.1)
        net.embed.weight[: len(last)].copy_(last)
        assert net.embed.bias is not None
        net.embed.bias.zero_()
        if queue and queue[0][0] == "bias":
            net.embed.bias[: len(last)].copy_(queue.pop(0)[1])
        assert not queue, [kind for kind, _ in queue]
        # put the input's scale and offset, and RGB instead of BGR, into the stem's weights. The teacher pads its border
        # with zeros after the scaling, this network before it: one column and one row of the first map differ.
        assert net.stem.bias is not None
        weight = net.stem.weight.flip(1)
        scale, offset = scale.flip(0), offset.flip(0)
        net.stem.bias += (weight * offset[None, :, None, None]).sum((1, 2, 3))
        net.stem.weight.copy_(weight * (scale * 255.0)[None, :, None, None])
    return net
