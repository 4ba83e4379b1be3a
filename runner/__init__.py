"""From a config to a recorded result. Read job.py first: it tells the story in order."""

import os

# GNU OpenMP's threads spin while they wait for each other. On cores that other programs use too, its default of 300,000
# rounds makes an update some ten times slower; this is as fast on an idle machine. It is read when PyTorch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
