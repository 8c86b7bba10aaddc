"""The drawings of a comparison or a study, as inline SVG from plain numbers.

In: the data of a run's `figures.json`, or of one budget in a study's report.json. Out: SVG that needs no script and no
other file, for light and dark pages. Used by the reports and by the Score tab, so that all show the same; the tab gives
its own `tell`, which translates the words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from pipelines.core.records import IMPORTED, is_imported, title_of
from pipelines.core.said import tell as in_english

OTHER_COLOUR = "#7c3aed"
COLOURS = {
    "none": "#6b7280",
    "zero_shot": "#be123c",
    "textual_inversion": "#b45309",
    "dreambooth": "#1d4ed8",
    "lora": "#047857",
    "pivotal": "#a21caf",
}
PARTS = {"train": "learned from", "held_out": "held out", "other": "other people"}

Span = Mapping[str, float]  # mean, low, high
Tell = Callable[..., str]  # (text, **values) -> the text with its values, translated; as `pipelines.core.said.tell`


def titled(column: str, tell: Tell = in_english) -> str:
    """A column's title as plain text."""
    if is_imported(column):
        return tell("{name} (imported)", name=column.removeprefix(IMPORTED))
    return tell("Untrained base") if column == "none" else title_of(column)


def colour_of(column: str) -> str:
    return COLOURS.get(column, OTHER_COLOUR)


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels."""

    low: float
    high: float
    start_px: float
    end_px: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / max(self.high - self.low, 1e-9)
        return self.start_px + share * (self.end_px - self.start_px)

    def ticks(self, count: int = 5) -> list[float]:
        """About `count` round values inside the axis."""
        raw = max(self.high - self.low, 1e-9) / count
        size = 10.0 ** math.floor(math.log10(raw))
        step = next(size * k for k in (1, 2, 5, 10) if size * k >= raw - 1e-12)
        first = math.ceil(self.low / step - 1e-9)
        return [round(k * step, 10) for k in range(first, int(math.floor(self.high / step + 1e-9)) + 1)]


def _svg(width: int, height: int, said: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(said)}" '
        f'style="max-width:{width}px">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, colour: str = "currentColor") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">'
        f"{escape(text, quote=False)}</text>"
    )


def _line(points: Sequence[tuple[float, float]], colour: str, *, dashed: bool = False, width: float = 1.5) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dash}/>'


def _axes(x: Axis, y: Axis, x_title: str, y_title: str) -> list[str]:
    left, right, bottom, top = x.start_px, x.end_px, y.start_px, y.end_px
    parts = [_line([(left, top), (left, bottom), (right, bottom)], "currentColor", width=1)]
    parts += [_text(x(value), bottom + 16, f"{value:g}", anchor="middle") for value in x.ticks()]
    parts += [_text(left - 6, y(value) + 4, f"{value:g}", anchor="end") for value in y.ticks()]
    parts.append(_text((left + right) / 2, bottom + 34, x_title, anchor="middle", size=13))
    parts.append(_text(left, top - 10, y_title, size=13))
    return parts


def _level(x: Axis, y: Axis, value: float, said: str) -> str:
    if not y.low <= value <= y.high:
        return ""
    at = y(value)
    line = _line([(x.start_px, at), (x.end_px, at)], "currentColor", dashed=True, width=0.8)
    return line + _text(x.end_px, at - 4, said, anchor="end")


def figure(value: float | None, digits: int = 2) -> str:
    """A number as text; a dash for None."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


