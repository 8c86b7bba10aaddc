"""Laws of the one loop: exact resume, honest endings, the right loss, and nothing kept that was not verified."""

from __future__ import annotations

import copy
import dataclasses
import errno
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipelines.bases.objective import NoiseSchedule
from pipelines.core.control import Control
from pipelines.core.device import derived_seed
from pipelines.core.records import METHODS, TRAINABLE, UserError, Validated
from pipelines.methods import method
from pipelines.methods.lora import LoRALearner
from pipelines.training import checkpoints, loop
from pipelines.training.batches import Batches, fingerprint
from pipelines.training.loop import train
from pipelines.training.subjects import load_subject
from tests.cases import quick_are
from tests.tiny import tiny_data, tiny_family, tiny_folder, tiny_recipe, tiny_run, tiny_subject


def losses(events):
    return [event.loss for event in events if event.kind == "step"]


def learned(folder):
    subject = load_subject(folder)
    return load_file(str(folder / subject.artifact)), subject


def batches(kind, name, class_latents=None, **changes):
    family, recipe = tiny_family(kind), tiny_recipe(kind, name, **changes)
    learner = method(name).learner(family, recipe)
    phrase = method(name).phrase(family.row, recipe)
    return Batches(family, learner, recipe, tiny_data(kind), phrase, class_latents or {}), learner, recipe


# everything that could make a resumed run differ, switched on where the method has it
RICH = {
    "textual_inversion": {"ema": 0.9},
    "dreambooth": {"ema": 0.9, "text_learning_rate": 1e-4, "prior_weight": 0.5, "prior_images": 3, "mirror": True},
    "lora": {"text_learning_rate": 1e-4, "mirror": True},
    "pivotal": {"ema": 0.9, "text_learning_rate": 1e-4, "dora": True, "freeze_vectors_after": 0.5},
}


