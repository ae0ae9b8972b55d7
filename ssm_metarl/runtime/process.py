"""What every process of a run needs: one thread, the same BLAS kernels, and an allocator that keeps its pages."""

from __future__ import annotations

import ctypes
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

_KERNELS = "OPENBLAS_CORETYPE"
_AVX512 = ("SkylakeX", "Cooperlake", "SapphireRapids")


def prepare_process() -> None:
    """Starts this program anew, once, if it lacks any of `ENVIRONMENT`. Call it before numpy and torch are imported."""
    if all(name in os.environ for name in ENVIRONMENT):
        return
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], ENVIRONMENT | dict(os.environ))


def limit_threads() -> None:
    """One torch thread and one BLAS thread in this process, whatever its environment said when it began; no AVX-512."""
    import threadpoolctl
    import torch

    torch.set_num_threads(1)
    _leave_avx512()
    threadpoolctl.threadpool_limits(1)


def _leave_avx512() -> None:
    """OpenBLAS, numpy's, computes with AVX2 from now on, unless ``OPENBLAS_CORETYPE`` says what it shall use.

    Its AVX-512 kernels slow the processor's clock, and so the simulator that runs between two products
    (``OPENBLAS_CORETYPE=SkylakeX python benchmarks/rollout.py`` shows it); and machines of a cluster with and without
    AVX-512 would have other bits. OpenBLAS reads the variable when it is loaded, before a library could set it, so its
    own initialisation is called again. Where that cannot be found, nothing changes.
    """
    import threadpoolctl

    if _KERNELS in os.environ:
        return
    for library in threadpoolctl.threadpool_info():
        if library["internal_api"] == "openblas" and library.get("architecture") in _AVX512:
            blas = ctypes.CDLL(library["filepath"])
            if hasattr(blas, "gotoblas_dynamic_quit") and hasattr(blas, "gotoblas_dynamic_init"):
                # Processes that this one starts inherit it.
                os.environ[_KERNELS] = "Haswell"
                blas.gotoblas_dynamic_quit()
                blas.gotoblas_dynamic_init()
