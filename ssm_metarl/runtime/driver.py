"""`MetaTrainer`, the outer loop: samples tasks, folds meta-gradients, steps the optimizer, keeps the books.

    sample K tasks ──specs──► pool.map("adapt_and_collect") ──► K meta-gradients; K batches stay with the workers
         ▲                                                          │ waits for all K; folds in task order, float64
         │                                                          ▼
    next iteration ◄── metrics, checkpoint ◄── outer_step ◄── pool.map("revisit") under new parameters, num_passes - 1

Every iteration is a function of (configuration, parameters, optimizer state, iteration): it may be replayed anywhere.

Shape legend: K tasks, P parameters, S adaptation steps.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import torch

from ssm_metarl.config import ConfigError, TrainConfig, dump_yaml
from ssm_metarl.env_runner.tasks import TaskFamily, make_family
from ssm_metarl.meta_rl.objectives import fold
from ssm_metarl.runtime import checkpoint
from ssm_metarl.runtime.metrics import FileSink, Record, Sink, params_sha256
from ssm_metarl.runtime.pool import Event, LocalPool, RayPool, make_pool
from ssm_metarl.runtime.process import limit_threads
from ssm_metarl.runtime.worker import make_policy
from ssm_metarl.types import SharedState, Stream, Task, TaskResult, TaskSpec, make_rng


@dataclass(frozen=True)
class Evaluation:
    """Returns on held-out tasks. ``returns_KS[i, k]``: mean return on task i after k adaptation steps."""

    split: str
    tasks: list[Task]
    returns_KS: np.ndarray


@dataclass(frozen=True)
class Summary:
    """What a finished training came to."""

    pre: float
    post: float
    params_sha256: str
    folder: Path
    evaluation: Evaluation

    def __str__(self) -> str:
        return f"done: pre {self.pre:.4g} post {self.post:.4g} params_sha256 {self.params_sha256} run {self.folder}"


class MetaTrainer:
    """Meta-trains one policy over a family of tasks.

    Args:
        config: the run's configuration.
        sinks: hear of its progress, besides the files in the run's folder.
        resume: ``auto`` goes on from the newest valid checkpoint of a run of that name, ``never`` refuses an existing
            name, a path starts from that checkpoint.

    Raises:
        ConfigError: the name is taken by a run of another identity, or at all under ``never``.
        TaskError: the environment cannot be made.
    """

    def __init__(self, config: TrainConfig, sinks: Sequence[Sink] = (), resume: str = "auto") -> None:
        limit_threads()
        self.config = config
        self.family = make_family(config.env)
        self.params = torch.from_numpy(make_policy(self.family, config).to_vector()).requires_grad_()
        self.optimizer = torch.optim.Adam([self.params], lr=config.outer.lr)
        self.iteration = 0
        self.num_env_steps = 0
        self._counts: Counter[str] = Counter()
        self._sinks: list[Sink] = list(sinks)
        self.folder = self._open_folder(resume)

    def run(self) -> Summary:
        """Trains to ``config.iterations`` and evaluates on the held-out test tasks.

        Raises:
            TaskError: a task failed on every attempt. PoolError: no worker could be had.
        """
        self._sinks.append(FileSink(self.folder, self.iteration))
        with ExitStack() as stack:
            stack.callback(self._tell, "close")
            pool = stack.enter_context(closing(make_pool(self.config, self._on_event)))
            while self.iteration < self.config.iterations:
                self._tell("iteration", self.step(pool))
                is_last = self.iteration == self.config.iterations
                if _is_due(self.iteration, self.config.eval.every) and not is_last:
                    self._validate(pool)
                if _is_due(self.iteration, self.config.checkpoint.every) or is_last:
                    self.save()
            return self._finish(pool)

    def step(self, pool: LocalPool | RayPool) -> Record:
        """One iteration: a batch of tasks, ``outer.num_passes`` outer steps over it. Returns its record."""
        began = time.perf_counter()
        specs = self._training_specs()
        results, handles = [], []
        for result, handle in pool.map("adapt_and_collect", self._shared(), specs, keep=True):
            results.append(result)
            handles.append(handle)
            self._tell("task", self.iteration, len(results), len(specs))
        meta_loss, grad_norm = self._outer_step(results)
        for _ in range(self.config.outer.num_passes - 1):
            meta_loss, grad_norm = self._outer_step(pool.map("revisit", self._shared(), specs, handles))
        steps = sum(result.num_env_steps for result in results)
        self.num_env_steps += steps
        self.iteration += 1
        seconds = time.perf_counter() - began
        record = {
            "iteration": self.iteration - 1,
            "return_pre_adaptation": float(np.mean([result.returns[0] for result in results])),
            "return_post_adaptation": float(np.mean([result.returns[-1] for result in results])),
            "meta_loss": meta_loss,
            "grad_norm": grad_norm,
            "num_env_steps": self.num_env_steps,
            "iteration_s": seconds,
            "env_steps_per_s": steps / seconds,
            "workers": pool.num_workers,
            "respawns": self._counts["respawn"],
            "retries": self._counts["retry"],
            "params_sha256": params_sha256(self.params_P),
        }
        self._counts.clear()
        return record

    def save(self) -> Path:
        """Writes a checkpoint of the state after ``self.iteration`` iterations."""
        adam = self.optimizer.state.get(self.params, {})
        arrays = {"params_P": self.params_P, **{name: value.numpy() for name, value in adam.items()}}
        state = checkpoint.TrainState(self.iteration, self.num_env_steps, arrays)
        return checkpoint.save(self.folder / "checkpoints", state, self.config.identity(), self.config.checkpoint.keep)

    @property
    def params_P(self) -> np.ndarray:
        """The meta-parameters, float32 [P] (a copy)."""
        return self.params.detach().numpy().copy()

    def _training_specs(self) -> list[TaskSpec]:
        rng = make_rng(self.config.seed, Stream.SAMPLE_TASKS, self.iteration)
        tasks = self.family.sample(rng, self.config.tasks_per_iteration)
        return make_specs(self.config, Stream.TRAIN, self.iteration, tasks, self.config.inner.num_steps)

    def _shared(self) -> SharedState:
        return SharedState(self.params_P)

    def _outer_step(self, results: Iterable[TaskResult]) -> tuple[float, float]:
        """Steps on the folded meta-gradient. Returns the mean meta-loss and the gradient's norm before clipping."""
        losses: list[float] = []

        def gradients() -> Iterable[np.ndarray]:
            for result in results:
                losses.append(result.metrics["meta_loss"])
                yield result.gradient_P

        self.params.grad = torch.from_numpy(fold(gradients()))
        grad_norm = torch.nn.utils.clip_grad_norm_(
            [self.params], self.config.outer.max_grad_norm, error_if_nonfinite=True
        )
        self.optimizer.step()
        return float(np.mean(losses)), grad_norm.item()

    def _validate(self, pool: LocalPool | RayPool) -> None:
        evaluation = evaluate(pool, self.family, self.config, self.params_P, "validation", self.config.inner.num_steps)
        means = evaluation.returns_KS.mean(axis=0)
        self._tell("evaluation", self.iteration, {"pre": float(means[0]), "post": float(means[-1])})

    def _finish(self, pool: LocalPool | RayPool) -> Summary:
        steps = max(self.config.eval.num_steps, self.config.inner.num_steps)
        evaluation = evaluate(pool, self.family, self.config, self.params_P, "test", steps)
        means = evaluation.returns_KS.mean(axis=0)
        pre, post = float(means[0]), float(means[self.config.inner.num_steps])
        self._tell("evaluation", self.iteration, {"pre": pre, "post": post})
        return Summary(pre, post, params_sha256(self.params_P), self.folder, evaluation)

    def _open_folder(self, resume: str) -> Path:
        """The run's folder, made or taken up again."""
        root, name = Path(self.config.run.dir), self.config.run.name
        folder = root / name if name else _fresh_folder(root, self.config)
        restored = None
        if resume not in ("auto", "never"):
            restored = checkpoint.load(Path(resume))
        elif folder.exists() and any(folder.iterdir()):
            if resume == "never":
                raise ConfigError(f"run.name: {folder} exists and --resume never was given; choose another run.name")
            restored = checkpoint.load_newest(folder / "checkpoints", self._warn)
        if restored is not None:
            self._restore(*restored)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(dump_yaml(self.config), encoding="utf-8")
        return folder

    def _restore(self, state: checkpoint.TrainState, identity: dict) -> None:
        _check_identity(self.config.identity(), identity)
        arrays = {name: torch.from_numpy(value.copy()) for name, value in state.arrays.items()}
        with torch.no_grad():
            self.params.copy_(arrays.pop("params_P"))
        self.optimizer.state[self.params] = arrays
        self.iteration, self.num_env_steps = state.iteration, state.num_env_steps

    def _on_event(self, event: Event) -> None:
        self._counts[event["event"]] += 1
        self._tell("event", event)

    def _warn(self, text: str) -> None:
        self._tell("event", {"event": "checkpoint", "cause": text})

    def _tell(self, what: str, *arguments: object) -> None:
        for sink in self._sinks:
            getattr(sink, what)(*arguments)


