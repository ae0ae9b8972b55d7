"""The work on one trial, in whatever process: training, or adapting, from what its folder holds to the next report.

What a trial has come to is in its folder alone: its checkpoints and ``results.json``. So whoever takes it up, after a
kill or after it waited, goes on where it was, and no report is made twice.

Shape legend: K tasks, S adaptation steps, P parameters.
"""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from ssm_metarl.config import ConfigError, TrainConfig
from ssm_metarl.deployment import load_policy
from ssm_metarl.env_runner.tasks import make_family
from ssm_metarl.runtime.driver import MetaTrainer
from ssm_metarl.runtime.held_out import make_specs
from ssm_metarl.runtime.metrics import Sink, params_sha256
from ssm_metarl.runtime.pool import LocalPool, RayPool, make_pool
from ssm_metarl.runtime.run_folder import locked
from ssm_metarl.runtime.storage import LocalStorage
from ssm_metarl.tuning.config import Sweep
from ssm_metarl.tuning.folder import SweepFolder
from ssm_metarl.tuning.results import Report, TrialResults
from ssm_metarl.types import SharedState, Stream

LOCK_PATIENCE_S = 30.0
"""The processes of a sweep that was killed may live on for some seconds, and hold its trials."""


class Work(Protocol):
    """One trial under way."""

    def advance(self) -> Sequence[Report]:
        """Goes on to the next report, and returns all of them.

        Raises:
            TaskError: the trial cannot go on. PoolError, CheckpointError, ConfigError, OSError: not here and now.
        """

    def close(self) -> None:
        """Lets go of the trial's folder and workers; `advance` would take them up again."""


class Training:
    """A trial that meta-trains a policy: a run like any other, in a folder of the sweep.

    Args:
        sweep, folder: the sweep, and where it is.
        index: which trial. Its settings are in its folder already.
    """

    def __init__(self, sweep: Sweep, folder: SweepFolder, index: int) -> None:
        self._sweep, self._folder, self._index = sweep, folder, index
        self._stack = ExitStack()
        self._trainer: MetaTrainer | None = None

    def advance(self) -> Sequence[Report]:
        """See `Work`."""
        began = time.perf_counter()
        if self._trainer is None:
            self._open()
        trainer, last = self._trainer, self._results.reports[-1] if self._results.reports else None
        until = _next_report(self._sweep, last)
        # The checkpoint first: a report is never ahead of what can be restored.
        trainer.train(self._pool, until)
        if until % trainer.config.checkpoint.every and until < trainer.config.iterations:
            trainer.save()
        returns = self._heard.returns.get(until) or trainer.validate(self._pool)
        seconds = (last.seconds if last else 0.0) + time.perf_counter() - began
        digest = params_sha256(trainer.params_P)
        report = Report(until, returns["pre"], returns["post"], trainer.num_env_steps, seconds, digest)
        self._results = replace(self._results, reports=(*self._results.reports, report))
        self._folder.write(self._index, self._results)
        return self._results.reports

    def close(self) -> None:
        """See `Work`."""
        self._trainer = None
        self._stack.close()

    def _open(self) -> None:
        self._await_lock()
        results = _results(self._folder, self._index)
        config = self._folder.config(self._sweep, self._index, results.settings)
        trainer = self._make_trainer(config)
        kept = tuple(report for report in results.reports if report.iteration <= trainer.iteration)
        if trainer.iteration > _next_report(self._sweep, kept[-1] if kept else None):
            # Reports are missing that the checkpoints are beyond: only from the beginning can they be made again.
            self._folder.clear(self._sweep, self._index)
            self._folder.write(self._index, replace(results, reports=()))
            trainer, kept = self._make_trainer(config), ()
        self._results = replace(results, reports=kept)
        self._pool = _watched(self._stack.enter_context(trainer.at_work()), config)
        self._trainer = trainer

    def _make_trainer(self, config: TrainConfig) -> MetaTrainer:
        self._heard = _Heard()
        return MetaTrainer(config, [self._heard])

    def _await_lock(self) -> None:
        """Waits for whoever still holds the trial. Raises ConfigError: somebody holds on to it."""
        storage = self._folder.trial(self._index)
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while isinstance(storage, LocalStorage):
            try:
                with locked(storage.root):
                    return
            except ConfigError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)


