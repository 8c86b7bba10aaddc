"""Which base models there are: one row each, and how a name or a path becomes a row. Light: no torch.

In: "portrait-128", "sd15", "sdxl", or the path of a diffusers folder or a single-file `.safetensors` checkpoint.
Out: a `BaseRow`. Try it: `python -c "from pipelines.bases.registry import find_base; print(find_base('sd15'))"`.

A single-file checkpoint carries no tokenizer and no configuration. They are taken from a folder of the same name beside
it (`photoreal.safetensors` -> `photoreal/`, with the JSON and tokenizer files of a diffusers folder), else from the
hub's cache.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipelines.schema import METHODS, UserError

REPOSITORY = Path(__file__).resolve().parents[2]
EMBEDDED = REPOSITORY / "models"
RARE_TOKEN = "ohwx"  # one rare token of CLIP's vocabulary; carries almost no meaning of its own
# Full fine-tuning keeps float32 weights, gradients and two moments (16 bytes per parameter): 14 GB for SD 1.5's 0.86 B
# parameters, 41 GB for SDXL's 2.6 B. Bases above this size are taught by the two small methods only.
DREAMBOOTH_MAX_PARAMETERS = 1.2e9

# The upright ones of the shapes SDXL was trained on (Podell et al. 2023, appendix I): selfies are upright, and what
# lies beside a person in a wide photo is nothing to learn.
SDXL_BUCKETS = ((1024, 1024), (1152, 896), (1216, 832))


@dataclass(frozen=True)
class BaseRow:
    """One base model. `family` decides the code that runs it; the rest is data."""

    name: str
    title: str
    repo: str | None  # on the hub; None = on this machine
    revision: str | None  # full commit hash: a moved branch cannot change what is loaded
    family: str  # "portrait" | "sd15" | "sdxl"
    resolution_px: int
    methods: tuple[str, ...]
    vram_gb: float  # for training its largest method at the recipes' batch
    licence: str
    about: str
    identifier: str  # stands before the class word where weights, not words, learn the person
    min_eye_distance_px: float  # smaller faces teach less than this base can draw
    aligned: bool  # photos are aligned by the eyes, as the base was trained
    path: str | None = None  # folder or single-file checkpoint on this machine
    variant: str | None = None  # of the weight files on the hub: "fp16"
    buckets: tuple[tuple[int, int], ...] = ()  # picture shapes (height, width) it was trained on; () = square only

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The picture shapes (height, width) in pixels it is taught with; the first is what it draws by itself."""
        return self.buckets or ((self.resolution_px, self.resolution_px),)

    @property
    def folder(self) -> Path | None:
        """Where it lies on this machine, when that is known without asking the hub."""
        return Path(self.path) if self.path else None

    @property
    def is_single_file(self) -> bool:
        return self.path is not None and self.path.endswith(".safetensors")

    def unknown_words(self, text: str) -> list[str]:
        """Words of `text` this base never learned, each once, in order. Always empty for an open vocabulary."""
        known = vocabulary(self)
        if known is None:
            return []
        words = re.findall(r"[^\W_]+(?:['’][^\W_]+)?", re.sub(r"\{\w*\}|<[^<>\s]*>", " ", text.lower()))
        return [word for word in dict.fromkeys(words) if word not in known]


def _portrait(name: str, folder: Path, resolution_px: int, title: str, about: str, licence: str) -> BaseRow:
    facts = _facts(folder)
    token, vectors = str(facts.get("subject_token", "<subject>")), facts.get("subject_vectors", 4)
    return BaseRow(
        name=name,
        title=title,
        repo=None,
        revision=None,
        family="portrait",
        resolution_px=resolution_px,
        methods=METHODS,
        vram_gb=1.0,
        licence=licence,
        about=about,
        identifier=" ".join([token] * (vectors if isinstance(vectors, int) else 4)),
        min_eye_distance_px=24.0,
        aligned=True,
        path=str(folder),
    )


