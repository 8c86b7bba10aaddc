"""Draw: the same prompts and seeds with every column of a run, written to `renders/<column>`.

In: a run, columns ("none" is the untrained base), samplings and a loaded base. Out: events, and a `Render` per picture
in the order of columns and samplings. Pictures that exist are not drawn again; those that the image filter refuses are
noted in refused.jsonl.
Try it: `list(draw(run, ["none"], [Sampling("man")], family, class_word="man", control=Control()))`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.core import inscription
from pipelines.core.control import SAVE_EVERY_S, Control
from pipelines.core.files import append_line, file_sha256, read_lines, repair_lines, sha, write_file
from pipelines.core.inscription import Inscription
from pipelines.core.records import (
    ALL_METHODS,
    UNTRAINED,
    Event,
    Render,
    Sampling,
    UserError,
    is_instant,
    sampling_fields,
)
from pipelines.core.run import Run, columns_of, imported_columns
from pipelines.training.teach import subject_of

if TYPE_CHECKING:
    from pipelines.bases.family import Family
    from pipelines.bases.registry import BaseRow

SMALL_BASE_BATCH, LARGE_BASE_BATCH = 8, 4
REFUSED = "The image filter took this picture for sexual content, so it was not saved. Try another prompt or seed."


def render_name(sampling: Sampling) -> str:
    """The file name of a picture: its seed, and a hash of everything else that determines it."""
    return f"seed{sampling.seed}-{sha(sampling_fields(sampling))[:10]}.png"


def draw(
    run: Run,
    columns: Sequence[str],
    samplings: Sequence[Sampling],
    family: Family,
    *,
    class_word: str,
    control: Control,
) -> Generator[Event, None, list[Render]]:
    """Draw the missing pictures. One that the image filter refuses is not among the renders: see `refusals`.

    Pictures of an earlier training or another base are first moved to `earlier/`. Raises Stopped (only between two
    pictures), and UserError for a sampling out of range or a subject that is missing or damaged.
    """
    from pipelines.generation.generator import Generator as Drawing
    from pipelines.generation.generator import save_render
    from pipelines.methods.textual_inversion import TOKEN

    control.check()
    row = family.row
    for unknown in dict.fromkeys(word for each in samplings for word in row.unknown_words(each.prompt)):
        yield Event("note", text=f"{row.name} does not know: {unknown}")
    subjects = {column: subject_of(run, column) for column in columns if column != UNTRAINED}
    phrases = [class_word if (subject := subjects.get(column)) is None else subject.phrase for column in columns]
    # learned words are one token each, as the class word is, and the base's own tokenizer does not know them
    phrases = [re.sub(rf"{TOKEN}\S*", class_word, phrase) for phrase in phrases]
    asked = [each.prompt.replace("{subject}", phrase) for each in samplings for phrase in phrases]
    for unread in dict.fromkeys(family.text.unread(prompt) for prompt in asked):
        if unread:
            yield Event("unread", text=unread)
    set_aside_old_renders(run, row)
    repair_lines(_refusals_file(run))
    refused = set(refusals(run, row))
    drawing = Drawing(row, family=family)
    renders: list[Render] = []
    total = len(columns) * len(samplings)
    yield Event("phase", steps=total, text=f"Drawing {total} pictures")

    def drawn(render: Render) -> Event:
        renders.append(render)
        return Event(
            "render", render.method, len(renders), total, seconds=control.clock.seconds, path=render.path,
            data=render.sampling,
        )  # fmt: skip

    for column in columns:
        subject = subjects.get(column)
        subject_id = subject.id if subject else None
        paths = {each: run.renders(column) / render_name(each) for each in samplings}
        wanted = [each for each in samplings if (column, each) not in refused]
        missing = [each for each in wanted if not _is_drawn(run, each, paths[each])]
        render = partial(
            drawing.render,
            subject_folder=run.method(column) if subject else None,
            class_word=class_word,
            sources=run.folder,
            stop=control.ended,
            batch=SMALL_BASE_BATCH if row.is_small else LARGE_BASE_BATCH,
        )
        alone = int(is_instant(column))  # the first picture comes by itself: somebody waits for it
        for sampling, image in chain(render(missing[:alone]), render(missing[alone:])):
            control.keep()
            if image is None:
                refused.add((column, sampling))
                _note_refused(run, row, column, sampling, subject_id)
                continue
            source = file_sha256(run.folder / sampling.source) if sampling.source else None
            facts = Inscription(sampling, row.name, subject_id, source)
            yield drawn(save_render(image, facts, paths[sampling], method=column))
            control.clock.save(every_s=SAVE_EVERY_S)
        control.check()
        for sampling in samplings:
            if (column, sampling) in refused:
                yield Event("refused", column, len(renders), total, text=REFUSED, data=sampling)
            elif sampling not in missing:
                yield drawn(Render(str(paths[sampling]), column, subject_id, sampling))
    place = {sampling: index for index, sampling in enumerate(samplings)}
    return sorted(renders, key=lambda each: (list(columns).index(each.method), place[each.sampling]))


def brought(run: Run, images: Mapping[str, Sequence[str]]) -> tuple[list[Render], list[str]]:
    """Copy pictures made elsewhere, {column: files}, into the run, so that its report has them; also returns problems.

    A damaged file is replaced by a black picture, which has no face.
    """
    import numpy as np
    from PIL import Image

    from pipelines.photos.decode import decode

    renders: list[Render] = []
    problems: list[str] = []
    for name, files in images.items():
        folder = run.renders(name)
        folder.mkdir(parents=True, exist_ok=True)
        for index, file in enumerate(files):
            path = folder / f"{index:03d}.png"
            if not path.is_file():
                try:
                    picture = decode(Path(file))
                except UserError as problem:
                    problems.append(f"{name}: {problem}")
                    picture = np.zeros((64, 64, 3), np.uint8)
                given = Image.fromarray(picture)
                write_file(path, lambda partial, given=given: given.save(partial, format="PNG"))  # type: ignore[misc]
            renders.append(Render(str(path), name, None, Sampling("", seed=index)))
    return renders, problems


def renders_of(run: Run) -> list[Render]:
    """Every picture of the run, oldest first within its column, without those in `earlier/`."""
    return [
        Render(str(path), column, saved.subject, saved.sampling)
        for column in columns_of(run)
        for path in run.pictures(column)
        if (saved := inscription.read(path, whole=True)) is not None
    ]


def set_aside_old_renders(run: Run, row: BaseRow) -> None:
    """Move pictures of an earlier training or another base to `earlier/`: kept, but not mixed with the new ones."""
    for column in columns_of(run):
        subject = subject_of(run, column) if column != "none" else None
        if column != "none" and subject is None:
            continue
        for path in run.pictures(column):
            saved = inscription.read(path, whole=True)
            if saved is None or (saved.base, saved.subject) != (row.name, subject.id if subject else None):
                earlier = path.parent / "earlier"
                earlier.mkdir(exist_ok=True)
                os.replace(path, earlier / f"{(saved and saved.subject) or 'untrained'}-{path.name}")


def refusals(run: Run, row: BaseRow) -> list[tuple[str, Sampling]]:
    """Pictures (column, sampling) that the image filter refused, drawn with the present training and base."""
    cards = {name: subject_of(run, name) for name in (*ALL_METHODS, *imported_columns(run))}
    subjects = {name: card.id if card else None for name, card in cards.items()} | {"none": None}
    found: dict[tuple[str, Sampling], None] = {}
    for line in read_lines(_refusals_file(run)):
        with contextlib.suppress(KeyError, TypeError):
            column, subject = line["column"], line["subject"]
            if line["base"] == row.name and subjects.get(column, "") == subject:
                found[column, Sampling(**line["sampling"])] = None
    return list(found)


def _refusals_file(run: Run) -> Path:
    return run.folder / "refused.jsonl"


def _note_refused(run: Run, row: BaseRow, column: str, sampling: Sampling, subject: str | None) -> None:
    """Note a refused picture, so that a job that continues does not draw it again."""
    line = {"column": column, "base": row.name, "subject": subject, "sampling": sampling_fields(sampling)}
    append_line(_refusals_file(run), line)


def _is_drawn(run: Run, sampling: Sampling, path: Path) -> bool:
    """True when the picture exists and, for a variation, its source was not drawn again since."""
    saved = inscription.read(path, whole=True)
    if saved is None or sampling.source is None:
        return saved is not None
    source = run.folder / sampling.source
    return not source.is_file() or saved.source_sha256 == file_sha256(source)
