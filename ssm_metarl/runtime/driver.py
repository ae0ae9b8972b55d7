"""`MetaTrainer`, the outer loop: samples tasks, folds meta-gradients, steps the optimizer, keeps the books.

    sample K tasks ──specs──► pool.map("adapt_and_collect") ──► K meta-gradients; K batches stay with the workers
         ▲                                                          │ folded in task order as they come, float64
         │                                                          ▼
    next iteration ◄── metrics, checkpoint ◄── outer_step ◄── pool.map("revisit") under new parameters, num_passes - 1

Every iteration is a function of (configuration, parameters, optimizer state, iteration): it may be replayed anywhere.

Shape legend: K tasks, P parameters, S adaptation steps.
"""

from __future__ import annotations

import functools
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ssm_metarl.config import ConfigError, TrainConfig, dump_yaml
from ssm_metarl.env_runner.tasks import make_family
from ssm_metarl.meta_rl.objectives import fold
from ssm_metarl.runtime import checkpoint
from ssm_metarl.runtime.checkpoint import CheckpointError, TrainState, statistics_from_arrays, statistics_to_arrays
from ssm_metarl.runtime.held_out import Evaluation, evaluate, make_specs
from ssm_metarl.runtime.metrics import FileSink, Record, Sink, params_sha256
from ssm_metarl.runtime.mirror import Mirror
from ssm_metarl.runtime.pool import Event, LocalPool, PoolError, RayPool, make_pool
from ssm_metarl.runtime.process import limit_threads
from ssm_metarl.runtime.run_folder import RunFolder, checkpoint_storage, find_folder, locked, restore
from ssm_metarl.runtime.signals import Abandoned, StopSignals
from ssm_metarl.runtime.storage import open_storage
from ssm_metarl.runtime.worker import make_policy
from ssm_metarl.types import SharedState, Statistics, Stream, TaskResult, TaskSpec, make_rng


@dataclass(frozen=True)
class Summary:
    """What a finished training came to."""

    pre: float
    post: float
    params_sha256: str
    run: RunFolder
    evaluation: Evaluation

    @property
    def folder(self) -> Path:
        """The run's files; of a run in an object store a temporary copy."""
        return self.run.path

    def __str__(self) -> str:
        return f"done: pre {self.pre:.4g} post {self.post:.4g} params_sha256 {self.params_sha256} run {self.run.where}"


class _Pass(NamedTuple):
    """One outer step: the mean meta-loss, the gradient's norm before clipping, seconds of the workers and of itself."""

    meta_loss: float
    grad_norm: float
    worker_s: float
    outer_s: float


