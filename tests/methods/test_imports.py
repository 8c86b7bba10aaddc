"""Other people's files: what is refused and with which sentence, and that what is taken draws and scores like ours."""

from __future__ import annotations

import json
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.bases.registry import find_base
from pipelines.core.files import read_lines, write_text
from pipelines.core.records import COLUMNS, METHODS, Sampling, UserError, is_imported, place_of
from pipelines.core.run import imported_columns
from pipelines.methods import imports, lora_files, lora_names, method
from pipelines.reports import archive
from pipelines.reports.tables import to_json
from pipelines.runs.compare import perform
from pipelines.runs.jobspec import JobSpec
from tests.methods.test_methods import disturbed, picture
from tests.runs import make_run
from tests.tiny import tiny_family, tiny_folder, tiny_recipe

STEM = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def row(kind="sd15"):
    return find_base(str(tiny_folder(kind)))


def lora(folder, kind="sd15", name="theirs.safetensors", **changes):
    """One of our own, exported; the file under kohya's names."""
    recipe = tiny_recipe(kind, "lora", **({"targets": "all", "text_learning_rate": 1e-3} | changes))
    learner = disturbed(method("lora").learner(tiny_family(kind), recipe), size=1.0)
    made = folder / "made"
    made.mkdir(exist_ok=True)
    learner.export(made)
    target = folder / name
    target.write_bytes((made / lora_files.FILE).read_bytes())
    return target, learner, recipe


def one_layer(file, *, rank=4, out=32, into=32, dtype=torch.float32, metadata=None, **more):
    tensors = {f"{STEM}.lora_down.weight": torch.ones(rank, into, dtype=dtype),
               f"{STEM}.lora_up.weight": torch.ones(out, rank, dtype=dtype)}  # fmt: skip
    save_file(tensors | more, str(file), metadata)
    return file


