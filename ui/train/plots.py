"""The curve of the loss: a table that Gradio plots, and the same in words."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from ui.page.theme import METHOD_COLOURS
from ui.words.words import tell

SMOOTHING = 0.9
PLOT_POINTS = 160
PLOT_UPDATES = 30


def steady(curve: Sequence[Any], steps: int) -> Sequence[Any]:
    """The curve as it stood at the last of `PLOT_UPDATES` moments: a plot that is drawn anew every second takes the
    processor that the training needs, where the browser runs on the same machine. The whole curve at the end.
    """
    every = max(1, steps // PLOT_UPDATES)
    return curve if len(curve) >= steps else curve[: max(2, len(curve) - len(curve) % every)]


def loss_frame(curve: Any) -> Any:
    """A long table (step, loss, line) with the raw loss and its running mean, at most `PLOT_POINTS` points each.

    The mean is corrected for its start (Kingma and Ba 2014, section 3), so it does not begin at zero.
    """
    import pandas as pd

    steps, raw, smooth = [], [], []
    mean, weight = 0.0, 0.0
    for step, loss in curve:
        mean, weight = SMOOTHING * mean + (1 - SMOOTHING) * loss, SMOOTHING * weight + (1 - SMOOTHING)
        steps.append(step)
        raw.append(loss)
        smooth.append(mean / weight)
    every = max(1, -(-len(steps) // PLOT_POINTS))
    kept = sorted({*range(0, len(steps), every), *([len(steps) - 1] if steps else [])})
    return pd.DataFrame(
        {
            "step": [steps[i] for i in kept] * 2,
            "loss": [raw[i] for i in kept] + [smooth[i] for i in kept],
            "line": [tell("each step")] * len(kept) + [tell("smoothed")] * len(kept),
        }
    )


def loss_in_words(method: str, frame: Any) -> str:
    """HTML for who can't see the plot of this `loss_frame`."""
    raw, smooth = frame[: len(frame) // 2].loss, frame[len(frame) // 2 :].loss
    said = tell(
        "Loss: {first} at first, {last} at step {step}, smoothed {smoothed}.", first=f"{raw.iloc[0]:.4f}",
        last=f"{raw.iloc[-1]:.4f}", step=frame.step.iloc[-1], smoothed=f"{smooth.iloc[-1]:.4f}",
    )  # fmt: skip
    return f'<p class="lk-unseen" data-plot="lk-loss-{method}">{escape(said)}</p>'


def named_lines(method: str) -> dict[str, Any]:
    """What the plot of the loss calls its axes and lines."""
    return {
        "x_title": tell("step"), "y_title": tell("loss"), "color_title": tell("line"),
        "color_map": {tell("smoothed"): METHOD_COLOURS[method], tell("each step"): "rgba(148,163,184,0.5)"},
    }  # fmt: skip
