"""A node of a cluster dies. The cluster is of this machine's processes; it needs a process without another Ray."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import ray
from processes import descendants, kill, wait_until, worker_pids
from ray.cluster_utils import Cluster

from scenarios.common import Ear, Record, train

STORE = 100 * 2**20
WHEN = ("in a rollout", "between passes")
LARGE: dict[str, Any] = {
    "iterations": 3,
    "env.horizon": 20,
    # Kept rollouts above 100 KB stay on the node of the worker that made them; smaller ones travel to the driver.
    "env.episodes_per_task": 400,
    "workers.cpus_per_worker": 1.0,
}


def killed_nodes(folder: Path, n: int, moments: tuple[str, ...] = WHEN) -> Record:
    """SIGKILL of all processes of one of two nodes, in a rollout and between passes."""
    promise = "same hash, the iteration done within 10 s on the survivors"
    record = Record("killed node", promise, n * len(moments))
    expected = train(folder, {**LARGE, "workers.num_workers": 0}).params_sha256
    slowest, events = 0.0, Counter()
    for when in moments:
        for trial in range(n):
            seconds, counts, found = _run_with_a_killed_node(folder, when)
            what = f"{when}, trial {trial}: {dict(counts)}"
            record.check(found == expected, f"{what}: another hash")
            record.check(seconds <= 10.0, f"{what}: the iteration was done {seconds:.1f} s after the kill")
            lost = counts["respawn"] if when == WHEN[0] else counts["recollect"]
            record.check(lost > 0, f"{what}: nothing was lost")
            slowest, events = max(slowest, seconds), events + counts
    record.detail = (
        f"{n} each {' and '.join(moments)}; iteration done at most {slowest:.1f} s after the kill; "
        f"{events['respawn']} respawns, {events['recollect']} recollections"
    )
    return record


def _run_with_a_killed_node(folder: Path, when: str) -> tuple[float, Counter[str], str]:
    """Seconds from the kill to the end of the iteration, what was told, and the hash."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE})
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=STORE) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
        moments: list[float] = []

        def interfere(iteration: int, done: int, total: int) -> None:
            if iteration == 0 and done == total:
                wait_until(lambda: len(worker_pids(ready=True)) == 2, 60, "both workers ready")
            if (iteration, done) == (1, 1 if when == WHEN[0] else total):
                victims = [process.pid for process in descendants(raylets[0])]
                for pid in (raylets[0], *victims):
                    kill(pid)
                moments.append(time.monotonic())

        ends: list[float] = []
        ear = Ear(on_task=interfere, on_iteration=lambda _: ends.append(time.monotonic()))
        summary = train(folder, {**LARGE, "workers.num_workers": 2}, ear=ear)
        return ends[1] - moments[0], ear.count(), summary.params_sha256
    finally:
        ray.shutdown()
        cluster.shutdown()
