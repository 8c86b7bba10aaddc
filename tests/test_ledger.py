"""Laws of the line: first come first served, one taker per job, and nothing in it that the folders don't say."""

from __future__ import annotations

import threading

import pytest

from pipelines.ledger import FILE, Ledger
from pipelines.schema import UserError
from pipelines.workspace import Run


def add(line: Ledger, job: str, *, kind: str = "train", owner: str = "a", limit: int = 50) -> None:
    run = Run(line.root / f"run-{job}")
    line.add(run, job=job, owner=owner, kind=kind, estimate_s=None, limit=limit)


def test_first_come_first_served_per_kind(tmp_path):
    line = Ledger(tmp_path)
    for job, kind in (("one", "train"), ("two", "generate"), ("three", "train")):
        add(line, job, kind=kind)
    assert [entry.job for entry in line.unfinished()] == ["one", "two", "three"]
    taken = line.take(("generate",), "1@x")
    assert taken is not None and taken.job == "two" and taken.state == "running" and taken.worker == "1@x"
    assert line.take(("generate",), "1@x") is None
    first, second = line.take(("compare", "train"), "1@x"), line.take(("compare", "train"), "1@x")
    assert first is not None and second is not None and (first.job, second.job) == ("one", "three")
    line.put("one", "done")
    assert [entry.job for entry in line.unfinished()] == ["two", "three"]


def test_a_job_has_one_taker_however_many_ask(tmp_path):
    line = Ledger(tmp_path)
    for index in range(20):
        add(line, f"job{index}")
    taken: list[str] = []
    guard = threading.Lock()

    def take() -> None:
        own = Ledger(tmp_path)
        while (entry := own.take(("train",), "1@x")) is not None:
            with guard:
                taken.append(entry.job)

    takers = [threading.Thread(target=take) for _ in range(6)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join()
    assert sorted(taken) == sorted(f"job{index}" for index in range(20))


def test_only_a_waiting_job_can_be_withdrawn(tmp_path):
    line = Ledger(tmp_path)
    add(line, "one")
    add(line, "two")
    line.take(("train",), "1@x")
    assert not line.withdraw("one", "cancelled") and line.withdraw("two", "cancelled")
    assert not line.withdraw("two", "cancelled")
    assert [entry.job for entry in line.unfinished()] == ["one"]


def test_the_line_has_an_end(tmp_path):
    line = Ledger(tmp_path)
    add(line, "one", limit=1)
    with pytest.raises(UserError, match="takes no more"):
        add(line, "two", limit=1)
    line.take(("train",), "1@x")
    add(line, "two", limit=1)  # one that is being worked on does not wait


def test_a_damaged_or_lost_file_is_replaced_and_rebuilt(tmp_path):
    line = Ledger(tmp_path)
    add(line, "one")
    for end in ("-wal", "-shm"):
        (tmp_path / (FILE + end)).unlink(missing_ok=True)
    (tmp_path / FILE).write_bytes(b"this is no database" * 500)
    assert line.unfinished() == []
    line.rebuild([(Run(tmp_path / "r", "drawing"), "x", "me", "generate", "queued", 1.0)])
    entry = line.unfinished()[0]
    assert (entry.job, entry.run, entry.slot, entry.owner, entry.kind) == ("x", "r", "drawing", "me", "generate")
    line.forget("r")
    assert line.unfinished() == []
