"""What the Generate tab's buttons do.

Every picture carries buttons: like it, use its settings, vary it, compare it. A page names a picture by an id that the
server looks up among this run's own; a forged one gets a sentence.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines.bases.registry import BaseRow
from pipelines.core import presets
from pipelines.core.records import Sampling, UserError
from ui.generate import html as generate_html
from ui.generate import imports
from ui.generate.compare import pair_with, source_of
from ui.generate.completion import completed
from ui.generate.layout import BEST_KEPT, BEST_NUMBER, LEAST_CHANGE, MAX_KEPT, MAX_VARIATIONS, GenerateTab
from ui.generate.styles import OWN, style_of
from ui.generate.values import (
    MAX_SEED,
    NEW_SEEDS,
    PROMPT_LIMIT,
    chosen_columns,
    decimal,
    first_seed,
    samplings,
    swept,
    whole,
)
from ui.page.errors import told
from ui.page.html import script
from ui.page.refresh import Refresh, Updates
from ui.run import pictures
from ui.run.services import Services
from ui.run.start import start_generation
from ui.run.view import View

PORTRAIT = script("generate/portrait.js")


def wire(tab: GenerateTab, services: Services, page: Refresh) -> list[Any]:
    """Connects the tab's handlers, which check every value; returns the events that put a job in the line."""
    dials: dict[str, Any] = {
        "prompt": tab.prompt, "negative_prompt": tab.negative, "number": tab.number, "seed": tab.seed,
        "steps": tab.steps, "guidance": tab.guidance, "scheduler": tab.scheduler, "width": tab.width,
        "height": tab.height, "strength": tab.strength,
    }  # fmt: skip
    act, capability = Actions(tab, services), page.capability
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    dialled: dict[str, Any] = {"inputs_kwargs": dials, "trigger_mode": "once", **quiet}
    drawn = [tab.seed, tab.number, tab.keep]
    used = [*tab.used, tab.compare_box, tab.vary_method, tab.vary_change]
    drawn_with = [capability, tab.columns, tab.keep_seed]
    swept_with = [capability, tab.sweep_method, tab.sweep_steps, tab.sweep_guidance, tab.keep_seed]
    varied_with = [capability, tab.vary_method, tab.vary_change, tab.vary_number, tab.vary_prompt, tab.keep_seed]
    started = [
        gr.on([tab.start.click, tab.prompt.submit], told(act.start), drawn_with, drawn, js=PORTRAIT, **dialled),
        tab.best.click(told(act.best), drawn_with, drawn, **dialled),
        tab.sweep.click(told(act.sweep), swept_with, drawn, **dialled),
        tab.vary.click(told(act.vary), varied_with, drawn, **dialled),
    ]
    ranking: dict[str, Any] = {**quiet, "trigger_mode": "always_last"}
    again = [*used, tab.columns, tab.sweep_steps, tab.sweep_guidance]
    followed = [
        *started,
        tab.vary_close.click(told(act.unpick), [capability], queue=False, **quiet),
        tab.stop.click(told(act.stop), [capability], queue=False, **quiet),
        gr.on(
            [tab.grid.click, tab.ranked.click], told(act.press), [capability], used, trigger_mode="multiple", **quiet
        ),
        tab.history.click(told(act.again), [capability], again, **quiet),
        # `input`, not `release`: the arrow keys and the number box count too
        tab.keep.input(told(act.keep_best), [capability, tab.keep], **ranking),
        tab.only.input(told(act.filter), [capability, tab.only], **ranking),
    ]  # fmt: skip
    for event in followed:
        page.after(event, "generate")
    gr.on([tab.left.input, tab.right.input], told(act.over), [capability, tab.left, tab.right], tab.compared, **quiet)
    filled = [tab.style, tab.prompt, tab.negative, tab.steps, tab.guidance, tab.unknown, tab.chips]
    tab.style.click(told(act.pick), [capability], filled, trigger_mode="always_last", **quiet)
    tab.chips.click(told(act.add), [capability, tab.prompt], [tab.style, tab.prompt, tab.unknown, tab.chips], **quiet)
    tab.prompt.input(
        told(act.check), [capability, tab.prompt], [tab.style, tab.unknown, tab.chips], queue=False,
        trigger_mode="always_last", **quiet,
    )  # fmt: skip
    tab.dice.click(lambda: secrets.randbelow(NEW_SEEDS), None, tab.seed, queue=False, **quiet)
    imports.wire(tab.imports, tab.columns, services, page)
    tab.reuse.upload(told(act.reuse), [capability, tab.reuse], list(tab.used), **quiet)
    return started


