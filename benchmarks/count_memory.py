"""Counts what one training step of a real base keeps in memory, without the base and without a GPU.

In: nothing. Out: per base the parameters of its denoiser and the gigabytes that autograd keeps per picture, with and
without gradient checkpointing - the numbers of `Footprint` in pipelines/bases/registry.py. The networks are made on
torch's meta device from the published configurations, in bfloat16: shapes are real, numbers are not.
Try it: `python benchmarks/count_memory.py`.
"""

from __future__ import annotations

import sys
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
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig

    from pipelines.methods.lora import TARGETS

    for name, config, rank in (("sd15", SD15, 16), ("sdxl", SDXL, 32)):
        with torch.device("meta"):
            unet = UNet2DConditionModel(**config).to(torch.bfloat16).requires_grad_(False).train()
        plain = sum(each.numel() for each in unet.parameters())
        with torch.device("meta"):
            unet.add_adapter(
                LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS["attention+feed_forward"]))
            )
        learned = sum(each.numel() for each in unet.parameters() if each.requires_grad)
        unet.to(torch.bfloat16)
        for switch in (False, True):
            (unet.enable_gradient_checkpointing if switch else unet.disable_gradient_checkpointing)()
            kept, largest = _kept(unet, config)
            print(f"{name}: {plain / 1e6:.0f} M, LoRA rank {rank} {learned / 1e6:.1f} M, checkpointing {switch}: "
                  f"{kept / 1e9:.2f} GB kept per picture, {largest / 1e9:.2f} GB by the largest block")  # fmt: skip
    return 0


def _kept(unet: Any, config: dict[str, Any]) -> tuple[int, int]:
    """Bytes that autograd holds after the forward pass, each storage once, and by the block that holds most."""
    import torch
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D

    class Attention(torch.autograd.Function):
        """Holds what fused attention holds: queries, keys, values and the outcome, not the matrix between them."""

        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any) -> Any:
            out = torch.empty_like(query)
            ctx.save_for_backward(query, key, value, out)
            return out

        @staticmethod
        def backward(ctx: Any, *_: Any) -> Any:
            raise NotImplementedError

    seen: dict[int, int] = {}
    held = []  # storages must live, or their addresses would be used again
    weights = {each.untyped_storage()._cdata for each in unet.parameters()}
    largest, begun = [0], []

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and storage._cdata not in seen:
            seen[storage._cdata] = storage.nbytes()
            held.append(tensor)
        return tensor

    handles = []
    for module in unet.modules():
        if isinstance(module, BasicTransformerBlock | ResnetBlock2D):
            handles.append(module.register_forward_pre_hook(lambda *_: begun.append(sum(seen.values()))))
            handles.append(
                module.register_forward_hook(
                    lambda *_: largest.__setitem__(0, max(largest[0], sum(seen.values()) - begun.pop()))
                )
            )
    size = config["sample_size"]
    fused = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = lambda q, k, v, **_: Attention.apply(q, k, v)  # type: ignore
    try:
        with torch.device("meta"):
            latents = torch.zeros(1, 4, size, size, dtype=torch.bfloat16)
            told = torch.zeros(1, 77, config["cross_attention_dim"], dtype=torch.bfloat16)
            added = None
            if "addition_embed_type" in config:
                added = {"text_embeds": torch.zeros(1, 1280, dtype=torch.bfloat16), "time_ids": torch.zeros(1, 6)}
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                out = unet(latents, torch.zeros(1), told, added_cond_kwargs=added).sample
                total = sum(seen.values())
                del out
    finally:
        torch.nn.functional.scaled_dot_product_attention = fused
        for handle in handles:
            handle.remove()
    return total, largest[0]


if __name__ == "__main__":
    raise SystemExit(main())
