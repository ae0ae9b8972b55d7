"""Things that go wrong on command: faults in an environment or a worker, processes that are killed, disks that fill.

The product has no hooks for any of it. ``faults:Faulty-v0`` is an environment, `Disturbed` a stand-in for `TaskWorker`;
both read a plan from the folder that the environment variable `FOLDER` names, which Ray's workers inherit from whoever
starts Ray. A fault strikes ``times`` times in all, over any number of processes: each strike leaves a mark behind.

    faults.prepare()                                       # before ray.init
    faults.write_plan(config, [Fault("segfault", iteration=1, task=2, rollout=1, step=3)])
    MetaTrainer(config).run()
    assert faults.count_strikes() == 1
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box

from ssm_metarl.config import TrainConfig
from ssm_metarl.env_runner.tasks import make_family
from ssm_metarl.runtime.worker import TaskWorker
from ssm_metarl.types import SharedState, Stream, TaskSpec, make_rng

FOLDER = "SSM_METARL_FAULTS"
PATIENCE_S = 120.0
ENV = {"env.id": "faults:Faulty-v0", "env.vary": {"target": {"uniform": (-1.0, 1.0)}}}
"""Settings of a run in the environment that fails."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and when.

    ``where``: ``environment`` (after step ``step`` of rollout ``rollout`` of the task), or in the worker: ``inner`` (at
    the first gradient of the task's first pass), ``sending`` (while its kept rollouts are serialised), ``starting`` (of
    any worker; iteration and task do not matter).
    """

    kind: str
    iteration: int = 0
    task: int = 0
    rollout: int = 0
    step: int = 0
    times: int = 1
    where: str = "environment"


def prepare() -> Path:
    """The folder of the plan, made unless it was already. Call it before Ray is started: its workers inherit it."""
    if FOLDER not in os.environ:
        os.environ[FOLDER] = tempfile.mkdtemp(prefix="faults-")
        # Ray tells its workers the folder of the script, but not the rest of sys.path.
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        atexit.register(shutil.rmtree, os.environ[FOLDER], ignore_errors=True)
    return Path(os.environ[FOLDER])


def write_plan(config: TrainConfig, faults: Sequence[Fault]) -> None:
    """Makes these the faults from now on; earlier marks no longer count."""
    entries = [{**asdict(fault), "reset_seed": _first_reset_seed(config, fault)} for fault in faults]
    part = prepare() / "plan.part"
    part.write_text(json.dumps({"name": uuid.uuid4().hex, "faults": entries}), encoding="utf-8")
    part.replace(prepare() / "plan.json")


def _first_reset_seed(config: TrainConfig, fault: Fault) -> int:
    """What the environment's first row is reset with in the task's first rollout: by it the task is recognised."""
    tasks = make_family(config.env).sample(make_rng(config.seed, Stream.SAMPLE_TASKS, fault.iteration), fault.task + 1)
    spec = TaskSpec(config.seed, Stream.TRAIN, fault.iteration, fault.task, tasks[-1], config.inner.num_steps)
    return int(spec.rng().integers(2**31))


def marks() -> list[Path]:
    """One file per strike of the present plan, oldest first."""
    name = _read_plan()["name"]
    found = [path for path in prepare().glob(f"{name}-*") if not path.suffix]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def count_strikes() -> int:
    """How often the present plan's faults have struck."""
    return len(marks())


def go_on() -> None:
    """Ends the ``pause`` that struck last."""
    marks()[-1].with_suffix(".go").touch()


def _read_plan() -> dict[str, Any]:
    try:
        return json.loads((Path(os.environ[FOLDER]) / "plan.json").read_text(encoding="utf-8"))
    except (KeyError, FileNotFoundError):
        return {"name": "none", "faults": []}


def _strikes(plan: dict[str, Any], fault: dict[str, Any]) -> bool:
    """Whether this time is one of the fault's times; if so, it is marked."""
    number = plan["faults"].index(fault)
    for time_number in range(fault["times"]):
        mark = Path(os.environ[FOLDER]) / f"{plan['name']}-{number}-{time_number}"
        with contextlib.suppress(FileExistsError):
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            return True
    return False


def _raise(error: Exception) -> None:
    raise error


def _pause() -> None:
    """Until `go_on`."""
    go, deadline = marks()[-1].with_suffix(".go"), time.monotonic() + PATIENCE_S
    while not go.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


ACTS = {
    "raise": lambda: _raise(ZeroDivisionError("the simulator divided by zero")),
    "memory": lambda: _raise(MemoryError("the simulator found no memory")),
    "hang": lambda: time.sleep(3600),
    "segfault": lambda: ctypes.string_at(0),
    "exit": lambda: os._exit(1),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "pause": _pause,
}
SPOILS = {
    "nan": lambda observation, _: (observation, math.nan),
    "nan-observation": lambda observation, reward: (observation * math.nan, reward),
    "ragged": lambda observation, reward: (np.zeros(len(observation) + 1, np.float32), reward),
    "short": lambda observation, reward: (observation[:1], reward),
}


