"""Laws of hosts that lend a GPU by the slice: no worker is started, the page asks for slice after slice."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from pipelines.runs import jobs, worker
from pipelines.runs.status import read_status, save_status, status
from tests.ui.test_app import base, own_home, services, take_in  # noqa: F401  (fixtures)


@pytest.fixture
def zero(monkeypatch, tmp_path):
    """A host with a stand-in for Hugging Face's `spaces`; the durations that were asked for."""
    asked: list[int] = []

    def gpu(duration: int):
        asked.append(duration)
        return lambda work: work

    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=gpu))
    monkeypatch.setattr(jobs, "watch", lambda root: pytest.fail("no worker can use this GPU"))
    return asked


def test_elsewhere_a_worker_does_the_jobs(monkeypatch):
    from ui.page.gpu import slicer

    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    assert slicer() is None
    monkeypatch.setenv("SPACES_ZERO_GPU", "0")
    assert slicer() is None


def test_a_host_without_its_package_says_what_to_add(monkeypatch):
    from ui.page.gpu import slicer

    monkeypatch.setenv("SPACES_ZERO_GPU", "1")
    monkeypatch.setitem(sys.modules, "spaces", None)  # as if it were not installed
    with pytest.raises(SystemExit, match="Add a line with `spaces` to requirements.txt"):
        slicer()


def test_a_job_that_slices_bring_no_further_is_given_up_in_a_sentence(zero, services, monkeypatch):  # noqa: F811
    from ui.page.refresh import NO_PROGRESS, sliced
    from ui.run.services import Services
    from ui.run.start import start_training

    lent = Services(services.sessions.root)
    lent.resume()
    _, session = lent.sessions.create()
    take_in(session.run)
    session = lent.sessions.choose(session, consent_at="now")
    start_training(lent, session, methods=("lora",), quality="draft")
    kept = iter((1, 2, 2))

    def work_slice(run, *, over):  # time passes and memory is used: neither brings anything
        now = read_status(run)
        save_status(run, replace(now, kept=next(kept), wall_s=now.wall_s + 45, peak_mem_mb=now.wall_s))

    monkeypatch.setattr(worker, "work_slice", work_slice)
    assert len(list(sliced(lent, session))) == 3
    assert (status(session.run).state, status(session.run).reason) == ("failed", NO_PROGRESS)
    assert list(sliced(lent, session)) == []
    start_training(lent, session, methods=("lora",), quality="draft")  # it may be started again
    assert status(session.run).waits


def test_the_page_drives_its_run_slice_by_slice(zero, services, monkeypatch):  # noqa: F811
    from ui.page import gpu
    from ui.page.refresh import sliced
    from ui.run.services import Services
    from ui.run.start import start_training

    lent = Services(services.sessions.root)
    assert lent.slice is not None and zero[-1] == gpu.SLICE_S and gpu.WORK_S < gpu.SLICE_S
    lent.resume()
    capability, session = lent.sessions.create()
    take_in(session.run)
    session = lent.sessions.choose(session, consent_at="now")
    start_training(lent, session, methods=("lora",), quality="draft")
    assert status(session.run).waits and "Keep this page open" in lent.view(capability).safe_to_leave

    done: list[str] = []

    def work_slice(run, *, over):
        assert not over()
        done.append(run.slot)
        state = "done" if len(done) == 3 else "queued"
        save_status(run, replace(read_status(run), state=state, kept=len(done)))

    monkeypatch.setattr(worker, "work_slice", work_slice)
    assert len(list(sliced(lent, session))) == 3 and done == ["", "", ""]
    assert status(session.run).state == "done" and list(sliced(lent, session)) == []
    assert list(sliced(lent, None)) == []


def test_the_page_is_wired_to_drive(zero, services):  # noqa: F811
    import app

    demo, _ = app.build()
    driven = [each for each in demo.fns.values() if (each.name or "").startswith("drive")]
    assert len(driven) == 10, "the opening, training, four ways to draw, two to finish, two above the tabs"
    assert all(each.concurrency_id == "gpu" and each.concurrency_limit == 1 for each in driven)
