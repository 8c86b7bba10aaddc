"""One job from start to end: photos -> every method learns -> every method draws the same pictures -> scores -> report.

In: a person's photos and a `JobSpec`. Out: a stream of events, and a run's folder with everything, manifest.json last.
Every stage writes one folder and reads only what earlier ones wrote, so a stopped or killed run continues: finished
methods are not trained again and pictures that are there are not drawn again.

    for event in compare("photos/", class_word="man", out="run"):
        print(event.kind, event.method, event.step, event.text or "")
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from pipelines.bases.registry import BASES, BaseRow, default_base, find_base
from pipelines.core.control import Clock, Control, Stopped
from pipelines.core.files import jsonable, read_json, require_space, sha, write_json
from pipelines.core.records import (
    Event,
    PhotoSet,
    Recipe,
    Render,
    Sampling,
    Subject,
    UserError,
    is_imported,
    is_instant,
    place_of,
    title_of,
)
from pipelines.core.run import (
    STRENGTHS_FILE,
    WATCH_FILE,
    Run,
    imported_columns,
    load_photo_set,
    new_run,
    record_consent,
    run_at,
)
from pipelines.evaluation.judge import Judged, judge, look_closer
from pipelines.generation.draw import brought, draw, refusals, renders_of
from pipelines.reports.manifest import Origin, forget_report, is_written, report
from pipelines.runs.jobspec import RENDERS, JobSpec, Setting, default_samplings, samplings_of
from pipelines.runs.prepare import Job, Resident, album_of, join_in, load
from pipelines.training.encode import encode
from pipelines.training.subjects import trained_before
from pipelines.training.teach import subject_of, subjects_of, teach

if TYPE_CHECKING:
    from pipelines.bases.family import Family
    from pipelines.core.device import Device
    from pipelines.core.records import Watch
    from pipelines.photos.album import Album
    from pipelines.reports.findings import Findings

CONSENT = "Whoever started this states that the person shown agrees to have their face learned."


# ------------------------------------------------------------------------------------------------- entry points


class Choices(TypedDict, total=False):
    """What may be chosen for a comparison; what is left out has the default of `JobSpec`."""

    methods: Sequence[str]
    base: str  # a registry name or a path
    quality: str  # "draft" | "good" | "best"
    seed: int
    prompts: Sequence[str]  # each with "{subject}"; empty: plain portraits
    renders: int  # pictures per column
    settings: dict[str, dict[str, Setting]]  # method -> changes to its recipe
    device: str | None


def compare(
    photos: Path | str | Sequence[Path | str] | Run,
    *,
    class_word: str,
    out: Path | str | None = None,
    control: Control | None = None,
    **choices: Unpack[Choices],
) -> Iterator[Event]:
    """Do the whole job in this process. `photos` is a folder, a list of files, or a run whose photos were taken in.

    The last event is "done" (its `path` is report.json) or "stopped". Raises UserError for anything a person can act
    on. Calling it again with the same `out` continues or, when nothing is left to do, returns at once. By calling it
    you state that the person shown consents; that is noted in the run.
    """
    row = find_base(choices.get("base") or default_base())
    run, paths = _photos_and_run(photos, out)
    if not run.consent.exists():
        record_consent(run, means="Python API", statement=CONSENT)
    methods, prompts = choices.get("methods"), choices.get("prompts", ())
    renders, seed = choices.get("renders", RENDERS), choices.get("seed", 0)
    spec = JobSpec(
        base=choices.get("base") or row.name,
        class_word=class_word,
        methods=tuple(methods) if methods is not None else row.compared,
        quality=choices.get("quality", "good"),
        seed=seed,
        photos=tuple(str(path.resolve()) for path in paths),
        samplings=samplings_of(row, prompts, renders=renders, seed=seed) if prompts else (),
        renders=renders,
        settings=choices.get("settings") or {},
        device=choices.get("device"),
    )
    spec.check()
    require_space(run.folder, spec.disk_bytes(), purpose="This comparison")
    write_json(run.spec, spec)
    yield from perform(run, spec, control=control)


def _photos_and_run(photos: Path | str | Sequence[Path | str] | Run, out: Path | str | None) -> tuple[Run, list[Path]]:
    from pipelines.photos.gather import photo_files

    if isinstance(photos, Run):
        return photos, []
    paths = photo_files(Path(photos)) if isinstance(photos, str | Path) else [Path(each) for each in photos]
    return run_at(Path(out)) if out is not None else new_run(), paths


def perform(
    run: Run, spec: JobSpec, *, control: Control | None = None, resident: Resident | None = None
) -> Iterator[Event]:
    """Do one job in a run. The last event is "done" or "stopped" with no method; see `compare` for errors.

    `control.clock` becomes the job's own: it goes on where an earlier session of the same job ended.
    """
    spec.check()
    control = control or Control()
    control.clock = Clock(run.job_folder / "clock.json", sha(jsonable(spec)))
    job = Job(run, spec, control, resident or Resident())
    kinds = {
        "compare": _compare, "train": _train, "portrait": _portrait, "generate": _generate, "finish": _finish,
    }  # fmt: skip
    try:
        yield from kinds[spec.kind](job)
    except Stopped as stopped:
        yield Event("stopped", text=str(stopped))
    finally:
        if job.world.first:
            control.clock.save()


def is_complete(run: Run, spec: JobSpec) -> bool:
    """True when this very comparison is finished in `run`. Light: no torch."""
    photos = load_photo_set(run)
    return photos is not None and is_written(run, _key_of(run, spec, photos))


# ------------------------------------------------------------------------------------------------- kinds of jobs


def _compare(job: Job) -> Iterator[Event]:
    run, spec, row, control = job.run, job.spec, job.row, job.control
    samplings = spec.samplings or default_samplings(row, renders=spec.renders, seed=spec.seed)
    album = yield from join_in(job)
    imported, key = _imported(run, row), _key_of(run, spec, album.photos)
    if is_written(run, key):
        yield Event("note", text="This comparison is complete already; nothing was done again")
        yield Event("done", seconds=control.clock.seconds, path=str(run.report), text="Done")
        return
    if job.world.first:
        forget_report(run)
    device, family = yield from load(job)
    subjects = yield from _teach(job, album, family)
    if not job.world.first:  # the first process draws and judges
        yield Event("done", text="Taught together", seconds=control.clock.seconds)
        return
    columns = ("none", *subjects, *imported)
    renders = yield from draw(run, columns, samplings, family, class_word=spec.class_word, control=control)
    if not renders:
        raise UserError("The image filter refused every picture, so nothing can be compared. Try other prompts.")
    made_elsewhere, problems = brought(run, spec.images)
    job.notes += problems
    renders += made_elsewhere
    judged = yield from judge(run, album, renders, family, terms=job.terms, control=control)
    shown = _Shown(("none", *spec.methods, *imported, *spec.images), renders, subjects, samplings, device)
    findings = yield from _report(job, album, shown, judged)
    job.raise_problems("The report shows the others.")
    from pipelines.reports.findings import verdict

    yield Event("done", seconds=control.clock.seconds, path=str(run.report), text=verdict(findings))


def _train(job: Job) -> Iterator[Event]:
    album = yield from join_in(job)
    _, family = yield from load(job)
    before = {name: subject_of(job.run, name) for name in job.spec.methods}
    subjects = yield from _teach(job, album, family)
    changed = any(subjects.get(name) != before[name] for name in job.spec.methods)
    if changed and job.world.first:  # an earlier report is no longer true
        forget_report(job.run)
    job.raise_problems("The others are trained.")
    said = ". ".join([f"Trained: {', '.join(subjects)}", *job.left])
    yield Event("done", text=said, seconds=job.control.clock.seconds)


def _portrait(job: Job) -> Iterator[Event]:
    """One method after another: learn the face, unless it was learned from these photos before, and draw with it."""
    run, spec = job.run, job.spec
    album = yield from join_in(job)
    device, family = yield from load(job)
    made = 0
    for name in spec.methods:
        if not is_instant(name) and trained_before(run.method(name), job.row, album.photos.digest) is None:
            yield from _teach(job, album, family, {name: job.recipes[name]})
        last = name == spec.methods[-1]
        made += yield from _pictures(job, (name,), album, family, device, with_report=last)
    yield Event("done", text=_ready(job, made), seconds=job.control.clock.seconds)


def _generate(job: Job) -> Iterator[Event]:
    photos = load_photo_set(job.run)
    columns = tuple(sorted(set(job.spec.methods), key=place_of))
    _need_subjects(job.run, columns)
    device, family = yield from load(job)
    album = album_of(photos) if photos is not None else None
    made = yield from _pictures(job, columns, album, family, device)
    yield Event("done", text=_ready(job, made), seconds=job.control.clock.seconds)


def _finish(job: Job) -> Iterator[Event]:
    from pipelines.finishing import stage

    assert job.spec.finish is not None, "checked"
    control = job.control
    all_of_them = yield from stage.finish_pictures(job.run, job.spec.finish, control=control)
    if not all_of_them:
        raise Stopped
    yield Event("done", text="The pictures are finished", seconds=control.clock.seconds)


# ------------------------------------------------------------------------------------------------- their parts


@dataclass(frozen=True)
class _Shown:
    """What a report shows."""

    columns: tuple[str, ...]
    renders: Sequence[Render]
    subjects: dict[str, Subject]  # by method
    samplings: Sequence[Sampling]
    device: Device


def _pictures(
    job: Job, columns: tuple[str, ...], album: Album | None, family: Family, device: Device, *, with_report: bool = True
) -> Generator[Event, None, int]:
    """Draw what the job names with these columns, judge it where there are photos, and write the report. Returns the
    number of pictures.
    """
    run, spec, control = job.run, job.spec, job.control
    yield from _encode(job, album, columns, family)
    samplings = tuple(dict.fromkeys(spec.samplings))
    drawn = yield from draw(run, columns, samplings, family, class_word=spec.class_word, control=control)
    everything = renders_of(run)
    if album is None:
        yield Event("note", text="There are no photos in this run, so the pictures have no score")
    elif everything:
        judged = yield from judge(
            run, album, drawn, family, terms=replace(job.terms, earlier=everything), control=control
        )
        if with_report and (read_json(run.manifest) or {}).get("kind") != "compare":
            present = tuple(sorted({render.method for render in everything}, key=place_of))
            asked = tuple(dict.fromkeys(render.sampling for render in everything))
            shown = _Shown(present, everything, subjects_of(run), asked, device)
            yield from _report(job, album, shown, judged)
    return len(drawn)


def _ready(job: Job, made: int) -> str:
    """What is said at the end of a job that drew."""
    samplings, columns = set(job.spec.samplings), set(job.spec.methods)
    gone = sum(sampling in samplings and column in columns for column, sampling in refusals(job.run, job.row))
    return f"{made} pictures are ready" + (f"; the image filter refused {gone} others" if gone else "")


def _teach(
    job: Job, album: Album, family: Family, recipes: dict[str, Recipe] | None = None
) -> Generator[Event, None, dict[str, Subject]]:
    """{method: Subject} of what could be taught; `recipes` are the job's where none are given. Raises UserError when
    nothing could be.
    """

    def find_watch() -> Watch | None:
        from pipelines.evaluation import validation

        return validation.watch(album)

    taught = yield from teach(
        job.run, album, recipes or job.recipes, family, control=job.control, find_watch=find_watch
    )
    job.problems += taught.problems
    job.left += taught.left
    job.memory |= taught.memory
    if not taught.subjects and job.left and not job.problems:
        raise Stopped
    if not taught.subjects:
        raise UserError(" ".join(job.problems) or "Nothing could be trained. Try again.")
    return taught.subjects


def _encode(job: Job, album: Album | None, columns: Sequence[str], family: Family) -> Iterator[Event]:
    """Columns that nothing trains for are made when they are drawn, and anew where the photos changed since."""
    for name in (each for each in columns if is_instant(each)):
        if album is None:
            raise UserError(f"{title_of(name)} needs the person's photos, and there are none in this run. Add them.")
        yield from encode(job.recipe(name), album, job.run.method(name), family)


def _report(job: Job, album: Album, shown: _Shown, judged: Judged) -> Generator[Event, None, Findings]:
    """Measure the pictures' facts (`judge.look_closer`), then write the report."""
    from pipelines.reports.findings import Findings, ScoredRender

    run, spec, row, control = job.run, job.spec, job.row, job.control
    wall_s = control.clock.seconds
    closer = yield from look_closer(run, album, shown.renders, judged, terms=job.terms, control=control)
    cells = [
        ScoredRender(each.method, each.sampling, run.relative(each.path), judged.scores.get(each.path, ()))
        for each in shown.renders
    ]
    watched = {name: read_json(run.method(name) / WATCH_FILE) for name in shown.subjects}
    findings = Findings(
        base=_base_name(row),
        title=row.title,
        class_word=spec.class_word,
        quality=spec.quality,
        seed=spec.seed,
        wall_s=wall_s,
        photo_set=album.photos,
        columns=shown.columns,
        cells=tuple(cells),
        marks=judged.marks,
        subjects=shown.subjects,
        errors=job.errors,
        facts=closer.facts,
        worth=closer.worth,
        stylised=tuple(job.terms.stylised),
        refused=tuple(refusals(run, row)),
        heat=closer.heat,
        curves={name: seen for name, seen in watched.items() if seen},
        clip=closer.clip,
        strengths=read_json(run.method("lora") / STRENGTHS_FILE) if "lora" in shown.subjects else None,
        calibration=judged.judges[0].calibration,
        face_encoder=row.face_encoder,
        command=_command(spec, row),
    )
    origin = Origin(
        kind=spec.kind,
        key=_key_of(run, spec, album.photos),
        started=job.started,
        row=row,
        device=shown.device,
        samplings=shown.samplings,
        judges=judged.judges,
        memory=job.memory,
        notes=(*job.notes, *judged.notes, *closer.notes),
    )
    yield from report(run, album, findings, origin, control=control)
    return findings


