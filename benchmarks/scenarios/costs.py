"""What reliability costs, and whether anything grows: long runs in a process without another Ray."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import ray
from processes import kill, wait_until, worker_pids

from scenarios.common import Ear, Record, make_config
from ssm_metarl.runtime.driver import MetaTrainer
from ssm_metarl.runtime.metrics import read_metrics
from ssm_metarl.runtime.pool import RayPool, make_pool

STORE = 200 * 2**20
DEFAULT = {"env.episodes_per_task": 10, "env.horizon": None, "policy.hidden_dim": 32, "tasks_per_iteration": 10}
"""The default configuration's sizes, instead of those of small runs."""
LONG = {**DEFAULT, "env.episodes_per_task": 200}
"""Tasks of some tenths of a second."""


def start_ray(num_cpus: int = 2) -> None:
    """A Ray of our own, small."""
    ray.init(
        "local",
        num_cpus=num_cpus,
        include_dashboard=False,
        object_store_memory=STORE,
        log_to_driver=False,
        logging_level="ERROR",
    )


def endurance(folder: Path, iterations: int, respawns: int, seed: int = 0) -> Record:
    """One long run; a random worker is killed every few iterations. The driver's second half is no larger than its
    first.
    """
    record = Record("endurance", "no growth of memory, descriptors, threads, Ray objects; all CPUs free at the end", 1)
    rng, every, samples = random.Random(seed), iterations // respawns, []

    def after(iteration: int) -> None:
        samples.append(_resources())
        if iteration % every == every - 1:
            wait_until(lambda: len(worker_pids(ready=True)) == 2, 60, "both workers ready")
            kill(rng.choice(worker_pids()))

    start_ray()
    try:
        config = make_config(folder, **{"iterations": iterations, "workers.num_workers": 2})
        ear = Ear(on_iteration=after)
        MetaTrainer(config, [ear]).run()
        free = _all_free(20.0)
    finally:
        ray.shutdown()
    counted = sum(line["respawns"] for line in read_metrics(folder / config.run.name))
    record.check(counted >= respawns - 1, f"{counted} respawns instead of {respawns}")
    record.check(free, "CPUs are still taken after the end")
    parts = []
    for name, allowed in (("rss_mib", 4.0), ("descriptors", 4), ("threads", 4), ("objects", 4), ("store_mib", 1.0)):
        values = np.array([sample[name] for sample in samples])
        third, last = (np.median(part) for part in np.array_split(values, 4)[2:])
        record.check(last - third <= allowed, f"{name} grew from {third:.4g} to {last:.4g}")
        parts.append(f"{name} {np.median(np.array_split(values, 4)[1]):.4g}, {third:.4g}, {last:.4g}")
    record.detail = f"{iterations} iterations, {counted} respawns; medians of quarters 2, 3, 4: {'; '.join(parts)}"
    return record


def _resources() -> dict[str, float]:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    total, free = ray.cluster_resources(), ray.available_resources()
    return {
        "rss_mib": float(status["VmRSS"].split()[0]) / 1024,
        "threads": float(status["Threads"]),
        "descriptors": float(len(os.listdir("/proc/self/fd"))),
        # The only count of a driver's references that Ray has; it is not public.
        "objects": float(len(ray._private.worker.global_worker.core_worker.get_all_reference_counts())),
        "store_mib": (total["object_store_memory"] - free.get("object_store_memory", 0.0)) / 2**20,
    }


def _all_free(within_s: float) -> bool:
    try:
        wait_until(
            lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"], within_s, "", every_s=0.2
        )
    except TimeoutError:
        return False
    return True


