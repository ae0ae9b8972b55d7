"""Pools of workers behind one ``map``: in this process (`LocalPool`) or as Ray actors (`RayPool`).

``map(method, shared, specs)`` calls the named `TaskWorker` method on every spec and yields the results in the order of
the specs. With ``keep=True`` the method's second return value stays where it was made, and its opaque handle is yielded
along with the result; handles given to a later ``map`` reach the method as its last argument, on whichever worker is
free.

The pool owns failure. A call that dies with its actor, raises, or outlives its deadline is tried again on a fresh
actor, at most `MAX_ATTEMPTS` times for any cause; results cannot change by it, as they depend on the spec alone.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError

from ssm_metarl.config import TrainConfig
from ssm_metarl.env_runner.tasks import TaskError
from ssm_metarl.runtime.process import ENVIRONMENT
from ssm_metarl.runtime.worker import TaskWorker
from ssm_metarl.types import SharedState, TaskSpec

MAX_ATTEMPTS = 3
WAITING_NOTICE_S = 20.0
POLL_S = 1.0
TRANSFER_TIMEOUT_S = 60.0
_ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

Event = dict[str, Any]
"""What happened to a worker: ``event`` is respawn, retry, recollect or waiting; ``cause`` and ``spec`` say more."""
Report = Callable[[Event], None]


class PoolError(RuntimeError):
    """No worker could be had, or kept."""


class LocalPool:
    """The same interface in this process: no Ray, no other process. It cannot end a call that hangs.

    Args:
        config: the run's configuration.
        report: called with every `Event`.
    """

    num_workers = 0

    def __init__(self, config: TrainConfig, report: Report) -> None:
        self._config = config
        self._report = report
        self._worker = TaskWorker(config)

    def map(
        self,
        method: str,
        shared: SharedState,
        specs: Sequence[TaskSpec],
        handles: Sequence[Any] | None = None,
        keep: bool = False,
    ) -> Iterator[Any]:
        """See the module's docstring. A handle is the kept value itself."""
        for index, spec in enumerate(specs):
            yield self._call(method, (shared, spec) if handles is None else (shared, spec, handles[index]))

    def _call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                return getattr(self._worker, method)(*arguments)
            except Exception as error:
                if attempt == MAX_ATTEMPTS:
                    raise _task_failed(arguments[1], error) from error
                self._report({"event": "retry", "cause": repr(error), "spec": str(arguments[1])})
                self._worker = TaskWorker(self._config)

    def close(self) -> None:
        """Nothing to release."""


@dataclass
class _Handle:
    """A kept value in the object store, and how to make it again should its node be lost."""

    ref: ray.ObjectRef
    method: str
    shared_ref: ray.ObjectRef
    spec: TaskSpec


@dataclass
class _Call:
    """One call on its way; ``index`` is its place in the order of results, None for a recollection."""

    index: int | None
    method: str
    shared_ref: ray.ObjectRef
    spec: TaskSpec
    handle: _Handle | None
    keep: bool
    attempts: int = 0
    then: _Call | None = None
    """The call that waits for this recollection of its handle."""


@dataclass
class _Running:
    call: _Call
    actor: Any
    kept_ref: ray.ObjectRef | None
    deadline: float


