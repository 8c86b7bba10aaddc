"""Likeness: teach a diffusion model one face three ways, and measure which one looks like the person."""

import os

# PyTorch's threads wait for each other by spinning, several milliseconds long. Where another program takes one of the
# cores, the others spin away the time in which the last one would finish: beside one busy program training on 2 cores
# took 70 times as long. A thousand turns, which libgomp takes by itself where there are more threads than cores, cost
# about 6% on a quiet machine and leave about twice as long on a busy one (docs/reliability.md). It is read when torch
# is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
