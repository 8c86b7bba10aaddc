"""The judges: lists the face recognisers that work on this machine, and finds one by its name.

In: names. Out: `Judge`s; making one reads no model. Try it: `[judge.name for judge in available_judges()]`.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from pipelines.core.records import UserError
from pipelines.faces import arcface_mini
from pipelines.faces.arcface import ARCFACE_PACKS, ArcFaceJudge, download_pack, find_pack, pack_root
from pipelines.faces.dlib_faces import DlibJudge, dlib_weights
from pipelines.faces.face import Judge

log = logging.getLogger(__name__)


def available_judges(
    pack_folder: Path | None = None,
    allow_download: bool = False,
    *,
    on_problem: Callable[[str], None] | None = None,
) -> list[Judge]:
    """The judges that work here: the best ArcFace pack that is installed, else the embedded arcface-mini; then dlib,
    which is independent of it. Loads no model.

    Downloads a pack only with `allow_download` (the person agreed); when that fails, `on_problem` gets a sentence (or
    it is logged). Raises UserError when there is no judge at all.
    """
    say = on_problem or log.warning
    packs = [(name, find_pack(name, pack_folder)) for name in ARCFACE_PACKS]
    judges: list[Judge] = []
    present = [(name, folder) for name, folder in packs if folder is not None]
    if not present and allow_download:
        try:
            present = [("buffalo_l", download_pack("buffalo_l", pack_folder))]
        except UserError as problem:
            say(str(problem))
    if present and importlib.util.find_spec("insightface") is None:
        say("A face pack is here but insightface is not installed: `pip install -r requirements.txt` adds it.")
        present = []
    try:
        dlib_weights("dlib_face_recognition_resnet_model_v1.dat")
        if importlib.util.find_spec("dlib") is None:
            raise FileNotFoundError("dlib is missing: install it with `pip install dlib-bin`.")
        judges.append(DlibJudge())
    except FileNotFoundError as problem:
        say(str(problem))
    first: Judge | None = ArcFaceJudge(*present[0]) if present else None
    if first is None and judges:  # the embedded recogniser reads dlib's landmarks
        try:
            first = arcface_mini.ArcFaceMini()
        except UserError as problem:
            say(str(problem))
    judges = [first, *judges] if first is not None else judges
    if not judges:
        raise UserError("No face recogniser is installed. Run `pip install -r requirements.txt`.")
    return judges


def judge_names() -> tuple[str, ...]:
    return (*ARCFACE_PACKS, arcface_mini.NAME, DlibJudge.name)


def judge_named(name: str, pack_folder: Path | None = None) -> Judge:
    """The judge of this name. Raises UserError when there is none, or its pack is not on this machine."""
    if name not in judge_names():
        raise UserError(f"There is no judge called {name}. Choose one of: {', '.join(judge_names())}.")
    if name == DlibJudge.name:
        return DlibJudge()
    packs = [(pack, find_pack(pack, pack_folder)) for pack in ARCFACE_PACKS]
    if name == arcface_mini.NAME:
        # if there is a pack, the landmarks of its detector are better than dlib's
        return arcface_mini.ArcFaceMini(next(((pack, folder) for pack, folder in packs if folder is not None), None))
    folder = dict(packs)[name]
    if folder is None:
        raise UserError(
            f"The face pack {name} is not in {pack_root(pack_folder) / 'models' / name}{_incomplete(name, pack_folder)}"
            ". Download it, point LIKENESS_FACE_MODELS at the folder that holds models/, or choose another judge."
        )
    return ArcFaceJudge(name, folder)


def _incomplete(name: str, pack_folder: Path | None) -> str:
    """Words for an error message about a pack whose files are not complete; "" if it has no files."""
    folder = pack_root(pack_folder) / "models" / name
    files = sorted(path for path in folder.glob("*.onnx")) if folder.is_dir() else []
    if not files:
        return ""
    empty = [path.name for path in files if path.stat().st_size == 0]
    if empty:
        return f" as a whole: {', '.join(empty)} is empty"
    return f" as a whole: it needs a detector and a recogniser, and only {files[0].name} is there"


@lru_cache(maxsize=2)
def _with_packs(_packs: tuple[Path | None, ...]) -> tuple[Judge, ...]:
    return tuple(available_judges())


def resident_judges() -> tuple[Judge, ...]:
    """`available_judges`, made once per process, so that models are read once; made again when a pack was added or
    removed.
    """
    return _with_packs(tuple(find_pack(name) for name in ARCFACE_PACKS))
