"""A study: people x budgets x recipes x training seeds; every cell is an ordinary comparison, and it can be stopped.

In: a folder of people (or one person's photos) and a matrix file. Out: OUT/<person>/<cell>/ - runs as `compare` makes
them - and over all of them report.json, report.html, cells.csv and table.tex (`pipelines.reports.study`).
Cells are independent: `jobs` of them run at once, each in processes of its own. Finished ones are not done again.

    python -m pipelines compare PEOPLE_DIR --matrix presets/studies/portrait-128.json --out OUT --jobs 2
"""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.bases.registry import BaseRow, find_base
from pipelines.core import presets
from pipelines.core.files import REPOSITORY, jsonable, read_json, write_json
from pipelines.core.records import ALL_METHODS, CLASS_WORDS, METHODS, QUALITIES, Event, Sampling, UserError, is_instant
from pipelines.core.run import Run, forget, is_run, record_consent, run_at
from pipelines.runs import jobs
from pipelines.runs.compare import CONSENT, is_complete
from pipelines.runs.jobspec import JobSpec, Setting

if TYPE_CHECKING:
    from pipelines.reports.study import FinishedRun

TIMED_STEPS, TIMED_FROM = 14, 4  # the first steps of a process are slower than the rest
OTHERS = 12  # other people that everybody is compared with, the next ones in the list
TRAITS = ("class_word", "skin", "age")  # columns of people.csv by which figures are told apart
TRIES = 2  # a worker that was killed or ran out of memory is started once more and continues from its checkpoints


@dataclass(frozen=True)
class Budget:
    """How much training each method gets: equal steps, equal wall clock, or what the recipe of a quality says."""

    name: str
    steps: int | None = None
    seconds: float | None = None
    quality: str | None = None

    def check(self) -> None:
        given = [value for value in (self.steps, self.seconds, self.quality) if value is not None]
        if len(given) != 1 or (self.quality is not None and self.quality not in QUALITIES):
            raise UserError(
                f"The budget {self.name} says either steps, seconds or quality ({', '.join(QUALITIES)}). Correct it."
            )
        if any(not isinstance(v, int | float) or isinstance(v, bool) or v <= 0 for v in given if v != self.quality):
            raise UserError(f"The budget {self.name} must be a number above 0. Correct it.")


@dataclass(frozen=True)
class Variant:
    """Changes to the recipes of some methods, under a name."""

    name: str
    settings: dict[str, dict[str, Setting]] = field(default_factory=dict)  # method -> changes


@dataclass(frozen=True)
class Matrix:
    """What a study does; read from JSON."""

    budgets: tuple[Budget, ...]
    base: str = "portrait-128"
    methods: dict[str, dict[str, Setting]] = field(default_factory=lambda: {name: {} for name in METHODS})
    recipes: tuple[Variant, ...] = (Variant(""),)  # each is done with every budget
    seeds: tuple[int, ...] = (0, 1, 2)  # of training
    render_seeds: tuple[int, ...] = (0, 1)
    prompts: tuple[str, ...] = ("portrait-128",)  # prompt sets
    quality: str = "good"  # whose recipe everything else is taken from
    people: tuple[str, ...] = ()  # () = all in the folder

    @property
    def stylised(self) -> tuple[str, ...]:
        return tuple(each.prompt for name in self.prompts for each in presets.prompts(name) if not each.photoreal)

    def samplings(self, class_word: str, row: BaseRow) -> tuple[Sampling, ...]:
        """Every prompt with every render seed, the same for every method, budget and training seed."""
        guidance = row.guidance
        texts = [each.prompt.replace("{class}", class_word) for name in self.prompts for each in presets.prompts(name)]
        return tuple(Sampling(text, guidance=guidance, seed=seed) for text in texts for seed in self.render_seeds)


Pace = dict[str, dict[str, float]]  # variant -> method -> seconds per step


@dataclass(frozen=True)
class Person:
    name: str
    class_word: str
    photos: tuple[Path, ...]
    traits: dict[str, str] = field(default_factory=dict)  # of TRAITS, those that people.csv states


