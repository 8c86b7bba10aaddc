"""Likeness: teach a diffusion model one face three ways, and measure which one looks like the person.

One package per part of the work; each `__init__.py` says what goes in and out. A comparison uses them in this order:

    runs        a job from start to end, the queue and the workers: `jobs.enqueue` -> `worker` -> `status.follow`
    photos      decode (`decode.decode`), check and split a person's photos
    bases       load a base; its encoders, its training loss (`objective`) and its sampler
    methods     textual inversion, DreamBooth, LoRA, zero-shot: which tensors train, and how they are saved
    training    the training loop (`loop`), its batches, checkpoints and previews
    generation  draw pictures with what was learned
    faces       find faces; the recognisers ("judges")
    evaluation  scores (`references.score_of`), other measures of pictures, friends' votes
    reports     the report of a comparison or a study
    finishing   prepare a picture for use, and mark it as drawn by an AI

`core` has what all of them share, `cli` is the command line. Add a base, a method or a style: docs/extend.md.
"""

import os

# PyTorch's threads wait for each other by spinning, several milliseconds long. Where another program takes one of the
# cores, the others spin away the time in which the last one would finish: beside one busy program training on 2 cores
# took 70 times as long. A thousand turns, which libgomp takes by itself where there are more threads than cores, cost
# about 6% on a quiet machine and leave about twice as long on a busy one (docs/reliability.md). It is read when torch
# is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
