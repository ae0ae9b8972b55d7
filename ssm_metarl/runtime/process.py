"""What every process of a run needs of the operating system: one thread, and an allocator that keeps its pages."""

from __future__ import annotations

import os
import sys

ENVIRONMENT = {
    # float32 products have other bits with two BLAS threads than with one.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # glibc returns large blocks to the system and faults them in again; benchmarks/model.py shows what that costs here.
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "67108864",
}
"""Environment variables of the driver and of every worker; they are read once, when a process starts."""


def prepare_process() -> None:
    """Starts this program anew, once, if it lacks any of `ENVIRONMENT`. Call it before numpy and torch are imported."""
    if all(name in os.environ for name in ENVIRONMENT):
        return
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], ENVIRONMENT | dict(os.environ))


def limit_threads() -> None:
    """One torch thread and one BLAS thread in this process, whatever its environment said when it began."""
    import threadpoolctl
    import torch

    torch.set_num_threads(1)
    threadpoolctl.threadpool_limits(1)
