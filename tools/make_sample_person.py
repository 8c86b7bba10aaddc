"""Draw the synthetic sample person: pictures of a person who does not exist, for visitors without photos.

    python tools/make_sample_person.py --data .build/portraits.npz

In: the embedded base and the packed portraits; the mean of six of their descriptors is a new identity. Out:
`presets/sample_person/*.png` and a README that describes them. The first picture is drawn from this identity; the
others are variations of it (image-to-image). One is kept only if both embedded recognisers say that it is the same
person, if it is no near-duplicate of an earlier one, and if its dlib distance to every portrait of the training set is
at least 0.45.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PHOTOS, ENOUGH, SIZE_PX = 10, 8, 256
NOT_A_REAL_PERSON_L2 = 0.45
SAME_MOMENT_BITS = 12  # of 64 bits of the hash: near-duplicates differ in fewer
LOOKS = (
    "grey background, black jacket",
    "navy background",
    "white background, grey jacket",
    "teal background, spotlight",
    "brown background, warm light",
    "blue background, navy jacket",
    "black background",
    "grey background, gradient, cool light",
    "green background",
    "red background, black jacket",
    "grey background, bright",
    "purple background",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="packed portraits of build_portrait_base.py")
    parser.add_argument("--base", type=Path, default=ROOT / "models" / "portrait-128")
    parser.add_argument("--out", type=Path, default=ROOT / "presets" / "sample_person")
    parser.add_argument("--gender", default="woman", choices=("man", "woman"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import torch
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
    from PIL import Image

    from pipelines.faces import arcface_mini
    from pipelines.photos import split
    from pipelines.training.checkpoints import load_tensors
    from tools.portrait_base import data, denoiser, evaluate

    portraits = data.load(options.data)
    rng = np.random.default_rng(options.seed)
    chosen = rng.choice(np.flatnonzero((portraits.noun == options.gender) & ~portraits.held_out), 6, replace=False)
    blended = portraits.descriptors[chosen].mean(0)
    pipe = StableDiffusionPipeline.from_pretrained(options.base)
    again = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    for each in (pipe, again):
        each.set_progress_bar_config(disable=True)
    projector = denoiser.IdentityProjector()
    state = load_tensors(options.base / "identity_projector.safetensors")[0]
    projector.load_state_dict({k: v.float() for k, v in state.items()})
    with torch.no_grad():
        vectors = projector(torch.tensor(blended, dtype=torch.float32)[None])
    neutral = " ".join([denoiser.SUBJECT] * denoiser.SUBJECT_VECTORS)

    def encode(prompts: list[str], added: torch.Tensor | None) -> torch.Tensor:
        tokens = pipe.tokenizer(prompts, padding="max_length", max_length=denoiser.MAX_TOKENS, return_tensors="pt")
        ids = tokens.input_ids
        if added is None:
            return pipe.text_encoder(ids).last_hidden_state
        places = ids == pipe.tokenizer.convert_tokens_to_ids(denoiser.SUBJECT)
        with denoiser.added_at(pipe.text_encoder, places, added.expand(len(prompts), -1, -1)):
            return pipe.text_encoder(ids).last_hidden_state

    def told(looks: list[str]) -> dict[str, torch.Tensor]:
        prompts = [f"portrait of {neutral} {options.gender}, {look}" for look in looks]
        with torch.no_grad():
            return {
                "prompt_embeds": encode(prompts, vectors),
                "negative_prompt_embeds": encode([""] * len(looks), None),
            }

    def seeds(count: int, first: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(first + k) for k in range(count)]

    # candidates for the first picture: the face with the highest score that is nobody in the training set
    first = pipe(
        **told([LOOKS[0]] * 16),
        num_inference_steps=30,
        guidance_scale=3.0,
        generator=seeds(16, options.seed * 1000),
        output_type="np",
    ).images
    frames = (first * 255).round().astype(np.uint8)
    described = [evaluate._descriptor(f) for f in frames]
    nearest = [-1.0 if d is None else float(np.linalg.norm(portraits.descriptors - d, axis=1).min()) for d in described]
    clear = [_clarity(f) if near >= NOT_A_REAL_PERSON_L2 else -9.0 for f, near in zip(frames, nearest)]
    best = int(np.argmax(clear))
    reference = described[best]
    if reference is None:
        print("No face was found in the candidates; train the base longer.", file=sys.stderr)
        return 1
    kept, start = [frames[best]], Image.fromarray(frames[best])
    mini = arcface_mini.ArcFaceMini()
    own = mini.look(_large(frames[best])).vector
    if own is None or mini.calibration is None:
        print("The first picture shows arcface-mini no face, or it is uncalibrated.", file=sys.stderr)
        return 1
    same_person = mini.calibration.kind(1).thresholds["0.001"]
    for turn in range(16):
        looks = [LOOKS[(turn * 6 + k + 1) % len(LOOKS)] for k in range(6)]
        images = again(
            **told(looks),
            image=[_moved(start, rng) for _ in looks],
            strength=0.6,
            num_inference_steps=30,
            guidance_scale=3.0,
            generator=seeds(6, 5000 + 100 * turn),
            output_type="np",
        ).images
        for frame in (images * 255).round().astype(np.uint8):
            descriptor = evaluate._descriptor(frame)
            if descriptor is None or np.linalg.norm(descriptor - reference) > 0.5:
                continue
            seen = mini.look(_large(frame)).vector
            if seen is None or mini.similarity(own, seen) < same_person:
                continue
            hashes = [split.perceptual_hash(each) for each in kept]
            if min(int((split.perceptual_hash(frame) != each).sum()) for each in hashes) <= SAME_MOMENT_BITS:
                continue
            if np.linalg.norm(portraits.descriptors - descriptor, axis=1).min() >= NOT_A_REAL_PERSON_L2:
                kept.append(frame)
        if len(kept) >= PHOTOS:
            break
    if len(kept) < ENOUGH:
        print(f"Only {len(kept)} pictures of one person came out; train the base longer.", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    for old in options.out.glob("*.png"):
        old.unlink()
    for k, frame in enumerate(kept[:PHOTOS]):
        Image.fromarray(_large(frame)).save(options.out / f"synthetic-{k:02d}.png")
    (options.out / "README.md").write_text(
        f"# A person who does not exist\n\n{len(kept[:PHOTOS])} pictures of class word `{options.gender}`, drawn by "
        "`models/portrait-128` from a blend of six descriptors (`tools/make_sample_person.py`). No photo of anybody; "
        f"each lies at least {NOT_A_REAL_PERSON_L2} (dlib) from every portrait the base was trained on.\n"
    )
    (options.out / "person.txt").write_text(options.gender + "\n")
    print(f"{len(kept[:PHOTOS])} pictures; the first lies {nearest[best]:.2f} from the nearest training portrait")
    return 0


def _clarity(frame: np.ndarray) -> float:
    """The detector's score of the face."""
    from pipelines.faces.dlib_faces import dlib_detect
    from tools.portrait_base import evaluate

    found = dlib_detect(evaluate._padded(frame))
    return found[0].score if found else -9.0


def _large(frame: np.ndarray) -> np.ndarray:
    """The picture as it will be stored."""
    from PIL import Image

    return np.asarray(Image.fromarray(frame).resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS))


def _moved(image, rng: np.random.Generator):
    """Slightly rotated, shifted or mirrored, so that the pictures differ like photos."""
    from PIL import Image, ImageOps

    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    return image.rotate(
        float(rng.normal(0, 3)),
        Image.Resampling.BICUBIC,
        translate=tuple(int(v) for v in rng.normal(0, 2, 2)),
        fillcolor=image.getpixel((4, 4)),
    )


if __name__ == "__main__":
    sys.exit(main())
