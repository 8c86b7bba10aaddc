"""Encode prompts for the denoiser: one or two CLIP encoders, with optional learned rows (textual inversion).

In: prompts. Out: `Conditioning`: states (b, t, d) and, for SDXL, a pooled vector (b, p).
The encoders may be shared: learned rows are put in only while one `encode` call runs.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Conditioning:
    """The encoded prompts of b pictures, an input of the denoiser."""

    states: torch.Tensor  # (b, t, d)
    pooled: torch.Tensor | None = None  # (b, p), SDXL
    mask: torch.Tensor | None = None  # (b, t), False for tokens that are ignored; None: none is
    image_embeds: torch.Tensor | None = None  # (b, n, t, d), n pictures as an IP-Adapter's encoder sees them

    def __getitem__(self, rows: torch.Tensor | slice) -> Conditioning:
        parts = (self.states, self.pooled, self.mask, self.image_embeds)
        return Conditioning(*(None if part is None else part[rows] for part in parts))  # type: ignore[arg-type]

    def scaled(self, factor: torch.Tensor) -> Conditioning:
        """Each row times `factor` (b,)."""
        pooled = None if self.pooled is None else self.pooled * factor[:, None].to(self.pooled.dtype)
        return Conditioning(self.states * factor[:, None, None].to(self.states.dtype), pooled, self.mask)

    @staticmethod
    def joined(parts: Sequence[Conditioning]) -> Conditioning:
        pooled = [part.pooled for part in parts if part.pooled is not None]
        masks = [part.mask for part in parts if part.mask is not None]
        return Conditioning(
            torch.cat([part.states for part in parts]),
            torch.cat(pooled) if pooled else None,
            torch.cat(masks) if masks else None,
        )


@dataclass(frozen=True)
class LearnedRows:
    """Extra rows of the token embedding, one (n, d) tensor per encoder, for `tokens` added after the vocabulary."""

    tokens: tuple[str, ...]
    rows: tuple[torch.Tensor, ...]
    first_ids: tuple[int, ...]  # per encoder: the id of tokens[0], which is the length of the base's vocabulary


@dataclass
class Text:
    """Tokenizers and encoders of one base, with the learned rows of at most one person."""

    tokenizers: tuple[Any, ...]
    encoders: tuple[nn.Module, ...]
    penultimate: bool = False  # SDXL: the states are the last layer but one of every encoder, concatenated
    zero_empty: bool = False  # an empty negative prompt is all zeros (SDXL) and not the encoding of ""
    learned: LearnedRows | None = None
    autocast: contextlib.AbstractContextManager[object] = field(default_factory=contextlib.nullcontext)

    @property
    def device(self) -> torch.device:
        return next(self.encoders[0].parameters()).device

    def ids(self, prompts: Sequence[str]) -> tuple[torch.Tensor, ...]:
        """Token ids (b, t), one tensor per encoder. Long prompts are cut, as in stock pipelines (see `unread`)."""
        out = []
        for tokenizer in self.tokenizers:
            batch = tokenizer(
                list(prompts),
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            out.append(batch.input_ids.to(self.device))
        return tuple(out)

    def unread(self, prompt: str) -> str:
        """The last words of a prompt, which are cut because it is longer than the encoders read; "" if none are."""
        words = prompt.split()
        read = bisect.bisect_right(range(len(words) + 1), False, key=lambda count: not self._fits(words[:count])) - 1
        return " ".join(words[max(0, read) :])

    def _fits(self, words: Sequence[str]) -> bool:
        text = " ".join(words)
        return all(len(each(text, verbose=False).input_ids) <= each.model_max_length for each in self.tokenizers)

    def encode(self, ids: Sequence[torch.Tensor]) -> Conditioning:
        """Encode token ids (b, t). Differentiable with respect to the encoders' parameters and the learned rows."""
        states, pooled = [], None
        with self.autocast:
            for index, (encoder, tokens) in enumerate(zip(self.encoders, ids, strict=True)):
                with self._rows_in(index):
                    out = encoder(tokens, output_hidden_states=self.penultimate)
                states.append(out.hidden_states[-2] if self.penultimate else out.last_hidden_state)
                # SDXL's config has eos_token_id 2. Then transformers pools at the highest id, which is a learned word
                # if there is one; web UIs pool at the prompt's end. This is kept, to draw what stock diffusers draws.
                pooled = getattr(out, "text_embeds", None) if self.penultimate else None
        return Conditioning(torch.cat(states, -1), pooled)

    def negative(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of negative prompts; an empty one is encoded as in the base's own training."""
        conditioning = self.encode(self.ids(prompts))
        if not self.zero_empty:
            return conditioning
        said = torch.tensor([float(bool(prompt)) for prompt in prompts], device=self.device)
        return conditioning.scaled(said)

    @contextlib.contextmanager
    def _rows_in(self, index: int) -> Iterator[None]:
        """Context in which the tokens after the vocabulary of encoder `index` get the learned rows; the encoder's
        embedding weights do not change.
        """
        if self.learned is None:
            yield
            return
        table = self.encoders[index].get_input_embeddings()  # type: ignore[operator]
        rows, first = self.learned.rows[index], self.learned.first_ids[index]
        asked: list[torch.Tensor] = []

        def before(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            asked.append(args[0])
            return (args[0].clamp(max=first - 1), *args[1:])

        def after(_module: nn.Module, _args: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
            ids = asked.pop()
            learned = F.embedding((ids - first).clamp(0, len(rows) - 1), rows).to(out.dtype)
            return torch.where((ids >= first)[..., None], learned, out)

        handles = (table.register_forward_pre_hook(before), table.register_forward_hook(after))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
