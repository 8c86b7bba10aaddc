"""Laws of generation: same seed, same noise; nobody leaks into another's pictures; settings travel as checked JSON."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.generation import SCHEDULERS, Generator, check, read_settings, save_render
from pipelines.schema import METHODS, Sampling, UserError
from tests.tiny import tiny_family, tiny_subject

PROMPT = "portrait of {subject}, navy background"


def draw(generator, samplings, folder=None, **options):
    rendered = list(generator.render(samplings, folder, class_word="man", **options))
    return [np.asarray(image, np.float32) for _, image in rendered]


@pytest.fixture(scope="module")
def generator():
    family = tiny_family("portrait")
    return Generator(family.row, family=family)


def test_a_picture_does_not_depend_on_its_batch(generator):
    samplings = [Sampling(PROMPT, steps=3, seed=seed, guidance=1.0 + seed) for seed in range(3)]
    together = draw(generator, samplings, batch=3)
    alone = [draw(generator, [each])[0] for each in samplings]
    for one, other in zip(together, alone, strict=True):
        assert np.abs(one - other).max() <= 1.0
    assert np.abs(together[0] - together[1]).mean() > 1.0


@pytest.mark.parametrize("name", METHODS)
def test_the_preview_of_training_is_what_is_generated(generator, name):
    folder = tiny_subject("portrait", name)
    sampling = Sampling("portrait of {subject}", steps=8, seed=0, guidance=3.0, scheduler="ddim")
    preview = np.asarray(Image.open(folder / "preview_00003.png"), np.float32)
    assert np.abs(draw(generator, [sampling], folder)[0] - preview).mean() < 0.5


def test_switching_people_leaves_no_trace(generator):
    sampling = Sampling(PROMPT, steps=3, seed=1)
    base = draw(generator, [sampling])[0]
    first = draw(generator, [sampling], tiny_subject("portrait", "dreambooth"))[0]
    second = draw(generator, [sampling], tiny_subject("portrait", "lora"))[0]
    assert np.array_equal(draw(generator, [sampling])[0], base)
    assert np.array_equal(draw(generator, [sampling], tiny_subject("portrait", "dreambooth"))[0], first)
    assert not np.array_equal(first, base) and not np.array_equal(second, base)


def test_strength_fades_a_lora(generator):
    folder = tiny_subject("portrait", "lora")
    family = generator.family
    filled = PROMPT.replace("{subject}", f"{family.row.identifier} man")
    base = draw(generator, [Sampling(filled, steps=3)])[0]
    distances = [
        np.abs(draw(generator, [Sampling(PROMPT, steps=3, strength=strength)], folder)[0] - base).mean()
        for strength in (0.0, 0.5, 1.0)
    ]
    assert distances[0] < 0.01 and distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_draws(generator, scheduler):
    (image,) = draw(generator, [Sampling(PROMPT, steps=4, scheduler=scheduler)])
    assert image.shape == (128, 128, 3) and image.std() > 1
    assert np.array_equal(image, draw(generator, [Sampling(PROMPT, steps=4, scheduler=scheduler)])[0])


def test_size_and_negative_prompt_are_obeyed(generator):
    wide = Sampling(PROMPT, steps=2, width_px=160, height_px=96)
    assert draw(generator, [wide])[0].shape == (96, 160, 3)
    plain, without = (Sampling(PROMPT, steps=3, negative_prompt=words) for words in ("", "red jacket"))
    first, second = draw(generator, [plain, without])
    assert not np.array_equal(first, second)


def test_stop_ends_within_a_step(generator):
    asked = []

    def stop():
        asked.append(1)
        return len(asked) > 4

    assert draw(generator, [Sampling(PROMPT, steps=50, seed=seed) for seed in range(3)], stop=stop, batch=1) == []
    assert len(asked) < 10


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"guidance": float("nan")}, "Guidance must be a number from 0 to 50, not nan"),
        ({"steps": 0}, "Steps must be a whole number"),
        ({"steps": 2.5}, "Steps"),
        ({"seed": -1}, "Seed"),
        ({"strength": float("inf")}, "Strength"),
        ({"width_px": 10}, "Width must be"),
        ({"scheduler": "__import__"}, "no scheduler"),
        ({"prompt": "  "}, "prompt is empty"),
    ],
)
def test_settings_out_of_range_are_sentences(generator, changes, said):
    with pytest.raises(UserError, match=said):
        draw(generator, [Sampling(**{"prompt": PROMPT, **changes})])


def test_settings_travel_in_the_picture(tmp_path):
    sampling = Sampling(PROMPT, "red", 7, 2.5, 123, 128, 96, "euler", 0.8)
    path = tmp_path / "renders" / "a.png"
    render = save_render(Image.new("RGB", (8, 8)), sampling, path, method="lora", base="portrait-128", subject_id="x")
    assert render.path == str(path) and render.sampling == sampling
    assert read_settings(path) == sampling
    assert json.loads(Image.open(path).text["likeness"])["subject"] == "x"
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "{}",
        '{"sampling": 1}',
        '{"sampling": {"prompt": 1}}',
        '{"sampling": {"prompt": "a", "steps": "many"}}',
        '{"sampling": {"prompt": "a", "guidance": NaN}}',
        '{"sampling": {"prompt": "a", "scheduler": ["ddim"]}}',
        "[" * 5000,
    ],
)
def test_bad_settings_are_none(tmp_path, text):
    chunks = PngInfo()
    chunks.add_text("likeness", text)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=chunks)
    assert read_settings(tmp_path / "a.png") is None


def test_other_files_have_no_settings(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    assert read_settings(tmp_path / "a.png") is None
    assert read_settings(tmp_path / "missing.png") is None
    Image.new("RGB", (8, 8)).save(tmp_path / "b.jpg")
    assert read_settings(tmp_path / "b.jpg") is None


def test_damaged_missing_and_foreign_likenesses_are_refused(generator, tmp_path):
    folder = tmp_path / "lora"
    shutil.copytree(tiny_subject("portrait", "lora"), folder)
    weights = folder / "pytorch_lora_weights.safetensors"
    blob = bytearray(weights.read_bytes())
    blob[-1] ^= 1
    weights.write_bytes(blob)
    with pytest.raises(UserError, match="changed or damaged"):
        draw(generator, [Sampling(PROMPT)], folder)
    weights.unlink()
    with pytest.raises(UserError, match="missing"):
        draw(generator, [Sampling(PROMPT)], folder)
    with pytest.raises(UserError, match="Nothing is trained"):
        draw(generator, [Sampling(PROMPT)], tmp_path)
    with pytest.raises(UserError, match="learned on"):
        draw(generator, [Sampling(PROMPT)], tiny_subject("sdxl", "lora"))


def test_check_accepts_the_defaults():
    check(Sampling(PROMPT))
