"""Write the averaged networks as float16 safetensors, and their structure as `config.json`."""

from __future__ import annotations

from pathlib import Path

import torch

from pipelines.core.files import write_json
from pipelines.finishing.nets import Enlarger
from pipelines.training.checkpoints import save_tensors
from tools.upscaler import critic, data, training

# Share of the `gan` stage in the exported enlarger; the rest is the `pixels` stage, from which it started (network
# interpolation, Wang et al. 2018, section 3.4). With 1.0, hair and teeth of drawn pictures show a fine pattern; with
# 0.5 they do not, and the picture is still sharper.
GAN_SHARE = 0.5


def blended(work: Path, share: float = GAN_SHARE) -> Enlarger:
    net, pixels = training.averaged(work, "gan"), training.averaged(work, "pixels").state_dict()
    net.load_state_dict({name: torch.lerp(pixels[name], each, share) for name, each in net.state_dict().items()})
    return net


def export(work: Path, out: Path) -> None:
    """Write the interpolated enlarger, and the critic of the `critic` stage; before that stage, that of `gan`."""
    net = blended(work)
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
