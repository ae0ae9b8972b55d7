"""A sweep's folder: ``sweep.yaml``, ``trials/000`` and so on, and what is made of them. A path or a URI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from ssm_metarl.config import ConfigError, TrainConfig
from ssm_metarl.runtime.checkpoint import CheckpointError
from ssm_metarl.runtime.run_folder import locked
from ssm_metarl.runtime.storage import LocalStorage, Storage, join, open_storage
from ssm_metarl.tuning.config import Sweep, read_sweep
from ssm_metarl.tuning.results import FILE, TrialResults, parse_results, write_results

SWEEP = "sweep.yaml"
TRIALS = "trials"
LOCK = ".lock"


@dataclass(frozen=True)
class SweepFolder:
    """The folder of a sweep.

    Example: ``SweepFolder.of(sweep).trial(3)`` is the storage at ``runs/quick/trials/003``.
    """

    where: str
    """A path, absolute, or a URI."""
    storage: Storage

    @classmethod
    def at(cls, where: str) -> SweepFolder:
        """Raises ConfigError: nothing serves such a URI."""
        return cls(where, open_storage(where, "run.dir"))

    @classmethod
    def of(cls, sweep: Sweep) -> SweepFolder:
        """``run.dir/run.name`` of its base."""
        folder = cls.at(join(sweep.base.run.dir, sweep.name))
        if isinstance(folder.storage, LocalStorage):
            # Trials run in processes with working directories of their own.
            return cls.at(str(folder.storage.root.absolute()))
        return folder

    def path(self, *names: str) -> str:
        """What a user may type for a file or folder in it."""
        where = self.where
        for name in names:
            where = join(where, name)
        return where

    def trial(self, index: int) -> Storage:
        """The folder of a trial."""
        return open_storage(self.path(TRIALS, trial_name(index)), "run.dir")

    def config(self, sweep: Sweep, index: int, settings: Mapping[str, Any]) -> TrainConfig:
        """The configuration of a trial: the base, its settings, and a run's folder in the sweep's."""
        places = {"run.dir": self.path(TRIALS), "run.name": trial_name(index), "workers.num_workers": sweep.num_workers}
        if sweep.base.checkpoint.dir:
            places["checkpoint.dir"] = _checkpoints(sweep)
        return sweep.base.override({**settings, **places})

    def read(self, index: int) -> TrialResults | None:
        """What a trial has reported; None: there is no such file.

        Raises:
            ValueError: the file is damaged. CheckpointError: the folder cannot be read.
        """
        folder = self.trial(index)
        try:
            return parse_results(folder.read(FILE)) if FILE in folder.files("") else None
        except OSError as error:
            # To go on as if there were nothing would throw trials away.
            cure = "make it readable, and --resume"
            raise CheckpointError(f"{folder.path(FILE)} cannot be read: {error}; {cure}") from error

    def write(self, index: int, results: TrialResults) -> None:
        """Writes what a trial has reported. Raises OSError."""
        folder = self.trial(index)
        folder.make()
        write_results(folder, results)

    def clear(self, sweep: Sweep, index: int) -> None:
        """Removes all that a trial has left but its lock, for it to begin again. Raises OSError."""
        places = [self.trial(index)]
        if sweep.base.checkpoint.dir:
            places.append(open_storage(join(_checkpoints(sweep), trial_name(index))))
        for place in places:
            for name in {*place.folders(), *place.files("")} - {LOCK}:
                place.remove(name)


def trial_name(index: int) -> str:
    """Name of a trial and of its folder."""
    return f"{index:03d}"


@contextmanager
def opened(sweep: Sweep, resume: bool) -> Iterator[SweepFolder]:
    """The sweep's folder with its ``sweep.yaml``, kept to this process.

    Raises:
        ConfigError: it exists and ``resume`` was not asked for, it is of another sweep or of a run, another process
            works in it, or it cannot be written.
    """
    folder = SweepFolder.of(sweep)
    with ExitStack() as stack:
        try:
            _require_usable(folder, sweep, resume)
            folder.storage.make()
            if isinstance(folder.storage, LocalStorage):
                stack.enter_context(locked(folder.storage.root))
            folder.storage.write(SWEEP, sweep.dump().encode())
        except OSError as error:
            raise ConfigError(f"run.dir: {folder.where} cannot be used: {error}") from error
        yield folder


def _require_usable(folder: SweepFolder, sweep: Sweep, resume: bool) -> None:
    files = folder.storage.files("")
    if SWEEP not in files:
        if "config.yaml" in files:
            raise ConfigError(f"run.name: {folder.where} is the folder of a run; choose another run.name for the sweep")
        return
    if TRIALS not in folder.storage.folders():
        return  # Something kept it from its first trial; there is nothing to lose, nor to go on with.
    if not resume:
        raise ConfigError(
            f"run.name: the sweep {folder.where} exists; go on with it by --resume, or choose another name"
        )
    mine = _flat(sweep.identity())
    theirs = _flat(read_sweep(folder.storage.read(SWEEP), folder.path(SWEEP)).identity())
    differing = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
    if differing:
        lines = [f"  {key} is {mine.get(key)!r}, the existing sweep has {theirs.get(key)!r}" for key in differing]
        raise ConfigError(
            "the sweep cannot be resumed as another one:\n" + "\n".join(lines) + "\nchoose another run.name"
        )


def _checkpoints(sweep: Sweep) -> str:
    """Where trials put checkpoints that do not go into their folders: sweeps must not meet there."""
    return join(join(sweep.base.checkpoint.dir, sweep.name), TRIALS)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: tree}
    parts = (_flat(value, f"{prefix}.{key}".lstrip(".")) for key, value in tree.items())
    return {key: value for part in parts for key, value in part.items()}
