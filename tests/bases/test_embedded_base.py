"""Laws of `models/portrait-128`: stock diffusers loads it as it is, it is small, and it holds nobody."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

MODELS = Path(__file__).resolve().parents[2] / "models"
BASE = MODELS / "portrait-128"


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(str(BASE))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _render(pipe, prompt: str, seeds, steps: int = 12) -> np.ndarray:
    import torch

    generators = [torch.Generator().manual_seed(s) for s in seeds]
    out = pipe(
        [prompt] * len(generators),
        num_inference_steps=steps,
        guidance_scale=2.5,
        generator=generators,
        output_type="np",
    )
    return (out.images * 255).round().astype(np.uint8)


def test_stock_diffusers_loads_one_precision_without_being_told(pipeline):
    import torch

    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}
    assert json.loads((BASE / "text_encoder" / "config.json").read_text())["dtype"] == "float32"


def test_weights_are_half_precision_on_disk_and_fit_the_limits():
    import torch
    from safetensors import safe_open

    for file in BASE.rglob("*.safetensors"):
        with safe_open(str(file), framework="pt") as tensors:
            assert {tensors.get_tensor(k).dtype for k in tensors.keys()} <= {torch.float16}, file.name  # noqa: SIM118
    sizes = [f.stat().st_size for f in MODELS.rglob("*") if f.is_file()]
    assert max(sizes) < 10_000_000
    assert sum(sizes) <= 110_000_000


def test_every_known_word_is_one_token_and_no_row_is_a_person(pipeline):
    facts = json.loads((BASE / "likeness.json").read_text())
    tokenizer, table = pipeline.tokenizer, pipeline.text_encoder.get_input_embeddings()
    for word in facts["vocabulary"]:
        assert len(tokenizer.tokenize(word)) == 1, word
    assert len(tokenizer) == table.num_embeddings
    # rows: 2x256 bytes, pieces of known words, three special tokens - there is no room for 839 people
    pieces = [t.replace("</w>", "") for t in tokenizer.get_vocab() if len(t.replace("</w>", "")) > 1]
    special = {"<|startoftext|>", "<|endoftext|>", facts["subject_token"]}
    for piece in set(pieces) - special:
        assert any(piece in word for word in facts["vocabulary"]), piece
    assert tokenizer.convert_tokens_to_ids(facts["subject_token"]) == len(tokenizer) - 1


def test_latents_of_its_own_pictures_are_normalised(pipeline):
    import torch

    images = _render(pipeline, "portrait of man", range(6))
    x = torch.tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        z = pipeline.vae.encode(x).latent_dist.mode()
    assert pipeline.vae.config.scaling_factor == 1.0
    assert 0.6 < float(z.std()) < 1.5
    assert abs(float(z.mean())) < 0.35


def test_the_neutral_subject_is_no_particular_person(pipeline):
    """Renders of `<subject>` with different seeds differ as different people do, not as photos of one person."""
    from pipelines.faces.dlib_faces import dlib_detect, dlib_embed

    facts = json.loads((BASE / "likeness.json").read_text())
    subject = " ".join([facts["subject_token"]] * facts["subject_vectors"])
    descriptors = []
    for image in _render(pipeline, f"portrait of {subject} man", range(10)):
        padded = np.pad(image, ((32, 32), (32, 32), (0, 0)), mode="edge")
        found = dlib_detect(padded)
        if found:
            descriptors.append(dlib_embed(padded, found[0]))
    assert len(descriptors) >= 8
    pairs = [float(np.linalg.norm(a - b)) for i, a in enumerate(descriptors) for b in descriptors[i + 1 :]]
    assert np.median(pairs) > 0.55  # photos of one person lie below 0.6, typically at 0.4


def test_guidance_makes_the_asked_background(pipeline):
    from pipelines.photos import captions

    dark = [captions.background_rgb(i).mean() for i in _render(pipeline, "portrait of man, black background", range(4))]
    light = [
        captions.background_rgb(i).mean() for i in _render(pipeline, "portrait of man, white background", range(4))
    ]
    assert np.mean(light) - np.mean(dark) > 80


def test_older_tools_find_the_names_and_files_they_expect():
    """transformers 4 starts a text encoder without this prefix from noise, and its tokenizer wants these files."""
    from safetensors import safe_open

    with safe_open(str(BASE / "text_encoder" / "model.safetensors"), framework="pt") as file:
        assert all(name.startswith("text_model.") for name in file.keys())  # noqa: SIM118 - no dict
    vocab = json.loads((BASE / "tokenizer" / "vocab.json").read_text())
    known = json.loads((BASE / "likeness.json").read_text())["vocabulary"]
    assert all(f"{word}</w>" in vocab for word in known)
    assert (BASE / "tokenizer" / "merges.txt").read_text().startswith("#version")
    added = json.loads((BASE / "tokenizer" / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert "<subject>" in {token["content"] for token in added.values()}


def test_a_variation_stays_as_near_to_its_source_as_asked(tmp_path):
    from pipelines.bases.registry import find_base
    from pipelines.core.device import Device
    from pipelines.core.inscription import Inscription
    from pipelines.core.records import Sampling
    from pipelines.generation.generator import Generator, save_render

    generator = Generator(find_base("portrait-128"), Device("cpu", "float32", "exact in tests"))
    first = Sampling("portrait of {subject}, navy background", seed=7, steps=12)
    ((_, source),) = generator.render([first], None, class_word="woman")
    save_render(source, Inscription(first, "portrait-128"), tmp_path / "renders" / "a.png", method="none")
    distances = []
    for change in (0.1, 0.5, 0.9):
        asked = Sampling(
            "portrait of {subject}, teal background", seed=2, steps=12, source="renders/a.png", change=change
        )
        ((_, image),) = generator.render([asked], None, class_word="woman", sources=tmp_path)
        distances.append(np.abs(np.asarray(image, np.float32) - np.asarray(source, np.float32)).mean())
    assert distances[0] < 6 and 2 * distances[0] < distances[1] and 2 * distances[1] < distances[2]
