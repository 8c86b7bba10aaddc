"""Laws of generation: same seed, same noise; nobody leaks into another's pictures; settings travel as checked JSON."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.bases import sampling as sampler
from pipelines.core.control import Control
from pipelines.core.device import noise
from pipelines.core.files import jsonable
from pipelines.core.inscription import Inscription
from pipelines.core.records import METHODS, Sampling, UserError
from pipelines.core.run import run_at
from pipelines.generation.draw import draw as draw_stage
from pipelines.generation.draw import render_name
from pipelines.generation.generator import SCHEDULERS, Generator, check, read_settings, save_render
from pipelines.runs.jobspec import JobSpec, spec_from_json
from tests.tiny import tiny_family, tiny_folder, tiny_subject

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
    render = save_render(Image.new("RGB", (8, 8)), Inscription(sampling, "portrait-128", "x"), path, method="lora")
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


# ------------------------------------------------------------------------------------------------- variations

SOURCE = "renders/lora/seed5.png"


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    """(run's folder, a smooth picture in it)."""
    folder = tmp_path_factory.mktemp("run")
    coarse = Image.fromarray(np.random.default_rng(5).integers(0, 256, (6, 6, 3), dtype=np.uint8))
    picture = coarse.resize((128, 128), Image.Resampling.BICUBIC)
    save_render(picture, Inscription(Sampling(PROMPT, seed=5), "portrait-128"), folder / SOURCE, method="lora")
    return folder, picture


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_less_is_changed_the_nearer_to_the_source(generator, varied, scheduler):
    """In latents: the tiny base's random decoder knows no nearness; test_embedded_base.py looks at pictures."""
    family = generator.family
    frames = np.stack([np.asarray(varied[1]), np.asarray(varied[1].transpose(Image.Transpose.ROTATE_180))])
    encoded = family.encode_images(frames).latents(None)
    away, apart = [], []
    for change in (0.05, 0.3, 0.6, 1.0):
        rows = [sampler.Row("portrait of man", 2)] * 2
        options = {"steps": 20, "scheduler_name": scheduler, "sources": frames, "change": change}
        drawn = sampler.sample_latents(family, family.shared(), rows, **options)
        away.append(float((drawn - encoded).abs().mean()))
        apart.append(float((drawn[0] - drawn[1]).abs().mean()))
    assert away == sorted(away) and away[0] < 0.5 * away[-1]
    assert apart[1] > apart[2] > apart[3] and apart[3] < 1e-5, "what two sources leave of themselves fades"


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_same_seed_is_the_same_variation(generator, varied, scheduler):
    sampling = Sampling(PROMPT, steps=5, seed=2, scheduler=scheduler, source=SOURCE, change=0.4)
    (first,), (again,) = (draw(generator, [sampling], sources=varied[0]) for _ in range(2))
    assert np.array_equal(first, again)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_changed_wholly_nothing_of_the_source_is_left(generator, varied, scheduler):
    """It is the picture that is drawn from noise alone, to the bit."""
    from_noise = Sampling(PROMPT, steps=4, seed=2, scheduler=scheduler)
    whole = Sampling(PROMPT, steps=4, seed=2, scheduler=scheduler, source=SOURCE, change=1.0)
    assert np.array_equal(draw(generator, [from_noise])[0], draw(generator, [whole], sources=varied[0])[0])


def test_another_seed_is_another_variation_and_a_prompt_still_counts(generator, varied):
    like = {"steps": 6, "source": SOURCE, "change": 0.6}
    asked = [Sampling(PROMPT, seed=1, **like), Sampling(PROMPT, seed=2, **like), Sampling("red jacket", seed=1, **like)]
    first, second, third = draw(generator, asked, sources=varied[0])
    assert not np.array_equal(first, second) and not np.array_equal(first, third)


def test_a_variation_does_not_depend_on_its_batch(generator, varied):
    folder, picture = varied
    other = "renders/none/seed6.png"
    turned = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    save_render(turned, Inscription(Sampling(PROMPT, seed=6), "portrait-128"), folder / other, method="none")
    like = {"steps": 6, "scheduler": "euler ancestral"}
    samplings = [
        Sampling(PROMPT, seed=1, source=SOURCE, change=0.5, **like),
        Sampling(PROMPT, seed=2, source=other, change=0.5, **like),
        Sampling(PROMPT, seed=3, source=SOURCE, change=0.25, **like),
        Sampling(PROMPT, seed=4, **like),
    ]
    together = draw(generator, samplings, sources=folder, batch=4)
    for sampling, image in zip(samplings, together, strict=True):
        assert np.abs(draw(generator, [sampling], sources=folder)[0] - image).max() <= 1.0


@pytest.mark.parametrize("name", ["ddim", "dpm++", "unipc", "euler", "pndm"])
def test_our_variations_are_the_stock_pipelines(name, tmp_path, monkeypatch):
    """Where they agree about where to begin: the stock one starts PNDM's warm-up one level late, so it is only held
    to the picture without noise that it must keep.
    """
    from diffusers import PNDMScheduler, StableDiffusionImg2ImgPipeline

    family = tiny_family("sd15")
    pictures = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)[None]
    latents = family.encode_images(pictures).latents(None)
    rows = [sampler.Row("portrait of man, red jacket", 4, guidance=4.0)]
    if name == "pndm":
        stock_scheduler = PNDMScheduler.from_config(family.scheduler_config, skip_prk_steps=True)
        monkeypatch.setattr(sampler, "scheduler", lambda *_: stock_scheduler)
        stock_scheduler.set_timesteps(10)
        kept = sampler._last_part(stock_scheduler, 10, 4)
        assert len(kept) == 5 and kept[1] == kept[2] and kept[0] - kept[1] == 100 and kept[-1] == 1
        one = sampler._last_part(stock_scheduler, 10, 1)
        assert one.tolist() == [1]
        options = {"steps": 10, "sources": pictures, "scheduler_name": name}
        near, far = (sampler.sample_latents(family, family.shared(), rows, change=c, **options) for c in (0.1, 0.8))
        assert (near - latents).abs().mean() < (far - latents).abs().mean()
        return
    ours = sampler.sample_latents(
        family, family.shared(), rows, steps=10, scheduler_name=name, sources=pictures, change=0.4
    )
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(tiny_folder("sd15"))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = sampler.scheduler(family, name)
    stock = pipeline(
        rows[0].prompt, image=latents, strength=0.4, num_inference_steps=10, guidance_scale=4.0,
        generator=torch.Generator().manual_seed(4), output_type="latent",
    ).images  # fmt: skip
    assert torch.equal(noise(4, latents.shape), torch.randn(latents.shape, generator=torch.Generator().manual_seed(4)))
    assert torch.allclose(ours, stock, atol=1e-3, rtol=1e-3)


