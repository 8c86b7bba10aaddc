"""grid.png: all pictures of a comparison side by side.

In: `Findings`, the run's folder, held-out photos. Out: a PIL image: a row per prompt and seed, a column per method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines.core.records import title_of
from pipelines.core.run import Run
from pipelines.reports.figures import COLOURS
from pipelines.reports.findings import Findings, absent, caption, rows_of, spoken

if TYPE_CHECKING:
    import numpy as np


TILE_PX, GAP_PX = 176, 10


def grid(findings: Findings, run: Run, held_out: np.ndarray) -> Any:
    """A PIL image: a row per prompt and seed, a column per method, a held-out photo beside each row.

    `held_out`: the held-out photos in the base's framing, uint8 (n, H, W, 3); the rows use them in turn.
    """
    from PIL import Image, ImageDraw, ImageFont

    judges = list(findings.marks)
    rows = rows_of(findings.cells)
    columns = [*findings.drawn_here, "photo"]
    label_px, head_px = 190, 34
    score_px = 6 + 15 * max(1, len(judges))
    width = label_px + len(columns) * (TILE_PX + GAP_PX) + GAP_PX
    height = head_px + len(rows) * (TILE_PX + score_px + GAP_PX) + GAP_PX
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    title, text = ImageFont.load_default(15), ImageFont.load_default(12)
    for index, column in enumerate(columns):
        x = label_px + index * (TILE_PX + GAP_PX)
        head = "Held-out photo" if column == "photo" else title_of(column)[:24]
        draw.text((x, 9), head, fill=COLOURS.get(column, "black"), font=title)
    for number, (asked, cells) in enumerate(rows):
        y = head_px + number * (TILE_PX + score_px + GAP_PX)
        lines = [f"seed {asked.seed}", *_wrapped(spoken(findings, asked), 28)]
        draw.multiline_text((GAP_PX, y), "\n".join(lines[:10]), fill="black", font=text, spacing=3)
        for index, column in enumerate(columns):
            x = label_px + index * (TILE_PX + GAP_PX)
            cell = cells.get(column)
            if column == "photo":
                if len(held_out):
                    tile = Image.fromarray(held_out[number % len(held_out)])
                    picture.paste(tile.resize((TILE_PX, TILE_PX), Image.Resampling.LANCZOS), (x, y))
                continue
            if cell is None:
                draw.rectangle((x, y, x + TILE_PX - 1, y + TILE_PX - 1), outline="#bbbbbb")
                draw.text((x + 8, y + 8), absent(findings, column, asked), fill="#666666", font=text)
                continue
            with Image.open(run.folder / cell.path) as drawn:
                tile = drawn.convert("RGB")
                tile.thumbnail((TILE_PX, TILE_PX), Image.Resampling.LANCZOS)
                if max(tile.size) < TILE_PX:
                    scale = TILE_PX / max(tile.size)
                    tile = tile.resize(
                        (round(tile.width * scale), round(tile.height * scale)), Image.Resampling.LANCZOS
                    )
                picture.paste(tile, (x, y))
            for line, judge in enumerate(judges):
                said = f"{judge} {caption(cell.score(judge))}"
                draw.text((x, y + TILE_PX + 3 + 15 * line), said, fill="black", font=text)
    return picture


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)
