"""Stage 4, evaluation: every bar of the model card, measured on the exported folder through stock diffusers.

In: `models/portrait-128`, the packed portraits, optionally a folder of people and an ArcFace pack. Out: a dict of
figures, written as `evaluation.json` and into the card. Nothing of the people is written but averages.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipelines.core.records import Sampling
from pipelines.evaluation.facts import holds
from pipelines.faces.dlib_faces import dlib_detect, dlib_embed
from pipelines.faces.face import align_by_eyes
from pipelines.photos import captions
from tools.portrait_base import autoencoder, data, denoiser, variants

SAMPLES = 256
GUIDANCE = Sampling("").guidance  # as the product draws
SAME_PERSON_L2 = 0.6


def _padded(image: np.ndarray, pad: int = 32) -> np.ndarray:
    return np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="edge")


def _descriptor(frame: np.ndarray) -> np.ndarray | None:
    """dlib descriptor of a 128-pixel frame; `None` where no face is found (padded, doubled)."""
    image = _padded(frame)
    found = dlib_detect(image, upsample=1) or dlib_detect(image, upsample=2)
    return dlib_embed(image, found[0]) if found else None


def _same_person(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """How many pairs dlib calls one person, of how many in which it finds both faces."""
    pairs = [(_descriptor(x), _descriptor(y)) for x, y in zip(a, b)]
    both = [(x, y) for x, y in pairs if x is not None and y is not None]
    return sum(float(np.linalg.norm(x - y)) < SAME_PERSON_L2 for x, y in both), len(both)


def people_frames(folder: Path) -> dict[str, np.ndarray]:
    """Aligned frames per person of a folder of folders."""
    out = {}
    for row in csv.DictReader((folder / "people.csv").open()):
        frames = []
        for path in sorted((folder / row["person"]).glob("*.jpg")):
            image = np.array(Image.open(path).convert("RGB"))
            found = dlib_detect(image)
            if found:
                frames.append(align_by_eyes(image, found[0].eyes))
        out[row["person"]] = np.stack(frames)
    return out


class ArcFace:
    """An InsightFace pack on 128-pixel frames, padded so that its detector sees context."""

    def __init__(self, root: Path, pack: str = "buffalo_sc") -> None:
        from insightface.app import FaceAnalysis

        self.app = FaceAnalysis(name=pack, root=str(root), providers=["CPUExecutionProvider"])
        self.app.prepare(ctx_id=-1, det_size=(256, 256))

    def __call__(self, frame: np.ndarray) -> np.ndarray | None:
        found = self.app.get(np.ascontiguousarray(_padded(frame)[..., ::-1]))
        if not found:
            return None
        return max(found, key=lambda f: (f.bbox[2] - f.bbox[0]) * (f.bbox[3] - f.bbox[1])).normed_embedding


def ceiling_kept(people: dict[str, np.ndarray], rebuilt: dict[str, np.ndarray], embed) -> tuple[float, float]:
    """Mean over people of (leave-one-out similarity of real photos, similarity of rebuilt photos to the other real
    ones).
    """
    real_scores, rebuilt_scores = [], []
    for name, frames in people.items():
        real = [embed(f) for f in frames]
        made = [embed(f) for f in rebuilt[name]]
        for k, own in enumerate(real):
            others = [e for j, e in enumerate(real) if j != k and e is not None]
            mean = np.mean(others, 0)
            mean /= np.linalg.norm(mean)
            if own is not None:
                real_scores.append(float(own @ mean))
                # a face that is no longer found counts as nothing kept
                rebuilt_scores.append(float(made[k] @ mean) if made[k] is not None else 0.0)
    return float(np.mean(real_scores)), float(np.mean(rebuilt_scores))


def vae_figures(vae, portraits: data.Portraits, people_folder: Path | None, packs: Path | None) -> dict[str, float]:
    test = portraits.frame(portraits.held_out)
    rebuilt = autoencoder.rebuild(vae, test)
    to01 = lambda x: torch.tensor(x).permute(0, 3, 1, 2).float() / 255  # noqa: E731
    same, both = _same_person(test, rebuilt)
    figures = {
        "vae_psnr_db": float(autoencoder.psnr(test, rebuilt).mean()),
        "vae_ssim": float(autoencoder.ssim(to01(test), to01(rebuilt))),
        "vae_same_person": same / max(both, 1),
    }
    if people_folder is not None:
        people = people_frames(people_folder)
        made = {name: autoencoder.rebuild(vae, frames) for name, frames in people.items()}
        every, every_made = np.concatenate(list(people.values())), np.concatenate(list(made.values()))
        same, both = _same_person(every, every_made)
        figures |= {
            "people_psnr_db": float(autoencoder.psnr(every, every_made).mean()),
            "people_same_person": same / max(both, 1),
        }
        if packs is not None:
            real, kept = ceiling_kept(people, made, ArcFace(packs))
            figures |= {"people_arcface_real": real, "people_arcface_rebuilt": kept, "people_arcface_kept": kept / real}
    return figures


@torch.no_grad()
def sample(
    pipeline, prompts: list[str], *, seed: int, guidance: float = GUIDANCE, steps: int = 20, batch: int = 16
) -> np.ndarray:
    """Stock pipeline, one picture per prompt, each from its own seed. (n, 128, 128, 3) uint8."""
    pipeline.set_progress_bar_config(disable=True)
    out = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        generators = [torch.Generator().manual_seed(seed + start + k) for k in range(len(part))]
        images = pipeline(
            part, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="np"
        ).images
        out.append((images * 255).round().astype(np.uint8))
    return np.concatenate(out)


def asked_prompts(count: int, seed: int = 0) -> list[tuple[str, str | None, str | None, str]]:
    """Random prompts in the base's grammar: (prompt, background, jacket, tone)."""
    rng = np.random.default_rng(seed)
    out: list[tuple[str, str | None, str | None, str]] = []
    neutral = " ".join([denoiser.SUBJECT] * denoiser.SUBJECT_VECTORS)
    for k in range(count):
        noun = ("man", "woman")[k % 2]
        subject = f"{neutral} {noun}" if rng.random() < 0.5 else noun
        background = str(rng.choice(["black", "grey", "white", "navy", "blue", "teal", "green", "brown", "red"]))
        if rng.random() < 0.15:
            out.append((f"portrait of {subject}, grey background, black and white", "grey", None, "black and white"))
            continue
        jacket = str(rng.choice(["black", "grey", "navy", "brown", "red"])) if rng.random() < 0.5 else None
        words = [f"portrait of {subject}", f"{background} background"] + ([f"{jacket} jacket"] if jacket else [])
        out.append((", ".join(words), background, jacket, "colour"))
    return out