class RayPool:
    """Ray actors, one call in flight each; whoever is free takes the next spec.

    Starts Ray on this machine with exactly the CPUs that the workers need, unless Ray runs already or ``RAY_ADDRESS``
    points to a cluster. Work begins with the first actor that is ready; the others join as they come.

    Args:
        config: the run's configuration.
        num_workers: actors to keep alive.
        report: called with every `Event`.

    Raises:
        PoolError: no actor became ready within ``workers.start_timeout_s``.
    """

    def __init__(self, config: TrainConfig, num_workers: int, report: Report) -> None:
        self._config = config
        self._report = report
        self.num_workers = num_workers
        self._owns_ray = start_ray(num_workers * config.workers.cpus_per_worker)
        self._config_ref = ray.put(config)
        self._actor_class = ray.remote(TaskWorker).options(
            num_cpus=config.workers.cpus_per_worker,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=1,
            runtime_env={"env_vars": ENVIRONMENT},
        )
        self._starting: dict[ray.ObjectRef, Any] = {}
        self._idle: list[Any] = []
        self._running: dict[ray.ObjectRef, _Running] = {}
        self._failed_starts = 0
        self._none_since = time.monotonic()
        self._noticed = False
        self._fill()

    def map(
        self,
        method: str,
        shared: SharedState,
        specs: Sequence[TaskSpec],
        handles: Sequence[_Handle] | None = None,
        keep: bool = False,
    ) -> Iterator[Any]:
        """See the module's docstring.

        Raises:
            TaskError: a spec failed `MAX_ATTEMPTS` times; names it and the last cause.
            PoolError: no worker for ``workers.start_timeout_s``.
        """
        shared_ref = ray.put(shared)
        queue = deque(
            _Call(index, method, shared_ref, spec, None if handles is None else handles[index], keep)
            for index, spec in enumerate(specs)
        )
        done: dict[int, Any] = {}
        try:
            for index in range(len(specs)):
                while index not in done:
                    self._advance(queue, done)
                yield done.pop(index)
        finally:
            for running in list(self._running.values()):
                self._drop(running.actor)

    def close(self) -> None:
        """Ends the actors, and Ray if this pool started it."""
        for actor in [*self._idle, *self._starting.values(), *(running.actor for running in self._running.values())]:
            ray.kill(actor, no_restart=True)
        self._idle, self._starting, self._running = [], {}, {}
        if self._owns_ray:
            ray.shutdown()

    def _advance(self, queue: deque[_Call], done: dict[int, Any]) -> None:
        """Hands out work, then waits for the next thing to happen: an answer, an actor that is ready, a deadline."""
        self._fill()
        while queue and self._idle:
            self._dispatch(queue.popleft(), self._idle.pop())
        now = time.monotonic()
        deadlines = [running.deadline for running in self._running.values()]
        patience = max(0.0, min([now + POLL_S, *deadlines]) - now)
        finished, _ = ray.wait([*self._running, *self._starting], num_returns=1, timeout=patience)
        for ref in finished:
            if ref in self._starting:
                self._admit(ref)
            else:
                self._collect(ref, queue, done)
        self._expire(queue)
        self._check_alive()

    def _fill(self) -> None:
        """Starts as many actors as are missing."""
        for _ in range(self.num_workers - len(self._idle) - len(self._running) - len(self._starting)):
            actor = self._actor_class.remote(self._config_ref)
            self._starting[actor.ready.remote()] = actor

    def _drop(self, actor: Any) -> None:
        """Ends an actor whose call has failed or is no longer wanted."""
        self._running = {ref: running for ref, running in self._running.items() if running.actor is not actor}
        ray.kill(actor, no_restart=True)

    def _admit(self, ref: ray.ObjectRef) -> None:
        actor = self._starting.pop(ref)
        try:
            ray.get(ref, timeout=TRANSFER_TIMEOUT_S)
        except RayError as error:
            self._failed_starts += 1
            if self._failed_starts >= MAX_ATTEMPTS:
                raise PoolError(
                    f"{self._failed_starts} workers in a row died while starting; the last because: {error}"
                ) from error
            self._drop(actor)
            self._report({"event": "respawn", "cause": _first_line(error)})
        else:
            self._failed_starts = 0
            self._idle.append(actor)

    def _dispatch(self, call: _Call, actor: Any) -> None:
        call.attempts += 1
        arguments = [call.shared_ref, call.spec]
        if call.handle is not None:
            arguments.append(call.handle.ref)
        refs = getattr(actor, call.method).options(num_returns=2 if call.keep else 1).remote(*arguments)
        result_ref, kept_ref = refs if call.keep else (refs, None)
        deadline = time.monotonic() + self._config.workers.task_deadline_s
        self._running[result_ref] = _Running(call, actor, kept_ref, deadline)

    def _collect(self, ref: ray.ObjectRef, queue: deque[_Call], done: dict[int, Any]) -> None:
        running = self._running[ref]
        try:
            result = ray.get(ref, timeout=TRANSFER_TIMEOUT_S)
        except RayError as error:
            self._recover(running, error, queue)
            return
        del self._running[ref]
        self._idle.append(running.actor)
        call = running.call
        handle = _Handle(running.kept_ref, call.method, call.shared_ref, call.spec) if call.keep else None
        if call.then is not None:
            call.then.handle.ref = handle.ref
            queue.appendleft(call.then)
        else:
            done[call.index] = (result, handle) if call.keep else result

    def _recover(self, running: _Running, error: Exception, queue: deque[_Call]) -> None:
        """Puts the call back at the front of the queue; a lost handle is made again first, by the call that made it."""
        call = running.call
        if call.attempts >= MAX_ATTEMPTS:
            raise _task_failed(call.spec, error) from error
        self._drop(running.actor)
        self._report({"event": "respawn", "cause": _first_line(error)})
        handle = call.handle
        if handle is not None and _is_lost_object(error):
            self._report({"event": "recollect", "cause": _first_line(error), "spec": str(call.spec)})
            call = _Call(None, handle.method, handle.shared_ref, handle.spec, None, keep=True, then=call)
        else:
            self._report({"event": "retry", "cause": _first_line(error), "spec": str(call.spec)})
        queue.appendleft(call)

    def _expire(self, queue: deque[_Call]) -> None:
        now = time.monotonic()
        for running in [running for running in self._running.values() if running.deadline <= now]:
            limit = self._config.workers.task_deadline_s
            self._recover(running, TimeoutError(f"no answer within workers.task_deadline_s = {limit:g} s"), queue)

    def _check_alive(self) -> None:
        """Waits aloud for the first worker, and not for ever."""
        if self._idle or self._running:
            self._none_since, self._noticed = time.monotonic(), False
            return
        waited, limit = time.monotonic() - self._none_since, self._config.workers.start_timeout_s
        wanted = f"{self.num_workers} workers x {self._config.workers.cpus_per_worker:g} CPUs"
        available, total = (
            resources.get("CPU", 0) for resources in (ray.available_resources(), ray.cluster_resources())
        )
        free = f"the cluster has {available:g} of {total:g} CPUs free"
        if waited > limit:
            raise PoolError(
                f"no worker was ready within workers.start_timeout_s = {limit:g} s; wanted {wanted}, {free}; "
                "ask for fewer or smaller workers, or raise the time-out"
            )
        if waited > WAITING_NOTICE_S and not self._noticed:
            self._noticed = True
            self._report({"event": "waiting", "cause": f"waiting for resources: wanted {wanted}, {free}"})


