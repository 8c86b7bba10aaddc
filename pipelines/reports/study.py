"""A study's results: a page, a JSON file, a CSV file with every picture, and a LaTeX table.

In: finished runs (their report.json and cells.csv). Out: figures with 95% intervals by a bootstrap over people,
training seeds and prompts, and paired differences with Holm's correction. No file shows a face.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np

from pipelines.core.files import read_json, timestamp, write_json, write_text
from pipelines.core.records import COLUMNS, UserError, is_instant, title_of
from pipelines.evaluation.statistics import Bootstrap, cluster_bootstrap, holm, known_mean, sign_flip_p
from pipelines.reports import figures as drawn
from pipelines.reports.figures import figure
from pipelines.reports.findings import listed
from pipelines.reports.groups import ByTrait, RealPhotos, group_rows, groups
from pipelines.reports.page import templates

COST = ("train_s", "peak_mem_mb", "artifact_bytes", "trainable_params", "steps")
WORST = 8
PER_RUN = ("diversity", "yaw_spread", "copies", "copy_score", "memorisation_gap", "drift", "preserved")


@dataclass(frozen=True)
class FinishedRun:
    """One finished comparison of a study; its folder has report.json, cells.csv and figures.json."""

    person: str
    condition: str  # the budget's name, and the recipe's if there are several
    seed: int  # training seed
    folder: Path
    traits: Mapping[str, str] = field(default_factory=dict)  # of the person, e.g. {"class_word": "woman"}
    others: tuple[str, ...] = ()  # other people of the study, in the order in which the run was given their photos


@dataclass(frozen=True)
class Table:
    """Every picture of one budget as arrays (people, training seeds, prompts, render seeds), by column."""

    budget: str
    columns: tuple[str, ...]
    judges: tuple[str, ...]
    people: tuple[str, ...]
    seeds: tuple[int, ...]
    similarity: dict[tuple[str, str], np.ndarray]  # (column, judge); NaN where no face was found
    usable: dict[str, np.ndarray]
    following: dict[str, np.ndarray]  # NaN when a prompt asks for nothing that is measured
    reports: tuple[dict[str, Any], ...]  # report.json of each (person, seed)
    drawings: tuple[dict[str, Any], ...]  # figures.json of each (person, seed)
    lines: tuple[dict[str, Any], ...]  # every picture's row of cells.csv, with person and training seed added
    copy_paste: dict[str, np.ndarray] = field(default_factory=dict)  # NaN where there is none; by the first judge
    others: dict[str, np.ndarray] = field(default_factory=dict)  # similarity to photos of other people; as above
    traits: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by person
    cells: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (person, other people) of each report


class Interval(TypedDict):
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float


class Identity(Interval):
    normalised: float | None


class Pair(Interval):
    """A paired difference of two columns."""

    of: str
    minus: str
    p: float
    p_holm: float
    p_people: float
    shown: bool


class Worst(TypedDict):
    """A picture with a low similarity."""

    person: str
    training_seed: str
    method: str
    prompt: str
    seed: str
    value: float | None  # None: no face


def write_study(
    finished: Sequence[FinishedRun], out: Path, *, command: str, machine: str, failed: dict[str, str]
) -> dict[str, Any]:
    """Write report.json, report.html, cells.csv and table.tex into `out`; returns the data of report.json."""
    tables = [table(group) for group in _by_budget(finished).values()]
    saved: dict[str, Any] = {
        "schema": 1,
        "command": command,
        "machine": machine,
        "finished": timestamp(),
        "failed": failed,
        "budgets": {each.budget: figures(each) for each in tables},
    }
    write_text(out / "cells.csv", _every_picture(finished))
    write_text(out / "table.tex", "\n".join(to_latex(name, found) for name, found in saved["budgets"].items()))
    write_text(out / "report.html", to_html(saved))
    write_json(out / "report.json", saved)
    return saved


def _by_budget(finished: Sequence[FinishedRun]) -> dict[str, list[FinishedRun]]:
    """Finished runs by budget, without people who miss one of its training seeds, so that no array has a gap."""
    groups: dict[str, list[FinishedRun]] = {}
    for cell in finished:
        groups.setdefault(cell.condition, []).append(cell)
    whole = {}
    for name, group in groups.items():
        seeds = {cell.seed for cell in group}
        complete = {p for p in {c.person for c in group} if {c.seed for c in group if c.person == p} == seeds}
        whole[name] = [cell for cell in group if cell.person in complete]
    return {name: group for name, group in whole.items() if group}


def table(group: Sequence[FinishedRun]) -> Table:
    """Read the pictures of one budget."""
    people = tuple(dict.fromkeys(cell.person for cell in group))
    seeds = tuple(sorted({cell.seed for cell in group}))
    ordered = sorted(group, key=lambda cell: (people.index(cell.person), seeds.index(cell.seed)))
    reports = tuple(json.loads((cell.folder / "report.json").read_text()) for cell in ordered)
    if gone := sum(row.get("refused", 0) for report in reports for row in report["methods"].values()):
        raise UserError(
            f"The image filter refused {gone} pictures of {group[0].condition}, so the methods can't be compared "
            "picture by picture. Repeat the study with other prompts or seeds."
        )
    rows = [list(csv.DictReader(io.StringIO((cell.folder / "cells.csv").read_text()))) for cell in ordered]
    there = [name for name in COLUMNS if all(name in report["methods"] for report in reports)]
    judged = {name: [report["methods"][name]["identity"].values() for report in reports] for name in there}
    # without columns that no independent judge scored
    columns = tuple(
        name for name in there if all(any(one["mean"] is not None for one in each) for each in judged[name])
    )
    judges = tuple(name for name in reports[0]["judges"] if all(name in report["judges"] for report in reports))

    def array(column: str, key: str) -> np.ndarray:
        by_cell = []
        for lines in rows:
            prompts: dict[str, list[float]] = {}
            for line in lines:
                if line["method"] == column and line["counted"] == "1":
                    prompts.setdefault(line["prompt"], []).append(float(line.get(key) or math.nan))
            by_cell.append(list(prompts.values()))
        whole = np.array(by_cell, np.float64)
        return whole.reshape(len(people), len(seeds), *whole.shape[1:])

    return Table(
        budget=group[0].condition,
        columns=columns,
        judges=judges,
        people=people,
        seeds=seeds,
        similarity={(column, judge): array(column, judge) for column in columns for judge in judges},
        usable={column: array(column, "usable") for column in columns},
        following={column: array(column, "following") for column in columns},
        reports=reports,
        drawings=tuple(read_json(cell.folder / "figures.json") or {} for cell in ordered),
        lines=tuple(
            {"person": cell.person, "training_seed": cell.seed, **line}
            for cell, own in zip(ordered, rows, strict=True)
            for line in own
        ),
        copy_paste={column: array(column, "copy_paste") for column in columns},
        others={column: array(column, "others") for column in columns},
        traits={cell.person: cell.traits for cell in ordered},
        cells=tuple((cell.person, cell.others) for cell in ordered),
    )


def figures(found: Table) -> dict[str, object]:
    """The figures of one budget, JSON-able."""
    columns: dict[str, Any] = {}
    for column in found.columns:
        reports = [report["methods"][column] for report in found.reports]
        columns[column] = {
            "identity": {
                judge: {
                    **_interval(cluster_bootstrap(found.similarity[column, judge])),
                    "normalised": _normalised(found, column, judge),
                }
                for judge in found.judges
            },
            "usable": _interval(cluster_bootstrap(found.usable[column])),
            "following": _share(found.following[column]),
            "copy_paste": _known_interval(found.copy_paste[column]),
            "others": _known_interval(found.others[column]),
            "bleeding": None
            if column == "none"
            else _known_interval(np.nan_to_num(found.others[column]) - np.nan_to_num(found.others["none"])),
            "faces_found": sum(report["faces_found"] for report in reports),
            "renders": sum(report["renders"] for report in reports),
            **{name: _mean([report[name] for report in reports]) for name in (*PER_RUN, *COST)},
        }
    pairs = {judge: _pairs(found, judge) for judge in found.judges}
    return {
        "people": list(found.people),
        "training_seeds": list(found.seeds),
        "prompts": int(found.usable[found.columns[0]].shape[2]),
        "render_seeds": int(found.usable[found.columns[0]].shape[3]),
        "judges": {
            judge: {
                name: _mean([report["judges"][judge][name] for report in found.reports])
                for name in ("ceiling", "impostor", "threshold")
            }
            for judge in found.judges
        },
        "methods": columns,
        "pairs": pairs,
        "headline": {judge: headline(columns, pairs[judge], judge, len(found.people)) for judge in found.judges},
        "groups": {trait: asdict(each) for trait, each in _groups(found).items()},
        "figures": _drawings(found, columns),
        "worst": _worst_of(found),
    }


def _drawings(found: Table, columns: Mapping[str, Any]) -> dict[str, object]:
    """The data of the drawings (`figures`) over all runs, by the first judge: means of curves and of heatmap parts."""
    judge = found.judges[0]
    by_run = [each for each in found.drawings if each.get("judge") == judge]
    marks = [report["judges"][judge] for report in found.reports]
    curves = {}
    for column in found.columns:
        ways = [each["curves"][column]["looks"] for each in by_run if column in each.get("curves", {})]
        if ways:
            length = min(len(way) for way in ways)
            keys = ("seconds", "value", "identity", "following", "trained")
            looks = [
                {"step": way_at[0]["step"], **{key: _mean([look[key] for look in way_at]) for key in keys}}
                for way_at in ([way[k] for way in ways] for k in range(length))
            ]
            name = next(each["curves"][column]["judge"] for each in by_run if column in each.get("curves", {}))
            curves[column] = {"judge": name, "looks": looks}
    return {
        "judge": judge,
        "ceiling": _mean([mark["ceiling"] for mark in marks]),
        "threshold": _mean([mark["threshold"] for mark in marks]),
        "different": by_run[0].get("different") if by_run else None,
        "same": by_run[0].get("same") if by_run else None,
        "methods": {
            column: {
                "identity": columns[column]["identity"][judge],
                "following": columns[column]["following"],
                "similarities": [
                    None if math.isnan(value) else round(value, 4) for value in found.similarity[column, judge].ravel()
                ],
            }
            for column in found.columns
        },
        "curves": curves,
        "heat": _heat(found),
    }


def _heat(found: Table) -> dict[str, object]:
    """Mean similarity to the photos of each part, per person and method. It names no photo."""
    sums: dict[tuple[str, str], dict[str, list[float]]] = {}
    people = [person for person in found.people for _ in found.seeds]
    for person, each in zip(people, found.drawings, strict=True):
        if each.get("judge") != found.judges[0]:
            continue
        heat = each.get("heat") or {"rows": [], "photos": []}
        for row in heat["rows"]:
            for photo, value in zip(heat["photos"], row["values"], strict=True):
                if value is not None:
                    sums.setdefault((row["column"], person), {}).setdefault(photo["part"], []).append(value)
    parts = list(drawn.PARTS)
    return {
        "photos": [{"name": drawn.PARTS[part], "part": part} for part in parts],
        "rows": [
            {"column": column, "file": person, "values": [_mean(sums[column, person].get(part, [])) for part in parts]}
            for column in found.columns
            for person in found.people
            if (column, person) in sums
        ],
    }


def _worst_of(found: Table) -> list[Worst]:
    """The pictures with the lowest similarity by the first judge, over all runs: their paths, not the pictures."""
    judge = found.judges[0]
    lines = [
        {**line, "value": float(line[judge]) if line[judge] else None}
        for line in found.lines
        if line["method"] != "none" and line["counted"] == "1"
    ]
    lines.sort(key=lambda line: -9.0 if line["value"] is None else line["value"])
    return [cast(Worst, {key: line[key] for key in Worst.__annotations__}) for line in lines[:WORST]]


def _pairs(found: Table, judge: str) -> list[Pair]:
    """Paired differences of all pairs of columns, later minus earlier, with Holm's correction over the pairs.

    `shown`: the interval excludes 0, Holm's p is below 0.05, and so is the p over people alone, for which it takes six.
    """
    pairs = list(combinations(found.columns, 2))
    differences = [
        np.nan_to_num(found.similarity[second, judge]) - np.nan_to_num(found.similarity[first, judge])
        for first, second in pairs
    ]
    tests = [cluster_bootstrap(each) for each in differences]
    over_people = [sign_flip_p(each.mean((1, 2, 3))) for each in differences]
    return [
        {"of": second, "minus": first, **_interval(test), "p": round(test.p, 5), "p_holm": round(p, 5),
         "p_people": round(alone, 5), "shown": test.significant and p < 0.05 and alone < 0.05}
        for (first, second), test, p, alone in zip(
            pairs, tests, holm([test.p for test in tests]), over_people, strict=True
        )
    ]  # fmt: skip


def headline(columns: Mapping[str, Any], pairs: Sequence[Pair], judge: str, people: int) -> str:
    """Who wins, in a sentence that claims only what a pair shows; what it does not show is a tie."""
    better = {
        (each["of"], each["minus"]) if each["mean"] > 0 else (each["minus"], each["of"])
        for each in pairs
        if each["shown"]
    }
    means = {name: figures["identity"][judge] for name, figures in columns.items() if name != "none"}
    ordered = sorted(means, key=lambda name: -means[name]["mean"])
    by = f"by {judge} with {people} people" + (", which is too few to show any difference" if people < 6 else "")
    best = next((name for name in ordered if (name, "none") in better), None)
    if best is None:
        return f"No method is shown to look more like the person than the untrained base, {by}."
    level = [name for name in ordered if name != best and (best, name) not in better]
    behind = [title_of(name) for name in ordered if (best, name) in better]
    if not level:
        more = ", more than " + listed(behind) if behind else ""
        return f"{title_of(best)} looks most like the person{more}: identity {_with_interval(means[best])} {by}."
    names = listed([f"{title_of(name)} ({figure(means[name]['mean'])})" for name in (best, *level)])
    more = f"; {title_of(best)} looks more like the person than {listed(behind)}" if behind else ""
    return f"No difference is shown between {names}, {by}{more}."


def _groups(found: Table) -> dict[str, ByTrait]:
    photos = [
        RealPhotos(person, others, report["judges"])
        for (person, others), report in zip(found.cells, found.reports, strict=True)
    ]
    identity = {
        key: dict(zip(found.people, map(float, np.nan_to_num(values).mean((1, 2, 3))), strict=True))
        for key, values in found.similarity.items()
    }
    return groups(found.traits, photos, identity)


def _normalised(found: Table, column: str, judge: str) -> float | None:
    """Mean over the runs of (column - untrained base) / (ceiling - untrained base)."""
    values = [report["methods"][column]["identity"][judge]["normalised"] for report in found.reports]
    return _mean(values)


def _interval(test: Bootstrap) -> Interval:
    return {"mean": round(test.difference, 4), "low": round(test.low, 4), "high": round(test.high, 4)}


def _share(values: np.ndarray) -> Interval | None:
    """Mean and 95% interval over the prompts that ask for something measured; a picture without a face counts as 0."""
    asked = ~np.isnan(values).all(axis=(0, 1, 3))
    return _interval(cluster_bootstrap(values[:, :, asked])) if asked.any() else None


def _known_interval(values: np.ndarray) -> Interval | None:
    """Pictures without a face count as 0; None where nothing was measured."""
    return None if np.isnan(values).all() else _interval(cluster_bootstrap(values))


def _mean(values: Iterable[float | None]) -> float | None:
    mean = known_mean(values)
    return None if mean is None else round(mean, 4)


def _every_picture(finished: Sequence[FinishedRun]) -> str:
    out = io.StringIO()
    table: Any = None
    for cell in finished:
        for line in csv.DictReader(io.StringIO((cell.folder / "cells.csv").read_text())):
            row = {"person": cell.person, "budget": cell.condition, "training_seed": cell.seed, **line}
            if table is None:
                table = csv.DictWriter(out, list(row), lineterminator="\n", extrasaction="ignore", restval="")
                table.writeheader()
            table.writerow(row)
    return out.getvalue()


# ------------------------------------------------------------------------------------------------- for people

HEADS = (
    "Method", "Identity", "Normalised", "Usable", "As asked", "Variety", "Copies", "Copy-paste", "Others", "Bleeding",
    "Drift", "Seconds", "MB",
)  # fmt: skip


def _rows(found: Mapping[str, Any], judge: str) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for column, figures in found["methods"].items():
        size = figures["artifact_bytes"]
        rows.append(
            (
                title_of(column) + ", at its own cost" * is_instant(column),
                _with_interval(figures["identity"][judge]),
                figure(figures["identity"][judge]["normalised"]),
                _with_interval(figures["usable"]),
                _with_interval(figures["following"]),
                figure(figures["diversity"]),
                figure(figures["copies"], 1),
                _with_interval(figures["copy_paste"]),
                _with_interval(figures["others"]),
                _with_interval(figures["bleeding"]),
                figure(figures["drift"]),
                figure(figures["train_s"], 0),
                figure(None if size is None else size / 1e6),
            )
        )
    return rows


def _with_interval(value: Interval | None) -> str:
    return "–" if value is None else f"{value['mean']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def to_latex(budget: str, found: Mapping[str, Any]) -> str:
    """A LaTeX table (package `booktabs`) by the first judge."""
    judge = next(iter(found["judges"]))
    heads, columns = " & ".join(HEADS), "l" + "r" * (len(HEADS) - 1)
    lines = [f"% budget: {budget}, judge: {judge}, {len(found['people'])} people", rf"\begin{{tabular}}{{{columns}}}"]
    lines += [r"\toprule", heads + r" \\", r"\midrule"]
    lines += [" & ".join(cell.replace("–", "--") for cell in row) + r" \\" for row in _rows(found, judge)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def to_markdown(found: Mapping[str, Any], judge: str) -> str:
    lines = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in _rows(found, judge))])


def to_html(saved: Mapping[str, Any]) -> str:
    """One self-contained page, like a run's own report, from templates/study.html."""
    from markupsafe import Markup

    return (
        templates()
        .get_template("study.html")
        .render(
            saved=saved,
            failed=[f"{name}: {why}" for name, why in saved["failed"].items()],
            heads=HEADS,
            rows=_rows,
            pairs=_pair_lines,
            worst=_worst_rows,
            group_rows=group_rows,
            drawings=lambda found: Markup(drawn.sections(found)),
        )
    )


def _worst_rows(worst: Sequence[Worst]) -> list[tuple[str, ...]]:
    return [
        (
            title_of(each["method"]),
            *(str(each[key]) for key in ("person", "training_seed", "prompt", "seed")),
            "no face" if each["value"] is None else figure(each["value"]),
        )
        for each in worst
    ]


def _pair_lines(pairs: Sequence[Pair]) -> list[str]:
    return [
        f"{title_of(pair['of'])} minus {title_of(pair['minus'])}: {pair['mean']:+.3f} ({pair['low']:+.3f} to "
        f"{pair['high']:+.3f}), p = {pair['p_holm']:.4f} after Holm"
        for pair in pairs
    ]
