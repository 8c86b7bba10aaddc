"""Groups, headlines and exact tests on made figures whose right values are worked out by hand."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from pipelines.core.files import write_json
from pipelines.evaluation.statistics import difference_of_groups, sign_flip_p
from pipelines.reports.groups import CEILING, SEPARATION, RealPhotos, group_rows, groups
from pipelines.reports.study import COST, PER_RUN, FinishedRun, headline, write_study

WOMEN, MEN = ("w1", "w2", "w3", "w4", "w5"), ("m1", "m2", "m3", "m4", "m5")
EVERYBODY = (*WOMEN, *MEN)
TRAITS = {person: {"class_word": "woman" if person in WOMEN else "man"} for person in EVERYBODY}


def photos(ceiling=0.8, genuine=0.7, strangers=lambda person, other: 0.1):
    """One run per person, compared with everybody else."""
    found = []
    for person in EVERYBODY:
        others = tuple(each for each in EVERYBODY if each != person)
        mark = {"ceiling": ceiling, "genuine": genuine, "strangers": [strangers(person, other) for other in others]}
        found.append(RealPhotos(person, others, {"j": mark}))
    return found


def identity(women: float, men: float):
    """Five people each, 0.01 apart, around a mean."""
    around = (-0.02, -0.01, 0.0, 0.01, 0.02)
    values = {**dict(zip(WOMEN, (women + each for each in around), strict=True)),
              **dict(zip(MEN, (men + each for each in around), strict=True))}  # fmt: skip
    return {("lora", "j"): values}


# -- exact tests ---------------------------------------------------------------------------------------------------


def test_five_people_can_not_show_a_difference_and_six_can():
    assert sign_flip_p([0.3] * 5) == pytest.approx(2 / 2**5)
    assert sign_flip_p([0.3] * 6) == pytest.approx(2 / 2**6)
    assert sign_flip_p([-0.3] * 6) == pytest.approx(2 / 2**6)
    assert sign_flip_p([0.3]) == sign_flip_p([0.0] * 6) == 1.0
    assert sign_flip_p([0.1, -0.1, 0.2, -0.2, 0.1, -0.1]) == 1.0


def test_the_difference_of_two_groups_by_hand():
    found = difference_of_groups([0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8])
    assert found.difference == pytest.approx(-0.4) and found.people == 8
    assert -0.65 < found.low < -0.4 < found.high < -0.2
    assert found.p == pytest.approx(2 / 70), "2 of the 70 ways to choose 4 of 8 people are as far apart"
    few = difference_of_groups([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    assert few.p == pytest.approx(2 / 20) and not few.significant, "although the interval excludes 0"
    assert few.high < 0
    assert difference_of_groups([0.1], [0.9]).p == 1.0


def test_people_alike_are_rarely_called_different():
    rng = np.random.default_rng(0)
    tests = [difference_of_groups(*rng.normal(0, 1, (2, 5)), resamples=300).significant for _ in range(100)]
    assert sum(tests) <= 9, "5 of 100 are expected"


# -- groups --------------------------------------------------------------------------------------------------------


def test_a_group_that_is_served_worse_is_named_and_the_judge_is_not_blamed():
    found = groups(TRAITS, photos(), identity(0.3, 0.5))["class_word"]
    lora = found.groups["women"].judges["j"]["lora"]
    assert lora["mean"] == pytest.approx(0.3) and 0.28 < lora["low"] < 0.3 < lora["high"] < 0.32
    assert found.groups["men"].people == 5
    by = {each.of: each for each in found.differences}
    assert by["lora"].shown and not by[CEILING].shown and not by[SEPARATION].shown
    assert by["lora"].difference == pytest.approx(0.2) and by["lora"].group == "men"
    said = next(each for each in found.said if "LoRA" in each)
    assert "0.20 lower" in said and "for women (5 people) than for men (5 people)" in said
    assert all("no difference shown" in each for each in found.said if "LoRA" not in each)


def test_no_difference_is_said_with_the_number_of_people():
    (said,) = [each for each in groups(TRAITS, photos(), identity(0.4, 0.4))["class_word"].said if "LoRA" in each]
    assert "no difference shown between men and women with 5 and 5 people (+0.00" in said
    few = {person: TRAITS[person] for person in ("w1", "w2", "w3", "m1", "m2", "m3")}
    some = {key: {p: v for p, v in values.items() if p in few} for key, values in identity(0.1, 0.9).items()}
    found = groups(few, [each for each in photos() if each.person in few], some)["class_word"]
    assert not any(each.shown for each in found.differences)
    assert all("3 and 3 people, too few to show any" in each for each in found.said)


def test_separation_is_from_people_of_ones_own_group():
    def strangers(person, other):
        same = TRAITS[person] == TRAITS[other]
        return 0.9 if not same else 0.3 if person in WOMEN else 0.1

    found = groups(TRAITS, photos(strangers=strangers), identity(0.4, 0.4))["class_word"]
    judge = {name: group.judges["j"] for name, group in found.groups.items()}
    assert judge["women"][SEPARATION]["mean"] == pytest.approx(0.7 - 0.3)
    assert judge["men"][SEPARATION]["mean"] == pytest.approx(0.7 - 0.1)
    assert judge["women"][CEILING]["mean"] == 0.8
    assert any("how far real photos are" in each and "0.20 lower" in each for each in found.said)
    rows = group_rows({name: {"people": each.people, "judges": each.judges} for name, each in found.groups.items()})
    assert rows[1] == ("j", SEPARATION, "0.60 (0.60 to 0.60), n = 5", "0.40 (0.40 to 0.40), n = 5")


def test_three_groups_are_each_compared_with_all_the_others():
    skin = dict(zip(EVERYBODY, ("dark",) * 4 + ("light",) * 4 + ("medium",) * 2, strict=True))
    traits = {person: {"skin": word} for person, word in skin.items()}
    low = {("lora", "j"): {p: (0.1 if skin[p] == "dark" else 0.5) + 0.001 * k for k, p in enumerate(EVERYBODY)}}
    found = groups(traits, photos(), low)["skin"]
    assert list(found.groups) == ["skin dark", "skin light", "skin medium"]
    lora = {each.group: each for each in found.differences if each.of == "lora"}
    assert lora["skin dark"].shown and (lora["skin dark"].people, lora["skin dark"].others) == (4, 6)
    assert any("not lower for skin medium (2 people) than for the others" in each for each in found.said)
    assert any("for skin dark (4 people) than for the others (6 people)" in each for each in found.said)


def test_traits_that_tell_nobody_apart_are_left_out():
    same = {person: {"class_word": "man"} for person in EVERYBODY}
    assert groups(same, photos(), identity(0.4, 0.4)) == {}
    gaps = {person: {"age": "young"} if person != "w1" else {} for person in EVERYBODY}
    assert groups(gaps, photos(), identity(0.4, 0.4)) == {}
    alone = groups({**same, "w1": {"class_word": "woman"}}, photos(), identity(0.4, 0.4))["class_word"]
    assert alone.groups["women"].judges["j"]["lora"]["low"] is None, "one person has no interval"


# -- who wins ------------------------------------------------------------------------------------------------------


def of(**means: float):
    spans = {name: {"mean": mean, "low": mean - 0.05, "high": mean + 0.05} for name, mean in means.items()}
    return {name: {"identity": {"j": span}} for name, span in spans.items()}


def pair(of: str, minus: str, mean: float, *, shown: bool):
    return {"of": of, "minus": minus, "mean": mean, "shown": shown}


def test_the_headline_names_a_winner_only_where_every_pair_shows_it():
    columns = of(none=0.05, dreambooth=0.5, lora=0.3)
    pairs = [pair("dreambooth", "none", 0.45, shown=True), pair("lora", "none", 0.25, shown=True),
             pair("lora", "dreambooth", -0.2, shown=True)]  # fmt: skip
    said = headline(columns, pairs, "j", 10)
    assert (
        said
        == "DreamBooth looks most like the person, more than LoRA: identity 0.50 (0.45 to 0.55) by j with 10 people."
    )
    tie = headline(columns, [*pairs[:2], pair("lora", "dreambooth", -0.2, shown=False)], "j", 10)
    assert tie == "No difference is shown between DreamBooth (0.50) and LoRA (0.30), by j with 10 people."


def test_a_tie_of_the_first_two_says_who_is_behind():
    columns = of(none=0.05, textual_inversion=0.1, dreambooth=0.5, lora=0.48)
    pairs = [pair("dreambooth", "none", 0.45, shown=True), pair("lora", "none", 0.43, shown=True),
             pair("dreambooth", "textual_inversion", 0.4, shown=True),
             pair("lora", "dreambooth", -0.02, shown=False)]  # fmt: skip
    said = headline(columns, pairs, "j", 10)
    assert said.endswith("with 10 people; DreamBooth looks more like the person than Textual inversion.")
    assert said.startswith("No difference is shown between DreamBooth (0.50) and LoRA (0.48)")


def test_nothing_is_claimed_of_too_few_people():
    columns = of(none=0.0, lora=0.9)
    said = headline(columns, [pair("lora", "none", 0.9, shown=False)], "j", 5)
    assert said.startswith("No method is shown to look more like the person than the untrained base")
    assert "5 people, which is too few to show any difference" in said


# -- a study's files -----------------------------------------------------------------------------------------------


def finished(folder, person: str, **similarities: list[float]) -> FinishedRun:
    """A finished run of pictures whose figures are given; copy-paste is a tenth, others a fifth of the similarity."""
    run = folder / person
    run.mkdir()
    heads = ["method", "seed", "prompt", "counted", "j", "usable", "following", "copy_paste", "others"]
    with (run / "cells.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(heads)
        for method, values in similarities.items():
            for k, v in enumerate(values):
                rows.writerow([method, 0, f"prompt {k}", 1, v, 0, "", v / 10, v / 5])
    methods = {
        name: {"refused": 0, "faces_found": len(values), "renders": len(values),
               "identity": {"j": {"mean": 0.1, "normalised": None}}, **dict.fromkeys((*PER_RUN, *COST))}
        for name, values in similarities.items()
    }  # fmt: skip
    judges = {"j": {"ceiling": 0.8, "impostor": 0.2, "threshold": 0.3, "genuine": 0.7, "strangers": [0.1] * 9}}
    write_json(run / "report.json", {"methods": methods, "judges": judges})
    others = tuple(each for each in EVERYBODY if each != person)
    return FinishedRun(person, "time", 0, run, TRAITS[person], others)


def test_a_study_of_made_figures_says_who_wins_who_is_served_worse_and_who_bleeds(tmp_path):
    runs = [
        finished(tmp_path, person, none=[0.05, 0.05], lora=[gain, gain + 0.02])
        for person, gain in zip(EVERYBODY, [0.3, 0.31, 0.32, 0.33, 0.34, 0.5, 0.51, 0.52, 0.53, 0.54], strict=True)
    ]
    saved = write_study(runs, tmp_path, command="c", machine="m", failed={})
    found = saved["budgets"]["time"]
    assert found["headline"]["j"].startswith("LoRA looks most like the person: identity 0.43")
    assert "by j with 10 people" in found["headline"]["j"]
    lora = found["methods"]["lora"]
    assert lora["copy_paste"]["mean"] == pytest.approx(0.043) and lora["others"]["mean"] == pytest.approx(0.086)
    assert lora["bleeding"]["mean"] == pytest.approx(0.086 - 0.01) and found["methods"]["none"]["bleeding"] is None
    said = found["groups"]["class_word"]["said"]
    assert any("identity of LoRA: 0.20 lower" in each and "for women (5 people)" in each for each in said)
    assert sum("no difference shown" in each for each in said) == len(said) - 1
    page = (tmp_path / "report.html").read_text()
    assert found["headline"]["j"] in page and "By class word" in page and "for women (5 people)" in page
    few = write_study(runs[3:8], tmp_path, command="c", machine="m", failed={})["budgets"]["time"]
    assert "which is too few to show any difference" in few["headline"]["j"]
    assert not any(each["shown"] for each in few["pairs"]["j"])