# ------------------------------------------------------------------------------------------------- the drawings


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The Pareto front: names that no other name exceeds in both values, sorted by the first value."""
    best = [
        name
        for name, (x, y) in points.items()
        if not any(a >= x and b >= y and (a > x or b > y) for a, b in points.values())
    ]
    return sorted(best, key=lambda name: points[name])


def scatter(found: Mapping[str, Any], tell: Tell = in_english) -> str:
    """Identity against prompt following with 95% intervals, the Pareto front, and each method's checkpoints as a pale
    line (pale because another judge scored them, on validation prompts).
    """
    methods = {c: f for c, f in found["methods"].items() if f.get("following") and f.get("identity")}
    if not methods:
        return ""
    ways = {
        column: [(look["following"], look["identity"]) for look in curve["looks"] if look["following"] is not None]
        for column, curve in found.get("curves", {}).items()
    }
    values = [f["identity"][k] for f in methods.values() for k in ("low", "high")]
    values += [identity for way in ways.values() for _, identity in way]
    values += [v for v in (found.get("ceiling"),) if v is not None]
    x, y = Axis(0.0, 1.0, 60, 560), Axis(min(0.0, *values), max(values) + 0.02, 330, 40)
    parts = _axes(
        x, y, tell("share of what was asked that is shown"), tell("similarity by {judge}", judge=found["judge"])
    )
    if (ceiling := found.get("ceiling")) is not None:
        parts.append(_level(x, y, ceiling, tell("real photos {value}", value=f"{ceiling:.2f}")))
    front = {c: (f["following"]["mean"], f["identity"]["mean"]) for c, f in methods.items()}
    edge = [front[name] for name in pareto(front)]
    parts.append(_line([(x(a), y(b)) for a, b in edge], "currentColor", dashed=True) if len(edge) > 1 else "")
    for column, way in ways.items():
        if len(way) > 1:
            line = _line([(x(a), y(b)) for a, b in way], colour_of(column), width=1)
            dots = (f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.5" fill="{colour_of(column)}"/>' for a, b in way)
            parts.append(f'<g opacity=".45">{line}{"".join(dots)}</g>')
    for index, (column, each) in enumerate(methods.items()):
        identity, asked, colour = each["identity"], each["following"], colour_of(column)
        across, up = x(asked["mean"]), y(identity["mean"])
        parts += [
            _line([(x(asked["low"]), up), (x(asked["high"]), up)], colour),
            _line([(across, y(identity["low"])), (across, y(identity["high"]))], colour),
            f'<circle cx="{across:.1f}" cy="{up:.1f}" r="6" fill="{colour}"/>',
            f'<circle cx="590" cy="{52 + 20 * index}" r="5" fill="{colour}"/>',
            _text(602, 56 + 20 * index, titled(column, tell)),
        ]
    return _svg(740, 370, tell("Identity against prompt-following, by method"), parts)


def strip(judge: str, named: Mapping[str, float | None], dots: Mapping[str, Sequence[float]]) -> str:
    """All similarities by one judge on one axis: a row of dots per column, and `named` values as vertical lines."""
    values = [value for value in named.values() if value is not None] + [v for each in dots.values() for v in each]
    low = min([0.0, *values]) - 0.03
    high = max([1.0, *values])

    def at(value: float) -> float:
        return 170 + (value - low) / (high - low) * 810

    height = 26 * len(dots) + 20 * len(named) + 16
    lines = []
    for index, (name, value) in enumerate(named.items()):
        y = 26 * len(dots) + 20 * (index + 1) + 4
        if value is None:
            lines.append(f'<text x="170" y="{y}" font-size="13" fill="currentColor">{name}: not measured</text>')
            continue
        x = at(value)
        anchor, shift = ("end", -6) if x > 700 else ("start", 6)
        lines.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{y}" stroke="currentColor" '
            f'stroke-dasharray="4 3" opacity=".6"/>'
            f'<text x="{x + shift:.1f}" y="{y}" font-size="13" text-anchor="{anchor}" fill="currentColor">{name} '
            f"{value:.2f}</text>"
        )
    for index, (column, each) in enumerate(dots.items()):
        y = 26 * index + 16
        lines.append(f'<text x="0" y="{y + 5}" font-size="14" fill="currentColor">{escape(titled(column))}</text>')
        colour = colour_of(column)
        lines += [f'<circle cx="{at(value):.1f}" cy="{y}" r="5" fill="{colour}" fill-opacity=".65"/>' for value in each]
    said = "; ".join(f"{name} {figure(value)}" for name, value in named.items())
    return (
        f'<svg viewBox="0 0 1000 {height}" role="img" aria-label="Similarities by '
        f'{escape(judge)}. {escape(said)}">{"".join(lines)}</svg>'
    )


def convergence(found: Mapping[str, Any], tell: Tell = in_english) -> str:
    """Similarity of each checkpoint's validation pictures, over the seconds of training: to the validation photos
    (solid) and to the training photos (dashed). A growing gap between them means overfitting.
    """
    curves = {c: curve for c, curve in found.get("curves", {}).items() if len(curve["looks"]) > 1}
    if not curves:
        return ""
    looks = [look for curve in curves.values() for look in curve["looks"]]
    values = [look[k] for look in looks for k in ("identity", "trained")]
    x = Axis(0.0, max(look["seconds"] for look in looks), 60, 480)
    y = Axis(min(0.0, *values), max(values) + 0.02, 300, 40)
    judge = next(iter(curves.values()))["judge"]
    parts = _axes(x, y, tell("seconds of the method's own work"), tell("similarity by {judge}", judge=judge))
    for index, (column, curve) in enumerate(curves.items()):
        colour = colour_of(column)
        for key, dashed in (("identity", False), ("trained", True)):
            parts.append(_line([(x(e["seconds"]), y(e[key])) for e in curve["looks"]], colour, dashed=dashed))
        kept = next((e for e in curve["looks"] if e["step"] == curve.get("chosen")), None)
        if kept:
            at = f'cx="{x(kept["seconds"]):.1f}" cy="{y(kept["identity"]):.1f}"'
            parts.append(f'<circle {at} r="5" fill="{colour}"/>')
        parts.append(_line([(500, 52 + 20 * index), (520, 52 + 20 * index)], colour, width=3))
        parts.append(_text(526, 56 + 20 * index, titled(column, tell)))
    return _svg(660, 340, tell("Similarity over training time, by method"), parts)


def densities(found: Mapping[str, Any], tell: Tell = in_english) -> str:
    """Densities of similarities: of each method's pictures, of real photos of the person and of strangers' photos."""
    samples = {c: [v for v in f.get("similarities", ()) if v is not None] for c, f in found["methods"].items()}
    samples = {column: values for column, values in samples.items() if len(values) > 1}
    if not samples:
        return ""
    different, same = found.get("different") or {}, found.get("same") or {}
    every = [v for values in samples.values() for v in values]
    every += [float(v) for v in (*different.values(), *same.values())]
    x = Axis(min(every) - 0.12, max(every) + 0.05, 20, 600)
    grid = [x.low + (x.high - x.low) * k / 160 for k in range(161)]
    shapes = {column: _kernel(values, grid) for column, values in samples.items()}
    highest = max(max(shape) for shape in shapes.values())
    y = Axis(0.0, highest * 1.1, 240, 40)
    parts = [_line([(20, 240), (600, 240)], "currentColor", width=1)]
    parts += [_text(x(value), 256, f"{value:g}", anchor="middle") for value in x.ticks(8)]
    for quantiles, name, row in (
        (different, tell("different people"), 276),
        (same, tell("one person's photos"), 292),
    ):
        if "0.5" in quantiles:
            low, high = min(map(float, quantiles.values())), max(map(float, quantiles.values()))
            parts.append(_line([(x(low), row), (x(high), row)], "currentColor", width=4))
            parts.append(f'<circle cx="{x(float(quantiles["0.5"])):.1f}" cy="{row}" r="5" fill="currentColor"/>')
            parts.append(_text(610, row + 4, name))
    threshold = found.get("threshold")
    if threshold is not None:
        parts.append(_line([(x(threshold), 40), (x(threshold), 240)], "currentColor", dashed=True))
        parts.append(
            _text(x(threshold), 30, tell("looks like you from {value}", value=f"{threshold:.2f}"), anchor="middle")
        )
    for index, (column, shape) in enumerate(shapes.items()):
        colour = colour_of(column)
        parts.append(_line([(x(v), y(h)) for v, h in zip(grid, shape, strict=True)], colour, width=2))
        parts.append(_line([(610, 52 + 20 * index), (630, 52 + 20 * index)], colour, width=3))
        parts.append(_text(636, 56 + 20 * index, titled(column, tell)))
    return _svg(770, 304, tell("How the similarities are spread, by method"), parts)


def _kernel(values: Sequence[float], grid: Sequence[float]) -> list[float]:
    """A Gaussian kernel density at the points of `grid`; bandwidth by Silverman's rule (1986), at least 0.02."""
    count = len(values)
    mean = sum(values) / count
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1))
    width = max(0.02, 1.06 * spread * count**-0.2)
    scale = 1 / (count * width * math.sqrt(2 * math.pi))
    return [scale * sum(math.exp(-0.5 * ((g - v) / width) ** 2) for v in values) for g in grid]


