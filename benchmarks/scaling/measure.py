"""The real driver on two nodes of this machine, its own and that of simulated workers; clocks and memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import ray
from ray.cluster_utils import Cluster

from scaling.workers import Crowd, Host, OneWorker, StoreWatch, cpu_s, memory_mb, shortest_s
from ssm_metarl.config import load_config
from ssm_metarl.runtime.driver import MetaTrainer
from ssm_metarl.runtime.metrics import Sink
from ssm_metarl.runtime.pool import RayPool

WIDTHS = {0.1: 155, 1.0: 497, 10.0: 1578}
"""MB of parameters -> width of an MLP policy that has as many, within 0.2 %."""
STORE_MB = {"driver": 2000, "workers": 4000}
NUM_HOSTS = 4
SETTLE_S = 0.3
"""What the driver still does so long after an iteration (releasing objects) counts as part of it."""
BACKLOG_S = 0.1
"""The shortest task where answers are to come faster than the driver takes them."""


class Nodes:
    """The driver's node, the workers' node, and some processes on it that are the workers."""

    def __init__(self, num_cpus: int) -> None:
        driver, workers = (STORE_MB[name] * 10**6 for name in ("driver", "workers"))
        head = {"num_cpus": 0, "resources": {"driver": 1}, "object_store_memory": driver}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        second = self._cluster.add_node(num_cpus=num_cpus, resources={"workers": 1}, object_store_memory=workers)
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level="ERROR")
        make = ray.remote(Host).options(num_cpus=0, resources={"workers": 0.001}, max_concurrency=10_000)
        self.hosts = [make.remote() for _ in range(NUM_HOSTS)]
        loaded = ray.get([host.expect.remote(1.0) for host in self.hosts])
        assert not any(loaded), f"a simulated worker has loaded {loaded}"
        pids = [int(name.split()[1]) for name in ray.get([host.ready.remote() for host in self.hosts])]
        first = self._cluster.head_node.all_processes
        self._pids = {
            "raylet": [first["raylet"][0].process.pid],
            "gcs": [first["gcs_server"][0].process.pid],
            "workers_node": [second.all_processes["raylet"][0].process.pid, *pids],
        }

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far: the raylet beside the driver (with its object store), GCS, and the workers' node."""
        return {name: sum(map(cpu_s, pids)) for name, pids in self._pids.items()}

    def close(self) -> None:
        """Ends all of it."""
        ray.shutdown()
        self._cluster.shutdown()


@contextmanager
def nodes(num_cpus: int = 2) -> Iterator[Nodes]:
    """`Nodes` that end with the context."""
    made = Nodes(num_cpus)
    try:
        yield made
    finally:
        made.close()


