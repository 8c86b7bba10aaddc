"""Who is asking, and which run is theirs.

In: the capability a browser kept (a random string the server made). Out: a `Session` with the run's folder and the
choices made so far. The browser never sends a path: the capability is hashed, the hash names a small record, the record
names the run. A wrong, old or forged capability finds nothing.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pipelines.core.files import read_json, write_json
from pipelines.core.records import CLASS_WORDS, QUALITIES, UserError
from pipelines.core.run import Run, data_root, forget, is_run, new_run
from pipelines.runs.ledger import Ledger

CAPABILITY = re.compile(r"[A-Za-z0-9_-]{43}")  # 256 random bits, as secrets.token_urlsafe(32) writes them
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
ENDED = "This page's run is no longer here. Reload the page and start again with your photos."


@dataclass(frozen=True)
class Choices:
    """What a person chose on the Upload tab. Saved, so that a reload shows the same."""

    class_word: str = CLASS_WORDS[0]
    base: str = ""  # "" = this machine's default
    consent_at: str | None = None  # when the person ticked the box; None = not
    sample: bool = False  # the photos are the synthetic sample person
    example: bool = False  # everything is the finished example's: nothing was done on this machine
    quality: str = QUALITIES[0]  # of the last training
    judge: str | None = None  # whose scores are shown; None = the first
    asked: dict[str, Any] = field(default_factory=dict)  # what the last training was asked for
    keep: int = 0  # of all pictures only so many, the most alike; 0 = show them all
    only_favourites: bool = False  # of all pictures
    shown: int | None = None  # number of the generation job whose pictures are shown; None = the last one
    picked: str = ""  # id of the picture to vary
    finishing: str = ""  # id of the picture to finish; "" = the most alike


@dataclass(frozen=True)
class Session:
    key: str  # hash of the capability; safe as a file name and in a log
    run: Run
    choices: Choices


class Sessions:
    """The records below `root`, one small JSON file per browser."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or data_root()).resolve()

    @property
    def folder(self) -> Path:
        return self.root / "sessions"

    def create(self) -> tuple[str, Session]:
        """A new capability with an empty run of its own."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        capability = secrets.token_urlsafe(32)
        run = new_run(self.root)
        session = Session(_key(capability), run, Choices())
        self._write(session)
        return capability, session

    def find(self, capability: object) -> Session | None:
        """The session of a capability, or None. Takes anything: the value comes from a browser."""
        if not isinstance(capability, str) or not CAPABILITY.fullmatch(capability):
            return None
        key = _key(capability)
        record = read_json(self.folder / f"{key}.json")
        name = record.get("run") if isinstance(record, dict) else None
        if not isinstance(name, str) or not RUN_NAME.fullmatch(name):
            return None
        folder = self.root / name
        if folder.is_symlink() or not is_run(folder):
            return None
        return Session(key, Run(folder), _choices(record.get("choices")))

    def need(self, capability: object) -> Session:
        """Like `find`, but a missing session is the person's business. Raises UserError."""
        session = self.find(capability)
        if session is None:
            raise UserError(ENDED)
        return session

    def ensure(self, capability: object) -> tuple[str, Session]:
        """The session of `capability`, or a new one."""
        session = self.find(capability)
        return (str(capability), session) if session else self.create()

    def choose(self, session: Session, **changes: object) -> Session:
        """Save changed choices; others that were made meanwhile stay. Raises UserError when the run is gone."""
        record = read_json(self.folder / f"{session.key}.json")
        if not isinstance(record, dict):
            raise UserError(ENDED)
        newest = _choices(record.get("choices"))
        changed = replace(session, choices=replace(newest, **changes))  # type: ignore[arg-type]
        self._write(changed)
        return changed

    def forget(self, session: Session) -> dict[str, object]:
        """Delete the run and its record. Returns the receipt of `forget`."""
        return self.drop(session.key, session.run)

    def drop(self, key: str, run: Run) -> dict[str, object]:
        """`forget` for a run that nobody asks for any more."""
        if "pipelines.photos.intake" in sys.modules:  # never imported: nothing was measured
            sys.modules["pipelines.photos.intake"].forget_measures(run.folder)
        if "pipelines.evaluation.lookalike" in sys.modules:
            sys.modules["pipelines.evaluation.lookalike"].forget(run.folder)
        receipt = forget(run.folder)
        Ledger(self.root).forget(run.id)
        (self.folder / f"{key}.json").unlink(missing_ok=True)
        return dict(receipt)

    def runs(self) -> list[tuple[str, Run]]:
        """Every recorded (key, run) whose folder is there."""
        found = []
        for file in sorted(self.folder.glob("*.json")):
            try:
                record = read_json(file)
            except UserError:  # a damaged record hides its run, not the others
                continue
            if re.fullmatch(r"[0-9a-f]{40}", file.stem) and isinstance(record, dict):
                folder = self.root / str(record.get("run"))
                if RUN_NAME.fullmatch(folder.name) and folder.parent == self.root and is_run(folder):
                    found.append((file.stem, Run(folder)))
        return found

    def _write(self, session: Session) -> None:
        record = {"run": session.run.folder.name, "choices": asdict(session.choices)}
        write_json(self.folder / f"{session.key}.json", record)


def _key(capability: str) -> str:
    return hashlib.sha256(capability.encode()).hexdigest()[:40]


def _choices(saved: object) -> Choices:
    if not isinstance(saved, dict):
        return Choices()
    known = {each.name: saved[each.name] for each in fields(Choices) if each.name in saved}
    choices = Choices(**known)
    return choices if choices.class_word in CLASS_WORDS else replace(choices, class_word=CLASS_WORDS[0])
