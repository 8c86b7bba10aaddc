"""Delivery: a finished portrait as a file of a given size, format and number of bytes, with all marks.

In: an image, a `Size` (a file in presets/sizes; a new file is a new menu entry), a format, a limit in kB. Out: the
bytes of a file that fits all of them, and sentences about what was done; several files as a ZIP with a contact sheet.
Try it: `deliver(image, sizes()["linkedin-400"], format_name="JPEG", max_kb=60, face=face)`.

The position of the crop depends on the face. Nothing is stretched: if the crop would reach outside the picture, it
moves or shrinks, or (`outside: "extend"`) the backdrop is continued, blurred, at the sides, and above if the head does
not touch the edge; never below, where a body would have to be invented. A kB is 1,000 bytes, so a limit also holds for
sites that count 1,024.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.core import presets
from pipelines.core.files import write_bytes
from pipelines.core.records import UserError
from pipelines.finishing import mark, watermark
from pipelines.finishing.mark import Marks

if TYPE_CHECKING:
    from pipelines.faces.face import Face

SIZES = presets.PRESETS / "sizes"
SIDE_LIMIT_PX = 8000
LOWEST_QUALITY = {"JPEG": 40, "WEBP": 40, "AVIF": 35}  # below it skin shows blocks or is blurred
HIGHEST_QUALITY = {"JPEG": 95, "WEBP": 95, "AVIF": 90}
SMALLEST_SHARE = 0.25  # the smallest allowed share of the sides, with `shrink`
# Height of a head, crown to chin, in distances between the pupils (232 / 64 mm). In a turned face that distance looks
# smaller, so it is also estimated from the detector's box, 2.4 distances high (dlib, median of 22 portraits); the
# larger of both is used.
HEAD_PER_EYES = 3.6
HEAD_PER_BOX = 1.25
BACKDROP_SPREAD = 40.0  # largest difference of colours along one edge of a backdrop, in grey levels
SMOOTH_ENLARGEMENT = 1.5  # a larger enlargement is visible on a screen or in print


@dataclass(frozen=True)
class Size:
    """The size that a picture is cropped and scaled to. 0 x 0: not changed."""

    id: str
    name: str
    width_px: int
    height_px: int
    dpi: int = 0  # 0: for screens
    head_share: float | None = None  # head (crown to chin) / picture height; None: the largest possible crop
    eye_line: float = 0.42  # distance of the eyes from the upper edge / picture height
    circle: bool = False  # transparent outside a circle
    outside: str = "fit"  # if the crop exceeds the picture: "fit" moves or shrinks it, "extend" adds backdrop
    note: str = ""


@dataclass(frozen=True)
class Delivered:
    """A finished file."""

    data: bytes
    format_name: str
    width_px: int
    height_px: int
    quality: int | None  # None: a lossless format
    notes: tuple[str, ...] = ()
    marks: Marks | None = None  # None: delivered without marks

    @property
    def kb(self) -> float:
        return len(self.data) / 1000

    @property
    def suffix(self) -> str:
        return mark.FORMATS[self.format_name][0]


def sizes(folder: Path = SIZES) -> dict[str, Size]:
    """All sizes by id, in the order of their files' names. Raises UserError that names a wrong file."""
    found: dict[str, Size] = {}
    for file in sorted(folder.glob("*.json")):
        size = presets.load(Size, file)
        if problem := _size_problem(size):
            raise UserError(f"The size {file.name} {problem}. Correct or remove it.")
        if size.id in found:
            raise UserError(f"Two size files have the id {size.id}. Rename one of them.")
        found[size.id] = size
    return found


def find_size(name: str) -> Size:
    """A size by its id. Raises UserError that lists the ids."""
    known = sizes()
    if name not in known:
        raise UserError(f"There is no size {name[:60]}. Choose one of: {', '.join(known)}.")
    return known[name]


