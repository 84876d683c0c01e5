"""How the threads of a product wait for the next one. To be imported before torch, which starts them.

They spin for a fraction of a millisecond, unless the environment says otherwise. Threads that spin for long (the
default) turn every short product into a wait for one that another program has pushed aside: on a busy 2-core machine
steps took up to ten times as long. Ones that sleep at once have to be woken for every product.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