@dataclass(frozen=True)
class Cell:
    """One comparison of a study."""

    person: Person
    condition: str  # the budget's name, and the recipe's where there are several
    seed: int
    folder: Path
    spec: JobSpec
    budget: Budget
    others: tuple[Person, ...] = ()  # whose photos are `spec.others`, in order

    @property
    def finished(self) -> FinishedRun:
        """This cell as the study's report reads it."""
        from pipelines.reports.study import FinishedRun

        others = tuple(each.name for each in self.others)
        return FinishedRun(self.person.name, self.condition, self.seed, self.folder, self.person.traits, others)

    @property
    def is_done(self) -> bool:
        return is_run(self.folder) and is_complete(Run(self.folder), self.spec)


def read_matrix(file: Path) -> Matrix:
    """Raises UserError, naming it, for anything in the file that can't be done."""
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file.name} is not a matrix file: it can't be read as JSON ({error}).") from error
    if not isinstance(saved, dict):
        raise UserError(f"{file.name} is not a matrix file: it must hold one JSON object.")
    known = [each.name for each in fields(Matrix)]
    if unknown := sorted(set(saved) - {*known, "about"}):
        raise UserError(
            f"The matrix {file.name} has unknown parts: {', '.join(unknown)}. There are {', '.join(known)}."
        )
    values: dict[str, Any] = {name: saved[name] for name in known if name in saved}
    try:
        values["budgets"] = tuple(Budget(**each) for each in saved["budgets"])
        if "recipes" in values:
            values["recipes"] = tuple(Variant(**each) for each in values["recipes"])
        for name in ("seeds", "render_seeds", "prompts", "people"):
            if name in values:
                values[name] = tuple(values[name])
        matrix = Matrix(**values)
    except (TypeError, KeyError) as error:
        raise UserError(
            f'The matrix {file.name} needs "budgets", each with a name and one amount ({error}).'
        ) from error
    if not matrix.budgets or not matrix.seeds or not matrix.render_seeds or not matrix.methods:
        raise UserError(f"The matrix {file.name} must name at least one budget, seed, render seed and method.")
    for name in matrix.methods:
        if name not in ALL_METHODS:
            raise UserError(f"There is no method {name}. Choose one of: {', '.join(ALL_METHODS)}.")
    for budget in matrix.budgets:
        budget.check()
    conditions = [_condition(budget, variant) for budget in matrix.budgets for variant in matrix.recipes]
    for name in conditions:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}", name):
            raise UserError(f"{name} in {file.name} can't name a folder. Use letters, digits, dots, - and _.")
    if len(set(conditions)) < len(conditions):
        raise UserError(f"Two budgets or recipes of {file.name} have one name. Rename one.")
    anybody = Person("anybody", "person", ())
    for variant in matrix.recipes:
        if unknown := sorted(set(variant.settings) - set(matrix.methods)):
            raise UserError(f"The recipe {variant.name} changes {', '.join(unknown)}, which the matrix does not train.")
        _spec(matrix, anybody, matrix.budgets[0], variant, 0, {name: 1 for name in matrix.methods}).check()
    return matrix


def read_people(folder: Path, only: Sequence[str] = ()) -> list[Person]:
    """A folder with one folder of photos per person and `people.csv` (person, class_word, and skin and age where they
    are known); or one person's photos.
    """
    from pipelines.photos.gather import photo_files

    inside = sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    if not inside:
        return [Person(folder.resolve().name, "person", tuple(photo_files(folder)))]
    stated: dict[str, dict[str, str]] = {}
    table = folder / "people.csv"
    if table.is_file():
        with table.open(newline="", encoding="utf-8") as file:
            stated = {row["person"]: row for row in csv.DictReader(file)}
    if missing := sorted(set(only) - {each.name for each in inside}):
        raise UserError(f"There is no folder of photos named {', '.join(missing)} in {folder.name}.")
    people = []
    for each in inside:
        row = stated.get(each.name, {})
        word = row.get("class_word", "person")
        if word not in CLASS_WORDS:
            raise UserError(f"people.csv calls {each.name} a {word}; it must be one of {', '.join(CLASS_WORDS)}.")
        if not only or each.name in only:
            traits = {name: row[name] for name in TRAITS if row.get(name)}
            people.append(Person(each.name, word, tuple(photo_files(each)), traits))
    return people


