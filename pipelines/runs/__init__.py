"""One job from start to end, the queue of jobs and their workers, studies over many people.

In: a person's photos and a `JobSpec`. Out: a run's folder with everything, and a stream of events.
`compare` does a whole comparison in this process. `jobs.enqueue` puts a job in the queue (`ledger`, a file of SQLite),
the `supervisor` starts a `worker` that takes it, and `status.follow` reads its events and its end. `study` repeats a
comparison over people, seeds and recipes; `replay` repeats one to the bit.
Try it: `for event in compare("photos/", class_word="man", out="run"): print(event.kind, event.text or "")`.
"""

from pipelines.runs.compare import compare

__all__ = ["compare"]
