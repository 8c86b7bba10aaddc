"""Imports point down, never up: read from the source, so that nothing has to be imported to know."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tools import house

ROOT = Path(__file__).resolve().parents[1]
# Rooms from the ground up: a room imports only from lower lines. Rooms of one line know nothing of each other.
FLOORS = (
    ("core",),
    ("faces", "bases"),
    ("photos", "methods"),
    ("training",),
    ("evaluation",),
    ("generation", "finishing"),
    ("reports",),
    ("runs",),
    ("cli",),
    ("__main__",),
)
# What still points up, one import each; the list only ever gets shorter.
STILL_UP: set[tuple[str, str]] = set()
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


def room(module: str) -> str | None:
    """The room of a module of pipelines. None: the package itself, or none of ours."""
    parts = module.split(".")
    return parts[1] if parts[0] == "pipelines" and len(parts) > 1 else None


def floor(module: str) -> int | None:
    return next((k for k, rooms in enumerate(FLOORS) if room(module) in rooms), None)


@pytest.mark.parametrize("module", [name for name in SOURCES if name.startswith("pipelines.")])
def test_every_module_is_in_a_room_and_imports_nothing_from_above(module):
    own = floor(module)
    assert own is not None, f"{module} is in no room: add it to FLOORS"
    above = {
        name
        for name in imports(SOURCES[module]) & set(SOURCES) - {f"pipelines.{each}" for row in FLOORS for each in row}
        if (other := floor(name)) is not None
        and room(name) != room(module)
        and other >= own
        and (module.removeprefix("pipelines."), name.removeprefix("pipelines.")) not in STILL_UP
    }
    assert not above, f"{module} imports {', '.join(sorted(above))}"


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
    "module", ["pipelines.__main__", "pipelines.runs.jobs", "pipelines.core.run", "pipelines.runs.compare"]
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


# ------------------------------------------------------------------------------------------------- limits of the house

EVERY = house.modules(ROOT)
MOST_FILES, MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS, MOST_UNTYPED = 10, 500, 100, 6, 10
# What does not hold yet; these tables only ever get shorter.
ROOMS_TOO_FULL = {
    "pipelines/bases",
    "pipelines/core",
    "pipelines/methods",
    "pipelines/runs",
    "pipelines/training",
    "ui/run",
}
MODULES_TOO_LONG: set[str] = set()
FUNCTIONS_TOO_LONG: set[str] = set()
TOO_MANY_PARAMETERS = {
    "pipelines.bases.family.Family.objective",
    "pipelines.bases.objective._losses",
    "pipelines.bases.sampling.sample_latents",
    "pipelines.finishing.deliver._fitting",
    "pipelines.finishing.deliver.deliver",
    "pipelines.finishing.mark.mark",
    "pipelines.finishing.stage.finish",
    "pipelines.methods.imports.add",
    "pipelines.methods.lora_files.write",
    "pipelines.photos.checks.check_set",
    "pipelines.photos.intake.intake",
    "ui.generate.events.Actions.vary",
    "ui.generate.finish.order_of",
    "ui.generate.values.samplings",
    "ui.programs.endpoints.Endpoints.finish",
    "ui.programs.endpoints.Endpoints.generate",
}
UNTYPED_YET = 16  # signatures that say dict[str, Any]
CIRCLES_YET = {
    ("ui.run.services", "ui.run.start", "ui.run.view"),
}


def test_a_room_has_few_files_and_a_module_few_lines():
    rooms = {module.room: 0 for module in EVERY}
    for module in EVERY:
        rooms[module.room] += 1
    assert {room for room, files in rooms.items() if files > MOST_FILES} <= ROOMS_TOO_FULL
    assert {module.name for module in EVERY if module.lines > MOST_LINES} <= MODULES_TOO_LONG


def test_a_function_is_short_and_takes_few_parameters():
    every = [one for module in EVERY for one in house.functions(module)]
    assert {name for name, each in every if house.length(each) > MOST_FUNCTION_LINES} <= FUNCTIONS_TOO_LONG
    assert {name for name, each in every if house.parameters(each) > MOST_PARAMETERS} <= TOO_MANY_PARAMETERS


def test_signatures_say_what_they_take():
    found = [name for module in EVERY for name, each in house.functions(module) if house.untyped(each)]
    assert len(found) <= max(MOST_UNTYPED, UNTYPED_YET), found


def test_no_two_modules_need_each_other_inside_functions_either():
    assert set(house.circles(EVERY)) <= CIRCLES_YET


def test_the_figures_of_the_house_are_printed(capsys):
    house.main(ROOT)
    said = capsys.readouterr().out
    assert (
        "pipelines/core" in said
        and f"pipelines: {len([m for m in EVERY if m.name.startswith('pipelines.')])} files" in said
    )
