"""Writing the averaged networks as float16 safetensors, and `config.json`, which says how they are built."""

from __future__ import annotations

from pathlib import Path

import torch

from pipelines.checkpoints import save_tensors
from pipelines.workspace import write_json
from tools.upscaler import critic, data, training


def export(work: Path, out: Path) -> None:
    """The enlarger of the `gan` stage and the critic of its own stage; before the latter, the `gan` stage's."""
    net = training.averaged(work, "gan")
    if (work / "critic.safetensors").is_file():
        judge = critic.averaged(work)
    else:
        judge = training.trained_critic(work).eval().plain()
    for file, module in (("enlarger.safetensors", net), ("critic.safetensors", judge)):
        save_tensors(out / file, {k: v.to(torch.float16) for k, v in module.state_dict().items()})
    write_json(
        out / "config.json",
        {
            "scale": 2,
            "enlarger": net.shape._asdict(),
            "critic": {"size_px": data.LARGE_PX, "cell_px": 8},
        },
    )
