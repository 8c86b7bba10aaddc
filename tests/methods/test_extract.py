"""DreamBooth as a LoRA: what it misses is stated, and at full rank nothing is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from pipelines.bases.family import Modules
from pipelines.bases.loading import load_family
from pipelines.core.device import Device
from pipelines.core.records import Subject, UserError
from pipelines.methods import extract, lora_files, method
from tests.methods.test_methods import KINDS, disturbed, picture, stock, stock_picture
from tests.tiny import tiny_family, tiny_recipe

PHRASE = "portrait of man, navy background"


def learned(kind, folder, *, all_of_it=False):
    """A DreamBooth whose change lies in matrices and kernels alone, unless `all_of_it`."""
    family = tiny_family(kind)
    recipe = tiny_recipe(kind, "dreambooth", text_learning_rate=1e-3)
    learner = disturbed(method("dreambooth").learner(family, recipe))
    if not all_of_it:
        clean = Modules(family.new_unet(trainable=True), family.new_text())
        pairs = [(learner.modules.unet, clean.unet)]
        pairs += list(zip(learner.modules.text.encoders, clean.text.encoders, strict=True))
        with torch.no_grad():
            for now, before in pairs:
                for (name, one), other in zip(now.named_parameters(), before.parameters(), strict=True):
                    if one.ndim not in (2, 4) or "embedding.weight" in name or "text_projection" in name:
                        one.copy_(other)
    learner.export(folder)
    subject = Subject(
        "x", "dreambooth", family.row.name, None, "man", "ohwx man", recipe, "", "", "", 1, 1.0, None, 1, 1
    )  # fmt: skip
    return family, recipe, subject


@pytest.mark.parametrize("kind", KINDS)
def test_at_full_rank_it_draws_what_dreambooth_draws(kind, tmp_path):
    family, recipe, subject = learned(kind, tmp_path)
    found = extract.extract(family, tmp_path, subject, rank=4096)
    assert found.error < 1e-3 and max(found.errors.values()) < 1e-3  # float16's rounding
    assert found.left_out < 0.01
    files = extract.write(found, tmp_path / "small.safetensors", family, subject.phrase)
    whole = picture(family, method("dreambooth").apply(family, tmp_path, recipe), PHRASE)
    effect = np.abs(whole - picture(family, family.shared(), PHRASE)).mean()
    drawn = []
    for file in files:
        pipeline = stock(kind)
        pipeline.load_lora_weights(tmp_path, weight_name=file.name)
        drawn.append(stock_picture(family, pipeline, PHRASE))
    assert effect > 0.5 and np.abs(drawn[0] - whole).mean() < 0.02 * effect + 0.3
    assert np.abs(drawn[0] - drawn[1]).max() < 1
    kernels = [layer for layer in found.layers.values() if layer.down.ndim == 4]
    assert kernels and all(layer.up.shape[2:] == (1, 1) for layer in kernels)


def test_more_rank_misses_less_and_the_file_says_how_much(tmp_path):
    family, _, subject = learned("sd15", tmp_path)
    coarse, fine = (extract.extract(family, tmp_path, subject, rank=rank) for rank in (2, 8))
    assert coarse.ranks == fine.ranks[:0] + (2, 2) and 0 < fine.error < coarse.error < 1
    assert all(fine.errors[path] <= coarse.errors[path] + 1e-6 for path in fine.errors)
    file, beside = extract.write(coarse, tmp_path / "coarse.safetensors", family, subject.phrase)
    for one in (file, beside):
        with safe_open(str(one), framework="pt") as opened:
            said = opened.metadata()
        assert float(said["likeness.error"]) == pytest.approx(coarse.error, abs=1e-6)
        assert json.loads(said["likeness.layer_errors"]).keys() == coarse.errors.keys()
    # measured anew, from the numbers in the file
    layout = lora_files.layout_of(family.shared(), family)
    with safe_open(str(file), framework="pt") as opened:
        layers = lora_files.from_kohya({name: opened.get_tensor(name) for name in opened.keys()}, layout)  # noqa: SIM118
    changes = dict(extract._changes(family, method("dreambooth").apply(family, tmp_path, subject.recipe)))
    for path in list(layers)[::7]:
        left = (changes[path] - layers[path].change(changes[path].shape)).norm() / changes[path].norm()
        assert float(left) == pytest.approx(coarse.errors[path], abs=1e-4)


def test_an_error_is_kept_with_the_smallest_rank(tmp_path):
    family, _, subject = learned("portrait", tmp_path)
    found = extract.extract(family, tmp_path, subject, error=0.3)
    assert max(found.errors.values()) <= 0.3 + 1e-3 and found.ranks[0] < found.ranks[1]
    path, layer = max(found.layers.items(), key=lambda item: item[1].rank)
    changes = dict(extract._changes(family, method("dreambooth").apply(family, tmp_path, subject.recipe)))
    values = torch.linalg.svdvals(changes[path].flatten(1))
    assert float(values[layer.rank - 1 :].norm() / values.norm()) > 0.3  # one less would not do


def test_a_randomized_decomposition_is_nearly_the_best_one():
    torch.manual_seed(0)
    change = torch.randn(400, 60) @ torch.randn(60, 300) / 60 + 0.02 * torch.randn(400, 300)
    rank = 40
    assert min(change.shape) > extract.RANDOMIZED_FROM * rank
    layer = extract._decomposed(change, rank, None)
    values = torch.linalg.svdvals(change)
    best = float(values[rank:].norm())
    assert float((change - layer.change(change.shape)).norm()) < 1.01 * best


def test_biases_and_norms_are_said_to_be_left_out(tmp_path):
    family, _, subject = learned("sd15", tmp_path, all_of_it=True)
    assert extract.extract(family, tmp_path, subject, rank=4096).left_out > 0.1


@pytest.mark.parametrize("asked", [{}, {"rank": 4, "error": 0.1}, {"rank": 0}, {"error": 1.5}, {"error": float("nan")}])
def test_impossible_requests_are_refused(asked, tmp_path):
    family, _, subject = learned("portrait", tmp_path)
    with pytest.raises(UserError):
        extract.extract(family, tmp_path, subject, **asked)


def test_a_dreambooth_that_learned_nothing_is_said_so(tmp_path):
    family = tiny_family("portrait")
    recipe = tiny_recipe("portrait", "dreambooth")
    method("dreambooth").learner(family, recipe).export(tmp_path)
    subject = Subject("x", "dreambooth", family.row.name, None, "man", "man", recipe, "", "", "", 1, 1.0, None, 1, 1)
    change = dict(extract._changes(family, method("dreambooth").apply(family, tmp_path, recipe)))
    if any(float(each.abs().max()) for each in change.values()):  # float16 on disk rounds a float32 base
        assert extract.extract(family, tmp_path, subject, rank=1).errors
    else:
        with pytest.raises(UserError, match="nothing to extract"):
            extract.extract(family, tmp_path, subject, rank=1)


def test_what_the_compute_format_would_round_away_is_not_lost(tmp_path):
    """On a GPU weights are drawn with in bfloat16, whose two digits a short training hardly changes."""
    family, _, subject = learned("sd15", tmp_path)
    exact = extract.extract(family, tmp_path, subject, rank=4)
    coarse = load_family(family.row, Device("cpu", "bfloat16", "as on a GPU"))
    assert next(coarse.new_unet(trainable=False).parameters()).dtype == torch.bfloat16
    found = extract.extract(coarse, tmp_path, subject, rank=4)
    assert found.errors == exact.errors and found.left_out == exact.left_out
    for path, layer in exact.layers.items():
        assert torch.equal(layer.up, found.layers[path].up) and torch.equal(layer.down, found.layers[path].down)
