"""Laws of the embedded recogniser: how it aligns, what it refuses, and how it is built."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from pipelines.core.records import UserError
from pipelines.faces import arcface_mini, dlib_faces
from pipelines.faces.face import Seen
from pipelines.faces.judges import judge_named
from pipelines.photos.decode import decode
from pipelines.photos.gather import photo_files

SHARED = Path(__file__).resolve().parents[3] / "shared"
PEOPLE, MODELS = SHARED / "data" / "people", SHARED / "models"
TEACHER = MODELS / "reid-retail-0095.onnx"

needs_people = pytest.mark.skipif(not PEOPLE.is_dir(), reason="needs ../shared/data/people")
needs_models = pytest.mark.skipif(not TEACHER.is_file(), reason="needs ../shared/models")


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    data = pytest.importorskip("skimage.data")
    return np.ascontiguousarray(data.astronaut()[:, :, :3])


def test_the_similarity_transform_finds_turn_scale_and_shift():
    points = arcface_mini.TEMPLATE
    turn = 1.7 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    found = arcface_mini.similarity_transform(points, points @ turn.T + [5.0, -3.0])
    assert np.allclose(found, np.column_stack([turn, [5.0, -3.0]]))


def test_the_judge_sees_the_same_person_at_any_size(astronaut):
    from PIL import Image

    judge = judge_named("arcface-mini")
    seen = judge.look(astronaut)
    assert seen.vector is not None and seen.vector.shape == (512,) and np.linalg.norm(seen.vector) == pytest.approx(1)
    for side in (128, 300, 1500):
        other = judge.look(np.asarray(Image.fromarray(astronaut).resize((side, side), Image.Resampling.LANCZOS)))
        assert other.vector is not None and judge.similarity(seen.vector, other.vector) > 0.7, side
    mirrored = judge.look(np.ascontiguousarray(astronaut[:, ::-1])).vector
    assert mirrored is not None and judge.similarity(seen.vector, mirrored) > 0.9
    assert judge.look(np.full((128, 128, 3), 90, np.uint8)) == Seen(None, "no face found")
    assert judge.look(np.full((10, 10, 3), 90, np.uint8)).vector is None


@needs_people
@needs_models
def test_dlibs_landmarks_give_nine_tenths_of_the_score_that_scrfds_give():
    pytest.importorskip("insightface")
    by_dlib = arcface_mini.ArcFaceMini()
    by_scrfd = judge_named("arcface-mini", MODELS)
    assert isinstance(by_scrfd, arcface_mini.ArcFaceMini)
    assert (by_dlib.detector, by_scrfd.detector) == ("dlib", "scrfd")
    means = {}
    for judge in (by_dlib, by_scrfd):
        found = []
        for person in ("p02", "p05", "p07", "p10", "p13"):
            vectors = [judge.look(decode(path)).vector for path in photo_files(PEOPLE / person)[:3]]
            assert all(vector is not None for vector in vectors)
            found += [judge.similarity(vectors[i], vectors[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
        means[judge.detector] = np.mean(found)
    assert means["dlib"] >= 0.9 * means["scrfd"] > 0.3


def test_a_hundred_renders_are_scored_within_ten_seconds_of_work(astronaut):
    """Counted, not timed: one detection and one pass of the network per picture, shared with the second judge."""
    mini, dlib = arcface_mini.ArcFaceMini(), judge_named("dlib")
    calls = []
    model = mini._load()

    class Counting:
        def run(self, *arguments):
            calls.append("network")
            return model.run(*arguments)

    mini._session = Counting()
    original = dlib_faces._detect
    pictures = [np.roll(astronaut[:256, 128:384], k, axis=0) for k in range(4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dlib_faces, "_detect", lambda image: calls.append("detection") or original(image))
        for picture in pictures:
            mini.look(picture)
            dlib.look(picture)
    assert calls.count("detection") == calls.count("network") == len(pictures)
    started = time.perf_counter()
    model.run(None, {"face": np.zeros((2, 3, 112, 112), np.float32)})
    assert time.perf_counter() - started < 2  # generous: 0.02 s on an idle core


def test_a_wrong_model_is_a_sentence_that_names_the_file(tmp_path, astronaut):
    with pytest.raises(UserError, match="gone.onnx is missing"):
        arcface_mini.ArcFaceMini(model=tmp_path / "gone.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(UserError, match="broken.onnx is no ONNX model"):
        arcface_mini.ArcFaceMini(model=broken).look(astronaut)
    onnx = pytest.importorskip("onnx")
    other = tmp_path / "other.onnx"
    shutil.copy(arcface_mini.MODEL, other)
    model = onnx.load(str(other))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 128
    onnx.save(model, str(other))
    with pytest.raises(UserError, match="other.onnx"):
        arcface_mini.ArcFaceMini(model=other).look(astronaut)
    assert arcface_mini.ArcFaceMini(model=other).calibration is None, "other weights: uncalibrated"


def test_the_shipped_model_is_small():
    assert arcface_mini.MODEL.stat().st_size <= 5_000_000
    onnx = pytest.importorskip("onnx")
    from onnx import numpy_helper

    numbers = sum(numpy_helper.to_array(t).size for t in onnx.load(str(arcface_mini.MODEL)).graph.initializer)
    assert numbers <= 2_500_000


# ------------------------------------------------------------------------------------------------- how it is built


def test_spoiled_views_are_pictures_of_the_right_size_and_depend_on_the_generator_only():
    torch = pytest.importorskip("torch")
    from tools.arcface_mini import data

    pixels = torch.rand(6, 3, data.PACKED_PX, data.PACKED_PX)
    first, again, other = (data.views(pixels, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == (6, 3, 112, 112) and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, again) and not torch.equal(first, other)
    plain = data.views(pixels, torch.Generator().manual_seed(0), strength=0.0)
    centre = pixels[..., data.MARGIN_PX : -data.MARGIN_PX, data.MARGIN_PX : -data.MARGIN_PX]
    assert all(
        min(float((a - b).abs().mean()), float((a - b.flip(2)).abs().mean())) < 1e-3 for a, b in zip(plain, centre)
    )


def test_the_margin_makes_the_right_answer_harder():
    torch = pytest.importorskip("torch")
    from tools.arcface_mini import training

    head = training.ArcFaceHead(torch.eye(4, 512))
    right = torch.eye(4, 512) + 0.8 * torch.eye(4, 512).roll(1, 0)  # leans towards the next person
    with_margin = head(right, torch.arange(4))
    unit = torch.nn.functional.normalize(right, dim=1)
    plain = torch.nn.functional.cross_entropy(training.SCALE * unit @ head.weight.T, torch.arange(4))
    assert with_margin > plain
    assert head(right, (torch.arange(4) + 2) % 4) > with_margin + training.SCALE / 2
    opposite = (-right).requires_grad_()
    head(opposite, torch.arange(4)).backward()
    assert opposite.grad is not None and bool(torch.isfinite(opposite.grad).all())


@needs_models
def test_the_network_starts_as_the_teacher_and_is_exported_as_it_is(tmp_path):
    torch = pytest.importorskip("torch")
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from tools.arcface_mini import export, network, training

    net, teacher = network.from_teacher(TEACHER).eval(), training.Teacher(TEACHER)
    coarse = torch.rand(3, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    faces_like = torch.nn.functional.interpolate(coarse, (112, 112), mode="bilinear")
    with torch.no_grad():
        ours, theirs = net(faces_like), teacher(faces_like)
    assert torch.nn.functional.cosine_similarity(ours[:, :256], theirs).min() > 0.98
    export.export(net, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    (again,) = session.run(None, {"face": faces_like.numpy()})
    assert torch.nn.functional.cosine_similarity(ours, torch.tensor(again)).min() > 0.9999
    assert (tmp_path / "net.onnx").stat().st_size < 2.2 * sum(p.numel() for p in net.parameters())


@needs_models
def test_training_resumes_from_its_checkpoint(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from pipelines.training.checkpoints import load_tensors
    from tools.arcface_mini import data, training

    monkeypatch.setattr(training, "BATCH", 4)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (12, data.PACKED_PX, data.PACKED_PX, 3), dtype=np.uint8)
    crops = data.Crops(pixels, np.repeat(np.arange(6), 2), np.array([data.TRAIN] * 8 + [data.VALIDATION] * 4))
    training.train(crops, TEACHER, tmp_path, budget_s=0.1, device="cpu")
    first = load_tensors(tmp_path / "student.safetensors")[1]
    training.train(crops, TEACHER, tmp_path, budget_s=first["spent_s"] + 0.1, device="cpu")
    second = load_tensors(tmp_path / "student.safetensors")[1]
    assert second["step"] > first["step"] >= 1
    found = training.validation(training.averaged(tmp_path), crops, device="cpu")
    assert set(found) == {"clean", "small"} and all(0.5 <= value <= 1 for value in found.values())


def test_pairs_are_balanced_and_what_they_say(tmp_path):
    pytest.importorskip("torch")
    from tools.arcface_mini import evaluate

    photos = [[Path(f"{person}/{k}.jpg") for k in range(1 + person % 5)] for person in range(60)]
    same, different = evaluate.choose_pairs(photos, 80)
    assert len(same) == len(different) == 80
    assert all(a.parent == b.parent and a != b for a, b in same)
    assert all(a.parent != b.parent for a, b in different)
    counts = [sum(a.parent == Path(str(person)) for a, _ in same) for person in range(60)]
    assert max(counts) <= evaluate.PAIRS_PER_PERSON
    values = np.random.default_rng(0).normal(size=50)
    assert evaluate.spearman(values, values**3) == pytest.approx(1.0)
    assert evaluate.spearman(values, -values) == pytest.approx(-1.0)


def test_the_card_draws_densities():
    pytest.importorskip("torch")
    from tools.arcface_mini import card

    rng = np.random.default_rng(0)
    curves = {"one person": rng.normal(0.7, 0.1, 500), "different people": rng.normal(0.0, 0.1, 500)}
    with_line = np.asarray(card.densities(curves, 0.4))
    without = np.asarray(card.densities(curves, None))
    assert with_line.shape == (420, 900, 3) and (with_line != without).any() and (without < 128).any()