BASES: dict[str, BaseRow] = {
    row.name: row
    for row in (
        BaseRow(
            name="portrait-128",
            title="Portrait 128 (embedded)",
            repo=None,
            revision=None,
            family="portrait",
            resolution_px=128,
            methods=METHODS,
            vram_gb=1.0,
            licence="Apache-2.0",
            about=(
                "A 128-pixel demonstration of the three methods that runs without a GPU and without downloads. "
                "Professional pictures need SD 1.5 or SDXL and a GPU."
            ),
            identifier="<subject> <subject> <subject> <subject>",
            min_eye_distance_px=24.0,
            aligned=True,
            path=str(EMBEDDED / "portrait-128"),
        ),
        BaseRow(
            name="sd15",
            title="Stable Diffusion 1.5",
            repo="stable-diffusion-v1-5/stable-diffusion-v1-5",
            revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
            family="sd15",
            resolution_px=512,
            methods=METHODS,
            vram_gb=20.0,
            licence="CreativeML OpenRAIL-M",
            about="512-pixel pictures in any style. Needs a GPU: about 20 GB for DreamBooth, 8 GB for the other two.",
            identifier=RARE_TOKEN,
            min_eye_distance_px=60.0,
            aligned=False,
            variant="fp16",
        ),
        BaseRow(
            name="sdxl",
            title="Stable Diffusion XL",
            repo="stabilityai/stable-diffusion-xl-base-1.0",
            revision="462165984030d82259a11f4367a4eed129e94a7b",
            family="sdxl",
            resolution_px=1024,
            methods=("textual_inversion", "lora"),  # see DREAMBOOTH_MAX_PARAMETERS
            vram_gb=24.0,
            licence="CreativeML Open RAIL++-M",
            about="1024-pixel pictures, the best of the three. Needs a GPU with about 24 GB.",
            identifier=RARE_TOKEN,
            min_eye_distance_px=70.0,
            aligned=False,
            variant="fp16",
            buckets=SDXL_BUCKETS,
        ),
    )
}


def find_base(name_or_path: str) -> BaseRow:
    """The row of a registered name, or one made for a diffusers folder or a single-file checkpoint on this machine.

    Raises UserError when it is neither, or of an architecture this project does not know.
    """
    if name_or_path in BASES:
        return BASES[name_or_path]
    path = Path(name_or_path).expanduser()
    if path.is_file() and path.suffix == ".safetensors":
        return _single_file_row(path.resolve())
    if path.is_dir():
        return _folder_row(path.resolve())
    if path.is_file():
        raise UserError(f"{path.name} is not a .safetensors file. Give one, or a diffusers folder.")
    raise UserError(
        f"There is no base model {name_or_path}. Choose {', '.join(BASES)}, or give the path of a diffusers folder or "
        "of a .safetensors checkpoint."
    )


def default_base() -> str:
    """ "sd15" where there is an NVIDIA GPU, else the embedded "portrait-128"."""
    import shutil

    if shutil.which("nvidia-smi") is None and not Path("/proc/driver/nvidia").exists():
        return "portrait-128"  # the cheap answer: importing torch costs seconds
    import torch

    return "sd15" if torch.cuda.is_available() else "portrait-128"


def vocabulary(row: BaseRow) -> frozenset[str] | None:
    """The words a base knows, or None when its vocabulary is open."""
    if row.folder is None or not row.folder.is_dir():
        return None
    words = _facts(row.folder).get("vocabulary")
    return frozenset(str(word).lower() for word in words) if isinstance(words, list) else None


def unknown_words(row: BaseRow, prompt: str) -> list[str]:
    """Words of `prompt` (without its `{subject}`) that this base never learned, each once, in order."""
    return row.unknown_words(prompt)


def completions(row: BaseRow, text: str, limit: int = 8) -> tuple[str, ...]:
    """What could be written next: words this base knows that complete the half-typed last one, else words not said yet.

    () for an open vocabulary: there is nothing that could be listed.
    """
    known = vocabulary(row)
    if known is None:
        return ()
    said = re.findall(r"[^\W_]+(?:['’][^\W_]+)?", re.sub(r"\{\w*\}", " ", text.lower()))
    half = said[-1] if said and text[-1:].isalnum() else ""
    if half and half not in known:
        return tuple(sorted(word for word in known if word.startswith(half)))[:limit]
    return tuple(sorted(known - set(said)))[:limit]


def completed(text: str, completion: str) -> str:
    """`text` with one of its `completions` said: what was half typed is finished, anything else follows a comma."""
    last = re.search(r"[^\W_](?:[^\W_]|['’-])*$", text)
    if last and completion.lower().startswith(last.group().lower()):
        return text[: last.start()] + completion
    kept = text.rstrip().rstrip(",").rstrip()
    return f"{kept}, {completion}" if kept else completion


