"""Which of the three marks remain after usual changes of a picture file, and how much do the marks change the picture?

    python benchmarks/marks_survive.py [FOLDER ...] [--limit 10] [--unmarked FOLDER ...] [--out FILE.md]

In: folders of pictures (default: the synthetic sample person). Each is marked at every size, changed by each of
`CHANGES`, and read by `pipelines.finishing.mark.verify`, as in the app. Out: Markdown tables for docs/finishing.md.
`--unmarked`: pictures without marks, which are read unchanged, to count false alarms.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipelines.core.device import machine
from pipelines.core.records import UserError
from pipelines.finishing import mark, watermark
from pipelines.photos.decode import SUFFIXES, decode

SIZES_PX = (256, 512)


def _image(path: Path):
    from PIL import Image

    return Image.open(path).convert("RGB")


def _as_it_is(path: Path, out: Path) -> Path:
    return path


def _jpeg_75(path: Path, out: Path) -> Path:
    _image(path).save(out.with_suffix(".jpg"), quality=75)
    return out.with_suffix(".jpg")


def _half(path: Path, out: Path) -> Path:
    from PIL import Image

    image = _image(path)
    image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS).save(out.with_suffix(".png"))
    return out.with_suffix(".png")


def _half_jpeg_75(path: Path, out: Path) -> Path:
    return _jpeg_75(_half(path, out), out)


def _cropped(path: Path, out: Path) -> Path:
    """Crop a tenth of the width and of the height, not in the centre."""
    image = _image(path)
    left, top = round(0.03 * image.width), round(0.08 * image.height)
    box = (left, top, left + round(0.9 * image.width), top + round(0.9 * image.height))
    image.crop(box).save(out.with_suffix(".png"))
    return out.with_suffix(".png")


def _screenshot(path: Path, out: Path) -> Path:
    """Scaled to an odd size, a little blurred, on a grey page, saved as JPEG 80."""
    from PIL import Image, ImageFilter

    image = _image(path)
    size = (int(image.width * 0.83) | 1, int(image.height * 0.83) | 1)
    image = image.resize(size, Image.Resampling.BILINEAR).filter(ImageFilter.GaussianBlur(0.6))
    page = Image.new("RGB", (size[0] + 40, size[1] + 26), (240, 240, 242))
    page.paste(image, (17, 11))
    page.save(out.with_suffix(".jpg"), quality=80)
    return out.with_suffix(".jpg")


def _stripped(path: Path, out: Path) -> Path:
    """Save again without metadata, as most sites do."""
    _image(path).save(out.with_suffix(".webp"), quality=80)
    return out.with_suffix(".webp")


def _one_bit(path: Path, out: Path) -> Path:
    """Change one bit such that the picture still opens (with most bits it does)."""
    data = path.read_bytes()
    target = out.with_suffix(path.suffix)
    for back in range(3, 40):
        changed = bytearray(data)
        changed[-len(data) // back] ^= 1
        target.write_bytes(bytes(changed))
        try:
            decode(target)
        except UserError:
            continue
        return target
    raise UserError(f"Every change breaks {path.name}.")


CHANGES: dict[str, Callable[[Path, Path], Path]] = {
    "as it is": _as_it_is,
    "one bit of the pixels changed": _one_bit,
    "saved again, WebP 80": _stripped,
    "JPEG 75": _jpeg_75,
    "half the size": _half,
    "half the size, then JPEG 75": _half_jpeg_75,
    "cropped by a tenth": _cropped,
    "like a screenshot": _screenshot,
}


def squared(image: np.ndarray, side_px: int) -> np.ndarray:
    """The middle square of an image (H, W, 3), with sides of this many pixels."""
    from PIL import Image

    rows, columns = image.shape[:2]
    side = min(rows, columns)
    left, top = (columns - side) / 2, (rows - side) / 2
    box = (left, top, left + side, top + side)
    return np.array(Image.fromarray(image).resize((side_px, side_px), Image.Resampling.LANCZOS, box=box))


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    error = float(((one.astype(np.float64) - other) ** 2).mean())
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity of the brightness, with a Gaussian window of sigma 1.5 (Wang et al. 2004)."""
    import cv2

    x, y = (cv2.cvtColor(each, cv2.COLOR_RGB2GRAY).astype(np.float64) for each in (one, other))

    def blur(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (11, 11), 1.5)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    both = blur(x * y) - mean_x * mean_y
    low, lower = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(
        (((2 * mean_x * mean_y + low) * (2 * both + lower)) / ((mean_x**2 + mean_y**2 + low) * (var_x + var_y + lower)))
        .mean()
    )  # fmt: skip


