"""Gather: find the photos in a folder or a ZIP, by the content of the files and not by their names.

In: a folder, or a ZIP that a person sent. Out: paths of files that may be photos, and a sentence for every file that
was left out. Only the first bytes of a file are read here; `decode` reads the rest.
Try it: `gather(Path("PHOTO_DIR")).photos`.
"""

from __future__ import annotations

import errno
import io
import stat
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipelines.core.files import printable
from pipelines.core.records import UserError
from pipelines.photos.decode import MAX_FILE_BYTES, SUFFIXES, kind_of_file, reason

RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw", ".x3f")
IGNORED = ("thumbs.db", "desktop.ini", "__macosx")  # written by operating systems, as are names that begin with a dot


NO_PHOTO = "is no photo."


@dataclass(frozen=True)
class Gathered:
    """`photos`, sorted by name: all files with a photo's name or first bytes; if one is no photo, `decode` says so.
    `left_out`: {file name: sentence} of the rest. `notes`: sentences about the folder.
    """

    photos: tuple[Path, ...]
    left_out: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def told(self) -> tuple[str, ...]:
        """Sentences about what was not taken, and why."""
        no_photos = [name for name, why in self.left_out.items() if why == NO_PHOTO]
        told = [f"{name} {why}" for name, why in self.left_out.items() if why != NO_PHOTO]
        if no_photos:
            told.append(f"Not taken, because they are no photos: {_some(no_photos)}.")
        return (*self.notes, *told)


def photo_files(folder: Path) -> list[Path]:
    """The photos of `gather`, by name."""
    return list(gather(folder).photos)


def gather(folder: Path) -> Gathered:
    """The photos directly inside `folder`; if there are none, those of the subfolder, if only one subfolder has photos.

    Raises UserError when it is no folder, may not be read, or has no photo; the sentence says what is there.
    """
    if not folder.is_dir():
        raise UserError(f"{printable(str(folder))} is not a folder. Name the folder that holds the photos.")
    found, name = _inside(folder), printable(str(folder))
    below = {each: inside for each in _folders(folder) if (inside := _inside(each)).photos}
    names = ", ".join(printable(each.name) for each in below)
    if found.photos:
        told = (f"The photos in the folders below {name} were not taken: {names}.",) if below else ()
        return Gathered(found.photos, found.left_out, told)
    if len(below) > 1:
        raise UserError(f"{name} holds no photos, but several of its folders do: {names}. Name one of them.")
    if below:
        (inside,) = below.values()
        told = (f"{name} holds no photos itself; those in its folder {names} were taken.",)
        return Gathered(inside.photos, found.left_out | inside.left_out, told)
    others = f" What is there: {_some(found.left_out)}." if found.left_out else ""
    raise UserError(f"{name} holds no photos. Put 5 to 15 photos of one person into it.{others}")


def _some(names: Collection[str]) -> str:
    shown = list(names)[:5]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def _entries(folder: Path) -> Iterator[Path]:
    try:
        for path in sorted(folder.iterdir()):
            if not (path.name.startswith(".") or path.name.lower() in IGNORED):
                yield path
    except OSError as error:
        raise UserError(f"{printable(str(folder))} may not be read ({reason(error)}). Allow reading it.") from error


def _folders(folder: Path) -> Iterator[Path]:
    return (path for path in _entries(folder) if path.is_dir() and not path.is_symlink())


def _inside(folder: Path) -> Gathered:
    photos, left_out = [], {}
    for path in _entries(folder):
        if path.is_file() and _may_be_photo(path):
            photos.append(path)
        elif path.is_file():
            left_out[printable(path.name)] = NO_PHOTO
    return Gathered(tuple(photos), left_out)


def _may_be_photo(path: Path) -> bool:
    return path.suffix.lower() in (*SUFFIXES, *RAW_SUFFIXES) or isinstance(kind_of_file(path), tuple)


# ---------------------------------------------------------------------------------------------------- archives

ZIP_ENTRIES, ZIP_TOTAL_BYTES, ZIP_RATIO = 200, 1 << 30, 100
# `zipfile` reads an archive's list of members at once and makes an object of about 1 kB for each. A list of this size
# has 200 members with very long names, or 11,000 with short ones.
ZIP_LIST_BYTES = 512 << 10
BLOCK_BYTES = 256 << 10
NAME_BYTES = 200  # file systems allow 255; the page adds a prefix
BROKEN = "is damaged inside the ZIP. Pack it anew or send it by itself."
LOCKED = "is locked with a password. Pack it without one."
TOO_TIGHT = "unpacks to far more than a photo needs. Send it by itself."


class _TooMany(Exception):
    """An archive's list of members is longer than ZIP_LIST_BYTES."""


class _TooMuch(Exception):
    """An archive unpacks to more than ZIP_TOTAL_BYTES."""