@pytest.mark.parametrize("name", quick_are(TRAINABLE, "dreambooth", "pivotal"))
def test_resume_is_bit_equal_to_never_having_stopped(name, tmp_path):
    recipe = tiny_recipe("portrait", name, steps=5, checkpoint_every=2, **RICH[name])
    data, family = tiny_data("portrait"), tiny_family("portrait")
    whole = list(train(recipe, data, tmp_path / "whole", family=family))

    killed = train(recipe, data, tmp_path / "killed", family=family)
    for event in killed:
        if event.kind == "step" and event.step == 3:
            break
    killed.close()  # as kill -9 would: the checkpoint of step 2 is all there is
    second = list(train(recipe, data, tmp_path / "killed", family=family))
    assert second[0].text == "Continuing at step 2" and second[0].step == 2
    assert losses(second) == losses(whole)[2:]

    stopped = list(_stopped_after(recipe, data, tmp_path / "stopped", family, steps=3))
    assert stopped[-1].kind == "stopped"
    third = list(train(recipe, data, tmp_path / "stopped", family=family))
    assert third[0].step == 3

    expected, subject = learned(tmp_path / "whole")
    for folder in ("killed", "stopped"):
        tensors, same = learned(tmp_path / folder)
        assert all(torch.equal(tensors[key], expected[key]) for key in expected)
        assert same.sha256 == subject.sha256 and same.complete
    assert not (tmp_path / "killed" / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("name", quick_are(TRAINABLE, "pivotal"))
def test_training_can_go_on_from_what_was_learned_before(name, tmp_path):
    family, rich = tiny_family("portrait"), RICH[name] | {"prior_weight": 0.0}
    recipe = tiny_recipe("portrait", name, steps=3, checkpoint_every=2, **rich)
    list(train(recipe, tiny_data("portrait"), tmp_path / "one", family=family))
    expected, before = learned(tmp_path / "one")
    for folder in ("still", "other", "killed"):
        shutil.copytree(tmp_path / "one", tmp_path / folder)

    # nothing more to learn: it is what it was
    still = recipe.replaced(
        start_from=before.sha256, learning_rate=0.0, vector_learning_rate=0.0,
        text_learning_rate=1e-30 * recipe.text_learning_rate, ema=0.0,
        weight_decay=0.0,
    )  # fmt: skip
    list(train(still, tiny_data("portrait"), tmp_path / "still", family=family))
    tensors, _ = learned(tmp_path / "still")
    assert all(torch.allclose(tensors[key], expected[key], atol=1e-6) for key in expected)

    # more photos: it moves on, and a killed training goes on to the same end
    more, data = (
        recipe.replaced(start_from=before.sha256, steps=4),
        replace(tiny_data("portrait", photos=6), photo_digest="new"),
    )
    list(train(more, data, tmp_path / "other", family=family))
    tensors, after = learned(tmp_path / "other")
    assert after.sha256 != before.sha256 and after.photo_digest == "new"
    killed = train(more, data, tmp_path / "killed", family=family)
    for event in killed:
        if event.kind == "step" and event.step == 3:
            break
    killed.close()
    list(train(more, data, tmp_path / "killed", family=family))
    assert learned(tmp_path / "killed")[1].sha256 == after.sha256

    # what it should start from is not there any more
    with pytest.raises(UserError, match="Train it afresh"):
        list(train(more.replaced(seed=9), data, tmp_path / "other", family=family))
    assert learned(tmp_path / "other")[1] == after


def _stopped_after(recipe, data, out, family, *, steps):
    done = 0

    def stop():
        return done >= steps

    for event in train(recipe, data, out, family=family, control=Control(stop=stop)):
        done = event.step if event.kind == "step" else done
        yield event


@pytest.mark.parametrize("name", TRAINABLE)
def test_stop_keeps_what_was_learned(name, tmp_path):
    recipe, family = tiny_recipe("sd15", name, steps=50), tiny_family("sd15")
    events = list(_stopped_after(recipe, tiny_data("sd15"), tmp_path, family, steps=3))
    assert events[-1].kind == "stopped" and events[-1].step == 3
    assert [event.step for event in events if event.kind == "step"] == [1, 2, 3]  # within one step
    subject = load_subject(tmp_path)
    assert (subject.steps, subject.complete) == (3, False)
    method(name).apply(family, tmp_path, subject.recipe)  # and it can be used
    assert (tmp_path / "checkpoint.safetensors").is_file()


def test_a_stopped_training_does_not_replace_a_complete_one(tmp_path):
    family, data = tiny_family("portrait"), tiny_data("portrait")
    recipe = tiny_recipe("portrait", "lora", steps=3)
    list(train(recipe, data, tmp_path, family=family))
    tensors, before = learned(tmp_path)
    longer = recipe.replaced(steps=9)
    told = list(_stopped_after(longer, data, tmp_path, family, steps=2))
    assert told[-1].kind == "stopped" and told[-1].step == 2 and "trained before stays" in str(told[-1].text)
    same, after = learned(tmp_path)
    assert after == before and all(torch.equal(same[key], tensors[key]) for key in tensors)
    again = list(train(longer, data, tmp_path, family=family))
    assert again[0].step == 2 and learned(tmp_path)[1].steps == 9, "and it goes on where it was stopped"
    # of other photos it is no longer the person's: what is learned now takes its place
    list(_stopped_after(longer, replace(data, photo_digest="other"), tmp_path, family, steps=2))
    assert learned(tmp_path)[1].photo_digest == "other"


@pytest.mark.parametrize(("every", "what"), [(1, "the weights left"), (100, "the loss became")])
@pytest.mark.parametrize("name", METHODS)
def test_no_number_stops_with_the_step_named(name, every, what, tmp_path):
    with pytest.raises(UserError, match=rf"stopped at step \d+: {what} .*Lower the learning rate"):
        tiny_run("portrait", name, tmp_path, learning_rate=1e38, steps=30, clip_norm=1e30, checkpoint_every=every)
    assert not (tmp_path / "subject.json").exists()
    checkpoint = tmp_path / "checkpoint.safetensors"
    if checkpoint.is_file():
        tensors = load_file(str(checkpoint))
        assert all(torch.isfinite(tensor).all() for key, tensor in tensors.items() if key.startswith("model."))


@pytest.mark.parametrize("kind", ["portrait", "sd15"])
def test_cached_latents_and_text_give_the_uncached_loss(kind):
    family, data = tiny_family(kind), tiny_data(kind)
    cached, learner, recipe = batches(kind, "dreambooth", batch=4)
    for step in (0, 3):
        batch = cached.at(step)
        rows = cached._photos(step)
        moments = family.encode_images(data.frames[rows.numpy()])  # straight from the pixels
        generator = torch.Generator().manual_seed(derived_seed(recipe.seed, step, 1))
        torch.rand(len(rows), generator=generator), torch.rand(len(rows), generator=generator)
        drawn = torch.randn(moments.mean.shape, generator=generator)
        latents = moments.latents(drawn if family.architecture.sampled_latents else None)
        prompts = [cached.captions[index] for index in batch.texts]
        told = family.text.encode(family.text.ids(prompts))
        fresh = family.objective(
            learner.modules.unet, latents, told, batch.noise, batch.timesteps, snr_gamma=recipe.snr_gamma
        ).mean()
        assert torch.allclose(cached.loss(learner, step), fresh, rtol=1e-4)


def test_every_method_sees_the_same_photos_noise_and_timesteps():
    reference = batches("portrait", "textual_inversion")[0]
    for name in ("dreambooth", "lora"):
        other = batches("portrait", name)[0]
        for step in range(4):
            for field in ("latents", "texts", "noise", "timesteps", "weights"):
                assert torch.equal(getattr(reference.at(step), field), getattr(other.at(step), field))
    # prior preservation adds rows behind the photos' and leaves these alone
    prior = batches("portrait", "dreambooth", {(128, 128): torch.zeros(3, 16, 16, 16)}, prior_weight=1.0)[0]
    assert torch.equal(prior.at(1).noise[:2], reference.at(1).noise)
    assert torch.equal(prior.at(1).latents[:2], reference.at(1).latents)


def bucketed(photos=6):
    """A tiny SDXL that learned two shapes, and photos of both: (family, data)."""
    family = copy.copy(tiny_family("sdxl"))
    family.row = replace(family.row, buckets=((64, 64), (80, 48)))
    data = tiny_data("sdxl", photos=photos)
    frames = [frame if k % 3 else np.repeat(frame[:16], 5, 0)[:80, :48] for k, frame in enumerate(data.frames)]
    return family, replace(data, frames=tuple(frames))


def test_photos_of_several_shapes_share_the_steps_by_their_number():
    family, data = bucketed()
    recipe = tiny_recipe("sdxl", "lora", batch=3)
    learner = method("lora").learner(family, recipe)
    each = Batches(family, learner, recipe, data, "ohwx man", {})
    seen = []
    for step in range(12):
        photos = each._photos(step).tolist()
        assert len({photo % 3 == 0 for photo in photos}) == 1, "one shape in a batch"
        shape = tuple(each.at(step).latents.shape[-2:])
        assert shape == ((10, 6) if photos[0] % 3 == 0 else (8, 8))
        assert torch.equal(each.at(step).latents, each.at(step).latents)
        seen.append(photos)
    assert sorted(photos[0] for photos in seen) == sorted([*range(6)] * 2), "each photo leads once per round"
    upright = sum(photos[0] % 3 == 0 for photos in seen)
    assert upright == 4, "two of six photos are upright: a third of the steps"


def test_noise_levels_can_be_kept_to_those_where_words_decide():
    high = batches("portrait", "textual_inversion", batch=10, noise_from=0.6)[0]
    steps = torch.cat([high.at(step).timesteps for step in range(5)])
    assert int(steps.min()) >= 600 and int(steps.max()) > 950
    everything = batches("portrait", "textual_inversion", batch=10)[0]
    assert torch.equal(high.at(2).noise, everything.at(2).noise), "the same noise; only its level differs"


def test_a_training_with_several_shapes_resumes_bit_equal_and_draws_its_class_in_each(tmp_path):
    family, data = bucketed()
    recipe = tiny_recipe("sdxl", "lora", steps=5, prior_weight=0.5, prior_images=3, mirror=True)
    whole = list(train(recipe, data, tmp_path / "whole", family=family))
    killed = train(recipe, data, tmp_path / "killed", family=family)
    for event in killed:
        if event.kind == "step" and event.step == 3:
            break
    killed.close()
    drawn = load_file(str(tmp_path / "killed" / "class_images.safetensors"))
    assert {k: tuple(v.shape[-2:]) for k, v in drawn.items() if "x" in k} == {"64x64": (8, 8), "80x48": (10, 6)}
    second = list(train(recipe, data, tmp_path / "killed", family=family))
    assert losses(second) == losses(whole)[2:] and second[-1].kind == "done"
    with pytest.raises(ValueError, match="takes 64x64 or 80x48 frames, not 48x80"):
        turned = replace(data, frames=tuple(np.swapaxes(frame, 0, 1) for frame in data.frames))
        list(train(recipe, turned, tmp_path / "turned", family=family))


def test_every_photo_is_seen_equally_often_and_timesteps_are_spread():
    each = batches("portrait", "lora", batch=3)[0]
    seen = torch.cat([each._photos(step) for step in range(8)])
    assert torch.bincount(seen, minlength=4).tolist() == [6, 6, 6, 6]
    wide = batches("portrait", "lora", batch=10)[0]
    assert sorted((wide.at(5).timesteps // 100).tolist()) == list(range(10))


def test_prior_rows_are_weighted_and_min_snr_stays_right():
    """The case that diffusers' scripts get wrong: weights per sample, prior images by their own weight."""
    family = tiny_family("portrait")
    latents = torch.randn(3, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    for batch in (1, 2, 4):  # b=1 is silently wrong there, b>=2 crashes
        each, learner, recipe = batches("portrait", "dreambooth", {(128, 128): latents}, prior_weight=0.7, batch=batch)
        rows = each.at(2)
        extra = max(1, batch // 2)
        assert len(rows.weights) == batch + extra
        assert rows.weights[:batch].sum() == pytest.approx(1.0)
        assert rows.weights[batch:].sum() == pytest.approx(0.7)
        total = torch.zeros(())
        for index in range(batch + extra):
            one = slice(index, index + 1)
            told = family.text.encode(family.text.ids([each.captions[rows.texts[index]]]))
            alpha = family.schedule.alphas[rows.timesteps[index]].double()
            snr = alpha / (1 - alpha)
            weight = float(min(snr, torch.tensor(5.0)) / (snr + 1))
            noisy = family.schedule.noisy(rows.latents[one], rows.noise[one], rows.timesteps[one])
            guess = family.predict(learner.modules.unet, noisy, rows.timesteps[one], told)
            error = (guess - family.schedule.target(rows.latents[one], rows.noise[one], rows.timesteps[one])) ** 2
            total = total + weight * error.mean() * rows.weights[index]
        assert torch.allclose(each.loss(learner, 2), total, rtol=1e-4)
    captions = [each.captions[index] for index in rows.texts[batch:]]
    assert all("<subject>" not in caption and "man" in caption for caption in captions)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weights(prediction):
    alphas = torch.tensor([0.999, 0.9, 0.5, 0.1, 0.0])  # the last: zero terminal SNR
    schedule = NoiseSchedule(alphas, prediction)
    steps = torch.arange(5)
    weights = schedule.weights(steps, 5.0)
    assert torch.isfinite(weights).all()
    snr = (alphas / (1 - alphas)).double()[:4]
    clipped = snr.clamp(max=5.0)
    expected = {"epsilon": clipped / snr, "v_prediction": clipped / (snr + 1), "sample": clipped}[prediction]
    assert torch.allclose(weights[:4].double(), expected, rtol=1e-5)
    assert weights[4] == (1.0 if prediction == "epsilon" else 0.0)
    assert torch.equal(schedule.weights(steps, None), torch.ones(5))


@pytest.mark.parametrize("name", METHODS)
def test_sdxl_trains_with_every_method(name):
    folder = tiny_subject("sdxl", name)
    subject = load_subject(folder)
    assert subject.complete and subject.steps == 3 and subject.artifact_bytes > 0


def test_side_by_side_is_the_same_as_one_after_the_other(tmp_path):
    data, family = tiny_data("portrait"), tiny_family("portrait")
    runs = {name: train(tiny_recipe("portrait", name), data, tmp_path / name, family=family) for name in METHODS}
    live = dict(runs)
    events = {name: [] for name in METHODS}
    while live:
        for name, run in list(live.items()):
            event = next(run, None)
            if event is None:
                del live[name]
            else:
                events[name].append(event)
    for name in METHODS:
        alone = tiny_run("portrait", name, tmp_path / f"{name}-alone")
        assert losses(events[name]) == losses(alone)
        assert load_subject(tmp_path / name).sha256 == load_subject(tmp_path / f"{name}-alone").sha256


def test_what_a_run_tells_and_leaves(tmp_path):
    recipe = tiny_recipe("portrait", "lora", preview_every_s=1e-9, steps=3)
    data = tiny_data("portrait", validation=1)
    events = list(train(recipe, data, tmp_path, family=tiny_family("portrait")))
    kinds = [event.kind for event in events]
    assert kinds[0] == "start" and kinds[-1] == "done"
    assert [event.step for event in events if event.kind == "step"] == [1, 2, 3]
    previews = [event.path for event in events if event.kind == "preview"]
    assert [path.rsplit("/", 1)[1] for path in previews] == [f"preview_{step:05d}.png" for step in (1, 2, 3)]
    assert all(Image.open(path).size == (128, 128) for path in previews)
    assert any(isinstance(event.data, Validated) for event in events)
    subject = load_subject(tmp_path)
    assert subject.phrase == "<subject> <subject> <subject> <subject> man"
    assert subject.artifact_bytes == (tmp_path / "pytorch_lora_weights.safetensors").stat().st_size
    assert subject.trainable_params == events[0].data.trainable_params > 0
    assert subject.train_s > 0
    # asking again for the same thing is answered at once
    again = list(train(recipe, data, tmp_path, family=tiny_family("portrait")))
    assert [event.kind for event in again] == ["done"]


def test_previews_do_not_change_what_is_learned(tmp_path):
    tiny_run("portrait", "lora", tmp_path / "quiet")
    tiny_run("portrait", "lora", tmp_path / "shown", preview_every_s=1e-9)
    assert load_subject(tmp_path / "quiet").sha256 == load_subject(tmp_path / "shown").sha256


def test_a_checkpoint_of_other_photos_is_not_continued(tmp_path):
    recipe, family = tiny_recipe("sd15", "lora", steps=6), tiny_family("sd15")
    list(_stopped_after(recipe, tiny_data("sd15"), tmp_path, family, steps=2))
    first = next(
        iter(train(recipe, replace(tiny_data("sd15", photos=3), photo_digest="other"), tmp_path, family=family))
    )
    assert first.step == 0 and "other photos" in first.text
    (tmp_path / "checkpoint.safetensors").write_bytes(b"half a file")
    first = next(iter(train(recipe, tiny_data("sd15"), tmp_path, family=family)))
    assert first.step == 0 and "can't be read" in first.text


def test_an_artefact_that_draws_something_else_is_not_called_done(tmp_path, monkeypatch):
    honest = LoRALearner.export

    def lossy(self, folder):  # what a writer does that forgets alpha
        with torch.no_grad():
            for tensor in self.tensors().values():
                tensor.mul_(0.5)
        artifact = honest(self, folder)
        with torch.no_grad():
            for tensor in self.tensors().values():
                tensor.mul_(2.0)
        return artifact

    monkeypatch.setattr(LoRALearner, "export", lossy)
    with pytest.raises(UserError, match="does not draw the same picture"):
        tiny_run("portrait", "lora", tmp_path, learning_rate=0.05, steps=8)
    assert not (tmp_path / "subject.json").exists()


def test_a_full_disk_is_a_sentence_and_the_checkpoint_stays(tmp_path, monkeypatch):
    save = checkpoints.save_tensors
    calls = []

    def full(path, tensors, meta=None):
        calls.append(path)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, tensors, meta)

    monkeypatch.setattr(checkpoints, "save_tensors", full)
    with pytest.raises(UserError, match="The disk is full.*continues"):
        tiny_run("sd15", "lora", tmp_path, steps=8)
    monkeypatch.undo()
    assert tiny_run("sd15", "lora", tmp_path, steps=8)[0].step == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"steps": 0}, "steps"), ({"batch": 0}, "batch"), ({"learning_rate": float("nan")}, "learning rates")],
)
def test_impossible_recipes_are_refused(changes, said, tmp_path):
    with pytest.raises(UserError, match=said):
        tiny_run("sd15", "lora", tmp_path, **changes)


