"""The methods: which tensors train, how they are saved, and how they are put back on a base.

In: a method's name. Out: a `Method`, which makes a learner on a base, and applies what was learned or imported.
One file per method; `base` has the interface. `lora_names` and `lora_files` translate between the LoRA formats of other
programs and diffusers', `imports` adds a LoRA or embedding of somebody else to a run, `extract` makes a LoRA of a
DreamBooth, `drafts` draws in four steps. Try it: `method("lora").phrase(find_base("sd15"), recipe)`. How to add a
method: docs/extend.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pipelines.core.records import ALL_METHODS, METHOD_ROWS, MethodRow, UserError

if TYPE_CHECKING:
    from pipelines.methods.base import Method

# name -> (module, class), or an object that was added from outside
_CODE: dict[str, tuple[str, str] | Method] = {
    "zero_shot": ("pipelines.methods.zero_shot", "ZeroShot"),
    "textual_inversion": ("pipelines.methods.textual_inversion", "TextualInversion"),
    "dreambooth": ("pipelines.methods.dreambooth", "DreamBooth"),
    "lora": ("pipelines.methods.lora", "LoRA"),
    "pivotal": ("pipelines.methods.pivotal", "Pivotal"),
    "imported lora": ("pipelines.methods.imports", "ImportedLoRA"),
    "imported embedding": ("pipelines.methods.imports", "ImportedEmbedding"),
}


def method(name: str) -> Method:
    """The method of that name. Raises UserError for an unknown one."""
    if name not in _CODE:
        raise UserError(f"There is no method {name}. Choose one of: {', '.join(ALL_METHODS)}.")
    code = _CODE[name]
    if not isinstance(code, tuple):
        return code
    made: Method = getattr(importlib.import_module(code[0]), code[1])()
    return made


def add(row: MethodRow, code: Method) -> None:
    """Make a method known in this process, under its row's name. Raises ValueError for a name that is taken."""
    if row.name in _CODE:
        raise ValueError(f"there is a method {row.name} already")
    METHOD_ROWS[row.name], _CODE[row.name] = row, code
