"""The finished example that a visitor opens with one click: the sample person's run, and the first screen's picture.

    python tools/build_example.py

In: `presets/sample_person` and the app's default base. Out: `presets/example` (what the app wrote for a visitor who
did every step: photos, three methods of quality `--quality`, eight pictures of each and of the untrained base, scores,
report) and `presets/hero.webp` (a photo beside each method's picture nearest its mean score;
their numbers stand in `presets/example/hero.json`). Run it again whenever the base, a recipe or a run's format changes.

It has to be small: DreamBooth's weights (26 MB), the grid and earlier previews are left out, files that are there twice
are kept once, and the pictures inside the report are WebP. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

EXAMPLE, HERO = ROOT / "presets" / "example", ROOT / "presets" / "hero.webp"
MAX_BYTES, MAX_HERO_BYTES = 6_000_000, 300_000
METHODS = ("textual_inversion", "dreambooth", "lora")
# Not the person's, or only true for the process that made them.
LEFT_OUT = {
    "run.json", "worker.json", "worker.log", "clock.json", ".lock", ".starting", ".photos", "source.json", "grid.png",
}  # fmt: skip
TEXT = {".json", ".jsonl", ".html", ".csv", ".tex"}
PICTURE = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")
TILE_PX, GAP_PX = 224, 12


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quality", default="draft")
    parser.add_argument("--home", type=Path, help="work here and keep it (a temporary folder)")
    parser.add_argument("--again", action="store_true", help="only copy what lies in --home already")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = (options.home or Path(folder)).resolve()
        os.environ["LIKENESS_HOME"] = str(home)
        from ui.run.services import Services

        services = Services(home)
        key = make(services, options.quality) if not options.again else (home / "capability").read_text()
        if options.home:
            (home / "capability").write_text(key)
        freeze(services, key)
        hero(services, key)
    size = sum(file.stat().st_size for file in EXAMPLE.rglob("*") if file.is_file())
    print(f"{EXAMPLE.relative_to(ROOT)}: {size:,} bytes; {HERO.relative_to(ROOT)}: {HERO.stat().st_size:,} bytes")
    if size > MAX_BYTES or HERO.stat().st_size > MAX_HERO_BYTES:
        print(f"That is more than {MAX_BYTES:,} and {MAX_HERO_BYTES:,} bytes allow.", file=sys.stderr)
        return 1
    return 0


def make(services: Any, quality: str) -> str:
    """What a visitor does, step by step; the capability of their session."""
    from pipelines.core import presets
    from pipelines.core.run import record_consent
    from pipelines.runs.jobspec import default_samplings
    from ui.run import photobox
    from ui.run.start import start_generation, start_training
    from ui.upload.layout import SAMPLE_SENTENCE

    person = presets.PRESETS / "sample_person"
    row = services.bases[services.default_base]
    key, session = services.sessions.create()
    class_word = (person / "person.txt").read_text().strip()
    session = services.sessions.choose(session, sample=True, class_word=class_word, base=row.name)
    record_consent(session.run, means="app", statement=SAMPLE_SENTENCE)
    for _ in photobox.add(session.run, sorted(person.glob("*.png")), row):
        pass
    start_training(services, session, methods=METHODS, quality=quality)
    wait(session.run)
    start_generation(services, session, columns=("none", *METHODS), samplings=default_samplings(row))
    wait(session.run.drawing)
    return str(key)


def wait(run: Any) -> None:
    """Until the run's job has ended. Ends the tool where it failed."""
    from pipelines.runs import jobs

    for event in jobs.follow(run, every_s=0.5):
        if event.kind in ("phase", "done", "failed"):
            print(event.method or "", event.text or event.kind, flush=True)
    found = jobs.status(run)
    if found.state != "done":
        raise SystemExit(f"The job ended as {found.state}: {found.reason}")


def freeze(services: Any, key: str) -> None:
    """Copy the session's run into the repository, without this machine's paths, and the choices made."""
    session = services.sessions.need(key)
    run = session.run.folder
    shutil.rmtree(EXAMPLE, ignore_errors=True)
    first: dict[str, str] = {}  # digest -> the file that is kept
    copies: dict[str, str] = {}  # file -> the same one that is kept
    for file in sorted(each for each in run.rglob("*") if each.is_file() and wanted(each, run)):
        inside = file.relative_to(run).as_posix()
        content = file.read_bytes()
        if file.suffix in TEXT:
            content = plain(content.decode("utf-8"), run).encode()
        same = first.setdefault(hashlib.sha256(content).hexdigest(), inside)
        if same != inside:
            copies[inside] = same
            continue
        (EXAMPLE / inside).parent.mkdir(parents=True, exist_ok=True)
        (EXAMPLE / inside).write_bytes(content)
    chosen = session.choices
    choices = {name: getattr(chosen, name) for name in ("class_word", "base", "quality", "asked")}
    saved = {"schema": 1, **choices, "copies": copies}
    (EXAMPLE / "choices.json").write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


def wanted(file: Path, run: Path) -> bool:
    """Whether the example needs this file of the run."""
    inside = file.relative_to(run)
    if inside.name in LEFT_OUT or inside.suffix in (".part", ".lock"):
        return False
    if inside.parts[0] != "methods":
        return True
    if inside.name.startswith("preview_"):
        return file == max(file.parent.glob("preview_*.png"))
    card = json.loads((run / "methods" / inside.parts[1] / "subject.json").read_text())
    return inside.name == "subject.json" or (card["artifact"] == inside.name and inside.parts[1] != "dreambooth")


def plain(text: str, run: Path) -> str:
    """A run's text without the path of its folder, its pictures as WebP. Ends the tool where another path is left."""
    from PIL import Image

    def smaller(found: re.Match[str]) -> str:
        with Image.open(io.BytesIO(base64.b64decode(found[1]))) as picture, io.BytesIO() as out:
            picture.save(out, "WEBP", quality=88)
            return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()

    text = PICTURE.sub(smaller, text.replace(f"{run}/", ""))
    for folder in (run.parent, ROOT):
        if str(folder) in text:
            raise SystemExit(f"A file of the run names {folder}.")
    return text


def hero(services: Any, key: str) -> None:
    """A photo that training saw, and of every method the picture nearest its mean, side by side."""
    from PIL import Image

    view = services.view(key)
    judge = view.judge()
    means = {row.method: row.mean for row in view.rows(judge)}
    photo = view.session.run.folder / view.box.photo_set.train[0].path
    tiles, said = [Image.open(photo).convert("RGB")], []
    for method in METHODS:
        drawn = [shot for shot in view.pictures if shot.method == method and shot.similarity is not None]
        one = min(drawn, key=lambda shot: abs(shot.similarity - means[method]))
        tiles.append(Image.open(view.session.run.folder / one.path).convert("RGB"))
        said.append({"method": method, "score": round(one.similarity, 2), "verdict": one.verdict})
    wide = TILE_PX * len(tiles) + GAP_PX * (len(tiles) - 1)
    picture = Image.new("RGBA", (wide, TILE_PX), (0, 0, 0, 0))
    for index, tile in enumerate(tiles):
        side = min(tile.size)
        tile = tile.crop(((tile.width - side) // 2, 0, (tile.width + side) // 2, side))
        picture.paste(tile.resize((TILE_PX, TILE_PX), Image.Resampling.LANCZOS), (index * (TILE_PX + GAP_PX), 0))
    picture.save(HERO, quality=88, method=6)
    title = view.row.title
    facts = {"schema": 1, "base": title, "judge": judge, "pictures": said}
    (EXAMPLE / "hero.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
