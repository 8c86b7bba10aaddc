"""The finished example: a frozen run of the sample person, copied into a visitor's own.

In: `presets/example`, which `tools/build_example.py` writes. Out: a session whose run shows every tab's results at
once; nothing is computed.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipelines.core.decode import decode
from pipelines.core.files import read_json
from pipelines.core.presets import PRESETS
from pipelines.core.records import UserError
from ui.run.services import Services
from ui.run.sessions import Session

EXAMPLE, HERO = PRESETS / "example", PRESETS / "hero.webp"
CHOICES, FACTS = "choices.json", "hero.json"  # what the session chose; what the first screen's picture shows


def is_there() -> bool:
    return (EXAMPLE / CHOICES).is_file()


@dataclass(frozen=True)
class Drawn:
    """One portrait of the first screen's picture."""

    method: str
    score: float
    verdict: str


@lru_cache(maxsize=1)
def drawn() -> tuple[Drawn, ...]:
    """The portraits in the first screen's picture, left to right, behind the photo; () where there is none."""
    saved = read_json(EXAMPLE / FACTS) or {}
    return tuple(decode(Drawn, one) for one in saved.get("pictures", ()))


def open_in(services: Services, session: Session) -> Session:
    """Copy the example into an empty run. Raises UserError where something is there, or this copy has no example."""
    if not is_there():
        raise UserError("The finished example is not in this copy. Get the whole repository, or use your own photos.")
    if (session.run.folder / "incoming.json").exists():
        raise UserError("There are photos here already. Delete your data first, then open the example.")
    shutil.copytree(
        EXAMPLE, session.run.folder, dirs_exist_ok=True, copy_function=_copied, ignore=lambda *_: {CHOICES, FACTS}
    )
    chosen = read_json(EXAMPLE / CHOICES) or {}
    for copy, same in chosen["copies"].items():
        (session.run.folder / copy).parent.mkdir(parents=True, exist_ok=True)
        _copied(str(EXAMPLE / same), str(session.run.folder / copy))
    known = {name: chosen[name] for name in ("class_word", "base", "quality", "asked") if name in chosen}
    return services.sessions.choose(session, **known, sample=True, example=True, consent_at=None)


def _copied(source: str, target: str) -> str:
    """Today's date and this user's rights: what lies in the repository may be older than any run is kept."""
    shutil.copyfile(source, target)
    Path(target).chmod(0o600)
    return target


def left(services: Services, kept: object) -> object:
    """The capability to go on with when somebody brings their own photos: None, the example deleted, where the run
    holds it; else `kept`.
    """
    session = services.sessions.find(kept)
    if session is None or not session.choices.example:
        return kept
    services.stop_and_wait(session.run)
    services.sessions.forget(session)
    return None