def test_no_photos_and_a_method_that_is_not_offered(tmp_path):
    data = dataclasses.replace(tiny_data("sd15"), frames=np.zeros((0, 64, 64, 3), np.uint8), captions=())
    recipe, family = tiny_recipe("sd15", "lora"), tiny_family("sd15")
    with pytest.raises(UserError, match="no photos"):
        list(train(recipe, data, tmp_path, family=family))
    row = dataclasses.replace(family.row, learns=("adapters",))
    large = loop.load_family(row, family.device)
    with pytest.raises(UserError, match="not offered"):
        list(train(tiny_recipe("sd15", "dreambooth"), tiny_data("sd15"), tmp_path, family=large))


def test_a_missing_subject_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="Nothing is trained"):
        load_subject(tmp_path)
    (tmp_path / "subject.json").write_text("{}")
    with pytest.raises(UserError, match="can't be read"):
        load_subject(tmp_path)


def test_the_base_is_loaded_when_none_is_given(tmp_path):
    recipe = tiny_recipe("portrait", "textual_inversion", steps=1)
    assert recipe.base == str(tiny_folder("portrait"))
    events = list(train(recipe, tiny_data("portrait"), tmp_path))  # in this machine's own format
    assert events[0].kind == "phase" and events[-1].kind == "done"


