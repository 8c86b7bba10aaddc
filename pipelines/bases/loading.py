"""Load a base and its image filter: from a folder, a single-file checkpoint or the cache of the Hugging Face hub.

In: a `BaseRow`. Out: a `Family`, or a sentence that says which files are missing and how to get them.
Try it: `load_family(find_base("portrait-128")).pipeline()("portrait of man").images[0]`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.bases import checker as checkers
from pipelines.bases.architectures import FAMILIES
from pipelines.bases.checker import ImageFilter
from pipelines.bases.family import Family
from pipelines.bases.registry import BASES, BaseRow
from pipelines.core.device import Device, pick_device, quiet, tune
from pipelines.core.records import ATTENTIONS, UserError

Progress = Callable[[str, float | None], None]  # (sentence, share that is done or None)
# What a diffusers folder needs besides the weights; example pictures, ONNX and OpenVINO files are not downloaded.
HUB_FILES = ("*.json", "*.txt")
WEIGHTED = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2")


def load_family(
    row: BaseRow, device: Device | None = None, *, progress: Progress | None = None, attention: str = "sdpa"
) -> Family:
    """Load a base onto `device` (default: the best here). `attention`: one of ATTENTIONS.

    The image filter is the base's own, else that of Stable Diffusion 1.5; if that is not on this machine,
    `Family.unfiltered` says so.
    Raises UserError when files are missing and the hub does not answer, when they are damaged, when xformers is asked
    for and not installed, and on a hosted page when there is no image filter.
    """
    import diffusers

    device = device or pick_device()
    tune(device)
    report = progress or (lambda _text, _share: None)
    architecture = FAMILIES[row.family]
    if attention not in architecture.attentions and attention in ATTENTIONS:
        raise UserError(f"{row.title} has no {attention} attention. Leave --attention out.")
    pipeline_class = getattr(diffusers, architecture.pipeline)
    # on a GPU in the format of the files; on a CPU, and for a small base, in float32, without rounding
    dtype = getattr(torch, architecture.stored) if device.kind == "cuda" else torch.float32
    options: dict[str, Any] = {"dtype": {"vae": torch.float32, "default": dtype}, "local_files_only": True}
    options |= architecture.loading
    folder: Path | None
    found: tuple[nn.Module, Any] | None = None
    unfiltered: str | None = None
    with quiet():
        if row.is_single_file:
            configuration = _single_file_configuration(row, report)
            report(f"loading {row.title}", None)
            options["dtype"] = dtype
            folder = None
            pipeline = _load(row, pipeline_class.from_single_file, row.path, config=str(configuration), **options)
        else:
            folder = _local_folder(row, report)
            variant = row.variant if row.repo else _variant_of(folder / architecture.denoiser)
            report(f"loading {row.title}", None)
            if FAMILIES[row.family].checker and checkers.has_checker(folder):
                found = checkers.load_checker(folder, variant, dtype)
                options |= {"safety_checker": found[0], "feature_extractor": found[1], "requires_safety_checker": True}
            pipeline = _load(row, pipeline_class.from_pretrained, str(folder), variant=variant, **options)
        if architecture.filtered and found is None:
            lent = _lent_checker(row, report)
            if isinstance(lent, str):
                unfiltered = lent
                report(unfiltered, None)
            else:
                found = checkers.load_checker(lent, BASES[LENDER].variant, dtype)
    choose_attention(getattr(pipeline, architecture.denoiser), device, attention)
    report(f"{row.title} is ready", 1.0)
    image_filter = ImageFilter(*found, device) if found else None
    module, name = architecture.code
    code: type[Family] = getattr(importlib.import_module(module), name)
    return code(row, device, pipeline, folder, image_filter=image_filter, unfiltered=unfiltered)


def choose_attention(unet: nn.Module, device: Device, attention: str) -> None:
    """Set PyTorch's own attention, or xformers' on an NVIDIA GPU. Copies of `unet` have the same."""
    if attention == "sdpa":
        return
    if attention not in ATTENTIONS:
        raise UserError(f"There is no attention {attention}. Choose one of: {', '.join(ATTENTIONS)}.")
    if device.kind != "cuda":
        raise UserError("xformers needs an NVIDIA GPU, and this runs without one. Leave --attention out.")
    if importlib.util.find_spec("xformers") is None:
        raise UserError("xformers is not installed. Add it with: pip install -r requirements-gpu.txt")
    # `set_attention_backend` has no effect on these UNets, without an error (diffusers 0.42.1)
    unet.enable_xformers_memory_efficient_attention()  # type: ignore[operator]


def _load(row: BaseRow, loader: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return loader(*args, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{row.title} can't be loaded: {reason} Check its files, or choose another base.") from error


def _local_folder(row: BaseRow, report: Progress) -> Path:
    """The folder of a row's files; downloaded from the hub if they are not on this machine."""
    if row.repo is None:
        folder = row.folder
        if folder is None or not (folder / "model_index.json").is_file():
            raise UserError(
                f"{row.name} is missing: there is no {folder and folder.name}/model_index.json. Get the whole "
                "repository again, or rebuild it with: python tools/build_portrait_base.py"
            )
        return folder
    suffix = f".{row.variant}" if row.variant else ""
    brings = FAMILIES[row.family].checker
    return _from_hub(
        row,
        (*HUB_FILES, f"*/*{suffix}.safetensors"),
        report,
        complete=lambda folder: _has_weights(folder) and (not brings or checkers.has_checker(folder)),
    )


