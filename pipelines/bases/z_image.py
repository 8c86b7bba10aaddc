"""Z-Image (Tongyi-MAI): a 6 B transformer trained by flow matching, with the Qwen3 chat model as its text encoder.

In: a row of family "z_image". Out: a `Family` whose text, schedule and denoiser are the stock `ZImagePipeline`'s.
Try it: `load_family(find_base("z-image")).pipeline()("portrait photo of a man").images[0]`, on a GPU.

Its text encoder (4 B) never trains. On a GPU with too little memory it is in main memory except while prompts are
encoded, as with every base (`Family.park`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from pipelines.bases.family import Family
from pipelines.bases.objective import FlowSchedule
from pipelines.bases.text import Conditioning, Text

MAX_TOKENS = 512  # of a prompt, as in the stock pipeline
TEXT_BATCH = 4  # prompts at once: the states of all layers are kept in memory


@dataclass
class ChatText(Text):
    """A chat model that reads each prompt as a user's message; its last layer but one is the encoding."""

    device_name: str = "cpu"  # the device it runs on

    def ids(self, prompts: Sequence[str]) -> tuple[torch.Tensor, ...]:
        """Token ids (b, t) and their mask (b, t), 0 for padding. Long prompts are cut, as in the stock pipeline."""
        (tokenizer,) = self.tokenizers
        chats = [self._chat(prompt) for prompt in prompts]
        batch = tokenizer(chats, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
        return batch.input_ids.to(self.device_name), batch.attention_mask.bool().to(self.device_name)

    def _chat(self, prompt: str) -> str:
        """The prompt as a user's message in the model's chat template, up to where the answer begins."""
        message = [{"role": "user", "content": prompt}]
        (tokenizer,) = self.tokenizers
        return str(
            tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=True)
        )

    def _fits(self, words: Sequence[str]) -> bool:
        (tokenizer,) = self.tokenizers
        return len(tokenizer(self._chat(" ".join(words))).input_ids) <= MAX_TOKENS

    def encode(self, ids: Sequence[torch.Tensor]) -> Conditioning:
        tokens, said = ids
        (encoder,) = self.encoders
        states = []
        with self.autocast:
            for part, mask in zip(tokens.split(TEXT_BATCH), said.split(TEXT_BATCH), strict=True):
                read = encoder(input_ids=part, attention_mask=mask, output_hidden_states=True, use_cache=False)
                states.append(read.hidden_states[-2])
        return Conditioning(torch.cat(states), mask=said)


class ZImage(Family):
    """The differences from the UNet families."""

    @property
    def pixels_per_step(self) -> int:
        patch: Sequence[int] = self._clean_unet.config.all_patch_size  # type: ignore[union-attr, assignment]
        return self.pixels_per_latent * int(max(patch))

    def _flow_shift(self, shape: tuple[int, int, int]) -> tuple[float, float]:
        """(shift, mu) for latents of `shape`: the base's own constant, or one that grows with the picture size."""
        get = self.scheduler_config.get
        patch = self.pixels_per_step // self.pixels_per_latent
        tokens = (shape[1] // patch) * (shape[2] // patch)
        low, high = get("base_image_seq_len", 256), get("max_image_seq_len", 4096)
        first, last = get("base_shift", 0.5), get("max_shift", 1.15)
        mu = first + (last - first) * (tokens - low) / (high - low)
        return (math.exp(mu) if get("use_dynamic_shifting") else float(get("shift", 1.0))), mu

    def _schedule(self) -> FlowSchedule:
        count = int(self.scheduler_config.get("num_train_timesteps", 1000))
        return FlowSchedule(count, self._flow_shift(self.latent_shape())[0])

    def use_plain_attention(self, unet: nn.Module) -> None:
        """Does nothing: this transformer has only one attention."""

    def _text(self, encoders: tuple[nn.Module, ...]) -> Text:
        return ChatText(
            tokenizers=(self._parts["tokenizer"],),
            encoders=encoders,
            autocast=self.device.autocast(self.device.kind == "cuda"),
            device_name=self.device.name,
        )

    def scheduler_class(self, name: str) -> Any:
        return _flow_class(name)

    def set_timesteps(self, sampler: Any, steps: int, shape: tuple[int, int, int]) -> None:
        sigmas = torch.linspace(1.0, 1 / steps, steps).tolist()
        sampler.set_timesteps(sigmas=sigmas, mu=self._flow_shift(shape)[1], device=torch.device(self.device.name))

    def guidance_weight(self, guidance: float) -> float:
        """The stock pipeline adds `guidance` times the difference to the prediction with prompt: 0 is no guidance."""
        return 1.0 + max(0.0, guidance)

    def predict(
        self, unet: nn.Module, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """The velocity from picture to noise (b, c, h, w); the transformer's own time and velocity are reversed."""
        assert conditioning.mask is not None
        count = len(self.schedule)
        clean = (count - timesteps.expand(len(noisy))) / count
        dtype = next(unet.parameters()).dtype
        pictures = list(noisy.to(dtype).unsqueeze(2).unbind())  # (c, 1, h, w) each: one frame
        told = [states[said] for states, said in zip(conditioning.states, conditioning.mask, strict=True)]
        with self.autocast():
            answers = unet(pictures, clean, told, return_dict=False)[0]
        return -torch.stack(answers).squeeze(2)


@lru_cache(maxsize=4)
def _flow_class(name: str) -> type:
    """A flow scheduler of diffusers, with the method names of its diffusion schedulers."""
    import diffusers

    stock: Any = getattr(diffusers, name)

    class Flow(stock):  # type: ignore[misc]
        init_noise_sigma = 1.0

        def scale_model_input(self, sample: torch.Tensor, _timestep: torch.Tensor) -> torch.Tensor:
            return sample

        def add_noise(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            return self.scale_noise(sample, timesteps, noise)  # type: ignore[no-any-return]

    return Flow
