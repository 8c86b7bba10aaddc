"""The machine: which device and number format to compute in and why, noise that is the same everywhere, peak memory.

In: nothing, or a preferred device name. Out: a `Device` whose `reason` can be shown to a person.
Try it: `python -c "from pipelines.core.device import pick_device; print(pick_device())"`.
"""

from __future__ import annotations

import contextlib
import gc
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.core.records import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Device:
    """Where and in which number format to compute, with the reason in words."""

    name: str  # "cpu", "cuda", "cuda:1", "mps"
    dtype: str  # a torch dtype's name: "bfloat16" or "float32"
    reason: str

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    @property
    def kind(self) -> str:
        """ "cpu", "cuda" or "mps": the name without the card's number."""
        return self.name.split(":")[0]

    def autocast(self, enabled: bool = True) -> contextlib.AbstractContextManager[object]:
        """Mixed precision where `dtype` is a half format, else nothing."""
        import torch

        if not enabled or self.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.kind, dtype=self.torch_dtype)


def _cpu_has_matrix_units() -> bool:
    """Whether this CPU multiplies bfloat16 in matrix units (AMX).

    AVX-512 BF16 alone does not pay: one training step of the embedded base (12.9 M parameters, batch 8, one thread of a
    Sapphire Rapids without AMX, torch 2.13) took 0.40 s in float32 and 0.60 s under bfloat16 autocast, batch 32 1.26 s
    and 1.86 s; convolutions, matrix products and norms were all slower.
    """
    import torch

    found = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(found is not None and found())


def pick_device(preferred: str | None = None) -> Device:
    """The best device here, or `preferred` ("cpu", "cuda", "cuda:1", "mps").

    Raises UserError when `preferred` is not on this machine.
    """
    import torch

    cuda = torch.cuda.is_available()
    mps = getattr(torch.backends, "mps", None) is not None and torch.backends.mps.is_available()
    name = preferred or ("cuda" if cuda else "mps" if mps else "cpu")
    kind = name.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise UserError(f"Unknown device {name}. Choose cpu, cuda or mps.")
    if (kind == "cuda" and not cuda) or (kind == "mps" and not mps):
        raise UserError(f"This machine has no {kind} device. Choose cpu, or leave the device out.")
    if kind == "cuda":
        title = torch.cuda.get_device_name(name)
        if torch.cuda.get_device_capability(name)[0] >= BFLOAT16_FROM:
            return Device(name, "bfloat16", f"{title}: bfloat16 is native and needs no loss scaling")
        return Device(name, "float32", f"{title} has no native bfloat16, and float16 training can overflow")
    if kind == "mps":
        return Device(name, "float32", "Apple GPU: float32, since half formats there still miss operators of training")
    if _cpu_has_matrix_units():
        return Device(name, "bfloat16", "CPU with AMX: its matrix units multiply bfloat16 several times faster")
    return Device(name, "float32", "CPU without AMX: float32 was measured 1.5 times as fast as bfloat16")


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Context without garbage collection. While thousands of modules are imported the collector runs often and finds
    nothing: 1 s of the 5.2 s that loading the embedded base took in a new process.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


BFLOAT16_FROM = 8  # CUDA's compute capability


def free_memory_gb(device: Device | None = None) -> float | None:
    """Free memory of the GPU, what this process already holds counted as free; None without an NVIDIA GPU.

    Before anything is loaded (`device` None) the driver's tool is asked, so that torch need not be imported.
    """
    torch = sys.modules.get("torch")
    if device is not None:
        if device.kind != "cuda" or torch is None:
            return None
        free, total = torch.cuda.mem_get_info(device.name)
        index = torch.device(device.name).index  # a name without a number is refused here; None is the card in use
        allowed = total * torch.cuda.get_per_process_memory_fraction(index)  # PyTorch's limit for this process
        return float(min(free + torch.cuda.memory_reserved(device.name), allowed)) / 1e9
    free_mib = _asked_of_driver("memory.free")
    return None if free_mib is None else free_mib * 2**20 / 1e9