def _need_subjects(run: Run, columns: Sequence[str]) -> None:
    """Raises UserError for a column that has nothing to draw with."""
    for name in columns:
        if name == "none" or is_instant(name) or subject_of(run, name) is not None:
            continue
        if is_imported(name):
            raise UserError("An imported file is no longer in this run. Import it again, or leave it out.")
        raise UserError(f"{title_of(name)} is not trained in this run yet. Train it first, or leave it out.")


def _imported(run: Run, row: BaseRow) -> tuple[str, ...]:
    """The run's imported columns that were made for this base."""
    cards = {name: subject_of(run, name) for name in imported_columns(run)}
    return tuple(name for name, card in cards.items() if card is not None and card.base == row.name)


def _key_of(run: Run, spec: JobSpec, photos: PhotoSet) -> str:
    """A hash of what determines a report: the job, the photos, and the files that were imported."""
    cards = [read_json(run.method(name) / "subject.json") or {} for name in imported_columns(run)]
    imported = [[sorted(card.get(each, "") for card in cards) for each in ("id", "phrase")]] if cards else []
    return sha(jsonable(spec), photos.digest, *imported)


def _base_name(row: BaseRow) -> str:
    """A registered base's name, or only the last part of a local base's path: a report may be published."""
    return row.name if row.name in BASES else Path(row.path or row.name).name


def _command(spec: JobSpec, row: BaseRow) -> str:
    """The command that repeats this job. It holds no paths, since a report may be published."""
    if spec.kind != "compare":
        return ""
    base = row.name if row.name in BASES else "BASE"
    words = [f"python -m pipelines compare PHOTOS --class-word {spec.class_word} --base {base}"]
    words.append(f"--methods {','.join(spec.methods)} --quality {spec.quality} --seed {spec.seed}")
    exact = "; to the bit, with every setting: python -m pipelines replay RUN/manifest.json"
    return f"{' '.join(words)} --out RUN{exact}"