# -- what costs time or memory, and must not change what is learned --------------------------------------------------


@pytest.mark.parametrize("name", TRAINABLE)
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_gradient_checkpointing_changes_no_gradient(kind, name):
    from pipelines.bases.family import checkpointed

    each, learner, _ = batches(kind, name, text_learning_rate=1e-4)
    kept = []
    for switched_on in (False, True):
        held = []
        saved = torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t.numel()) or t, lambda t: t)  # noqa: B023
        with checkpointed(learner.modules, switched_on):
            with saved:
                loss = each.loss(learner, 1)
            loss.backward()
        gradients = {k: t.grad.clone() for k, t in learner.tensors().items() if t.grad is not None}
        for tensor in learner.tensors().values():
            tensor.grad = None
        kept.append((float(loss.detach()), gradients, sum(held)))
    (loss, gradients, much), (again, same, little) = kept
    assert loss == pytest.approx(again, rel=1e-6) and set(gradients) == set(same) and gradients
    for key, gradient in gradients.items():
        assert torch.allclose(gradient, same[key], rtol=1e-3, atol=1e-6), key
    assert little < 0.5 * much, "and it keeps less"
    parts = (learner.modules.unet, *learner.modules.text.encoders)
    assert not any(getattr(module, "gradient_checkpointing", False) for part in parts for module in part.modules())