def test_a_source_of_another_size_is_fitted(generator, varied):
    wide = Sampling(PROMPT, steps=4, width_px=160, height_px=96, source=SOURCE, change=0.5)
    assert draw(generator, [wide], sources=varied[0])[0].shape == (96, 160, 3)


@pytest.mark.parametrize(
    "source",
    ["/etc/passwd", "../run/renders/a.png", "renders/../../a.png", "renders//a.png", "renders/.a.png", "a.jpg", "",
     "C:/a.png", "renders\\a.png", "a.png\0.png", "x" * 300 + ".png"],
)  # fmt: skip
def test_a_source_is_a_plain_path_inside_the_run(source):
    with pytest.raises(UserError, match="must be a PNG of this run"):
        check(Sampling(PROMPT, source=source, change=0.5))
    with pytest.raises(UserError, match="must be a PNG of this run"):
        JobSpec(kind="generate", samplings=(Sampling(PROMPT, source=source, change=0.5),)).check()


@pytest.mark.parametrize("change", [0.0, 0.01, 1.01, -1, float("nan"), float("inf"), True, "half", None])
def test_change_is_a_share(change):
    with pytest.raises(UserError, match="Change must be a number from 0.05 to 1"):
        check(Sampling(PROMPT, source=SOURCE, change=change))


