"""Laws of the optimizers: the usual one is what it always was, the others say what they miss and resume to the bit."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from pipelines import optimizers
from pipelines.checkpoints import load_optimizer, optimizer_tensors
from pipelines.methods.base import Group
from pipelines.runtime import Device
from pipelines.schema import OPTIMIZERS, UserError
from pipelines.training import load_subject, train
from tests.test_training import learned, losses
from tests.tiny import tiny_data, tiny_family, tiny_recipe

CPU, CUDA = Device("cpu", "float32", "test"), Device("cuda", "bfloat16", "test")


def groups():
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.nn.Parameter(torch.randn(4, 3, generator=generator)) for _ in range(2))
    return [Group((one,), 1e-2, 0.1), Group((other, torch.nn.Parameter(torch.zeros(2))), 1e-3, 0.0, until=0.5)]


def test_rates_follow_the_schedule_and_end_with_their_group():
    first, second = groups()
    assert optimizers.rate("adamw", first, 0.5, 0.9) == 0.5 * 1e-2
    assert optimizers.rate("adamw", second, 0.5, 0.49) == 0.5 * 1e-3
    assert optimizers.rate("adamw", second, 0.5, 0.5) == 0.0
    assert optimizers.rate("prodigy", first, 0.5, 0.1) == optimizers.rate("prodigy", second, 0.5, 0.1) == 0.5
    assert optimizers.rate("prodigy", second, 0.5, 0.5) == 0.0


def test_what_is_missing_is_said(monkeypatch):
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        optimizers.make("adamw8bit", groups(), CPU)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(UserError, match="bitsandbytes, which is not installed.*requirements-gpu"):
        optimizers.make("adamw8bit", groups(), CUDA)
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(UserError, match="prodigyopt, which is not installed.*pip install prodigyopt"):
        optimizers.make("prodigy", groups(), CPU)
    with pytest.raises(UserError, match="no optimizer sgd.*adamw, adamw8bit, prodigy"):
        optimizers.make("sgd", groups(), CPU)


def test_eight_bits_get_the_groups_as_they_are(monkeypatch):
    got = {}

    class AdamW8bit(torch.optim.AdamW):
        def __init__(self, parts, betas):
            got["parts"] = [(part["lr"], part["weight_decay"], len(part["params"])) for part in parts]
            super().__init__(parts, betas=betas)

    module = types.ModuleType("bitsandbytes.optim")
    module.AdamW8bit = AdamW8bit
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", module)
    assert isinstance(optimizers.make("adamw8bit", groups(), CUDA), AdamW8bit)
    assert got["parts"] == [(1e-2, 0.1, 1), (1e-3, 0.0, 2)]


@pytest.mark.parametrize("name", ["adamw", "prodigy"])
def test_a_saved_optimizer_goes_on_as_if_nothing_had_happened(name):
    def walk(parts, optimizer, steps):
        for step in steps:
            for part in parts:
                for parameter in part.parameters:
                    parameter.grad = parameter.detach() - 3 + 0.1 * step % 2
            optimizer.step()

    whole, first, second = groups(), groups(), groups()
    straight, before = optimizers.make(name, whole, CPU), optimizers.make(name, first, CPU)
    walk(whole, straight, range(60))
    walk(first, before, range(30))
    saved = {key: value.clone() for key, value in optimizer_tensors(before).items()}
    with torch.no_grad():
        for part, other in zip(second, first, strict=True):
            for parameter, value in zip(part.parameters, other.parameters, strict=True):
                parameter.copy_(value)
    again = optimizers.make(name, second, CPU)
    load_optimizer(again, saved)
    walk(second, again, range(30, 60))
    for part, other in zip(whole, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(part.parameters, other.parameters, strict=True))
    if name == "prodigy":
        assert again.param_groups[0]["d"] == straight.param_groups[0]["d"] > 1e-6, "it found a rate of its own"
        assert isinstance(again.param_groups[0]["k"], int)


@pytest.mark.parametrize("name", ["lora", "pivotal"])
def test_prodigy_resumes_bit_equal(name, tmp_path):
    changes = {"text_learning_rate": 1e-4, "freeze_vectors_after": 0.6, "ema": 0.9}
    recipe = tiny_recipe("sd15", name, steps=5, checkpoint_every=2, optimizer="prodigy", **changes)
    data, family = tiny_data("sd15"), tiny_family("sd15")
    whole = list(train(recipe, data, tmp_path / "whole", photo_digest="d", family=family))
    killed = train(recipe, data, tmp_path / "killed", photo_digest="d", family=family)
    for event in killed:
        if event.kind == "step" and event.step == 3:
            break
    killed.close()
    second = list(train(recipe, data, tmp_path / "killed", photo_digest="d", family=family))
    assert second[0].step == 2 and losses(second) == losses(whole)[2:]
    expected, _ = learned(tmp_path / "whole")
    tensors, subject = learned(tmp_path / "killed")
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)
    assert subject.sha256 == load_subject(tmp_path / "whole").sha256
    plain = list(train(recipe.replaced(optimizer="adamw"), data, tmp_path / "adamw", photo_digest="d", family=family))
    assert losses(plain)[-1] != losses(whole)[-1]


def test_every_name_is_known_to_the_arithmetic_of_memory():
    from pipelines.estimates import BYTES

    assert set(BYTES) == set(OPTIMIZERS)
