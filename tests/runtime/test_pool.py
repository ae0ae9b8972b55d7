"""The pools with a stand-in worker that fails on command. Ray is started once per session."""

import ctypes
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ssm_metarl.config import load_config
from ssm_metarl.env_runner.tasks import TaskError
from ssm_metarl.runtime import machine
from ssm_metarl.runtime import pool as pool_module
from ssm_metarl.runtime.actors import Actor
from ssm_metarl.runtime.pool import LocalPool, PoolError, RayPool
from ssm_metarl.types import SharedState, Stream, TaskSpec

SHARED = SharedState(np.arange(3, dtype=np.float32))


class FaultyWorker:
    """Adds numbers; what goes wrong is written in the task: ``{"fault": code, "folder"-file counts how often}``."""

    folder = ""

    def __init__(self, config):
        self.config = config

    def ready(self):
        return os.getpid()

    def add(self, shared, spec):
        misbehave(self.folder, spec)
        return float(shared.params_P.sum()) + spec.task_index

    def make(self, shared, spec):
        misbehave(self.folder, spec)
        return spec.task_index, np.full(200_000, spec.task_index + shared.params_P.sum())

    def use(self, shared, spec, kept):
        misbehave(self.folder, spec)
        return float(kept.mean())


def misbehave(folder, spec):
    """Fails ``times`` times in all, over any number of processes: each failure leaves a file behind."""
    fault, times = spec.task.get("fault", 0), spec.task.get("times", 0)
    for number in range(int(times)):
        mark = Path(folder) / f"{spec.task_index}-{number}"
        if not mark.exists():
            mark.touch()
            FAULTS[FAULT_NAMES[int(fault)]]()


FAULTS = {
    "raise": lambda: 1 / 0,
    "exit": lambda: os._exit(1),
    "kill": lambda: os.kill(os.getpid(), 9),
    "segfault": lambda: ctypes.string_at(0),
    "hang": lambda: time.sleep(3600),
}
FAULT_NAMES = list(FAULTS)


@pytest.fixture
def make_pool(ray_session, monkeypatch, tmp_path):
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray_session.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    worker = type("FaultyWorkerHere", (FaultyWorker,), {"folder": str(tmp_path)})
    monkeypatch.setattr(pool_module, "TaskWorker", worker)
    pools, events = [], []

    def make(num_workers=2, **settings):
        config = load_config(None, {"workers.cpus_per_worker": 0.5, "workers.task_deadline_s": 60.0, **settings})
        pools.append(RayPool(config, num_workers, events.append) if num_workers else LocalPool(config, events.append))
        return pools[-1], events

    yield make
    for pool in pools:
        pool.close()