def pictures(folders: Sequence[Path], limit: int) -> list[Path]:
    """At most `limit` pictures, evenly spaced in the sorted list of all pictures in the folders."""
    found = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError("There are no pictures in these folders.")
    return found[:: max(1, len(found) // limit)][:limit] if limit else found


def survival(images: Sequence[np.ndarray], folder: Path) -> list[str]:
    lines = ["| change | size | content credentials | IPTC field | watermark | its strength, least and median |"]
    lines += ["|---|---|---|---|---|---|"]
    count = len(images)
    for name, change in CHANGES.items():
        for side in SIZES_PX:
            left: dict[str, int] = dict.fromkeys((*mark.MARK_NAMES, "tampered"), 0)
            strengths = []
            for number, image in enumerate(images):
                source = folder / f"marked-{side}-{number}.jpg"
                if not source.is_file():
                    mark.mark(squared(image, side), source, base="portrait-128")
                changed = change(source, folder / f"changed-{side}-{number}")
                found = mark.verify(changed)
                for one in found.marks:
                    left[one.name] += one.generated
                left["tampered"] += found.tampered
                strengths.append(watermark.read(decode(changed)).strength)
            said = f"{left['credentials']} of {count}"
            if left["tampered"]:
                said += f", {left['tampered']} say that the file was changed"
            lines.append(
                f"| {name} | {side} | {said} | {left['field']} of {count} | {left['watermark']} of {count} | "
                f"{min(strengths):.1f}, {np.median(strengths):.1f} |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
    return lines


def cost(images: Sequence[np.ndarray]) -> list[str]:
    """PSNR and SSIM of the watermark, and a judge's similarity of the picture with and without it."""
    from pipelines.faces.judges import available_judges

    judges = available_judges()
    names = " | ".join(f"{judge.name}, same face: least, mean" for judge in judges)
    lines = [f"| size | PSNR in dB: least, mean | SSIM: least, mean | {names} |", "|---" * (3 + len(judges)) + "|"]
    for side in SIZES_PX:
        noise, structure = [], []
        alike: dict[str, list[float]] = {judge.name: [] for judge in judges}
        for image in images:
            before = squared(image, side)
            after = watermark.embed(before)
            noise.append(psnr_db(before, after))
            structure.append(ssim(before, after))
            for judge in judges:
                one, other = judge.look(before).vector, judge.look(after).vector
                if one is not None and other is not None:
                    alike[judge.name].append(judge.similarity(one, other))
        cells = [f"{min(noise):.1f}, {np.mean(noise):.1f}", f"{min(structure):.4f}, {np.mean(structure):.4f}"]
        cells += [f"{min(v):.3f}, {np.mean(v):.3f} ({len(v)} faces)" if v else "no face" for v in alike.values()]
        lines.append(f"| {side} | {' | '.join(cells)} |")
    return lines


def false_alarms(files: Sequence[Path]) -> str:
    strengths = np.array([watermark.read(decode(path)).strength for path in files])
    return (
        f"Of {len(files):,} pictures without the mark, {int((strengths >= watermark.THRESHOLD).sum())} were said to "
        f"have it; the highest strength among them was {strengths.max():.2f} (needed: {watermark.THRESHOLD:g}). The "
        f"bound that follows from the design is {watermark.false_alarm_bound():.1e} for each picture."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", metavar="FOLDER", nargs="*", type=Path)
    parser.add_argument("--limit", type=int, default=10, help="pictures that are marked (10; 0 for all)")
    parser.add_argument("--unmarked", metavar="FOLDER", nargs="+", type=Path, default=[])
    parser.add_argument("--unmarked-limit", type=int, default=0, help="pictures read per folder (0: all)")
    parser.add_argument("--out", type=Path, help="write the tables here as well")
    options = parser.parse_args()
    files = pictures(options.folders or [ROOT / "presets" / "sample_person"], options.limit)
    images = [decode(path) for path in files]
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("LIKENESS_HOME", folder)  # so that its certificate is not kept
        parts = ["\n".join(survival(images, Path(folder))), "\n".join(cost(images))]
    if options.unmarked:
        unmarked = [path for each in options.unmarked for path in pictures([each], options.unmarked_limit)]
        parts.append(false_alarms(unmarked))
    text = f"\n{len(images)} pictures; {machine()}, {date.today().isoformat()}.\n\n" + "\n\n".join(parts) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text.lstrip(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
