"""The side-by-side benchmarks: what stands in for torchvision does what it says, and every program runs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import gpu_step, versus_diffusers
from benchmarks.versus import transforms
from benchmarks.versus_diffusers import (
    CAREFUL,
    DEFAULTS,
    OURS,
    UNTRAINED,
    Asked,
    Process,
    Row,
    bars,
    phone_photos,
    row_of,
    table,
)
from pipelines.core.device import Device, free_memory_gb

VERSUS = Path(transforms.__file__).parent


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_the_stand_in_crops_and_resizes_as_torchvision_says():
    assert transforms.Resize(30)(picture(80, 60)).size == (40, 30)
    assert transforms.Resize(30)(picture(60, 80)).size == (30, 40)
    assert transforms.Resize((30, 50))(picture(60, 80)).size == (50, 30)
    wide = picture(80, 60)
    assert np.array_equal(np.asarray(transforms.CenterCrop(40)(wide)), np.asarray(wide)[10:50, 20:60])
    torch.manual_seed(0)
    crops = {transforms.RandomCrop(50)(wide).tobytes() for _ in range(8)}
    inside = {np.asarray(wide)[t : t + 50, s : s + 50].tobytes() for t in range(11) for s in range(31)}
    assert len(crops) > 3 and crops <= inside
    with pytest.raises(ValueError, match="does not fit"):
        transforms.RandomCrop(70)(wide)


def test_the_stand_in_makes_tensors_as_torchvision_says():
    image = picture(6, 4)
    chain = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
    tensor = chain(image)
    assert tensor.shape == (3, 4, 6) and tensor.dtype == torch.float32
    back = ((tensor * 0.5 + 0.5) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(back, np.asarray(image))
    always, never = transforms.RandomHorizontalFlip(1.0)(image), transforms.RandomHorizontalFlip(0.0)(image)
    assert np.array_equal(np.asarray(always), np.asarray(image)[:, ::-1]) and never is image
    assert {mode.name.lower() for mode in transforms.InterpolationMode} >= {"bilinear", "bicubic", "lanczos", "nearest"}


def test_updates_are_noted_from_outside(tmp_path):
    """Any optimizer, any process: one line per update with rising clocks, and one for the end."""
    program = (
        "import torch\nw = torch.nn.Parameter(torch.zeros(3))\nfor kind in (torch.optim.AdamW, torch.optim.SGD):\n"
        "    o = kind([w], lr=0.1)\n    for _ in range(2):\n        w.sum().backward(); o.step()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(VERSUS), "LIKENESS_TIMINGS": str(tmp_path), "LIKENESS_STAND_INS": ""}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    (file,) = tmp_path.glob("*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 5 and lines[-1]["end"] and not any("end" in line for line in lines[:-1])
    for name in ("t", "cpu", "rss_mb"):
        assert [line[name] for line in lines] == sorted(line[name] for line in lines) and lines[0][name] > 0


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="the real one is here")
def test_the_stand_in_is_there_for_scripts_and_not_for_transformers(tmp_path):
    assert "torchvision is not installed" in versus_diffusers.stand_ins(tmp_path / "stand_ins")[0]
    program = (
        "import transformers\nfrom torchvision import transforms\nprint(transforms.CenterCrop(8).size)\n"
        "from transformers.utils import is_torchvision_available\nassert not is_torchvision_available()\n"
        "from diffusers import StableDiffusionPipeline\n"
    )
    environment = os.environ | {"PYTHONPATH": str(VERSUS), "LIKENESS_STAND_INS": str(tmp_path / "stand_ins")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "8"


def test_photos_are_phone_sized_and_hold_the_picture(tmp_path):
    small = picture(8, 8).resize((64, 64), Image.Resampling.BICUBIC)
    small.save(tmp_path / "a.png")
    (photo,) = phone_photos([tmp_path / "a.png"], tmp_path / "photos")
    with Image.open(photo) as opened:
        assert opened.size == (4000, 3000) and opened.format == "JPEG"
        middle = opened.convert("RGB").crop((500, 0, 3500, 3000)).resize((64, 64), Image.Resampling.BOX)
    assert np.abs(np.asarray(middle, np.float32) - np.asarray(small, np.float32)).mean() < 6
    assert photo.stat().st_size > 1_000_000


def _row(who: str, to_artefact_s: float, update_s: float, identity: float | None) -> Row:
    return Row("lora", who, 10, 8, to_artefact_s, update_s, update_s, update_s, 8 / update_s, 1.0, 100, 1000, identity)


def test_identity_is_compared_over_people():
    rows = []
    for person, mine, theirs in (("p01", 0.5, 0.2), ("p02", 0.3, 0.4), ("p03", 0.4, 0.0)):
        rows += [_row(OURS, 1, 1, mine), _row(DEFAULTS, 1, 1, theirs), _row(UNTRAINED, 1, 1, 0.1)]
        rows[-1].method = "none"
        for row in rows[-3:]:
            row.subject = person
    rows[-2].identity = None  # no face in any picture: no likeness
    (bar,) = versus_diffusers.identity_bars(rows, "people")
    assert bar.met and bar.figure == pytest.approx(0.2)
    table = versus_diffusers.identity_table(rows, "people").splitlines()
    assert table[2].split(" | ")[1:3] == ["likeness", "0.400"]
    assert table[3].split(" | ")[2] == "0.200" and "2 of 3 people" in table[3] and "0.200 (" in table[3]
    assert table[4].split(" | ")[2] == "0.100" and "3 of 3 people" in table[4]
    for row in rows:
        row.identity = 0.1 if row.who == OURS else 0.2
    assert not versus_diffusers.identity_bars(rows, "people")[0].met


def test_every_fold_is_judged_by_other_photos(tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in "abcdef":
        (photos / f"{name}.png").write_bytes(b"")
    seen = []

    def train(asked, *_, **__):
        return replace(_row("", 1, 1, None), folder=",".join(sorted(file.stem for file in asked.photos.iterdir())))

    def judge(rows, asked, judged_by, *_):
        seen.append((rows[0].folder, ",".join(file.stem for file in judged_by)))
        return "nobody"

    monkeypatch.setattr(versus_diffusers, "ours", train)
    monkeypatch.setattr(versus_diffusers, "script", train)
    monkeypatch.setattr(versus_diffusers, "judge_rows", judge)
    options = Namespace(judged_by=2, no_careful=True, pictures=4, judge="")
    asked = Asked("base", tmp_path, 128, "woman", "sks", 3, 1, "good", tmp_path, Path(), tmp_path / "work", Path())
    for fold in range(3):
        rows = versus_diffusers.measure(asked, ["lora"], options, photos, [], subject=str(fold), fold=fold)
        assert {row.subject for row in rows} == {str(fold)} and not asked.work.exists()
    assert seen == [("a,b,c,d", "e,f"), ("c,d,e,f", "a,b"), ("a,b,e,f", "c,d")]


def test_bars_hold_only_against_the_defaults():
    mine, slow, careful = _row(OURS, 10, 0.2, 0.5), _row(DEFAULTS, 30, 0.32, 0.5), _row(CAREFUL, 5, 0.1, 0.9)
    assert [bar.met for bar in bars([mine, slow, careful])] == [True, True, True]
    assert [bar.met for bar in bars([mine, _row(DEFAULTS, 29, 0.29, 0.51)])] == [False, False, False]
    assert len(bars([mine, _row(DEFAULTS, 30, 0.3, None)])) == 2 and bars([mine, careful]) == []
    assert "(3x)" in table([mine, slow]) and table([mine]).count("x)") == 0


def test_a_row_is_made_of_the_notes():
    updates = [{"t": 100.0 + 2 * k, "cpu": 5.0 + k, "rss_mb": 10.0} for k in range(4)]
    row = row_of("lora", OURS, Process(90.0, 120.0, updates, 12.0, 55.0), batch=8, ready=115.0, files=[])
    assert (row.steps, row.to_artefact_s, row.update_s, row.update_cpu_s, row.images_per_s) == (4, 25.0, 2.0, 1.0, 4.0)


def test_the_gpu_harness_runs(tmp_path, capsys):
    out = tmp_path / "found.json"
    cases = "sd15-dreambooth-2,sdxl-lora-2"
    assert gpu_step.main(["--tiny", "--cases", cases, "--repeats", "1", "--json", str(out)]) == 0
    saved = json.loads(out.read_text())
    figures = saved["figures"]
    assert [(each["case"], each["who"]) for each in figures] == [
        (case, who) for case in cases.split(",") for who in ("script", "script", "likeness")
    ]
    assert ["--gradient_checkpointing" in each["how"] for each in figures] == [False, True, False] * 2
    for each in figures:
        assert each["step_ms"] > 0 and each["step_tflop"] > 0 and each["peak_gb"] is None and each["first_step_s"] > 0
    for start in range(0, len(figures), 3):
        theirs, own = figures[start : start + 2], figures[start + 2]
        assert sum(each["shipped"] for each in theirs) == 1 and own["shipped"]
        assert min(theirs, key=lambda each: each["step_ms"])["shipped"], "the fastest is its best"
        # the script encodes the pictures in every step on top of the same arithmetic
        assert theirs[1]["step_tflop"] > theirs[0]["step_tflop"] > own["step_tflop"]
        assert "Gradient checkpointing is off" in own["how"], "the app's own plan"
    assert saved["bars"] == [], "a CPU proves nothing"
    assert "sdxl-lora-2" in capsys.readouterr().out


def _gpu(who: str, step_ms: float, peak_gb: float, how: str = "", *, shipped: bool = True) -> gpu_step.Figures:
    return gpu_step.Figures("sd15-lora-1", who, how, step_ms, 1.0, 1.0, 0.5, peak_gb, 1.0, shipped)


def test_the_bars_of_a_gpu():
    slow, best = _gpu("script", 300, 5, shipped=False), _gpu("script", 200, 8)
    mine = _gpu("likeness", 100, 8)
    assert [bar.met for bar in gpu_step.bars([slow, best, mine])] == [True, True]
    assert [bar.met for bar in gpu_step.bars([slow, best, replace(mine, step_ms=101, peak_gb=8.1)])] == [False, False]
    compiled = _gpu("likeness", 50, 8, "compiled", shipped=False)
    assert not gpu_step.bars([best, replace(mine, step_ms=150), compiled])[0].met, "the app would not compile here"
    roomy = replace(mine, peak_gb=9.0)
    tight = _gpu("likeness", 120, 7.5, gpu_step.WITHIN_THEIRS + "; plan", shipped=False)
    assert [bar.met for bar in gpu_step.bars([best, roomy, tight])] == [True, True], "it would have done with less"
    assert [bar.met for bar in gpu_step.bars([best])] == [False], "the script fits and ours does not"
    assert gpu_step.bars([mine]) == []
    rows = gpu_step.table([slow, best, mine]).splitlines()
    assert rows[-1].split(" | ")[4] == "2.00x" and "**likeness**" in rows[-1] and "**script**" not in rows[-3]


def test_a_missed_bar_is_an_exit_code(monkeypatch, capsys):
    missed = gpu_step.Bar("sd15-lora-1", "peak memory at most the script's", "9 of 8 GB", met=False)
    monkeypatch.setattr(gpu_step, "write_base", lambda *_, **__: None)
    monkeypatch.setattr(gpu_step, "measure", lambda *_, **__: [_gpu("likeness", 1, 9)])
    monkeypatch.setattr(gpu_step, "bars", lambda found: [missed])
    assert gpu_step.main(["--tiny", "--cases", "sd15-lora-1"]) == 1
    assert "MISSED: sd15-lora-1: peak memory" in capsys.readouterr().out


def test_a_smaller_card_is_what_the_plan_sees(monkeypatch):
    allowed = {"share": 1.0}
    for name, stand_in in {
        "mem_get_info": lambda *_: (130e9, 140e9), "memory_reserved": lambda *_: 2e9, "empty_cache": lambda: None,
        "get_device_properties": lambda *_: Namespace(total_memory=140e9),
        "set_per_process_memory_fraction": lambda share, _index: allowed.update(share=share),
        "get_per_process_memory_fraction": lambda _index: allowed["share"],
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    card = Device("cuda", "bfloat16", "a card")
    assert free_memory_gb(card) == 132.0
    with gpu_step.card_of(6.0, card):
        assert free_memory_gb(card) == pytest.approx(5.4), "CUDA's own 0.6 GB are gone"
    assert free_memory_gb(card) == 132.0


def test_what_is_compared_on_a_gpu_is_alike():
    recipe = gpu_step.compared_recipe("sdxl-lora-4")
    assert (recipe.batch, recipe.rank, recipe.targets, recipe.text_learning_rate) == (4, 16, "attention", 0.0)
    assert gpu_step.compared_recipe("sd15-dreambooth-8").prior_weight == 0.0
    assert gpu_step.shipped_recipe("sd15-lora").text_learning_rate > 0, "the memory bars hold for what is shipped"
    plain = gpu_step.possible_flags(Device("cpu", "float32", "no card"))
    assert [str(each) for each in plain] == [
        "--mixed_precision bf16 --allow_tf32", "--mixed_precision bf16 --allow_tf32 --gradient_checkpointing"
    ]  # fmt: skip


def test_gpus_of_the_harness_are_those_of_the_registry():
    """The memory plan and the choice to compile rest on these numbers."""
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    from pipelines.bases.registry import BASES

    for kind, config in gpu_step.UNETS.items():
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            unet, side = UNet2DConditionModel(**config), config["sample_size"]
            added = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)} if kind == "sdxl" else None
            told = torch.zeros(1, 77, config["cross_attention_dim"])
            unet(torch.zeros(1, 4, side, side), torch.zeros(1), told, added_cond_kwargs=added)
        assert BASES[kind].forward_tflop == pytest.approx(counter.get_total_flops() / 1e12, rel=0.02)
        assert BASES[kind].footprint.denoiser_m == pytest.approx(
            sum(p.numel() for p in unet.parameters()) / 1e6, rel=0.01
        )
