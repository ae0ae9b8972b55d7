"""A run's folder: found, checked against the run's identity, locked, taken up again from its newest checkpoint."""

from __future__ import annotations

import fcntl
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from ssm_metarl.config import ConfigError, TrainConfig, load_config
from ssm_metarl.runtime import checkpoint
from ssm_metarl.runtime.checkpoint import CheckpointError, TrainState
from ssm_metarl.runtime.storage import Storage, join, open_storage

AUTO, NEVER = "auto", "never"


def find_folder(config: TrainConfig) -> Path:
    """Where the run lives: ``run.dir/run.name``, a fresh name if it has none. Nothing is made yet."""
    if "://" in config.run.dir:
        raise ConfigError(
            f"run.dir: {config.run.dir} is not a local folder, and an object store cannot append to metrics; "
            "give a local run.dir, and the URI as checkpoint.dir"
        )
    root, name = Path(config.run.dir), config.run.name
    return root / name if name else _fresh_folder(root, config)


def checkpoint_storage(config: TrainConfig, folder: Path) -> Storage:
    """Where its checkpoints go: ``checkpoint.dir/NAME``, else in the run's folder."""
    where = config.checkpoint.dir
    return open_storage(join(where, folder.resolve().name) if where else folder / "checkpoints")


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


def _fresh_folder(root: Path, config: TrainConfig) -> Path:
    family = config.env.id.split("/")[-1].lower()
    # The last part tells jobs apart that start in the same second, perhaps on machines that share checkpoint.dir.
    return root / f"{family}-{config.algorithm}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


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
