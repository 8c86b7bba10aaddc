"""Before Gradio is imported: its environment, and half of its import time saved.

In: nothing. Out: environment variables that Gradio reads once, and an import hook. Imports no Gradio itself.
Try it: `python -X importtime app.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

WRITES_STUBS = "gradio.component_meta"
UPLOADS = "likeness-uploads-"
M_ARENA_MAX = -8  # of glibc's malloc.h


def prepare_environment() -> None:
    """No telemetry, no history, a private folder for uploads that goes when the app ends, and a Pillow that opens only
    photos.
    """
    from pipelines.photos.decode import restrict_pillow

    os.umask(0o077)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ["FORWARDED_ALLOW_IPS"] = ""  # uvicorn would believe anybody on this machine; see ui/web/visitors.py
    if "GRADIO_TEMP_DIR" not in os.environ:
        sweep_dead()
        os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix=f"{UPLOADS}{os.getpid()}-")
    Path(os.environ["GRADIO_TEMP_DIR"]).mkdir(mode=0o700, parents=True, exist_ok=True)
    skip_stub_files()
    share_heaps()
    restrict_pillow()


def share_heaps() -> None:
    """All threads share two heaps, unless MALLOC_ARENA_MAX says otherwise.

    The threads that answer clicks come and go. glibc gives each a heap, up to eight per core, and keeps every heap as
    large as its busiest moment: the server would grow by 4 MB now and then for an hour.
    Only glibc does that.
    """
    if sys.platform == "linux" and "MALLOC_ARENA_MAX" not in os.environ:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


def sweep_dead() -> None:
    """Delete the upload folders of app processes that were killed before they could do it themselves."""
    for folder in Path(tempfile.gettempdir()).glob(f"{UPLOADS}*-*"):
        pid = folder.name.removeprefix(UPLOADS).partition("-")[0]
        if pid.isdigit() and not folder.is_symlink() and not _alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def sweep_uploads(older_than_s: float, folder: Path) -> int:
    """Delete what was uploaded and never taken in, such as by a tab that was closed; returns how many files."""
    gone = 0
    for file in folder.rglob("*"):
        try:
            if file.is_file() and time.time() - file.stat().st_mtime > older_than_s:
                file.unlink()
                gone += 1
        except OSError:
            continue  # taken in meanwhile
    return gone


def _alive(pid: int) -> bool:
    if os.name == "nt":  # there os.kill(pid, 0) would end it; the system empties its temporary folder itself
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def skip_stub_files() -> None:
    """Keep Gradio from writing editor stubs (.pyi) for its 80 components at every import.

    Measured with gradio 6.31: 4.1 of the 7.8 s of `import gradio` under a profiler on a busy machine. Where a later
    Gradio has no such step, nothing happens.
    """
    if WRITES_STUBS in sys.modules:
        _write_none(sys.modules[WRITES_STUBS])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _write_none(module: ModuleType) -> None:
    if "create_or_modify_pyi" in vars(module):
        vars(module)["create_or_modify_pyi"] = lambda *_: None


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != WRITES_STUBS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _write_none(module)