class Adapting:
    """A trial that evaluates a trained policy under Adapter settings of its own. Arguments as for `Training`."""

    def __init__(self, sweep: Sweep, folder: SweepFolder, index: int) -> None:
        self._sweep, self._folder, self._index = sweep, folder, index

    def advance(self) -> Sequence[Report]:
        """See `Work`. All reports at once, one per call of the Adapter."""
        began = time.perf_counter()
        results = _results(self._folder, self._index)
        config = self._folder.config(self._sweep, self._index, results.settings)
        shared = load_policy(self._sweep.policy).shared
        returns_S = held_out_returns(config, shared, "validation", watch=True).mean(axis=0)
        seconds, digest = time.perf_counter() - began, params_sha256(shared.params_P)
        pre, *posts = returns_S.tolist()
        reports = tuple(Report(k, pre, post, 0, seconds, digest) for k, post in enumerate(posts, start=1))
        self._folder.write(self._index, replace(results, reports=reports))
        return reports

    def close(self) -> None:
        """See `Work`."""


def make_work(sweep: Sweep, folder: SweepFolder, index: int) -> Work:
    """The kind of work that a sweep is about."""
    return (Adapting if sweep.policy else Training)(sweep, folder, index)


def write_failure(folder: SweepFolder, index: int, cause: str) -> None:
    """Writes down that a trial cannot go on, whoever tries. Raises OSError, or ConfigError: its folder has vanished."""
    folder.write(index, replace(_results(folder, index), failed=cause))


def held_out_returns(
    config: TrainConfig, shared: SharedState, split: str, strategy: str | None = None, watch: bool = False
) -> np.ndarray:
    """Mean returns on held-out tasks after 0, 1, ... calls of the Adapter, float64 [K, S + 1].

    Whatever was learned, and whatever the settings, they meet the same tasks and the same noise.

    Args:
        strategy: None: ``adapter.strategy``, and S is ``eval.num_steps``; otherwise S is ``inner.num_steps``.
        watch: end this process where a call outlives its deadline.

    Raises:
        TaskError: a task failed on every attempt. PoolError: no worker could be had, or kept.
    """
    num_steps = config.inner.num_steps if strategy else config.eval.num_steps
    tasks = make_family(config.env).tasks(split, config.eval.num_tasks)
    specs = make_specs(config, Stream.EVALUATE, 0, tasks, num_steps)
    specs = [replace(spec, strategy=strategy or config.adapter.strategy) for spec in specs]
    with closing(make_pool(config, lambda event: None)) as pool:
        results = list((_watched(pool, config) if watch else pool).map("evaluate", shared, specs))
    return np.array([result.returns for result in results])


def _watched(pool: LocalPool | RayPool, config: TrainConfig) -> Any:
    """A pool whose calls have a deadline, wherever they are made."""
    return _Watched(pool, config.workers.task_deadline_s) if isinstance(pool, LocalPool) else pool


class _Heard(Sink):
    """The validations that a training makes on its way: iteration -> returns."""

    def __init__(self) -> None:
        self.returns: dict[int, dict[str, float]] = {}

    def evaluation(self, iteration: int, returns: dict[str, float]) -> None:
        self.returns[iteration] = returns


class _Watched:
    """A pool in this process that ends the process where a call does not: whoever started it starts another.

    Args:
        pool: calls the worker in this process.
        deadline_s: seconds that a call may take.
    """

    num_workers = 0

    def __init__(self, pool: LocalPool, deadline_s: float) -> None:
        self._pool, self._deadline_s = pool, deadline_s

    def map(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        """As the pool's."""
        results = self._pool.map(*arguments, **options)
        try:
            while True:
                # Of C, not of Python: it also ends a call that never lets go of the interpreter.
                faulthandler.dump_traceback_later(self._deadline_s, exit=True)
                try:
                    result = next(results)
                except StopIteration:
                    return
                faulthandler.cancel_dump_traceback_later()
                yield result
        finally:
            faulthandler.cancel_dump_traceback_later()


def _next_report(sweep: Sweep, last: Report | None) -> int:
    """Iteration of the report after ``last``, or of the first."""
    reported = last.iteration if last else 0
    return min((reported // sweep.per_report + 1) * sweep.per_report, sweep.iterations)


def _results(folder: SweepFolder, index: int) -> TrialResults:
    """What the folder of a trial that has begun holds. Raises ConfigError: nothing."""
    try:
        results = folder.read(index)
    except ValueError as error:
        raise ConfigError(f"{folder.trial(index).path()}: {error}") from error
    if results is None:
        raise ConfigError(f"{folder.trial(index).path()} has vanished while the sweep was running")
    return results
