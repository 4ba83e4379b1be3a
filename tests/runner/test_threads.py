"""How the threads of a process wait for each other, as GNU OpenMP itself says it."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("given", "rounds"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
    ids=["by-default", "spin-count", "wait-policy"],
)
def test_threads_spin_briefly_unless_the_user_says_otherwise(given: dict[str, str], rounds: str):
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | given
    command = [sys.executable, "-c", "import lorsa.runner, torch"]
    said = subprocess.run(
        command, env=environment | {"OMP_DISPLAY_ENV": "VERBOSE"}, capture_output=True, text=True, check=True
    ).stderr
    if "GOMP_SPINCOUNT" not in said:
        pytest.skip("this PyTorch does not use GNU OpenMP")
    assert f"GOMP_SPINCOUNT = '{rounds}'" in said
