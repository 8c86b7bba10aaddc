"""Laws of the upscaler and of the flaw map, what is refused, and how both are built."""

from __future__ import annotations

import builtins
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pipelines.core.records import UserError  # noqa: E402
from pipelines.finishing import enlarge  # noqa: E402
from pipelines.finishing.enlarge import FlawMap, find_upscaler, flaw_map, load_upscaler, overlay  # noqa: E402
from pipelines.finishing.nets import Critic, Enlarger, Shape  # noqa: E402

PORTRAITS = Path(__file__).resolve().parents[3] / "shared" / "data" / "portraits"
needs_portraits = pytest.mark.skipif(not PORTRAITS.is_dir(), reason="needs ../shared/data/portraits")


@pytest.fixture(scope="module")
def upscaler() -> enlarge.Upscaler:
    return load_upscaler()


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture with slopes and edges, no noise."""
    rng = np.random.default_rng(seed)
    coarse = torch.tensor(rng.random((1, 3, 9, 9)), dtype=torch.float32)
    big = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (big[0].permute(1, 2, 0) * 255).round().byte().numpy()


# ------------------------------------------------------------------------------------------------------ the enlarger


@pytest.mark.parametrize("size", [(128, 128), (113, 113), (17, 40), (64, 33)])
def test_any_picture_becomes_twice_as_large(upscaler, size):
    image = smooth(*size)
    large = upscaler.enlarge(image)
    assert large.shape == (2 * size[0], 2 * size[1], 3) and large.dtype == np.uint8
    assert large.flags["C_CONTIGUOUS"], "as dlib and OpenCV want it"
    # and shows the same thing: shrunk again it is what it was
    back = large.reshape(size[0], 2, size[1], 2, 3).mean((1, 3))
    assert np.abs(back - image).mean() < 4


def test_the_same_picture_gives_the_same_answer(upscaler):
    image = smooth(96, 80)
    kept = image.copy()
    assert np.array_equal(upscaler.enlarge(image), upscaler.enlarge(image))
    assert np.array_equal(image, kept), "the picture given is not written to"


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (60, 90, 140), (200, 40, 40)])
def test_a_plain_picture_stays_plain(upscaler, colour):
    large = upscaler.enlarge(np.full((64, 64, 3), colour, np.uint8)).astype(int)
    assert np.abs(large - colour).max() <= 16
    assert large[20:-20, 20:-20].std(axis=(0, 1)).max() < 2, "no pattern of its own"


def test_tiles_leave_no_seam(upscaler, monkeypatch):
    image = smooth(190, 260)
    image[::7, ::5] = 255
    whole = upscaler.enlarge(image).astype(int)
    monkeypatch.setattr(enlarge, "TILE_PX", 160)
    assert np.abs(upscaler.enlarge(image).astype(int) - whole).max() <= 1


def test_what_lies_far_away_changes_nothing(upscaler):
    image = smooth(128, 256)
    other = image.copy()
    other[:, 192:] = 0
    a, b = upscaler.enlarge(image).astype(int), upscaler.enlarge(other).astype(int)
    reach = 2 * enlarge.OVERLAP_PX
    assert np.abs(a - b)[:, : 2 * 192 - reach].max() <= 1 and np.abs(a - b)[:, 2 * 192 :].max() > 50


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((64, 64), np.uint8),
        np.zeros((64, 64, 4), np.uint8),
        np.zeros((64, 64, 3), np.float32),
        np.zeros((8, 64, 3), np.uint8),
        np.zeros((16, enlarge.LARGEST_PX + 1, 3), np.uint8),
    ],
)
def test_what_is_no_picture_gets_a_sentence(upscaler, image):
    with pytest.raises(UserError):
        upscaler.enlarge(image)
    with pytest.raises(UserError):
        flaw_map(image)


def test_the_shipped_files_are_small_and_fit_their_card():
    assert (enlarge.MODEL / "enlarger.safetensors").stat().st_size <= 3_000_000
    assert (enlarge.MODEL / "critic.safetensors").stat().st_size <= 2_000_000
    assert {path.suffix for path in enlarge.MODEL.iterdir()} <= {".safetensors", ".json", ".md"}
    told = json.loads((enlarge.MODEL / "evaluation.json").read_text())
    assert told["enlarger_bytes"] == (enlarge.MODEL / "enlarger.safetensors").stat().st_size
    assert told["critic_bytes"] == (enlarge.MODEL / "critic.safetensors").stat().st_size
    assert told["clean_ours_same_person"] >= 0.97 and told["rebuilt_ours_same_person"] >= 0.97
    assert told["clean_ours_psnr_db"] >= told["clean_bicubic_psnr_db"] - 0.5
    assert told["rebuilt_ours_psnr_db"] >= told["rebuilt_bicubic_psnr_db"] - 0.5
    assert told["auc_drawn"] >= 0.8, "the map is used only because it separates"


def test_damaged_weights_are_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(enlarge, "MODEL", tmp_path)
    enlarge.settings.cache_clear()
    try:
        with pytest.raises(UserError, match="config.json is missing"):
            load_upscaler().enlarge(smooth(32, 32))
        (tmp_path / "config.json").write_text(json.dumps({"enlarger": Shape(8, 8, 1)._asdict()}))
        (tmp_path / "enlarger.safetensors").write_bytes(b"not tensors")
        with pytest.raises(UserError, match="enlarger.safetensors is missing"):
            load_upscaler().enlarge(smooth(32, 32))
        from pipelines.training.checkpoints import save_tensors

        save_tensors(tmp_path / "enlarger.safetensors", Enlarger(Shape(8, 16, 1)).state_dict())
        with pytest.raises(UserError, match="does not fit"):
            load_upscaler().enlarge(smooth(32, 32))
    finally:
        enlarge.settings.cache_clear()


# ------------------------------------------------------------------------------------------------------ the flaw map


def test_a_flaw_map_has_values_and_a_score_for_any_size():
    for size in ((128, 128), (226, 226), (512, 512), (200, 300)):
        found = flaw_map(smooth(*size))
        assert found.values.dtype == np.float32 and found.values.ndim == 2 and min(found.values.shape) == 28
        assert found.values.min() >= 0 and found.values.max() <= 1
        assert found.score == pytest.approx(float(found.values.mean()))
    assert flaw_map(smooth(226, 226)).score == flaw_map(smooth(226, 226)).score


def test_the_worst_place_is_where_the_map_is_highest():
    values = np.zeros((4, 8), np.float32)
    values[1, 6] = 0.9
    assert FlawMap(values, 0.1).worst == (6.5 / 8, 1.5 / 4)


def test_the_overlay_colours_the_flaws_and_nothing_else():
    image = smooth(120, 80)
    values = np.zeros((15, 10), np.float32)
    clean = overlay(image, FlawMap(values, 0.0))
    values[:5, :4] = 1.0
    shown = overlay(image, FlawMap(values, 0.2))
    assert shown.shape == image.shape and shown.dtype == np.uint8
    assert np.array_equal(shown[60:], clean[60:]) and (shown[:30, :20] != clean[:30, :20]).any()
    towards = np.abs(shown[:30, :20].astype(int) - enlarge.OVERLAY_COLOUR).mean()
    assert towards < np.abs(clean[:30, :20].astype(int) - enlarge.OVERLAY_COLOUR).mean() / 2


# ------------------------------------------------------------------------------------------------------ what is refused


def test_every_row_says_its_licence_and_source():
    assert next(iter(enlarge.UPSCALERS)) == enlarge.NAME
    for row in enlarge.UPSCALERS.values():
        assert row.licence and row.about.endswith(".") and row.file.endswith(".safetensors")
    assert "non-commercial" in enlarge.UPSCALERS["codeformer"].licence


@pytest.mark.parametrize("suffix", enlarge.PICKLES)
def test_pickles_are_refused_before_they_are_opened(tmp_path, suffix):
    path = tmp_path / f"RealESRGAN{suffix.upper()}"
    path.write_bytes(b"\x80\x04 anything")
    with pytest.raises(UserError, match="is a pickle"):
        load_upscaler(path)


def test_an_unknown_name_and_a_missing_file_are_sentences(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="There is no upscaler waifu"):
        find_upscaler("waifu")
    with pytest.raises(UserError, match="There is no upscaler gone.safetensors"):
        find_upscaler(tmp_path / "gone.safetensors")
    monkeypatch.setenv("LIKENESS_UPSCALERS", str(tmp_path))
    with pytest.raises(UserError, match="RealESRGAN_x2plus.safetensors in the folder that LIKENESS_UPSCALERS names"):
        find_upscaler("real-esrgan-x2")
    (tmp_path / "RealESRGAN_x2plus.safetensors").write_bytes(b"x")
    assert find_upscaler("real-esrgan-x2").licence == "BSD-3-Clause"
    named = find_upscaler(tmp_path / "RealESRGAN_x2plus.safetensors")
    assert (named.name, named.path) == ("real-esrgan-x2", str(tmp_path / "RealESRGAN_x2plus.safetensors"))


def test_without_spandrel_a_sentence_names_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"x")
    original = builtins.__import__

    def missing(name, *arguments, **options):
        if name == "spandrel":
            raise ModuleNotFoundError("No module named 'torchvision'", name="torchvision")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"torchvision, which is not here. Install requirements-gpu.txt"):
        load_upscaler(path)


def test_codeformers_own_package_is_named_with_its_terms(tmp_path, stub, monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel_extra_arches", None)
    path = tmp_path / "codeformer.safetensors"
    path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"spandrel_extra_arches==0.2.0` if its terms suit you .*non-commercial"):
        load_upscaler(path, device="cpu")


class _Model:
    """What spandrel gives back: a descriptor that is called with one picture in 0..1."""

    input_channels = output_channels = 3

    def __init__(self, scale: int, purpose: str) -> None:
        self.scale, self.purpose, self.seen = scale, purpose, []

    def float(self):
        return self

    def eval(self):
        return self

    def __call__(self, x):
        self.seen.append(tuple(x.shape))
        return torch.nn.functional.interpolate(x, scale_factor=self.scale, mode="nearest")


@pytest.fixture
def stub(monkeypatch):
    """A module with the part of spandrel's interface that is used."""
    module = types.ModuleType("spandrel")
    module.ImageModelDescriptor = _Model
    module.models = {}

    class ModelLoader:
        def __init__(self, device=None):
            assert device == "cpu"

        def load_from_file(self, path):
            if path.name not in module.models:
                raise ValueError("unsupported")
            return module.models[path.name]

    module.ModelLoader = ModelLoader
    monkeypatch.setitem(sys.modules, "spandrel", module)
    return module


