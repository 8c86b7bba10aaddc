"""The state of the code: files and lines per room (package), longest module and function, parameters, import cycles,
untyped signatures.

In: a checkout: this one, or the one in the argument. Out: one table on stdout. It only reads the source.
Try it: `python tools/house.py`, or `python tools/house.py OTHER_CHECKOUT`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("pipelines", "ui")
UNTYPED = "dict[str, Any]"
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One source file. `name` is dotted, "pipelines.core.run"."""

    name: str
    lines: int
    tree: ast.Module

    @property
    def room(self) -> str:
        """Its folder: "pipelines/core"; "pipelines" for a module at the top."""
        parts = self.name.split(".")
        return "/".join(parts[:2]) if len(parts) > 2 or self.is_front else parts[0]

    @property
    def is_front(self) -> bool:
        """Whether it is the `__init__.py` of a room."""
        return self.name.endswith(".__init__") and self.name.count(".") > 1


def modules(root: Path = ROOT) -> list[Module]:
    """Every Python file of pipelines/ and ui/."""
    found = []
    for part in PARTS:
        for path in sorted((root / part).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            found.append(Module(name, text.count("\n"), ast.parse(text)))
    return found


def functions(module: Module) -> Iterator[tuple[str, Function]]:
    """Every function with its dotted name, also methods and inner functions."""

    def below(node: ast.AST, name: str) -> Iterator[tuple[str, Function]]:
        for child in ast.iter_child_nodes(node):
            inner = f"{name}.{child.name}" if isinstance(child, Function | ast.ClassDef) else name
            if isinstance(child, Function):
                yield inner, child
            yield from below(child, inner)

    yield from below(module.tree, module.name)


def length(function: Function) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def parameters(function: Function) -> int:
    """The number of its parameters, without self and cls."""
    taken = function.args
    names = [each.arg for each in (*taken.posonlyargs, *taken.args, *taken.kwonlyargs)]
    names += [each.arg for each in (taken.vararg, taken.kwarg) if each]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def untyped(function: Function) -> bool:
    """Whether its signature has `dict[str, Any]`, which does not say what is in the dict."""
    taken = function.args
    said = [
        each.annotation
        for each in (*taken.posonlyargs, *taken.args, *taken.kwonlyargs, taken.vararg, taken.kwarg)
        if each
    ]
    return any(hint is not None and UNTYPED in ast.unparse(hint) for hint in (*said, function.returns))


def needs(module: Module, known: set[str], *, at_import: bool = False) -> set[str]:
    """The modules it imports; with `at_import` only those at its top level, outside functions and type checks."""
    nodes = module.tree.body if at_import else list(ast.walk(module.tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {place if {place, f"{place}.__init__"} & known else str(node.module) for place in inner.values()}
    return {name if name in known else f"{name}.__init__" for name in found} & known - {module.name}


def circles(every: list[Module], *, at_import: bool = False) -> list[tuple[str, ...]]:
    """Import cycles: groups of modules that import each other, directly or indirectly (Tarjan 1972)."""
    known = {module.name for module in every}
    graph = {module.name: sorted(needs(module, known, at_import=at_import)) for module in every}
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    trail: list[str] = []
    found: list[tuple[str, ...]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        trail.append(name)
        for other in graph[name]:
            if other not in order:
                visit(other)
            if other in trail:
                low[name] = min(low[name], low[other])
        if low[name] == order[name]:
            place = trail.index(name)
            group = tuple(sorted(trail[place:]))
            del trail[place:]
            if len(group) > 1:
                found.append(group)

    for name in graph:
        if name not in order:
            visit(name)
    return sorted(found)


def main(root: Path = ROOT) -> None:
    every = modules(root)
    rooms: dict[str, list[Module]] = {}
    for module in every:
        rooms.setdefault(module.room, []).append(module)
    print(f"{'room':<24} {'files':>5} {'lines':>6} {'longest module':<40} {'longest function':<52} {'most parameters'}")
    for room, inside in sorted(rooms.items()):
        longest = max(inside, key=lambda module: module.lines)
        all_of = [(name, each) for module in inside for name, each in functions(module)]
        row = f"{room:<24} {len(inside):>5} {sum(module.lines for module in inside):>6} "
        row += f"{longest.lines:>4} {longest.name.rpartition('.')[2]:<35} "
        if all_of:
            name, function = max(all_of, key=lambda one: length(one[1]))
            wide, widest = max(all_of, key=lambda one: parameters(one[1]))
            row += f"{length(function):>4} {_short(name):<47} {parameters(widest):>2} {_short(wide)}"
        print(row)
    print()
    for part in PARTS:
        mine = [module for module in every if module.name.startswith(f"{part}.")]
        of_mine = [(name, each) for module in mine for name, each in functions(module)]
        print(f"{part}: {len(mine)} files, {sum(module.lines for module in mine)} lines")
        print(f"  modules over 500 lines: {sum(module.lines > 500 for module in mine)}")
        print(f"  functions over 100 lines: {sum(length(each) > 100 for _, each in of_mine)}")
        print(f"  functions of more than 6 parameters: {sum(parameters(each) > 6 for _, each in of_mine)}")
        print(f"  signatures that say {UNTYPED}: {sum(untyped(each) for _, each in of_mine)}")
    print(f"circles at import: {len(circles(every, at_import=True))}")
    for group in circles(every):
        print(f"circle, inner imports included: {' - '.join(group)}")


def _short(name: str) -> str:
    return ".".join(name.split(".")[-2:])


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT)
