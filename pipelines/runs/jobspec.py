"""What to do in a run, as one record: checked before anything starts, written as spec.json, read by the worker.

In: a person's choices, from the page, the command line, Python or a file. Out: a `JobSpec`, or a UserError that names
what can't be done. Light: no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any

from pipelines.bases.registry import BaseRow, find_base
from pipelines.core import presets, safety
from pipelines.core.decode import check_record, check_variation, decode, with_subject
from pipelines.core.records import (
    ALL_METHODS,
    ATTENTIONS,
    CLASS_WORDS,
    COLUMNS,
    METHOD_ROWS,
    METHODS,
    QUALITIES,
    Finish,
    Recipe,
    Sampling,
    Seed,
    Style,
    UserError,
    Within,
    is_imported,
)

KINDS = ("compare", "train", "portrait", "generate", "finish")
RENDERS = 8  # per column of a comparison
# A comparison draws plain styles, since it is about the face. Every base family can draw some of them.
COMPARED_STYLES = ("studio-grey", "linkedin-navy", "warm-brown", "teal-studio")
LABELS = {
    "seed": "The seed",
    "split_seed": "The split's seed",
    "processes": "The number of processes",
    "renders": "The number of pictures",
}

Setting = int | float | str | bool | None


@dataclass(frozen=True)
class JobSpec:
    """What to do in a run. JSON-able; the worker reads nothing else."""

    # "compare": everything | "train": up to the artefacts | "portrait": train what is not trained yet, draw and score
    # | "generate": draw and score | "finish": refine and deliver
    kind: str = "compare"
    base: str = "portrait-128"  # a registry name or a path
    class_word: str = "person"
    # the methods to train; for "generate" the columns to draw, where "none" is the untrained base
    methods: tuple[str, ...] = tuple(METHODS)
    quality: str = "good"
    seed: Seed = 0
    split_seed: Seed | None = None  # determines which photos are held out; None: `seed` does
    photos: tuple[str, ...] = ()  # files to take in; empty: the run's photos were taken in already
    keep: tuple[str, ...] = ()  # names of photos to use although the checks would leave them out
    samplings: tuple[Sampling, ...] = ()  # what to draw; empty for "compare": `renders` plain portraits
    renders: Annotated[int, Within(1, 500)] = RENDERS
    stylised: tuple[str, ...] = ()  # prompts no recogniser can judge (paintings, cartoons): out of the identity figures
    others: tuple[str, ...] = ()  # photos of other people, for the heatmap; empty: the synthetic sample person's
    images: dict[str, tuple[str, ...]] = field(default_factory=dict)  # name -> pictures made elsewhere: one more column
    settings: dict[str, dict[str, Setting]] = field(default_factory=dict)  # method -> changes to its recipe
    device: str | None = None  # "cpu", "cuda", "mps"; None = the best here
    attention: str = "sdpa"  # or "xformers", on NVIDIA GPUs
    processes: Annotated[int, Within(1, 64)] = 1  # that teach together, on as many GPUs
    download_judge: bool = False  # the person agreed that an ArcFace pack may be downloaded
    finish: Finish | None = field(default=None, metadata={"later": True})  # for "finish"

    def check(self) -> None:
        """Raises UserError, naming it, for anything that can't be done. Light: no torch."""
        for value, known, what in (
            (self.kind, KINDS, "kind of job"),
            (self.quality, QUALITIES, "quality"),
            (self.class_word, CLASS_WORDS, "class word"),
            (self.attention, ATTENTIONS, "attention"),
        ):
            if value not in known:
                raise UserError(f"There is no {what} {value}. Choose one of: {', '.join(known)}.")
        row = find_base(self.base)
        if self.kind == "finish":
            from pipelines.finishing import stage

            stage.check(self.finish)
        offered = COLUMNS if self.kind in ("generate", "finish") else ALL_METHODS
        if not self.methods:
            raise UserError(f"No method was chosen. Choose at least one of: {', '.join(offered)}.")
        for name in self.methods:
            if self.kind in ("generate", "finish") and is_imported(name):
                continue
            if name not in offered:
                raise UserError(f"There is no method {name}. Choose one of: {', '.join(offered)}.")
            if name != "none" and name not in row.offered:
                raise UserError(row.why_not(name))
        for method, changes in self.settings.items():
            _check_settings(method, changes)
        check_record(self, labels=LABELS)
        if self.kind in ("portrait", "generate") and not self.samplings:
            raise UserError("Nothing to draw was named. Give a prompt or pick a style.")
        for each in self.samplings:
            check_variation(each)
            with_subject(each.prompt)
            safety.check_prompt(each.prompt, each.negative_prompt)
            if row.own_scheduler and each.scheduler != "default":
                raise UserError(f"{row.title} draws with its own scheduler only. Choose default.")
            if each.source is not None and self.kind != "generate":
                raise UserError("A comparison draws from noise only. Vary its pictures afterwards: generate does that.")
        for name, files in self.images.items():
            if name in COLUMNS or is_imported(name) or not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,39}", name):
                raise UserError(
                    f"{name} can't name a column of pictures made elsewhere. Use small letters, digits, - and _, and "
                    f"none of {', '.join(COLUMNS)}."
                )
            if not 1 <= len(files) <= 500:
                raise UserError(f"The column {name} needs 1 to 500 pictures, not {len(files)}.")

    @property
    def split(self) -> int:
        return self.seed if self.split_seed is None else self.split_seed

    @property
    def denoiser_steps(self) -> int:
        """Denoising steps of all pictures of the job together."""
        return len(self.methods) * sum(each.steps for each in self.samplings)

    def disk_bytes(self) -> int:
        """About how much the job writes: checkpoints hold weights and two moments, artefacts the weights."""
        row = find_base(self.base)
        pictures = max(len(self.samplings), self.renders) * len(COLUMNS) * 4 * row.resolution_px**2
        learned = 0.05e9 * (1 + row.vram_gb)
        # per parameter weights, moments and an average in float32, the artefact in half
        if any("weights" in METHOD_ROWS[name].learns for name in self.methods if name in METHOD_ROWS):
            learned = 18e6 * row.footprint.denoiser_m if row.footprint is not None else 0.8e9 * row.vram_gb
        learned *= 1.25  # where checkpoints are chosen, the best one so far is saved beside the last
        if self.finish is not None:
            return int(50e6 + 3e6 * len(self.finish.pictures))
        return int(50e6 + pictures + (0 if self.kind == "generate" else learned))


