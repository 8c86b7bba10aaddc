"""Stage 2, text encoder and denoiser: captions and identities -> latents.

The text space learns identities without names: in most captions the embeddings of the placeholder `<subject>` (four
times) are vectors projected from the portrait's own dlib descriptor plus noise; otherwise it is one neutral row. The
exported vocabulary has only the neutral row.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipelines.photos import captions
from pipelines.training.checkpoints import load_optimizer, load_tensors, optimizer_tensors, save_tensors
from tools.portrait_base import identity, variants

TEXT_DIM, MAX_TOKENS, SUBJECT, SUBJECT_VECTORS = 192, 32, "<subject>", 4
WORDS = (
    *"a photo portrait of man woman person young middle aged elderly background jacket and".split(),  # noqa: SIM905
    *"light warm cool bright dim gradient spotlight sepia close up".split(),  # noqa: SIM905
    *"glasses beard smile hair long short bald covered skin medium dark".split(),  # noqa: SIM905
    *"pencil sketch oil painting watercolour comic pop art film".split(),  # noqa: SIM905
    *captions.COLOURS,
)
BATCH, LEARNING_RATE, EMA, FADING_EMA = 32, 4e-4, 0.999, 0.99
# measured with one thread, seconds of a step of 16 / 32: with AMX 0.74 / 1.52 in float32, 0.64 / 0.90 under bf16
# autocast; with AVX-512 alone bf16 is slower than float32 (0.92 against 0.62 for 16)
HALF_PRECISION = torch.cpu._is_amx_tile_supported()
GUIDANCE = 1.5  # the default to draw with; the card's figures say why
DESCRIPTOR_NOISE = 0.015  # per number; two photos of one person differ by about 0.025


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """A stock CLIPTokenizer whose byte-pair merges make every known word one token."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    vocab = {token: k for k, token in enumerate(letters + [c + "</w>" for c in letters])}
    pieces = {word: [*word[:-1], word[-1] + "</w>"] for word in WORDS}
    merges: list[tuple[str, str]] = []
    while any(len(p) > 1 for p in pieces.values()):  # standard BPE: the most frequent pair first, ties by name
        counts: dict[tuple[str, str], int] = {}
        for p in pieces.values():
            for pair in zip(p, p[1:]):
                counts[pair] = counts.get(pair, 0) + 1
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        vocab.setdefault("".join(best), len(vocab))
        for word, p in pieces.items():
            k = 0
            while k < len(p) - 1:
                if (p[k], p[k + 1]) == best:
                    p[k : k + 2] = ["".join(best)]
                k += 1
            pieces[word] = p
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n")
    tokenizer = CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=MAX_TOKENS
    )
    tokenizer.add_tokens([SUBJECT], special_tokens=True)
    return tokenizer


