"""Putting work in the line: a training, pictures, finishing.

In: a session and what its person chose, checked. Out: a job in the line. Raises `UserError` for what can't be done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.bases.registry import BaseRow
from pipelines.core.records import Finish, Recipe, Sampling, UserError, is_instant
from pipelines.core.run import Run
from pipelines.runs import jobs
from pipelines.runs.jobspec import JobSpec, Setting, portrait_spec
from pipelines.runs.ledger import WAITING, Ledger, party_of
from pipelines.training import estimates
from ui.run import photobox
from ui.run.paces import DRAWING
from ui.run.progress import going_on_from, trained
from ui.run.sessions import Session
from ui.web.limits import require_room

Settings = dict[str, dict[str, Setting]]  # method -> changes to its recipe


if TYPE_CHECKING:
    from ui.run.services import Services


LOOKS = 5  # at validation pictures in a training of the app
MAX_STEPS, MAX_BATCH = 3000, 32
FINISH_S = 5.0  # about what finishing a picture takes on two cores
AROUND_S = 15.0  # about what loading the base, scores and the report take beside portraits on two cores
GO_ON_SHARE = 0.5  # of the steps, where a training starts from what was learned before


def fewer_steps(steps: int) -> int:
    """The steps of a training that goes on."""
    return max(10, round(steps * GO_ON_SHARE))


def start_training(
    services: Services,
    session: Session,
    *,
    methods: tuple[str, ...],
    quality: str,
    settings: Settings | None = None,
    go_on: bool = False,
) -> None:
    """Put a training in the line, or continue the last one where it is the same and did not come to its end.

    With `go_on`, methods that learned from other photos start from what they know.

    Raises UserError for settings that make no sense, and when the line or the disk is full.
    """
    settings = {m: dict(each) for m, each in (settings or {}).items() if each and m in methods}
    base = session.choices.base or services.default_base
    row = services.bases[base]
    photos = photobox.load(session.run)
    digest = photos.photo_set.digest if photos.photo_set else ""
    known = trained(session.run)
    fits = {m: card for m, card in known.items() if (card.photo_digest, card.base) == (digest, base)}
    older = services.older(session.run, photos, base, known, fits)
    going_on = [m for m in going_on_from(older, known, session) if go_on and m in methods]
    asked = {
        "quality": quality, "methods": list(methods), "settings": settings, "photos": digest,
        "go_on": bool(going_on),
    }  # fmt: skip
    if _continues(services, session, asked, base, choice=bool(older)):
        last = jobs.load_spec(session.run)
        whole = services.estimated_s(row, services.recipes(row, last.quality, last.methods, last.settings))
        done_s = jobs.status(session.run).wall_s
        _enqueue(services, session, session.run, estimate_s=None if whole is None else max(0.0, whole - done_s))
        return
    changes = {m: dict(settings.get(m, {})) for m in methods}
    for method, recipe in services.recipes(row, quality, methods, settings).items():
        if recipe.steps > MAX_STEPS or recipe.batch > MAX_BATCH:
            raise UserError(
                f"At most {MAX_STEPS} steps of at most {MAX_BATCH} photos are taught here, so that others get "
                "their turn. The command line takes more."
            )
        if not recipe.watch_every:
            # a look at validation pictures now and then: a person sees the likeness grow, the best is kept
            changes[method]["watch_every"] = max(10, recipe.steps // LOOKS)
    for method in going_on:
        steps = services.recipes(row, quality, (method,), changes)[method].steps
        changes[method] |= {"start_from": known[method].sha256, "steps": fewer_steps(steps)}
    spec = JobSpec(
        kind="train", base=base, class_word=session.choices.class_word, methods=methods, quality=quality,
        settings=changes,
    )  # fmt: skip
    estimate = services.estimated_s(row, services.recipes(row, quality, methods, changes))
    with photobox.taking(session.run):  # photos that are still coming in are not part of it
        photobox.note_learned(session.run, methods)
        _enqueue(services, session, session.run, spec, estimate_s=estimate)
    services.sessions.choose(session, quality=quality, asked=asked)


def _continues(services: Services, session: Session, asked: dict[str, Any], base: str, *, choice: bool) -> bool:
    """Whether this is what the last training was asked for, and that one did not come to its end. Without a
    `choice`, whether to go on from something older is not asked: a training that did is continued.
    """
    now, last = jobs.status(session.run), session.choices.asked
    if not choice:
        asked = asked | {"go_on": last.get("go_on", False)}
    if now.state not in ("cancelled", "interrupted", "failed") or last != asked:
        return False
    before = jobs.load_spec(session.run)
    return (before.kind, before.base, before.class_word) == ("train", base, session.choices.class_word)


def start_generation(
    services: Services, session: Session, *, columns: tuple[str, ...], samplings: tuple[Sampling, ...]
) -> None:
    choices = session.choices
    spec = JobSpec(
        kind="generate", base=choices.base or services.default_base, class_word=choices.class_word, methods=columns,
        samplings=samplings,
    )  # fmt: skip
    pace = estimates.pace_of(services.paces.known().get(estimates.key(services.bases[spec.base], DRAWING)))
    estimate = None if pace is None else pace.step_s * spec.denoiser_steps
    _enqueue(services, session, session.run.drawing, spec, estimate_s=estimate)


def start_portrait(services: Services, session: Session) -> None:
    """Put the whole chain in the line: learn, draw, score. What was learned from these photos is not learned again. A
    chain that was stopped goes on; after one that is done the next draws other pictures. Raises UserError.
    """
    row = services.bases[session.choices.base or services.default_base]
    now, seed = jobs.status(session.run), 0
    if now.kind == "portrait":
        seeds = [each.seed for each in jobs.load_spec(session.run).samplings]
        seed = max(seeds) + 1 if now.state == "done" else min(seeds)
    spec = portrait_spec(row, class_word=session.choices.class_word, seed=seed)
    known, photos = trained(session.run), photobox.load(session.run).photo_set
    digest = photos.digest if photos else ""
    learned = [
        m for m, card in known.items() if (card.photo_digest, card.base, card.complete) == (digest, row.name, True)
    ]
    with photobox.taking(session.run):  # photos that are still coming in are not part of it
        photobox.note_learned(session.run, spec.methods)
        estimate = portrait_s(services, row, spec, learned)
        _enqueue(services, session, session.run, spec, estimate_s=estimate)


def portrait_s(
    services: Services, row: BaseRow, spec: JobSpec, learned: Sequence[str] = (), *, drawn: int = 0
) -> float | None:
    """Seconds until the portraits of `spec` are there, but for methods that have `learned` and pictures that are
    `drawn`. None where nothing was timed.
    """
    trained_here = [method for method in spec.methods if not is_instant(method)]
    recipes = services.recipes(row, spec.quality, trained_here, spec.settings) if trained_here else {}
    rest = {method: recipe for method, recipe in recipes.items() if method not in learned}
    learning_s = services.estimated_s(row, rest) if rest else 0.0
    step_s = _drawing_step_s(services, row, recipes)
    if learning_s is None or step_s is None:
        return None
    every = len(spec.methods) * len(spec.samplings)
    return learning_s + AROUND_S + step_s * spec.denoiser_steps * (1 - min(drawn, every) / every)


def _drawing_step_s(services: Services, row: BaseRow, recipes: Mapping[str, Recipe]) -> float | None:
    """Seconds that a denoiser step of one picture takes: as timed here, else as training with these recipes would."""
    pace = estimates.pace_of(services.paces.known().get(estimates.key(row, DRAWING)))
    if pace is not None:
        return pace.step_s
    training_s = services.estimated_s(row, dict(recipes)) if recipes else None
    if training_s is None:
        return None
    # a step of training is a pass there and twice as much back, a step of drawing with guidance two passes there
    return training_s / sum(each.steps * each.batch for each in recipes.values()) * 2 / 3


def start_finishing(services: Services, session: Session, order: Finish) -> None:
    """Put pictures of the run in the line to be finished; they need no base model. Raises UserError."""
    choices = session.choices
    spec = JobSpec(
        kind="finish", base=choices.base or services.default_base, class_word=choices.class_word, methods=("none",),
        finish=order,
    )  # fmt: skip
    _enqueue(services, session, session.run.drawing, spec, estimate_s=FINISH_S * len(order.pictures))


def _enqueue(
    services: Services, session: Session, run: Run, spec: JobSpec | None = None, *, estimate_s: float | None = None
) -> None:
    require_room(run.folder)
    owner = owner_with_room(services, session)
    jobs.enqueue(run, spec, owner=owner, estimate_s=estimate_s, serve=services.slice is None)


def owner_with_room(services: Services, session: Session) -> str:
    """Whose job it is, for the queue: the visitor and their address. Raises UserError when so many jobs of this address
    wait already that there would be no room for others.
    """
    party = services.party(session.run)
    entries = Ledger(services.sessions.root).unfinished()
    waiting = sum(entry.state == WAITING and party_of(entry.owner) == party for entry in entries)
    if waiting >= max(jobs.PER_VISITOR, jobs.line_limit() // 4):
        raise UserError(f"{waiting} jobs from your network are waiting already. Come back when some of them are done.")
    return f"{session.key}.{party}"