def make_specs(
    config: TrainConfig, stream: Stream, iteration: int, tasks: Sequence[Task], num_steps: int
) -> list[TaskSpec]:
    """One spec per task, in task order."""
    return [TaskSpec(config.seed, stream, iteration, index, task, num_steps) for index, task in enumerate(tasks)]


def evaluate(
    pool: LocalPool | RayPool, family: TaskFamily, config: TrainConfig, params_P: np.ndarray, split: str, num_steps: int
) -> Evaluation:
    """Adapts to the fixed tasks of a held-out split, through the same pool.

    The random streams do not depend on the iteration: two sets of parameters meet the same tasks and the same noise.
    """
    tasks = family.tasks(split, config.eval.num_tasks)
    specs = make_specs(config, Stream.EVALUATE, 0, tasks, num_steps)
    results = pool.map("evaluate", SharedState(params_P), specs)
    return Evaluation(split, tasks, np.array([result.returns for result in results]))


def _is_due(iteration: int, every: int) -> bool:
    return every > 0 and iteration % every == 0


def _fresh_folder(root: Path, config: TrainConfig) -> Path:
    family = config.env.id.split("/")[-1].lower()
    stem = f"{family}-{config.algorithm}-{datetime.now():%Y%m%d-%H%M%S}"
    names = (stem if number == 1 else f"{stem}-{number}" for number in range(1, 1000))
    return next(root / name for name in names if not (root / name).exists())


def _check_identity(own: dict, other: dict) -> None:
    """Raises ConfigError with the differing keys unless both configurations describe the same run."""
    mine, theirs = _flatten(own), _flatten(other)
    differing = [key for key in sorted(mine.keys() | theirs.keys()) if mine.get(key) != theirs.get(key)]
    if differing:
        lines = [f"  {key} is {mine.get(key)!r}, the existing run has {theirs.get(key)!r}" for key in differing]
        raise ConfigError(
            "the run cannot be resumed with another configuration:\n" + "\n".join(lines) + "\nchoose another run.name"
        )


def _flatten(tree: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(tree, dict):
        return {prefix: list(tree) if isinstance(tree, tuple) else tree}
    return {
        key: leaf for name, sub in tree.items() for key, leaf in _flatten(sub, f"{prefix}.{name}".lstrip(".")).items()
    }