class IdentityProjector(nn.Module):
    """dlib descriptor (b, 128) -> vectors (b, SUBJECT_VECTORS, TEXT_DIM) that are added to the neutral row."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, hidden: int = 384) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(128))
        self.register_buffer("std", torch.ones(128))
        self.linear = nn.Linear(128, SUBJECT_VECTORS * TEXT_DIM)
        self.expand = nn.Linear(128, hidden)
        self.project = nn.Linear(hidden, SUBJECT_VECTORS * TEXT_DIM)

    def forward(self, descriptor: torch.Tensor) -> torch.Tensor:
        x = (descriptor - self.mean) / self.std
        out = self.linear(x) + self.project(F.silu(self.expand(x)))
        return out.view(-1, SUBJECT_VECTORS, TEXT_DIM) * 0.1


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_DIM,
        intermediate_size=4 * TEXT_DIM,
        num_hidden_layers=3,
        num_attention_heads=6,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=TEXT_DIM,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def new_unet(latent_channels: int) -> UNet2DConditionModel:
    """A UNet with 13 M parameters. At 16x16 it has cross-attention only: self-attention there would take half of the
    step's time on a CPU.
    """
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(64, 160, 192),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        only_cross_attention=(True, False, False),
        attention_head_dim=(2, 5, 6),
        cross_attention_dim=TEXT_DIM,
        norm_num_groups=16,
    )


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


class Model(nn.Module):
    """All that stage 2 trains, in one module, so that checkpoint and EMA are one dict each."""

    def __init__(self, tokenizer: CLIPTokenizer, latent_channels: int) -> None:
        super().__init__()
        self.text_encoder = new_text_encoder(tokenizer)
        self.unet = new_unet(latent_channels)
        self.unet.set_attn_processor(AttnProcessor())  # on a CPU faster than torch's fused attention at these lengths
        self.projector = IdentityProjector()
        self.subject_id = int(tokenizer.get_vocab()[SUBJECT])

    def encode(self, ids: torch.Tensor, vectors: torch.Tensor | None, filled: torch.Tensor | None) -> torch.Tensor:
        """Token ids (b, t) -> text states (b, t, d); rows `filled` get `vectors` (b, k, d) added at their
        placeholders.
        """
        if vectors is None or filled is None:
            return self.text_encoder(ids).last_hidden_state
        with added_at(self.text_encoder, ids.eq(self.subject_id), vectors * filled[:, None, None]):
            return self.text_encoder(ids).last_hidden_state


@contextmanager
def added_at(text_encoder: CLIPTextModel, places: torch.Tensor, vectors: torch.Tensor) -> Iterator[None]:
    """Context in which `vectors` (b, k, d) are added to the token embeddings at `places` (b, t): the k-th vector at the
    k-th place.
    """
    order = (places.cumsum(1) - 1).clamp(0, vectors.shape[1] - 1)
    spread = torch.gather(vectors, 1, order[..., None].expand(-1, -1, vectors.shape[-1])) * places[..., None]
    handle = text_encoder.get_input_embeddings().register_forward_hook(lambda _m, _a, out: out + spread.to(out.dtype))
    try:
        yield
    finally:
        handle.remove()


def caption(rng: np.random.Generator, noun: str, words: str) -> tuple[str, bool]:
    """(training caption, whether its placeholder gets the identity; if not, it is neutral or missing)."""
    if rng.random() < 0.10:
        return "", False
    noun = "person" if rng.random() < 0.15 else noun
    draw = rng.random()
    subject = noun if draw < 0.2 else " ".join([SUBJECT] * SUBJECT_VECTORS + [noun])
    dropped = rng.uniform(0, 0.5)
    parts = [p for p in words.split("|") if p and rng.random() > dropped]
    head = "photo of" if rng.random() < 0.1 else "portrait of"
    article = "a " if draw < 0.1 else ""
    return ", ".join([f"{head} {article}{subject}", *parts]), draw > 0.35


@torch.no_grad()
def encode_frames(vae: AutoencoderKL, frames: np.ndarray) -> torch.Tensor:
    """uint8 frames -> latents (n, c, 16, 16) fp16, the posterior's mode."""
    device = next(vae.parameters()).device
    out = []
    for part in np.array_split(frames, max(1, math.ceil(len(frames) / 64))):
        x = torch.tensor(part, device=device).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.autocast(device.type, torch.bfloat16):
            out.append(vae.encode(x.to(memory_format=torch.channels_last)).latent_dist.mode().half().cpu())
    return torch.cat(out)


def latents_key(vae: AutoencoderKL, frames: np.ndarray) -> dict:
    """The key of cached latents: the autoencoder and the frames that they were made from."""
    return {"vae": [float(p.detach().double().sum()) for p in vae.quant_conv.parameters()], "frames": len(frames)}


def cached_latents(vae: AutoencoderKL, frames: np.ndarray, file: Path) -> torch.Tensor:
    """`encode_frames`, cached beside the checkpoint for a restart; made again when autoencoder or frames differ."""
    key = latents_key(vae, frames)
    if file.is_file():
        tensors, known = load_tensors(file)
        if identity.same_latents(known, key):
            return tensors["latents"]
    latents = encode_frames(vae, frames)
    save_tensors(file, {"latents": latents}, key)
    return latents