def test_a_persons_own_weights_double_whatever_their_scale(tmp_path, stub):
    image = smooth(48, 30)
    for scale in (1, 2, 4):
        path = tmp_path / f"x{scale}.safetensors"
        path.write_bytes(b"x")
        stub.models[path.name] = _Model(scale, "SR")
        loaded = load_upscaler(path, device="cpu")
        assert loaded.row.scale == scale and not loaded.row.is_restorer
        assert loaded.enlarge(image).shape == (96, 60, 3)
    assert np.array_equal(load_upscaler(tmp_path / "x2.safetensors").enlarge(image)[::2, ::2], image)


def test_a_face_restorer_sees_one_square_face_at_its_own_size(tmp_path, stub):
    path = tmp_path / "GFPGANv1.4.safetensors"
    path.write_bytes(b"x")
    model = stub.models[path.name] = _Model(1, "FaceSR")
    loaded = load_upscaler(path, device="cpu")
    assert loaded.row.is_restorer and loaded.row.name == "gfpgan-1.4"
    assert loaded.enlarge(smooth(128, 128)).shape == (256, 256, 3) and model.seen == [(1, 3, 512, 512)]
    with pytest.raises(UserError, match="Crop the picture square"):
        loaded.enlarge(smooth(64, 80))


def test_a_file_of_another_kind_is_a_sentence(tmp_path, stub):
    for name in ("lora.safetensors", "inpainting.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    stub.models["inpainting.safetensors"] = object()
    with pytest.raises(UserError, match="lora.safetensors is no upscaler that can be read"):
        load_upscaler(tmp_path / "lora.safetensors", device="cpu")
    with pytest.raises(UserError, match="does not turn one RGB picture into another"):
        load_upscaler(tmp_path / "inpainting.safetensors", device="cpu")


# ------------------------------------------------------------------------------------------------------ how it is built


def test_folding_spectral_norm_changes_no_answer():
    critic = Critic().eval()
    x = torch.rand(2, 3, 48, 40)
    with torch.no_grad():
        assert critic(x).shape == (2, 1, 6, 5)
        assert torch.allclose(critic(x), critic.plain()(x), atol=1e-6)


def _portraits(count: int = 30):
    from tools.upscaler import data

    large = np.stack([smooth(data.LARGE_PX, data.LARGE_PX, k) for k in range(count)])
    rebuilt = np.stack([data.resized(one, 128) for one in large])
    return data.Portraits(large, rebuilt, np.arange(count) < 4)


def test_pairs_show_the_same_place_and_depend_on_the_generator_only():
    from tools.upscaler import data

    portraits = _portraits(6)
    for crop_px in (48, None):
        small, large = data.pairs(portraits, np.arange(6), np.random.default_rng(3), crop_px=crop_px)
        again, _ = data.pairs(portraits, np.arange(6), np.random.default_rng(3), crop_px=crop_px)
        side = crop_px or data.SMALL_PX
        assert small.shape == (6, 3, side, side) and large.shape == (6, 3, 2 * side, 2 * side)
        assert torch.equal(small, again)
        shrunk = torch.nn.functional.avg_pool2d(large, 2)
        assert float((shrunk - small).abs().mean()) < 0.03


def test_the_parts_share_nobody():
    from tools.upscaler import training

    portraits = _portraits(40)
    teaching, watched = training.parts(portraits)
    held = np.flatnonzero(portraits.held_out)
    assert sorted([*teaching, *watched, *held]) == list(range(40)) and len(watched) == training.VALIDATION


def test_training_resumes_and_exports(tmp_path, monkeypatch):
    from pipelines.training.checkpoints import load_tensors
    from tools.upscaler import critic, export, training

    monkeypatch.setattr(training, "CROPS", 2)
    monkeypatch.setattr(training, "FRAMES", 1)
    monkeypatch.setattr(critic, "BATCH", len(critic.KINDS))
    portraits, shape = _portraits(), Shape(8, 16, 1)
    options = {"device": "cpu", "shape": shape}
    training.train(portraits, tmp_path, stage="pixels", budget_s=0.2, **options)
    first = load_tensors(tmp_path / "pixels.safetensors")[1]
    training.train(portraits, tmp_path, stage="pixels", budget_s=first["spent_s"] + 0.2, **options)
    assert load_tensors(tmp_path / "pixels.safetensors")[1]["step"] > first["step"] >= 1
    training.train(portraits, tmp_path, stage="gan", budget_s=0.2, **options)
    training.train(portraits, tmp_path, stage="gan", budget_s=0.4, **options)
    drawn = np.stack([smooth(128, 128, 100 + k) for k in range(60)])
    monkeypatch.setattr(critic, "WATCHED", 10)
    monkeypatch.setattr("tools.upscaler.data.SAMPLES", 60)
    critic.train(portraits, drawn, tmp_path, budget_s=0.2, device="cpu")
    export.export(tmp_path, tmp_path / "out")
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert Shape(**told["enlarger"]) == shape
    tensors, _ = load_tensors(tmp_path / "out" / "critic.safetensors")
    assert set(tensors) == set(Critic(normalised=False).state_dict())


def test_auc_counts_pairs():
    from tools.upscaler import critic

    assert critic.auc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0
    assert critic.auc(np.array([1.0]), np.array([1.0])) == 0.5
    rng = np.random.default_rng(0)
    right, wrong = rng.normal(1, 1, 60), rng.normal(0, 1, 70)
    assert critic.auc(right, wrong) == pytest.approx((right[:, None] > wrong[None]).mean())


def test_both_kinds_of_picture_come_through_one_chain():
    """The same picture given as a photo and as a drawing differs only in what is said of it."""
    from tools.upscaler import critic, data

    portraits = _portraits(2)
    photo = portraits.large[0]
    net = Enlarger(Shape(8, 8, 1)).eval()
    seen = {}
    for kind in (critic.PHOTO, critic.DRAWN):
        rng = np.random.default_rng(5)
        assert np.random.default_rng(5).random() >= 0.25, "this photo is enlarged, too"
        picture, right = critic.example(kind, photo, portraits.rebuilt[0], photo, net, rng)
        seen[kind] = picture
        assert right.min() == right.max() == float(kind == critic.PHOTO)
    assert np.array_equal(seen[critic.PHOTO], seen[critic.DRAWN])
    picture, right = critic.example(critic.SPLICED, photo, portraits.rebuilt[0], photo, net, np.random.default_rng(1))
    assert picture.shape == (data.LARGE_PX, data.LARGE_PX, 3) and 0 < right.mean() < 1


@needs_portraits
def test_a_held_out_portrait_is_enlarged_better_than_by_bicubic_and_stays_the_person(upscaler):
    import csv

    from PIL import Image

    from pipelines.faces.dlib_faces import dlib_detect
    from pipelines.faces.face import PORTRAIT_EYES_APART_PX, PORTRAIT_EYES_MID, PORTRAIT_SIZE_PX, align_by_eyes
    from tools.upscaler import data, evaluate

    rows = list(csv.DictReader((PORTRAITS / "portraits.csv").open()))
    held = np.random.default_rng(0).permutation(len(rows))[: data.HELD_OUT]
    scale = data.LARGE_PX / PORTRAIT_SIZE_PX
    mid = (PORTRAIT_EYES_MID[0] * scale, PORTRAIT_EYES_MID[1] * scale)
    photos = []
    for k in held[:6]:
        image = np.array(Image.open(PORTRAITS / rows[k]["file"]).convert("RGB"))
        eyes = dlib_detect(image)[0].eyes
        apart = PORTRAIT_EYES_APART_PX * scale
        photos.append(align_by_eyes(image, eyes, size_px=data.LARGE_PX, midpoint=mid, apart_px=apart))
    small = [data.resized(one, data.SMALL_PX, Image.Resampling.BICUBIC) for one in photos]
    made = np.stack([upscaler.enlarge(one) for one in small])
    plain = np.stack([evaluate.bicubic(one) for one in small])
    true = data.tensor(np.stack(photos))
    gain = data.psnr(data.tensor(made), true) - data.psnr(data.tensor(plain), true)
    assert float(gain.mean()) >= -0.5
    sharp = data.gradient_energy(data.tensor(made)) / data.gradient_energy(true)
    assert float(sharp.mean()) > float((data.gradient_energy(data.tensor(plain)) / data.gradient_energy(true)).mean())
    judges = evaluate.Judges(None)
    found = judges.compare([judges.look(one) for one in photos], [judges.look(one) for one in made])
    assert found["same_person"] == 1.0 and found["arcface_mini"] > 0.7
