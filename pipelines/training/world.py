"""Several processes that teach one subject together: each takes a share of every batch, and gradients are added up.

`accelerate launch --multi_gpu --num_processes 2 -m pipelines worker RUN` starts them (also on CPUs); `--processes 2` of
the command line does that. In: the environment that the launcher sets. Out: a `World`; alone, its operations do
nothing. Rows of a step are drawn from (seed, step) in each process alike and then shared out, so the loss is the
same as with one process, up to rounding. The first process alone keeps files, draws and judges.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipelines.core.records import UserError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process's place among the processes that train together; alone it is number 0 of 1."""

    rank: int = 0
    size: int = 1
    local: int = 0  # its number on this machine: which GPU is its own

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """This process's rows of a batch: every `size`-th."""
        return slice(self.rank, rows, self.size)

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Every gradient becomes the sum over all processes, in one message."""
        if self.size == 1:
            return
        import torch

        flat = torch.cat([_gradient(each).reshape(-1) for each in parameters])
        torch.distributed.all_reduce(flat)
        start = 0
        for each in parameters:
            # the gradient gets its parameter's memory layout: fused optimizers read both in memory order
            each.grad = torch.empty_like(each).copy_(flat[start : start + each.numel()].view_as(each))
            start += each.numel()

    def total(self, value: torch.Tensor) -> torch.Tensor:
        if self.size > 1:
            import torch

            value = value.clone()
            torch.distributed.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """True in every process when `flag` is true in one."""
        if self.size == 1:
            return flag
        import torch

        return bool(self.total(torch.tensor(float(flag), device=_device())).item() > 0)

    def from_first(self, work: Callable[[], T]) -> T:
        """Call `work` in the first process only; every process gets the result."""
        if self.size == 1:
            return work()
        import torch

        box = [work() if self.first else None]
        torch.distributed.broadcast_object_list(box, src=0, device=_device())
        return box[0]  # type: ignore[return-value]

    def wait(self) -> None:
        if self.size > 1:
            import torch

            torch.distributed.barrier()


def launched() -> bool:
    """Whether a launcher started this process as one of several. Light."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join(device: str | None = None) -> World:
    """This process's world; the first call connects to the others. Raises UserError with fewer GPUs than processes."""
    if not launched():
        return World()
    import torch
    from accelerate import PartialState

    cpu = device == "cpu" or not torch.cuda.is_available()
    asked = int(os.environ["WORLD_SIZE"])
    if not cpu and asked > torch.cuda.device_count():
        raise UserError(f"{asked} processes need a GPU each, and this machine has {torch.cuda.device_count()}.")
    state = PartialState(cpu=cpu)
    return World(state.process_index, state.num_processes, state.local_process_index)


def current() -> World:
    """The world that this process has joined; alone where it has not."""
    if not launched():
        return World()
    import torch

    if not torch.distributed.is_initialized():
        return World()
    return World(torch.distributed.get_rank(), torch.distributed.get_world_size(), int(os.environ["LOCAL_RANK"]))


def line_command(root: Path, device: str = "") -> list[str]:
    """The command that starts the worker of a data root's queue."""
    on = ["--device", device] if device else []
    return [sys.executable, "-m", "pipelines", "worker", str(root), "--line", *on]


def command(processes: int, run: Path) -> list[str]:
    """The command that starts a worker of so many processes."""
    worker = ["-m", "pipelines", "worker", str(run)]
    if processes == 1:
        return [sys.executable, *worker]
    options = ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *options]
    return [*launch, "--num_processes", str(processes), "--main_process_port", "0", *worker]


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    import torch

    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _device() -> torch.device:
    import torch

    return torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
