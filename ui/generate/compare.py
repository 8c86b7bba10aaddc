"""Which picture can be laid over which, and the list of what was drawn before."""

from __future__ import annotations

from pipelines.core import presets
from pipelines.core.records import Sampling, place_of
from ui.generate import html as generate_html
from ui.generate.styles import style_of
from ui.run.cards import JobCard, Shot
from ui.run.pictures import Drawing
from ui.run.view import View
from ui.words import phrases
from ui.words.words import tell


def source_of(view: View, sampling: Sampling) -> Shot | None:
    """The picture a variation came from, when it is still there."""
    return next((shot for shot in view.pictures if sampling.source and shot.path == sampling.source), None)


def fellows(view: View, shot: Shot) -> list[Shot]:
    """`shot` and every picture it can be laid over: of the same settings by another method, and its source."""
    same = {each.method: each for each in view.pictures if each.sampling == shot.sampling} | {shot.method: shot}
    source = source_of(view, shot.sampling) if shot.sampling else None
    return [same[column] for column in sorted(same, key=place_of)] + ([source] if source else [])


def pair_with(view: View, shot: Shot) -> tuple[Shot, Shot] | None:
    """What a picture is compared with at first: what it came from, the untrained base, else the most alike other."""
    others = [each for each in fellows(view, shot) if each.id != shot.id]
    if not others:
        return None
    first = max(
        others, key=lambda each: (each.sampling != shot.sampling, each.method == "none", each.similarity or -1.0)
    )
    if shot.method == "none" and first.sampling == shot.sampling:
        return shot, first
    return first, shot


def first_pair(view: View) -> tuple[Shot, Shot] | None:
    """What lies under the slider at first: of the pictures shown the first that two methods drew, else of all."""
    for shots in (view.latest_shots, view.pictures):
        for row in generate_html.rows_of(shots):
            there = [row[column] for column in sorted(row, key=place_of)]
            if len(there) > 1:
                return there[0], there[-1]
            if there and there[0].sampling and (source := source_of(view, there[0].sampling)):
                return source, there[0]
    return None


def name_beside(shot: Shot, beside: Shot) -> str:
    return phrases.named(shot.method) if shot.sampling == beside.sampling else tell("The picture it came from")


def job_card(view: View, job: Drawing) -> JobCard:
    """A job in the list: what was asked for, by which methods, how many."""
    prompts = {shot.prompt for shot in job.shots}
    style = presets.styles().get(style_of(view.row, job.shots[0].prompt))
    title = style.name if style else phrases.look(job.shots[0].prompt)
    if len(prompts) > 1:
        title = tell("{look}, and {count} more", look=title, count=len(prompts) - 1)
    if any(sampling.source for sampling in job.samplings):
        title = tell("Variations: {look}", look=title)
    elif len({(sampling.steps, sampling.guidance) for sampling in job.samplings}) > len(prompts):
        title = tell("Sweep: {look}", look=title)
    detail = f"{phrases.pictures(len(job.shots))}: {', '.join(phrases.named(method) for method in job.methods)}"
    shown = view.shown_job is not None and view.shown_job.number == job.number
    return JobCard(job.number, title, detail, job.when_s, job.shots[-1].link, shown)
