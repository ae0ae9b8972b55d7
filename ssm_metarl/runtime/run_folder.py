"""A run's folder: found, checked against the run's identity, locked, taken up again from its newest checkpoint."""

from __future__ import annotations

import fcntl
import secrets
import shutil
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import mkdtemp

from ssm_metarl.config import ConfigError, TrainConfig, load_config
from ssm_metarl.runtime import checkpoint
from ssm_metarl.runtime.checkpoint import CheckpointError, TrainState
from ssm_metarl.runtime.mirror import fetch
from ssm_metarl.runtime.storage import LocalStorage, Storage, is_uri, join, open_storage, split

AUTO, NEVER = "auto", "never"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class RunFolder:
    """A run's folder.

    Example: ``find_folder(load_config(None, {"run.dir": "s3://bucket/runs", "run.name": "first"}))``
    """

    path: Path
    """Where its files are for this process: the folder itself, or for a URI a copy without the checkpoints, which lasts
    as long as this object."""
    where: str
    """What a user may type: a path or a URI."""
    store: Storage | None = None
    """The folder behind the URI; None: there is only ``path``."""

    def publish(self, *names: str) -> None:
        """Puts files of ``path`` where the run is. Raises OSError."""
        for name in names if self.store else ():
            self.store.write(name, (self.path / name).read_bytes())


def find_folder(config: TrainConfig) -> RunFolder:
    """Where the run lives: ``run.dir/run.name``, a fresh name if it has none. There, nothing is made yet.

    Raises:
        ConfigError: nothing serves such a URI. CheckpointError: the store does not say what it has.
    """
    return open_folder(join(config.run.dir, config.run.name or _fresh_name(config)))


def open_folder(where: str) -> RunFolder:
    """The folder of a run at a path or URI; of a URI the files are brought here. Raises what `find_folder` raises."""
    if not is_uri(where):
        return RunFolder(Path(where), where)
    store = open_storage(where, "run.dir")
    if isinstance(store, LocalStorage):
        return RunFolder(store.root, where)
    root = mkdtemp(prefix="ssm_metarl-")
    run = RunFolder(Path(root, split(where)[1]), where, store)
    weakref.finalize(run, shutil.rmtree, root, ignore_errors=True)
    run.path.mkdir()
    try:
        fetch(store, run.path)
    except OSError as error:
        raise CheckpointError(f"run.dir: {where} cannot be read: {error}") from error
    return run


def checkpoint_storage(config: TrainConfig, folder: Path) -> Storage:
    """Where its checkpoints go: ``checkpoint.dir/NAME``, else into the run's folder, be that a path or a URI."""
    where, name = config.checkpoint.dir, folder.resolve().name
    if where:
        return open_storage(join(where, name))
    if is_uri(config.run.dir) and not (folder / CHECKPOINTS).is_dir():
        return open_storage(join(join(config.run.dir, name), CHECKPOINTS), "run.dir")
    return open_storage(folder / CHECKPOINTS)


def restore(
    config: TrainConfig, folder: Path, storage: Storage, resume: str, warn: Callable[[str], None]
) -> TrainState | None:
    """The state to go on from, None for a start from the beginning.

    Args:
        resume: ``auto``: the newest valid checkpoint; ``never``: the run must not exist; else a checkpoint's path.
        warn: told which checkpoints were skipped, and why.

    Raises:
        ConfigError: the name is taken by a run of another identity, or at all under ``never``.
        CheckpointError: the checkpoint at ``resume`` cannot be used, or the storage cannot be listed.
    """
    if resume not in (AUTO, NEVER):
        found = checkpoint.load(resume)
    elif resume == NEVER and _exists(folder, storage):
        raise ConfigError(f"run.name: {folder} exists and --resume never was given; choose another run.name")
    else:
        found = checkpoint.load_newest(storage, warn)
    if found is None:
        if (folder / "config.yaml").is_file():
            _check_identity(config.identity(), load_config(folder / "config.yaml").identity())
        return None
    state, identity = found
    _check_identity(config.identity(), identity)
    return state


def _exists(folder: Path, storage: Storage) -> bool:
    try:
        return bool(storage.folders()) or (folder.exists() and any(folder.iterdir()))
    except OSError as error:
        raise CheckpointError(f"whether {storage.path()} exists cannot be found out: {error}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """No two processes train the same run at a time. Raises ConfigError if another does."""
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"run.name: another process is training {folder}; wait for it, or choose another run.name"
            ) from error
        yield


def _fresh_name(config: TrainConfig) -> str:
    family = config.env.id.split("/")[-1].lower()
    # The last part tells jobs apart that start in the same second, perhaps on machines that share run.dir.
    return f"{family}-{config.algorithm}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _check_identity(own: dict, other: dict) -> None:
    """Raises ConfigError with the differing keys unless both configurations describe the same run."""
    mine, theirs = _flatten(own), _flatten(other)
    differing = [key for key in sorted(mine.keys() | theirs.keys()) if mine.get(key) != theirs.get(key)]
    if differing:
        lines = [f"  {key} is {mine.get(key)!r}, the existing run has {theirs.get(key)!r}" for key in differing]
        raise ConfigError(
            "the run cannot be resumed with another configuration:\n" + "\n".join(lines) + "\nchoose another run.name"
        )


def _flatten(tree: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(tree, dict):
        return {prefix: list(tree) if isinstance(tree, tuple) else tree}
    return {
        key: leaf for name, sub in tree.items() for key, leaf in _flatten(sub, f"{prefix}.{name}".lstrip(".")).items()
    }