class _Bounded(io.FileIO):
    """A file that refuses to read more than ZIP_LIST_BYTES at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = ZIP_LIST_BYTES + 1 if size is None or size < 0 else size
        data = super().read(min(wanted, ZIP_LIST_BYTES + 1)) or b""
        if len(data) > ZIP_LIST_BYTES:
            raise _TooMany
        return data


def unpack(archive: Path, into: Path) -> Gathered:
    """The photos inside a ZIP, also in its folders, written to `into` (made with mode 0700) under their own file names.

    A member that is damaged, compressed far too much, encrypted or no photo is left out, with a sentence. Raises
    UserError for a file that is no ZIP, and for a ZIP with no photo, too many members, too many bytes, a link, or a
    name that leads out of the archive. Bytes are counted while unpacking, because a header may be wrong. Chained
    exceptions name no member of the archive.
    """
    name = printable(archive.name)
    try:
        with _Bounded(archive) as file, zipfile.ZipFile(file) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            if len(entries) > ZIP_ENTRIES:
                raise UserError(f"{name} holds {len(entries)} files; at most {ZIP_ENTRIES} are read. Send fewer.")
            for entry in entries:
                if stat.S_ISLNK(entry.external_attr >> 16) or ".." in _parts(entry):
                    raise UserError(f"{name} holds a link or a path that leads out of it. Pack the photos anew.")
            into.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = _unpack_each(opened, entries, into)
    except UserError:
        raise
    except _TooMany:
        raise UserError(f"{name} holds far more than the {ZIP_ENTRIES} files that are read. Send fewer.") from None
    except _TooMuch:
        raise UserError(f"{name} unpacks to far more than photos need. Send the photos one by one.") from None
    except OSError as error:
        if error.errno is not None:
            raise UserError(f"{name} could not be unpacked ({reason(error)}). {_advice(error)}") from None
        raise UserError(_no_zip(name)) from None
    except Exception:  # zipfile and its decoders raise errors of many types, whose messages name members
        raise UserError(_no_zip(name)) from None
    if not found.photos:
        told = " ".join(f"{each} {why}" for each, why in list(found.left_out.items())[:5] if why != NO_PHOTO)
        raise UserError(f"{name} holds no photos that can be read. Pack 5 to 15 photos of one person. {told}".strip())
    return found


def _advice(error: OSError) -> str:
    return "Free some space and try again." if error.errno == errno.ENOSPC else "Send the photos one by one."


def _no_zip(name: str) -> str:
    return f"{name} is not a ZIP that can be read. Pack the photos anew or send them one by one."


def _parts(entry: zipfile.ZipInfo) -> tuple[str, ...]:
    return PurePosixPath(entry.filename.replace("\\", "/")).parts


def _unpack_each(opened: zipfile.ZipFile, entries: list[zipfile.ZipInfo], into: Path) -> Gathered:
    room, photos, left_out = ZIP_TOTAL_BYTES, [], {}
    for number, entry in enumerate(entries):
        parts = _parts(entry)
        if not parts or any(part.startswith(".") or part.lower() in IGNORED for part in parts):
            continue
        name = short_name(parts[-1])
        target = into / f"{number:03d}" / name
        target.parent.mkdir(mode=0o700)
        problem = _unpack_one(
            opened, entry, target, min(room, MAX_FILE_BYTES, ZIP_RATIO * max(entry.compress_size, 4096))
        )
        room -= target.stat().st_size if target.exists() else 0
        if room <= 0:
            raise _TooMuch
        if not problem and not _may_be_photo(target):
            problem = NO_PHOTO
        if problem:
            left_out[printable(name)] = problem
            target.unlink(missing_ok=True)
        else:
            photos.append(target)
    return Gathered(tuple(photos), left_out)


def _unpack_one(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, at_most: int) -> str:
    """Write one member to `target`; returns why it can't be used, or "". Raises OSError, for instance for a full disk.

    A bad member's file is not deleted here: the caller counts its bytes and deletes it.
    """
    try:
        with opened.open(entry) as source, target.open("wb") as sink:
            size = 0
            while block := source.read(BLOCK_BYTES):
                size += len(block)
                if size > at_most:
                    return TOO_TIGHT
                sink.write(block)
        return ""
    except OSError as error:
        if error.errno is not None:
            raise
        return BROKEN  # from bz2
    except Exception as error:  # zlib, lzma and zipfile raise errors of many types
        return LOCKED if isinstance(error, RuntimeError) and "password" in str(error) else BROKEN


def short_name(name: str) -> str:
    """A file name of at most NAME_BYTES bytes, cut before its suffix."""
    stem, dot, suffix = name.rpartition(".")
    if not dot or len(suffix.encode(errors="surrogateescape")) > 8:
        stem, dot, suffix = name, "", ""
    room = NAME_BYTES - len((dot + suffix).encode(errors="surrogateescape"))
    return stem.encode(errors="surrogateescape")[:room].decode(errors="ignore") + dot + suffix
