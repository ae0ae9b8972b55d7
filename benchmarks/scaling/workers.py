"""Simulated workers: they wait instead of working, and answer with a gradient of the policy's size.

Nothing here imports torch: a process with a `Host` has some 60 MB and stands for any number of workers.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray._private import internal_api

from ssm_metarl.types import SharedState, TaskResult, TaskSpec

KEPT_BYTES = 80_000
"""What a first pass keeps for later ones: about as much as in the default configuration."""
GOLDEN = 0.6180339887498949


def shortest_s(num_workers: int) -> float:
    """Seconds of the shortest task, so that so many workers answer 170 to 250 times a second, one after another."""
    return max(0.1, 0.004 * num_workers)


def delay_s(spec: TaskSpec, shortest: float, straggler: bool = False) -> float:
    """How long a task takes: once to twice the shortest, scattered evenly; ``straggler``: the first one ten times."""
    if straggler and spec.task_index == 0:
        return 10 * shortest
    return shortest * (1 + spec.task_index * GOLDEN % 1)


def first_answer(shared: SharedState, spec: TaskSpec) -> tuple[TaskResult, list[np.ndarray]]:
    """What `TaskWorker.adapt_and_collect` would return."""
    metrics = {"meta_loss": 0.0, "rollout_s": 0.0}
    result = TaskResult(spec, _gradient(shared), (0.0, 1.0), num_env_steps=1000, seconds=0.1, metrics=metrics)
    return result, [np.zeros(KEPT_BYTES // 4, np.float32)]


def later_answer(shared: SharedState, spec: TaskSpec) -> TaskResult:
    """What `TaskWorker.revisit` would return."""
    return TaskResult(spec, _gradient(shared), seconds=0.1, metrics={"meta_loss": 0.0})


def _gradient(shared: SharedState) -> np.ndarray:
    """A power of two everywhere: the mean over any number of tasks is the same to the bit."""
    return np.full_like(shared.params_P, 2.0**-10)


class OneWorker:
    """A worker in a process of its own, in the place of `TaskWorker`."""

    def __init__(self, config: Any) -> None:
        self._shortest = shortest_s(config.tasks_per_iteration)

    def ready(self) -> str:
        """Its name."""
        return f"pid {os.getpid()}"

    def adapt_and_collect(self, shared: SharedState, spec: TaskSpec) -> tuple[TaskResult, list[np.ndarray]]:
        """First pass."""
        time.sleep(delay_s(spec, self._shortest))
        return first_answer(shared, spec)

    def revisit(self, shared: SharedState, spec: TaskSpec, kept: list[np.ndarray]) -> TaskResult:
        """Later pass."""
        time.sleep(delay_s(spec, self._shortest))
        return later_answer(shared, spec)


class Host:
    """Many workers in one process: all they do at the same time is wait."""

    def __init__(self) -> None:
        self._shortest, self._straggler = 0.0, False

    async def expect(self, shortest: float, straggler: bool = False) -> list[str]:
        """How long tasks take from now on. Returns which modules are loaded that should not be."""
        self._shortest, self._straggler = shortest, straggler
        return [name for name in ("torch", "gymnasium") if name in sys.modules]

    async def ready(self) -> str:
        """The name of every worker in this process."""
        return f"pid {os.getpid()}"

    async def adapt_and_collect(self, shared: SharedState, spec: TaskSpec) -> tuple[TaskResult, list[np.ndarray]]:
        """First pass."""
        await asyncio.sleep(delay_s(spec, self._shortest, self._straggler))
        return first_answer(shared, spec)

    async def fetch_and_call(
        self, method: str, shared: SharedState, spec: TaskSpec, kept: list[ray.ObjectRef], fetch_s: float
    ) -> TaskResult:
        """Later pass, as the pool asks for it: the kept value is fetched here."""
        assert method == "revisit", method
        await asyncio.wait_for(kept[0], 10 * fetch_s)
        await asyncio.sleep(delay_s(spec, self._shortest))
        return later_answer(shared, spec)


class Crowd:
    """What ``ray.remote(worker_class)`` is to `Actors`, but its actors are processes that there are already."""

    def __init__(self, hosts: list[Any]) -> None:
        self._hosts = itertools.cycle(hosts)

    def options(self, **_: Any) -> Crowd:
        """They have been given."""
        return self

    def remote(self, *_: Any) -> Any:
        """The handle of the next simulated worker."""
        return next(self._hosts)


class StoreWatch:
    """Looks at all nodes' object stores, from a process that is not measured. What it asks is not public in Ray."""

    def __init__(self) -> None:
        self._peaks: dict[str, float] = {}
        self._watching = True

    async def watch(self) -> None:
        """Until `stop`."""
        while self._watching:
            self._look()
            await asyncio.sleep(0.2)

    async def take(self) -> dict[str, float]:
        """The largest numbers since the last call, MB: in the stores, of that outside their limit; and in all since
        the nodes started: written to disk, read from it."""
        self._look()
        peaks, self._peaks = self._peaks, {}
        return peaks

    async def stop(self) -> None:
        """Ends `watch`."""
        self._watching = False

    def _look(self) -> None:
        for node in ray.nodes():
            place = "driver" if "driver" in node["Resources"] else "workers"
            stats = internal_api.node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False).store_stats
            for name, value in (
                ("store_mb", stats.object_store_bytes_used),
                ("beyond_limit_mb", stats.object_store_bytes_fallback),
                ("written_mb", stats.spilled_bytes_total),
                ("read_mb", stats.restored_bytes_total),
            ):
                key = f"{place}_{name}"
                self._peaks[key] = max(value / 1e6, self._peaks.get(key, 0.0))


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has had, all its threads, to a hundredth."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb() -> dict[str, float]:
    """This process's resident memory: its own, and pages of the object store that it has touched."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[key].split()[0]) * 1024 / 1e6 for name, key in (("own", "RssAnon"), ("shared", "RssShmem"))}
