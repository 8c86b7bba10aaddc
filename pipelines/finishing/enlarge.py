"""Upscaling: enlarge pictures twice, and show where a drawn picture looks wrong.

In: an RGB uint8 (H, W, 3) picture. Out: `load_upscaler(...).enlarge(picture)`, (2H, 2W, 3) uint8, and
`flaw_map(picture)`, a `FlawMap`, which `overlay` makes visible. The embedded network needs no download and no GPU;
Real-ESRGAN and face restorers are loaded with `spandrel` from a .safetensors file that the person has.
Try it:
`python -c "from pipelines.finishing.enlarge import load_upscaler; print(load_upscaler('upscale-x2-mini').row)"`.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipelines.core.files import REPOSITORY
from pipelines.core.records import UserError

if TYPE_CHECKING:
    import torch

    from pipelines.faces.face import Face

NAME = "upscale-x2-mini"
MODEL = REPOSITORY / "models" / NAME
SMALLEST_PX, LARGEST_PX = 16, 4096
PICKLES = (".pth", ".pt", ".ckpt", ".bin", ".pkl", ".pickle")
EXTRA = "spandrel_extra_arches"
# A face restorer gets one upright face in a square of this size; the framing is similar to the embedded base's.
RESTORED_PX = 512
# An output pixel of the enlarger depends on pixels up to 51 away. Tiles overlap by more, so there are no seams.
TILE_PX, OVERLAP_PX = 512, 56


@dataclass(frozen=True)
class UpscalerRow:
    """The data of one upscaler."""

    name: str
    title: str
    licence: str
    scale: int  # of the network; `enlarge` always doubles
    file: str  # name of the weights: in models/ for the embedded one, else in `upscaler_folder`
    source: str  # where to find the weights and their licence
    about: str
    is_restorer: bool = False  # redraws one face, and does not enlarge pictures
    needs_extra: bool = False  # its architecture is in spandrel_extra_arches, whose licences are not free
    path: str | None = None  # the path of a person's own file


UPSCALERS: dict[str, UpscalerRow] = {
    row.name: row
    for row in (
        UpscalerRow(
            name=NAME,
            title="Embedded x2 (CPU)",
            licence="Apache-2.0",
            scale=2,
            file="enlarger.safetensors",
            source="this project, tools/build_upscaler.py",
            about="Learned from portraits of 226 pixels and from what the embedded base's autoencoder does to them.",
        ),
        UpscalerRow(
            name="real-esrgan-x2",
            title="Real-ESRGAN x2+",
            licence="BSD-3-Clause",
            scale=2,
            file="RealESRGAN_x2plus.safetensors",
            source="https://github.com/xinntao/Real-ESRGAN",
            about="Photos of any kind, twice as large. 67 MB, wants a GPU.",
        ),
        UpscalerRow(
            name="real-esrgan-x4",
            title="Real-ESRGAN x4+",
            licence="BSD-3-Clause",
            scale=4,
            file="RealESRGAN_x4plus.safetensors",
            source="https://github.com/xinntao/Real-ESRGAN",
            about="Photos of any kind, four times as large, then halved: the cleanest edges. 67 MB, wants a GPU.",
        ),
        UpscalerRow(
            name="gfpgan-1.4",
            title="GFPGAN 1.4 (faces)",
            licence="Apache-2.0 (parts of its code: NVIDIA's and others' non-commercial terms)",
            scale=1,
            file="GFPGANv1.4.safetensors",
            source="https://github.com/TencentARC/GFPGAN",
            about="Redraws one upright face at 512 pixels. It may change who is seen: compare the score.",
            is_restorer=True,
        ),
        UpscalerRow(
            name="codeformer",
            title="CodeFormer (faces)",
            licence="S-Lab License 1.0: non-commercial use only",
            scale=1,
            file="codeformer.safetensors",
            source="https://github.com/sczhou/CodeFormer",
            about="Redraws one upright face at 512 pixels. It may change who is seen: compare the score.",
            is_restorer=True,
            needs_extra=True,
        ),
    )
}


class Upscaler(Protocol):
    """Makes pictures twice as large. `row` has its data and licence."""

    @property
    def row(self) -> UpscalerRow: ...

    def enlarge(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (2H, 2W, 3) uint8. The same picture gives the same result on one machine."""


@dataclass(frozen=True)
class FlawMap:
    """Where a picture looks drawn and not photographed: a hint, not a proof."""

    values: np.ndarray  # (h, w) float32 in 0..1, one per patch of the picture; 1 = a flaw
    score: float  # 0..1 for the whole picture; lower looks more like a photo

    @property
    def worst(self) -> tuple[float, float]:
        """The middle of the patch with the highest value, (x, y) as fractions of the picture's sides."""
        y, x = np.unravel_index(int(self.values.argmax()), self.values.shape)
        return (float(x) + 0.5) / self.values.shape[1], (float(y) + 0.5) / self.values.shape[0]


