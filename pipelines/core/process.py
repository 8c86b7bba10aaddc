"""Processes of this machine: whether one still runs, even when a later one has got the same process id.

In: a process id. Out: whether it runs, and when it began. Light: no torch.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any


def exists(pid: int) -> bool:
    """True while any process has this id."""
    if os.name == "nt":  # a signal would end it there
        import psutil

        return bool(psutil.pid_exists(pid))
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def birth(pid: int) -> str | None:
    """When a process began, as text that differs for every process with this id. None: it does not run.

    On Linux the boot's id and the kernel's clock ticks, which do not change when the clock is set.
    """
    if sys.platform == "linux":
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return None
        return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"  # Z: a zombie, X: dead
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.Error:
        return None


def lives(pid: Any, born: Any) -> bool:
    """True while the process with this id that began at `born` (see `birth`) runs."""
    return isinstance(pid, int) and isinstance(born, str) and birth(pid) == born


def oom_kills() -> int | None:
    """How many processes Linux ended since it started because memory ran out, in containers too; None elsewhere."""
    with contextlib.suppress(OSError, ValueError):
        counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
        return int(counters["oom_kill"]) if "oom_kill" in counters else None
    return None
