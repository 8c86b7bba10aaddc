"""Groups: are the people of one group - women, darker skin, an age - served worse than the others of a study?

In: people's traits (people.csv), what judges said of their real photos, and of pictures. Out: by trait, the figures of
each judge and method with 95% intervals by a bootstrap over people, the differences, and a sentence for each.
The unit is the person: all pictures of one person are one value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.core.records import title_of
from pipelines.evaluation.statistics import cluster_bootstrap, difference_of_groups, known_mean

CEILING, SEPARATION = "ceiling", "separation"
OF_REAL_PHOTOS = {CEILING: "what real photos reach", SEPARATION: "how far real photos are from other people's"}
THE_OTHERS = "the others"
Values = dict[str, float]  # by person
Span = dict[str, float | None]  # mean, low, high


@dataclass(frozen=True)
class RealPhotos:
    """What one run says of a person's own photos."""

    person: str
    others: tuple[str, ...]  # people in the order of the judges' `strangers`
    judges: Mapping[str, Mapping[str, Any]]  # of its report.json


@dataclass(frozen=True)
class Difference:
    """One group minus everybody else."""

    judge: str
    of: str  # CEILING, SEPARATION or a column
    group: str
    people: int
    others: int
    difference: float
    low: float
    high: float
    p: float
    shown: bool  # the interval excludes 0, and so many people could not differ so by chance (permutation, p < 0.05)


@dataclass(frozen=True)
class Group:
    """The figures of one group."""

    people: int
    judges: dict[str, dict[str, Span | None]]  # by judge: CEILING, SEPARATION and the columns


@dataclass(frozen=True)
class ByTrait:
    groups: dict[str, Group]
    differences: list[Difference]
    said: list[str]  # a sentence for each difference


def groups(
    traits: Mapping[str, Mapping[str, str]], photos: Sequence[RealPhotos], identity: Mapping[tuple[str, str], Values]
) -> dict[str, ByTrait]:
    """By trait. One is left out where all people share one group or not everybody has one.

    `traits` are by person, `identity` is each person's mean similarity by (column, judge).
    """
    out: dict[str, ByTrait] = {}
    judges = list(dict.fromkeys(judge for _, judge in identity))
    for trait in dict.fromkeys(name for own in traits.values() for name in own):
        of = {person: own.get(trait, "") for person, own in traits.items()}
        if len(set(of.values())) < 2 or not all(of.values()):
            continue
        names = {group: _named(trait, group) for group in sorted(set(of.values()))}
        measured = {
            judge: _of_real_photos(photos, judge, of)
            | {column: values for (column, by), values in identity.items() if by == judge}
            for judge in judges
        }
        differences = [
            difference
            for judge, figures in measured.items()
            for what, values in figures.items()
            for group in list(names)[: 1 if len(names) == 2 else None]  # of two groups one is the other's opposite
            if (difference := _difference(judge, what, names[group], values, {p for p in of if of[p] == group}))
        ]
        opposite = list(names.values())[1] if len(names) == 2 else THE_OTHERS
        made = {name: _group({p for p in of if of[p] == group}, measured) for group, name in names.items()}
        out[trait] = ByTrait(made, differences, [said(each, opposite) for each in differences])
    return out


def _named(trait: str, group: str) -> str:
    return {"man": "men", "woman": "women"}.get(group, group) if trait == "class_word" else f"{trait} {group}"


def _of_real_photos(photos: Sequence[RealPhotos], judge: str, of: Mapping[str, str]) -> dict[str, Values]:
    """By person: the ceiling, and the separation from other people of the person's group."""
    ceiling: dict[str, list[float | None]] = {}
    separation: dict[str, list[float | None]] = {}
    for each in photos:
        mark = each.judges[judge]
        ceiling.setdefault(each.person, []).append(mark["ceiling"])
        strangers, genuine = mark.get("strangers") or [], mark.get("genuine")
        if genuine is not None and len(strangers) == len(each.others):
            named = zip(strangers, each.others, strict=True)
            alike = known_mean(value for value, other in named if of.get(other) == of[each.person])
            separation.setdefault(each.person, []).append(None if alike is None else genuine - alike)
    return {CEILING: _means(ceiling), SEPARATION: _means(separation)}


def _means(values: Mapping[str, list[float | None]]) -> Values:
    return {person: mean for person, each in values.items() if (mean := known_mean(each)) is not None}


def _group(inside: set[str], measured: Mapping[str, Mapping[str, Values]]) -> Group:
    return Group(
        len(inside),
        {
            judge: {what: _interval([values[p] for p in values if p in inside]) for what, values in figures.items()}
            for judge, figures in measured.items()
        },
    )


def _interval(values: list[float]) -> Span | None:
    """Mean and 95% interval over people; no interval of a single person."""
    if not values:
        return None
    test = cluster_bootstrap(np.array(values)[:, None, None, None])
    alone = len(values) == 1
    low, high = (None if alone else round(each, 4) for each in (test.low, test.high))
    return {"mean": round(test.difference, 4), "low": low, "high": high}


def _difference(judge: str, what: str, group: str, values: Values, inside: set[str]) -> Difference | None:
    mine, others = ([v for person, v in values.items() if (person in inside) is own] for own in (True, False))
    if not mine or not others:
        return None
    test = difference_of_groups(mine, others)
    low, high, p = (round(each, 4) for each in (test.low, test.high, test.p))
    return Difference(
        judge, what, group, len(mine), len(others), round(test.difference, 4), low, high, p, test.significant
    )


def said(found: Difference, opposite: str) -> str:
    """Who is served worse, or that nothing is shown."""
    what = OF_REAL_PHOTOS.get(found.of) or f"identity of {title_of(found.of)}"
    size = f"{abs(found.difference):.2f}"
    low, high = sorted((abs(found.low), abs(found.high)))
    worse, better = (found.group, found.people), (opposite, found.others)
    if found.difference > 0:
        worse, better = better, worse
    span = f"({found.difference:+.2f}, {found.low:+.2f} to {found.high:+.2f})"
    if found.difference > 0 and opposite == THE_OTHERS:
        return f"{found.judge}, {what}: not lower for {found.group} ({found.people} people) than for the others {span}."
    if found.shown:
        return (
            f"{found.judge}, {what}: {size} lower ({low:.2f} to {high:.2f}) for {worse[0]} ({worse[1]} people) than "
            f"for {better[0]} ({better[1]} people)."
        )
    most = math.comb(found.people + found.others, found.people) if min(found.people, found.others) > 1 else 1
    why = ", too few to show any" if 2 / most >= 0.05 else ""
    return (
        f"{found.judge}, {what}: no difference shown between {found.group} and {opposite} with {found.people} and "
        f"{found.others} people{why} {span}."
    )


def group_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row per judge and figure: both names, then each group's mean with its interval and number of people."""
    first = next(iter(found.values()))["judges"]
    return [
        (
            judge,
            title_of(what) if what not in OF_REAL_PHOTOS else what,
            *(_cell(each, judge, what) for each in found.values()),
        )
        for judge, figures in first.items()
        for what in figures
    ]


def _cell(group: Mapping[str, Any], judge: str, what: str) -> str:
    value = group["judges"][judge][what]
    if value is None:
        return "–"
    span = "" if value["low"] is None else f" ({value['low']:.2f} to {value['high']:.2f})"
    return f"{value['mean']:.2f}{span}, n = {group['people']}"