def make_specs(count, **task):
    """The task's fault belongs to the spec in the middle."""
    return [
        TaskSpec(0, Stream.TRAIN, 0, index, task if index == count // 2 else {}, num_adaptation_steps=1)
        for index in range(count)
    ]


@pytest.mark.parametrize("num_workers", [0, 3])
def test_results_come_in_the_order_of_the_specs(make_pool, num_workers):
    pool, events = make_pool(num_workers)
    assert list(pool.map("add", SHARED, make_specs(7))) == [3.0 + index for index in range(7)]
    assert list(pool.map("add", SHARED, [])) == []
    assert events == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_kept_values_reach_a_later_call_on_any_worker(make_pool, num_workers):
    pool, _ = make_pool(num_workers)
    specs = make_specs(5)
    pairs = list(pool.map("make", SHARED, specs, keep=True))
    assert [result for result, _ in pairs] == [0, 1, 2, 3, 4]
    handles = [handle for _, handle in pairs]
    for _ in range(2):
        assert list(pool.map("use", SHARED, specs, handles)) == [3.0, 4.0, 5.0, 6.0, 7.0]


@pytest.mark.parametrize(("fault", "times"), [("raise", 1), ("exit", 1), ("kill", 2), ("segfault", 1)])
def test_a_worker_that_fails_is_replaced_and_its_spec_is_done(make_pool, fault, times):
    pool, events = make_pool(1)
    specs = make_specs(5, fault=FAULT_NAMES.index(fault), times=times)
    assert list(pool.map("add", SHARED, specs)) == [3.0 + index for index in range(5)]
    assert [event["event"] for event in events].count("respawn") == times
    assert [event["event"] for event in events].count("retry") == times
    assert "task=2" in events[1]["spec"]


def test_a_call_that_hangs_meets_its_deadline(make_pool):
    pool, events = make_pool(1, **{"workers.task_deadline_s": 2.0})
    specs = make_specs(3, fault=FAULT_NAMES.index("hang"), times=1)
    assert list(pool.map("add", SHARED, specs)) == [3.0, 4.0, 5.0]
    assert any("workers.task_deadline_s = 2 s" in event["cause"] for event in events)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_spec_that_always_fails_ends_the_run_and_is_named(make_pool, num_workers):
    pool, _ = make_pool(num_workers)
    specs = make_specs(5, fault=FAULT_NAMES.index("raise"), times=9)
    with pytest.raises(TaskError, match=r"iteration=0 task=2 .* failed 3 times.*division by zero"):
        list(pool.map("add", SHARED, specs))
    assert list(pool.map("add", SHARED, make_specs(3))) == [3.0, 4.0, 5.0], "the pool goes on"


def lost_object(ray):
    """A reference to an object that died with the process that owned it."""

    class Owner:
        def put(self):
            return [ray.put(np.zeros(200_000))]

    owner = ray.remote(Owner).options(num_cpus=0).remote()
    [ref] = ray.get(owner.put.remote(), timeout=60)
    ray.kill(owner)
    deadline = time.monotonic() + 20
    with pytest.raises(ray.exceptions.ObjectLostError):
        while time.monotonic() < deadline:
            ray.get(ref, timeout=20)
            time.sleep(0.1)
    return ref


def test_a_lost_kept_value_is_made_again_by_the_call_that_made_it(make_pool, ray_session):
    pool, events = make_pool()
    specs = make_specs(4)
    handles = [handle for _, handle in pool.map("make", SHARED, specs, keep=True)]
    handles[1].ref = lost_object(ray_session)
    later = SharedState(np.full(3, 100.0, np.float32))
    assert list(pool.map("use", later, specs, handles)) == [3.0, 4.0, 5.0, 6.0], (
        "made under the state that collected it"
    )
    assert [event["event"] for event in events].count("recollect") == 1
    assert list(pool.map("use", later, specs, handles)) == [3.0, 4.0, 5.0, 6.0]


@pytest.mark.parametrize(("maker_died", "fetches"), [(False, 3), (True, 0)])
def test_a_kept_value_that_does_not_come_is_made_again(make_pool, ray_session, monkeypatch, maker_died, fetches):
    """A machine that is gone does not say so: whoever waits for what lies there gives up, and stays alive."""
    monkeypatch.setattr(pool_module, "FIRST_FETCH_S", 0.05)
    monkeypatch.setattr(pool_module, "MAX_FETCHES", 3)
    pool, events = make_pool(1)
    specs = make_specs(3)
    handles = [handle for _, handle in pool.map("make", SHARED, specs, keep=True)]
    pid = worker_pid(pool)
    never = ray_session.remote(num_cpus=0)(lambda: time.sleep(60)).remote()
    handles[1].ref, handles[1].maker = never, Actor(None, died=maker_died)
    calls = []
    take = pool._actors.take
    monkeypatch.setattr(pool._actors, "take", lambda: calls.append(1) or take())
    assert list(pool.map("use", SHARED, specs, handles)) == [3.0, 4.0, 5.0]
    assert [event["event"] for event in events] == ["recollect"]
    assert len(calls) == 3 + 1 + fetches
    assert worker_pid(pool) == pid
    ray_session.cancel(never, force=True)


def test_a_kept_value_that_comes_late_is_waited_for(make_pool, ray_session, monkeypatch):
    monkeypatch.setattr(pool_module, "FIRST_FETCH_S", 0.3)
    pool, events = make_pool(1)
    [(_, handle)] = pool.map("make", SHARED, make_specs(1), keep=True)
    kept = ray_session.get(handle.ref)
    handle.ref = ray_session.remote(num_cpus=0)(lambda: time.sleep(1.0) or kept).remote()
    assert list(pool.map("use", SHARED, make_specs(1), [handle])) == [3.0]
    assert events == []


def test_a_caller_that_walks_away_leaves_no_work_behind(make_pool):
    pool, _ = make_pool()
    results = pool.map("add", SHARED, make_specs(6, fault=FAULT_NAMES.index("hang"), times=1))
    assert next(results) == 3.0
    results.close()
    assert list(pool.map("add", SHARED, make_specs(3))) == [3.0, 4.0, 5.0]


def test_workers_that_cannot_start_say_why(make_pool, monkeypatch):
    class Broken(FaultyWorker):
        def __init__(self, config):
            raise OSError("no such simulator")

    monkeypatch.setattr(pool_module, "TaskWorker", Broken)
    pool, events = make_pool(1, **{"workers.max_respawns": 1})
    with pytest.raises(
        PoolError, match=r"workers.max_respawns = 1 .*worker died while starting: OSError: no such simul"
    ):
        list(pool.map("add", SHARED, make_specs(2)))
    assert [event["event"] for event in events] == ["respawn", "respawn"]


def test_a_worker_that_dies_while_starting_is_replaced(make_pool, monkeypatch, tmp_path):
    class Unlucky(FaultyWorker):
        folder = str(tmp_path)

        def __init__(self, config):
            mark = Path(self.folder) / "start"
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), 9)

    monkeypatch.setattr(pool_module, "TaskWorker", Unlucky)
    pool, events = make_pool(1)
    assert list(pool.map("add", SHARED, make_specs(2))) == [3.0, 4.0]
    assert [event["event"] for event in events] == ["respawn"], "a start is no attempt at a spec"