# ---------------------------------------------------------------------------------------------------- which there are


def upscaler_folder() -> Path:
    """The folder for weights that are not embedded: $LIKENESS_UPSCALERS, else ~/.likeness/upscalers."""
    return Path(os.environ.get("LIKENESS_UPSCALERS") or "~/.likeness/upscalers").expanduser()


def restorers() -> tuple[str, ...]:
    """Names of face restorers whose weights are on this machine."""
    return tuple(row.name for row in UPSCALERS.values() if row.is_restorer and (upscaler_folder() / row.file).is_file())


def upscalers() -> tuple[str, ...]:
    """Names of upscalers whose weights are on this machine, the embedded one first."""
    there = [row.name for row in UPSCALERS.values() if not row.is_restorer and (upscaler_folder() / row.file).is_file()]
    return tuple(dict.fromkeys((NAME, *there)))


def find_upscaler(name_or_path: str | Path) -> UpscalerRow:
    """The row of a registered name, or a new row for a .safetensors file on this machine. Reads no weights.

    Raises UserError when it is neither, when a registered one's file is missing, or for a pickle.
    """
    row = UPSCALERS.get(str(name_or_path))
    if row is not None:
        if row.name != NAME and not (upscaler_folder() / row.file).is_file():
            raise UserError(
                f"{row.title} is not on this machine. Save its weights as {row.file} in the folder that "
                f"LIKENESS_UPSCALERS names (from {row.source}, licence: {row.licence}), or choose {NAME}."
            )
        return row
    path = Path(name_or_path).expanduser()
    if path.suffix.lower() in PICKLES:
        raise UserError(
            f"{path.name} is a pickle, which can run any code when it is opened, so it is not read. "
            "Get or convert it as .safetensors."
        )
    if path.suffix.lower() == ".safetensors" and path.is_file():
        known = next((each for each in UPSCALERS.values() if each.file == path.name and each.name != NAME), None)
        if known is not None:
            return replace(known, path=str(path))
        return UpscalerRow(
            name=path.stem,
            title=path.name,
            licence="unknown: ask whoever made it",
            scale=0,  # unknown until it is loaded
            file=path.name,
            source="where it came from",
            about="A person's own file.",
            path=str(path),
        )
    raise UserError(
        f"There is no upscaler {path.name}. Choose {', '.join(UPSCALERS)}, or give the path of a .safetensors file."
    )


def load_upscaler(name_or_path: str | Path = NAME, *, device: str | None = None) -> Upscaler:
    """The upscaler of that name or file, ready to enlarge.

    Raises UserError as `find_upscaler` does, and when the file is damaged, of an unknown kind, or when spandrel is not
    installed.
    """
    row = find_upscaler(name_or_path)
    if row.name == NAME:
        return Embedded(row, device=device)
    return Loaded(row, Path(row.path) if row.path else upscaler_folder() / row.file, device=device)


def _checked(image: np.ndarray) -> np.ndarray:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError("The picture to enlarge has to be RGB with 8 bits per channel. Convert it first.")
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST_PX or max(height, width) > LARGEST_PX:
        raise UserError(
            f"The picture has {width} x {height} pixels; {SMALLEST_PX} to {LARGEST_PX} a side can be enlarged. "
            "Choose another size."
        )
    return image


# ------------------------------------------------------------------------------------------------------- embedded


@lru_cache(maxsize=1)
def settings() -> dict[str, dict[str, Any]]:
    """`config.json` beside the embedded weights."""
    try:
        found = json.loads((MODEL / "config.json").read_text())
        assert isinstance(found, dict)
        return found
    except (OSError, ValueError, AssertionError) as error:
        raise UserError(f"config.json is missing from models/{NAME} or damaged. Restore it.") from error


def _weights(file: str) -> dict[str, torch.Tensor]:
    """The embedded weights: stored as float16, returned as float32."""
    from safetensors.torch import load_file

    try:
        return {name: tensor.float() for name, tensor in load_file(MODEL / file).items()}
    except Exception as error:  # safetensors raises errors of its own types for a damaged file
        raise UserError(f"{file} is missing from models/{NAME} or damaged. Restore it.") from error


class Embedded:
    """`models/upscale-x2-mini`. The weights are read at the first picture, so making an object is cheap."""

    def __init__(self, row: UpscalerRow, *, device: str | None = None) -> None:
        self.row = row
        self._device = device
        self._net: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._lock = threading.Lock()

    def enlarge(self, image: np.ndarray) -> np.ndarray:
        from pipelines.core.device import pick_device

        image = _checked(image)
        device = pick_device(self._device).name
        with self._lock:
            if self._net is None:
                self._net = _enlarger(device)
        return _in_tiles(image, lambda part: _run(self._net, part, device), scale=2)