def _size_problem(size: Size) -> str | None:
    sides = (size.width_px, size.height_px)
    if sides != (0, 0) and not all(16 <= side <= SIDE_LIMIT_PX for side in sides):
        return f"must be 16 to {SIDE_LIMIT_PX} pixels wide and high, or 0 x 0"
    if not 0 <= size.dpi <= 2400:
        return "must have 0 to 2400 dpi"
    if size.head_share is not None and not 0.05 <= size.head_share <= 0.95:
        return "must give the head 0.05 to 0.95 of the height"
    if not 0.05 <= size.eye_line <= 0.95:
        return "must have its eye line between 0.05 and 0.95"
    if size.outside not in ("fit", "extend"):
        return 'must say "fit" or "extend" for outside'
    if size.circle and size.width_px != size.height_px:
        return "is round, so it must be as wide as it is high"
    return None


# ------------------------------------------------------------------------------------------------- cropping


def crop(image: np.ndarray, size: Size, *, face: Face | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Crop and scale `image`, uint8 (H, W, 3), to this size: (height, width, 3), with 4 channels for a circle. Also
    returns sentences about it. Without `face` the crop is in the middle, a little above the centre.
    """
    from PIL import Image

    notes: list[str] = []
    if (size.width_px, size.height_px) == (0, 0):
        return np.ascontiguousarray(image), ()
    left, top, width, height = _window(image.shape, size, face)
    wanted = height
    if size.outside == "extend":
        image, moved, words = _extended(image, (left, top, width, height), above=_clear_above(image, face))
        left, top = left + moved[0], top + moved[1]
        notes += words
    left, top, width, height = _inside(image.shape, left, top, width, height)
    if face is not None and height < 0.93 * wanted:
        notes.append("The picture ends close to the head, so the head fills more of this size than usual.")
    picture = Image.fromarray(np.ascontiguousarray(image))
    # `box` need not be whole pixels, so that both directions are scaled by exactly the same factor.
    scaled = picture.resize(
        (size.width_px, size.height_px), Image.Resampling.LANCZOS, box=(left, top, left + width, top + height)
    )
    factor = size.height_px / height
    if factor > SMOOTH_ENLARGEMENT:
        notes.append(f"Enlarged {factor:.1f} times: the picture has fewer pixels than this size, so it looks soft.")
    out = np.array(scaled)
    return (_round(out) if size.circle else out), tuple(notes)


def _window(shape: tuple[int, ...], size: Size, face: Face | None) -> tuple[float, float, float, float]:
    """(left, top, width, height) of the crop in pixels of the picture; it may reach outside."""
    rows, columns = shape[:2]
    aspect = size.width_px / size.height_px
    largest = min(float(rows), columns / aspect)  # height of the largest part with this aspect
    if face is None:
        height = largest
        return (columns - height * aspect) / 2, 0.4 * (rows - height), height * aspect, height
    x, y = (float(value) for value in face.eyes.mean(0))
    height = largest
    if size.head_share is not None:
        head = max(HEAD_PER_EYES * face.eye_distance_px, HEAD_PER_BOX * face.height_px)
        height = head / size.head_share
    return x - height * aspect / 2, y - size.eye_line * height, height * aspect, height


def _inside(
    shape: tuple[int, ...], left: float, top: float, width: float, height: float
) -> tuple[float, float, float, float]:
    """The same crop, shrunk around its middle and moved until it is inside the picture."""
    rows, columns = shape[:2]
    scale = min(1.0, rows / height, columns / width)
    left, top = left + width * (1 - scale) / 2, top + height * (1 - scale) / 2
    width, height = width * scale, height * scale
    return min(max(left, 0.0), columns - width), min(max(top, 0.0), rows - height), width, height


def _clear_above(image: np.ndarray, face: Face | None) -> bool:
    """Whether the picture's upper edge shows only backdrop above this face."""
    if face is None:
        return False
    head = HEAD_PER_EYES * face.eye_distance_px
    x = float(face.eyes[:, 0].mean())
    first, last = int(max(0, x - 0.6 * head)), int(min(image.shape[1], x + 0.6 * head))
    edge = image[: max(2, image.shape[0] // 64), first:last].astype(np.float32).mean(0)
    return len(edge) > 0 and float(np.abs(edge - np.median(edge, axis=0)).max(-1).max()) < BACKDROP_SPREAD


def _extended(
    image: np.ndarray, window: tuple[float, float, float, float], *, above: bool
) -> tuple[np.ndarray, tuple[int, int], tuple[str, ...]]:
    """`image` (H, W, 3) with its backdrop continued at the sides (with `above` also there) as far as the window
    reaches; the shift (x, y) of its corner; and sentences about it.
    """
    import cv2

    rows, columns = image.shape[:2]
    left, top, width, height = window
    if not above and height > rows:  # then use the whole height, and the width that belongs to it
        left, width, height = left + width * (1 - rows / height) / 2, width * rows / height, float(rows)
    top = min(top, rows - height)  # never below the picture: then the window moves up
    over = (-left, left + width - columns, -top if above else 0.0)
    at_left, at_right, at_top = (max(0, int(np.ceil(value - 1e-6))) for value in over)
    if not (at_left or at_right or at_top):
        return image, (0, 0), ()
    wide = cv2.copyMakeBorder(image, at_top, 0, at_left, at_right, cv2.BORDER_REPLICATE)
    # Repeated edge pixels would be visible as stripes, so they are blurred, more with the distance from the picture.
    near = max(1.5, 0.01 * rows)
    soft, softer = (cv2.GaussianBlur(wide, (0, 0), sigma) for sigma in (near, 6 * near))
    down, across = np.ogrid[: wide.shape[0], : wide.shape[1]]
    away = np.maximum(np.maximum(at_left - across, across - (at_left + columns - 1)), at_top - down)
    away = np.clip(away, 0, None).astype(np.float32)[:, :, None] / near
    first, second = np.clip(away / 2, 0, 1), np.clip((away - 2) / 12, 0, 1)
    mixed = wide * (1 - first) + (soft * (1 - second) + softer * second) * first
    out = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    out[at_top:, at_left : at_left + columns] = image
    where = " and ".join(name for name, amount in (("at the sides", at_left + at_right), ("above", at_top)) if amount)
    return out, (at_left, at_top), (f"The picture is too narrow for this size: its backdrop was continued {where}.",)


def _round(image: np.ndarray) -> np.ndarray:
    """(n, n, 4): transparent outside the circle, with a smooth edge; the transparent pixels have no picture content."""
    side = image.shape[0]
    at = np.arange(side) + 0.5 - side / 2
    alpha = np.clip(side / 2 - np.hypot(at[:, None], at[None]) + 0.5, 0, 1)
    out = np.dstack([image, np.rint(alpha * 255).astype(np.uint8)])
    out[out[:, :, 3] == 0, :3] = 255
    return out


# ------------------------------------------------------------------------------------------------- files


def deliver(
    image: np.ndarray,
    size: Size,
    *,
    format_name: str = "JPEG",
    max_kb: float | None = None,
    face: Face | None = None,
    quality: int | None = None,
    shrink: bool = False,
    base: str = "",
    marked: bool = True,
) -> Delivered:
    """`image`, uint8 (H, W, 3) in sRGB, as a file of this size with all three marks, or (`marked` false) without
    watermark and content credentials.

    With `max_kb`, the best quality is searched whose file, marks included, is not larger; it is at most `quality`, if
    given. `shrink` allows fewer pixels when even the lowest acceptable quality is too large. Raises UserError when no
    file fits.
    """
    _check_wishes(size, format_name, max_kb, quality)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError("an image is uint8, (H, W, 3)")
    at_most = None if max_kb is None else int(max_kb * 1000)
    share = 1.0
    while True:
        wanted = _smaller(size, image.shape, share)
        pixels, notes = crop(image, wanted, face=face)
        if marked:
            pixels = mark.with_watermark(pixels)
        made = _fitting(pixels, format_name, at_most, quality, dpi=size.dpi, base=base, marked=marked)
        if made is not None:
            break
        smaller = share * 0.85
        if not shrink or smaller < SMALLEST_SHARE or min(pixels.shape[:2]) * 0.85 < 16:
            raise UserError(_too_large(format_name, max_kb, share < 1.0 or not shrink))
        share = smaller
    if share < 1.0:
        said = f"{pixels.shape[1]} x {pixels.shape[0]} pixels: more would not have fitted into {max_kb:g} kB."
        notes = (*notes, said)
    if made.marks is not None:
        notes = (*notes, *made.marks.left_out)
        if made.marks.watermark and not _still_reads(made.data):
            made = replace(made, marks=replace(made.marks, watermark=False))
            notes = (*notes, "At this quality the watermark can't be read any more; the other marks are in the file.")
    return replace(made, notes=notes)


def _check_wishes(size: Size, format_name: str, max_kb: float | None, quality: int | None) -> None:
    if problem := _size_problem(size):
        raise UserError(f"The size {size.name} {problem}.")
    if format_name not in mark.FORMATS:
        raise UserError(f"There is no format {str(format_name)[:20]}. Choose one of: {', '.join(mark.FORMATS)}.")
    if size.circle and format_name == "JPEG":
        raise UserError("A round picture needs transparent corners, which JPEG lacks. Choose PNG, WebP or AVIF.")
    if max_kb is not None and not 1 <= max_kb <= 100_000:  # also refuses NaN
        raise UserError("The target is 1 to 100,000 kB. Choose another, or none.")
    if quality is not None and not 1 <= quality <= 100:
        raise UserError("Quality is 1 to 100. Choose another, or none.")


def _smaller(size: Size, shape: tuple[int, ...], share: float) -> Size:
    if share == 1.0:
        return size
    if (size.width_px, size.height_px) == (0, 0):  # the whole picture: a size of its own shape
        rows, columns = shape[:2]
        return replace(
            size, width_px=max(16, round(columns * share)), height_px=max(16, round(rows * share)), head_share=None
        )
    return replace(
        size, width_px=max(16, round(size.width_px * share)), height_px=max(16, round(size.height_px * share))
    )


def _fitting(
    pixels: np.ndarray,
    format_name: str,
    at_most: int | None,
    quality: int | None,
    *,
    dpi: int,
    base: str,
    marked: bool,
) -> Delivered | None:
    """The file with the best quality that has at most `at_most` bytes, marks included; None when there is none."""

    def made(quality: int | None) -> Delivered:
        data = mark.encode(pixels, format_name, quality=quality, dpi=dpi, base=base)
        marks = None
        if marked:
            roomy = min(pixels.shape[:2]) >= watermark.MIN_SIDE_PX
            data, marks = mark.seal(data, format_name, base=base, watermarked=roomy)
        return Delivered(data, format_name, pixels.shape[1], pixels.shape[0], quality, (), marks)

    def fits(one: Delivered) -> bool:
        return at_most is None or len(one.data) <= at_most

    if format_name == "PNG":
        only = made(None)
        return only if fits(only) else None
    if at_most is None:
        return made(quality or mark.QUALITY[format_name])
    low, high = LOWEST_QUALITY[format_name], quality or HIGHEST_QUALITY[format_name]
    low = min(low, high)
    best = made(high)
    if fits(best):
        return best
    best = made(low)
    if not fits(best):
        return None
    while high - low > 1:  # `low` fits, `high` does not
        middle = (low + high) // 2
        one = made(middle)
        if fits(one):
            low, best = middle, one
        else:
            high = middle
    return best


def _too_large(format_name: str, max_kb: float | None, allow_hint: bool) -> str:
    if format_name == "PNG":
        way = "PNG has no quality to lower. Choose JPEG or WebP, a smaller size or a larger target."
    else:
        way = "Choose a larger target, a smaller size" + (", or another format." if allow_hint else ".")
    return f"This picture does not fit into {max_kb:g} kB as {format_name} at a quality worth having. {way}"


def _still_reads(data: bytes) -> bool:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        if picture.mode == "RGBA":
            white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
            return watermark.read(np.array(Image.alpha_composite(white, picture).convert("RGB"))).present
        return watermark.read(np.array(picture.convert("RGB"))).present


# ------------------------------------------------------------------------------------------------- several


SHEET_CELL_PX = 256
SHEET_MARGIN_PX = 16
CAPTION_PX = 15


def contact_sheet(images: Sequence[np.ndarray], captions: Sequence[str], *, columns: int = 4) -> np.ndarray:
    """All pictures, uint8 (H, W, 3 or 4), on one page, each with a caption below: uint8 (H, W, 3)."""
    from PIL import Image, ImageDraw, ImageFont

    if not images or len(images) != len(captions):
        raise ValueError("one caption for each of at least one picture")
    columns = max(1, min(columns, len(images)))
    rows = -(-len(images) // columns)
    step, row_step = SHEET_CELL_PX + SHEET_MARGIN_PX, SHEET_CELL_PX + SHEET_MARGIN_PX + CAPTION_PX + 10
    page = Image.new("RGB", (columns * step + SHEET_MARGIN_PX, rows * row_step + SHEET_MARGIN_PX), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(CAPTION_PX)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = SHEET_MARGIN_PX + number % columns * step
        top = SHEET_MARGIN_PX + number // columns * row_step
        picture = Image.fromarray(np.ascontiguousarray(image))
        picture.thumbnail((SHEET_CELL_PX, SHEET_CELL_PX), Image.Resampling.LANCZOS)
        corner = (left + (SHEET_CELL_PX - picture.width) // 2, top + (SHEET_CELL_PX - picture.height) // 2)
        page.paste(picture, corner, picture if picture.mode == "RGBA" else None)
        draw.text((left, top + SHEET_CELL_PX + 5), _cut(caption, font, SHEET_CELL_PX), fill="#374151", font=font)
    return np.array(page)


def _cut(caption: str, font: Any, width_px: int) -> str:
    line = " ".join(caption.split())
    if font.getlength(line) <= width_px:
        return line
    while line and font.getlength(line + "...") > width_px:
        line = line[:-1]
    return line + "..."


def batch_zip(
    files: Sequence[tuple[str, Delivered]],
    out: Path,
    *,
    sheet: bool = True,
    base: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a ZIP of finished files, (name without suffix, file) each, to `out`, with a marked contact sheet.

    Entries have a fixed date and no data of this machine. Raises UserError for an empty list and a full disk.
    """
    from PIL import Image

    if not files:
        raise UserError("There is nothing to pack. Choose at least one picture.")
    packed = io.BytesIO()
    used: set[str] = {"contact-sheet.jpg"}
    small, captions = [], []
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:  # pictures are already compressed
        for number, (name, one) in enumerate(files, start=1):
            entry = _entry_name(name, one.suffix, used)
            archive.writestr(zipfile.ZipInfo(entry), one.data)
            if sheet:
                with Image.open(io.BytesIO(one.data)) as picture:
                    picture.thumbnail((SHEET_CELL_PX, SHEET_CELL_PX), Image.Resampling.LANCZOS)
                    small.append(np.array(picture if picture.mode == "RGBA" else picture.convert("RGB")))
                captions.append(f"{entry}  {one.width_px}x{one.height_px}, {one.kb:.0f} kB")
            if progress:
                progress(number, len(files))
        if sheet:
            page = Size("sheet", "Contact sheet", 0, 0)
            made = deliver(contact_sheet(small, captions), page, format_name="JPEG", quality=90, base=base)
            archive.writestr(zipfile.ZipInfo("contact-sheet.jpg"), made.data)
    write_bytes(out, packed.getvalue())
    return out


def _entry_name(name: str, suffix: str, used: set[str]) -> str:
    """A file name that is valid on every system and not in `used`."""
    plain = re.sub(r"[^\w.-]+", "-", name).strip(".-_")[:80] or "portrait"
    entry, number = f"{plain}{suffix}", 2
    while entry.lower() in used:
        entry, number = f"{plain}-{number}{suffix}", number + 1
    used.add(entry.lower())
    return entry
