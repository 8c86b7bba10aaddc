"""The base models, one row each, and how to get the row for a name or a path. Light: no torch.

In: a registered name ("portrait-128", "sd15", ...), or the path of a diffusers folder or a single-file checkpoint.
Out: a `BaseRow`. Try it: `python -c "from pipelines.bases.registry import find_base; print(find_base('sd15'))"`.

A single-file checkpoint has no tokenizer and no configuration. They are read from a folder of the same name beside it
(`photoreal.safetensors` -> `photoreal/`, with the JSON and tokenizer files of a diffusers folder), else from the cache
of the Hugging Face hub.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from pipelines.bases.architectures import FAMILIES, family_of_pipeline
from pipelines.bases.face_adapter import SD15, SDXL, FaceAdapter
from pipelines.core.files import REPOSITORY, file_sha256, sha
from pipelines.core.records import LEARNS, METHOD_ROWS, MethodRow, UserError

EMBEDDED = REPOSITORY / "models"
PROJECTOR = "identity_projector.safetensors"  # of a portrait base: a face's descriptor -> vectors beside its words
RARE_TOKEN = "ohwx"  # a rare token of CLIP's vocabulary, with almost no meaning of its own
# Full fine-tuning keeps float32 weights, gradients and two moments (16 bytes per parameter): 14 GB for SD 1.5's 0.86 B
# parameters, 41 GB for SDXL's 2.6 B. A base above this size is trained with all weights only when the method is named.
ALL_WEIGHTS_MAX_PARAMETERS = 1.2e9

# Only upright shapes: selfies are upright, and the surroundings in a wide photo need not be learned. SD 1.5 itself
# learned squares: these have at most their area, and sides divisible by 64, as its UNet and VAE halve them six times.
SD15_BUCKETS = ((512, 512), (576, 448), (640, 384))
# Upright shapes that SDXL was trained on (Podell et al. 2023, appendix I).
SDXL_BUCKETS = ((1024, 1024), (1152, 896), (1216, 832))
Z_IMAGE_BUCKETS = ((1024, 1024), (1152, 896), (1248, 832))  # upright shapes of about 1 megapixel in its demo

SMALL_UP_TO_GB = 2.0  # see `BaseRow.is_small`


@dataclass(frozen=True)
class Footprint:
    """What a base needs of a GPU's memory, counted by benchmarks/count_memory.py."""

    denoiser_m: float  # parameters, millions
    text_m: float
    vae_m: float
    lora_m_per_rank: float  # LoRA on attention and feed-forward layers
    activations_gb: float  # kept for the backward pass per picture of `resolution_px`, in bfloat16
    checkpointed_gb: float  # the same with gradient checkpointing, with the block that is computed again
    decode_gb: float  # used by the VAE while it decodes one picture, in float32
    drawing_gb: float  # used by the denoiser per row of a batch without training, in bfloat16