def cells(matrix: Matrix, people: Sequence[Person], out: Path, pace: Pace) -> list[Cell]:
    """All cells, people in turn, so that a study that is stopped early has cells of every person. `pace`: seconds per
    step, for budgets in seconds.
    """
    return [
        Cell(
            person,
            _condition(budget, variant),
            seed,
            out / person.name / f"{_condition(budget, variant)}-seed{seed}",
            replace(
                _spec(matrix, person, budget, variant, seed, pace.get(variant.name, {})),
                others=tuple(str(each.photos[0].resolve()) for each in others(person, people)),
            ),
            budget,
            others(person, people),
        )
        for seed in matrix.seeds
        for budget in matrix.budgets
        for variant in matrix.recipes
        for person in people
    ]


def others(person: Person, people: Sequence[Person]) -> tuple[Person, ...]:
    """Up to OTHERS other people of the study: those after this one, so that everybody is as often among them."""
    at = next((k for k, each in enumerate(people) if each.name == person.name), 0)
    return tuple(each for each in (*people[at + 1 :], *people[:at]) if each.photos)[:OTHERS]


def _condition(budget: Budget, variant: Variant) -> str:
    return f"{budget.name}-{variant.name}" if variant.name else budget.name


def _spec(
    matrix: Matrix,
    person: Person,
    budget: Budget,
    variant: Variant,
    seed: int,
    seconds_per_step: dict[str, float],
) -> JobSpec:
    settings: dict[str, dict[str, Setting]] = {}
    for name, changes in matrix.methods.items():
        if is_instant(name):  # at its own cost, whatever the budget is
            settings[name] = {**changes, **variant.settings.get(name, {})}
            continue
        settings[name] = {"preview_every_s": 0.0, **changes, **variant.settings.get(name, {})}
        if budget.steps is not None:
            settings[name]["steps"] = budget.steps
        if budget.seconds is not None:
            settings[name]["steps"] = max(1, round(budget.seconds / seconds_per_step[name]))
    row = find_base(matrix.base)
    return JobSpec(
        kind="compare",
        base=matrix.base,
        class_word=person.class_word,
        methods=tuple(name for name in ALL_METHODS if name in matrix.methods),
        quality=budget.quality or matrix.quality,
        seed=seed,
        split_seed=0,  # every training seed learns from the same photos
        photos=tuple(str(path.resolve()) for path in person.photos),
        stylised=matrix.stylised,
        samplings=matrix.samplings(person.class_word, row),
        settings=settings,
    )


# ------------------------------------------------------------------------------------------------- doing it


def run_cell(folder: Path, spec: JobSpec) -> jobs.JobStatus:
    """Do one cell in a worker process of its own, on the machine where this is called; returns its last status."""
    run = run_at(folder)
    if not run.consent.exists():
        record_consent(run, means="study", statement=CONSENT)
    jobs.start(run, spec)
    for _ in jobs.follow(run):
        pass
    return jobs.status(run)


