"""What is computed how often, to the call: on the tiny base, deterministic, nothing is timed.

Speed on somebody's machine is a measurement (benchmarks/); that nothing is computed twice is a law.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.nn.modules.module import register_module_forward_pre_hook

from pipelines.bases import family as family_module
from pipelines.bases import loading
from pipelines.core.records import METHODS, Look, Sampling, Watch
from pipelines.core.run import load_photo_set, run_at
from pipelines.generation.generator import Generator
from pipelines.photos.album import Album
from pipelines.runs.compare import compare, perform
from pipelines.runs.jobspec import JobSpec
from pipelines.training.loop import train
from pipelines.training.previews import PREVIEW_STEPS
from pipelines.training.watch import WATCH_STEPS
from tests.cases import quick_are
from tests.runs import quick
from tests.tiny import tiny_data, tiny_family, tiny_folder, tiny_recipe, tiny_subject

SAMPLE = Path(__file__).resolve().parents[2] / "presets" / "sample_person"
PARTS = {"Encoder": "encode", "Decoder": "decode", "CLIPTextModel": "text", "UNet2DConditionModel": "denoise"}
PHOTOS = 4
# After the last step the artefact is read back and must draw the same picture (one preview each, with guidance: two
# prompts to encode) and answer the same (saved, live and base once each).
PROOF = Counter(denoise=2 * PREVIEW_STEPS + 3, decode=2, text=2 * 2 + 3)


@contextlib.contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Counter[str], Counter[str]]]:
    """(calls, rows): how often each network ran, and on how many pictures or prompts in all; "load" counts bases."""
    calls: Counter[str] = Counter()
    rows: Counter[str] = Counter()

    def before(module, args):
        if (part := PARTS.get(type(module).__name__)) is not None and args:
            calls[part] += 1
            rows[part] += len(args[0])

    load = loading._load

    def loaded(*args, **options):
        calls["load"] += 1
        return load(*args, **options)

    monkeypatch.setattr(loading, "_load", loaded)
    handle = register_module_forward_pre_hook(before)
    try:
        yield calls, rows
    finally:
        handle.remove()


def trained(monkeypatch, tmp_path: Path, method: str, *, photos=PHOTOS, validation=0, watch=None, **changes):
    """(calls, rows) of one training on a base that is loaded already."""
    family, data = tiny_family("portrait"), tiny_data("portrait", photos=photos, validation=validation)
    recipe = tiny_recipe("portrait", method, **changes)
    with counted(monkeypatch) as (calls, rows):
        told = list(train(recipe, data, tmp_path / method, family=family, watch=watch))
    assert told[-1].kind == "done"
    return calls, rows


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("method", METHODS)
def test_a_training(monkeypatch, tmp_path, method, steps):
    """Each photo is encoded once, whatever the steps; one denoiser call per step; captions are encoded once where words
    do not learn, and once a step where they do. Nothing is loaded, nothing is decoded before the end.
    """
    calls, rows = trained(monkeypatch, tmp_path, method, steps=steps)
    words = steps if method == "textual_inversion" else 1
    assert calls == PROOF + Counter(encode=1, denoise=steps, text=words)
    assert rows["encode"] == PHOTOS
    assert rows["decode"] == 2
    captions = 2 * PHOTOS if words == 1 and method != "textual_inversion" else 2 * steps  # whole and short | a batch
    assert rows["text"] == captions + 4 + 3 * 4
    # a preview's step is one call on both halves of guidance; the answers are compared at four noise levels
    assert rows["denoise"] == 2 * steps + 2 * 2 * PREVIEW_STEPS + 3 * 4


@pytest.mark.parametrize("method", METHODS)
def test_mirrored_and_validation_photos_are_encoded_once_too(monkeypatch, tmp_path, method):
    calls, rows = trained(monkeypatch, tmp_path, method, steps=4, mirror=True, validation=1)
    assert rows["encode"] == 2 * PHOTOS + 1 and calls["encode"] == 2
    looks = 2  # checkpoint_every=2: at steps 2 and 4, four noise levels in one call
    assert calls["denoise"] == 4 + looks + PROOF["denoise"]


def test_more_photos_than_fit_at_once_are_encoded_in_parts(monkeypatch, tmp_path):
    calls, rows = trained(monkeypatch, tmp_path, "lora", photos=family_module.VAE_BATCH + 1, steps=1)
    assert (calls["encode"], rows["encode"]) == (2, family_module.VAE_BATCH + 1)


def test_live_words_are_encoded_once_a_step(monkeypatch, tmp_path):
    calls, _ = trained(monkeypatch, tmp_path, "lora", steps=3, text_learning_rate=1e-3)
    assert calls["text"] == 3 + PROOF["text"]


def test_class_images_cost_no_encoding(monkeypatch, tmp_path):
    """They are kept as the latents that they were drawn as."""
    from pipelines.training.batches import CLASS_IMAGE_STEPS

    calls, rows = trained(monkeypatch, tmp_path, "dreambooth", steps=3, batch=2, prior_weight=1.0, prior_images=4)
    assert rows["encode"] == PHOTOS and calls["decode"] == PROOF["decode"]
    assert calls["denoise"] == 3 + 2 * CLASS_IMAGE_STEPS + PROOF["denoise"]  # four in batches of two


@pytest.mark.parametrize("method", quick_are(METHODS, "lora"))
def test_a_look_at_a_checkpoint_is_one_batch(monkeypatch, tmp_path, method):
    watch = Watch(
        "nobody", ("portrait of {subject}", "{subject}, red jacket"), lambda frames: Look(1.0, 1.0, None, 1.0)
    )
    plain, _ = trained(monkeypatch, tmp_path / "plain", method, steps=4)
    calls, _ = trained(monkeypatch, tmp_path / "watched", method, steps=4, watch_every=2, watch=watch)
    assert calls - plain == Counter(denoise=2 * WATCH_STEPS, decode=2, text=2 * 2)


@pytest.mark.parametrize("method", [None, *METHODS])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_drawing(monkeypatch, method, guidance):
    """Five pictures in batches of two: what is asked for together is computed together; without guidance half of it."""
    family = tiny_family("portrait")
    generator = Generator(family.row, family=family)
    folder = tiny_subject("portrait", method) if method else None
    asked = [Sampling("portrait of {subject}", steps=3, seed=seed, guidance=guidance) for seed in range(5)]
    list(generator.render(asked[:1], folder, class_word="man"))  # apply
    with counted(monkeypatch) as (calls, rows):
        assert len(list(generator.render(asked, folder, class_word="man", batch=2))) == 5
    sides = 2 if guidance > 1 else 1
    assert calls == Counter(denoise=3 * 3, decode=3, text=3 * sides)
    assert rows == Counter(denoise=3 * 5 * sides, decode=5, text=5 * sides)


def test_a_variation_encodes_its_source_once(monkeypatch):
    import numpy as np

    from pipelines.bases.sampling import Row, sample

    family = tiny_family("portrait")
    frames = np.zeros((2, 128, 128, 3), np.uint8)
    with counted(monkeypatch) as (calls, rows):
        sample(family, family.shared(), [Row("man", 1), Row("man", 2)], steps=10, sources=frames, change=0.5)
    assert calls == Counter(encode=1, denoise=5, decode=1, text=2) and rows["encode"] == 2


@contextlib.contextmanager
def photos_read(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> Iterator[Counter[Path]]:
    """How often each file in `folders` was decoded, by whoever asked."""
    from PIL import Image

    read: Counter[Path] = Counter()
    plain = Image.open

    def opened(file, *args, **options):
        name = Path(str(getattr(file, "name", file)))
        if name.parent in folders:
            read[name] += 1
        return plain(file, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", opened)
        yield read


@pytest.mark.parametrize("kind", ["portrait", "sd15"])
def test_a_photo_is_decoded_once_and_never_while_it_is_learned(monkeypatch, tmp_path, kind):
    """A phone's photo takes a quarter of a second: each file once when it is taken in, its copy once for all methods
    together, validation photos among them, and none between the first step and the last.
    """
    photos, run = tmp_path / "photos", run_at(tmp_path / "run")
    photos.mkdir()
    for index in range(8):
        shutil.copy(SAMPLE / f"synthetic-{index:02d}.png", photos)
    monkeypatch.setenv("LIKENESS_FACE_MODELS", str(tmp_path / "no-packs"))
    spec = JobSpec(
        "train", str(tiny_folder(kind)), "woman", METHODS, "draft", photos=tuple(map(str, sorted(photos.iterdir()))),
        settings={name: quick(name, steps=3, watch_every=0)[name] for name in METHODS},
    )  # fmt: skip
    steps: dict[str | None, list[int]] = {}
    with photos_read(monkeypatch, photos, run.photos) as read:
        for event in perform(run, spec):
            if event.kind == "step":
                steps.setdefault(event.method, []).append(read.total())
    assert event.kind == "done" and {name: len(each) for name, each in steps.items()} == dict.fromkeys(METHODS, 3)
    taken = load_photo_set(run)
    assert taken is not None and (len(taken.train), len(taken.validation), len(taken.held_out)) == (5, 1, 2)
    learned = [*taken.train, *taken.validation]
    expected = Counter(photos.iterdir()) + Counter(Path(photo.path) for photo in learned)
    assert read == expected and read.total() == 8 + 6
    assert {total for each in steps.values() for total in each} == {8 + 6}, "all of it before the first step"


def test_a_comparison(monkeypatch, tmp_path):
    """One base load for everything. Six photos: four are learned from, two held out."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(6):
        shutil.copy(SAMPLE / f"synthetic-{index:02d}.png", photos)
    monkeypatch.setenv("LIKENESS_FACE_MODELS", str(tmp_path / "no-packs"))
    steps, renders = 2, 3
    settings = {name: quick(name, steps=steps)[name] for name in METHODS}
    copies = tmp_path / "run" / "photos"
    with counted(monkeypatch) as (calls, rows), photos_read(monkeypatch, photos, copies) as read:
        told = list(
            compare(
                photos, class_word="woman", base=str(tiny_folder("portrait")), quality="draft", out=tmp_path / "run",
                renders=renders, settings=settings,
            )
        )  # fmt: skip
    assert told[-1].kind == "done"
    assert calls["load"] == 1
    methods, columns = len(METHODS), len(METHODS) + 2  # beside them the untrained base and zero_shot
    # by each method, since they learn side by side; the held-out ones once, for what the decoder can draw at best
    assert rows["encode"] == 4 * methods + 2
    assert rows["decode"] == PROOF["decode"] * methods + renders * columns + 2
    sampling_steps = 20
    drawn = columns + 1  # batches: the first picture of zero_shot is drawn alone
    assert calls["denoise"] == (steps + PROOF["denoise"]) * methods + sampling_steps * drawn
    # each file once when it is taken in, its copy once for all methods, judges and looks together
    taken = Counter(Path(photo.path) for photo in load_photo_set(run_at(tmp_path / "run")).photos)
    assert read == Counter(photos.iterdir()) + taken and read.total() == 6 + 6


