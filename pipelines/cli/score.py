"""The commands that only read pictures: check, score, verify."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.cli.arguments import run_of, use_face_models
from pipelines.cli.output import DONE, FAILED, WrongUse, print_json, say, short_names, show
from pipelines.cli.progress import Bar
from pipelines.core.records import LOW_CEILING, UserError

if TYPE_CHECKING:
    from pipelines.evaluation.lookalike import Opinion
    from pipelines.faces.face import Judge


def check(asked: argparse.Namespace) -> int:
    from pipelines.bases.registry import default_base, find_base
    from pipelines.photos.gather import Gathered, gather, unpack
    from pipelines.photos.intake import check

    try:
        row = find_base(asked.base or default_base())
    except UserError as problem:
        raise WrongUse(str(problem)) from problem
    files: list[Path] = []
    for path in asked.photos:
        if not path.exists():
            raise WrongUse(f"There is nothing at {path}. Check the path.")
    bar = Bar()
    with tempfile.TemporaryDirectory(prefix="likeness-") as unpacked:
        for number, path in enumerate(asked.photos):
            if path.is_dir():
                there = gather(path)
            elif path.suffix.lower() == ".zip":
                there = unpack(path, Path(unpacked) / str(number))
            else:
                there = Gathered((path,), {})
            files += there.photos
            for sentence in there.told:
                say(sentence)
        found, report = check(
            files,
            min_eye_distance_px=row.min_eye_distance_px,
            progress=lambda done, total, _: bar.show("looking", done, total),
        )
    bar.close()
    if asked.json:
        each = {
            one.name: {"verdict": one.verdict, "reasons": one.reasons, "text": one.text, "similarity": one.similarity}
            for one in found
        }
        print_json({"photos": each, "set": asdict(report)})
        return DONE
    for one in found:
        show(f"{one.name}: {one.verdict.replace('_', ' ')}{f' - {one.text}' if one.text else ''}")
    agree = f" They agree with each other at {report.ceiling:.2f}." if report.ceiling is not None else ""
    show(f"{report.good} good, {report.usable} usable, {report.left_out} to leave out.{agree}")
    if report.ceiling_low:
        show(LOW_CEILING)
    if report.next_photo:
        show(f"The most useful photo to add: {report.next_photo}.")
    return DONE


def score(asked: argparse.Namespace) -> int:
    use_face_models(asked)
    for path in [*asked.images, *(asked.against or ())]:
        if not path.is_file():
            raise WrongUse(f"There is no file {path}. Check the path.")
    from pipelines.evaluation import references
    from pipelines.evaluation.scale import in_words
    from pipelines.faces.dlib_faces import DlibJudge
    from pipelines.faces.judges import available_judges, judge_named

    if asked.judge:
        judges = [judge_named(name) for name in dict.fromkeys((asked.judge, DlibJudge.name))]
    else:
        judges = available_judges(on_problem=say)
    if asked.of_run:
        return _who(asked, judges)
    images: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in short_names(asked.images)}
    against: list[references.Reference] = []
    problems: list[str] = []
    for judge in judges:
        try:
            against.append(references.reference(judge, asked.against))
            problems += against[-1].notes
        except UserError as problem:
            problems.append(str(problem))
    if not against:
        raise UserError(" ".join(problems))
    for sentence in problems:
        say(sentence)
    unreadable, total = True, len(asked.images) * len(against)
    bar = Bar()
    for index, (path, name) in enumerate(zip(asked.images, images, strict=True)):
        for number, reference in enumerate(against):
            score = references.score_renders([path], reference)[0]
            images[name][score.judge] = {
                "similarity": score.similarity,
                "verdict": score.verdict or score.reason,  # an unreadable picture has no verdict
                "in_words": in_words(score),
                "note": score.note,
            }
            unreadable &= score.similarity is None and score.verdict is None  # a picture without a face has a verdict
            bar.show("scoring", index * len(against) + number + 1, total)
    bar.close()
    if asked.json:
        print_json({"images": images})
    else:
        for name, found in images.items():
            show(f"{name}:")
            for who, one in found.items():
                words = f" ({one['in_words']})" if one["similarity"] is not None else ""
                show(f"  {who}: {(one['verdict'] or '').rstrip('.')}{words}.{' ' + one['note'] if one['note'] else ''}")
    return FAILED if unreadable else DONE


def _who(asked: argparse.Namespace, judges: Sequence[Judge]) -> int:
    """Compare every face of each picture with the person of a run."""
    from pipelines.core import presets
    from pipelines.core.run import load_photo_set
    from pipelines.evaluation import lookalike
    from pipelines.photos.decode import decode

    run = run_of(asked.of_run)
    photos = load_photo_set(run)
    if photos is None:
        raise UserError(f"The run {run.folder.name} holds no photos to compare with.")
    own = {photo.name for photo in photos.photos}
    sample = [path for path in sorted((presets.PRESETS / "sample_person").glob("*.png")) if path.name not in own]
    knowing, notes = lookalike.known(judges, photos, sample=sample, base=sorted(run.pictures("none")))
    for sentence in notes:
        say(str(sentence))
    images: dict[str, Any] = {}
    for path, name in zip(asked.images, short_names(asked.images), strict=True):
        answer = lookalike.look_at_any(decode(path), knowing)
        images[name] = {
            "faces": [
                {"box": face.box, "judges": {one.score.judge: _opinion(one) for one in face.opinions}}
                for face in answer.faces
            ]
        }
        if not asked.json:
            show(f"{name}: {'' if answer.faces else 'no face found.'}")
            for number, face in enumerate(answer.faces, start=1):
                for one in face.opinions:
                    words = f" ({one.score.words})" if one.score.words else ""
                    note = f" {one.score.note}" if one.score.note else ""
                    show(f"  face {number}, {one.score.judge}: {one.sentence}{words}{note}")
    if asked.json:
        print_json({"images": images})
    return DONE


def _opinion(one: Opinion) -> dict[str, object]:
    return {
        "similarity": one.score.similarity,
        "verdict": one.score.verdict,
        "looks_like": one.verdict,
        "in_words": one.score.words,
        "note": one.score.note,
        "reason": one.score.reason,
        "is_held_out": one.is_held_out,
        "nearest": {each.who: each.similarity for each in one.nearest},
    }


def verify(asked: argparse.Namespace) -> int:
    if not asked.image.is_file():
        raise WrongUse(f"There is no file {asked.image}. Check the path.")
    from pipelines.finishing.mark import verify

    try:
        found = verify(asked.image)
    except UserError as problem:
        raise WrongUse(str(problem)) from problem
    if asked.json:
        marks = {mark.name: {k: v for k, v in asdict(mark).items() if k != "name"} for mark in found.marks}
        told = {name: getattr(found, name) for name in ("found", "tampered", "sentence", "settings_of")}
        print_json({**told, "marks": marks})
    else:
        show(found.sentence)
        for mark in found.marks:
            show(f"  {mark.sentence}")
    return DONE if found.found else FAILED
