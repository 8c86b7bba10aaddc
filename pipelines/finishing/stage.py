"""Finishing: refine a raw render, crop it to a size, limit its bytes and mark it; for one picture, or many of a run.

In: a picture and a `records.Finish` (steps, background, size, kB, format). Out: `Finished`: the file's bytes, and what
was done; in a run also its folder `finished/`, with pictures before and after every step.
Try it: `python -m pipelines finish render.png --size linkedin --max-kb 200 --out portrait.jpg`.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, cast

from pipelines.core import inscription
from pipelines.core.control import Control
from pipelines.core.decode import SOURCE_NAME
from pipelines.core.files import file_sha256, jsonable, read_json, require_space, timestamp, write_bytes, write_json
from pipelines.core.records import Event, Finish, PhotoSet, UserError
from pipelines.core.run import Run, load_photo_set

if TYPE_CHECKING:
    import numpy as np

    from pipelines.core.inscription import Inscription
    from pipelines.faces.face import Judge
    from pipelines.finishing.deliver import Delivered, Size
    from pipelines.finishing.refine import Baseline, Outcome, Refined, Tools

AT_MOST = 50  # pictures in one order
KB_LIMITS = (10, 10_000)
PX_LIMITS = (64, 4096)
RECORD = "finished.json"
SO_FAR = ".so_far.json"
ARCHIVE = "finished.zip"


@dataclass(frozen=True)
class Finished:
    """One finished picture."""

    refined: Refined
    delivered: Delivered
    similarity: dict[str, float | None]  # judge -> similarity of the final file, to the same reference
    size: str
    notes: tuple[str, ...] = field(default=())


def check(order: Finish | None) -> None:
    """Raises UserError for an order that can't be done. Reads no picture."""
    from pipelines.finishing import mark, refine
    from pipelines.finishing.enlarge import find_upscaler

    if order is None or not order.pictures:
        raise UserError("No picture was named to be finished. Choose at least one.")
    if len(order.pictures) > AT_MOST:
        raise UserError(f"At most {AT_MOST} pictures are finished at once. Choose fewer.")
    for picture in order.pictures:
        if not SOURCE_NAME.fullmatch(picture):
            raise UserError("A picture to finish must be a PNG of this run.")
    refine.steps_of(order.steps, background=order.background, upscaler=order.upscaler, restorer=order.restorer)
    for name in (order.upscaler, order.restorer):
        if name:
            find_upscaler(name)
    size_of(order.size)
    low, high = KB_LIMITS
    if isinstance(order.max_kb, bool) or not isinstance(order.max_kb, int | float) or not low <= order.max_kb <= high:
        raise UserError(f"The target must be {low} to {high:,} kB.")
    if order.format_name not in mark.FORMATS:
        raise UserError(f"There is no format {order.format_name}. Choose one of: {', '.join(mark.FORMATS)}.")


def size_of(name: str, *, px: int | None = None) -> Size:
    """A size by its id or the beginning of it ("linkedin"); `px` sets its longer side. Raises UserError."""
    from pipelines.finishing import deliver

    known = deliver.sizes()
    alike = [size for size in known.values() if size.id.partition("-")[0] == name]
    size = alike[0] if name not in known and len(alike) == 1 else deliver.find_size(name)
    if px is None:
        return size
    low, high = PX_LIMITS
    if not low <= px <= high:
        raise UserError(f"Give {low} to {high} pixels.")
    scale = px / (max(size.width_px, size.height_px) or px)
    wide, high_px = (round(side * scale) or px for side in (size.width_px, size.height_px))
    return replace(size, width_px=wide, height_px=high_px)


def finish(
    image: np.ndarray,
    order: Finish,
    *,
    baseline: Baseline,
    size: Size | None = None,
    tools: Tools | None = None,
    base: str = "",
    on_step: Callable[[Outcome], None] = lambda outcome: None,
) -> Finished:
    """Refine and deliver one picture, RGB uint8 (H, W, 3). `order.pictures` is not used. `base` is the name of the
    model that drew it, for the marks; of a path only the last part is written. Raises UserError.
    """
    from pipelines.finishing import deliver, refine

    size = size or size_of(order.size)
    steps = refine.steps_of(order.steps, background=order.background, upscaler=order.upscaler, restorer=order.restorer)
    refined = refine.refine(
        image, steps, baseline=baseline, size_px=max(refine.SIZE_PX, _side_px(size)), on_step=on_step,
        tools=tools or refine.Tools(),
    )  # fmt: skip
    delivered = deliver.deliver(
        refined.image, size, format_name=order.format_name, max_kb=order.max_kb, face=refined.face,
        shrink=True, base=Path(base).name,
    )  # fmt: skip
    return Finished(refined, delivered, _seen(delivered, baseline), size.id, (*refined.notes, *delivered.notes))


def _side_px(size: Size) -> int:
    """The longer side to enlarge to: less than the 1,800 px of a print, for which a 128 px render has no detail."""
    return min(1024, max(size.width_px, size.height_px))