LENDER = "sd15"  # bases without an image filter use that of this base
LENT = (f"{checkers.CHECKER}/*.json", f"{checkers.CHECKER}/*.fp16.safetensors", f"{checkers.EXTRACTOR}/*.json")


def _lent_checker(row: BaseRow, report: Progress) -> Path | str:
    """The folder of the image filter of LENDER, or a sentence if there is none. It is downloaded only for a base from
    the hub, not for one on this machine. Raises UserError on a hosted page that has no filter.
    """
    lender = BASES[LENDER]
    assert lender.repo is not None and lender.revision is not None
    with contextlib.suppress(UserError):
        return _from_hub(lender, LENT, report, complete=checkers.has_checker, ask=row.repo is not None)
    way = checkers.command(lender.repo, lender.revision, LENT)
    if checkers.is_hosted():
        raise UserError(checkers.NOT_HOSTED + way)
    return checkers.MISSING + way


def _has_weights(folder: Path) -> bool:
    """Whether every model that the pipeline lists has its weights: one file, or all its shards."""
    try:
        index = json.loads((folder / "model_index.json").read_text())
        return all(_is_whole(folder / part) for part in WEIGHTED if part in index)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _is_whole(part: Path) -> bool:
    files = {file.name for file in part.glob("*.safetensors")}
    shards = {name for name in files if re.search(r"-\d{5}-of-\d{5}", name)}
    if files - shards:
        return True
    lists = [json.loads(file.read_text())["weight_map"] for file in part.glob("*.safetensors.index.json")]
    return bool(shards) and bool(lists) and all(set(names.values()) <= files for names in lists)


def _from_hub(
    row: BaseRow, patterns: Sequence[str], report: Progress, *, complete: Callable[[Path], bool], ask: bool = True
) -> Path:
    """The folder of the row's revision: from the hub's cache on this machine, else, with `ask`, downloaded."""
    from huggingface_hub import snapshot_download
    from tqdm.auto import tqdm

    assert row.repo is not None and row.revision is not None
    short = row.repo.split("/")[-1]
    wanted: dict[str, Any] = {
        "revision": row.revision,
        "allow_patterns": list(patterns),
        "ignore_patterns": ["vae_*/*"],
    }
    with contextlib.suppress(OSError):
        folder = Path(snapshot_download(row.repo, local_files_only=True, **wanted))
        if complete(folder):
            return folder
    if not ask:
        raise UserError(f"{short} is not on this machine.")

    class Reported(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if self.total:
                report(f"downloading {short}: {self.n:.0f} of {self.total:.0f} {self.unit}", self.n / self.total)
            return shown

    report(f"downloading {short}", 0.0)
    try:
        folder = Path(snapshot_download(row.repo, tqdm_class=Reported, etag_timeout=5, **wanted))
        if complete(folder):
            return folder
        reason: Exception | None = None
    except Exception as error:  # errors of the hub, httpx and the system: the person gets one message for all
        reason = error
    include = " ".join(f'"{pattern}"' for pattern in patterns)
    raise UserError(
        f"{short} is not on this machine and the hub did not answer; pick portrait-128 or download it with: "
        f"hf download {row.repo} --revision {row.revision} --include {include}"
    ) from reason


def _variant_of(folder: Path) -> str | None:
    """ "fp16" if a part's local folder has only this variant, else None."""
    plain = [file for file in folder.glob("*.safetensors") if ".fp16" not in file.name]
    return None if plain else "fp16"


def _single_file_configuration(row: BaseRow, report: Progress) -> Path:
    """Configuration and tokenizers for a single-file checkpoint: the folder beside it, else the hub's cache."""
    assert row.path is not None
    beside = Path(row.path).with_suffix("")
    if (beside / "model_index.json").is_file():
        return beside
    like = next(known for known in BASES.values() if known.family == row.family)
    try:
        return _from_hub(like, HUB_FILES, report, complete=lambda folder: (folder / "model_index.json").is_file())
    except UserError as error:
        raise UserError(
            f"{Path(row.path).name} needs the configuration and tokenizer of {like.title} (2 MB), which are not on "
            f"this machine, and the hub did not answer. Put them into a folder {beside.name}/ beside it, or download "
            f"them with: "
            f'hf download {like.repo} --revision {like.revision} --include "*.json" "*.txt"'
        ) from error