class Faulty(gymnasium.Env):
    """A point on a line goes to a target that it does not see, and does what the plan says."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self) -> None:
        self.target = 0.0
        self._place, self._clock = 0.0, 0
        self._plan: dict[str, Any] = {"faults": []}
        self._reset_seed, self._rollout = -1, -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._place, self._clock = float(self.np_random.uniform(-0.5, 0.5)), 0
        self._plan = _read_plan()
        if any(seed == fault["reset_seed"] for fault in self._plan["faults"]):
            self._reset_seed, self._rollout = seed, 0
        else:
            self._rollout += 1
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._place += 0.3 * float(action[0])
        self._clock += 1
        observation, reward = self._observe(), -abs(self._place - self.target)
        for fault in self._plan["faults"]:
            due = (self._reset_seed, self._rollout, self._clock - 1)
            wanted = (fault["reset_seed"], fault["rollout"], fault["step"])
            if fault["where"] == "environment" and due == wanted and _strikes(self._plan, fault):
                if fault["kind"] in ACTS:
                    ACTS[fault["kind"]]()
                else:
                    observation, reward = SPOILS[fault["kind"]](observation, reward)
        return observation, reward, False, False, {}

    def _observe(self) -> np.ndarray:
        return np.array([self._place, self._clock / 10], np.float32)


gymnasium.register("Faulty-v0", entry_point="faults:Faulty", max_episode_steps=1000)


class Disturbed(TaskWorker):
    """A worker that does what the plan says. Put it in `TaskWorker`'s place with `stand_in`."""

    def __init__(self, config: TrainConfig) -> None:
        self._act("starting")
        super().__init__(config)

    def adapt_and_collect(self, shared: SharedState, spec: TaskSpec) -> Any:
        with self._at_first_gradient(spec):
            result, batches = super().adapt_and_collect(shared, spec)
        return result, [*batches, _Parcel(self, spec)]

    @contextlib.contextmanager
    def _at_first_gradient(self, spec: TaskSpec) -> Iterator[None]:
        grad = torch.autograd.grad

        def first(*arguments: Any, **options: Any) -> Any:
            torch.autograd.grad = grad
            self._act("inner", spec)
            return grad(*arguments, **options)

        torch.autograd.grad = first
        try:
            yield
        finally:
            torch.autograd.grad = grad

    def _act(self, where: str, spec: TaskSpec | None = None) -> None:
        plan = _read_plan()
        for fault in plan["faults"]:
            due = spec is None or (spec.stream, spec.iteration, spec.task_index) == (
                Stream.TRAIN,
                fault["iteration"],
                fault["task"],
            )
            if fault["where"] == where and due and _strikes(plan, fault):
                ACTS[fault["kind"]]()


class _Parcel:
    """Goes wrong while it is serialised, after the values before it."""

    def __init__(self, worker: Disturbed, spec: TaskSpec) -> None:
        self._worker, self._spec = worker, spec

    def __reduce__(self) -> Any:
        self._worker._act("sending", self._spec)
        return (str, ("arrived",))


@contextlib.contextmanager
def stand_in(worker: type) -> Iterator[None]:
    """Pools that are made meanwhile have workers of this class."""
    from ssm_metarl.runtime import pool

    modules = {pool, *(sys.modules[name] for name in ("ssm_metarl.runtime.actors",) if name in sys.modules)}
    places = [module for module in modules if hasattr(module, "TaskWorker")]
    try:
        for module in places:
            module.TaskWorker = worker
        yield
    finally:
        for module in places:
            module.TaskWorker = TaskWorker


@contextlib.contextmanager
def small_disk(kibibytes: int) -> Iterator[Path | None]:
    """A disk of this size, None where this user may not mount one."""
    folder = Path(tempfile.mkdtemp(prefix="disk-"))
    mounted = _mount("-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(folder))
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=20)
        folder.rmdir()


def make_read_only(disk: Path) -> None:
    """Nothing can be written to this disk (of `small_disk`) any more."""
    if not _mount("-o", "remount,ro", str(disk)):
        raise OSError(errno.EBUSY, "a file of it is open for writing", str(disk))


def fill(disk: Path) -> Path:
    """Writes until the disk is full. Returns the file that filled it."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        while file.write(bytes(512)):
            pass
    return ballast


def _mount(*arguments: str) -> bool:
    if shutil.which("mount") is None or os.geteuid() != 0:
        return False
    return subprocess.run(["mount", *arguments], capture_output=True, timeout=20, check=False).returncode == 0


class FullStorage:
    """A storage that has room for so many bytes: a write that exceeds it leaves behind what fitted, and raises.

    Args:
        storage: where the bytes go.
        num_bytes: room that is left; may be changed.
    """

    def __init__(self, storage: Any, num_bytes: int) -> None:
        self._storage, self.num_bytes = storage, num_bytes

    def write(self, name: str, data: bytes) -> None:
        fits = data[: max(0, self.num_bytes)]
        self._storage.write(name, fits)
        self.num_bytes -= len(fits)
        if len(fits) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)
