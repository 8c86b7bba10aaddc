"""Laws of the split: photos of one moment never cross it, and it depends on the pictures alone."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from pipelines.core.records import Photo, UserError
from pipelines.photos import intake, split

SAMPLE = Path(__file__).resolve().parents[2] / "presets" / "sample_person"


def plain(index: int) -> Photo:
    return Photo(f"{index}.png", f"{index:02d}.png", f"{index * 7919:064x}", 9, 9, (0, 0, 9, 9), ((3, 3), (6, 3)), 3.0)


@pytest.mark.parametrize("count", range(5, 31))
def test_split_sizes(count):
    train, validation, held_out = split.split_sizes(count)
    assert train + validation + held_out == count and train > held_out >= 1
    assert validation == (0 if count < 8 else 1 if count < 12 else 2)
    assert abs(held_out - count / 4) <= 0.5
    result = split.split([[plain(i)] for i in range(count)])
    assert (len(result.train), len(result.validation), len(result.held_out)) == (train, validation, held_out)
    assert result.weak == (count == 5)


def test_groups_never_cross_whatever_their_sizes():
    for sizes in itertools.product((1, 2, 5), repeat=3):
        groups, at = [], 0
        for size in sizes:
            groups.append([plain(i) for i in range(at, at + size)])
            at += size
        result = split.split(groups)
        parts = [{p.name for p in part} for part in (result.train, result.validation, result.held_out)]
        assert parts[0] and parts[2] and sum(map(len, parts)) == sum(sizes)
        for group in groups:
            assert sum(bool(part & {p.name for p in group}) for part in parts) == 1
    with pytest.raises(UserError, match="nearly the same"):
        split.split([[plain(0), plain(1)]])


def test_what_leaves_no_photo_over_is_said_without_naming_pins_nobody_set():
    groups = [[plain(0), plain(1)], [plain(2)]]
    names = [plain(index).name for index in (0, 2)]
    with pytest.raises(UserError, match="No photo is left to judge with: .*was learned from before.*pin one to be"):
        split.split(groups, trained=names)
    with pytest.raises(UserError, match="No photo is left to learn from: each is pinned to be held out, or shows the"):
        split.split(groups, held_out=names)


def test_pictures_of_one_drawn_person_are_moments_of_their_own():
    """They share a frame and are smooth, so their faces correlate; the recogniser tells them apart."""
    found, _ = intake.check(sorted(SAMPLE.glob("*.png")))
    assert len(found) == 10 and not [check.name for check in found if "near_duplicate" in check.reasons]
