"""Laws of the optimizers: the usual one is what it always was, the others say what they miss and resume to the bit."""

from __future__ import annotations

import sys
import types
from collections import defaultdict

import pytest
import torch

from pipelines.core.device import Device
from pipelines.core.records import OPTIMIZERS, UserError
from pipelines.methods.base import Group
from pipelines.training import optimizers
from pipelines.training.checkpoints import load_optimizer, load_tensors, optimizer_tensors, save_tensors
from pipelines.training.loop import train
from pipelines.training.subjects import load_subject
from tests.cases import quick_are
from tests.tiny import tiny_data, tiny_family, tiny_recipe
from tests.training.test_loop import learned, losses

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


class StandIn(torch.optim.Optimizer):
    """As bitsandbytes' AdamW8bit (0.50, optim/optimizer.py) keeps its state: large parameters in blocks of 256 numbers
    with one byte each, small ones in float32, and all of it one dictionary deeper in `state_dict`.
    """

    WRAPPED = "__bnb_optimizer_quant_state__"
    BLOCK, LARGE = 256, 4096

    def __init__(self, parts, betas):
        super().__init__(parts, {"betas": betas, "eps": 1e-8})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                self._update(group, parameter, self.state[parameter])

    def _update(self, group, parameter, state):
        if not state:
            large = parameter.numel() >= self.LARGE
            state["step"] = 0
            for name in ("1", "2"):
                state[f"state{name}"] = torch.zeros_like(parameter, dtype=torch.uint8 if large else torch.float32)
                if large:
                    state[f"qmap{name}"] = torch.linspace(-1.0 if name == "1" else 0.0, 1.0, 256)
                    state[f"absmax{name}"] = torch.zeros(-(-parameter.numel() // self.BLOCK))
        assert isinstance(state["step"], int), "handed to C"
        state["step"] += 1
        parameter.data, grad = parameter.data.contiguous(), parameter.grad.contiguous()
        flat, moments = parameter.data.view(-1), []
        for name, beta, power in zip("12", group["betas"], (1, 2)):
            moment = beta * self._read(state, name) + (1 - beta) * grad.view(-1) ** power
            self._write(state, name, moment)
            moments.append(moment / (1 - beta ** state["step"]))
        flat.mul_(1 - group["lr"] * group["weight_decay"])
        flat.sub_(group["lr"] * moments[0] / (moments[1].sqrt() + group["eps"]))

    def _read(self, state, name):
        """The numbers as they lie in memory: the real one walks there too, whatever the strides say."""
        kept = state[f"state{name}"]
        assert kept.dtype in (torch.uint8, torch.float32)
        lying = kept.as_strided((kept.numel(),), (1,))
        if kept.dtype == torch.float32:
            return lying
        sizes = state[f"absmax{name}"].repeat_interleave(self.BLOCK)[: kept.numel()]
        return state[f"qmap{name}"][lying.long()] * sizes

    def _write(self, state, name, moment):
        kept = state[f"state{name}"]
        lying = kept.as_strided((kept.numel(),), (1,))
        if kept.dtype == torch.float32:
            lying.copy_(moment)
            return
        blocks = torch.nn.functional.pad(moment, (0, -len(moment) % self.BLOCK)).view(-1, self.BLOCK)
        state[f"absmax{name}"] = blocks.abs().amax(1)
        shares = (blocks / state[f"absmax{name}"].clamp(min=1e-30)[:, None]).view(-1)[: len(moment)]
        lying.copy_(torch.bucketize(shares, state[f"qmap{name}"]).clamp(max=255))

    def state_dict(self):
        saved = super().state_dict()
        saved["state"] = {
            index: {"step": entry["step"], self.WRAPPED: {k: v for k, v in entry.items() if k != "step"}}
            for index, entry in saved["state"].items()
        }
        return saved

    def load_state_dict(self, saved):
        state = {}
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, entry in saved["state"].items():
            entry = dict(entry)
            state[parameters[index]] = entry | entry.pop(self.WRAPPED, {})
        for group, before in zip(self.param_groups, saved["param_groups"], strict=True):
            group |= {name: value for name, value in before.items() if name != "params"}
        self.state = defaultdict(dict, state)


@pytest.fixture(params=["bitsandbytes", "a stand-in"])
def eight_bits(request, monkeypatch):
    """The real class where it is installed, and one that keeps its state as the real one does."""
    if request.param == "bitsandbytes":
        return pytest.importorskip("bitsandbytes.optim", exc_type=ImportError).AdamW8bit
    module = types.ModuleType("bitsandbytes.optim")
    module.AdamW8bit = StandIn
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", module)
    return StandIn


def test_eight_bits_get_the_groups_as_they_are(eight_bits):
    optimizer = optimizers.make("adamw8bit", groups(), CUDA)
    assert isinstance(optimizer, eight_bits)
    got = [(part["lr"], part["weight_decay"], len(part["params"])) for part in optimizer.param_groups]
    assert got == [(1e-2, 0.1, 1), (1e-3, 0.0, 2)]
    assert {tuple(part["betas"]) for part in optimizer.param_groups} == {optimizers.BETAS}


def test_eight_bits_go_on_as_if_nothing_had_happened(eight_bits, tmp_path):
    """Through a checkpoint's file. A kernel in channels_last is the hard one: its moments lie in memory as it did."""

    def learned():
        generator = torch.Generator().manual_seed(0)
        shapes = (64, 128), (16, 32, 3, 3), (7,)
        matrix, kernel, few = (torch.randn(shape, generator=generator) for shape in shapes)
        kernel = kernel.contiguous(memory_format=torch.channels_last)
        return [Group(tuple(map(torch.nn.Parameter, (matrix, kernel, few))), 1e-2, 0.1)]

    def walk(parts, optimizer, steps):
        for step in steps:
            for parameter in parts[0].parameters:
                generator = torch.Generator().manual_seed(step)
                parameter.grad = parameter.detach() - 3 + torch.randn(parameter.shape, generator=generator)
            optimizer.step()

    whole, first, second = learned(), learned(), learned()
    straight, before, again = (optimizers.make("adamw8bit", parts, CUDA) for parts in (whole, first, second))
    walk(whole, straight, range(12))
    walk(first, before, range(6))
    kinds = {entry["state1"].dtype for entry in before.state.values()}
    assert kinds == {torch.uint8, torch.float32}
    save_tensors(tmp_path / "checkpoint.safetensors", optimizer_tensors(before))
    with torch.no_grad():
        for parameter, value in zip(second[0].parameters, first[0].parameters, strict=True):
            parameter.copy_(value)
    load_optimizer(again, load_tensors(tmp_path / "checkpoint.safetensors")[0])
    assert all(entry["state1"].dtype in kinds and entry["step"] == 6 for entry in again.state.values())
    walk(second, again, range(6, 12))
    assert all(map(torch.equal, whole[0].parameters, second[0].parameters))
    assert not torch.equal(whole[0].parameters[0], first[0].parameters[0])


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


@pytest.mark.parametrize("name", quick_are(["lora", "pivotal"], "lora"))
def test_prodigy_resumes_bit_equal(name, tmp_path):
    changes = {"text_learning_rate": 1e-4, "freeze_vectors_after": 0.6, "ema": 0.9}
    recipe = tiny_recipe("sd15", name, steps=5, checkpoint_every=2, optimizer="prodigy", **changes)
    data, family = tiny_data("sd15"), tiny_family("sd15")
    whole = list(train(recipe, data, tmp_path / "whole", family=family))
    killed = train(recipe, data, tmp_path / "killed", family=family)
    for event in killed:
        if event.kind == "step" and event.step == 3:
            break
    killed.close()
    second = list(train(recipe, data, tmp_path / "killed", family=family))
    assert second[0].step == 2 and losses(second) == losses(whole)[2:]
    expected, _ = learned(tmp_path / "whole")
    tensors, subject = learned(tmp_path / "killed")
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)
    assert subject.sha256 == load_subject(tmp_path / "whole").sha256
    plain = list(train(recipe.replaced(optimizer="adamw"), data, tmp_path / "adamw", family=family))
    assert losses(plain)[-1] != losses(whole)[-1]


def test_every_name_is_known_to_the_arithmetic_of_memory():
    from pipelines.bases.memory import BYTES

    assert set(BYTES) == set(OPTIMIZERS)