def _enlarger(device: str) -> Callable[[torch.Tensor], torch.Tensor]:
    import torch

    from pipelines.finishing.nets import Enlarger, Shape

    net = Enlarger(Shape(**settings()["enlarger"]))
    _fill(net, "enlarger.safetensors")
    return net.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


@lru_cache(maxsize=1)
def _critic() -> Callable[[torch.Tensor], torch.Tensor]:
    from pipelines.finishing.nets import Critic

    net = Critic(normalised=False)
    _fill(net, "critic.safetensors")
    return net.eval()


def _fill(net: Any, file: str) -> None:
    try:
        net.load_state_dict(_weights(file))
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{file} in models/{NAME} does not fit config.json. Restore both.") from error


def _run(net: Any, image: np.ndarray, device: str) -> np.ndarray:
    """Run a network, which works in 0..1, on uint8 (h, w, 3); returns uint8."""
    import torch

    with torch.inference_mode():
        x = torch.from_numpy(np.array(image)).to(device).permute(2, 0, 1)[None].float() / 255
        y = net(x)[0].float().clamp(0, 1) * 255
        return y.round().byte().permute(1, 2, 0).contiguous().cpu().numpy()  # type: ignore[no-any-return]


def _in_tiles(image: np.ndarray, run: Callable[[np.ndarray], np.ndarray], *, scale: int) -> np.ndarray:
    """`run` on overlapping tiles of a large picture, to limit memory; the middle of each result is used."""
    height, width = image.shape[:2]
    if max(height, width) <= TILE_PX:
        return run(image)
    out = np.empty((height * scale, width * scale, 3), np.uint8)
    inner = TILE_PX - 2 * OVERLAP_PX  # even, like OVERLAP_PX: the enlarger works at half resolution
    for top in range(0, height, inner):
        for left in range(0, width, inner):
            y0, x0 = max(0, top - OVERLAP_PX), max(0, left - OVERLAP_PX)
            bottom, right = min(height, top + inner), min(width, left + inner)
            part = run(image[y0 : bottom + OVERLAP_PX, x0 : right + OVERLAP_PX])
            kept = part[(top - y0) * scale : (bottom - y0) * scale, (left - x0) * scale : (right - x0) * scale]
            out[top * scale : bottom * scale, left * scale : right * scale] = kept
    return out


# ------------------------------------------------------------------------------------------------- through spandrel


class Loaded:
    """A person's own weights, of any architecture that spandrel knows. They are read when the object is made."""

    def __init__(self, row: UpscalerRow, path: Path, *, device: str | None = None) -> None:
        from pipelines.core.device import pick_device

        self._device = pick_device(device).name
        self._model = _load_with_spandrel(row, path, self._device)
        is_restorer = row.is_restorer or self._model.purpose == "FaceSR"
        self.row = replace(row, scale=int(self._model.scale), is_restorer=is_restorer)

    def enlarge(self, image: np.ndarray) -> np.ndarray:
        image = _checked(image)
        height, width = image.shape[:2]
        if self.row.is_restorer:
            if height != width:
                raise UserError(f"{self.row.title} redraws one face in a square picture. Crop the picture square.")
            large = _run(self._model, _resized(image, RESTORED_PX, RESTORED_PX), self._device)
        else:
            large = _in_tiles(image, lambda part: _run(self._model, part, self._device), scale=self.row.scale)
        return _resized(large, 2 * height, 2 * width)


def _load_with_spandrel(row: UpscalerRow, path: Path, device: str) -> Any:
    try:
        import spandrel

        if row.needs_extra:
            import spandrel_extra_arches

            spandrel_extra_arches.install(ignore_duplicates=True)
    except ImportError as error:
        how = "Install requirements-gpu.txt"
        if error.name == EXTRA:
            how = f"Install it with `pip install {EXTRA}==0.2.0` if its terms suit you ({row.licence})"
        raise UserError(
            f"{row.title} needs the package {error.name or 'spandrel'}, which is not here. {how}, or choose {NAME}."
        ) from error
    try:
        model = spandrel.ModelLoader(device=device).load_from_file(path)
    except Exception as error:  # damaged file or unknown architecture: errors of many types
        raise UserError(
            f"{path.name} is no upscaler that can be read. Get it again from {row.source}, or choose {NAME}."
        ) from error
    if not isinstance(model, spandrel.ImageModelDescriptor) or (model.input_channels, model.output_channels) != (3, 3):
        raise UserError(f"{path.name} does not turn one RGB picture into another. Choose an upscaler.")
    return model.float().eval()


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    from PIL import Image

    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


