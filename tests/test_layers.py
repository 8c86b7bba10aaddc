"""Imports point down, never up: read from the source, so that nothing has to be imported to know."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = (
    ("schema",),
    # The registry is rows of data and knows schema only; presets refer to its rows.
    (
        "runtime",
        "workspace",
        "ledger",
        "presets",
        "safety",
        "parallel",
        "attributes",
        "checkpoints",
        "calibration",
        "bases.registry",
        "fingerprints",
        "inscription",
        "slices",
    ),
    (
        "ledger",
        "estimates",
        "formats",
        "bases",
        "photos",
        "faces",
        "arcface_mini",
        "expressions",
        "checks",
        "upscaling",
        "upscale_nets",
        "watermark",
        "credentials",
        "matting",
    ),
    ("importing",),
    ("methods",),
    ("batches", "optimizers", "drafts"),
    ("marking", "delivery"),
    ("training", "generation", "scoring", "lookalike", "votes", "metrics", "clip_text", "refining"),
    ("selection",),
    ("finishing",),
    ("jobspec",),
    ("comparison", "report", "figures", "packing"),
    ("jobs", "worker", "replay", "study", "study_report", "__main__"),
)
HEAVY = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "gradio",
    "cv2",
    "dlib",
    "insightface",
    "onnxruntime",
    "PIL",
    "numpy",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Every module a file imports, inside functions and type checks too. `from a import b` counts as a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


SOURCES = {module_name(path): path for folder in ("pipelines", "ui") for path in sorted((ROOT / folder).rglob("*.py"))}


def layer(module: str) -> int | None:
    """The layer of a module of pipelines; the longest matching name wins. None: the package itself, or none of ours."""
    name = module.removeprefix("pipelines.")
    if name == module:
        return None
    matches = [
        (len(known), number)
        for number, names in enumerate(LAYERS)
        for known in names
        if name == known or name.startswith(known + ".")
    ]
    return max(matches)[1] if matches else None


@pytest.mark.parametrize("module", [name for name in SOURCES if name.startswith("pipelines.")])
def test_every_module_has_a_layer_and_imports_nothing_above_it(module):
    own = layer(module)
    assert own is not None, f"{module} stands in no layer: add it to LAYERS"
    above = {name for name in imports(SOURCES[module]) if (other := layer(name)) is not None and other > own}
    assert not above, f"{module} (layer {own}) imports {', '.join(sorted(above))}"


def test_only_the_app_and_ui_import_gradio_and_nothing_below_imports_ui():
    for module, path in SOURCES.items():
        if module.startswith("pipelines"):
            roots = {name.split(".")[0] for name in imports(path)}
            assert not roots & {"gradio", "ui", "app"}, module


def test_no_two_modules_need_each_other_at_import_time():
    needs: dict[str, set[str]] = {}
    for module, path in SOURCES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        found = set()
        for node in ast.walk(top):
            if isinstance(node, ast.ImportFrom):
                found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        needs[module] = (found & set(SOURCES)) - {module}

    def walk(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        for name in needs[module]:
            walk(name, (*trail, module))

    for module in needs:
        walk(module, ())


@pytest.mark.parametrize(
    "module", ["pipelines.__main__", "pipelines.jobs", "pipelines.workspace", "pipelines.comparison"]
)
def test_what_the_page_and_help_need_is_light(module):
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_no_pickle_no_eval_no_remote_code():
    for module, path in SOURCES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "torch.load", "pickle.load", "pickle.loads"), (module, called)
                assert not any(word.arg == "trust_remote_code" for word in node.keywords), module
