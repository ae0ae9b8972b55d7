"""Pools of workers behind one ``map``: in this process (`LocalPool`) or as Ray actors (`RayPool`).

``map(method, shared, specs)`` calls the named `TaskWorker` method on every spec and yields the results in the order of
the specs. With ``keep=True`` the method's second return value stays where it was made, and its opaque handle is yielded
along with the result; handles given to a later ``map`` reach the method as its last argument, on whichever worker is
free.

The pool owns failure. A call that dies with its actor, raises, or outlives its deadline is tried again on another
actor, at most `MAX_ATTEMPTS` times for any cause; results cannot change by it, as they depend on the spec alone.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayError, RayTaskError

from ssm_metarl.config import TrainConfig
from ssm_metarl.env_runner.tasks import TaskError
from ssm_metarl.runtime.actors import TRANSFER_TIMEOUT_S, Actor, Actors, Event, PoolError, Report, describe
from ssm_metarl.runtime.metrics import Sink
from ssm_metarl.runtime.ray_metrics import RayMetrics
from ssm_metarl.runtime.ray_start import Watch, count_cpus, forsake, joined_address, start_ray
from ssm_metarl.runtime.worker import TaskWorker
from ssm_metarl.types import SharedState, TaskSpec

__all__ = ["Event", "LocalPool", "PoolError", "RayPool", "Report", "make_pool", "start_ray"]

MAX_ATTEMPTS = 3
POLL_S = 1.0
FIRST_FETCH_S = 1.0
MAX_FETCHES = 6
"""A worker asks so often for a kept value, twice as long each time, unless it is known to be lost."""
_ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


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

    def sinks(self, run: str) -> list[Sink]:
        """Who else wants to hear of the run of that name: nobody."""
        return []

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
                self._report(
                    {"event": "retry", "cause": describe(error), "spec": str(arguments[1]), "attempt": attempt}
                )
                self._worker = TaskWorker(self._config)

    def close(self) -> None:
        """Nothing to release."""


@dataclass
class _Handle:
    """A kept value in the object store of its maker's machine, and how to make it again should that be lost."""

    ref: ray.ObjectRef
    maker: Actor
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
    fetches: int = 0
    """How often its handle's value has not come in time."""
    then: _Call | None = None
    """The call that waits for this recollection of its handle."""


@dataclass
class _Running:
    call: _Call
    actor: Actor
    kept_ref: ray.ObjectRef | None
    deadline: float


