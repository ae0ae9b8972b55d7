"""From a run's folder to its adaptation curves: return after k = 0, 1, 2, ... steps on held-out tasks, per strategy."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssm_metarl.config import ConfigError, TrainConfig
from ssm_metarl.deployment import load_run
from ssm_metarl.env_runner.tasks import TaskError, TaskFamily, make_family
from ssm_metarl.evaluation.curves import Curves, require_alike, table
from ssm_metarl.evaluation.statistics import Interval
from ssm_metarl.runtime import checkpoint
from ssm_metarl.runtime.held_out import Evaluation, evaluate
from ssm_metarl.runtime.metrics import params_sha256
from ssm_metarl.runtime.pool import make_pool
from ssm_metarl.runtime.process import limit_threads
from ssm_metarl.types import SharedState, Task

Record = dict[str, Any]
"""Contents of an ``eval.json``, as read from it."""

SPLIT = "test"


def evaluate_runs(folders: Sequence[Path], overrides: Mapping[str, Any]) -> Iterator[tuple[str, Record]]:
    """Evaluates the newest valid checkpoint of each run on its test tasks, and writes ``eval.json`` into its folder.

    What is wrong with the runs, or keeps several from being joined, is found before the first is evaluated.

    Args:
        folders: the runs' folders. overrides: dotted settings laid over the runs' own, such as ``eval.num_tasks``.

    Yields:
        Folder and record of a run, as `curves.join` takes them, as soon as it is evaluated.

    Raises:
        ConfigError: not a run's folder, a setting is wrong, or several runs cannot be joined.
        CheckpointError: no checkpoint that can be used. TaskError: a task failed on every attempt.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError(f"a run is named twice: {', '.join(map(str, folders))}")
    limit_threads()
    runs = {str(folder): _Trained.load(folder, overrides) for folder in folders}
    require_alike({name: run.conditions() for name, run in runs.items()})
    for name, run in runs.items():
        yield name, write_evaluation(run.folder, run.config, run.evaluate(), run.shared.params_P)


def write_evaluation(folder: Path, config: TrainConfig, evaluation: Evaluation, params_P: np.ndarray) -> Record:
    """Writes ``eval.json``: every return, the intervals, and what they were measured with. Returns what it says."""
    curves = make_curves(config, evaluation)
    record = {
        **_measured_with(config, make_family(config.env), evaluation.split, evaluation.tasks),
        "params_sha256": params_sha256(params_P),
        "versions": checkpoint.versions(),
        "interval": curves.interval,
        "strategies": {strategy: _results(curves, strategy) for strategy in curves.returns},
        "differences": {f"{a} - {b}": _plain(curves.difference(a, b)) for a, b in curves.pairs},
        "improvement": {f"{a} > {b}": _plain(curves.improvement(a, b)) for a, b in curves.pairs},
    }
    part, text = folder / "eval.json.part", json.dumps(record, indent=1)
    part.write_text(text, encoding="utf-8")
    os.replace(part, folder / "eval.json")
    return json.loads(text)


def make_curves(config: TrainConfig, evaluation: Evaluation) -> Curves:
    """The curves of one run."""
    returns = {strategy: returns_KS[None] for strategy, returns_KS in evaluation.returns.items()}
    successes = evaluation.successes
    if successes is not None:
        successes = {strategy: rates_KS[None] for strategy, rates_KS in successes.items()}
    per_task = config.env.episodes_per_task
    return Curves(config.env.id, evaluation.split, per_task, evaluation.tasks, returns, successes, evaluation.skipped)


def adaptation_table(config: TrainConfig, evaluation: Evaluation) -> str:
    """The adaptation curves of one run as text."""
    return table(make_curves(config, evaluation))


@dataclass(frozen=True)
class _Trained:
    """A run that can be evaluated."""

    folder: Path
    config: TrainConfig
    family: TaskFamily
    shared: SharedState

    @classmethod
    def load(cls, folder: Path, overrides: Mapping[str, Any]) -> _Trained:
        config, shared = load_run(folder, overrides)
        try:
            return cls(folder, config, make_family(config.env), shared)
        except TaskError as error:
            raise ConfigError(f"{folder / 'config.yaml'}: {error}") from error

    def conditions(self) -> Record:
        """The part of ``eval.json`` that is known beforehand."""
        tasks = self.family.tasks(SPLIT, self.config.eval.num_tasks)
        return {**_measured_with(self.config, self.family, SPLIT, tasks), "num_steps": self.num_steps}

    @property
    def num_steps(self) -> int:
        return max(self.config.eval.num_steps, self.config.inner.num_steps)

    def evaluate(self) -> Evaluation:
        with closing(make_pool(self.config, _print_event)) as pool:
            return evaluate(
                pool, self.family, self.config, self.shared, SPLIT, self.num_steps, self.config.eval.strategies
            )


def _measured_with(config: TrainConfig, family: TaskFamily, split: str, tasks: list[Task]) -> Record:
    return {
        "env": config.env.id,
        "horizon": family.horizon,
        "split": split,
        "seed": config.seed,
        "episodes_per_task": config.env.episodes_per_task,
        "inner": config.inner.model_dump(mode="json"),
        "adapter": config.adapter.model_dump(mode="json"),
        "tasks": tasks,
    }


def _results(curves: Curves, strategy: str) -> Record:
    [returns_KS] = curves.returns[strategy]
    success = None
    if curves.successes is not None:
        success = {"rates": curves.successes[strategy][0].tolist(), "mean": _plain(curves.success(strategy))}
    return {
        "returns": returns_KS.tolist(),
        "mean": _plain(curves.mean(strategy)),
        "iqm": _plain(curves.iqm(strategy)),
        "success": success,
        "skipped": curves.skipped[strategy],
    }


def _plain(intervals: Sequence[Interval]) -> list[dict[str, float]]:
    return [interval._asdict() for interval in intervals]


def _print_event(event: Mapping[str, Any]) -> None:
    print(f"{event['event']}: {event['cause']}", flush=True)
