"""Checkpoints: data files first, ``manifest.json`` last; a folder without a manifest that verifies does not count.

A checkpoint is ``it-00000012-XXXXXXXX/`` with ``state.npz`` (arrays only; nothing is unpickled) and ``manifest.json``
(sha256 per file, versions, the run's identity). It holds the state after 12 iterations. Every save has a folder of its
own, so that no attempt can damage an earlier one.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.npz"
LIBRARIES = ("ssm-metarl", "torch", "numpy", "gymnasium", "ray")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used."""


@dataclass(frozen=True)
class TrainState:
    """All that the next iteration depends on.

    Example: ``TrainState(iteration=12, num_env_steps=240000, arrays={"params_P": ..., "exp_avg_P": ...})``
    """

    iteration: int
    """Iterations done."""
    num_env_steps: int
    arrays: dict[str, np.ndarray]


def save(folder: Path, state: TrainState, identity: dict[str, Any], keep: int) -> Path:
    """Writes a checkpoint under ``folder`` and removes all but the newest ``keep``.

    Raises:
        OSError: the disk is full, read-only or gone; earlier checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = Path(tempfile.mkdtemp(prefix=f"it-{state.iteration:08d}-", dir=folder))
    with open(target / STATE, "wb") as file:
        np.savez(file, **state.arrays)
        _flush(file)
    manifest = {
        "format": FORMAT,
        "iteration": state.iteration,
        "num_env_steps": state.num_env_steps,
        "identity": identity,
        "files": {STATE: _sha256(target / STATE)},
        "versions": versions(),
    }
    with open(target / (MANIFEST + ".part"), "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        _flush(file)
    os.replace(target / (MANIFEST + ".part"), target / MANIFEST)
    for old in _newest_first(folder)[keep:]:
        shutil.rmtree(old)
    return target


def load_newest(folder: Path, warn: Callable[[str], None]) -> tuple[TrainState, dict[str, Any]] | None:
    """The newest checkpoint that verifies, with its identity, or None; ``warn`` is told which were skipped and why."""
    for path in _newest_first(folder):
        try:
            return load(path)
        except CheckpointError as error:
            warn(f"skipped a damaged checkpoint: {error}")
    return None


def load(path: Path) -> tuple[TrainState, dict[str, Any]]:
    """One checkpoint and the identity of the run that wrote it.

    Raises:
        CheckpointError: incomplete, damaged, or of another format.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {manifest['format']}, this version reads {FORMAT}")
        for name, digest in manifest["files"].items():
            if _sha256(path / name) != digest:
                raise CheckpointError(f"{path / name} does not have the checksum of its manifest")
        with np.load(path / STATE, allow_pickle=False) as arrays:
            state = TrainState(manifest["iteration"], manifest["num_env_steps"], dict(arrays))
        return state, manifest["identity"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}") from error


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a result depends on, and the kind of processor."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: version(name) for name in LIBRARIES},
    }


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("it-*"), key=lambda path: (path.name[:11], path.stat().st_mtime_ns), reverse=True)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