def spec_from_json(saved: Any) -> JobSpec:
    """The spec in a spec.json. Raises UserError when it is not one."""
    try:
        if "kind" not in saved:
            raise ValueError("it names no job")
        return decode(JobSpec, saved)
    except (TypeError, ValueError, UserError) as error:
        raise UserError("The run's spec.json is damaged. Start again with the settings you want.") from error


def _check_settings(method: str, changes: dict[str, Setting]) -> None:
    if method not in ALL_METHODS:
        raise UserError(f"There is no method {method}. Choose one of: {', '.join(ALL_METHODS)}.")
    known = {each.name for each in fields(Recipe)} - set(presets.CHOSEN)
    if unknown := sorted(set(changes) - known):
        raise UserError(f"A recipe has no setting {unknown[0]} to change. Leave it out.")
    labels = {name: f"The recipe's {name}" for name in known}
    decode(Recipe, {"base": "", "method": method, **changes}, labels=labels)


def samplings_of(row: BaseRow, prompts: Sequence[str], *, renders: int, seed: int) -> tuple[Sampling, ...]:
    """The settings of `renders` pictures: the prompts in turn, each with a seed of its own, so no two are the same."""
    looks = [Sampling(prompt=prompt, guidance=row.guidance) for prompt in prompts]
    return tuple(Sampling(**{**asdict(looks[index % len(looks)]), "seed": seed + index}) for index in range(renders))


def portrait_spec(row: BaseRow, *, class_word: str, seed: int = 0) -> JobSpec:
    """The job that makes somebody's portraits: what `presets/portraits.json` names for the base's family, of which a
    method that the base does not offer is left out. The pictures have the seeds from `seed` on. Raises UserError when
    no style or no method is left.
    """
    plan = presets.portrait_plan(row)
    samplings = styled(plan.styles, plan.pictures, seed=seed)
    return JobSpec("portrait", row.name, class_word, plan.methods, plan.quality, samplings=samplings)


def styled(styles: Sequence[Style], pictures: int, *, seed: int = 0) -> tuple[Sampling, ...]:
    """`pictures` settings: the styles take turns, and every picture has a seed of its own."""
    looks = (styles[index % len(styles)] for index in range(pictures))
    return tuple(
        Sampling(look.prompt, look.negative_prompt, steps=look.steps, guidance=look.guidance, seed=seed + index)
        for index, look in enumerate(looks)
    )


def default_samplings(row: BaseRow, *, renders: int = RENDERS, seed: int = 0) -> tuple[Sampling, ...]:
    """What a comparison draws by default: plain photographic styles whose words this base knows, in turn.

    Only photographic ones, since recognisers can't judge drawings. Raises UserError when the base knows none.
    """
    known = presets.styles()
    wanted = [*(known[name] for name in COMPARED_STYLES if name in known), *known.values()]
    fitting = [style for style in wanted if style.photoreal and presets.style_problem(style, row) is None]
    looks = list({style.id: style for style in fitting}.values())[: len(COMPARED_STYLES)]
    if not looks:
        raise UserError(f"{row.title} can't express any of the photographic styles. Give prompts of your own.")
    return styled(looks, renders, seed=seed)