def gpu_dtype() -> str:
    """The format that `pick_device` will choose on this machine's GPU, before torch is imported."""
    capability = _asked_of_driver("compute_cap")
    return "float32" if capability is not None and capability < BFLOAT16_FROM else "bfloat16"


def _asked_of_driver(what: str) -> float | None:
    """A number that nvidia-smi tells of the first GPU; None without a GPU or an answer."""
    import shutil
    import subprocess

    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True)
        return float(done.stdout.split()[0])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None


# Compiling a denoiser's repeated blocks takes about a minute and saves 10-25% of each step. A step with its backward
# pass is at least twice the forward arithmetic: 15,000 TFLOP forward take five minutes or more at 100 TFLOP/s, and 15%
# of that is about the minute. These are estimates that nobody has measured yet; `benchmarks/gpu_step.py` would. More
# than this have: SDXL at "best" with every method and with textual inversion at "good", textual inversion of SD 1.5 at
# "best", Z-Image always.
COMPILE_FROM_TFLOP = 15_000.0


def tune(device: Device) -> None:
    """Let PyTorch multiply float32 numbers (the VAE, weights in training) as TF32 on an NVIDIA GPU.

    TF32 keeps three digits, more than bfloat16 keeps of all other numbers. cuDNN's search for the fastest algorithm
    stays off: it may choose another one in each run, and a resumed training would no longer be equal to the bit.
    """
    if device.kind != "cuda":
        return
    import torch

    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True


def is_worth_compiling(device: Device, forward_tflop: float) -> bool:
    """Whether compiling the denoiser's repeated blocks saves more time than it takes, for a training with so much
    forward arithmetic.

    It depends on recipe and base alone and on no measured time: a resumed run must decide as the first one did. Only on
    NVIDIA GPUs with native bfloat16, and where Triton is installed. LIKENESS_COMPILE=0 switches it off.
    """
    import importlib.util
    import os

    return (
        device.kind == "cuda"
        and device.dtype == "bfloat16"
        and forward_tflop >= COMPILE_FROM_TFLOP
        and os.environ.get("LIKENESS_COMPILE", "1") != "0"
        and importlib.util.find_spec("triton") is not None
    )


def derived_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers, e.g. (seed, step): neighbours give unrelated streams."""
    import numpy as np

    words = np.random.SeedSequence([part & 0xFFFFFFFFFFFFFFFF for part in parts]).generate_state(1, np.uint64)
    return int(words[0]) & 0x7FFFFFFFFFFFFFFF


def noise(seed: int, shape: Sequence[int], *, device: str | torch.device = "cpu") -> torch.Tensor:
    """Standard normal float32 noise of `shape`. Made on the CPU, so every device and method sees the same numbers."""
    import torch

    generator = torch.Generator("cpu").manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32).to(device)


def peak_memory_mb() -> float:
    """Peak memory in MB of this process so far: CUDA's own count where CUDA is in use, else resident memory."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated()) / 1e6
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return float(getattr(psutil.Process().memory_info(), "peak_wset", psutil.Process().memory_info().rss)) / 1e6
    unit = 1.0 if sys.platform == "darwin" else 1024.0  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def machine() -> str:
    """Processor and core count, as a reader of figures would name them."""
    import os
    from pathlib import Path

    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{os.cpu_count()} cores of {name}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """While open, diffusers and transformers show no progress bars and log errors only."""
    import diffusers
    import transformers

    loggers = (diffusers.utils.logging, transformers.utils.logging)
    before = [(logger.is_progress_bar_enabled(), logger.get_verbosity()) for logger in loggers]
    for logger in loggers:
        logger.disable_progress_bar()
        logger.set_verbosity_error()
    try:
        yield
    finally:
        for logger, (shown, verbosity) in zip(loggers, before, strict=True):
            logger.set_verbosity(verbosity)
            if shown:
                logger.enable_progress_bar()


def threads() -> int:
    """PyTorch's number of CPU threads. With another number sums are rounded differently: results are not bit-equal."""
    import torch

    return torch.get_num_threads()


def versions() -> dict[str, str | None]:
    """Versions of Python and of every package that can change the results; None for packages that are not installed."""
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
