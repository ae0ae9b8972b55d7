"""Checkpoints: the data first, ``manifest.json`` last; a folder without a manifest that verifies does not count.

A checkpoint is ``it-00000012-0123456789abcdef/``, the state after 12 iterations: ``state.npz`` (arrays only; nothing is
unpickled) and ``manifest.json`` (sha256 of the state and of itself, versions, the run's identity). The second number is
the time of the attempt: every save has a folder of its own, so that no attempt can damage an earlier one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ssm_metarl.config_text import short
from ssm_metarl.runtime.storage import Storage, open_storage, split
from ssm_metarl.types import Moments, Statistics

FORMAT = 2
MANIFEST = "manifest.json"
STATE = "state.npz"
LIBRARIES = ("ssm-metarl", "torch", "numpy", "gymnasium", "ray")
SIMULATORS = ("mujoco", "metaworld")
"""Their versions decide the physics; recorded where they are installed."""


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


def statistics_to_arrays(statistics: Statistics | None) -> dict[str, np.ndarray]:
    """As arrays by name, which `statistics_from_arrays` reads; nothing for None."""
    if statistics is None:
        return {}
    return {
        f"{which}.{part}": np.asarray(value)
        for which, moments in vars(statistics).items()
        for part, value in vars(moments).items()
    }


def statistics_from_arrays(arrays: Mapping[str, np.ndarray]) -> tuple[Statistics | None, dict[str, np.ndarray]]:
    """The statistics among these arrays, and the other arrays."""
    parts = {name: value for name, value in arrays.items() if name.partition(".")[0] in Statistics.__dataclass_fields__}
    rest = {name: value for name, value in arrays.items() if name not in parts}
    if not parts:
        return None, rest
    moments = {
        which: Moments(int(parts[f"{which}.count"]), parts[f"{which}.mean_X"], parts[f"{which}.squares_X"])
        for which in Statistics.__dataclass_fields__
    }
    return Statistics(**moments), rest


def save(storage: Storage, state: TrainState, identity: dict[str, Any], keep: int, warn: Callable[[str], None]) -> str:
    """Writes a checkpoint, removes old ones, and returns its path.

    It and the newest ``keep - 1`` complete ones before it stay. All others go, later ones too: they are of a future
    that is being written again. ``warn`` is told what could not be removed; the save succeeded all the same.

    Raises:
        OSError: the storage is full, read-only or gone; earlier checkpoints are untouched.
    """
    others = _newest_first(storage)
    stamp = time.time_ns()
    while (name := f"it-{state.iteration:08d}-{stamp:016x}") in others:
        stamp += 1
    buffer = io.BytesIO()
    np.savez(buffer, **state.arrays)
    data = buffer.getvalue()
    manifest = {
        "format": FORMAT,
        "folder": name,
        "iteration": state.iteration,
        "num_env_steps": state.num_env_steps,
        "identity": identity,
        "files": {STATE: hashlib.sha256(data).hexdigest()},
        "versions": versions(),
    }
    try:
        storage.write(f"{name}/{STATE}", data)
        storage.write(f"{name}/{MANIFEST}", sealed(manifest))
    except OSError:
        # What an attempt left on a full disk would keep it full; what cannot be removed now, the next save removes.
        with contextlib.suppress(OSError):
            _remove(storage, name)
        raise
    _retain(storage, name, others, keep - 1, warn)
    return storage.path(name)


def load_newest(storage: Storage, warn: Callable[[str], None]) -> tuple[TrainState, dict[str, Any]] | None:
    """The newest checkpoint that verifies, with its identity, or None.

    ``warn`` is told which were skipped and why, and of other versions of what the numbers depend on.

    Raises:
        CheckpointError: the storage is there, but does not say what is in it.
    """
    try:
        names = _newest_first(storage)
    except OSError as error:
        # To go on as if there were no checkpoint would throw a run away.
        cure = "make it readable and start again, or give the run another name"
        raise CheckpointError(f"{storage.path()} does not list its checkpoints: {error}; {cure}") from error
    for name in names:
        try:
            state, manifest = _load(storage, name)
        except CheckpointError as error:
            warn(f"skipped a damaged checkpoint: {error}")
            continue
        saved, now = manifest["versions"], versions()
        # A simulator that was installed since then played no part.
        known = [what for what in now if what in saved or what not in SIMULATORS]
        if differing := [
            f"{what} {saved.get(what)} (now {now[what]})" for what in known if saved.get(what) != now[what]
        ]:
            warn(
                f"{storage.path(name)} was saved with {', '.join(differing)}: what follows is not the same bit for bit"
            )
        return state, manifest["identity"]
    if names:
        warn(f"none of the {len(names)} checkpoints in {storage.path()} can be used: starting from the beginning")
    return None


def load(where: str | Path) -> tuple[TrainState, dict[str, Any]]:
    """The checkpoint at a path or URI, and the identity of the run that wrote it.

    Raises:
        CheckpointError: incomplete, damaged, of another format, or not readable.
        ConfigError: a URI that nothing serves.
    """
    root, name = split(where)
    state, manifest = _load(open_storage(root), name)
    return state, manifest["identity"]


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a result depends on, and the kind of processor."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: version(name) for name in LIBRARIES},
        **{name: version(name) for name in SIMULATORS if find_spec(name)},
    }


def sealed(manifest: dict[str, Any]) -> bytes:
    """The only bytes that are valid for a manifest: its JSON in one fixed form, with the sha256 of the rest of it."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(body, indent=1).encode()).hexdigest()
    return json.dumps(body | {"sha256": digest}, indent=1).encode()