def heatmap(found: Mapping[str, Any], tell: Tell = in_english) -> str:
    """Similarity of every picture (rows, by method) to every photo (training | held out | other people); colours always
    from 0 to 1.
    """
    heat = found.get("heat")
    if not heat or not heat["rows"] or not heat["photos"]:
        return ""
    columns = [(part, k) for part in PARTS for k, photo in enumerate(heat["photos"]) if photo["part"] == part]
    wide, left, top = max(12.0, min(34.0, 480 / len(columns))), 150, 40
    gap = 10
    tall = max(4.0, min(24.0, 360 / len(heat["rows"])))
    places: dict[int, float] = {}
    at, parts, last = float(left), [], None
    for part, k in columns:
        if part != last:
            at += gap if last else 0
            parts.append(_text(at, top - 8, tell(PARTS[part])))
            last = part
        places[k] = at
        at += wide
    down, column = float(top), None
    for row in heat["rows"]:
        if row["column"] != column:
            down += 6 if column else 0
            column = row["column"]
            parts.append(_text(left - 8, down + 11, titled(column, tell), anchor="end"))
        for k, value in enumerate(row["values"]):
            photo, shown = heat["photos"][k]["name"], figure(value)
            label = tell("{photo}: no face", photo=photo) if value is None else f"{photo}: {shown}"
            parts.append(
                f'<rect x="{places[k]:.1f}" y="{down:.1f}" width="{wide - 1:.1f}" height="{tall:.1f}" '
                f'fill="{_shade(value)}"><title>{escape(label)}</title></rect>'
            )
            if tall >= 16 and wide >= 28 and value is not None:
                ink = "#fff" if value > 0.45 else "#111"
                parts.append(
                    _text(places[k] + wide / 2, down + tall / 2 + 4, shown, anchor="middle", size=11, colour=ink)
                )
        down += tall + 0.5
    height = int(max(down + 34, top + 60))
    for step in range(11):  # the colour scale
        parts.append(
            f'<rect x="{left + 18 * step}" y="{down + 12:.1f}" width="18" height="8" fill="{_shade(step / 10)}"/>'
        )
    parts += [_text(left - 6, down + 20, "0", anchor="end"), _text(left + 204, down + 20, "1")]
    return _svg(
        int(at + 20), height, tell("Similarity of pictures with photos by {judge}", judge=found["judge"]), parts
    )


