"""How PyTorch's threads wait for each other: shortly, so that one busy program beside a training doesn't stop it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPIN, POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"
# Fails as soon as torch is imported by whoever has not set the number of turns, which torch reads once, then.
WATCH = """
import builtins, os
real = builtins.__import__
def watched(name, *rest, **more):
    assert name.split(".")[0] != "torch" or "GOMP_SPINCOUNT" in os.environ, "torch came first"
    return real(name, *rest, **more)
builtins.__import__ = watched
"""


def told(script: str, **environment: str) -> str:
    plain = {name: value for name, value in os.environ.items() if name not in (SPIN, POLICY)}
    return subprocess.check_output([sys.executable, "-c", script], env=plain | environment, text=True, cwd=ROOT).strip()


def test_threads_spin_shortly_unless_somebody_says_otherwise():
    script = f"import os, pipelines; print(os.environ.get('{SPIN}'))"
    assert told(script) == "1000"
    assert told(script, **{SPIN: "7"}) == "7"
    assert told(script, **{POLICY: "ACTIVE"}) == "None"


@pytest.mark.parametrize(
    "first",
    [
        "app, gradio, ui.page.startup; from pipelines.methods import imports",
        "pipelines.__main__",
        "pipelines.runs.worker",
    ],
)
def test_it_is_said_before_torch_is_imported(first):
    assert told(f"{WATCH}\nimport {first}\nimport torch; print('ready')") == "ready"


def test_the_watch_notices_torch():
    with pytest.raises(subprocess.CalledProcessError):
        told(f"{WATCH}\nimport torch")