class RunStopped(RuntimeError):
    """A signal ended the run early. ``exit_status`` is what a shell reports for that signal: 143 or 130."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + number


class MetaTrainer:
    """Meta-trains one policy over a family of tasks.

    Args:
        config: the run's configuration.
        sinks: hear of its progress, besides the files in the run's folder.
        resume: ``auto`` goes on from the newest valid checkpoint of a run of that name, ``never`` refuses an existing
            name, a path or URI starts from that checkpoint.

    Raises:
        ConfigError: the name is taken by a run of another identity, or at all under ``never``.
        CheckpointError: the checkpoint to start from cannot be used.
        TaskError: the environment cannot be made.
    """

    def __init__(self, config: TrainConfig, sinks: Sequence[Sink] = (), resume: str = "auto") -> None:
        limit_threads()
        self.config = config
        self.family = make_family(config.env)
        self.params = torch.from_numpy(make_policy(self.family, config).to_vector()).requires_grad_()
        self.optimizer = torch.optim.Adam([self.params], lr=config.outer.lr)
        self.statistics: Statistics | None = None
        self.iteration = 0
        self.num_env_steps = 0
        self._counts: Counter[str] = Counter()
        self._sinks: list[Sink] = list(sinks)
        self._unwritten: list[Event] | None = []
        self._run = find_folder(config)
        self.folder = self._run.path
        self._storage = checkpoint_storage(config, self.folder)
        restored = restore(config, self.folder, self._storage, resume, self._warn)
        if restored is not None:
            self._set_state(restored)
        self._state = self._snapshot()
        self._saved_iteration = self.iteration
        self._failed_saves = 0

    def run(self, stop: StopSignals | None = None) -> Summary:
        """Trains to ``config.iterations`` and evaluates on the held-out test tasks.

        Args:
            stop: signals that end the run early.

        Raises:
            TaskError: a task failed on every attempt. PoolError: no worker could be had, or kept.
            CheckpointError: more than ``checkpoint.max_failures`` saves failed in a row, or the last one did.
            RunStopped: a signal came; the state was saved.
        """
        stop = stop or StopSignals(signals=())
        with self.at_work(stop) as pool:
            try:
                self.train(pool, self.config.iterations, stop)
                with stop.abandonable():
                    return self._finish(pool)
            except Abandoned:
                stop.quiet()
                name = signal.Signals(stop.received).name
                raise RunStopped(f"stopped by {name} {self._kept()}", stop.received) from None
            except PoolError as error:
                raise PoolError(f"{error}; ended {self._kept()}") from error

    @contextmanager
    def at_work(self, stop: StopSignals | None = None) -> Iterator[LocalPool | RayPool]:
        """Opens the run's folder, keeps it to this process, and starts the workers; all of it ends with the context."""
        with ExitStack() as stack:
            self._open_folder(stack)
            if stop:
                stack.enter_context(stop)
            pool = stack.enter_context(closing(make_pool(self.config, self._on_event)))
            if stop:
                stop.listen()  # Ray has taken SIGTERM for itself when it started.
            self._sinks += pool.sinks(self.folder.name)
            yield pool

    def train(self, pool: LocalPool | RayPool, until: int, stop: StopSignals | None = None) -> None:
        """The outer loop, until so many iterations are done, with checkpoints and evaluations when they are due.

        Raises:
            Abandoned: a signal came; the state to save is still that after the last whole iteration.
        """
        stop = stop or StopSignals(signals=())
        while self.iteration < until:
            if stop.requested:
                raise Abandoned
            with stop.abandonable():
                record = self.step(pool)
            self._state = self._snapshot()
            self._tell("iteration", record)
            is_last = self.iteration == self.config.iterations
            if is_last or _is_due(self.iteration, self.config.checkpoint.every):
                self.save()
            if _is_due(self.iteration, self.config.eval.every) and not is_last:
                with stop.abandonable():
                    self.validate(pool)

    def step(self, pool: LocalPool | RayPool) -> Record:
        """One iteration: a batch of tasks, ``outer.num_passes`` outer steps over it. Returns its record."""
        began = time.perf_counter()
        specs, shared = self._training_specs(), self.shared
        results, handles = [], []

        def first_pass() -> Iterator[TaskResult]:
            for result, handle in pool.map("adapt_and_collect", shared, specs, keep=True):
                # Folded as they come, and let go: the gradients of all tasks may be more than memory holds.
                results.append(replace(result, gradient_P=None))
                handles.append(handle)
                self._tell("task", self.iteration, len(results), len(specs))
                yield result

        passes = [self._outer_step(first_pass())]
        for _ in range(self.config.outer.num_passes - 1):
            passes.append(self._outer_step(pool.map("revisit", self.shared, specs, handles)))
        steps = sum(result.num_env_steps for result in results)
        self._add_statistics(results)
        self.num_env_steps += steps
        self.iteration += 1
        seconds = time.perf_counter() - began
        rollout_s = sum(result.metrics["rollout_s"] for result in results)
        gradient_s = sum(one.worker_s for one in passes) - rollout_s
        record = {
            "iteration": self.iteration - 1,
            "return_pre_adaptation": float(np.mean([result.returns[0] for result in results])),
            "return_post_adaptation": float(np.mean([result.returns[-1] for result in results])),
            **_successes(results),
            "meta_loss": passes[-1].meta_loss,
            "grad_norm": passes[-1].grad_norm,
            "num_env_steps": self.num_env_steps,
            "iteration_s": seconds,
            "env_steps_per_s": steps / seconds,
            "rollout_s": rollout_s,
            "gradient_s": gradient_s,
            "outer_s": sum(one.outer_s for one in passes),
            "waiting_s": max(0.0, max(1, pool.num_workers) * seconds - rollout_s - gradient_s),
            "workers": pool.num_workers,
            "respawns": self._counts["respawn"],
            "retries": self._counts["retry"],
            "recollections": self._counts["recollect"],
            "failed_saves": self._counts["save_failed"],
            "params_sha256": params_sha256(self.params_P),
        }
        self._counts.clear()
        return record

    def save(self) -> None:
        """Writes a checkpoint of the state after the last whole iteration. A failure is said, and counted.

        Raises:
            CheckpointError: it is the last save of the run, or more than ``checkpoint.max_failures`` in a row failed.
        """
        settings = self.config.checkpoint
        try:
            self._tell("flush")  # The lines up to a checkpoint must not be missing when a run goes on from it.
            checkpoint.save(self._storage, self._state, self.config.identity(), settings.keep, self._warn)
        except OSError as error:
            self._failed_saves += 1
            self._on_event({"event": "save_failed", "cause": str(error), "in_a_row": self._failed_saves})
            if self._failed_saves > settings.max_failures or self._state.iteration == self.config.iterations:
                raise CheckpointError(
                    f"the state after {self._state.iteration} iterations could not be saved: {error}; {self._where()}"
                ) from error
        else:
            self._failed_saves = 0
            self._saved_iteration = self._state.iteration

    @property
    def params_P(self) -> np.ndarray:
        """The meta-parameters, float32 [P] (a copy)."""
        return self.params.detach().numpy().copy()

    @property
    def shared(self) -> SharedState:
        """All that was learned so far (a copy)."""
        return SharedState(self.params_P, self.statistics)

    def _training_specs(self) -> list[TaskSpec]:
        rng = make_rng(self.config.seed, Stream.SAMPLE_TASKS, self.iteration)
        tasks = self.family.sample(rng, self.config.tasks_per_iteration)
        return make_specs(self.config, Stream.TRAIN, self.iteration, tasks, self.config.inner.num_steps)

    def _outer_step(self, results: Iterable[TaskResult]) -> _Pass:
        """Steps on the folded meta-gradient."""
        losses, seconds = [], []

        def gradients() -> Iterable[np.ndarray]:
            for result in results:
                losses.append(result.metrics["meta_loss"])
                seconds.append(result.seconds)
                yield result.gradient_P

        gradient_P = torch.from_numpy(fold(gradients()))
        began = time.perf_counter()
        self.params.grad = gradient_P
        grad_norm = torch.nn.utils.clip_grad_norm_(
            [self.params], self.config.outer.max_grad_norm, error_if_nonfinite=True
        )
        self.optimizer.step()
        return _Pass(float(np.mean(losses)), grad_norm.item(), sum(seconds), time.perf_counter() - began)

    def _add_statistics(self, results: Sequence[TaskResult]) -> None:
        """Merged in task order, after the iteration: while it lasts, all its tasks see the same."""
        seen = [one for one in (self.statistics, *(result.statistics for result in results)) if one is not None]
        self.statistics = functools.reduce(Statistics.merge, seen) if seen else None

    def validate(self, pool: LocalPool | RayPool) -> dict[str, float]:
        """Mean returns ``pre`` and ``post`` adaptation on the fixed tasks of the validation split."""
        evaluation = evaluate(pool, self.family, self.config, self.shared, "validation", self.config.inner.num_steps)
        means = evaluation.returns["meta"].mean(axis=0)
        returns = {"pre": float(means[0]), "post": float(means[-1])}
        self._tell("evaluation", self.iteration, returns)
        return returns

    def _finish(self, pool: LocalPool | RayPool) -> Summary:
        steps, strategies = max(self.config.eval.num_steps, self.config.inner.num_steps), self.config.eval.strategies
        evaluation = evaluate(pool, self.family, self.config, self.shared, "test", steps, strategies)
        means = evaluation.returns["meta"].mean(axis=0)
        pre, post = float(means[0]), float(means[self.config.inner.num_steps])
        self._tell("evaluation", self.iteration, {"pre": pre, "post": post})
        return Summary(pre, post, params_sha256(self.params_P), self._run, evaluation)

    def _kept(self) -> str:
        """Saves what is done, and says so."""
        done = self._state.iteration
        if done > self._saved_iteration:
            try:
                self.save()
            except CheckpointError as error:
                return f"after {done} of {self.config.iterations} iterations: {error}"
        return f"after {done} of {self.config.iterations} iterations; {self._where()}"

    def _where(self) -> str:
        """How to go on."""
        saved = f"saved up to iteration {self._saved_iteration}" if self._saved_iteration else "nothing saved yet"
        return f"{saved}; the same command with --run.name {self.folder.name} goes on from there"

    def _open_folder(self, stack: ExitStack) -> None:
        """Makes the run's folder, and keeps it to this process until the stack unwinds."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(self.folder))
            open_storage(self.folder).write("config.yaml", dump_yaml(self.config).encode())
            self._storage.make()
            self._sinks.append(FileSink(self.folder, self.iteration, self._warn))
            stack.callback(self._tell, "close")
            events, self._unwritten = self._unwritten or [], None
            for event in events:
                self._sinks[-1].event(event)
            if self._run.store:
                self._sinks.append(Mirror(self.folder, self._run.store, self._warn))
                self._run.publish("config.yaml")
        except OSError as error:
            raise ConfigError(f"run.dir or checkpoint.dir cannot be written to: {error}") from error

    def _snapshot(self) -> TrainState:
        adam = self.optimizer.state.get(self.params, {})
        arrays = {"params_P": self.params_P, **{name: value.numpy().copy() for name, value in adam.items()}}
        arrays |= statistics_to_arrays(self.statistics)
        return TrainState(self.iteration, self.num_env_steps, arrays)

    def _set_state(self, state: TrainState) -> None:
        self.statistics, rest = statistics_from_arrays(state.arrays)
        arrays = {name: torch.from_numpy(value.copy()) for name, value in rest.items()}
        with torch.no_grad():
            self.params.copy_(arrays.pop("params_P"))
        self.optimizer.state[self.params] = arrays
        self.iteration, self.num_env_steps = state.iteration, state.num_env_steps

    def _on_event(self, event: Event) -> None:
        self._counts[event["event"]] += 1
        now = datetime.now(UTC).isoformat(timespec="seconds")
        event = {"event": event["event"], "time": now, "iteration": self.iteration, **event}
        if self._unwritten is not None:
            self._unwritten.append(event)
        self._tell("event", event)

    def _warn(self, text: str) -> None:
        self._on_event({"event": "warning", "cause": text})

    def _tell(self, what: str, *arguments: object) -> None:
        for sink in self._sinks:
            getattr(sink, what)(*arguments)


def _successes(results: Sequence[TaskResult]) -> Record:
    """Shares of episodes that succeed, where the environment says so."""
    if not all(result.successes for result in results):
        return {}
    first, last = (float(np.mean([result.successes[k] for result in results])) for k in (0, -1))
    return {"success_pre_adaptation": first, "success_post_adaptation": last}


def _is_due(iteration: int, every: int) -> bool:
    return every > 0 and iteration % every == 0
