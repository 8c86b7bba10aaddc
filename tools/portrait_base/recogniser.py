"""A face recogniser as a differentiable torch module, so that the autoencoder learns to keep identities.

The weights are Intel's `face-reidentification-retail-0095` (Apache-2.0): 128x128 BGR in 0..255 -> 256 numbers.
It is used only to build the base and is no part of the product; the judges are other networks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class OnnxNet(nn.Module):
    """Runs the few operators of this network. Raises `ValueError` for any other."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        import onnx
        from onnx import numpy_helper

        graph = onnx.load(str(path)).graph
        self.source, self.result = graph.input[0].name, graph.output[0].name
        self.slots: dict[str, str] = {}
        for k, tensor in enumerate(graph.initializer):
            self.slots[tensor.name] = f"w{k}"
            self.register_buffer(f"w{k}", torch.tensor(np.array(numpy_helper.to_array(tensor))))
        self.steps = [
            (n.op_type, list(n.input), n.output[0], {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute})
            for n in graph.node
        ]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.values(x)[self.result]

    def values(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The result of every operator, by the name of its output."""
        values = {self.source: x}

        def get(name: str) -> torch.Tensor:
            return values[name] if name in values else getattr(self, self.slots[name])

        for kind, inputs, output, options in self.steps:
            args = [get(name) for name in inputs]
            if kind == "Conv":
                pads = options.get("pads", [0, 0, 0, 0])
                y = F.conv2d(
                    args[0],
                    args[1],
                    args[2] if len(args) > 2 else None,
                    options.get("strides", [1, 1]),
                    pads[:2],
                    options.get("dilations", [1, 1]),
                    options.get("group", 1),
                )
            elif kind == "Add":
                y = args[0] + args[1]
            elif kind == "Mul":
                y = args[0] * args[1]
            elif kind == "PRelu":
                y = F.prelu(args[0], args[1].flatten())
            elif kind == "Sigmoid":
                y = torch.sigmoid(args[0])
            elif kind == "AveragePool":
                y = F.avg_pool2d(args[0], options["kernel_shape"], options.get("strides", [1, 1]))
            elif kind == "Flatten":
                y = args[0].flatten(1)
            else:
                raise ValueError(f"operator {kind} is not supported")
            values[output] = y
        return values


# outputs of the recogniser's blocks: 64 x 64 x 64, 32 x 32 x 128, 16 x 16 x 256, 8 x 8 x 256
MIDDLE = ("411", "480", "591", "638")


class IdentityNet(nn.Module):
    """Portrait frames (b, 3, 128, 128) in 0..1, in the embedded base's framing -> unit vectors (b, 256)."""

    grid: torch.Tensor

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.net = OnnxNet(path).eval()
        # its template (fractions of the crop): eyes at (.3156, .4616) and (.6826, .4616), that is 47 px apart
        zoom = (0.6826 - 0.3156) * 128 / 30.0
        axis = torch.arange(128, dtype=torch.float32)
        yy, xx = torch.meshgrid(axis, axis, indexing="ij")
        x = (xx - (0.3156 + 0.6826) / 2 * 128) / zoom + 64.0
        y = (yy - 0.4616 * 128) / zoom + 58.0
        self.register_buffer("grid", (torch.stack([x, y], -1) + 0.5) / 128 * 2 - 1)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.look(frames)[0]

    def look(self, frames: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Unit vectors (b, 256), and the maps (b, c, h, w) named in MIDDLE."""
        grid = self.grid.expand(len(frames), -1, -1, -1)
        crop = F.grid_sample(frames.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
        values = self.net.values(crop.flip(1) * 255.0)
        return F.normalize(values[self.net.result].float(), dim=1), [values[name] for name in MIDDLE]


def unlike(a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
    """Mean over maps of the squared distance between unit feature vectors at the same place (as LPIPS, unweighted)."""
    apart = [
        (F.normalize(x.float(), dim=1) - F.normalize(y.float(), dim=1)).square().sum(1).mean() for x, y in zip(a, b)
    ]
    return torch.stack(apart).mean()