def _load(storage: Storage, name: str) -> tuple[TrainState, dict[str, Any]]:
    try:
        manifest = _read_manifest(storage, name)
        data = storage.read(f"{name}/{STATE}")
        if manifest["files"] != {STATE: hashlib.sha256(data).hexdigest()}:
            raise ValueError(f"{STATE} does not have the checksum in its manifest")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            state = TrainState(manifest["iteration"], manifest["num_env_steps"], dict(file))
        if not all(isinstance(array, np.ndarray) for array in state.arrays.values()):
            raise ValueError(f"{STATE} holds something else than arrays")
        return state, manifest
    # Readers of foreign bytes raise anything: all of it means that this checkpoint is not to be used.
    except Exception as error:
        is_plain = type(error) is ValueError or isinstance(error, OSError)
        reason = error if is_plain else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{storage.path(name)} cannot be read: {reason}") from error


def _read_manifest(storage: Storage, name: str) -> dict[str, Any]:
    data = storage.read(f"{name}/{MANIFEST}")
    manifest = json.loads(data)
    if manifest["format"] != FORMAT:
        raise ValueError(f"its format is {short(manifest['format'])}, and this version of ssm_metarl reads {FORMAT}")
    if data != sealed(manifest):
        raise ValueError(f"{MANIFEST} does not have its own checksum")
    if manifest["folder"] != name or not name.startswith(f"it-{manifest['iteration']:08d}-"):
        raise ValueError(f"it was saved as {manifest['folder']}: give the folder that name again")
    counts = (manifest["iteration"], manifest["num_env_steps"])
    records = (manifest["identity"], manifest["versions"])
    if not all(type(count) is int and count >= 0 for count in counts) or not all(isinstance(r, dict) for r in records):
        raise ValueError(f"{MANIFEST} holds values that no save writes")
    return manifest


def _retain(storage: Storage, name: str, others: list[str], spare: int, warn: Callable[[str], None]) -> None:
    """Removes all ``others`` (newest first) but ``spare`` complete ones that are older than ``name``."""
    for other in others:
        try:
            if spare and other < name and _is_complete(storage, other):
                spare -= 1
            else:
                _remove(storage, other)
        except OSError as error:
            warn(f"{storage.path(other)} cannot be read or removed, and stays: {error}")


def _is_complete(storage: Storage, name: str) -> bool:
    """Whether the manifest verifies. OSError: nobody knows, so it is not to be removed."""
    if MANIFEST not in storage.files(name):
        return False
    try:
        _read_manifest(storage, name)
    except OSError:
        raise
    except Exception:
        return False
    return True


def _remove(storage: Storage, name: str) -> None:
    """The manifest goes first: what a kill leaves of the rest does not count."""
    storage.remove(f"{name}/{MANIFEST}")
    storage.remove(name)


def _newest_first(storage: Storage) -> list[str]:
    return sorted((name for name in storage.folders() if name.startswith("it-")), reverse=True)