@pytest.mark.parametrize("name", quick_are(["lora", "dreambooth"], "dreambooth"))
def test_gradient_checkpointing_gives_the_same_result_and_takes_up_the_same_checkpoint(name, tmp_path):
    recipe = tiny_recipe("sd15", name, steps=4, checkpoint_every=2, text_learning_rate=1e-4)
    data, family = tiny_data("sd15"), tiny_family("sd15")
    list(train(recipe, data, tmp_path / "off", family=family))
    on = recipe.replaced(gradient_checkpointing="on")
    told = list(train(on, data, tmp_path / "on", family=family))
    assert "on as asked" in told[0].data.memory
    one, other = (learned(tmp_path / each)[0] for each in ("off", "on"))
    assert all(torch.allclose(one[key].float(), other[key].float(), atol=2e-3) for key in one)
    list(_stopped_after(recipe, data, tmp_path / "part", family, steps=2))
    assert next(iter(train(on, data, tmp_path / "part", family=family))).step == 2


@pytest.mark.parametrize("name", quick_are(TRAINABLE, "lora"))
def test_with_little_memory_idle_parts_wait_elsewhere_and_the_result_is_the_same(name, tmp_path, monkeypatch):
    family, data = tiny_family("sdxl"), tiny_data("sdxl", validation=1)
    recipe = tiny_recipe("sdxl", name, steps=3, preview_every_s=1e-9, prior_weight=0.5, prior_images=2)
    list(train(recipe, data, tmp_path / "roomy", family=family))
    moves, placed = [], {}
    real = type(family)._place

    def place(self, parts, device):
        # "cpu" is where modules wait: on this machine the device has the same name, so the two are told apart here
        for part in parts:
            moves.append(part)
            placed[id(part)] = not placed.get(id(part), True)
        real(self, parts, device)

    family = copy.copy(family)
    monkeypatch.setattr(type(family), "_place", place)
    monkeypatch.setattr(loop, "free_memory_gb", lambda device: 0.1)
    needs = loop.memory_needs(loop.find_base("sdxl"), recipe.replaced(method="lora"))
    monkeypatch.setattr(loop, "memory_needs", lambda *_: needs)
    steps_with = []
    for event in train(recipe, data, tmp_path / "short", family=family):
        if event.kind == "start":
            assert "waits outside the GPU" in event.data.memory
        if event.kind == "step":
            steps_with.append(placed.get(id(family.vae), True))
    assert steps_with == [False] * 3, "the VAE is away while steps are taken"
    assert all(placed.values()) and not family.parked, "in the end everything is back"
    frozen = name not in ("textual_inversion", "pivotal")
    assert any(part is family.text.encoders[0] for part in moves) == frozen
    one, other = (learned(tmp_path / each)[1] for each in ("roomy", "short"))
    assert one.complete and other.complete
    tensors, same = (learned(tmp_path / each)[0] for each in ("roomy", "short"))
    assert all(torch.allclose(tensors[key].float(), same[key].float(), atol=2e-3) for key in tensors)


