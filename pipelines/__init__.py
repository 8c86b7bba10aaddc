"""Likeness: teach a diffusion model one face three ways, and measure which one looks like the person."""

import os

# PyTorch's threads wait for each other by spinning, several milliseconds long. Where another program takes one of the
# cores, the others spin away the time in which the last one would finish: beside one busy process a training on 2 cores
# took 70 times as long. A thousand turns, which the library itself takes once it knows of too few cores, cost about 6%
# on a quiet machine and leave 2.3 times as long on a busy one. It is read when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
