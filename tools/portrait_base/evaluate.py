"""Stage 4, evaluation: every bar of the model card, measured on the exported folder through stock diffusers.

In: `models/portrait-128`, the packed portraits, and folders that were never trained on: people (people.csv), labelled
photos (portraits2.csv, `evaluate` rows), an ArcFace pack. Out: a dict of figures, written to `evaluation.json` and the
card. Of people only averages are written.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipelines.evaluation.facts import holds
from pipelines.faces.dlib_faces import dlib_detect, dlib_embed
from pipelines.faces.face import align_by_eyes
from pipelines.photos import captions
from tools.portrait_base import autoencoder, data, denoiser, probes, variants

SAMPLES, REAL = 256, 64  # pictures drawn for the shares; real portraits per noun for the distances
GUIDANCE = denoiser.GUIDANCE
SAME_PERSON_L2 = 0.6
NOUNS = ("woman", "man")


def _padded(image: np.ndarray, pad: int = 32) -> np.ndarray:
    return np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="edge")


def _descriptor(frame: np.ndarray) -> np.ndarray | None:
    """dlib descriptor of a 128-pixel frame, padded and doubled; None if no face is found."""
    image = _padded(frame)
    found = dlib_detect(image, upsample=1) or dlib_detect(image, upsample=2)
    return dlib_embed(image, found[0]) if found else None


def _same_person(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """(number of pairs that dlib says are one person, number of pairs in which it finds both faces)."""
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
    """An InsightFace pack for 128-pixel frames, which are padded because its detector needs context."""

    def __init__(self, root: Path, pack: str = "buffalo_sc") -> None:
        from insightface.app import FaceAnalysis

        self.app = FaceAnalysis(name=pack, root=str(root), providers=["CPUExecutionProvider"])
        self.app.prepare(ctx_id=-1, det_size=(256, 256))

    def raw(self, frame: np.ndarray) -> np.ndarray | None:
        """The feature (512,) before it is scaled to unit length; its norm is higher for a clear face."""
        found = self.app.get(np.ascontiguousarray(_padded(frame)[..., ::-1]))
        return max(found, key=lambda f: f.det_score).embedding if found else None

    def __call__(self, frame: np.ndarray) -> np.ndarray | None:
        feature = self.raw(frame)
        return None if feature is None else feature / np.linalg.norm(feature)


def kid(a: np.ndarray, b: np.ndarray) -> float:
    """Kernel distance x 1000 of two sets of features (n, d): unbiased MMD^2, cubic kernel (Binkowski et al. 2018)."""
    m, n, d = len(a), len(b), a.shape[1]
    aa, bb, ab = ((x @ y.T / d + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within = (aa.sum() - np.trace(aa)) / (m * (m - 1)) + (bb.sum() - np.trace(bb)) / (n * (n - 1))
    return float(1000 * (within - 2 * ab.mean()))


def _looked_at(frames: np.ndarray, arcface: ArcFace) -> dict[str, np.ndarray]:
    """Features (n, 512) of length sqrt(512), their norms before, and the mean gradient of each frame's brightness."""
    raw = [arcface.raw(frame) for frame in frames]
    features = np.array([np.zeros(512) if r is None else r for r in raw], np.float64)
    norms = np.linalg.norm(features, axis=1)
    grey = frames @ np.array([0.299, 0.587, 0.114]) / 255
    sharp = np.hypot(*np.gradient(grey, axis=(1, 2))).mean((1, 2))
    return {"unit": features / np.maximum(norms, 1e-6)[:, None] * 512**0.5, "norm": norms, "sharp": sharp}


def _real(portraits: data.Portraits, noun: str) -> np.ndarray:
    """2 x REAL colour frames; in both halves official and labelled portraits alternate."""
    colour = (portraits.noun == noun) & (portraits.grey == "0")
    official = np.flatnonzero(colour & (portraits.source == "congress"))[:REAL]
    labelled = np.flatnonzero(colour & (portraits.source != "congress"))[:REAL]
    pairs = np.stack([official, labelled], 1)
    return portraits.frame(np.concatenate([pairs[::2].ravel(), pairs[1::2].ravel()]))


def realism(pipeline, portraits: data.Portraits, arcface: ArcFace, *, guidance: float = GUIDANCE) -> dict[str, float]:
    """Per noun: distance of drawn and decoded pictures to real ones in a recogniser's features, norm, sharpness."""
    figures = {}
    for noun in NOUNS:
        real = _real(portraits, noun)
        known = _looked_at(real[REAL:], arcface)
        drawn = sample(pipeline, [f"portrait of a {noun}"] * REAL, seed=5000, guidance=guidance)
        for who, frames in (("drawn", drawn), ("rebuilt", autoencoder.rebuild(pipeline.vae, real[:REAL]))):
            seen = _looked_at(frames, arcface)
            figures[f"kid_{who}_{noun}"] = kid(seen["unit"], known["unit"])
            figures[f"norm_{who}_{noun}"] = float(seen["norm"].mean() / known["norm"].mean())
            figures[f"sharpness_{who}_{noun}"] = float(seen["sharp"].mean() / known["sharp"].mean())
    gaps = [figures[f"kid_drawn_{noun}"] for noun in NOUNS]
    return figures | {"kid_ratio": max(gaps) / max(min(gaps), 1.0)}


