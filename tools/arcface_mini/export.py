"""Write the network as ONNX: float16 weights in the file, float32 arithmetic, any batch size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipelines.faces import arcface_mini


def export(net: nn.Module, path: Path) -> None:
    """Input "face": RGB in 0..1, (n, 3, 112, 112) float32; output "embedding": (n, 512) float32, not normalised."""
    import onnx

    path.parent.mkdir(parents=True, exist_ok=True)
    size = arcface_mini.SIZE_PX
    torch.onnx.export(
        net.eval(),
        (torch.zeros(1, 3, size, size),),
        str(path),
        dynamo=False,
        input_names=["face"],
        output_names=["embedding"],
        dynamic_axes={"face": {0: "n"}, "embedding": {0: "n"}},
        opset_version=17,
    )
    model = onnx.load(str(path))
    half_on_disk(model)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def half_on_disk(model) -> None:
    """Store the float32 initialisers as float16, each with a cast, which the runtime does once when it loads."""
    from onnx import TensorProto, helper, numpy_helper

    casts, kept = [], []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32:
            kept.append(tensor)
            continue
        kept.append(numpy_helper.from_array(values.astype(np.float16), f"{tensor.name}.half"))
        casts.append(helper.make_node("Cast", [f"{tensor.name}.half"], [tensor.name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)