def _seen(delivered: Delivered, baseline: Baseline) -> dict[str, float | None]:
    """Similarities, by judge, of the picture in the final file: cropped, marked and compressed."""
    import io

    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(delivered.data)) as opened:
        picture = opened.convert("RGBA")
        pixels = np.asarray(Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB"))
    return baseline.look(pixels)[0]


class ToldStep(TypedDict):
    """One step in the result for one picture; in a run with the names of its two previews."""

    step: str
    name: str
    choice: str
    state: str  # `refine.KEPT`, DROPPED or NOT_NEEDED
    sentence: str
    before: dict[str, float | None]  # similarities by judge
    after: dict[str, float | None]
    seconds: float
    before_file: NotRequired[str]
    after_file: NotRequired[str]


class Told(TypedDict):
    """The result for one picture as JSON."""

    reference: str
    reference_photos: int
    similarity: dict[str, dict[str, float | None]]  # judge -> {"raw", "refined", "delivered", "may_lose"}
    steps: list[ToldStep]
    seconds: float
    size: str
    format: str
    width_px: int
    height_px: int
    bytes: int
    quality: int | None
    marks: object
    notes: list[str]


class FinishRecord(Told):
    """finished.json of a picture of a run; file names are relative to its folder."""

    schema: int
    picture: str
    base: str
    subject: str | None
    file: str
    raw_file: str
    refined_file: str
    made: str
    order: dict[str, Any]  # a `Finish`
    flaws: dict[str, object] | None


def told(finished: Finished) -> Told:
    """The result for one picture, JSON-able."""
    refined, delivered = finished.refined, finished.delivered
    return {
        "reference": refined.reference,
        "reference_photos": refined.photos,
        "similarity": {
            judge: {
                "raw": refined.raw[judge],
                "refined": refined.similarity[judge],
                "delivered": finished.similarity[judge],
                "may_lose": refined.tolerance.get(judge),
            }
            for judge in refined.raw
        },
        "steps": [
            {
                "step": one.step.id,
                "name": one.step.name,
                "choice": one.step.choice,
                "state": one.state,
                "sentence": one.sentence,
                "before": one.before,
                "after": one.after,
                "seconds": one.seconds,
            }
            for one in refined.steps
        ],
        "seconds": refined.seconds,
        "size": finished.size,
        "format": delivered.format_name,
        "width_px": delivered.width_px,
        "height_px": delivered.height_px,
        "bytes": len(delivered.data),
        "quality": delivered.quality,
        "marks": jsonable(delivered.marks),
        "notes": list(finished.notes),
    }


# ------------------------------------------------------------------------------------------------- in a run


def baseline_of(run: Run | None, image: np.ndarray, judging: Sequence[Judge], *, number: int | None = None) -> Baseline:
    """The baseline of the run's person; without a run, or without photos in it, that of the picture itself (`number`
    and errors: see `refine.baseline_itself`).
    """
    from pipelines.finishing import refine

    photos: PhotoSet | None = load_photo_set(run) if run else None
    if photos is not None and photos.held_out:
        with contextlib.suppress(UserError):  # no judge finds a face in the photos
            return refine.baseline_of(judging, photos)
    return refine.baseline_itself(judging, image, number=number)


def finish_pictures(
    run: Run,
    order: Finish,
    *,
    control: Control | None = None,
    tools: Tools | None = None,
) -> Generator[Event, None, bool]:
    """Finish pictures of a run, one after the other, each in a folder of `finished/`; finished.zip has all of them.

    A picture that can't be finished gives a note, and the others go on; raises UserError when none can be finished. An
    order that was stopped continues where it stopped. Returns whether all are done.
    """
    from pipelines.faces.judges import resident_judges
    from pipelines.finishing import deliver, refine
    from pipelines.photos.decode import decode

    total = len(order.pictures)
    plural = f"{total} pictures" if total > 1 else "the picture"
    yield Event("phase", steps=total, text=f"Finishing {plural}")
    judging = resident_judges()
    known: Baseline | None = None
    made: list[tuple[str, Delivered]] = []
    problems: list[str] = []
    control, so_far = control or Control(), run.folder / "finished" / SO_FAR
    before = read_json(so_far) or {}
    done: dict[str, str] = before["done"] if before.get("order") == jsonable(order) else {}
    for number, picture in enumerate(order.pictures, start=1):
        if control.ended():
            return False
        try:
            path = run.folder / picture
            if not path.resolve().is_relative_to(run.folder.resolve()) or not path.is_file():
                raise UserError("A picture that was to be finished is no longer here. Choose another.")
            raw, record = file_sha256(path), record_of(run, picture)
            if record is not None and done.get(picture) == raw:
                made.append((_entry(path), _delivered(run, record)))
                yield _told_finished(run, record, number, total)
                continue
            image = decode(path)
            baseline = known or baseline_of(run, image, judging)
            known = baseline if baseline.of == refine.HELD_OUT else None  # has the embeddings of the photos
            drawn = inscription.read(path)  # a picture made elsewhere has no record
            finished = finish(image, order, baseline=baseline, tools=tools, base=drawn.base if drawn else "")
            record = _keep(run, picture, image, finished, order, drawn=drawn)
            done[picture] = raw
            write_json(so_far, {"order": order, "done": done})
            control.keep()
            made.append((_entry(path), finished.delivered))
            yield _told_finished(run, record, number, total)
        except UserError as problem:
            problems.append(str(problem))
            yield Event("note", step=number, steps=total, text=f"{path.name}: {problem}")
    if not made:
        raise UserError(" ".join(dict.fromkeys(problems)))
    deliver.batch_zip(made, run.folder / "finished" / ARCHIVE)
    so_far.unlink(missing_ok=True)
    return True


def _entry(path: Path) -> str:
    """A picture's name in finished.zip, without suffix."""
    return f"{path.parent.name}-{path.stem}"


def _delivered(run: Run, record: FinishRecord) -> Delivered:
    """A finished picture, read from its record, without its notes and marks."""
    from pipelines.finishing.deliver import Delivered

    data = (run.finished(record["picture"]) / record["file"]).read_bytes()
    return Delivered(data, record["format"], record["width_px"], record["height_px"], record["quality"])


def _told_finished(run: Run, record: FinishRecord, number: int, total: int) -> Event:
    return Event("finished", step=number, steps=total, path=str(run.finished(record["picture"])))


def _keep(
    run: Run,
    picture: str,
    raw: np.ndarray,
    finished: Finished,
    order: Finish,
    *,
    drawn: Inscription | None,
) -> FinishRecord:
    """Write all files of one finished picture, its record last: if there is a record, all files are complete. Returns
    the record.
    """
    from pipelines.finishing import refine

    folder = run.finished(picture)
    shutil.rmtree(folder, ignore_errors=True)
    require_space(run.folder, 5_000_000, purpose="The finished picture")
    file = f"portrait{finished.delivered.suffix}"
    write_bytes(folder / file, finished.delivered.data)
    side_px = max(finished.refined.image.shape[:2])

    def preview(name: str, image: np.ndarray) -> str:
        """Write a preview; all have one size, so that the page can show one over the other."""
        _write_jpeg(folder / f"preview_{name}.jpg", refine.fitted(image, side_px))
        return f"preview_{name}.jpg"

    result = told(finished)
    before = preview("0-raw", raw)
    for number, (one, said) in enumerate(zip(finished.refined.steps, result["steps"], strict=True), start=1):
        if one.pictures is None:
            continue
        said["before_file"], said["after_file"] = before, preview(f"{number}-{one.step.id}", one.pictures[1])
        if one.state == refine.KEPT:
            before = said["after_file"]
    record: FinishRecord = {
        **result, "schema": 1, "picture": picture, "base": drawn.base if drawn else "",
        "subject": drawn.subject if drawn else None, "file": file,
        "raw_file": "preview_0-raw.jpg", "refined_file": preview("9-refined", finished.refined.image),
        "made": timestamp(), "order": jsonable(order), "flaws": _flaws(finished.refined.image, folder),
    }  # fmt: skip
    write_json(folder / RECORD, record)
    return record


def _flaws(image: np.ndarray, folder: Path) -> dict[str, object] | None:
    """The embedded critic's flaws of a picture, with a map written to `folder`; None if its weights are missing."""
    from pipelines.finishing import enlarge

    try:
        found = enlarge.flaw_map(image)
    except UserError:
        return None
    _write_jpeg(folder / "preview_flaws.jpg", enlarge.overlay(image, found))
    return {"file": "preview_flaws.jpg", "score": round(found.score, 3)}


def _write_jpeg(path: Path, image: np.ndarray) -> None:
    import io

    from PIL import Image

    packed = io.BytesIO()
    Image.fromarray(image).save(packed, format="JPEG", quality=88)
    write_bytes(path, packed.getvalue())


def record_of(run: Run, picture: str) -> FinishRecord | None:
    """The record of one finished picture; None if it is not finished, or its record is damaged."""
    with contextlib.suppress(UserError):
        saved = read_json(run.finished(picture) / RECORD)
        if isinstance(saved, dict) and saved.get("picture") == picture:
            return cast(FinishRecord, saved)
    return None


def records(run: Run) -> list[FinishRecord]:
    """The records that `finish_pictures` wrote, the newest first. A damaged record is left out."""
    found = []
    for file in (run.folder / "finished").glob(f"*/{RECORD}"):
        with contextlib.suppress(UserError):
            saved = read_json(file)
            if isinstance(saved, dict) and isinstance(saved.get("picture"), str):
                found.append((file.stat().st_mtime_ns, cast(FinishRecord, saved)))
    return [saved for _, saved in sorted(found, key=lambda each: -each[0])]
