"""Where several processes share the tests (`pytest -n 2`), each computes with one thread: they would else wait."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
