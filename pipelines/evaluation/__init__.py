"""Evaluation: how similar are pictures to the person, and how good are they otherwise?

In: pictures, and photos that training never saw. Out: `Score`s, a `Scale` per judge (strangers, untrained base, own
photos), `Facts` per picture and `Worth` per method, means with intervals, friends' votes. No embedding is written.
Files: `judge` scores all pictures of a run; `references` makes each score, `scale` and `faces/calibration.py` say what
it means; `facts` and `clip` measure the rest; `validation` chooses checkpoints; `lookalike` judges any picture.
Try it: `python -m pipelines score a.png --run RUN`.
"""

from importlib import import_module
from typing import Any

_OFFERS = {
    "reference": "pipelines.evaluation.references",
    "score_renders": "pipelines.evaluation.references",
    "measure_scale": "pipelines.evaluation.scale",
}


def __getattr__(name: str) -> Any:
    if name in _OFFERS:
        return getattr(import_module(_OFFERS[name]), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
