"""One job from start to end, jobs on disk and their queue, studies over many people.

In: a person's photos and a `JobSpec`. Out: a run's folder with everything, and a stream of events.
`compare` does a whole comparison in this process; `enqueue` and `start` of `runs.jobs` give it to a worker;
`runs.study` repeats it over people, seeds and recipes; `runs.replay` repeats one to the bit.
Try it: `for event in compare("photos/", class_word="man", out="run"): print(event.kind, event.text or "")`.
"""

from pipelines.runs.compare import compare

__all__ = ["compare"]
