"""Laws of the tool that builds the embedded base: what it folds, what it resumes, what its vocabulary holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

torch = pytest.importorskip("torch")

from tools.portrait_base import autoencoder, data, denoiser, identity, probes, variants  # noqa: E402


def _portraits(count: int = 6) -> data.Portraits:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (count, 9, 9, 3), dtype=np.uint8)
    pixels = np.repeat(np.repeat(coarse, 16, 1), 16, 2)
    assert pixels.shape[1] == data.PACKED_PX
    labels = {name: np.full(count, "") for name in data.LABELS}
    labels |= {"noun": np.array(["man", "woman"] * (count // 2)), "grey": np.full(count, "0")}
    descriptors = rng.normal(0, 0.1, (count, 128)).astype(np.float32)
    return data.Portraits(pixels, descriptors, np.arange(count) < 2, **labels)


def _variants(portraits: data.Portraits) -> variants.Variants:
    """Every portrait once, as it is, all shown alike."""
    count = len(portraits.noun)
    words, kind = np.full(count, "grey background"), np.full(count, "real")
    frames = portraits.frame(slice(None))
    chances = np.full(count, 1 / count)
    return variants.Variants(frames, portraits.descriptors, np.arange(count), portraits.noun, words, kind, chances)


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
    made = _variants(_portraits())
    autoencoder.train(_portraits(), made, tmp_path, budget_s=0.5, **options)
    first = load_tensors(tmp_path / "vae.safetensors")[1]
    autoencoder.train(_portraits(), made, tmp_path, budget_s=first["spent_s"] + 0.5, **options)
    second = load_tensors(tmp_path / "vae.safetensors")[1]
    assert second["step"] > first["step"] >= 1
    assert autoencoder.averaged(tmp_path).config.latent_channels == 16


def test_refining_the_decoder_leaves_the_latents_alone(tmp_path, monkeypatch):
    from pipelines.training.checkpoints import load_tensors

    class Judge(torch.nn.Module):
        def look(self, frames):
            return torch.nn.functional.normalize(frames.flatten(1), dim=1), [frames]

    monkeypatch.setattr(autoencoder, "IdentityNet", lambda _file: Judge())
    monkeypatch.setattr(autoencoder, "CRITIC_FROM", 0)
    vae, options = autoencoder.new().eval(), {"recogniser": tmp_path, "device": "cpu"}
    vae.save_pretrained(tmp_path / "start" / "vae")
    frames = _portraits().frame(slice(None))
    before = denoiser.encode_frames(vae, frames)
    decoder = vae.decoder.conv_in.weight.detach().clone()
    autoencoder.refine(vae, _variants(_portraits()), tmp_path, budget_s=0.5, **options)
    assert torch.equal(before, denoiser.encode_frames(vae, frames))
    assert not torch.equal(decoder, vae.decoder.conv_in.weight)
    first = load_tensors(tmp_path / "vae-decoder.safetensors")[1]
    autoencoder.refine(vae, _variants(_portraits()), tmp_path, budget_s=first["spent_s"] + 0.5, **options)
    assert load_tensors(tmp_path / "vae-decoder.safetensors")[1]["step"] > first["step"] >= 1
    refined = autoencoder.finished(tmp_path, tmp_path / "start", _portraits(), refined=True)
    plain = autoencoder.finished(tmp_path, tmp_path / "start", _portraits())
    assert torch.equal(plain.decoder.conv_in.weight, decoder)
    assert not torch.equal(refined.decoder.conv_in.weight, decoder)
    assert torch.equal(refined.encoder.conv_in.weight, vae.encoder.conv_in.weight)


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


def test_the_denoiser_resumes_and_fades_a_copy(tmp_path, monkeypatch):
    from pipelines.training.checkpoints import load_tensors

    monkeypatch.setattr(identity, "EPOCHS", 1)
    monkeypatch.setattr(denoiser, "BATCH", 2)
    made = _variants(_portraits())
    vae, trunk = autoencoder.new().eval(), tmp_path / "denoiser.safetensors"
    denoiser.train(vae, made, tmp_path, budget_s=0.1, device="cpu")
    first = load_tensors(trunk)[1]
    denoiser.train(vae, made, tmp_path, budget_s=first["spent_s"] + 0.1, device="cpu")
    second = load_tensors(trunk)[1]
    assert second["step"] > first["step"] >= 1
    kept = trunk.read_bytes()
    denoiser.train(vae, made, tmp_path, budget_s=0.1, device="cpu", identity_weight=0, fade=True)
    assert load_tensors(tmp_path / "denoiser-faded.safetensors")[1]["step"] > second["step"]
    assert trunk.read_bytes() == kept
    model, tokenizer = denoiser.averaged(tmp_path, 16)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters()) and len(tokenizer) > 500


def test_another_vocabulary_keeps_the_rows_of_the_words_it_shares(tmp_path, monkeypatch):
    base = Path(__file__).resolve().parents[1] / "models" / "portrait-128"
    facts = json.loads((base / "likeness.json").read_text())
    monkeypatch.setattr(denoiser, "WORDS", (*facts["vocabulary"], "zebra"))
    tokenizer = denoiser.write_tokenizer(tmp_path)
    model = denoiser.Model(tokenizer, 16)
    denoiser.load_exported(model, tokenizer, base)
    table = model.text_encoder.get_input_embeddings().weight
    old = load_file(base / "text_encoder" / "model.safetensors")
    known = json.loads((base / "tokenizer" / "vocab.json").read_text())
    rows = old["text_model.embeddings.token_embedding.weight"].float()
    ids = tokenizer.get_vocab()
    for word in facts["vocabulary"]:
        assert torch.equal(table[ids[f"{word}</w>"]], rows[known[f"{word}</w>"]]), word
    assert torch.equal(table[ids[denoiser.SUBJECT]], rows[-1])
    assert torch.allclose(table[ids["zebra</w>"]], rows[[known[f"{w}</w>"] for w in facts["vocabulary"]]].mean(0))


def test_nouns_are_shown_alike_and_small_groups_more_often_than_they_come():
    count = 40
    labels = {name: np.full(count, "") for name in data.LABELS}
    labels["noun"] = np.array(["man"] * 30 + ["woman"] * 10)
    labels["skin"] = np.array((["light"] * 9 + ["dark"]) * 4)
    portraits = data.Portraits(
        np.zeros((count, 1, 1, 3), np.uint8), np.zeros((count, 128)), np.zeros(count, bool), **labels
    )
    source, kind = np.repeat(np.arange(count), 2), np.tile(["real", "media"], count)
    words = np.where(kind == "media", "comic", "grey background")
    chances = variants.balanced(portraits, source, words, kind)
    assert chances.sum() == pytest.approx(1)
    share = {name: chances[portraits.noun[source] == name].sum() for name in ("man", "woman")}
    assert share["man"] == pytest.approx(share["woman"], rel=0.05)
    assert 0.15 < chances[portraits.skin[source] == "dark"].sum() < 0.3
    assert chances[kind == "real"].sum() > chances[kind == "media"].sum()


@pytest.mark.parametrize("medium", variants.MEDIA)
def test_a_medium_changes_a_frame_but_keeps_its_size(medium):
    yy, xx = np.mgrid[:128, :128]
    frame = np.stack([xx * 2, yy * 2, np.hypot(xx - 64, yy - 64) * 2], -1).clip(0, 255).astype(np.uint8)
    made = variants.MEDIA[medium](frame, np.random.default_rng(0))
    assert made.shape == frame.shape and np.isfinite(made).all()
    assert np.abs(np.clip(made, 0, 255) - frame).mean() > 5


def test_probes_tell_a_label_and_count_every_class_alike():
    rng = np.random.default_rng(0)
    labels = np.array(["1"] * 20 + ["0"] * 180 + [""] * 10)
    seen = rng.normal(0, 0.1, (210, 30)) + (labels == "1")[:, None] * np.eye(30)[0]
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    assert probes.sureness(seen, labels) > 0.9
    assert set(probes.fit(seen, labels).tell(seen)) == {"0", "1"}


def test_variants_carry_measured_words_and_new_identities():
    """With the real portraits: an exchanged face is another person to dlib, a recoloured one the same."""
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
    labels = {name: np.full(5, "") for name in data.LABELS}
    labels |= {"noun": np.full(5, "man"), "grey": np.full(5, "0"), "background": np.full(5, "plain")}
    portraits = data.Portraits(np.stack(crops), np.zeros((5, 128), np.float32), np.zeros(5, bool), **labels)
    made = variants.make(portraits, portraits, kinds=("real", "changed", "exchanged"))
    assert made.frames.shape == (15, 128, 128, 3)
    kept = [np.linalg.norm(made.descriptors[3 * i] - made.descriptors[3 * i + 1]) for i in range(5)]
    exchanged = [np.linalg.norm(made.descriptors[3 * i] - made.descriptors[3 * i + 2]) for i in range(5)]
    assert np.median(kept) < 0.4 < np.median(exchanged)
    assert all("background" in words or "black and white" in words for words in made.words)
