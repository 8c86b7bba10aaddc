"""Writing the averaged networks as float16 safetensors, and `config.json`, which says how they are built."""

from __future__ import annotations

from pathlib import Path

import torch

from pipelines.core.files import write_json
from pipelines.finishing.nets import Enlarger
from pipelines.training.checkpoints import save_tensors
from tools.upscaler import critic, data, training

# Share of the `gan` stage in the exported enlarger, the rest being the `pixels` stage it started from (network
# interpolation, Wang et al. 2018, section 3.4). With all of it a fine dither shows on hair and teeth of drawn
# pictures; half way it is gone, and the picture still is the sharper one.
GAN_SHARE = 0.5


def blended(work: Path, share: float = GAN_SHARE) -> Enlarger:
    net, pixels = training.averaged(work, "gan"), training.averaged(work, "pixels").state_dict()
    net.load_state_dict({name: torch.lerp(pixels[name], each, share) for name, each in net.state_dict().items()})
    return net


def export(work: Path, out: Path) -> None:
    """The blended enlarger and the critic of its own stage; before the latter, the `gan` stage's."""
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
