"""Which cases of a parametrized test always run: one or two stand for all, the others run with `-m slow`.

Try it: `@pytest.mark.parametrize("name", quick_are(METHODS, "lora"))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest


def quick_are(values: Sequence[Any], *quick: Any) -> list[Any]:
    """All `values`, those that are not in `quick` marked slow."""
    assert set(quick) <= set(values)
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values]