@dataclass(frozen=True)
class BaseRow:
    """One base model. `family` names the code that runs it; everything else is data."""

    name: str
    title: str
    repo: str | None  # on the Hugging Face hub; None = on this machine
    revision: str | None  # full commit hash, so that always the same files are loaded
    family: str  # one of `architectures.FAMILIES`
    resolution_px: int
    vram_gb: float  # GPU memory to train its largest `usual` method with the recipes' batch size
    licence: str
    about: str
    identifier: str  # the word before the class word, for methods that train weights and no new word
    min_eye_distance_px: float  # smaller faces have less detail than this base can draw
    aligned: bool  # photos are aligned by the eyes, as in the base's own training
    path: str | None = None  # folder or single-file checkpoint on this machine
    variant: str | None = None  # of the weight files on the hub: "fp16"
    buckets: tuple[tuple[int, int], ...] = ()  # picture shapes (height, width) for training; () = square only
    footprint: Footprint | None = None  # None: not counted
    # TFLOP of the denoiser's forward pass for one picture of `resolution_px`, counted by torch.utils.flop_counter on
    # the published configuration; None: not counted
    forward_tflop: float | None = None
    learns: tuple[str, ...] = LEARNS  # what can be trained, as in `MethodRow.learns`
    # (repo, revision) of a LoRA with which it draws in four steps; see pipelines.methods.drafts
    draft_lora: tuple[str, str] | None = None
    # The judge whose face descriptor is an input of this base ("dlib"); None: it has no such input. As pictures are
    # then drawn from this judge's own descriptor, it never scores them alone.
    face_encoder: str | None = None
    face_adapter: FaceAdapter | None = None  # weights beside it through which it takes pictures of a face

    def _fits(self, method: MethodRow) -> bool:
        return set(method.learns) <= set(self.learns) if method.learns else self.takes_a_face

    @property
    def takes_a_face(self) -> bool:
        """True where it draws a face without training: by itself, or because its adapter is on this machine."""
        return self.face_encoder is not None or (
            self.face_adapter is not None and self.face_adapter.find(self.folder) is not None
        )

    def why_not(self, method: str) -> str:
        """Why a method is not among `offered`, and what to do."""
        fetch = self.face_adapter is not None and method in METHOD_ROWS and not METHOD_ROWS[method].learns
        if fetch and self.face_adapter is not None:
            return (
                f"What {self.title} needs for {method} is not on this machine. Get it with: {self.face_adapter.fetch}"
            )
        return f"{self.title} does not offer {method}. Choose one of: {', '.join(self.offered)}."

    @property
    def offered(self) -> tuple[str, ...]:
        """Every method that this base can be used with."""
        return tuple(each.name for each in METHOD_ROWS.values() if self._fits(each))

    @property
    def trainable(self) -> tuple[str, ...]:
        """Those of `offered` that train."""
        return tuple(name for name in self.offered if METHOD_ROWS[name].learns)

    @property
    def methods(self) -> tuple[str, ...]:
        """Those of `trainable` that are not a combination of others."""
        return tuple(name for name in self.trainable if METHOD_ROWS[name].usual)

    @property
    def usual(self) -> tuple[str, ...]:
        """Those of `methods` that are trained when no method is named."""
        huge = self.footprint is not None and 1e6 * self.footprint.denoiser_m > ALL_WEIGHTS_MAX_PARAMETERS
        return tuple(name for name in self.methods if not (huge and "weights" in METHOD_ROWS[name].learns))

    @property
    def instant(self) -> tuple[str, ...]:
        """Those of `offered` that train nothing and are used when no method is named."""
        return tuple(name for name in self.offered if METHOD_ROWS[name].usual and not METHOD_ROWS[name].learns)

    @property
    def compared(self) -> tuple[str, ...]:
        """The methods of a comparison when no method is named."""
        return (*self.instant, *self.usual)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The picture shapes (height, width) in pixels for training; the first is also the default for drawing."""
        return self.buckets or ((self.resolution_px, self.resolution_px),)

    @property
    def guidance(self) -> float:
        """The guidance for a prompt without a style."""
        return FAMILIES[self.family].prompt_guidance

    @property
    def is_small(self) -> bool:
        """True when all methods fit into memory together: they train side by side, and drawing uses larger batches."""
        return self.vram_gb <= SMALL_UP_TO_GB

    @property
    def own_scheduler(self) -> bool:
        """True when it draws only with its own scheduler: flow models can't use those of diffusion models."""
        return not FAMILIES[self.family].schedulers

    @property
    def sizes_px(self) -> tuple[int, ...]:
        """Sides in pixels of square pictures that are offered besides its own."""
        return FAMILIES[self.family].sizes_px

    @property
    def folder(self) -> Path | None:
        """Its folder on this machine, if that is known without the hub's cache."""
        return Path(self.path) if self.path else None

    @property
    def is_single_file(self) -> bool:
        return self.path is not None and self.path.endswith(".safetensors")

    def unknown_words(self, text: str) -> list[str]:
        """Words of `text` that this base never learned, each once, in order. Always empty for an open vocabulary."""
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
        vram_gb=1.0,
        licence=licence,
        about=about,
        identifier=" ".join([token] * (vectors if isinstance(vectors, int) else 4)),
        min_eye_distance_px=24.0,
        aligned=True,
        path=str(folder),
        face_encoder="dlib" if (folder / PROJECTOR).is_file() else None,
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
            face_encoder="dlib",
        ),
        BaseRow(
            name="sd15",
            title="Stable Diffusion 1.5",
            repo="stable-diffusion-v1-5/stable-diffusion-v1-5",
            revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
            family="sd15",
            resolution_px=512,
            vram_gb=20.0,
            licence="CreativeML OpenRAIL-M",
            about="512-pixel pictures in any style. Needs a GPU: about 20 GB for DreamBooth, 8 GB for the other two.",
            identifier=RARE_TOKEN,
            min_eye_distance_px=60.0,
            aligned=False,
            variant="fp16",
            buckets=SD15_BUCKETS,
            footprint=Footprint(860, 123, 84, 0.42, 0.93, 0.22, 2.2, 0.07),
            forward_tflop=0.80,
            # Name and revision are from several people's lock files and published hub caches, not from the hub itself.
            draft_lora=("latent-consistency/lcm-lora-sdv1-5", "cf2fced511dbe7e26c8d1d397e728fbab875db4b"),
            face_adapter=SD15,
        ),
        BaseRow(
            name="sdxl",
            title="Stable Diffusion XL",
            repo="stabilityai/stable-diffusion-xl-base-1.0",
            revision="462165984030d82259a11f4367a4eed129e94a7b",
            family="sdxl",
            resolution_px=1024,
            vram_gb=24.0,
            licence="CreativeML Open RAIL++-M",
            about=(
                "1024-pixel pictures, the best of the three. Needs a GPU: about 60 GB for DreamBooth, 24 GB for the "
                "other two."
            ),
            identifier=RARE_TOKEN,
            min_eye_distance_px=70.0,
            aligned=False,
            variant="fp16",
            buckets=SDXL_BUCKETS,
            footprint=Footprint(2567, 818, 84, 2.66, 6.77, 0.73, 8.6, 0.17),
            forward_tflop=6.8,
            draft_lora=("latent-consistency/lcm-lora-sdxl", "a18548dd4956b174ec5b0d78d340c8dae0a129cd"),
            face_adapter=SDXL,
        ),
        BaseRow(
            name="z-image",
            title="Z-Image",
            repo="Tongyi-MAI/Z-Image",
            # From several people's published hub caches and lock files, not from the hub itself.
            revision="04cc4abb7c5069926f75c9bfde9ef43d49423021",
            family="z_image",
            resolution_px=1024,
            learns=("adapters",),
            # 12 GB of weights in bfloat16, and during the merge a float32 copy beside the trained one
            vram_gb=48.0,
            licence="Apache-2.0",
            about="1024-pixel pictures by a newer, larger model, taught with LoRA. Needs a GPU with about 48 GB.",
            identifier=RARE_TOKEN,
            min_eye_distance_px=70.0,
            aligned=False,
            buckets=Z_IMAGE_BUCKETS,
            footprint=Footprint(6155, 4022, 84, 2.48, 35.75, 2.19, 8.6, 0.51),
            forward_tflop=56.0,
        ),
    )
}


