"""One decoder and one set of limits, whoever asks; one rule for `{subject}`."""

from __future__ import annotations

import json
import os

import pytest

from pipelines.core.decode import check_record, decode, limits, with_subject
from pipelines.core.files import append_line, jsonable, read_json, read_lines, write_json
from pipelines.core.records import Photo, Recipe, Sampling, UserError
from pipelines.runs.jobspec import JobSpec, spec_from_json


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 500}, "Steps must be a whole number from 1 to 200, not 500."),
        ({"steps": 20.5}, "Steps must be a whole number from 1 to 200, not 20.5."),
        ({"steps": True}, "Steps must be a whole number from 1 to 200, not True."),
        ({"steps": "20"}, "Steps must be a whole number from 1 to 200, not 20."),
        ({"guidance": float("nan")}, "Guidance must be a number from 0 to 50, not nan."),
        ({"seed": -1}, "Seed must be a whole number from 0 to 9,007,199,254,740,992, not -1."),
        ({"width_px": 8}, "Width must be a whole number from 64 to 4096, not 8."),
        ({"change": 0.01}, "Change must be a number from 0.05 to 1, not 0.01."),
        ({"prompt": 3}, "Prompt must be a text, not 3."),
        ({"draft": 1}, "Draft must be true or false, not 1."),
    ],
)
def test_a_wrong_field_is_one_sentence_at_every_door(changes, said):
    sampling = Sampling(**{"prompt": "{subject}", **changes})
    with pytest.raises(UserError) as alone:
        check_record(sampling)
    with pytest.raises(UserError) as read:
        decode(Sampling, {"prompt": "{subject}", **changes})
    with pytest.raises(UserError) as asked:
        JobSpec(kind="generate", methods=("lora",), samplings=(sampling,)).check()
    assert str(alone.value) == str(read.value) == said
    assert str(asked.value) == said.replace("Seed must", "The seed must")


def test_a_record_is_read_as_it_was_written():
    recipe = Recipe("sd15", "lora", snr_gamma=None, learning_rate=1, alpha=8)
    assert decode(Recipe, jsonable(recipe)) == recipe
    assert decode(Recipe, {**jsonable(recipe), "came_later": 1}) == recipe
    spec = JobSpec(samplings=(Sampling("{subject}", steps=20, guidance=3),), images={"other": ("a.png",)})
    assert spec_from_json(json.loads(json.dumps(jsonable(spec)))) == spec
    whole = decode(Sampling, {"prompt": "{subject}", "steps": 20.0})
    assert whole.steps == 20 and isinstance(whole.steps, int)


@pytest.mark.parametrize("saved", [[], "x", None, {"prompt": ["{subject}"]}, {}])
def test_what_is_no_record_is_a_sentence(saved):
    with pytest.raises(UserError):
        decode(Sampling, saved)


def test_limits_are_there_for_sliders():
    assert limits(Sampling, "steps") == (1, 200) and limits(Sampling, "width_px") == (64, 4096)
    assert limits(Recipe, "snr_gamma") == (0, 1000)


def test_a_file_name_that_is_no_utf8_is_kept_to_the_byte(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    spec = JobSpec(photos=(name,), keep=("normal", "日本.jpg"))
    write_json(tmp_path / "spec.json", spec)
    assert spec_from_json(read_json(tmp_path / "spec.json")) == spec
    append_line(tmp_path / "lines.jsonl", {"name": name})
    assert read_lines(tmp_path / "lines.jsonl") == [{"name": name}]
    photo = Photo(name, "p", "0", 1, 1, (0.0, 0.0, 1.0, 1.0), ((0.0, 0.0), (1.0, 1.0)), 1.0)
    assert decode(Photo, jsonable(photo)) == photo


@pytest.mark.parametrize(
    ("prompt", "placed"),
    [
        ("portrait of {subject}", "portrait of {subject}"),
        ("grey background", "{subject}, grey background"),
        (" grey background ", "{subject}, grey background"),
        ("", ""),
    ],
)
def test_a_prompt_without_subject_gets_it_in_front_and_says_so(prompt, placed):
    made, said = with_subject(prompt)
    assert made == placed and (said is None) == (made == prompt)
    assert said is None or placed in said


@pytest.mark.parametrize("wrong", ["{Subject}", "{}", "{sks}", "{ subject }"])
def test_a_misspelt_placeholder_is_named(wrong):
    with pytest.raises(UserError) as caught:
        with_subject(f"portrait of {wrong} and {{subject}}")
    assert wrong in str(caught.value) and "{subject}" in str(caught.value)
    with pytest.raises(UserError, match="Write {subject}"):
        JobSpec(kind="generate", methods=("lora",), samplings=(Sampling(f"portrait of {wrong}"),)).check()
