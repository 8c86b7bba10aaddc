"""Laws of zero-shot: nothing trains, no file of the base changes, and stock diffusers draws the same picture."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipelines.bases.registry import BASES
from pipelines.core.records import METHOD_ROWS, UserError
from pipelines.methods import method
from pipelines.methods.textual_inversion import TOKEN, zero_shot_rows
from pipelines.runs.jobspec import JobSpec
from tests.methods.test_methods import picture, stock, stock_picture
from tests.tiny import tiny_family, tiny_folder, tiny_recipe

FACE = np.random.default_rng(0).normal(size=128).astype(np.float32)
ZERO_SHOT = method("zero_shot")
RECIPE = tiny_recipe("portrait", "zero_shot")


class OneFace:
    def descriptor(self):
        return FACE


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero_shot")
    artifact = ZERO_SHOT.encode(tiny_family("portrait"), folder, OneFace())
    assert artifact.file == "learned_embeds.safetensors" and artifact.learned == (artifact.file,)
    return folder


def prompt():
    return f"portrait of {ZERO_SHOT.phrase(tiny_family('portrait').row, RECIPE)}, grey background"


def test_it_trains_nothing_and_is_offered_where_a_base_takes_a_face():
    assert METHOD_ROWS["zero_shot"].learns == ()
    assert [name for name, row in BASES.items() if row.face_encoder] == ["portrait-128"]
    assert [name for name, row in BASES.items() if row.face_adapter] == ["sd15", "sdxl"]
    assert tiny_family("portrait").row.compared[0] == "zero_shot"
    with pytest.raises(UserError, match="Nothing of this method trains"):
        ZERO_SHOT.learner(tiny_family("portrait"), RECIPE)


def test_stock_diffusers_draws_the_same_picture_from_its_file(encoded):
    family = tiny_family("portrait")
    ours = picture(family, ZERO_SHOT.apply(family, encoded, RECIPE), prompt())
    pipeline = stock("portrait")
    pipeline.load_textual_inversion(str(encoded / "learned_embeds.safetensors"), token=TOKEN)
    # diffusers expands the token to all of its vectors
    theirs = stock_picture(family, pipeline, f"portrait of {TOKEN} man, grey background")
    assert np.abs(ours - theirs).max() <= 1.0
    other = picture(family, family.shared(), "portrait of man, grey background")
    assert np.abs(ours - other).max() > 1.0


def test_the_dial_goes_from_nobody_to_the_person_and_beyond(encoded):
    family = tiny_family("portrait")
    (saved,) = load_file(str(encoded / "learned_embeds.safetensors")).values()
    neutral = zero_shot_rows(family, None)
    for strength in (0.0, 0.5, 1.0, 1.5):
        modules = ZERO_SHOT.apply(family, encoded, RECIPE, strength=strength)
        (rows,) = modules.text.learned.rows
        assert torch.allclose(rows, neutral + strength * (saved - neutral), atol=1e-6)


def test_no_file_of_the_base_and_no_tensor_of_it_changes(encoded, tmp_path):
    family, folder = tiny_family("portrait"), tiny_folder("portrait")

    def state():
        files = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}
        return files, [t.double().sum().item() for t in family.shared().unet.state_dict().values()]

    before = state()
    ZERO_SHOT.encode(family, tmp_path, OneFace())
    picture(family, ZERO_SHOT.apply(family, tmp_path, RECIPE), prompt())
    assert state() == before


def test_a_base_without_its_adapter_says_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match="Get it with: hf download h94/IP-Adapter models/ip-adapter-plus-face_sd15"):
        ZERO_SHOT.encode(tiny_family("sd15"), tmp_path, OneFace())
    assert "zero_shot" not in tiny_family("sd15").row.offered
    with pytest.raises(UserError, match="Get it with: hf download"):
        JobSpec("compare", str(tiny_folder("sd15")), methods=("zero_shot",)).check()
