"""Set how OpenMP threads wait between two matrix products. Import this before torch, which starts the threads.

The threads spin for a fraction of a millisecond, unless the environment says otherwise. By default they spin for
longer. On a busy machine each product then waits for a thread that another program has displaced: on 2 cores, steps
took up to ten times as long. Threads that sleep at once would have to be woken for every product.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