def train(
    vae: AutoencoderKL,
    made: variants.Variants,
    folder: Path,
    *,
    budget_s: float,
    device: str,
    start_from: Path | None = None,
    identity_weight: float = 0.1,
    fade: bool = False,
) -> None:
    """Train until `budget_s` of CPU time (all runs together) is used; saves everything in `folder`.

    The learning rate is constant, so that training can always be continued; with `fade` a copy of the last checkpoint
    is trained for `budget_s` with a decreasing rate, and `averaged` reads this copy.
    """
    tokenizer = write_tokenizer(folder / "tokenizer")
    model = Model(tokenizer, vae.config.latent_channels).to(device)
    model.unet.to(memory_format=torch.channels_last)
    descriptors = torch.tensor(made.descriptors)
    model.projector.mean.copy_(descriptors.mean(0))
    model.projector.std.copy_(descriptors.std(0))
    if start_from is not None:
        load_exported(model, tokenizer, start_from)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-2, fused=True
    )
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    step, spent_s, trunk, faded = 0, 0.0, folder / "denoiser.safetensors", folder / "denoiser-faded.safetensors"
    checkpoint = faded if fade else trunk
    source = faded if fade and faded.is_file() else trunk
    if source.is_file():
        tensors, meta = load_tensors(source)
        model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        average = {k[4:]: v.to(device) for k, v in tensors.items() if k.startswith("ema.")}
        load_optimizer(optimizer, tensors)
        step, spent_s = meta["step"], 0.0 if source != checkpoint else meta["spent_s"]
    latents = cached_latents(vae, made.frames, folder / "latents.safetensors")
    mean, std = model.projector.mean.cpu(), model.projector.std.cpu()
    targets = identity.standardise(descriptors, mean, std)
    key = latents_key(vae, made.frames)
    judge = identity.train(latents, targets, folder, key=key, device=device) if identity_weight else None
    alphas = scheduler().alphas_cumprod
    started, first = time.process_time() - spent_s, step
    shown, likeness, saved = 0.0, 0.0, time.process_time()

    def save() -> None:
        tensors = {f"model.{k}": v for k, v in model.state_dict().items()} | {f"ema.{k}": v for k, v in average.items()}
        save_tensors(checkpoint, tensors | optimizer_tensors(optimizer), {"step": step, "spent_s": spent_s})

    print(
        f"denoiser: {sum(p.numel() for p in model.unet.parameters()) / 1e6:.2f} M parameters, {len(latents)} latents",
        flush=True,
    )
    while spent_s < budget_s:
        rng = np.random.default_rng((11, step))
        generator = torch.Generator().manual_seed(step)
        index = rng.choice(len(latents), BATCH, p=made.chances)
        told = [caption(rng, str(made.noun[i]), str(made.words[i])) for i in index]
        ids = tokenizer(
            [t for t, _ in told], padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids.to(device)
        filled = torch.tensor([f for _, f in told], dtype=torch.float32, device=device)
        who = descriptors[index] + DESCRIPTOR_NOISE * torch.randn(BATCH, 128, generator=generator)
        x = latents[index].float()
        t = torch.randint(0, 1000, (BATCH,), generator=generator)
        noise = torch.randn(x.shape, generator=generator)
        signal, blur = alphas[t].sqrt()[:, None, None, None], (1 - alphas[t]).sqrt()[:, None, None, None]
        noisy, target = signal * x + blur * noise, signal * noise - blur * x
        rate = LEARNING_RATE * min(1.0, (step + 1) / 200)
        if fade:
            rate *= 0.025 + 0.975 * 0.5 * (1 + math.cos(math.pi * spent_s / budget_s))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device, torch.bfloat16, enabled=HALF_PRECISION or device != "cpu"):
            text = model.encode(ids, model.projector(who.to(device)), filled)
            guess = model.unet(noisy.to(device, memory_format=torch.channels_last), t.to(device), text).sample
        per_sample = ((guess.float() - target.to(device)) ** 2).mean((1, 2, 3))
        # truncated SNR+1 weighting of the x0 error (Salimans & Ho 2022), as a weight on v: constant at high noise,
        # where the content of the picture is decided, and decreasing at low noise
        snr = alphas[t] / (1 - alphas[t]).clamp(min=1e-8)
        loss = (per_sample * (5.0 / (snr + 1)).clamp(max=1.0).to(device)).mean()
        clean = signal.to(device) * noisy.to(device) - blur.to(device) * guess.float()
        if judge is not None:
            same = identity.likeness(judge(clean), targets[index].to(device))
            # the same at every noise level: the identity is decided early, at high noise
            loss = loss + identity_weight * (filled * (1 - same)).mean()
            likeness += 0.02 * ((filled * same).sum().item() / max(filled.sum().item(), 1e-6) - likeness)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the denoiser's loss became {loss.item()} at step {step}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        # with a decreasing rate the weights converge, and a long mean would be behind them
        decay = min(FADING_EMA if fade else EMA, (1 + step) / (10 + step))
        with torch.no_grad():
            names, live = zip(*model.named_parameters())
            torch._foreach_lerp_([average[n] for n in names], list(live), 1 - decay)
        share = 0.01 if step - first > 100 else 0.1
        shown += share * (per_sample.mean().item() - shown)
        spent_s = time.process_time() - started
        if step % 50 == 0:
            print(f"denoiser step {step} {spent_s:.0f}s loss {shown:.4f} likeness {likeness:.3f}", flush=True)
        if time.process_time() - saved > 120:
            saved = time.process_time()
            save()
    save()