def test_what_is_not_the_runs_own_picture_is_refused(generator, varied, tmp_path):
    folder, picture = varied
    foreign = tmp_path / "secret"
    save_render(picture, Inscription(Sampling(PROMPT), "portrait-128"), foreign / "a.png", method="lora")
    run = tmp_path / "run"
    (run / "renders").mkdir(parents=True)
    (run / "renders" / "link.png").symlink_to(foreign / "a.png")
    (run / "linked").symlink_to(foreign, target_is_directory=True)
    picture.save(run / "renders" / "photo.png")
    torn = (folder / SOURCE).read_bytes()
    (run / "renders" / "torn.png").write_bytes(torn[: len(torn) // 2])
    for source, said in (
        ("renders/link.png", "does not lie in this run"),
        ("linked/a.png", "does not lie in this run"),
        ("renders/gone.png", "not there any more"),
        ("renders/photo.png", "not one that was drawn here"),
        ("renders/torn.png", "damaged"),
    ):
        with pytest.raises(UserError, match=said):
            draw(generator, [Sampling(PROMPT, steps=2, source=source, change=0.5)], sources=run)
    with pytest.raises(UserError, match="no picture to change"):
        draw(generator, [Sampling(PROMPT, change=0.5)])
    with pytest.raises(UserError, match="Without a run"):
        draw(generator, [Sampling(PROMPT, source=SOURCE, change=0.5)])


def test_a_comparison_draws_no_variations():
    asked = (Sampling(PROMPT, source=SOURCE, change=0.5),)
    JobSpec(kind="generate", samplings=asked).check()
    with pytest.raises(UserError, match="from noise only"):
        JobSpec(kind="compare", samplings=asked).check()


def test_pictures_from_noise_keep_the_names_and_settings_they_had_before_there_were_variations(tmp_path):
    plain = Sampling("portrait of {subject}")
    dialled = Sampling("portrait of {subject}, navy background", "red", 7, 2.5, 123, 128, 96, "euler", 0.8)
    assert render_name(plain) == "seed0-12cd13abf0.png"
    assert render_name(dialled) == "seed123-a45a0ec49f.png"
    spec = JobSpec(kind="generate", samplings=(plain,))
    written = json.dumps([jsonable(spec)], sort_keys=True)
    key = "2ed4b5e1e9f36989c882f4bc5c5cd1d6d0269b07c9470709fce5c8a66714a443"
    assert hashlib.sha256(written.encode()).hexdigest() == key
    save_render(Image.new("RGB", (8, 8)), Inscription(plain, "portrait-128"), tmp_path / "a.png", method="none")
    assert Image.open(tmp_path / "a.png").text["likeness"] == (
        '{"schema": 1, "method": "none", "base": "portrait-128", "subject": null, "sampling": {"prompt": '
        '"portrait of {subject}", "negative_prompt": "", "steps": 20, "guidance": 3.0, "seed": 0, "width_px": null, '
        '"height_px": null, "scheduler": "default", "strength": 1.0}}'
    )


def test_the_settings_of_a_variation_travel(tmp_path):
    sampling = Sampling(PROMPT, seed=9, source=SOURCE, change=0.35)
    assert (
        len(
            {
                render_name(each)
                for each in (sampling, Sampling(PROMPT, seed=9, source=SOURCE), Sampling(PROMPT, seed=9))
            }
        )
        == 3
    )
    save_render(Image.new("RGB", (8, 8)), Inscription(sampling, "portrait-128"), tmp_path / "a.png", method="lora")
    assert read_settings(tmp_path / "a.png") == sampling
    spec = JobSpec(kind="generate", samplings=(sampling, Sampling(PROMPT)))
    assert spec_from_json(json.loads(json.dumps(jsonable(spec)))) == spec


def test_the_end_of_a_prompt_that_is_not_read_is_told(tmp_path):
    """Per column: the person's name takes room too."""
    family = tiny_family("portrait")
    said = f"{PROMPT}, " + "grey background, " * 20 + "red jacket"
    asked = [Sampling(text, steps=1) for text in (PROMPT, said)]
    control = Control()
    told = list(draw_stage(run_at(tmp_path), ["none"], asked, family, class_word="man", control=control))
    (unread,) = [event.text for event in told if event.kind == "unread"]
    assert unread.endswith("grey background, red jacket") and said.endswith(unread)
    assert family.text.unread(said.replace("{subject}", "man").removesuffix(unread)) == ""