def test_workers_that_died_while_idle_cost_no_attempts(make_pool, ray_session):
    """A node with all workers but one goes between two calls: no spec may use up its attempts on the dead."""
    pool, events = make_pool(4)
    assert len(list(pool.map("add", SHARED, make_specs(40)))) == 40
    deadline = time.monotonic() + 60
    while len(pool._actors.idle) < 4:
        assert time.monotonic() < deadline
        list(pool.map("add", SHARED, make_specs(4)))
    pids = [ray_session.get(actor.handle.ready.remote(), timeout=20) for actor in pool._actors.idle]
    for pid in pids[1:]:
        os.kill(pid, 9)
    assert list(pool.map("add", SHARED, make_specs(1))) == [3.0]
    attempts = [event["attempt"] for event in events if event["event"] == "retry"]
    assert attempts in ([], [1]), events


def test_replacements_come_ever_more_slowly_when_nothing_gets_done(make_pool, monkeypatch):
    pool, _ = make_pool(2)
    slept, actors = [], pool._actors
    clock = [1000.0]
    monkeypatch.setattr("ssm_metarl.runtime.actors.time.monotonic", lambda: clock[0])
    for _ in range(6):
        actors._start_after = 0.0
        actors.lose(Actor(actors._class.remote(actors._config_ref)), RuntimeError("gone"))
        slept.append(max(0.0, actors._start_after - clock[0]))
    assert slept == [0, 0, 1, 2, 4, 8]
    with pytest.raises(PoolError, match="7 workers were lost in a row"):
        actors.lose(Actor(actors._class.remote(actors._config_ref)), RuntimeError("gone"))


def test_a_finished_call_ends_the_row_of_losses(make_pool):
    pool, events = make_pool(1, **{"workers.max_respawns": 1})
    for _ in range(3):
        os.kill(worker_pid(pool), 9)
        assert list(pool.map("add", SHARED, make_specs(2))) == [3.0, 4.0]
    assert [event["event"] for event in events].count("respawn") == 3


def worker_pid(pool):
    list(pool.map("add", SHARED, make_specs(1)))
    [actor] = pool._actors.idle
    return actor.name


def test_what_happened_is_told_with_worker_spec_and_cause(make_pool):
    pool, events = make_pool(1)
    pid = worker_pid(pool)
    list(pool.map("add", SHARED, make_specs(3, fault=FAULT_NAMES.index("exit"), times=1)))
    respawn, retry = events
    assert respawn["worker"] == pid and respawn["cause"].startswith("worker died: Worker ")
    assert "task=1" in retry["spec"] and retry["attempt"] == 1 and "\n" not in retry["cause"]


def test_a_cluster_without_room_is_waited_for_aloud_and_not_for_ever(make_pool, monkeypatch):
    monkeypatch.setattr("ssm_metarl.runtime.actors.WAITING_NOTICE_S", 0.5)
    pool, events = make_pool(1, **{"workers.cpus_per_worker": 64.0, "workers.start_timeout_s": 3.0})
    with pytest.raises(PoolError, match=r"workers.start_timeout_s = 3 s; waiting for .* wanted 1 workers x 64 CPUs"):
        list(pool.map("add", SHARED, make_specs(2)))
    assert events[0]["event"] == "waiting" and "0 of 1 workers; waiting for resources" in events[0]["cause"]


def test_work_goes_on_with_fewer_workers_than_wanted(make_pool, monkeypatch):
    """A cluster with room for two of three: it is said, once, and the third is asked for again and again."""
    monkeypatch.setattr("ssm_metarl.runtime.actors.WAITING_NOTICE_S", 0.5)
    pool, events = make_pool(3, **{"workers.cpus_per_worker": 2.0, "workers.start_timeout_s": 6.0})
    began = time.monotonic()
    while time.monotonic() < began + 9:
        assert list(pool.map("add", SHARED, make_specs(4))) == [3.0, 4.0, 5.0, 6.0]
        time.sleep(0.5)
    assert {event["event"] for event in events} == {"waiting"}
    assert (
        "2 of 3 workers" in events[-2]["cause"]
        or "did not answer within workers.start_timeout_s" in events[-1]["cause"]
    )
    assert len(events) <= 4


@pytest.mark.parametrize(
    ("cores", "limit", "per_worker", "num_workers"),
    [(8, None, 1.0, 8), (8, 2.5, 1.0, 2), (64, None, 0.5, 10), (1, 0.3, 1, 1)],
)
def test_auto_takes_what_this_process_may_use(monkeypatch, cores, limit, per_worker, num_workers):
    """Ten tasks; a container's limit counts as well as the cores that are seen in it."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(pool_module.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(machine, "num_cores", lambda: cores)
    monkeypatch.setattr(machine, "cpu_limit", lambda: limit)
    config = load_config(None, {"workers.num_workers": "auto", "workers.cpus_per_worker": per_worker})
    assert config.tasks_per_iteration == 10
    assert pool_module._affordable(config) == num_workers


def test_all_cpus_are_free_afterwards(make_pool, ray_session):
    pool, _ = make_pool(1)
    list(pool.map("add", SHARED, make_specs(4, fault=FAULT_NAMES.index("kill"), times=1)))
    pool.close()
    deadline = time.monotonic() + 20
    while ray_session.available_resources().get("CPU") != ray_session.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, ray_session.available_resources()
        time.sleep(0.2)
