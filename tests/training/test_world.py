"""Two processes that teach together learn what one does: through `accelerate launch`, on two CPUs."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from pipelines.core.records import METHODS, UserError
from pipelines.runs import jobs
from pipelines.training import world
from pipelines.training.loop import train
from pipelines.training.subjects import load_subject
from pipelines.training.world import World
from tests.runs import make_run, quick
from tests.tiny import tiny_data, tiny_family, tiny_folder, tiny_recipe
from tests.training.test_loop import batches


def test_rows_are_shared_out_and_none_is_lost():
    for size in (1, 2, 3):
        whole = list(range(8))
        shares = [whole[World(rank, size).share(8)] for rank in range(size)]
        assert sorted(sum(shares, [])) == whole and max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("name", METHODS)
def test_the_shares_losses_and_gradients_add_up_to_the_whole(name):
    changes = {"prior_weight": 0.5} if name == "dreambooth" else {}
    shape = tuple(tiny_data("portrait").frames[0].shape[:2])
    classes = {shape: torch.randn(3, *tiny_family("portrait").latent_shape())} if changes else {}
    made, learner, _ = batches("portrait", name, classes, batch=4, **changes)
    parameters = [parameter for group in learner.groups() for parameter in group.parameters]
    whole = made.loss(learner, 3)
    expected = torch.autograd.grad(whole, parameters, allow_unused=True)
    parts = [made.loss(learner, 3, World(rank, 2)) for rank in range(2)]
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), rel=1e-5)
    found = [torch.autograd.grad(part, parameters, allow_unused=True) for part in parts]
    for one, two, both in zip(*found, expected, strict=True):
        if both is not None:
            assert torch.allclose(one + two, both, rtol=1e-3, atol=1e-6)


def test_alone_nothing_is_sent():
    world = World()
    parameter = torch.nn.Parameter(torch.ones(2))
    world.add_gradients([parameter])
    assert parameter.grad is None and world.any(True) and not world.any(False)
    assert world.from_first(lambda: 7) == 7 and world.total(torch.tensor(2.0)).item() == 2
    world.wait()


def test_a_batch_must_reach_for_all(tmp_path, monkeypatch):
    recipe = tiny_recipe("portrait", "lora", batch=1)
    data, family = tiny_data("portrait"), tiny_family("portrait")
    monkeypatch.setattr(world, "current", lambda: World(0, 2))
    with pytest.raises(UserError, match="can't be shared by 2 processes"):
        list(train(recipe, data, tmp_path, family=family))


def test_one_process_needs_no_launcher(tmp_path):
    assert "accelerate" not in " ".join(world.command(1, tmp_path))
    assert "--num_processes 3" in " ".join(world.command(3, tmp_path))


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    runs, spec = {}, None
    for processes in (1, 2):
        run = make_run(tmp_path / str(processes), photos=6)
        settings = {}
        for name in METHODS:
            # fast enough that a wrong update shows in the next losses
            settings |= quick(name, steps=6, batch=4, checkpoint_every=2, learning_rate=3e-3, warmup_steps=1)
        spec = jobs.JobSpec(
            "train", str(tiny_folder("portrait")), "man", METHODS, "draft", settings=settings,
            processes=processes,
        )  # fmt: skip
        jobs.start(run, spec)
        events = list(jobs.follow(run))
        assert jobs.status(run).state == "done", run.log.read_text()[-2000:]
        runs[processes] = run, events
    for name in METHODS:
        losses = {
            k: [e.loss for e in events if e.kind == "step" and e.method == name] for k, (_, events) in runs.items()
        }
        assert len(losses[1]) == 6 and losses[2] == pytest.approx(losses[1], rel=1e-3)
        folders = [run.method(name) for run, _ in runs.values()]
        cards = [load_subject(folder) for folder in folders]
        one, two = (load_file(str(folder / card.artifact)) for folder, card in zip(folders, cards, strict=True))
        # Of the weights as a whole: AdamW's first steps are as long for a gradient near 0, whose sign rounding decides.
        first, second = (torch.cat([each[key].float().flatten() for key in one]) for each in (one, two))
        assert torch.dist(first, second) <= 0.02 * first.norm()
        assert cards[1].complete
    steps = [e.step for e in runs[2][1] if e.kind == "step" and e.method == "lora"]
    assert steps == list(range(1, 7)), "one process keeps the books"
    assert any(event.text == "2 processes teach together" for event in runs[2][1])
