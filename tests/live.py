"""The app on a free port, for tests that meet it as a program or a browser does.

In: what the environment says besides. Out: the address. The runs and the uploads lie in folders of their own.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.runs.jobspec import JobSpec


@contextlib.contextmanager
def live_app(
    folders: pytest.TempPathFactory, *, teach: Callable[[JobSpec], JobSpec] | None = None, **environment: str | Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(address, how it was launched). `teach` changes what is asked of a training before it is put in the line."""
    from pipelines.runs import jobs

    real_enqueue = jobs.enqueue

    def enqueue(run, spec=None, **who):
        if spec is not None and spec.kind not in ("generate", "finish") and teach is not None:
            spec = teach(spec)
        real_enqueue(run, spec, **who)

    folder = {name: folders.mktemp(name) for name in ("runs", "uploads")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setenv("LIKENESS_HOME", str(folder["runs"]))
        patch.setenv("GRADIO_TEMP_DIR", str(folder["uploads"]))
        for name, value in environment.items():
            patch.setenv(name, str(value))
        patch.setattr(jobs, "enqueue", enqueue)
        import app

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        app.prepare_environment()
        demo, launch = app.build()
        demo.launch(**launch, prevent_thread_lock=True, server_name="127.0.0.1", server_port=port, quiet=True)
        try:
            yield f"http://127.0.0.1:{port}", launch
        finally:
            demo.close()
