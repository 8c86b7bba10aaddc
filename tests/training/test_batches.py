"""Laws of masks: where heads are, what they weigh, and that nothing else of the loss changes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.core.records import Photo, UserError
from pipelines.methods import method
from pipelines.photos.framing import HEAD_ACROSS, HEAD_DOWN, crops, heads
from pipelines.training.batches import Batches, loss_masks
from pipelines.training.loop import train
from tests.tiny import tiny_data, tiny_family, tiny_recipe


def with_heads(kind, **options):
    """Tiny data with a head in the upper left quarter of every picture."""
    data = tiny_data(kind, **options)
    found = []
    for frame in data.frames:
        head = np.zeros(frame.shape[:2], np.float32)
        head[: frame.shape[0] // 2, : frame.shape[1] // 2] = 1
        found.append(head)
    return replace(data, heads=tuple(found))


def batches(kind, data, class_latents=None, name="lora", **changes):
    family, recipe = tiny_family(kind), tiny_recipe(kind, name, **changes)
    learner = method(name).learner(family, recipe)
    return Batches(family, learner, recipe, data, "ohwx man", class_latents or {}), learner, recipe


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_equal_weights_are_no_mask_to_the_bit(weight):
    plain, learner, _ = batches("sd15", tiny_data("sd15"))
    even, _, _ = batches("sd15", with_heads("sd15"), face_weight=weight, background_weight=weight)
    for step in range(3):
        assert even.at(step).masks is None
        assert torch.equal(plain.loss(learner, step), even.loss(learner, step))


def test_a_mask_has_mean_one_and_follows_its_photo_into_the_mirror():
    data = with_heads("sd15")
    masked, _, _ = batches("sd15", data, face_weight=4.0, mirror=True, batch=4)
    plain, _, _ = batches("sd15", tiny_data("sd15"), mirror=True, batch=4)
    mirrored = 0
    for step in range(4):
        rows = masked.at(step)
        assert torch.allclose(rows.masks.mean((1, 2, 3)), torch.ones(4), atol=1e-6)
        assert rows.masks.shape == (4, 1, *rows.latents.shape[-2:])
        assert torch.equal(rows.latents, plain.at(step).latents) and torch.equal(rows.noise, plain.at(step).noise)
        # which entries were mirrored is known from the random stream alone
        generator = torch.Generator().manual_seed(_seed(masked, step))
        turned = torch.rand(4, generator=generator) < 0.5
        for mask, is_turned in zip(rows.masks, turned, strict=True):
            heavy = mask[0, 0, -1] if is_turned else mask[0, 0, 0]
            light = mask[0, 0, 0] if is_turned else mask[0, 0, -1]
            assert heavy == pytest.approx(4 * float(light))
        mirrored += int(turned.sum())
    assert 0 < mirrored < 16


def _seed(each, step):
    from pipelines.core.device import derived_seed

    return derived_seed(each._recipe.seed, step, 1)


def test_with_no_weight_the_background_teaches_nothing():
    """At latents, where the loss is: what the VAE mixes into them from neighbouring pixels comes before."""
    data = with_heads("sd15")
    masked, learner, _ = batches("sd15", data, face_weight=1.0, background_weight=0.0)
    plain, _, _ = batches("sd15", tiny_data("sd15"))
    rows = masked.at(0)
    assert set(rows.masks.unique().tolist()) == {0.0, 4.0}, "a quarter of the picture counts four times"
    family = tiny_family("sd15")
    predicted = torch.zeros_like(rows.latents, requires_grad=True)

    def gradient(noise, masks):
        family.schedule.losses(
            predicted, rows.latents, noise, rows.timesteps, snr_gamma=None, mask=masks
        ).sum().backward()
        found, predicted.grad = predicted.grad, None
        return found

    other = rows.noise.clone()
    other[..., 4:, :] += 1
    other[..., :, 4:] -= 1  # another background to be predicted
    assert torch.equal(gradient(rows.noise, rows.masks), gradient(other, rows.masks))
    assert not torch.equal(gradient(rows.noise, None), gradient(other, None))
    assert not gradient(rows.noise, rows.masks)[..., 4:, :].any()
    assert not torch.equal(masked.loss(learner, 0), plain.loss(learner, 0))


def test_class_images_are_not_masked():
    latents = {(64, 64): torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))}
    masked, _, _ = batches("sd15", with_heads("sd15"), latents, face_weight=5.0, prior_weight=0.5, batch=4)
    rows = masked.at(1)
    assert rows.masks.shape[0] == 6 and torch.equal(rows.masks[4:], torch.ones(2, 1, 8, 8))
    assert not torch.equal(rows.masks[:4], torch.ones(4, 1, 8, 8))


def test_a_photo_without_a_head_in_view_still_teaches():
    recipe = tiny_recipe("sd15", "lora", background_weight=0.0)
    masks = loss_masks(np.zeros((1, 64, 64), np.float32), (8, 8), recipe)
    assert torch.equal(masks, torch.ones(1, 1, 8, 8))


def test_weighing_faces_nobody_found_is_refused(tmp_path):
    recipe, family = tiny_recipe("sd15", "lora", face_weight=3.0), tiny_family("sd15")
    with pytest.raises(UserError, match="Nobody knows where the faces are"):
        list(train(recipe, tiny_data("sd15"), tmp_path, family=family))


@pytest.mark.parametrize("kind", ["portrait", "sd15", "sdxl"])
def test_masked_training_is_done_and_learns_something_else(kind, tmp_path):
    from pipelines.training.subjects import load_subject

    family = tiny_family(kind)
    for name, changes in (("plain", {}), ("masked", {"face_weight": 4.0, "background_weight": 0.5})):
        recipe = tiny_recipe(kind, "lora", steps=2, mirror=True, **changes)
        events = list(train(recipe, with_heads(kind), tmp_path / name, family=family))
        assert events[-1].kind == "done"
    assert load_subject(tmp_path / "plain").sha256 != load_subject(tmp_path / "masked").sha256


@pytest.mark.parametrize("tilt", [0.0, 0.35])
@pytest.mark.parametrize("kind", ["portrait", "sd15", "sdxl"])
def test_heads_lie_where_the_crops_show_them(kind, tilt, tmp_path):
    """A white oval is painted around the eyes of a black photo: the mask must find it in what training sees."""
    import cv2

    apart, middle = 60.0, (230.0, 300.0)
    axes = (round(HEAD_ACROSS * apart), round(HEAD_DOWN * apart))
    image = cv2.ellipse(np.zeros((700, 520, 3), np.uint8), (230, 300), axes, math.degrees(tilt), 0, 360, (255,) * 3, -1)
    Image.fromarray(image).save(tmp_path / "a.png")
    reach = np.array([math.cos(tilt), math.sin(tilt)]) * apart / 2
    eyes = (tuple(np.array(middle) - reach), tuple(np.array(middle) + reach))
    box = (230 - 70.0, 250.0, 230 + 70.0, 400.0)
    photo = Photo("a.png", str(tmp_path / "a.png"), "0", 520, 700, box, eyes, apart)
    row = tiny_family(kind).row
    if kind == "sdxl":
        row = replace(row, buckets=((64, 64), (80, 48)))
    for zoom in (1.0, 1.2):
        seen = replace(photo, zoom=zoom)
        (frame,), (head,) = crops([seen], row), heads([seen], row)
        assert head.shape == frame.shape[:2] and head.dtype == np.float32
        painted, found = frame[..., 0] > 127, head > 0.5
        assert (painted & found).sum() / (painted | found).sum() > 0.9
        assert head.min() >= 0 and head.max() == 1