def test_the_words_of_pivotal_tuning_stay_after_their_share_of_the_steps(tmp_path):
    family, data = tiny_family("sd15"), tiny_data("sd15")
    recipe = tiny_recipe("sd15", "pivotal", steps=6, warmup_steps=0, freeze_vectors_after=0.5)
    first = list(_stopped_after(recipe, data, tmp_path / "part", family, steps=3))[-1]
    words = load_file(str(tmp_path / "part" / "learned_embeds.safetensors"))
    adapters = load_file(str(tmp_path / "part" / "pytorch_lora_weights.safetensors"))
    assert first.step == 3
    list(train(recipe, data, tmp_path / "part", family=family))
    assert all(
        torch.equal(words[k], v) for k, v in load_file(str(tmp_path / "part" / "learned_embeds.safetensors")).items()
    )
    after = load_file(str(tmp_path / "part" / "pytorch_lora_weights.safetensors"))
    assert any(not torch.equal(adapters[key], after[key]) for key in adapters)


def test_checkpoints_and_subjects_of_earlier_versions_still_fit(tmp_path):
    """The fingerprint of a recipe that uses nothing new is what it was before there was anything new."""
    import hashlib
    import json

    from pipelines.core.records import recipe_fields

    recipe, data, family = tiny_recipe("sd15", "lora"), tiny_data("sd15"), tiny_family("sd15")
    before = {
        k: v for k, v in dataclasses.asdict(recipe).items()
        if k not in ("checkpoint_every", "preview_every_s", "vector_learning_rate", "freeze_vectors_after", "dora",
                     "rslora", "face_weight", "background_weight", "optimizer", "gradient_checkpointing")
    }  # fmt: skip
    frames = hashlib.sha256()
    for frame in data.frames:
        frames.update(str(frame.shape).encode() + np.ascontiguousarray(frame).tobytes())
    parts = [before, data.captions, data.photo_digest, frames.hexdigest(), family.row.name, family.row.revision]
    old = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
    assert fingerprint(recipe, data, family) == old
    assert fingerprint(recipe.replaced(dora=True), data, family) != old
    assert fingerprint(recipe.replaced(gradient_checkpointing="on"), data, family) == old
    assert set(recipe_fields(recipe)) == {*before, "checkpoint_every", "preview_every_s"}
    tiny_run("sd15", "lora", tmp_path, steps=1)
    saved = json.loads((tmp_path / "subject.json").read_text())
    for name in ("dora", "optimizer", "face_weight", "vector_learning_rate"):
        del saved["recipe"][name]
    (tmp_path / "subject.json").write_text(json.dumps(saved))
    assert load_subject(tmp_path).recipe == recipe.replaced(steps=1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"face_weight": float("nan")}, "face_weight must be a number from 0 up"),
        ({"background_weight": -1.0}, "background_weight must be a number"),
        ({"vector_learning_rate": float("inf")}, "vector_learning_rate must be a number"),
        ({"freeze_vectors_after": float("nan")}, "freeze_vectors_after is a share"),
        ({"optimizer": "sgd"}, "optimizer is one of adamw, adamw8bit, prodigy, not sgd"),
        ({"gradient_checkpointing": "maybe"}, "gradient_checkpointing is one of auto, on, off"),
        ({"optimizer": "adamw8bit"}, "needs an NVIDIA GPU"),
    ],
)
def test_impossible_new_settings_are_refused(changes, said, tmp_path):
    with pytest.raises(UserError, match=said):
        tiny_run("sd15", "lora", tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": "sgd"}, "optimizer is one of"),
        ({"optimizer": 3}, "optimizer is one of"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing is one of"),
        ({"dora": 1}, "dora must be true or false, not 1"),
        ({"face_weight": float("nan")}, "face_weight must be a number from 0 to 100"),
        ({"freeze_vectors_after": 1.5}, "freeze_vectors_after must be a number from 0 to 1"),
    ],
)
def test_new_settings_from_outside_are_checked_before_anything_starts(changes, said):
    from pipelines.runs.jobspec import JobSpec

    with pytest.raises(UserError, match=said):
        JobSpec(settings={"lora": changes}).check()
    JobSpec(methods=("pivotal",), settings={"pivotal": {"dora": True, "optimizer": "prodigy"}}).check()
