"""Gather: the photos of a folder or a ZIP, before any of them is opened.

In: a folder, or a ZIP that a person sent. Out: paths of what may be photos. Nothing here looks at a pixel.
Try it: `photo_files(Path("PHOTO_DIR"))`.
"""

from __future__ import annotations

import stat
import zipfile
import zlib
from pathlib import Path
from typing import IO

from pipelines.core.schema import UserError
from pipelines.photos.decode import MAX_FILE_BYTES, SUFFIXES


def photo_files(folder: Path) -> list[Path]:
    """The pictures directly inside `folder`, by name. `UserError` when it is no folder or holds none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Name the folder that holds the photos.")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not files:
        raise UserError(f"{folder} holds no photos. Put 5 to 15 photos of one person into it.")
    return files


ZIP_ENTRIES, ZIP_TOTAL_BYTES, ZIP_RATIO = 200, 1 << 30, 100


def unpack(archive: Path, into: Path) -> list[Path]:
    """The photos inside a ZIP, written to `into` (made with mode 0700) under their own file names.

    Raises UserError for what is no ZIP, holds no photo, too many entries, too much, something packed far too tightly, a
    link, or a name that leads out of the archive. Sizes are counted while unpacking: a header may lie.
    """
    name = archive.name
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            if len(entries) > ZIP_ENTRIES:
                raise UserError(f"{name} holds {len(entries)} files; at most {ZIP_ENTRIES} are read. Send fewer.")
            for entry in entries:
                if stat.S_ISLNK(entry.external_attr >> 16) or ".." in Path(entry.filename).parts:
                    raise UserError(f"{name} holds a link or a path that leads out of it. Pack the photos anew.")
                if entry.flag_bits & 1:
                    raise UserError(f"{name} is locked with a password. Pack the photos without one.")
            wanted = [entry for entry in entries if _is_photo_name(Path(entry.filename).name)]
            if not wanted:
                raise UserError(f"{name} holds no photos. Pack 5 to 15 photos of one person.")
            into.mkdir(mode=0o700, parents=True, exist_ok=True)
            room, out = ZIP_TOTAL_BYTES, []
            for number, entry in enumerate(wanted):
                target = into / f"{number:03d}" / Path(entry.filename).name[-200:]
                target.parent.mkdir(mode=0o700)
                with opened.open(entry) as source, target.open("wb") as sink:
                    size = _copy(source, sink, min(room, MAX_FILE_BYTES, ZIP_RATIO * max(entry.compress_size, 4096)))
                if size is None:
                    raise UserError(f"{name} unpacks to far more than photos need. Send the photos one by one.")
                room -= size
                out.append(target)
            return out
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"{name} is not a ZIP that can be read. Pack the photos anew or send them one by one."
        ) from error


def _is_photo_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _copy(source: IO[bytes], sink: IO[bytes], at_most: int) -> int | None:
    """Bytes copied, or None when there were more than `at_most`."""
    size = 0
    while block := source.read(1 << 20):
        size += len(block)
        if size > at_most:
            return None
        sink.write(block)
    return size
