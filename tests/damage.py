"""What happens to checkpoints: damage of a random kind, and a kill in the midst of a save. For tests and benchmarks."""

import json
import os
import random
import signal
import warnings
from pathlib import Path

from ssm_metarl.runtime import checkpoint
from ssm_metarl.runtime.checkpoint import MANIFEST, STATE, TrainState
from ssm_metarl.runtime.storage import LocalStorage


def flip_a_byte(path, other, rng):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    path.write_bytes(data)


def truncate(path, other, rng):
    os.truncate(path, rng.randrange(path.stat().st_size))


def empty(path, other, rng):
    os.truncate(path, 0)


def append(path, other, rng):
    path.write_bytes(path.read_bytes() + rng.choice([b"\n", b" ", b"\0", rng.randbytes(rng.randrange(1, 100))]))


def delete(path, other, rng):
    path.unlink()


def swap_the_file(path, other, rng):
    ours, theirs = path.read_bytes(), (other / path.name).read_bytes()
    if ours == theirs:  # of two saves of one state: no damage yet
        return flip_a_byte(path, other, rng)
    path.write_bytes(theirs)
    (other / path.name).write_bytes(ours)


def exchange_the_names(path, other, rng):
    aside = path.parent.with_name("aside")
    path.parent.rename(aside)
    other.rename(path.parent)
    aside.rename(other)


def another_format(path, other, rng):
    path = path.with_name(MANIFEST)
    path.write_bytes(checkpoint.sealed(json.loads(path.read_bytes()) | {"format": checkpoint.FORMAT - 1}))


ALONE = (flip_a_byte, truncate, empty, append, delete, another_format)
WITH_ANOTHER = (swap_the_file, exchange_the_names)


def damage(folder: Path, rng: random.Random) -> str:
    """Damages the complete checkpoint at ``folder`` (and maybe another one beside it); returns what was done."""
    path = folder / rng.choice([STATE, MANIFEST])
    others = [other for other in sorted(folder.parent.glob("it-*")) if other != folder]
    kind = rng.choice([*ALONE, *(WITH_ANOTHER if others else ())])
    kind(path, rng.choice(others) if others else None, rng)
    return f"{kind.__name__}: {path.name}"


POINTS = (
    "before the state",
    "in the state",
    "before the manifest",
    "in the manifest",
    "after the manifest",
    "in the retention",
)
"""Where ``save_and_die`` dies, in the order of a save. The new checkpoint counts from "after the manifest" on."""


class DyingStorage(LocalStorage):
    """Kills its process at a point of a save."""

    def __init__(self, root: Path, point: str):
        super().__init__(root)
        object.__setattr__(self, "point", point)

    def write(self, name, data):
        what = {STATE: "state", MANIFEST: "manifest"}[Path(name).name]
        if self.point == f"before the {what}":
            _die()
        if self.point == f"in the {what}":
            (self.root / name).parent.mkdir(exist_ok=True)
            (self.root / f"{name}.part").write_bytes(data[: len(data) // 2])
            _die()
        super().write(name, data)
        if self.point == f"after the {what}":
            _die()

    def remove(self, name):
        super().remove(name)
        if self.point == "in the retention":
            _die()


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def save_and_die(folder: Path, state: TrainState, point: str, identity: dict | None = None) -> None:
    """A process of its own saves ``state`` with ``keep=1`` under ``folder`` and is killed at ``point``.

    "in the retention" needs an earlier checkpoint. Raises RuntimeError if the process ends in another way.
    """
    with warnings.catch_warnings():
        # Newer Pythons warn of a fork beside threads: the child below takes no lock that one of them could hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            checkpoint.save(DyingStorage(folder, point), state, identity or {}, 1, print)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        raise RuntimeError(f"the save was not killed {point}: exit {os.waitstatus_to_exitcode(status)}")