def measured_on(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, dict[str, str]]]:
    """Frames (n, 128, 128, 3) and labels per person of the `evaluate` rows, for people with at least two photos."""
    frames: dict[str, list[np.ndarray]] = {}
    labels = {}
    for row in csv.DictReader((folder / "portraits2.csv").open()):
        if row["split"] == "evaluate":
            image = Image.open(folder / row["file"]).convert("RGB").crop((12, 12, 204, 204))
            frames.setdefault(row["person"], []).append(np.array(image.resize((128, 128), Image.Resampling.LANCZOS)))
            labels[row["person"]] = row
    return {name: np.stack(several) for name, several in frames.items() if len(several) > 1}, labels


def kept_by_group(vae, folder: Path, arcface: ArcFace) -> dict[str, float]:
    """Share of the ArcFace ceiling that remains after encoding and decoding, by noun and skin, for unseen people."""
    people, labels = measured_on(folder)
    made = {name: autoencoder.rebuild(vae, frames) for name, frames in people.items()}
    figures = {}
    for label in ("noun", "skin"):
        for word in sorted({labels[name][label] for name in people} - {""}):
            some = {name: frames for name, frames in people.items() if labels[name][label] == word}
            real, kept = ceiling_kept(some, made, arcface)
            figures[f"arcface_kept_{word}"] = kept / real
    return figures | {"arcface_kept_apart": max(figures.values()) - min(figures.values())}


def ceiling_kept(people: dict[str, np.ndarray], rebuilt: dict[str, np.ndarray], embed) -> tuple[float, float]:
    """Means over people: (leave-one-out similarity of real photos, similarity of decoded photos to the other real
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
                # a face that is no longer found counts 0
                rebuilt_scores.append(float(made[k] @ mean) if made[k] is not None else 0.0)
    return float(np.mean(real_scores)), float(np.mean(rebuilt_scores))


def vae_figures(
    vae, portraits: data.Portraits, people_folder: Path | None, arcface: ArcFace | None
) -> dict[str, float]:
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
        if arcface is not None:
            real, kept = ceiling_kept(people, made, arcface)
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
    """Random prompts in the form of the base's captions: (prompt, background, jacket, tone)."""
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


def sample_figures(pipeline, portraits: data.Portraits, *, samples: int = SAMPLES) -> dict[str, float]:
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
    }


def word_figures(pipeline, portraits: data.Portraits, recogniser: Path, *, each: int = 16) -> dict[str, float]:
    """Share of pictures that show the label word in their prompt, measured by `probes`; half women, half men."""
    asked = [
        *[("glasses", "1", "glasses"), ("beard", "1", "beard"), ("smile", "1", "smile")],
        *[("hair", word, word if word == "bald" else f"{word} hair") for word in ("long", "short", "bald")],
        *[("skin", word, f"{word} skin") for word in ("light", "medium", "dark")],
        *[("age", word, word) for word in ("young", "middle aged", "elderly")],
    ]
    known = probes.features(portraits.frame(slice(None)), recogniser)
    told = {name: probes.fit(known, getattr(portraits, name)) for name in probes.LABELS}
    figures: dict[str, float] = {}
    for name, word, phrase in asked:
        nouns = ["man"] if phrase in ("beard", "bald") else list(NOUNS)
        prompts = [f"portrait of a {nouns[k % len(nouns)]}, {phrase}" for k in range(each)]
        seen = probes.features(sample(pipeline, prompts, seed=7000), recogniser)
        figures[f"word {phrase}"] = float((told[name].tell(seen) == word).mean())
    sure = {f"probe {name}": probes.sureness(known, getattr(portraits, name)) for name in probes.LABELS}
    return figures | {"words_hold": float(np.mean(list(figures.values())))} | sure


