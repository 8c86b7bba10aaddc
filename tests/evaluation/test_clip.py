"""Laws of CLIP-T: unit vectors, the right text, the person's token never asked about, a sentence where it is absent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.core.records import UserError
from pipelines.evaluation.clip import CLIP_ENV, ClipText, rank
from pipelines.runs.compare import compare
from tests.tiny import make_tokenizer, tiny_folder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A tiny, randomly initialised CLIP in transformers' layout."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    folder = tmp_path_factory.mktemp("tiny-clip")
    tokenizer = make_tokenizer(folder, 77, subject=False)
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
              "image_size": 32, "patch_size": 8}  # fmt: skip
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    small = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=small, tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def sample_photos(tmp_path):
    """The synthetic sample person, large enough for a 512-pixel base."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for file in sorted((ROOT / "presets" / "sample_person").glob("*.png"))[:5]:
        Image.open(file).resize((384, 384), Image.Resampling.BICUBIC).save(folder / file.name)
    return folder


def test_vectors_are_of_unit_length_and_depend_on_what_is_shown_and_asked(clip_folder):
    clip = ClipText(clip_folder)
    texts = clip.texts(["portrait of man", "portrait of woman, grey background", "man " * 200])
    images = clip.images([np.zeros((40, 50, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)])
    for vectors in (texts, images):
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert not np.allclose(texts[0], texts[1], atol=1e-3) and not np.allclose(images[0], images[1], atol=1e-3)
    assert texts.shape[1] == images.shape[1] == 16 and clip.name == clip_folder.name


def test_a_rank_counts_prompts_that_fit_less_well():
    assert rank(np.array([0.3, 0.2, 0.1]), 0) == 1.0
    assert rank(np.array([0.3, 0.2, 0.1]), 1) == 0.5
    assert rank(np.array([0.3, 0.3]), 0) == 0.5
    assert rank(np.array([0.3]), 0) is None


def test_an_absent_clip_is_a_sentence_with_the_command(monkeypatch, tmp_path):
    monkeypatch.delenv(CLIP_ENV, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="hf download openai/clip-vit-large-patch14 --revision 32bd6428"):
        ClipText()
    with pytest.raises(UserError, match="holds no CLIP model"):
        ClipText(tmp_path)


def test_a_comparison_on_a_base_that_knows_all_words_reports_clip_t(clip_folder, monkeypatch, tmp_path, sample_photos):
    asked: list[str] = []
    texts = ClipText.texts

    def listening(self, prompts):
        asked.extend(prompts)
        return texts(self, prompts)

    monkeypatch.setenv(CLIP_ENV, str(clip_folder))
    monkeypatch.setenv("LIKENESS_FACE_MODELS", str(tmp_path / "no-packs"))
    monkeypatch.setattr(ClipText, "texts", listening)
    prompts = ("portrait of {subject}", "portrait of {subject}, grey background")
    events = list(
        compare(sample_photos, class_word="man", methods=["lora"], base=str(tiny_folder("sd15")), prompts=prompts,
                renders=2, out=tmp_path / "run", settings={"lora": {"steps": 1, "batch": 1}})
    )  # fmt: skip
    assert events[-1].kind == "done"
    assert asked == ["portrait of man", "portrait of man, grey background"], "CLIP is never asked about the token"
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["clip"] == clip_folder.name and -1 <= report["methods"]["lora"]["clip_t"] <= 1
    assert "clip_t" in (tmp_path / "run" / "cells.csv").read_text().splitlines()[0]
    assert f"CLIP-T by {clip_folder.name}" in (tmp_path / "run" / "report.html").read_text()
