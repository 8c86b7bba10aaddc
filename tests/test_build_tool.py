"""Laws of the tool that builds the embedded base: what it folds, what it resumes, what its vocabulary holds."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tools.portrait_base import autoencoder, data, denoiser, identity, variants  # noqa: E402


def _portraits(count: int = 6) -> data.Portraits:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (count, 9, 9, 3), dtype=np.uint8)
    pixels = np.repeat(np.repeat(coarse, 16, 1), 16, 2)
    assert pixels.shape[1] == data.PACKED_PX
    return data.Portraits(
        pixels,
        rng.normal(0, 0.1, (count, 128)).astype(np.float32),
        np.array(["man", "woman"] * (count // 2)),
        np.full(count, 1950),
        np.zeros(count, bool),
        np.arange(count) < 2,
    )


def test_folding_normalises_the_latents_and_changes_no_picture():
    vae = autoencoder.new().eval()
    frames = _portraits().frame(slice(None))
    before = autoencoder.rebuild(vae, frames)
    autoencoder.fold_normalisation(vae, frames)
    assert np.abs(before.astype(int) - autoencoder.rebuild(vae, frames).astype(int)).max() <= 1
    z = denoiser.encode_frames(vae, frames).float()
    assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(16), atol=0.05)
    assert torch.allclose(z.std((0, 2, 3)), torch.ones(16), atol=0.05)


def test_the_autoencoder_resumes_from_its_checkpoint(tmp_path):
    from pipelines.training.checkpoints import load_tensors

    options = {"recogniser": None, "device": "cpu"}
    autoencoder.train(_portraits(), tmp_path, budget_s=0.5, **options)
    first = load_tensors(tmp_path / "vae.safetensors")[1]
    autoencoder.train(_portraits(), tmp_path, budget_s=first["spent_s"] + 0.5, **options)
    second = load_tensors(tmp_path / "vae.safetensors")[1]
    assert second["step"] > first["step"] >= 1
    assert autoencoder.averaged(tmp_path).config.latent_channels == 16


def test_refining_the_decoder_leaves_the_latents_alone(tmp_path):
    vae = autoencoder.new().eval()
    frames = _portraits().frame(slice(None))
    before = denoiser.encode_frames(vae, frames)
    decoder = vae.decoder.conv_in.weight.detach().clone()
    refined = autoencoder.train(_portraits(), tmp_path, budget_s=0.5, recogniser=None, device="cpu", refine=vae)
    assert torch.equal(before, denoiser.encode_frames(refined, frames))
    assert not torch.equal(decoder, refined.decoder.conv_in.weight)


def test_every_word_is_one_token_and_strangers_are_not(tmp_path):
    tokenizer = denoiser.write_tokenizer(tmp_path)
    for word in (*denoiser.WORDS, denoiser.SUBJECT):
        assert len(tokenizer.tokenize(word)) == 1, word
    assert len(tokenizer.tokenize("spaceship")) > 1


def test_vectors_are_added_at_the_placeholders_only(tmp_path):
    tokenizer = denoiser.write_tokenizer(tmp_path)
    encoder = denoiser.new_text_encoder(tokenizer).eval()
    ids = tokenizer(
        ["portrait of <subject> <subject> man"], padding="max_length", max_length=32, return_tensors="pt"
    ).input_ids
    places = ids == tokenizer.convert_tokens_to_ids("<subject>")
    vectors = torch.ones(1, 2, denoiser.TEXT_DIM) * torch.tensor([1.0, 2.0])[None, :, None]
    table = encoder.get_input_embeddings()
    plain = table(ids)
    with denoiser.added_at(encoder, places, vectors):
        added = table(ids) - plain
    assert torch.equal(added[~places], torch.zeros_like(added[~places]))
    assert torch.allclose(added[places].mean(1), torch.tensor([1.0, 2.0]), atol=1e-5)
    assert torch.equal(table(ids), plain)  # and nothing stays


def test_captions_drop_parts_but_never_invent_them():
    rng = np.random.default_rng(0)
    words = "elderly|grey background|black jacket"
    told = [denoiser.caption(rng, "woman", words) for _ in range(400)]
    parts = {part for text, _ in told for part in text.split(", ")[1:]}
    assert parts == set(words.split("|"))
    assert all(denoiser.SUBJECT in text for text, filled in told if filled)
    assert 0.05 < np.mean([text == "" for text, _ in told]) < 0.16
    assert 0.5 < np.mean([filled for _, filled in told]) < 0.68


def test_the_latent_recogniser_finds_whose_latents_these_are_and_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "EPOCHS", 4)
    generator = torch.Generator().manual_seed(0)
    descriptors = torch.randn(60, 128, generator=generator)
    draw = torch.randn(128, 4 * 16 * 16, generator=generator) / 128**0.5
    latents = (descriptors @ draw).view(60, 4, 16, 16).repeat_interleave(20, 0)
    latents = latents + 0.2 * torch.randn(latents.shape, generator=generator)
    net = identity.train(
        latents, descriptors.repeat_interleave(20, 0), tmp_path, key={"vae": [1.0, 2.0], "frames": 1200}
    )
    ranks = identity.ranks(net, latents[::20], descriptors, np.arange(60))
    assert np.median(ranks) <= 3  # 30 by chance
    rounded = {"vae": [1.0 + 1e-6, 2.0], "frames": 1200}  # as another thread count sums them
    again = identity.train(latents, -descriptors.repeat_interleave(20, 0), tmp_path, key=rounded)
    assert torch.equal(net(latents[:4]), again(latents[:4]))
    assert not identity.same_latents(rounded, {"vae": [1.1, 2.0], "frames": 1200})
    assert not identity.same_latents(rounded, {"vae": [1.0], "frames": 1200})
    assert not identity.same_latents({}, rounded) and not identity.same_latents(rounded, rounded | {"frames": 7})


def test_the_denoiser_resumes_from_its_checkpoint(tmp_path, monkeypatch):
    from pipelines.training.checkpoints import load_tensors

    monkeypatch.setattr(identity, "EPOCHS", 1)
    monkeypatch.setattr(denoiser, "BATCH", 2)
    portraits = _portraits()
    made = variants.Variants(
        portraits.frame(slice(None)),
        portraits.descriptors,
        np.arange(6),
        portraits.gender,
        np.array(["grey background"] * 6),
    )
    vae = autoencoder.new().eval()
    denoiser.train(vae, made, tmp_path, budget_s=0.1, device="cpu")
    first = load_tensors(tmp_path / "denoiser.safetensors")[1]
    denoiser.train(vae, made, tmp_path, budget_s=first["spent_s"] + 0.1, device="cpu")
    second = load_tensors(tmp_path / "denoiser.safetensors")[1]
    assert second["step"] > first["step"] >= 1
    model, tokenizer = denoiser.averaged(tmp_path, 16)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters()) and len(tokenizer) > 500


def test_variants_carry_measured_words_and_new_identities():
    """With the real portraits: a swapped face is another person to dlib, a recoloured one the same."""
    from pathlib import Path

    folder = Path(__file__).resolve().parents[2] / "shared" / "data" / "portraits"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/portraits")
    import csv

    from PIL import Image

    from pipelines.faces.dlib_faces import dlib_detect
    from pipelines.faces.face import PORTRAIT_EYES_MID, align_by_eyes

    rows = [r for r in csv.DictReader((folder / "portraits.csv").open()) if r["grey"] == "0"][:5]
    mid = tuple(c + data.MARGIN_PX for c in PORTRAIT_EYES_MID)
    crops = []
    for row in rows:
        image = np.array(Image.open(folder / row["file"]).convert("RGB"))
        crops.append(align_by_eyes(image, dlib_detect(image)[0].eyes, size_px=data.PACKED_PX, midpoint=mid))
    portraits = data.Portraits(
        np.stack(crops),
        np.zeros((5, 128), np.float32),
        np.array(["man"] * 5),
        np.array([int(r["birth_year"]) for r in rows]),
        np.zeros(5, bool),
        np.zeros(5, bool),
    )
    made = variants.make(portraits, per_portrait=4)
    assert made.frames.shape == (20, 128, 128, 3)
    kept = [np.linalg.norm(made.descriptors[4 * i] - made.descriptors[4 * i + 1]) for i in range(5)]
    swapped = [np.linalg.norm(made.descriptors[4 * i] - made.descriptors[4 * i + 3]) for i in range(5)]
    assert np.median(kept) < 0.4 < np.median(swapped)
    assert all("background" in words or "black and white" in words for words in made.words)