def make_pool(config: TrainConfig, report: Report) -> LocalPool | RayPool:
    """The pool that ``workers.num_workers`` asks for; ``auto`` takes every CPU there is, up to one worker per task."""
    num_workers = config.workers.num_workers
    if num_workers == 0:
        return LocalPool(config, report)
    if num_workers == "auto":
        num_workers = min(config.tasks_per_iteration, max(1, int(_count_cpus() // config.workers.cpus_per_worker)))
    return RayPool(config, num_workers, report)


def _count_cpus() -> float:
    """CPUs of the cluster that is joined or about to be joined, else those that this process may use."""
    if not ray.is_initialized() and "RAY_ADDRESS" not in os.environ:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    start_ray(1)
    return ray.cluster_resources().get("CPU", 1)


def start_ray(num_cpus: float) -> bool:
    """Joins the cluster of ``RAY_ADDRESS``, or starts Ray on this machine; False if Ray was running already."""
    if ray.is_initialized():
        return False
    options = {"log_to_driver": False, "logging_level": "ERROR"}
    if "RAY_ADDRESS" not in os.environ:
        # "local": a Ray that somebody else runs on this machine is not ours to join.
        options |= {"address": "local", "num_cpus": max(1, math.ceil(num_cpus)), "include_dashboard": False}
    ray.init(**options)
    return True


def _task_failed(spec: TaskSpec, error: Exception) -> TaskError:
    traceback = f"\n{_ANSI_COLOUR.sub('', str(error))}" if isinstance(error, RayTaskError) else ""
    return TaskError(f"{spec} failed {MAX_ATTEMPTS} times; the last time because: {_first_line(error)}{traceback}")


def _is_lost_object(error: Exception) -> bool:
    return isinstance(error, ObjectLostError) or (
        isinstance(error, RayTaskError) and isinstance(error.cause, ObjectLostError)
    )


def _first_line(error: Exception) -> str:
    """What went wrong, for people: the kind of error and the first line of its message."""
    cause = error.cause if isinstance(error, RayTaskError) and error.cause is not None else error
    kind = "worker died" if isinstance(cause, RayActorError) else type(cause).__name__
    return f"{kind}: {(str(cause).strip() or 'no message').splitlines()[0]}"
