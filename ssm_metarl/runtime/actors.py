"""`Actors`: a pool's workers as Ray actors: started, replaced, waited for. Who does which call is the pool's business.

Membership is elastic: work goes on with whoever is ready, and others join as they come. A worker that is lost is
replaced at once; when more are lost than there are, with no call finished in between, replacements wait longer and
longer, and in the end there are none.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from ssm_metarl.config import TrainConfig
from ssm_metarl.runtime.process import ENVIRONMENT

RESIZE_S = 5.0
WAITING_NOTICE_S = 20.0
MAX_BACK_OFF_S = 30.0
TRANSFER_TIMEOUT_S = 60.0

_RAISED = re.compile(r"^[\w.]*(?:Error|Exception|Exit|Interrupt)\b.*$", re.MULTILINE)
_DETAIL = re.compile(r"Worker exit detail: (.*?)(?: Some common causes|$)", re.MULTILINE)

Event = dict[str, Any]
"""``event`` is respawn, retry, recollect, waiting or resize; ``cause``, ``worker`` and ``spec`` say more."""
Report = Callable[[Event], None]


class PoolError(RuntimeError):
    """No worker could be had, or kept."""


@dataclass(eq=False)
class Actor:
    """One worker. ``name`` is its process and machine, once it has answered; ``asked_at`` is when it was asked to."""

    handle: Any
    name: str = "a starting worker"
    asked_at: float = 0.0
    died: bool = False
    """Its process has, and perhaps its machine, with all that was kept there."""


def _fetching(worker_class: type) -> type:
    """A worker that fetches what other workers have kept, itself: an argument that Ray fetches has no deadline."""

    def fetch_and_call(
        self: Any, method: str, shared: Any, spec: Any, kept: list[ray.ObjectRef], fetch_s: float
    ) -> Any:
        return getattr(self, method)(shared, spec, ray.get(kept[0], timeout=fetch_s))

    return type(worker_class.__name__, (worker_class,), {"fetch_and_call": fetch_and_call})


class Actors:
    """Keeps ``num_workers`` actors alive; ``idle`` are those that wait for work.

    Args:
        worker_class: made with the configuration; its ``ready`` answers with a name.
        config: the run's configuration.
        num_workers: how many.
        report: called with every `Event`.
        affordable: how many there could be now; their number follows it. None: it stays.
    """

    def __init__(
        self,
        worker_class: type,
        config: TrainConfig,
        num_workers: int,
        report: Report,
        affordable: Callable[[], int] | None = None,
    ) -> None:
        self._config, self.num_workers, self._report = config.workers, num_workers, report
        self._affordable, self._resize_at = affordable, time.monotonic() + RESIZE_S
        self._config_ref = ray.put(config)
        self._class = ray.remote(_fetching(worker_class)).options(
            num_cpus=config.workers.cpus_per_worker,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=1,
            runtime_env={"env_vars": ENVIRONMENT},
        )
        self.idle: list[Actor] = []
        self._starting: dict[ray.ObjectRef, Actor] = {}
        self._busy: set[Actor] = set()
        self._lost_in_a_row = 0
        self._start_after = 0.0
        self._none_since = self._missing_since = time.monotonic()
        self._noticed = False
        self.fill()
        if num_workers * config.workers.cpus_per_worker > ray.cluster_resources().get("CPU", 0):
            self._notice()

    @property
    def starting(self) -> list[ray.ObjectRef]:
        """What to wait for: each answers when an actor is ready, and belongs to `admit`."""
        return list(self._starting)

    def fill(self) -> None:
        """Starts as many actors as are missing, unless it is too early for another attempt."""
        if self._affordable and time.monotonic() > self._resize_at:
            self._resize(self._affordable())
        if time.monotonic() < self._start_after:
            return
        for _ in range(self.num_workers - len(self.idle) - len(self._busy) - len(self._starting)):
            self._ask(Actor(self._class.remote(self._config_ref)))

    def admit(self, ref: ray.ObjectRef) -> None:
        """Takes an actor in that has answered, or replaces it if the answer is its death. Raises PoolError."""
        actor = self._starting.pop(ref)
        try:
            actor.name = ray.get(ref, timeout=TRANSFER_TIMEOUT_S)
        except RayError as error:
            self.lose(actor, error)
        else:
            self.idle.append(actor)

    def take(self) -> Actor:
        """An idle actor, which is busy from now on."""
        actor = self.idle.pop()
        self._busy.add(actor)
        return actor

    def finish(self, actor: Actor) -> None:
        """A busy actor has done its call."""
        self._busy.discard(actor)
        self._lost_in_a_row = 0
        self.idle.append(actor)

    def doubt(self, actor: Actor) -> None:
        """An actor that may or may not be alive gets work again when it has answered."""
        self._busy.discard(actor)
        self._ask(actor)

    def lose(self, actor: Actor, error: Exception) -> None:
        """Ends an actor that has failed, says so, and lets another take its place.

        Raises:
            PoolError: more than ``workers.max_respawns`` per worker were lost in a row.
        """
        self.end(actor)
        actor.died = isinstance(error, RayActorError)
        self._report({"event": "respawn", "worker": actor.name, "cause": describe(error)})
        self._lost_in_a_row += 1
        if self._lost_in_a_row > self._config.max_respawns * self.num_workers:
            raise PoolError(
                f"{self._lost_in_a_row} workers were lost in a row, and no call was finished in between "
                f"(workers.max_respawns = {self._config.max_respawns} for each of {self.num_workers}); "
                f"the last because: {describe(error)}"
            ) from error
        # Those that share the fate of this one (a node, a machine out of memory) must not be handed a call to find out.
        suspects, self.idle = self.idle, []
        for suspect in suspects:
            self._ask(suspect)
        if excess := max(0, self._lost_in_a_row - self.num_workers):
            self._start_after = time.monotonic() + min(MAX_BACK_OFF_S, 2.0 ** (excess - 1))

    def end(self, actor: Actor) -> None:
        """Ends a busy actor whose call is no longer wanted; `fill` replaces it."""
        self._busy.discard(actor)
        ray.kill(actor.handle, no_restart=True)

    def check(self) -> None:
        """Waits aloud for the workers that are missing, and not for ever for the first.

        Raises:
            PoolError: there has been none for ``workers.start_timeout_s``.
        """
        now, limit = time.monotonic(), self._config.start_timeout_s
        working = len(self.idle) + len(self._busy)
        if working:
            self._none_since = now
        if working == self.num_workers:
            self._missing_since, self._noticed = now, False
            return
        if now - self._none_since > limit:
            raise PoolError(
                f"no worker was ready within workers.start_timeout_s = {limit:g} s; "
                f"waiting for resources: {self._resources()}; "
                "ask for fewer or smaller workers, or raise the time-out"
            )
        if now - self._missing_since > WAITING_NOTICE_S and not self._noticed:
            self._notice()
        for ref, actor in list(self._starting.items()):
            if working and now - actor.asked_at > limit:
                del self._starting[ref]
                self.end(actor)
                cause = f"{actor.name} did not answer within workers.start_timeout_s = {limit:g} s; starting another"
                self._report({"event": "waiting", "cause": f"{cause}; {self._resources()}"})

    def close(self) -> None:
        """Ends all of them."""
        for actor in [*self.idle, *self._starting.values(), *self._busy]:
            ray.kill(actor.handle, no_restart=True)
        self.idle, self._starting, self._busy = [], {}, set()

    def _resize(self, num_workers: int) -> None:
        """Follows machines that come and go; actors that have not started yet are given up first, none is ended."""
        self._resize_at = time.monotonic() + RESIZE_S
        working = len(self.idle) + len(self._busy)
        num_workers = max(num_workers, working)
        if num_workers == self.num_workers:
            return
        cause = f"{num_workers} workers instead of {self.num_workers}; {self._resources()}"
        self._report({"event": "resize", "cause": cause})
        self.num_workers = num_workers
        for ref, actor in list(self._starting.items())[max(0, num_workers - working) :]:
            del self._starting[ref]
            self.end(actor)

    def _notice(self) -> None:
        self._noticed = True
        working = len(self.idle) + len(self._busy)
        cause = f"{working} of {self.num_workers} workers; waiting for resources: {self._resources()}"
        self._report({"event": "waiting", "cause": cause})

    def _ask(self, actor: Actor) -> None:
        actor.asked_at = time.monotonic()
        self._starting[actor.handle.ready.remote()] = actor

    def _resources(self) -> str:
        available, total = (
            resources.get("CPU", 0) for resources in (ray.available_resources(), ray.cluster_resources())
        )
        wanted = f"{self.num_workers} workers x {self._config.cpus_per_worker:g} CPUs"
        return f"wanted {wanted}, the cluster has {available:g} of {total:g} CPUs free"


def describe(error: Exception) -> str:
    """What went wrong, for people, in one line: the kind of error, and what Ray's long message says of the cause."""
    cause = error.cause if isinstance(error, RayTaskError) and error.cause is not None else error
    text = str(cause).strip() or "no message"
    if not isinstance(cause, RayActorError):
        return f"{type(cause).__name__}: {text.splitlines()[0]}"
    if raised := _RAISED.findall(text):
        return f"worker died while starting: {raised[-1]}"
    detail = _DETAIL.search(text)
    return f"worker died: {detail[1] if detail else text.splitlines()[-1]}"