class Actions:
    """What the tab's controls do. Every argument comes from a browser; `UserError` is told to the person."""

    def __init__(self, tab: GenerateTab, services: Services) -> None:
        self.tab, self.services = tab, services

    # -- drawing

    def start(self, kept: object, columns: object, keep_seed: object, **dials: Any) -> Updates:
        view = self._ready(kept)
        dials["seed"] = first_seed(keep_seed, dials["seed"])
        return self._draw(kept, view, chosen_columns(view, columns), samplings(view.row, **dials))

    def best(self, kept: object, columns: object, keep_seed: object, **dials: Any) -> Updates:
        """Many pictures, of which the most alike are kept."""
        view = self._ready(kept)
        chosen = tuple(column for column in chosen_columns(view, columns) if column != "none")
        if not chosen:
            raise UserError("The untrained base draws nobody in particular. Choose at least one trained method.")
        dials |= {"number": BEST_NUMBER, "seed": first_seed(keep_seed, dials["seed"])}
        plan = samplings(view.row, **dials)
        self.services.sessions.choose(self.services.sessions.need(kept), keep=BEST_KEPT)
        return {**self._draw(kept, view, chosen, plan), self.tab.number: BEST_NUMBER, self.tab.keep: BEST_KEPT}

    def sweep(
        self, kept: object, method: object, many_steps: object, many_guidances: object, keep_seed: object, **dials: Any
    ) -> Updates:
        """One prompt and seed at several steps and guidances."""
        view = self._ready(kept)
        (column,) = chosen_columns(view, [method])
        dials |= {"number": 1, "seed": first_seed(keep_seed, dials["seed"])}
        (one,) = samplings(view.row, **dials)
        return self._draw(kept, view, (column,), swept(one, steps=many_steps, guidance=many_guidances))

    def vary(
        self,
        kept: object,
        method: object,
        change: object,
        many: object,
        with_prompt: object,
        keep_seed: object,
        **dials: Any,
    ) -> Updates:
        """Pictures that start from the picked one instead of from noise alone."""
        view = self._ready(kept)
        picked = view.picked
        if picked is None or picked.sampling is None:
            raise UserError("No picture is picked. Press the button for variations below one.")
        (column,) = chosen_columns(view, [method])
        count = whole("Variations", many, 1, MAX_VARIATIONS)
        changed = decimal("How much may change", change, LEAST_CHANGE, 1.0)
        first = whole("Seed", first_seed(keep_seed, dials["seed"]), 0, MAX_SEED)
        like = picked.sampling
        if with_prompt is True:
            (asked,) = samplings(view.row, **(dials | {"number": 1}))
            like = replace(like, prompt=asked.prompt, negative_prompt=asked.negative_prompt)
        plan = tuple(
            replace(like, source=picked.path, change=changed, seed=(first + i) % (MAX_SEED + 1)) for i in range(count)
        )
        return self._draw(kept, view, (column,), plan)

    def _ready(self, kept: object) -> View:
        self.services.sessions.need(kept)
        view = self.services.view(kept)
        if view.drawing.busy:
            raise UserError("Pictures are being drawn already. Wait until they are there, or press Stop first.")
        if view.generate_blocked:
            raise UserError(view.generate_blocked)
        return view

    def _draw(self, kept: object, view: View, columns: Sequence[str], plan: tuple[Sampling, ...]) -> Updates:
        session = self.services.sessions.need(kept)
        start_generation(self.services, session, columns=tuple(columns), samplings=plan)
        self.services.sessions.choose(session, shown=None)
        return {self.tab.seed: plan[0].seed}

    def stop(self, kept: object) -> None:
        self.services.stop(self.services.sessions.need(kept).run.drawing)

    # -- pictures

    def press(self, kept: object, event: gr.EventData) -> Updates:
        """A button below a picture."""
        session = self.services.sessions.need(kept)
        sent = getattr(event, "_data", None)
        pressed = sent if isinstance(sent, dict) else {}
        view = self.services.view(kept)
        shot = pictures.find(view.pictures, pressed.get("picture"))
        action = pressed.get("action")
        if action in ("like", "unlike"):
            self.services.like(session.run, shot, action == "like")
            return {}
        if action == "vary":
            self.services.sessions.choose(session, picked=shot.id)
            varied = shot.method if shot.method in view.columns else view.columns[-1]
            return {self.tab.vary_method: varied}
        if action == "finish":
            self.services.sessions.choose(session, finishing=shot.id)
            return {}
        if action == "use" and shot.sampling is not None:
            return self._use(kept, view, shot.sampling)
        if action == "compare":
            pair = pair_with(view, shot)
            if pair is None:
                raise UserError(
                    "Nothing else was drawn with this seed and these settings. Draw it with another method as well, "
                    "then compare."
                )
            return {**self.tab.compare(view, pair), self.tab.compare_box: gr.update(open=True, visible=True)}
        raise UserError("That button does nothing here. Reload the page and try again.")

    def _use(self, kept: object, view: View, sampling: Sampling, *, number: int = 1) -> Updates:
        """The dials of a picture; of a variation also the picture it came from."""
        updates = self.tab.use(view.row, sampling, number=number)
        source = source_of(view, sampling)
        if source is None:
            return updates
        self.services.sessions.choose(self.services.sessions.need(kept), picked=source.id)
        return {**updates, self.tab.vary_change: sampling.change}

    def unpick(self, kept: object) -> None:
        self.services.sessions.choose(self.services.sessions.need(kept), picked="")

    def over(self, kept: object, left: object, right: object) -> str:
        view = self.services.view(kept)
        return generate_html.before_after(pictures.find(view.pictures, left), pictures.find(view.pictures, right))

    def keep_best(self, kept: object, keep: object) -> None:
        session = self.services.sessions.need(kept)
        wanted = int(keep) if isinstance(keep, int | float) and 0 <= keep <= MAX_KEPT else 0
        self.services.sessions.choose(session, keep=wanted)

    def filter(self, kept: object, only: object) -> None:
        self.services.sessions.choose(self.services.sessions.need(kept), only_favourites=only is True)

    def again(self, kept: object, event: gr.EventData) -> Updates:
        """An earlier job: its pictures, and the dials as they were."""
        session = self.services.sessions.need(kept)
        sent = getattr(event, "_data", None)
        wanted = sent.get("job") if isinstance(sent, dict) else None
        view = self.services.view(kept)
        job = next((each for each in view.history if type(wanted) is int and each.number == wanted), None)
        if job is None:
            raise UserError("These pictures are no longer here. Reload the page and try again.")
        self.services.sessions.choose(session, shown=job.number)
        if not job.samplings:
            return {}
        seeds = {sampling.seed for sampling in job.samplings}
        filled = self._use(kept, view, job.samplings[0], number=len(seeds))
        columns = [method for method in job.methods if method in view.columns]
        pairs = [(each.steps, each.guidance) for each in job.samplings]
        if len(set(pairs)) > 1:
            for box, values in zip((self.tab.sweep_steps, self.tab.sweep_guidance), zip(*pairs)):
                filled[box] = ", ".join(f"{value:g}" for value in sorted(set(values)))
        return {**filled, self.tab.columns: gr.update(value=columns)}

    # -- words

    def pick(self, kept: object, event: gr.EventData) -> Updates:
        """A card of a style."""
        sent = getattr(event, "_data", None)
        wanted = sent.get("style") if isinstance(sent, dict) else None
        row = self.services.view(kept).row
        style = presets.styles().get(wanted) if isinstance(wanted, str) else None
        if style is None or presets.style_problem(style, row) is not None:
            return {self.tab.style: gr.update(selected=OWN)}
        return {self.tab.style: gr.update(selected=style.id), **self.tab.fill(row, style)}

    def add(self, kept: object, prompt: object, event: gr.EventData) -> Updates:
        """A suggestion, put where it belongs."""
        sent = getattr(event, "_data", None)
        phrase = sent.get("phrase") if isinstance(sent, dict) else None
        row = self.services.view(kept).row
        text = completed(str(prompt or ""), phrase[:PROMPT_LIMIT]) if isinstance(phrase, str) else str(prompt or "")
        return {self.tab.prompt: text, **self._said(row, text)}

    def check(self, kept: object, prompt: object) -> Updates:
        return self._said(self.services.view(kept).row, str(prompt or ""))

    def _said(self, row: BaseRow, prompt: str) -> Updates:
        return {self.tab.style: gr.update(selected=style_of(row, prompt)), **self.tab.helped(row, prompt)}

    def reuse(self, kept: object, file: str | None) -> Updates:
        """The settings inside a picture that was made here, or by somebody else with this app."""
        from pipelines.generation.generator import read_settings

        found = read_settings(Path(file)) if file else None
        if found is None:
            raise UserError("That picture carries no settings of ours. Choose a PNG that this app made.")
        return self.tab.use(self.services.view(kept).row, found)
