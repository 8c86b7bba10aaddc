"""A base, a family, a method and a style are added from outside, as docs/extend.md says, and used."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines import methods
from pipelines.bases.architectures import FAMILIES
from pipelines.bases.family import Family, Modules
from pipelines.bases.loading import load_family
from pipelines.bases.registry import BASES, find_base
from pipelines.core import presets
from pipelines.core.device import Device
from pipelines.core.records import ALL_METHODS, COLUMNS, METHOD_ROWS, METHODS, TRAINABLE, MethodRow, Sampling, title_of
from pipelines.generation.generator import Generator
from pipelines.methods.base import Artifact, Group, Learner, Method
from pipelines.training.loop import train
from pipelines.training.subjects import load_subject
from tests.tiny import tiny_data, tiny_family, tiny_folder, tiny_recipe

EXACT = Device("cpu", "float32", "exact in tests")
FILE = "outputs.safetensors"


class OnlyOutputs(Method):
    """Trains the denoiser's attention outputs and nothing else."""

    def learner(self, family, recipe, *, identity=None):
        return OutputsLearner(family, recipe)

    def apply(self, family, folder, recipe, *, strength=1.0):
        unet = family.new_unet(trainable=False)
        unet.load_state_dict(load_file(str(folder / FILE)), strict=False)
        return Modules(unet, family.text)


class OutputsLearner(Learner):
    def __init__(self, family, recipe):
        self._recipe = recipe
        self.modules = Modules(family.new_unet(trainable=False).train(), family.text)
        for tensor in self.tensors().values():
            tensor.requires_grad_(True)

    def tensors(self):
        return {name: each for name, each in self.modules.unet.named_parameters() if ".to_out.0." in name}

    def groups(self):
        return [Group(tuple(self.tensors().values()), self._recipe.learning_rate, 0.0)]

    def export(self, folder):
        save_file({name: each.detach().contiguous() for name, each in self.tensors().items()}, str(folder / FILE))
        return Artifact(FILE, (FILE,))


@pytest.fixture
def only_outputs(monkeypatch):
    monkeypatch.setattr(methods, "_CODE", dict(methods._CODE))
    methods.add(MethodRow("only_outputs", "Only outputs", learns=("weights",), usual=False), OnlyOutputs())
    yield "only_outputs"
    del METHOD_ROWS["only_outputs"]


def test_a_base_of_a_known_family_is_one_row(monkeypatch):
    like = find_base(str(tiny_folder("sd15")))
    row = dataclasses.replace(like, name="my-sd", title="My SD")
    monkeypatch.setitem(BASES, "my-sd", row)
    assert find_base("my-sd") is row and "lora" in row.offered
    generator = Generator(row, family=load_family(row, EXACT))
    ((_, image),) = generator.render([Sampling("portrait of {subject}", steps=2)], None, class_word="man")
    assert image is not None and image.size == (row.resolution_px, row.resolution_px)


class Cautious(Family):
    """A family that halves every guidance."""

    def guidance_weight(self, guidance):
        return super().guidance_weight(0.5 * guidance)


def test_a_family_is_one_class_and_its_data(monkeypatch):
    code = (__name__, "Cautious")
    monkeypatch.setitem(FAMILIES, "cautious", dataclasses.replace(FAMILIES["sd15"], code=code, prompt_guidance=5.0))
    row = dataclasses.replace(find_base(str(tiny_folder("sd15"))), family="cautious")
    family = load_family(row, EXACT)
    assert isinstance(family, Cautious) and row.guidance == 5.0 and row.own_scheduler is False
    plain = Generator(find_base(str(tiny_folder("sd15"))), family=tiny_family("sd15"))
    asked, half = (Sampling("portrait of {subject}", steps=2, guidance=weight) for weight in (6.0, 3.0))
    ((_, own),) = Generator(row, family=family).render([asked], None, class_word="man")
    ((_, same),) = plain.render([half], None, class_word="man")
    assert np.array_equal(np.asarray(own), np.asarray(same))


def test_a_method_is_one_row_and_one_class(only_outputs, tmp_path):
    assert only_outputs in ALL_METHODS and only_outputs in COLUMNS and only_outputs not in METHODS
    assert title_of(only_outputs) == "Only outputs" and only_outputs in BASES["portrait-128"].offered
    assert only_outputs not in BASES["z-image"].offered, "which can't be taught all weights"
    recipe, family, data = tiny_recipe("sd15", only_outputs), tiny_family("sd15"), tiny_data("sd15")
    events = list(train(recipe, data, tmp_path / "whole", family=family))
    assert events[-1].kind == "done"
    killed = train(recipe.replaced(checkpoint_every=2), data, tmp_path / "killed", family=family)
    for event in killed:
        if event.kind == "step" and event.step == 3:
            break
    killed.close()
    list(train(recipe.replaced(checkpoint_every=2), data, tmp_path / "killed", family=family))
    one, other = (load_subject(tmp_path / each) for each in ("whole", "killed"))
    assert one.sha256 == other.sha256, "resumed is equal to never having stopped"
    generator, asked = Generator(family.row, family=family), Sampling("portrait of {subject}", steps=2)
    ((_, image),) = generator.render([asked], tmp_path / "whole", class_word="man")
    assert image is not None
    learned = load_file(str(tmp_path / "whole" / FILE))
    plain = dict(family.shared().unet.named_parameters())
    assert any(not torch.equal(plain[name], tensor) for name, tensor in learned.items())


def test_a_method_without_a_learner_is_a_column_and_is_not_taught(monkeypatch):
    monkeypatch.setattr(methods, "_CODE", dict(methods._CODE))
    methods.add(MethodRow("quick", "Quick", learns=()), Method())
    try:
        assert "quick" in COLUMNS and "quick" in ALL_METHODS and "quick" not in TRAINABLE and "quick" not in METHODS
        for row in BASES.values():
            assert ("quick" in row.offered) == ("quick" in row.compared) == row.takes_a_face
            assert "quick" not in row.trainable and "quick" not in row.methods and "quick" not in row.usual
    finally:
        del METHOD_ROWS["quick"]


def test_a_style_is_one_file(tmp_path):
    style = {"id": "my-style", "name": "My style", "prompt": "portrait photo of {subject}, soft light"}
    (tmp_path / "my-style.json").write_text(json.dumps(style | {"bases": ["any"], "photoreal": True}))
    (found,) = presets.styles(tmp_path).values()
    assert found.id == "my-style" and presets.style_problem(found, BASES["sd15"]) is None