@torch.no_grad()
def drawn_from(pipeline, projector, descriptors: np.ndarray, nouns: list[str], *, seed: int) -> np.ndarray:
    """Zero-shot: a portrait (n, 128, 128, 3) from each descriptor (n, 128)."""
    neutral = " ".join([denoiser.SUBJECT] * denoiser.SUBJECT_VECTORS)
    tokenizer, text_encoder = pipeline.tokenizer, pipeline.text_encoder
    subject_id = tokenizer.convert_tokens_to_ids(denoiser.SUBJECT)
    vectors = projector(torch.tensor(descriptors, dtype=torch.float32))

    def encode(prompts: list[str]) -> torch.Tensor:
        return tokenizer(
            prompts, padding="max_length", max_length=denoiser.MAX_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids

    pipeline.set_progress_bar_config(disable=True)
    out = []
    for start in range(0, len(nouns), 16):
        rows = range(start, min(start + 16, len(nouns)))
        ids = encode([f"portrait of {neutral} {nouns[k]}" for k in rows])
        with denoiser.added_at(text_encoder, ids == subject_id, vectors[list(rows)]):
            told = text_encoder(ids).last_hidden_state
        empty = text_encoder(encode([""] * len(rows))).last_hidden_state
        generators = [torch.Generator().manual_seed(seed + k) for k in rows]
        images = pipeline(
            prompt_embeds=told,
            negative_prompt_embeds=empty,
            num_inference_steps=20,
            guidance_scale=GUIDANCE,
            generator=generators,
            output_type="np",
        ).images
        out.append((images * 255).round().astype(np.uint8))
    return np.concatenate(out)


def identity_rank(pipeline, projector, portraits: data.Portraits, which: np.ndarray, *, seed: int = 5) -> np.ndarray:
    """Zero-shot: a portrait from its own descriptor; the rank (1 = best) of that portrait among all by dlib
    distance.
    """
    known = np.stack([data.describe(portraits.frame(i)) for i in which])  # measured as in training
    ranks = []
    for k, image in enumerate(drawn_from(pipeline, projector, known, list(portraits.noun[which]), seed=seed)):
        got = _descriptor(image)
        if got is None:
            ranks.append(len(portraits.descriptors))
            continue
        distances = np.linalg.norm(portraits.descriptors - got, axis=1)
        ranks.append(int((distances < distances[which[k]]).sum()) + 1)
    return np.array(ranks)


def identity_of_people(pipeline, projector, folder: Path, arcface: ArcFace, *, pictures: int = 4) -> float:
    """Zero-shot: mean ArcFace cosine of pictures drawn from people's mean descriptors to their photos' mean."""
    nouns = {row["person"]: row["class_word"] for row in csv.DictReader((folder / "people.csv").open())}
    scores = []
    for name, frames in people_frames(folder).items():
        mean = np.mean([data.describe(frame) for frame in frames], 0)
        real = np.mean([e for e in map(arcface, frames) if e is not None], 0)
        drawn = drawn_from(pipeline, projector, np.stack([mean] * pictures), [nouns[name]] * pictures, seed=5)
        for seen in map(arcface, drawn):
            scores.append(0.0 if seen is None else float(seen @ real / np.linalg.norm(real)))
    return float(np.mean(scores))


def everything(
    folder: Path,
    portraits: data.Portraits,
    *,
    people: Path | None,
    measure: Path | None,
    packs: Path | None,
    recogniser: Path | None,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """All figures of the card, and the pictures it shows (frames of samples; none of a real person)."""
    from diffusers import StableDiffusionPipeline

    from pipelines.training.checkpoints import load_tensors

    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    arcface = ArcFace(packs) if packs is not None else None
    projector = denoiser.IdentityProjector()
    projector.load_state_dict(
        {k: v.float() for k, v in load_tensors(folder / "identity_projector.safetensors")[0].items()}
    )
    projector.eval()
    figures = vae_figures(pipeline.vae, portraits, people, arcface)
    if arcface is not None:
        figures |= realism(pipeline, portraits, arcface)
        figures |= kept_by_group(pipeline.vae, measure, arcface) if measure else {}
        figures |= {"people_zero_shot": identity_of_people(pipeline, projector, people, arcface)} if people else {}
    figures |= sample_figures(pipeline, portraits)
    figures |= word_figures(pipeline, portraits, recogniser) if recogniser else {}
    held_out = np.flatnonzero(portraits.held_out)
    trained = np.random.default_rng(1).choice(np.flatnonzero(~portraits.held_out), len(held_out), replace=False)
    for name, which in (("held_out", held_out), ("trained", trained)):
        ranks = identity_rank(pipeline, projector, portraits, which)
        figures[f"identity_rank_median_{name}"] = float(np.median(ranks))
        figures[f"identity_rank_share_{name}"] = float(np.median(ranks) / len(portraits.noun))
        figures[f"identity_rank_top20_{name}"] = float((ranks <= 20).mean())
    return figures, {"samples": sample(pipeline, shown_prompts(), seed=9000)}


def shown_prompts() -> list[str]:
    """The prompts of the card's picture: both nouns x three skin tones x three ages, then media; each drawn once."""
    asked = [
        f"portrait of a {noun}, {age}, {skin} skin"
        for age in ("young", "middle aged", "elderly")
        for skin in ("light", "medium", "dark")
        for noun in NOUNS
    ]
    plain = [f"portrait of a {NOUNS[k % 2]}" for k in range(8)]
    return [*plain, *asked, *(f"portrait of a {NOUNS[k % 2]}, {medium}" for k, medium in enumerate(variants.MEDIA))]
