"""Set before any test module is imported, because OpenMP reads it when torch is: this process and the workers that it
starts must use the same number of threads, or sums are rounded in another order and no two results are equal to the
bit. One, because tiny models gain nothing from threads, and threads of several processes wait for each other.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