def base_sha256(row: BaseRow) -> str | None:
    """A hash over the weight files of a base on this machine; None for a base of the hub, which has its revision."""
    if row.repo is not None or row.folder is None:
        return None
    files = [row.folder] if row.folder.is_file() else sorted(row.folder.rglob("*.safetensors"))
    return sha([[path.name, file_sha256(path)] for path in files])


def find_base(name_or_path: str) -> BaseRow:
    """The row of a registered name, or a new row for a diffusers folder or a single-file checkpoint on this machine.

    Raises UserError when it is none of them, or its architecture is unknown here.
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
    """ "sd15" on a machine with an NVIDIA GPU, else the embedded "portrait-128"."""
    import shutil

    if shutil.which("nvidia-smi") is None and not Path("/proc/driver/nvidia").exists():
        return "portrait-128"  # quick: importing torch takes seconds
    import torch

    return "sd15" if torch.cuda.is_available() else "portrait-128"


def vocabulary(row: BaseRow) -> frozenset[str] | None:
    """The words that a base knows, or None when its vocabulary is open."""
    if row.folder is None or not row.folder.is_dir():
        return None
    words = _facts(row.folder).get("vocabulary")
    return frozenset(str(word).lower() for word in words) if isinstance(words, list) else None


def unknown_words(row: BaseRow, prompt: str) -> list[str]:
    """Words of `prompt` (without `{subject}`) that this base never learned, each once, in order."""
    return row.unknown_words(prompt)


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


def _folder_row(folder: Path) -> BaseRow:
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(
            f"{folder.name} is not a diffusers folder: it has no model_index.json. Give the folder that holds it."
        )
    kind = str(_read_json(index).get("_class_name"))
    family = family_of_pipeline(kind)
    if family is None:
        raise UserError(
            f"{folder.name} holds a {kind}, which this app can't train. Use a Stable Diffusion 1.5, SDXL or Z-Image "
            "model."
        )
    if not (folder / "unet").is_dir():  # a transformer's configuration has no picture size, its VAE's has
        side = _read_json(folder / "vae" / "config.json").get("sample_size")
        own = side if isinstance(side, int) else _like(family).resolution_px
        return _local_row(folder, family, own, parameters=math.inf)
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
    return _local_row(folder, family, resolution_px, parameters=weights / 2, buckets=buckets)


def _local_row(
    path: Path, family: str, resolution_px: int, *, parameters: float, buckets: tuple[tuple[int, int], ...] = ()
) -> BaseRow:
    """A row for a model on this machine; values that its files do not have are those of its family's registry row."""
    like = _like(family)
    counted = like.footprint if resolution_px == like.resolution_px else None
    if counted is not None and parameters:  # distilled models have fewer parameters
        counted = replace(counted, denoiser_m=min(counted.denoiser_m, parameters / 1e6))
    return BaseRow(
        name=str(path),
        title=path.stem if path.is_file() else path.name,
        repo=None,
        revision=None,
        family=family,
        resolution_px=resolution_px,
        learns=like.learns,
        vram_gb=like.vram_gb,
        licence="as its author states",
        about=f"A local model of the family of {like.title}.",
        identifier=like.identifier,
        min_eye_distance_px=like.min_eye_distance_px * resolution_px / like.resolution_px,
        aligned=False,
        path=str(path),
        buckets=buckets or (like.buckets if resolution_px == like.resolution_px else ()),
        footprint=counted,
        forward_tflop=like.forward_tflop if resolution_px == like.resolution_px else None,
        draft_lora=like.draft_lora,
        face_adapter=like.face_adapter,
    )