# --------------------------------------------------------------------------------------------------------- flaws


def flaw_map(image: np.ndarray) -> FlawMap:
    """Where a portrait does not look like a photo, by the embedded critic. (H, W, 3) uint8, in the base's framing.

    The picture is first scaled to the size of the critic's training; a larger one does not help. Compare only scores of
    pictures that were made in the same way: another camera or light also raises them.
    """
    import torch

    image = _checked(image)
    told = settings()["critic"]
    height, width = image.shape[:2]
    ratio = told["size_px"] / min(height, width)
    image = _resized(image, round(height * ratio), round(width * ratio))
    with torch.inference_mode():
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        logits = _critic()(x)[0, 0].numpy()
    values = 1 / (1 + np.exp(np.clip(logits, -30, 30)))
    return FlawMap(values.astype(np.float32), float(values.mean()))


OVERLAY_COLOUR = (255, 64, 0)


def overlay(image: np.ndarray, flaws: FlawMap, *, strength: float = 0.65) -> np.ndarray:
    """`image` in grey with the flaws in orange, stronger for higher values: uint8, the same size."""
    from PIL import Image

    height, width = image.shape[:2]
    mask = Image.fromarray((flaws.values * 255).round().astype(np.uint8)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    weight = strength * np.asarray(mask, np.float32)[..., None] / 255
    grey = np.asarray(Image.fromarray(image).convert("L"), np.float32)[..., None].repeat(3, 2)
    base = 0.5 * image.astype(np.float32) + 0.5 * grey
    return np.clip(base * (1 - weight) + np.array(OVERLAY_COLOUR, np.float32) * weight, 0, 255).round().astype(np.uint8)


# ------------------------------------------------------------------------------------------- plain sizes, faces


def fitted(image: np.ndarray, size_px: int) -> np.ndarray:
    """Enlarge a picture (H, W, 3) until its longer side has `size_px`, with Lanczos, which adds no detail. A larger one
    is returned unchanged.
    """
    import cv2

    height, width = image.shape[:2]
    scale = size_px / max(height, width)
    if scale <= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_LANCZOS4))


def sharpened(image: np.ndarray, strength: float = 0.5) -> np.ndarray | str:
    """Sharpen edges: an unsharp mask on the brightness, without halos (no pixel gets brighter or darker than all its
    neighbours) and weak in flat areas, where it would only show pores and grain. RGB uint8 (H, W, 3) in and out.
    """
    import cv2

    if strength <= 0:
        return "Its strength is 0."
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    light = lab[..., 0]
    radius = max(0.8, max(image.shape[:2]) / 400)
    detail = light - cv2.GaussianBlur(light, (0, 0), radius)
    edge = np.clip((np.abs(detail) - 0.6) / 1.4, 0, 1)
    around = np.ones((3, 3), np.uint8)
    lab[..., 0] = np.clip(light + 1.2 * strength * edge * detail, cv2.erode(light, around), cv2.dilate(light, around))
    return np.clip(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB) * 255 + 0.5, 0, 255).astype(np.uint8)


# Positions of the eyes that face restorers expect in a square of 512 px: the framing of FFHQ, their training data.
RESTORED_EYES, RESTORED_APART_PX = (256.0, 240.0), 126.0


def restored(image: np.ndarray, face: Face | None, restore: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | str:
    """The picture with this face redrawn: cut out in the restorers' framing, redrawn, put back with a soft edge; or a
    sentence why not.
    """
    import cv2

    if face is None:
        return "No face was found to restore."
    across = face.eyes[1] - face.eyes[0]
    scale = RESTORED_APART_PX / max(float(np.hypot(*across)), 1e-6)
    angle = float(np.arctan2(across[1], across[0]))
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    there = np.array([[cos, sin, 0.0], [-sin, cos, 0.0]])
    there[:, 2] = np.array(RESTORED_EYES) - there[:, :2] @ face.eyes.mean(0)
    side = (RESTORED_PX, RESTORED_PX)
    crop = cv2.warpAffine(image, there, side, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    redrawn = cv2.resize(restore(crop), side, interpolation=cv2.INTER_AREA)
    oval = cv2.ellipse(np.zeros(side, np.float32), (256, 265), (150, 190), 0, 0, 360, 1.0, -1)
    mask = cv2.GaussianBlur(oval, (0, 0), 18)
    inverse = cv2.invertAffineTransform(there)
    whole = image.shape[1], image.shape[0]
    weight = cv2.warpAffine(mask, inverse, whole)[..., None]
    drawn = cv2.warpAffine(redrawn, inverse, whole, borderMode=cv2.BORDER_REPLICATE)
    return (weight * drawn + (1 - weight) * image + 0.5).astype(np.uint8)