def sample_figures(
    pipeline, portraits: data.Portraits, *, samples: int = SAMPLES
) -> tuple[dict[str, float], np.ndarray]:
    asked = asked_prompts(samples)
    images = sample(pipeline, [a[0] for a in asked], seed=1000)
    held, total, found, copies = 0, 0, 0, 0
    known = portraits.descriptors[~portraits.held_out]
    for image, (_, background, jacket, tone) in zip(images, asked):
        seen = captions.measure(image)
        checks = [seen.tone == tone]
        checks += [holds(seen.background, background)] if background and tone == "colour" else []
        checks += [holds(seen.jacket, jacket)] if jacket else []
        held, total = held + sum(checks), total + len(checks)
        descriptor = _descriptor(image)
        if descriptor is not None:
            found += 1
            copies += float(np.linalg.norm(known - descriptor, axis=1).min()) <= 0.35
    return {
        "samples": samples,
        "face_found": found / samples,
        "attributes_hold": held / total,
        "memorised": copies / samples,
    }, images


@torch.no_grad()
def identity_rank(pipeline, projector, portraits: data.Portraits, which: np.ndarray, *, seed: int = 5) -> np.ndarray:
    """Zero-shot: a portrait from its own descriptor; the rank (1 = best) of that portrait among all by dlib
    distance.
    """
    neutral = " ".join([denoiser.SUBJECT] * denoiser.SUBJECT_VECTORS)
    tokenizer, text_encoder = pipeline.tokenizer, pipeline.text_encoder
    subject_id = tokenizer.convert_tokens_to_ids(denoiser.SUBJECT)
    descriptors = np.stack(
        [variants._describe(portraits.frame(i)) for i in which]  # measured as in training, on the aligned frame
    )
    vectors = projector(torch.tensor(descriptors, dtype=torch.float32))
    ranks = []

    def encode(prompts: list[str]) -> torch.Tensor:
        return tokenizer(
            prompts, padding="max_length", max_length=denoiser.MAX_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids

    pipeline.set_progress_bar_config(disable=True)
    for start in range(0, len(which), 16):
        rows = range(start, min(start + 16, len(which)))
        prompts = [f"portrait of {neutral} {portraits.gender[which[k]]}" for k in rows]
        ids = encode(prompts)
        with denoiser.added_at(text_encoder, ids == subject_id, vectors[list(rows)]):
            told = text_encoder(ids).last_hidden_state
        empty = text_encoder(encode([""] * len(prompts))).last_hidden_state
        generators = [torch.Generator().manual_seed(seed + k) for k in rows]
        images = pipeline(
            prompt_embeds=told,
            negative_prompt_embeds=empty,
            num_inference_steps=20,
            guidance_scale=GUIDANCE,
            generator=generators,
            output_type="np",
        ).images
        for k, image in zip(rows, images):
            got = _descriptor((image * 255).round().astype(np.uint8))
            if got is None:
                ranks.append(len(portraits.descriptors))
                continue
            distances = np.linalg.norm(portraits.descriptors - got, axis=1)
            ranks.append(int((distances < distances[which[k]]).sum()) + 1)
    return np.array(ranks)


def everything(
    folder: Path, portraits: data.Portraits, people: Path | None, packs: Path | None
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """All figures of the card, and the pictures it shows (frames of samples; none of a real person)."""
    from diffusers import StableDiffusionPipeline

    from pipelines.training.checkpoints import load_tensors

    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    figures = vae_figures(pipeline.vae, portraits, people, packs)
    more, samples = sample_figures(pipeline, portraits)
    figures |= more
    projector = denoiser.IdentityProjector()
    projector.load_state_dict(
        {k: v.float() for k, v in load_tensors(folder / "identity_projector.safetensors")[0].items()}
    )
    held_out = np.flatnonzero(portraits.held_out)
    trained = np.random.default_rng(1).choice(np.flatnonzero(~portraits.held_out), len(held_out), replace=False)
    for name, which in (("held_out", held_out), ("trained", trained)):
        ranks = identity_rank(pipeline, projector.eval(), portraits, which)
        figures[f"identity_rank_median_{name}"] = float(np.median(ranks))
        figures[f"identity_rank_top20_{name}"] = float((ranks <= 20).mean())
    return figures, {"samples": samples[:32]}
