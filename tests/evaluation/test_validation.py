"""Choosing: the best checkpoint by validation pictures is kept, exactly, and the held-out photos play no part."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipelines.core.records import METHODS, Look, Photo, PhotoSet, Watch
from pipelines.evaluation import validation
from pipelines.evaluation.references import Reference
from pipelines.photos.album import Album
from pipelines.training.loop import train
from pipelines.training.subjects import load_subject
from pipelines.training.watch import STRENGTHS
from tests.cases import quick_are
from tests.tiny import tiny_data, tiny_family, tiny_recipe

PROMPTS = ("portrait of {subject}", "portrait of {subject}, grey background")


class Scripted:
    """Gives the values it was told to, in turn, and counts what it was shown."""

    def __init__(self, *values: float) -> None:
        self.values, self.frames = list(values), []

    def __call__(self, frames: np.ndarray) -> Look:
        self.frames.append(frames)
        value = self.values[(len(self.frames) - 1) % len(self.values)]
        return Look(value, value, None, 0.0)

    @property
    def watch(self) -> Watch:
        return Watch("scripted", PROMPTS, self)


def run(name, out, script, **changes):
    recipe = tiny_recipe("portrait", name, checkpoint_every=2, **changes)
    family, data = tiny_family("portrait"), tiny_data("portrait")
    return list(train(recipe, data, out, family=family, watch=script.watch))


def weights(folder):
    return load_file(str(folder / load_subject(folder).artifact))


@pytest.mark.parametrize("name", quick_are(METHODS, "lora"))
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_best_checkpoint_is_kept_not_the_last(name, ema, tmp_path):
    script = Scripted(0.1, 0.5, 0.3)
    events = run(name, tmp_path / "six", script, steps=6, watch_every=2, ema=ema, warmup_steps=1)
    assert [event.step for event in events if event.kind == "watch"] == [2, 4, 6]
    assert [frames.shape[0] for frames in script.frames] == [2, 2, 2], "one picture per prompt"
    assert not np.array_equal(script.frames[0], script.frames[2]), "looks see what was learned since"
    saved = json.loads((tmp_path / "six" / "watch.json").read_text())
    assert saved["chosen"] == 4 and [look["step"] for look in saved["looks"]] == [2, 4, 6]
    assert saved["judge"] == "scripted" and load_subject(tmp_path / "six").complete

    other = Scripted(0.1, 0.5, 0.9)
    run(name, tmp_path / "last", other, steps=6, watch_every=2, ema=ema, warmup_steps=1)
    kept, last = weights(tmp_path / "six"), weights(tmp_path / "last")
    assert any(not torch.equal(kept[key], last[key]) for key in kept)
    for first, second in zip(script.frames, other.frames, strict=True):
        assert np.array_equal(first, second), "looking changes nothing that is learned"


def test_training_ends_when_more_steps_do_not_help(tmp_path):
    events = run("lora", tmp_path, Scripted(0.4, 0.3, 0.2, 0.9), steps=20, watch_every=2, patience=2)
    assert events[-1].kind == "done" and load_subject(tmp_path).steps == 6
    saved = json.loads((tmp_path / "watch.json").read_text())
    assert saved["chosen"] == 2 and not (tmp_path / "checkpoint.safetensors").exists()
    again = run("lora", tmp_path, Scripted(0.4), steps=20, watch_every=2, patience=2)
    assert [event.kind for event in again] == ["done"], "ended early is complete"


@pytest.mark.parametrize("name", quick_are(METHODS, "lora"))
def test_a_resumed_run_remembers_its_looks(name, tmp_path):
    changes = {"steps": 6, "watch_every": 2, "ema": 0.5}
    run(name, tmp_path / "whole", Scripted(0.5, 0.1, 0.2), **changes)
    recipe = tiny_recipe("portrait", name, checkpoint_every=2, **changes)
    script = Scripted(0.5, 0.1, 0.2)
    killed = train(
        recipe, tiny_data("portrait"), tmp_path / "killed", family=tiny_family("portrait"),
        watch=script.watch,
    )  # fmt: skip
    for event in killed:
        if event.kind == "step" and event.step == 5:
            break
    killed.close()
    run(name, tmp_path / "killed", Scripted(0.2), **changes)
    looks = [json.loads((tmp_path / each / "watch.json").read_text()) for each in ("whole", "killed")]
    for saved in looks:
        for look in saved["looks"]:
            del look["seconds"]
    assert looks[0] == looks[1] and looks[0]["chosen"] == 2
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_lora_s_strength_scales_its_change_and_nothing_else(tmp_path):
    run("lora", tmp_path / "plain", Scripted(0.5), steps=3, learning_rate=1e-2)
    script = Scripted(0.9, 0.3, 0.2, 0.1, 0.0)
    run("lora", tmp_path / "chosen", script, steps=3, learning_rate=1e-2, choose_strength=True)
    saved = json.loads((tmp_path / "chosen" / "strengths.json").read_text())
    assert [look["strength"] for look in saved["looks"]] == list(STRENGTHS) and saved["chosen"] == STRENGTHS[0]
    plain, chosen = weights(tmp_path / "plain"), weights(tmp_path / "chosen")
    factors = sorted(name.rsplit("lora_A", 1) for name in plain if "lora_A" in name)
    assert factors
    for start, end in factors:
        change, scaled = (
            each[f"{start}lora_B{end}"].float().flatten(1) @ each[f"{start}lora_A{end}"].float().flatten(1)
            for each in (plain, chosen)
        )
        assert torch.allclose(scaled, STRENGTHS[0] * change, rtol=2e-2, atol=1e-4)
    run("lora", tmp_path / "equal", Scripted(0.5), steps=3, learning_rate=1e-2, choose_strength=True)
    assert json.loads((tmp_path / "equal" / "strengths.json").read_text())["chosen"] == 1.0, "no reason, no change"


def test_a_dora_keeps_the_strength_it_learned_and_says_so(tmp_path):
    settings = {"steps": 3, "learning_rate": 1e-2, "choose_strength": True, "dora": True}
    told = run("lora", tmp_path / "chosen", Scripted(0.9, 0.3, 0.2, 0.1, 0.0), **settings)
    assert any("DoRA's change can't be scaled" in (event.text or "") for event in told if event.kind == "note")
    assert not (tmp_path / "chosen" / "strengths.json").exists()
    run("lora", tmp_path / "plain", Scripted(0.9), **(settings | {"choose_strength": False}))
    plain, chosen = weights(tmp_path / "plain"), weights(tmp_path / "chosen")
    assert all(torch.equal(plain[key], chosen[key]) for key in plain)


def test_the_adapters_of_pivotal_tuning_are_scaled_and_its_words_are_not(tmp_path):
    run("pivotal", tmp_path / "plain", Scripted(0.5), steps=3, learning_rate=1e-2)
    run(
        "pivotal",
        tmp_path / "chosen",
        Scripted(0.9, 0.3, 0.2, 0.1, 0.0),
        steps=3,
        learning_rate=1e-2,
        choose_strength=True,
    )
    plain, chosen = weights(tmp_path / "plain"), weights(tmp_path / "chosen")
    for key in plain:
        share = STRENGTHS[0] if "lora_B" in key else 1.0
        assert torch.allclose(chosen[key].float(), share * plain[key].float(), rtol=2e-2, atol=1e-4)
    words = [load_file(str(tmp_path / each / "learned_embeds.safetensors")) for each in ("plain", "chosen")]
    assert all(torch.equal(words[0][key], words[1][key]) for key in words[0])


def test_without_a_watch_the_settings_are_ignored(tmp_path):
    recipe = tiny_recipe("portrait", "lora", steps=3, watch_every=1, patience=1, choose_strength=True)
    events = list(train(recipe, tiny_data("portrait"), tmp_path, family=tiny_family("portrait")))
    assert not [event for event in events if event.kind == "watch"] and load_subject(tmp_path).steps == 3
    assert not (tmp_path / "watch.json").exists() and not (tmp_path / "strengths.json").exists()


@dataclass(frozen=True)
class Seen:
    vector: np.ndarray | None


class Shade:
    """A judge whose vector is how bright and how varied a picture is; it sees no face in a black one."""

    name, licence = "shade", "none"

    def look(self, image):
        return (
            Seen(None) if image.max() == 0 else Seen(np.array([np.cos(image.mean() / 99), np.sin(image.mean() / 99)]))
        )

    def similarity(self, a, b):
        return float(a @ b)


def test_a_look_counts_failures_and_what_was_asked(monkeypatch):
    judge = Shade()
    own = Reference(judge, judge.look(np.full((8, 8, 3), 100, np.uint8)).vector, 1)
    other = Reference(judge, judge.look(np.full((8, 8, 3), 200, np.uint8)).vector, 1)
    frames = np.stack([np.full((8, 8, 3), 100, np.uint8), np.zeros((8, 8, 3), np.uint8)])
    followed = {PROMPTS[0]: None, PROMPTS[1]: 0.5}
    monkeypatch.setattr(validation, "followed", lambda frame, prompt: followed[prompt])
    look = validation.look_at(frames, PROMPTS, own, other)
    assert look.identity == pytest.approx(0.5) and look.following == 0.5 and look.value == pytest.approx(0.25)
    assert look.trained == pytest.approx(np.cos(100 / 99) / 2, abs=1e-4)


def photo(name):
    return Photo(name, f"/none/{name}", name, 9, 9, (0, 0, 9, 9), ((1, 1), (2, 1)), 1.0)


def test_held_out_photos_are_never_asked(monkeypatch):
    asked: list[tuple[str, ...]] = []

    def reference(judge, photos, album):
        asked.append(tuple(each.name for each in photos))
        return Reference(judge, np.array([1.0, 0.0]), len(photos))

    monkeypatch.setattr(validation, "reference", reference)
    monkeypatch.setattr(validation, "_chooser", Shade)
    photos = PhotoSet((photo("t"),), (photo("v"),), (photo("h"),))
    found = validation.watch(Album(photos))
    assert found is not None and found.judge == "shade" and asked == [("v",), ("t",)]
    assert validation.watch(Album(PhotoSet((photo("t"),), (), (photo("h"),)))) is None


def test_the_chooser_is_not_the_report_s_first_judge(monkeypatch):
    class Named:
        def __init__(self, name):
            self.name = name

    monkeypatch.setattr(validation, "judge_named", Named)
    for names, chooser in (
        (("buffalo_l", "dlib"), "arcface-mini"),
        (("arcface-mini", "dlib"), "dlib"),
        (("dlib",), None),
    ):
        monkeypatch.setattr(validation, "available_judges", lambda names=names, **_: [Named(name) for name in names])
        found = validation._chooser()
        assert (found.name if found else None) == chooser
