"""What tells two inputs, files or machines apart: hashes and versions, as manifests and caches hold them."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path

from pipelines.bases.registry import BaseRow


def sha(*parts: object) -> str:
    """SHA-256 of anything that can be told in JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def base_sha256(row: BaseRow) -> str | None:
    """Of a base on this machine: a hash over its weight files. A base of the hub is named by its revision."""
    if row.repo is not None or row.folder is None:
        return None
    files = [row.folder] if row.folder.is_file() else sorted(row.folder.rglob("*.safetensors"))
    return sha([[path.name, file_sha256(path)] for path in files])


def threads() -> int:
    """Sums over several threads are rounded in another order: part of what has to be the same for the same bits."""
    import torch

    return torch.get_num_threads()


def versions() -> dict[str, str | None]:
    """Of Python and every package that has a say in the bits; None for those that are not here."""
    from importlib import metadata

    names = ("likeness", "torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "opencv-python",
             "insightface", "onnxruntime", "dlib-bin", "pillow")  # fmt: skip
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