def averaged(folder: Path, latent_channels: int) -> tuple[Model, CLIPTokenizer]:
    """The averaged model of the checkpoint trained with `fade`; if there is none, of the last one."""
    tokenizer = write_tokenizer(folder / "tokenizer")
    model = Model(tokenizer, latent_channels)
    faded = folder / "denoiser-faded.safetensors"
    tensors, _ = load_tensors(faded if faded.is_file() else folder / "denoiser.safetensors")
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    model.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("ema.")}, strict=False)
    return model.eval(), tokenizer


def _readable_by_transformers_4(out: Path) -> None:
    """Change names and files to the form that older tools need; transformers 5 reads both forms.

    Without the prefix, transformers 4 loads the text encoder with random weights and only warns; and its slow tokenizer
    needs the vocabulary in separate files.
    """
    from safetensors.torch import load_file, save_file

    weights = out / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in load_file(str(weights)).items()}
    save_file(tensors, str(weights), {"format": "pt"})
    write_tokenizer(out / "tokenizer")
    known = json.loads((out / "tokenizer" / "tokenizer.json").read_text())["added_tokens"]
    file = out / "tokenizer" / "tokenizer_config.json"
    decoder = {str(token.pop("id")): token for token in known}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"added_tokens_decoder": decoder}, indent=2) + "\n")


def load_exported(model: Model, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Start from an exported model folder, not from random weights. Its vocabulary may be different: each row of the
    token embedding is copied to its token, and a new word starts as the mean of all words.
    """
    from safetensors.torch import load_file

    def tensors(part: str) -> dict[str, torch.Tensor]:
        files = sorted((folder / part).glob("*.safetensors"))
        return {k: v.float() for file in files for k, v in load_file(str(file)).items()}

    model.unet.load_state_dict(tensors("unet"))
    text = {k.removeprefix("text_model."): v for k, v in tensors("text_encoder").items()}
    table = next(k for k in text if k.endswith("token_embedding.weight"))
    old = json.loads((folder / "tokenizer" / "vocab.json").read_text()) | {SUBJECT: len(text[table]) - 1}
    known = json.loads((folder / "likeness.json").read_text())["vocabulary"]
    mean = text[table][[old[f"{word}</w>"] for word in known]].mean(0)
    order = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    text[table] = torch.stack([text[table][old[token]] if token in old else mean for token, _ in order])
    model.text_encoder.load_state_dict(text)
    model.projector.load_state_dict(
        {k: v.float() for k, v in load_file(str(folder / "identity_projector.safetensors")).items()}
    )


def export(vae: AutoencoderKL, model: Model, tokenizer: CLIPTokenizer, out: Path) -> None:
    """Write a diffusers folder: float16 files, shards below 10 MB; it loads without this project's code."""
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=model.text_encoder.half(),
        tokenizer=tokenizer,
        unet=model.unet.half(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out, max_shard_size="9MB")
    config = out / "text_encoder" / "config.json"
    # transformers uses the saved dtype, but diffusers loads float32: without this the dtypes would be different
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    _readable_by_transformers_4(out)
    state = {k: v.half() for k, v in model.projector.state_dict().items()}
    save_tensors(out / "identity_projector.safetensors", state)
    facts = {
        "family": "portrait",
        "vocabulary": sorted(WORDS),
        "subject_token": SUBJECT,
        "subject_vectors": SUBJECT_VECTORS,
        "guidance": GUIDANCE,
        "descriptor": "dlib_face_recognition_resnet_model_v1",
        "eyes_mid_px": [64, 58],
        "eyes_apart_px": 30,
    }
    (out / "likeness.json").write_text(json.dumps(facts, indent=2) + "\n")
