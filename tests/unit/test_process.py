"""What a process does to itself before it computes."""

import os
import subprocess
import sys

import pytest
import threadpoolctl

PROGRAM = """
import os
import numpy as np
from ssm_metarl.runtime.process import limit_threads
rng = np.random.default_rng(0)
rows, weights = rng.normal(size=(20, 64)).astype(np.float32), rng.normal(size=(64, 64)).astype(np.float32)
first = rows @ weights
limit_threads()
limit_threads()
print((rows @ weights).tobytes().hex(), first.tobytes().hex(), os.environ.get("OPENBLAS_CORETYPE"))
"""


def products(kernels):
    """After and before `limit_threads`, in a process whose OpenBLAS was told this; and what its children are told."""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    environment |= {"OPENBLAS_NUM_THREADS": "1"} | ({"OPENBLAS_CORETYPE": kernels} if kernels else {})
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_all_processes_compute_with_the_kernels_of_a_machine_without_avx512():
    """However a process begins: told by its environment, or after numpy was imported."""
    after, before, inherited = products(None)
    expected, told, _ = products("Haswell")
    assert told == expected, "what the environment says is kept"
    if before == expected:
        pytest.skip("this processor, or this numpy, has no other kernels")
    assert (after, inherited) == (expected, "Haswell")


def test_kernels_that_somebody_chose_are_kept():
    after, before, inherited = products("Nehalem")
    assert after == before and inherited == "Nehalem"


def test_one_thread_each():
    assert {library["num_threads"] for library in threadpoolctl.threadpool_info()} == {1}