def _shade(value: float | None) -> str:
    """The colour of a similarity: white to dark blue; grey for None (no face was found)."""
    if value is None:
        return "#cbd5e1"
    share = max(0.0, min(1.0, value))
    start, end = (247, 251, 255), (8, 48, 107)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(start, end, strict=True))


def strengths(found: Mapping[str, Any], tell: Tell = in_english) -> str:
    """A table of the LoRA strengths that were tried; "" when none was chosen."""
    tried = found.get("strengths")
    if not tried:
        return ""

    def kept(look: Mapping[str, Any]) -> str:
        strength = f"{look['strength']:g}"
        return tell("{value} (kept)", value=strength) if look["strength"] == tried["chosen"] else strength

    rows = "".join(
        f"<tr><td>{escape(kept(look))}</td><td>{figure(look['identity'])}</td><td>{figure(look['following'])}</td>"
        f"<td>{figure(look['value'])}</td></tr>"
        for look in tried["looks"]
    )
    names = (tell("Strength"), tell("Similarity"), tell("As asked"), tell("Product"))
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    caption = tell("LoRA strengths on validation prompts, judge: {judge}.", judge=tried["judge"])
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


SECTIONS: tuple[tuple[str, Callable[[Mapping[str, Any], Tell], str], tuple[str, ...]], ...] = (
    ("Identity against obedience", scatter,
     ("Up and right is better; the dashed line joins what nothing else beats in both.",
      "Faint lines are checkpoints, by another judge on validation prompts.")),
    ("While it learned", convergence,
     ("Validation pictures against the validation photos (solid) and the training photos (dashed).",
      "The dot is the checkpoint that was kept.")),
    ("", strengths, ()),
    ("Spread", densities,
     ("Below: from the lowest to the highest quantile that was measured, the dot is the middle.",)),
    ("Every picture against every photo", heatmap,
     ("A method that copies is darker under the photos it learned from than under those it never saw.",)),
)  # fmt: skip


def sections(found: Mapping[str, Any], tell: Tell = in_english) -> str:
    """All drawings for which there is data, each with its heading."""
    parts = []
    for heading, draw, sentences in SECTIONS:
        picture = draw(found, tell)
        title = escape(tell(heading)) if heading else ""
        why = escape(" ".join(tell(sentence) for sentence in sentences))
        if picture.startswith("<svg"):  # on a phone it is scrolled, not shrunk
            picture = f'<div class="scroll" tabindex="0" role="group" aria-label="{title}">{picture}</div>'
        if picture:
            parts.append(
                (f"<h2>{title}</h2>" if title else "") + (f'<p class="soft">{why}</p>' if why else "") + picture
            )
    return "".join(parts)