def _facts(folder: Path) -> dict[str, object]:
    """`likeness.json` of a folder, {} where there is none."""
    file = folder / "likeness.json"
    try:
        stamp = file.stat().st_mtime_ns
    except OSError:
        return {}
    return _read_facts(str(file), stamp)


@lru_cache(maxsize=16)
def _read_facts(file: str, _stamp: int) -> dict[str, object]:
    facts = _read_json(Path(file))
    return facts if isinstance(facts, dict) else {}


def _read_json(file: Path) -> dict[str, object]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file.name} of the base model can't be read ({error}). Restore the folder.") from error


_PIPELINES = {"StableDiffusionPipeline": "sd15", "StableDiffusionXLPipeline": "sdxl"}


def _folder_row(folder: Path) -> BaseRow:
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(
            f"{folder.name} is not a diffusers folder: it has no model_index.json. Give the folder that holds it."
        )
    kind = str(_read_json(index).get("_class_name"))
    if kind not in _PIPELINES:
        raise UserError(
            f"{folder.name} holds a {kind}, which this app can't train. Use a Stable Diffusion 1.5 or SDXL model."
        )
    unet, vae = _read_json(folder / "unet" / "config.json"), _read_json(folder / "vae" / "config.json")
    blocks, sample = vae.get("block_out_channels"), unet.get("sample_size")
    sides = sample if isinstance(sample, list) else [sample, sample]
    assert isinstance(blocks, list) and all(isinstance(side, int) for side in sides), "a diffusers folder states both"
    height, width = (side * 2 ** (len(blocks) - 1) for side in sides)
    resolution_px = min(height, width)
    buckets = () if height == width else ((height, width),)
    if (folder / "likeness.json").is_file():
        return _portrait(str(folder), folder, resolution_px, folder.name, "A local portrait model.", "see its card")
    weights = sum(file.stat().st_size for file in (folder / "unet").glob("diffusion_pytorch_model*.safetensors"))
    return _local_row(folder, _PIPELINES[kind], resolution_px, parameters=weights / 2, buckets=buckets)


def _local_row(
    path: Path, family: str, resolution_px: int, *, parameters: float, buckets: tuple[tuple[int, int], ...] = ()
) -> BaseRow:
    """A row for a model on this machine; what is not in the files is taken from the registry's row of its family."""
    like = next(row for row in BASES.values() if row.family == family)
    small = parameters <= 2 * DREAMBOOTH_MAX_PARAMETERS  # counted as if 2 bytes each: a float32 file has half as many
    return BaseRow(
        name=str(path),
        title=path.stem if path.is_file() else path.name,
        repo=None,
        revision=None,
        family=family,
        resolution_px=resolution_px,
        methods=METHODS if small else like.methods,
        vram_gb=like.vram_gb,
        licence="as its author states",
        about=f"A local model of the family of {like.title}.",
        identifier=like.identifier,
        min_eye_distance_px=like.min_eye_distance_px * resolution_px / like.resolution_px,
        aligned=False,
        path=str(path),
        buckets=buckets or (like.buckets if resolution_px == like.resolution_px else ()),
    )


def _single_file_row(path: Path) -> BaseRow:
    names = _safetensors_names(path)
    if "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight" in names:
        family = "sdxl"
    elif any(name.startswith("cond_stage_model.transformer.") for name in names):
        family = "sd15"
    elif any(name.startswith("cond_stage_model.model.") for name in names):
        raise UserError(f"{path.name} is a Stable Diffusion 2 model, which this app can't train. Use SD 1.5 or SDXL.")
    else:
        raise UserError(
            f"{path.name} is not a whole Stable Diffusion 1.5 or SDXL checkpoint (a LoRA or a part of one?). "
            "Give the checkpoint with UNet, VAE and text encoder."
        )
    like = next(row for row in BASES.values() if row.family == family)
    beside = path.with_suffix("")
    resolution_px = _folder_row(beside).resolution_px if (beside / "model_index.json").is_file() else like.resolution_px
    return _local_row(path, family, resolution_px, parameters=path.stat().st_size / 2)


def _safetensors_names(path: Path) -> frozenset[str]:
    """Tensor names from a safetensors header, without reading a tensor or importing torch."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > 100_000_000:
                raise ValueError("its header is too long")
            return frozenset(json.loads(file.read(length)))
    except (OSError, ValueError, struct.error) as error:
        raise UserError(f"{path.name} is not a readable safetensors file ({error}). Download it again.") from error
