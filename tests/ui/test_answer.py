"""The answer on the Score tab: who wins, when it is too close to call, and when nothing can be said."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ui.score.answer import Answer, answer, sentence


def view(**scores):
    return SimpleNamespace(scores={"arc": scores}, marks={"arc": {"ceiling_low": 0.38, "ceiling_high": 0.58}})


HIGH, NEAR, LOW = (0.55, 0.56, 0.57, 0.56), (0.40, 0.70, 0.50, 0.55), (0.10, 0.12, 0.11, None)


@pytest.mark.parametrize(
    ("scores", "methods", "said"),
    [
        ({"dreambooth": HIGH, "lora": LOW}, ("dreambooth",), "DreamBooth looks most like you (0.56; "),
        ({"dreambooth": HIGH, "lora": NEAR}, ("dreambooth", "lora"), "Too close to call between DreamBooth and LoRA ("),
        ({"lora": HIGH, "none": HIGH}, ("lora",), "LoRA was drawn alone (0.56; "),
        ({"lora": HIGH[:2], "dreambooth": LOW}, (), "Too few pictures to tell: draw at least 3 by each method."),
    ],
)
def test_a_method_wins_only_where_no_interval_reaches_into_its_own(scores, methods, said):
    run = view(**scores)
    found = answer(run, "arc")
    assert found is not None and found.methods == methods
    text = sentence(run, "arc", found)
    assert text.startswith(said) and ("your own photos reach 0.38-0.58" in text) == bool(methods)


def test_without_scores_there_is_no_answer():
    assert answer(view(), "arc") is None and answer(view(none=HIGH), "arc") is None
    assert sentence(SimpleNamespace(marks={}), "arc", Answer(("lora",), 0.5)) == "LoRA looks most like you (0.50)."
