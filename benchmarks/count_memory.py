"""Counts what one training step of a real base keeps in memory, without the base and without a GPU.

In: nothing. Out: per base the parameters of its denoiser and the gigabytes that autograd keeps per picture, with and
without gradient checkpointing, and what drawing one takes - the numbers of `Footprint` in pipelines/bases/registry.py.
The networks are made on torch's meta device from the published configurations, in bfloat16: tensors have shapes, but no
values.
Try it: `python benchmarks/count_memory.py`.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SD15: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SDXL: dict[str, Any] = {
    "sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
    "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": [1, 2, 10],
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "use_linear_projection": True,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


def main() -> int:
    import torch
    from diffusers import UNet2DConditionModel, ZImageTransformer2DModel
    from peft import LoraConfig

    from pipelines.bases.architectures import FAMILIES
    from pipelines.methods.lora import TARGETS

    for name, config, rank in (("sd15", SD15, 16), ("sdxl", SDXL, 32), ("z_image", {}, 32)):
        with torch.device("meta"):
            network: Any = UNet2DConditionModel(**config) if config else ZImageTransformer2DModel()
            network.to(torch.bfloat16).requires_grad_(False).train()
            call = _unet_call(network, config) if config else _flow_call(network)
        plain = sum(each.numel() for each in network.parameters())
        drawing = _held_while_drawing(network, call)
        targets = (FAMILIES[name].targets or TARGETS)["attention+feed_forward"]
        with torch.device("meta"):
            network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets)))
        learned = sum(each.numel() for each in network.parameters() if each.requires_grad)
        network.to(torch.bfloat16)
        sizes = f"{plain / 1e6:.0f} M, LoRA rank {rank} {learned / 1e6:.1f} M"
        print(f"{name}: {sizes}, {drawing / 1e9:.2f} GB while drawing")
        for switch in (False, True):
            (network.enable_gradient_checkpointing if switch else network.disable_gradient_checkpointing)()
            kept, largest = _kept(network, call)
            print(
                f"{name}, checkpointing {switch}: {kept / 1e9:.2f} GB kept per picture, {largest / 1e9:.2f} GB by the "
                "largest block"
            )
    return 0


def _unet_call(unet: Any, config: dict[str, Any]) -> Callable[[], Any]:
    import torch

    half, size = {"dtype": torch.bfloat16}, config["sample_size"]
    latents, told = torch.zeros(1, 4, size, size, **half), torch.zeros(1, 77, config["cross_attention_dim"], **half)
    added = None
    if "addition_embed_type" in config:
        added = {"text_embeds": torch.zeros(1, 1280, **half), "time_ids": torch.zeros(1, 6)}
    timestep = torch.zeros(1)
    return lambda: unet(latents, timestep, told, added_cond_kwargs=added).sample


def _flow_call(transformer: Any) -> Callable[[], Any]:
    """A forward pass at 1024 px, with a prompt of 96 tokens."""
    import torch

    latents, told = (torch.zeros(shape, dtype=torch.bfloat16) for shape in ((16, 1, 128, 128), (96, 2560)))
    time = torch.zeros(1)
    return lambda: transformer([latents], time, [told], return_dict=False)[0]


def _held_while_drawing(network: Any, call: Callable[[], Any]) -> int:
    """The peak of bytes besides the weights in a forward pass without autograd."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_flatten

    known = {each.untyped_storage()._cdata for each in network.parameters()}
    now, peak = [0], [0]

    def gone(storage: int, size: int) -> None:
        known.discard(storage)
        now[0] -= size

    class Live(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            for each in tree_flatten(out)[0]:
                if isinstance(each, torch.Tensor) and (storage := each.untyped_storage())._cdata not in known:
                    known.add(storage._cdata)
                    now[0] += storage.nbytes()
                    weakref.finalize(storage, gone, storage._cdata, storage.nbytes())
            peak[0] = max(peak[0], now[0])
            return out

    with _fused_attention(lambda query, key, value: torch.empty_like(query)), torch.no_grad(), Live():
        call()
    return peak[0]


@contextlib.contextmanager
def _fused_attention(stand_in: Callable[[Any, Any, Any], Any]) -> Iterator[None]:
    """Context in which `stand_in` replaces torch's attention, which on this device would make the (tokens x tokens)
    matrix; fused attention on a GPU does not.
    """
    import torch

    def attend(query: Any, key: Any, value: Any, **_: Any) -> Any:
        return stand_in(query, key, value)

    fused = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = attend  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = fused


def _kept(network: Any, call: Callable[[], Any]) -> tuple[int, int]:
    """Bytes that autograd keeps after the forward pass, each storage counted once: (in all, of the largest block)."""
    import torch
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock

    class Attention(torch.autograd.Function):
        """Keeps what fused attention keeps: queries, keys, values and the result, not the matrix."""

        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any) -> Any:
            out = torch.empty_like(query)
            ctx.save_for_backward(query, key, value, out)
            return out

        @staticmethod
        def backward(ctx: Any, *_: Any) -> Any:
            raise NotImplementedError

    seen: dict[int, int] = {}
    held = []  # keep the storages alive, so that no address is used again
    weights = {each.untyped_storage()._cdata for each in network.parameters()}
    largest, begun = [0], []

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and storage._cdata not in seen:
            seen[storage._cdata] = storage.nbytes()
            held.append(tensor)
        return tensor

    handles = []
    for module in network.modules():
        if isinstance(module, BasicTransformerBlock | ResnetBlock2D | ZImageTransformerBlock):
            handles.append(module.register_forward_pre_hook(lambda *_: begun.append(sum(seen.values()))))
            handles.append(
                module.register_forward_hook(
                    lambda *_: largest.__setitem__(0, max(largest[0], sum(seen.values()) - begun.pop()))
                )
            )
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    try:
        with _fused_attention(lambda *parts: Attention.apply(*parts)), torch.device("meta"), hooks:
            out = call()
            total = sum(seen.values())
            del out
    finally:
        for handle in handles:
            handle.remove()
    return total, largest[0]


if __name__ == "__main__":
    raise SystemExit(main())