class Marked:
    """A pool that notes where the clocks are when a pass begins."""

    def __init__(self, pool: RayPool) -> None:
        self._pool, self.marks = pool, []

    @property
    def num_workers(self) -> int:
        """Those of the pool."""
        return self._pool.num_workers

    def map(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        """That of the pool."""
        self.marks.append(clocks())
        yield from self._pool.map(*arguments, **options)


class Arm:
    """One configuration: a trainer and its pool.

    Args:
        megabytes: of the policy's parameters.
        num_tasks: per iteration.
        hosts: who stands for the workers; none: a real process for each.
        num_workers: calls in flight; None: a worker for every task.
        backlog: tasks are so short that answers queue up at the driver.
        sinks: the trainer's.
    """

    def __init__(
        self,
        megabytes: float,
        num_tasks: int,
        hosts: list[Any],
        num_workers: int | None = None,
        backlog: bool = False,
        sinks: tuple[Sink, ...] = (),
    ) -> None:
        self.megabytes, self.num_tasks, self.hosts, self.backlog = megabytes, num_tasks, hosts, backlog
        self.num_workers = num_workers or num_tasks
        self.shortest = BACKLOG_S if backlog else shortest_s(self.num_workers)
        self.events: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as folder:  # nothing is written: no checkpoint is ever due
            config = load_config(None, self._settings(folder))
            self.trainer = MetaTrainer(config, sinks)
        with _stand_in(hosts):
            self.pool = Marked(RayPool(config, self.num_workers, self.events.append))

    def _settings(self, folder: str) -> dict[str, Any]:
        return {
            "policy.core": "mlp",
            "policy.hidden_dim": WIDTHS[self.megabytes],
            "tasks_per_iteration": self.num_tasks,
            "algorithm": "promp",
            "outer.num_passes": 2,
            "iterations": 10**6,
            "checkpoint.every": 10**6,
            "eval.every": 0,
            "workers.start_timeout_s": 600.0,
            "workers.cpus_per_worker": 0.001 if self.hosts else 1.0,
            "run.dir": folder,
        }

    def step(self, cluster: Nodes, straggler: bool = False) -> list[dict[str, Any]]:
        """One iteration; milliseconds per task of the first pass, and of the later one."""
        ray.get([host.expect.remote(self.shortest, straggler) for host in self.hosts])
        self.pool.marks.clear()
        others, began = cluster.cpu_s(), clocks()
        self.trainer.train(self.pool, self.trainer.iteration + 1)
        done = clocks()
        time.sleep(SETTLE_S)
        marks = [began, self.pool.marks[1], {**clocks(), "wall": done["wall"]}]
        # Known to a hundredth of a second, too coarse for one pass of a few tasks: the mean of both.
        rest = {name: (now - others[name]) / 2 for name, now in cluster.cpu_s().items()}
        records = []
        for name, start, end in zip(("first", "later"), marks[:2], marks[1:], strict=True):
            spent = {clock: end[clock] - start[clock] for clock in start} | rest
            per_task = {f"{clock}_ms": 1000 * seconds / self.num_tasks for clock, seconds in spent.items()}
            records.append({"mb": self.megabytes, "tasks": self.num_tasks, "pass": name, **per_task})
        return records


def _stand_in(hosts: list[Any]) -> Any:
    """While a pool is made: its actors are the hosts, or real ones of the class that only waits."""
    if hosts:
        return mock.patch("ray.remote", lambda _: Crowd(hosts))
    return mock.patch("ssm_metarl.runtime.pool.TaskWorker", OneWorker)


def clocks() -> dict[str, float]:
    """Seconds: CPU of all threads of this process, CPU of this thread alone, wall."""
    return {"cpu": time.process_time(), "main": time.thread_time(), "wall": time.perf_counter()}


def yardstick_ms() -> float:
    """CPU time of a fixed piece of work: how fast the processor is just now, with whoever else uses it."""
    began = time.process_time()
    sum(number * number for number in range(300_000))
    return 1000 * (time.process_time() - began)


def cost(iterations: int, arms: list[tuple[float, int, bool]]) -> dict[str, Any]:
    """Every (MB, tasks, backlog), in turn."""
    with nodes() as cluster:
        made = [Arm(mb, count, cluster.hosts, backlog=backlog) for mb, count, backlog in arms]
        records = _in_turn(made, cluster, iterations)
        for mb in {arm.megabytes for arm in made}:
            results = {arm.trainer.params_P.tobytes() for arm in made if arm.megabytes == mb}
            assert len(results) == 1, "the same gradients must make the same parameters, however many tasks"
        return {"records": records, "events": [event for arm in made for event in arm.events]}


def processes(iterations: int, mb: float, count: int) -> dict[str, Any]:
    """Real worker processes, through the real `Actors`, beside as many workers in a few processes."""
    with nodes(num_cpus=count) as cluster:
        arms = [Arm(mb, count, hosts) for hosts in (cluster.hosts, [])]
        records = _in_turn(arms, cluster, iterations, warm_up=2)
        return {"records": records, "events": [event for arm in arms for event in arm.events]}


def _in_turn(arms: list[Arm], cluster: Nodes, iterations: int, warm_up: int = 1) -> list[dict[str, Any]]:
    """The arms' records, each iteration in another order; the first ones, in which workers start, do not count."""
    records = []
    for iteration in range(-warm_up, iterations):
        shift = iteration % len(arms)
        for arm in [*arms[shift:], *arms[:shift]]:
            common = {"processes": len(arm.hosts) or arm.num_tasks, "backlog": arm.backlog, "iteration": iteration}
            common["yardstick_ms"] = yardstick_ms()
            records += [{**record, **common} for record in arm.step(cluster) if iteration >= 0]
    return records


class PeakMemory(Sink):
    """The largest resident memory of this process since the last `take`, looked at every so many results."""

    def __init__(self, every: int) -> None:
        self._every, self._peak = every, {}

    def task(self, iteration: int, num_done: int, num_tasks: int) -> None:
        if num_done % self._every == 0:
            self._look()

    def take(self) -> dict[str, float]:
        """MB, and starts anew."""
        self._look()
        peak, self._peak = self._peak, {}
        return {f"peak_{name}_mb": value for name, value in peak.items()}

    def _look(self) -> None:
        self._peak = {name: max(value, self._peak.get(name, 0.0)) for name, value in memory_mb().items()}


def memory(
    iterations: int, mb: float, count: int, num_workers: int | None = None, straggler: bool = False
) -> dict[str, Any]:
    """One configuration alone: memory at the end of every iteration, and the peaks in it."""
    peak = PeakMemory(every=max(1, count // 50))
    with nodes() as cluster:
        watch = ray.remote(StoreWatch).options(num_cpus=0, resources={"workers": 0.001}, max_concurrency=4).remote()
        watching = watch.watch.remote()
        arm = Arm(mb, count, cluster.hosts, num_workers, sinks=(peak,))
        rows = []
        for _ in range(iterations):
            began = time.perf_counter()
            first, later = arm.step(cluster, straggler)
            row = {"seconds": time.perf_counter() - began, "first_cpu_ms": first["cpu_ms"]}
            # Before the peak, which is looked at once more: memory that grows in between must not lie above its peak.
            row |= {f"{name}_mb": value for name, value in memory_mb().items()}
            rows.append(row | {"later_cpu_ms": later["cpu_ms"], **ray.get(watch.take.remote()), **peak.take()})
        ray.get([watch.stop.remote(), watching])
        what = {"mb": mb, "tasks": count, "workers": arm.num_workers, "straggler": straggler}
        return {**what, "rows": rows, "events": arm.events}