class RayPool:
    """Ray actors, one call in flight each; whoever is free takes the next spec.

    Starts Ray on this machine with exactly the CPUs that the workers need, unless Ray runs already or ``RAY_ADDRESS``
    points to a cluster. Work begins with the first actor that is ready; the others join as they come.

    Args:
        config: the run's configuration.
        num_workers: actors to keep alive; ``auto``: as many as there are CPUs for, at most one per task. On a cluster
            that number follows the machines that come and go.
        report: called with every `Event`.

    Raises:
        PoolError: the cluster is not there, or refuses. ConfigError: it may not be joined without a token.
    """

    def __init__(self, config: TrainConfig, num_workers: int | Literal["auto"], report: Report) -> None:
        self._deadline_s = config.workers.task_deadline_s
        self._report = report
        count = _affordable(config) if num_workers == "auto" else num_workers
        self._owns_ray = start_ray(count * config.workers.cpus_per_worker)
        self._watch = Watch()
        self._is_cluster = not self._owns_ray or joined_address() is not None
        follow = (lambda: _affordable(config)) if self._is_cluster and num_workers == "auto" else None
        self._actors = Actors(TaskWorker, config, count, report, follow)
        self._running: dict[ray.ObjectRef, _Running] = {}

    @property
    def num_workers(self) -> int:
        """Actors to keep alive at present."""
        return self._actors.num_workers

    def sinks(self, run: str) -> list[Sink]:
        """Who else wants to hear of the run of that name: on a cluster, which may have a dashboard, Ray's metrics."""
        return [RayMetrics(run)] if self._is_cluster else []

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
            PoolError: no worker for ``workers.start_timeout_s``, too many were lost in a row, or the cluster is gone.
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
            for running in self._running.values():
                self._actors.end(running.actor)
            self._running.clear()

    def close(self) -> None:
        """Ends the actors, and Ray if this pool started or joined it."""
        self._watch.close()
        if self._watch.gone:
            forsake()
            return
        self._actors.close()
        if self._owns_ray:
            ray.shutdown()

    def _advance(self, queue: deque[_Call], done: dict[int, Any]) -> None:
        """Hands out work, then waits for the next thing to happen: an answer, an actor that is ready, a deadline."""
        self._watch.check()
        self._actors.fill()
        while queue and self._actors.idle:
            self._dispatch(queue.popleft(), self._actors.take())
        starting = self._actors.starting
        now = time.monotonic()
        # All calls have the same time: the one that has been on its way longest is the first whose time is up.
        oldest = next(iter(self._running.values()), None)
        patience = POLL_S if oldest is None else min(POLL_S, max(0.0, oldest.deadline - now))
        if waiting_for := [*self._running, *starting]:
            finished, others = ray.wait(waiting_for, num_returns=1, timeout=patience)
            if finished and others:
                # A look costs time for every call on its way: it must not be one per answer when answers queue up.
                finished += ray.wait(others, num_returns=len(others), timeout=0)[0]
        else:
            finished = []
            time.sleep(POLL_S)  # Replacements are being held back.
        for ref in finished:
            if ref in self._running:
                self._collect(ref, queue, done)
            else:
                self._actors.admit(ref)
        self._expire(queue)
        self._actors.check()

    def _dispatch(self, call: _Call, actor: Actor) -> None:
        if call.handle is not None and call.handle.maker.died:
            # The value may still be there, but if it is not, Ray takes half a minute to find that out.
            self._report({"event": "recollect", "cause": "the worker that made it died", "spec": str(call.spec)})
            call = _recollection(call)
        call.attempts += call.fetches == 0
        if call.handle is None:
            method, arguments = getattr(actor.handle, call.method), (call.shared_ref, call.spec)
        else:
            patience_s = FIRST_FETCH_S * 2**call.fetches
            method = actor.handle.fetch_and_call
            arguments = (call.method, call.shared_ref, call.spec, [call.handle.ref], patience_s)
        refs = method.options(num_returns=2 if call.keep else 1).remote(*arguments)
        result_ref, kept_ref = refs if call.keep else (refs, None)
        self._running[result_ref] = _Running(call, actor, kept_ref, time.monotonic() + self._deadline_s)

    def _collect(self, ref: ray.ObjectRef, queue: deque[_Call], done: dict[int, Any]) -> None:
        running = self._running.pop(ref)
        try:
            result = ray.get(ref, timeout=TRANSFER_TIMEOUT_S)
        except RayError as error:
            self._recover(running, error, queue)
            return
        self._actors.finish(running.actor)
        call = running.call
        handle = (
            _Handle(running.kept_ref, running.actor, call.method, call.shared_ref, call.spec) if call.keep else None
        )
        if call.then is not None:
            call.then.handle.ref, call.then.handle.maker = handle.ref, handle.maker
            queue.appendleft(call.then)
        else:
            done[call.index] = (result, handle) if call.keep else result

    def _recover(self, running: _Running, error: Exception, queue: deque[_Call]) -> None:
        """Puts the call back at the front of the queue; a lost handle is made again first, by the call that made it."""
        call, cause = running.call, error.cause if isinstance(error, RayTaskError) else error
        lost_object = isinstance(cause, ObjectLostError | GetTimeoutError)
        if isinstance(cause, GetTimeoutError):
            call.fetches += 1
            if call.fetches < MAX_FETCHES and not call.handle.maker.died:
                self._actors.doubt(running.actor)
                queue.appendleft(call)
                return
        said = {"cause": describe(error), "spec": str(call.spec), "attempt": call.attempts}
        if lost_object:
            self._actors.doubt(running.actor)
        else:
            self._actors.lose(running.actor, error)
        if call.attempts >= MAX_ATTEMPTS:
            raise _task_failed(call.spec, error) from error
        if lost_object and call.handle is not None:
            self._report({"event": "recollect", **said})
            call = _recollection(call)
        else:
            self._report({"event": "retry", **said})
        queue.appendleft(call)

    def _expire(self, queue: deque[_Call]) -> None:
        now = time.monotonic()
        while self._running and next(iter(self._running.values())).deadline <= now:
            running = self._running.pop(next(iter(self._running)))
            limit = f"no answer within workers.task_deadline_s = {self._deadline_s:g} s"
            self._recover(running, TimeoutError(limit), queue)


def _recollection(call: _Call) -> _Call:
    """The call that makes the handle of this one again, and has it follow."""
    handle, call.fetches = call.handle, 0
    return _Call(None, handle.method, handle.shared_ref, handle.spec, None, keep=True, then=call)


def make_pool(config: TrainConfig, report: Report) -> LocalPool | RayPool:
    """The pool that ``workers.num_workers`` asks for; ``auto`` takes every CPU there is, up to one worker per task."""
    num_workers = config.workers.num_workers
    return LocalPool(config, report) if num_workers == 0 else RayPool(config, num_workers, report)


def _affordable(config: TrainConfig) -> int:
    """How many workers all CPUs make, at least one and at most one per task."""
    return min(config.tasks_per_iteration, max(1, int(count_cpus() // config.workers.cpus_per_worker)))


def _task_failed(spec: TaskSpec, error: Exception) -> TaskError:
    traceback = f"\n{_ANSI_COLOUR.sub('', str(error))}" if isinstance(error, RayTaskError) else ""
    return TaskError(f"{spec} failed {MAX_ATTEMPTS} times; the last time because: {describe(error)}{traceback}")