@contextlib.contextmanager
def looked_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[tuple[str, str]]]:
    """How often each judge looked at each picture: (judge, hash of its pixels)."""
    from pipelines.faces.arcface_mini import ArcFaceMini
    from pipelines.faces.dlib_faces import DlibJudge

    looks: Counter[tuple[str, str]] = Counter()

    def counting(kind: type) -> None:
        plain = kind.look

        def look(judge, image, *known):
            looks[judge.name, hashlib.sha256(image.tobytes()).hexdigest()] += 1
            return plain(judge, image, *known)

        patch.setattr(kind, "look", look)

    with monkeypatch.context() as patch:
        counting(ArcFaceMini)
        counting(DlibJudge)
        yield looks


@pytest.mark.parametrize(
    "methods", quick_are([("lora",), ("textual_inversion", "lora")], ("textual_inversion", "lora"))
)
def test_each_photo_is_decoded_once_and_each_judge_looks_at_it_once(monkeypatch, tmp_path, methods):
    """Whatever the methods, judges and looks: training is watched by one judge, two of them score, one looks closer."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(8):
        shutil.copy(SAMPLE / f"synthetic-{index:02d}.png", photos)
    monkeypatch.setenv("LIKENESS_FACE_MODELS", str(tmp_path / "no-packs"))
    settings = {name: quick(name, steps=2)[name] | {"watch_every": 1} for name in methods}
    run = run_at(tmp_path / "run")
    with photos_read(monkeypatch, photos, run.photos) as read, looked_at(monkeypatch) as looks:
        told = list(
            compare(
                photos, class_word="woman", base=str(tiny_folder("portrait")), quality="draft", out=run.folder,
                methods=methods, renders=1, settings=settings,
            )
        )  # fmt: skip
    assert told[-1].kind == "done" and sum(event.kind == "watch" for event in told) == 2 * len(methods)
    taken = load_photo_set(run)
    assert taken is not None and (len(taken.train), len(taken.validation), len(taken.held_out)) == (5, 1, 2)
    assert read == Counter(photos.iterdir()) + Counter(Path(photo.path) for photo in taken.photos)
    album = Album(taken)
    seen = {photo.name: hashlib.sha256(album.view(photo).tobytes()).hexdigest() for photo in taken.photos}
    scoring = [("arcface-mini", photo) for photo in (*taken.train, *taken.held_out)]
    watching = [("dlib", photo) for photo in taken.photos]
    expected = {(judge, seen[photo.name]): 1 for judge, photo in scoring + watching}
    assert {key: count for key, count in looks.items() if key[1] in seen.values()} == expected
