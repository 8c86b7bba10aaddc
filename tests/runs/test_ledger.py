"""Laws of the line: first come first served, one taker per job, and nothing in it that the folders don't say."""

from __future__ import annotations

import sqlite3
import threading
import time
from dataclasses import replace

import pytest

from pipelines.core.records import UserError
from pipelines.core.run import Run
from pipelines.runs.ledger import FILE, Entry, Ledger


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
    assert line.is_new()
    known = Entry(0, "x", "r", "drawing", "me", "generate", "queued", 7.5, None)
    looked = time.time()
    add(line, "late")  # came while the folders were being read
    line.rebuild([known], looked=looked)
    assert not line.is_new()
    late, entry = line.unfinished()
    assert late.job == "late" and replace(entry, place=0) == known
    add(line, "x")  # one that was found in its folder before it was put in the line
    assert [each.job for each in line.unfinished()] == ["late", "x"]
    line.forget("run-late")
    line.forget("run-x")
    assert line.unfinished() == []


def test_damage_that_shows_late_is_told_in_words_and_gone_the_next_time(tmp_path):
    line = Ledger(tmp_path)
    for index in range(200):
        add(line, f"job{index}", limit=1000)
    with sqlite3.connect(line.file) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    data = bytearray(line.file.read_bytes())
    data[8192:] = b"\xff" * (len(data) - 8192)  # the header and the layout are whole
    line.file.write_bytes(data)
    with pytest.raises(UserError, match="made anew"):
        line.unfinished()
    assert line.unfinished() == [] and line.is_new()


def test_addresses_take_turns(tmp_path):
    line = Ledger(tmp_path)
    for job, owner in (("a1", "x.here"), ("a2", "y.here"), ("a3", "z.here"), ("b1", "w.there"), ("b2", "w.there")):
        add(line, job, owner=owner)
    assert [entry.job for entry in line.waiting(("train",))] == ["a1", "b1", "a2", "b2", "a3"]
    taken = []
    for _ in range(5):
        entry = line.take(("train",), "1@x")
        assert entry is not None
        taken.append(entry.job)
        line.put(entry.job, "done")
    assert taken == ["a1", "b1", "a2", "b2", "a3"]
    assert line.take(("train",), "1@x") is None