def raw(file, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


# -- refused -------------------------------------------------------------------------------------------------------


def test_pickles_are_refused_by_name_and_by_content(tmp_path):
    for name in ("a.pt", "a.ckpt", "a.bin", "a.pth", "a.txt", "a"):
        file = tmp_path / name
        file.write_bytes(b"\0" * 20)
        with pytest.raises(UserError, match="not a .safetensors file"):
            imports.look(file, row())
    zipped = tmp_path / "zip.safetensors"
    with zipfile.ZipFile(zipped, "w") as archive:  # what torch.save writes
        archive.writestr("archive/data.pkl", b"\x80\x02.")
    old = tmp_path / "old.safetensors"
    old.write_bytes(b"\x80\x02}q\x00." + b"\0" * 20)
    for file in (zipped, old):
        with pytest.raises(UserError, match="pickle"):
            imports.look(file, row())


GOOD = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
BROKEN = {
    "empty": b"",
    "short": b"\x05\0\0",
    "bomb": struct.pack("<Q", 1 << 62) + b"{}",
    "long": struct.pack("<Q", lora_names.HEADER_LIMIT + 1) + b" " * 100,
    "no json": struct.pack("<Q", 8) + b"not json",
    "deep": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "a list": struct.pack("<Q", 2) + b"[]",
    "not text": struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc",
}
HEADERS = {
    "nothing": {},
    "beyond the end": {"x": {**GOOD, "data_offsets": [0, 400], "shape": [100]}},
    "negative": {"x": {**GOOD, "data_offsets": [-4, 0]}},
    "shape and size": {"x": {**GOOD, "shape": [2]}},
    "overflow": {"x": {**GOOD, "shape": [1 << 40, 1 << 40]}},
    "a gap": {"x": {**GOOD, "data_offsets": [4, 8]}},
    "overlap": {"x": GOOD, "y": GOOD},
    "unknown numbers": {"x": {**GOOD, "dtype": "OBJECT"}},
    "no shape": {"x": {"dtype": "F32", "data_offsets": [0, 4]}},
    "bools": {"x": {**GOOD, "shape": [True]}},
    "metadata": {"x": GOOD, "__metadata__": {"a": [1]}},
    "too many": {f"x{k}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for k in range(12_001)},
}


def test_a_header_as_long_as_a_pickles_first_byte_is_no_pickle(tmp_path):
    """Its length comes first, lowest byte first: 128, 384, ... begin with the byte every new pickle begins with."""
    for length in (128, 384, 0x4B50):  # and "PK", as a ZIP does
        text = json.dumps({"emb_params": {"dtype": "F32", "shape": [1, 32], "data_offsets": [0, 128]}}).encode()
        file = raw(tmp_path / "x.safetensors", text + b" " * (length - len(text)), b"\0" * 128)
        assert imports.look(file, row()).kind == "embedding"


@pytest.mark.parametrize("name", BROKEN)
def test_damaged_files_get_a_sentence(name, tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(BROKEN[name])
    with pytest.raises(UserError, match="damaged"):
        imports.look(file, row())


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_lie_get_a_sentence(name, tmp_path):
    with pytest.raises(UserError, match="damaged"):
        imports.look(raw(tmp_path / "x.safetensors", HEADERS[name], b"\0" * 8), row())


def test_cut_and_lengthened_files_are_noticed(tmp_path):
    file, _, _ = lora(tmp_path)
    whole = file.read_bytes()
    for blob in (whole[:-1], whole[: len(whole) // 2], whole + b"\0"):
        file.write_bytes(blob)
        with pytest.raises(UserError, match="damaged"):
            imports.look(file, row())


def test_caps_on_size_rank_and_strength(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="rank 513"):
        imports.look(one_layer(tmp_path / "r.safetensors", rank=513), row())
    with pytest.raises(UserError, match="alpha"):
        imports.look(one_layer(tmp_path / "a.safetensors", **{f"{STEM}.alpha": torch.tensor(1e9)}), row())
    with pytest.raises(UserError, match="alpha"):
        imports.look(one_layer(tmp_path / "n.safetensors", **{f"{STEM}.alpha": torch.tensor(float("nan"))}), row())
    with pytest.raises(UserError, match="I32"):
        imports.look(one_layer(tmp_path / "i.safetensors", dtype=torch.int32), row())
    monkeypatch.setattr(imports, "LORA_MB", 0.001)
    with pytest.raises(UserError, match="MB are taken"):
        imports.look(one_layer(tmp_path / "big.safetensors", rank=64), row())


def test_a_hosted_space_takes_less(monkeypatch):
    monkeypatch.delenv(imports.LIMIT_ENV, raising=False)
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert imports.limit_mb("lora") == 1000
    monkeypatch.setenv("SPACE_ID", "a/b")
    assert imports.limit_mb("lora") == 200 and imports.limit_mb("embedding") == 20
    monkeypatch.setenv(imports.LIMIT_ENV, "64")
    assert imports.limit_mb("lora") == 64


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_that_are_none_are_found(value, dtype, tmp_path):
    spoiled = torch.ones(4, 32, dtype=dtype)
    spoiled[3, 31] = value
    file = one_layer(tmp_path / "x.safetensors", dtype=dtype, **{f"{STEM}.lora_down.weight": spoiled})
    with pytest.raises(UserError, match="NaN or infinite"):
        imports.look(file, row())
    big = one_layer(tmp_path / "y.safetensors", dtype=dtype, **{f"{STEM}.lora_down.weight": spoiled.nan_to_num(60000)})
    assert imports.look(big.with_name("y.safetensors"), row()).rank == 4  # large is not infinite


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (f"{STEM}.hada_w1_a", "LoHa"),
        (f"{STEM}.lokr_w1", "LoKr"),
        (f"{STEM}.lora_mid.weight", "Tucker"),
        (f"{STEM}.diff", "whole weights"),
        ("bundle_emb.me.string_to_param.*", "bundled"),
        ("model.diffusion_model.out.2.weight", "checkpoint"),
    ],
)
def test_other_kinds_are_named(key, kind, tmp_path):
    save_file({key: torch.ones(4, 4)}, str(tmp_path / "x.safetensors"))
    with pytest.raises(UserError, match=kind):
        imports.look(tmp_path / "x.safetensors", row())


def test_a_file_for_another_base_is_told_whose_it_is(tmp_path):
    file, _, _ = lora(tmp_path, "sdxl")
    with pytest.raises(UserError, match=r"made for Stable Diffusion XL, not for"):
        imports.look(file, row("sd15"))
    cross = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file({f"{cross}.lora_down.weight": torch.ones(4, 2048), f"{cross}.lora_up.weight": torch.ones(32, 4)},
              str(tmp_path / "bare.safetensors"))  # fmt: skip
    with pytest.raises(UserError, match=r"made for Stable Diffusion XL"):  # no metadata: its shape tells
        imports.look(tmp_path / "bare.safetensors", row("sd15"))
    with pytest.raises(UserError, match="does not fit"):
        imports.look(one_layer(tmp_path / "odd.safetensors", into=31), row("sd15"))
    save_file({f"{STEM}.lora_down.weight": torch.ones(4, 32)}, str(tmp_path / "half.safetensors"))
    with pytest.raises(UserError, match="not whole"):
        imports.look(tmp_path / "half.safetensors", row("sd15"))


def test_a_stranger_s_pattern_is_not_run(tmp_path):
    evil = json.dumps({"unet.lora_alpha": 2, "unet.alpha_pattern": {"(a+)+$": 8}})
    file = one_layer(tmp_path / "x.safetensors", metadata={"lora_adapter_metadata": evil})
    (alpha,) = imports.look(file, row()).numbers.values()
    assert alpha == 2
    for bad in ("{", "[" * 100_000, json.dumps({"unet.lora_alpha": "many"})):
        one_layer(file, metadata={"lora_adapter_metadata": bad})
        with pytest.raises(UserError, match="metadata"):
            imports.look(file, row())


def test_embeddings_are_checked(tmp_path):
    file, width = tmp_path / "e.safetensors", 32
    for key in ("emb_params", "<someone>", "emp_params"):
        save_file({key: torch.ones(3, width)}, str(file))
        assert imports.look(file, row()).rank == 3
    save_file({"x": torch.ones(width)}, str(file))
    assert imports.look(file, row()).rank == 1
    for tensors, said in (
        ({"emb_params": torch.ones(3, 768)}, "vectors of 768"),
        ({"emb_params": torch.ones(76, width)}, "76 vectors"),
        ({"emb_params": torch.full((2, width), float("nan"))}, "NaN"),
        ({"a": torch.ones(2, width), "b": torch.ones(2, width)}, "neither"),
        ({"a": torch.ones(2, 2, 2)}, "neither"),
    ):
        save_file(tensors, str(file))
        with pytest.raises(UserError, match=said):
            imports.look(file, row())
    save_file({"emb_params": torch.ones(2, width)}, str(file))
    with pytest.raises(UserError, match="clip_l and clip_g"):
        imports.look(file, row("sdxl"))
    save_file({"clip_l": torch.ones(2, width), "clip_g": torch.ones(2, width)}, str(file))
    assert set(imports.look(file, row("sdxl")).parts) == {"text_encoder", "text_encoder_2"}


# -- taken ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["kohya", "diffusers"])
@pytest.mark.parametrize("kind", ["portrait", "sd15", "sdxl"])
def test_our_own_lora_imported_draws_the_same(kind, spelling, tmp_path):
    family = tiny_family(kind)
    file, learner, recipe = lora(tmp_path, kind, rank=4, alpha=1.0)
    if spelling == "diffusers":
        file = tmp_path / "made" / "pytorch_lora_weights.safetensors"
    run = make_run(tmp_path / "run")
    card = imports.add(run, file, family.row, name="theirs", class_word="man")
    folder = run.method("imported-theirs")
    ours = f"{family.row.identifier} man"
    assert card.phrase == (ours if spelling == "kohya" else "man")  # the trigger stands in kohya's metadata
    assert sorted(each.name for each in folder.iterdir()) == ["lora.safetensors", "subject.json"]
    applied = method(card.method).apply(family, folder, card.recipe)
    prompt = f"portrait of {ours}"
    live = picture(family, learner.modules, prompt)
    assert np.abs(live - picture(family, family.shared(), prompt)).mean() > 0.3
    assert np.abs(picture(family, applied, prompt) - live).mean() < 0.3
    without = method(card.method).apply(family, folder, card.recipe, strength=0.0)
    assert np.abs(picture(family, without, prompt) - picture(family, family.shared(), prompt)).max() <= 1


@pytest.mark.parametrize("kind", ["portrait", "sdxl"])
def test_our_own_embedding_imported_draws_the_same(kind, tmp_path):
    family = tiny_family(kind)
    recipe = tiny_recipe(kind, "textual_inversion", vectors=2)
    learner = disturbed(method("textual_inversion").learner(family, recipe), size=3.0)
    learner.export(tmp_path)
    run = make_run(tmp_path / "run")
    card = imports.add(run, tmp_path / "likeness.safetensors", family.row, name="me", class_word="man")
    assert card.phrase == "<imported-me> <imported-me>_1 man"
    applied = method(card.method).apply(family, run.method("imported-me"), card.recipe)
    live = picture(family, learner.modules, f"portrait of {method('textual_inversion').phrase(family.row, recipe)}")
    assert np.abs(picture(family, applied, f"portrait of {card.phrase}") - live).max() <= 1


def test_only_what_was_understood_is_kept(tmp_path):
    file = one_layer(tmp_path / "x.safetensors", metadata={"secret": "s3cret", "modelspec.trigger_phrase": "zwx man"})
    run = make_run(tmp_path / "run")
    card = imports.add(run, file, row(), name="x", class_word="man")
    kept = run.method("imported-x") / "lora.safetensors"
    assert b"s3cret" not in kept.read_bytes() and card.phrase == "zwx man"
    path = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    saved = load_file(str(kept))
    assert set(saved) == {f"{path}.down", f"{path}.up", f"{path}.alpha"} and saved[f"{path}.alpha"] == 4
    evil = "{subject} <b>"
    one_layer(file, metadata={"modelspec.trigger_phrase": evil})
    assert imports.add(run, file, row(), name="y", class_word="man").phrase == "man"
    with pytest.raises(UserError, match="braces"):
        imports.add(run, file, row(), name="z", class_word="man", phrase=evil)


def test_words_that_are_not_drawn_call_nobody(tmp_path):
    refused = "a naked woman"
    file = one_layer(tmp_path / "x.safetensors", metadata={"modelspec.trigger_phrase": refused})
    run = make_run(tmp_path / "run")
    with pytest.raises(UserError):
        imports.add(run, file, row(), name="x", class_word="man", phrase=refused)
    assert imported_columns(run) == ()
    assert imports.add(run, file, row(), name="x", class_word="man").phrase == "man", "nor what the file itself says"


def test_names_are_free_plain_and_few(tmp_path):
    run, file = make_run(tmp_path / "run"), one_layer(tmp_path / "x.safetensors")
    for bad in ("", "../up", "A", "a b", "-a", "x" * 25, "a/b"):
        with pytest.raises(UserError, match="can't name"):
            imports.add(run, file, row(), name=bad, class_word="man")
    for k in range(imports.MAX_IMPORTED):
        imports.add(run, file, row(), name=f"n{k}", class_word="man")
    with pytest.raises(UserError, match="At most"):
        imports.add(run, file, row(), name="more", class_word="man")
    with pytest.raises(UserError, match="already"):
        imports.add(run, file, row(), name="n1", class_word="man")
    assert imports.slug("Ünïque <Name> v2.1!") == "n-que-name-v2-1" and imports.slug("***") == "imported"
    assert not list((run.folder / "methods").glob(".part*"))


def test_columns_have_an_order():
    mixed = ["imported-b", "lora", "imported-a", "none", "textual_inversion"]
    assert sorted(mixed, key=place_of)[-2:] == ["imported-a", "imported-b"]
    assert sorted(mixed, key=place_of)[0] == COLUMNS[0] and not any(map(is_imported, COLUMNS))


def test_an_imported_column_is_drawn_reported_packed_and_removed(tmp_path):
    """The whole way through a generate job, with no judge's weights needed but those embedded."""
    run = make_run(tmp_path / "run")
    file, _, _ = lora(tmp_path, "portrait")
    base = str(tiny_folder("portrait"))
    imports.add(run, file, find_base(base), name="theirs", class_word="man")
    sampling = Sampling("portrait of {subject}", steps=2)
    columns = ("none", "imported-theirs")
    spec = JobSpec("generate", base, "man", columns, samplings=(sampling,))
    spec.check()
    drawn = []
    with pytest.raises(UserError, match="No recogniser"):  # the photos are noise: nobody is in them to judge against
        for event in perform(run, spec):
            drawn += [event.method] if event.kind == "render" else []
    assert drawn == list(columns)
    pictures = [next(run.renders(column).glob("*.png")) for column in columns]
    assert pictures[0].read_bytes() != pictures[1].read_bytes()
    said = archive.readme(run, [*pictures, run.method("imported-theirs") / "lora.safetensors"])
    assert "renders/imported-theirs/: 1 picture" in said
    score = {"render": run.relative(pictures[1]), "judge": "x", "similarity": 0.5}
    write_text(run.scores, "".join(json.dumps(score | {"render": run.relative(p)}) + "\n" for p in pictures))
    imports.remove(run, "imported-theirs")
    assert imported_columns(run) == () and not run.renders("imported-theirs").exists()
    assert [line["render"] for line in read_lines(run.scores)] == [run.relative(pictures[0])]
    for name in ("imported-theirs", "lora", "../photos", "imported-../.."):
        with pytest.raises(UserError):
            imports.remove(run, name)
    with pytest.raises(UserError, match="no longer in this run"):
        list(perform(run, spec))


def test_no_imported_column_wins(tmp_path):
    from pipelines.core.records import PhotoSet, Score
    from pipelines.evaluation.scale import Scale
    from pipelines.reports.findings import Findings, ScoredRender, verdict

    def cells(column, value):
        return [
            ScoredRender(column, Sampling("portrait of {subject}", seed=k), f"{column}{k}", (Score("", "j", value),))
            for k in range(4)
        ]

    names = ("none", "lora", "imported-best")
    found = [cell for name, value in zip(names, (0.1, 0.4, 0.9), strict=True) for cell in cells(name, value)]
    marks = {"j": Scale(judge="j", **{k: None for k in Scale.__dataclass_fields__ if k != "judge"})}
    findings = Findings("b", "B", "man", "good", 0, 1.0, PhotoSet((), (), ()), names, tuple(found), marks, {})
    assert findings.best_column() == "lora" and "imported" not in verdict(findings)
    assert "imported-best" in findings.drawn_here  # it answered the same prompts and seeds
    card = to_json(findings)["methods"]["imported-best"]
    assert card["steps"] is card["train_s"] is None and card["identity"]["j"]["mean"] == 0.9
    assert "imported-best" not in METHODS


def renamed(folder, change):
    """A whole LoRA of the tiny base with its tensors' names changed by `change`."""
    layout, tensors = lora_names.layout(row()), {}
    for path in [path for path in layout.weights if path.endswith(("to_q", "q_proj"))]:
        out, into = layout.weights[path][:2]
        tensors[f"{layout.flat(path)}.lora_down.weight"] = torch.ones(2, into)
        tensors[f"{layout.flat(path)}.lora_up.weight"] = torch.ones(out, 2)
    return save_to(folder / "renamed.safetensors", {change(name): tensor for name, tensor in tensors.items()})


def save_to(path, tensors):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(path))
    return path


def test_an_adapter_may_have_any_name(tmp_path):
    def peft(name):
        name = name.replace(".lora_down.weight", ".lora_A.theirs.weight")
        return name.replace(".lora_up.weight", ".lora_B.theirs.weight")

    found, plain = (imports.look(renamed(tmp_path, change), row()) for change in (peft, str))
    assert set(found.parts) == set(plain.parts) and found.parts


def test_text_layers_may_be_called_by_their_whole_path(tmp_path):
    def longer(name):
        return name.replace("lora_te_text_model_", "transformer_text_model_")

    found, plain = (imports.look(renamed(tmp_path, change), row()) for change in (longer, str))
    assert set(found.parts) == set(plain.parts) and any(path.startswith("text_encoder.") for path in found.parts)


def test_one_stray_key_is_left_out_and_named_and_many_are_another_base(tmp_path):
    file = renamed(tmp_path, str)
    whole = load_file(str(file))
    save_to(file, whole | {"lora_unet_no_such_layer.lora_down.weight": torch.ones(2, 3)})
    found = imports.look(file, row())
    assert found.left_out == ("lora_unet_no_such_layer.lora_down.weight",) and len(found.parts) == len(whole)
    run = make_run(tmp_path / "run")
    imports.add(run, file, row(), name="theirs", class_word="man")
    (said,) = imports.remarks(run, "imported-theirs")
    assert "lora_unet_no_such_layer" in said and "no such layer" in said
    save_to(file, whole | {f"lora_unet_none_{k}.lora_down.weight": torch.ones(2, 3) for k in range(len(whole))})
    with pytest.raises(UserError, match="does not fit"):
        imports.look(file, row())


def test_an_alpha_of_0_is_said(tmp_path):
    file = renamed(tmp_path, str)
    whole = load_file(str(file))
    first = next(iter(whole)).partition(".lora_")[0]
    save_to(file, whole | {f"{first}.alpha": torch.tensor(0.0)})
    run = make_run(tmp_path / "run")
    imports.add(run, file, row(), name="theirs", class_word="man")
    (said,) = imports.remarks(run, "imported-theirs")
    assert f"1 of {len(whole) // 2}" in said and "alpha of 0" in said