def _like(family: str) -> BaseRow:
    """The registry's row of a family."""
    return next(row for row in BASES.values() if row.family == family)


def _single_file_row(path: Path) -> BaseRow:
    names = _safetensors_names(path)
    families = [
        family
        for family, each in reversed(FAMILIES.items())
        if each.single_file is not None and any(name.startswith(each.single_file) for name in names)
    ]
    if families:
        family = families[0]
    elif any(name.startswith("cond_stage_model.model.") for name in names):
        raise UserError(f"{path.name} is a Stable Diffusion 2 model, which this app can't train. Use SD 1.5 or SDXL.")
    elif any(name.endswith("cap_embedder.1.weight") for name in names):
        raise UserError(f"{path.name} is the transformer of a Z-Image model alone. Give the model's diffusers folder.")
    else:
        raise UserError(
            f"{path.name} is not a whole Stable Diffusion 1.5 or SDXL checkpoint (a LoRA or a part of one?). "
            "Give the checkpoint with UNet, VAE and text encoder."
        )
    like = _like(family)
    beside = path.with_suffix("")
    resolution_px = _folder_row(beside).resolution_px if (beside / "model_index.json").is_file() else like.resolution_px
    return _local_row(path, family, resolution_px, parameters=path.stat().st_size / 2)


def _safetensors_names(path: Path) -> frozenset[str]:
    """The tensor names in a safetensors header; reads no tensor and does not import torch."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            return frozenset(file.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path.name} is not a readable safetensors file ({error}). Download it again.") from error
