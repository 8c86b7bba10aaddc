"""What the page offers to say next: only what the base knows, nothing twice, nothing that contradicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.bases.registry import BASES, find_base
from tests.tiny import tiny_folder
from ui.generate.completion import completed, completions, phrases_of


def _grown(row, *, seed: int, turns: int = 12) -> list[tuple[str, str]]:
    """(prompt, completion) of somebody who takes completions at random, sometimes after typing half of one."""
    rng = np.random.default_rng(seed)
    text, seen = "", []
    for _ in range(turns):
        offered = completions(row, text, limit=50)
        if not offered:
            break
        chosen = str(rng.choice(offered))
        typed = text
        if rng.random() < 0.5:  # half typed, after a comma as people do
            half = chosen[: int(rng.integers(1, len(chosen)))].rstrip()
            typed = f"{text}, {half}" if text else half
            assert chosen in completions(row, typed, limit=50), (typed, chosen)
        seen.append((typed, chosen))
        text = completed(typed, chosen)
        assert text.endswith(chosen) and half_typed_is_gone(text, typed, chosen)
    return seen


def half_typed_is_gone(text: str, typed: str, chosen: str) -> bool:
    return len(text) <= len(typed) + 2 + len(chosen) and f", , {chosen}" not in text


@pytest.mark.parametrize("seed", range(6))
def test_completions_say_only_what_the_base_knows_and_nothing_twice(seed):
    row = BASES["portrait-128"]
    for typed, chosen in _grown(row, seed=seed):
        after = completed(typed, chosen)
        assert row.unknown_words(chosen) == [] and row.unknown_words(after) == []
        assert after.count(chosen) == 1
        assert after.count("background") <= 1 and after.count("jacket") <= 1 and after.count("{subject}") == 1
        assert not ("black and white" in after and ("sepia" in after or "jacket" in after or "warm light" in after))


def test_every_phrase_of_the_embedded_base_is_one_its_captions_had():
    from pipelines.photos.captions import COLOURS, TONES

    row = BASES["portrait-128"]
    groups = phrases_of(row).groups
    assert {f"{colour} background" for colour in COLOURS} == set(groups["background"])
    assert set(groups["jacket"]) < {f"{colour} jacket" for colour in COLOURS}
    assert set(groups["tone"]) == set(TONES) - {"colour"}
    folder = Path(__file__).resolve().parents[2] / "tools" / "portrait_base"
    written = "".join((folder / name).read_text() for name in ("variants.py", "data.py"))
    for name in ("light", "backdrop", "framing", "age"):
        assert all(f'"{phrase}"' in written for phrase in groups[name])
    for phrase, others in phrases_of(row).apart.items():
        known = {*groups, *(each for group in groups.values() for each in group)}
        assert {phrase, *others} <= known


@pytest.mark.parametrize(
    ("typed", "offered", "then"),
    [
        ("", "portrait of {subject}", "portrait of {subject}"),
        ("portrait of {su", "portrait of {subject}", "portrait of {subject}"),
        ("portrait of {subject}, nav", "navy jacket", "portrait of {subject}, navy jacket"),
        ("portrait of {subject}, Warm L", "warm light", "portrait of {subject}, warm light"),
        ("portrait of wo", "woman", "portrait of woman"),
        ("portrait of {subject}", "grey background", "portrait of {subject}, grey background"),
        ("portrait of {subject}, ", "grey background", "portrait of {subject}, grey background"),
        ("portrait of {subject}, black and white", "white background",
         "portrait of {subject}, black and white, white background"),
    ],
)  # fmt: skip
def test_half_words_are_finished_and_the_rest_follows_a_comma(typed, offered, then):
    assert offered in completions(BASES["portrait-128"], typed, limit=50)
    assert completed(typed, offered) == then


def test_what_is_said_rules_out_what_contradicts_it():
    row = BASES["portrait-128"]
    offered = completions(row, "portrait of {subject}, teal background", limit=50)
    assert not any(each.endswith("background") for each in offered) and "black and white" not in offered
    assert "sepia" in offered and "black jacket" in offered
    assert len(completions(row, "portrait of {subject}", limit=3)) == 3


def test_a_base_that_knows_all_words_is_offered_the_photographic_styles():
    from pipelines.core import presets

    row = BASES["sd15"]
    said = " ".join(style.prompt for style in presets.styles().values() if style.photoreal)
    for typed, chosen in _grown(row, seed=1, turns=6):
        assert chosen in said and completed(typed, chosen).count(chosen) == 1
    assert completions(row, "portrait photo of {subject}, dark tex") == ("dark textured backdrop",)


def test_a_local_base_is_offered_its_own_words_only():
    row = find_base(str(tiny_folder("portrait")))
    offered = completions(row, "portrait of {subject}", limit=50)
    assert offered and all(row.unknown_words(each) == [] for each in offered)