class RayEngine:
    """Cells on a Ray cluster. All its machines need this repository and the study's folder under the same paths.

    Photos travel through that folder only, never through Ray. A task whose machine was lost is given to another one,
    which continues from the cell's checkpoints.
    """

    def __init__(self, address: str | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError("Ray is not installed. Add it with: pip install -r requirements-ray.txt") from error
        self._ray = ray
        repository = str(REPOSITORY)
        threads = os.environ.setdefault("OMP_NUM_THREADS", "1")
        kept = ("LIKENESS_FACE_MODELS", "HF_HUB_OFFLINE", "HF_HOME")
        variables = {name: os.environ[name] for name in kept if name in os.environ}
        variables |= {"PYTHONPATH": repository, "OMP_NUM_THREADS": threads}
        ray.init(
            address=address,
            runtime_env={"env_vars": variables},
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            ignore_reinit_error=True,
        )
        self._task = ray.remote(num_cpus=int(threads), max_retries=TRIES)(run_cell)

    @property
    def at_once(self) -> int:
        """How many cells the cluster can do at the same time."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)) // int(os.environ["OMP_NUM_THREADS"]))

    def __call__(self, folder: Path, spec: JobSpec) -> jobs.JobStatus:
        try:
            return self._ray.get(self._task.remote(folder, spec))
        except self._ray.exceptions.WorkerCrashedError:
            return jobs.JobStatus("interrupted", reason="The machine that worked on it was lost.")

    def close(self) -> None:
        self._ray.shutdown()


class Study:
    """Runs the cells of a matrix. `tell` gets sentences."""

    def __init__(
        self,
        matrix: Matrix,
        people: Sequence[Person],
        out: Path,
        tell: Callable[[str], None],
        *,
        engine: Callable[[Path, JobSpec], jobs.JobStatus] | None = None,
    ) -> None:
        self.matrix, self.people, self.out, self.tell = matrix, list(people), out.resolve(), tell
        self._engine = engine or run_cell
        self._timing = self.out / "timing.json"
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._running: set[Path] = set()
        self.failed: dict[str, str] = {}

    def run(self, *, at_once: int = 1) -> list[Cell]:
        """Do the cells that are not finished; returns all finished ones. `self.failed` says why others are not."""
        if not self.people:
            raise UserError("There are no people in that folder. Give one folder of photos per person.")
        self.out.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // at_once)))
        every = cells(self.matrix, self.people, self.out, self._pace(at_once))
        todo = [cell for cell in every if not cell.is_done]
        self.tell(f"{len(every)} cells, {len(every) - len(todo)} of them done already")
        took: list[float] = []
        with ThreadPoolExecutor(at_once) as pool:
            waiting: dict[Future[float], Cell] = {pool.submit(self._do, cell): cell for cell in todo}
            try:
                while waiting:
                    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                        self._count(waiting.pop(future), future, took, len(waiting), at_once)
            except KeyboardInterrupt:
                self.stop()
                raise
        return [cell for cell in every if cell.is_done]

    def planned(self, *, at_once: int = 1) -> list[Cell]:
        """The cells that `run` would do. Nothing is started; where no pace was measured, steps stand for seconds."""
        unknown = {variant.name: dict.fromkeys(self.matrix.methods, 1.0) for variant in self.matrix.recipes}
        return cells(self.matrix, self.people, self.out, self._known_pace(at_once) or unknown)

    def stop(self) -> None:
        """Stop every cell within one step; what was learned is kept, and a later `run` continues."""
        self._stop.set()
        with self._lock:
            running = list(self._running)
        for folder in running:
            jobs.stop(Run(folder))

    def _count(self, cell: Cell, future: Future[float], took: list[float], left: int, at_once: int) -> None:
        name = f"{cell.person.name} {cell.folder.name}"
        try:
            took.append(future.result())
        except UserError as problem:
            self.failed[name] = str(problem)
            self.tell(f"{name} failed: {problem}")
            return
        minutes = statistics.mean(took) * left / at_once / 60
        self.tell(f"{name} is done; {left} left, about {minutes:.0f} minutes")

    def _do(self, cell: Cell) -> float:
        """Do one cell in a worker process; returns the seconds it took. Raises UserError with the reason."""
        started = time.monotonic()
        for attempt in range(TRIES):
            if self._stop.is_set():
                raise UserError("The study was stopped. The same command continues it.")
            status = self._worker(cell.folder, cell.spec)
            if status.state == "done":
                return time.monotonic() - started
            if status.state != "interrupted":
                break
            if attempt + 1 < TRIES:
                self.tell(f"{cell.person.name} {cell.folder.name}: its worker was lost; starting it again")
        raise UserError(status.reason or f"It ended as {status.state}.")

    def _worker(self, folder: Path, spec: JobSpec) -> jobs.JobStatus:
        with self._lock:
            self._running.add(folder)
        try:
            return self._engine(folder, spec)
        finally:
            with self._lock:
                self._running.discard(folder)

    def _pace(self, at_once: int) -> Pace:
        """Seconds per step on this machine, for budgets in seconds. Measured once per study, while as many processes
        run as later. The time for validation pictures is included.
        """
        if all(budget.seconds is None for budget in self.matrix.budgets):
            return {}
        if (known := self._known_pace(at_once)) is not None:
            return known
        self.tell("Measuring how long a step of each method takes here")
        pace = {variant.name: self._time(variant, at_once) for variant in self.matrix.recipes}
        write_json(self._timing, {"of": self._timed(at_once), "pace": pace, "steps": [TIMED_FROM, TIMED_STEPS]})
        return pace

    def _known_pace(self, at_once: int) -> Pace | None:
        known = read_json(self._timing)
        if not isinstance(known, dict) or known.get("of") != self._timed(at_once):
            return None
        return {name: {m: float(value) for m, value in each.items()} for name, each in known["pace"].items()}

    def _timed(self, at_once: int) -> dict[str, object]:
        return {"jobs": at_once, "recipes": jsonable(self.matrix.recipes), "methods": self.matrix.methods}

    def _time(self, variant: Variant, at_once: int) -> dict[str, float]:
        budget = next(budget for budget in self.matrix.budgets if budget.seconds is not None)
        spec = _spec(self.matrix, self.people[0], budget, variant, 0, dict.fromkeys(self.matrix.methods, 1.0))
        watched = {
            name: presets.recipe(find_base(spec.base), name, spec.quality, class_word=spec.class_word)
            .replaced(**spec.settings[name])
            .watch_every
            for name in spec.methods
            if not is_instant(name)
        }
        folders = [self.out / f".timing-{index}" for index in range(at_once)]
        with ThreadPoolExecutor(at_once) as pool:
            ended = list(pool.map(lambda folder: self._worker(folder, _timing(spec, watched)), folders))
        for status in ended:
            if status.state != "done":
                raise UserError(f"The time of a step could not be measured: {status.reason or status.state}")
        each = [_per_step(jobs.events(Run(folder)), watched) for folder in folders]
        for folder in folders:
            run = Run(folder)
            jobs.hold(run, lambda _, run=run: jobs.released(run))  # type: ignore[misc]
            forget(run)
        return {name: statistics.mean(times[name] for times in each) for name in watched}


def _timing(spec: JobSpec, watched: dict[str, int]) -> JobSpec:
    """A training of a few steps. After the last one validation pictures are drawn, where the method draws any."""
    settings = {
        name: {**changes, "steps": TIMED_STEPS, "checkpoint_every": 10_000, "choose_strength": False, "patience": 0}
        | {"watch_every": TIMED_STEPS if watched[name] else 0}
        for name, changes in spec.settings.items()
        if name in watched
    }
    return replace(spec, kind="train", methods=tuple(watched), samplings=(), settings=settings)


def _per_step(events: Sequence[Event], watched: dict[str, int]) -> dict[str, float]:
    """Seconds per step of each method in a timing run, with a step's share of the time for validation pictures."""
    at: dict[str, dict[int, float]] = {}
    for event in events:
        if event.kind == "step" and event.method and event.seconds is not None:
            at.setdefault(event.method, {})[event.step] = event.seconds
    found = {}
    for name, seconds in at.items():
        last = seconds[TIMED_STEPS - 1]
        plain = (last - seconds[TIMED_FROM]) / (TIMED_STEPS - 1 - TIMED_FROM)
        look = max(0.0, seconds[TIMED_STEPS] - last - plain)
        found[name] = plain + (look / watched[name] if watched[name] else 0.0)
    return found
