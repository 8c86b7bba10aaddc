"""Runs in every measured process, and records when it updated its weights. Python imports this file by itself.

With LIKENESS_TIMINGS naming a folder, every process that imports torch's optimizers appends lines to
`<folder>/<pid>.jsonl`: {"t", "cpu", "rss_mb"} after each `optimizer.step()`, and one with "end" when it ends. `t` is
wall-clock time, `cpu` the process's own processor seconds (all threads), `rss_mb` its peak resident memory. The hook is
torch's own (`register_optimizer_step_post_hook`), the same for all programs; a record takes about 20 microseconds.

With LIKENESS_STAND_INS naming a folder, the modules in it can be imported, but only after transformers has found that
torchvision is missing: it would take the replacement for a complete torchvision.
"""

import importlib.abc
import importlib.util
import os
import sys


class _After(importlib.abc.MetaPathFinder):
    """Calls `then(module)` immediately after the import of module `name`."""

    def __init__(self, name, then):
        self.name, self.then = name, then

    def find_spec(self, name, path, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            self.then(module)

        spec.loader.exec_module = exec_module
        return spec


def _note_updates(optimizers):
    import atexit
    import json
    import resource
    import time

    mine = os.getpid()
    out = open(os.path.join(os.environ["LIKENESS_TIMINGS"], f"{mine}.jsonl"), "a", buffering=1)  # noqa: SIM115

    def note(**more):
        if os.getpid() == mine:  # a forked process is not the one that trains
            rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
            out.write(json.dumps({"t": time.time(), "cpu": time.process_time(), "rss_mb": rss_mb, **more}) + "\n")

    optimizers.register_optimizer_step_post_hook(lambda *_: note())
    atexit.register(note, end=True)


def _stand_in(transformers_utils):
    assert not transformers_utils.is_torchvision_available()  # transformers keeps this answer
    sys.path.append(os.environ["LIKENESS_STAND_INS"])


if os.environ.get("LIKENESS_TIMINGS"):
    sys.meta_path.insert(0, _After("torch.optim.optimizer", _note_updates))
if os.environ.get("LIKENESS_STAND_INS"):
    sys.meta_path.insert(0, _After("transformers.utils.import_utils", _stand_in))
