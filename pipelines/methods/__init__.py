"""The methods, and what was made elsewhere, behind one small interface (`base.Method`).

In: a method's name. Out: the object that makes its trainable parameters, saves them and applies them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.core.records import ALL_METHODS, UserError

if TYPE_CHECKING:
    from pipelines.methods.base import Method


def method(name: str) -> Method:
    """The method of that name. Raises UserError for an unknown one."""
    from pipelines.methods.dreambooth import DreamBooth
    from pipelines.methods.imports import ImportedEmbedding, ImportedLoRA
    from pipelines.methods.lora import LoRA
    from pipelines.methods.pivotal import Pivotal
    from pipelines.methods.textual_inversion import TextualInversion

    elsewhere: dict[str, Method] = {"imported lora": ImportedLoRA(), "imported embedding": ImportedEmbedding()}
    known: dict[str, Method] = {each.name: each for each in (TextualInversion(), DreamBooth(), LoRA(), Pivotal())}
    if name in elsewhere:
        return elsewhere[name]
    if name not in known:
        raise UserError(f"There is no method {name}. Choose one of: {', '.join(ALL_METHODS)}.")
    return known[name]