def pool_cost(folder: Path, n: int, sizes: Sequence[dict[str, Any]] = (DEFAULT, LONG)) -> Record:
    """A first pass through the pool against a bare list of calls on the same actors, in turn."""
    record = Record("cost of the pool", "ratio of medians <= 1.02", n * len(sizes))
    start_ray()
    parts = []
    try:
        for size in sizes:
            config = make_config(folder, **size, **{"workers.num_workers": 2, "workers.cpus_per_worker": 1.0})
            trainer = MetaTrainer(config)
            specs, shared = trainer._training_specs(), trainer.shared
            with closing(RayPool(config, 2, print)) as pool:

                def through_pool(pool: RayPool = pool, shared: Any = shared, specs: Any = specs) -> list[float]:
                    return [result.seconds for result, _ in pool.map("adapt_and_collect", shared, specs, keep=True)]

                def bare(pool: RayPool = pool, shared: Any = shared, specs: Any = specs) -> list[float]:
                    actors, shared_ref = _actors(pool), ray.put(shared)
                    calls = [actors[i % len(actors)].adapt_and_collect for i in range(len(specs))]
                    refs = [
                        call.options(num_returns=2).remote(shared_ref, spec)
                        for call, spec in zip(calls, specs, strict=True)
                    ]
                    return [result.seconds for result in ray.get([first for first, _ in refs])]

                for _ in range(3):
                    through_pool()
                wait_until(lambda: len(worker_pids(ready=True)) == 2, 60, "both workers ready")
                through_pool()
                times, task_s = _interleave(n, through_pool, bare)
            ratio, low, high = _ratio_of_medians(times[:, 0], times[:, 1])
            what = f"tasks of {1000 * task_s:.0f} ms: {ratio:.3f} [{low:.3f}, {high:.3f}]"
            record.check(ratio <= 1.02, what)
            parts.append(what)
    finally:
        ray.shutdown()
    record.detail = "; ".join(parts)
    return record


def _actors(pool: RayPool) -> list[Any]:
    """The handles of a pool's idle workers."""
    return [actor.handle for actor in pool._actors.idle]


def _interleave(n: int, *arms: Callable[[], list[float]]) -> tuple[np.ndarray, float]:
    """Seconds [n, arms] of these functions in alternating order, and the median of the seconds that they return."""
    times, inner = np.zeros((n, len(arms))), []
    for trial in range(n):
        for arm in range(len(arms)) if trial % 2 else reversed(range(len(arms))):
            began = time.perf_counter()
            inner += arms[arm]()
            times[trial, arm] = time.perf_counter() - began
    return times, float(np.median(inner))


def _ratio_of_medians(one: np.ndarray, other: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Median over median, with a 95 % interval: pairs are resampled."""
    draws = np.random.default_rng(seed).integers(len(one), size=(2000, len(one)))
    ratios = np.median(one[draws], axis=1) / np.median(other[draws], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(np.median(one) / np.median(other)), float(low), float(high)


def checkpoint_cost(folder: Path, n: int) -> Record:
    """Iterations of the default configuration with a checkpoint after each, against none, in turn on one pool.

    The save itself is measured with far less noise than the difference of two runs: the promise, which is about a run
    with the default ``checkpoint.every``, is judged by it.
    """
    record = Record("cost of checkpoints", "with / without <= 1.01", n)
    start_ray()
    saves: list[float] = []
    try:
        config = make_config(folder, **DEFAULT, **{"workers.num_workers": 2, "workers.cpus_per_worker": 1.0})
        with closing(make_pool(config, print)) as pool:
            arms = [MetaTrainer(config.override({"run.name": name})) for name in ("with", "without")]
            arms[0]._storage.make()

            def saving() -> list[float]:
                arms[0].step(pool)
                began = time.perf_counter()
                arms[0]._state = arms[0]._snapshot()
                arms[0].save()
                saves.append(time.perf_counter() - began)
                return []

            def plain() -> list[float]:
                return [arms[1].step(pool)["iteration_s"]]

            for _ in range(3):
                plain(), saving()
            saves.clear()
            times, iteration_s = _interleave(n, saving, plain)
    finally:
        ray.shutdown()
    ratio, low, high = _ratio_of_medians(times[:, 0], times[:, 1])
    save_ms, every = 1000 * float(np.median(saves)), config.checkpoint.every
    share = save_ms / 1000 / iteration_s
    record.detail = (
        f"a save takes {save_ms:.1f} ms, {share:.2%} of an iteration of {iteration_s:.2f} s: {1 + share / every:.4f} "
        f"at checkpoint.every {every}; measured with a save after each iteration: {ratio:.3f} [{low:.3f}, {high:.3f}]"
    )
    record.check(1 + share / every <= 1.01, record.detail)
    return record
