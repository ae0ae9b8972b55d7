"""Evaluation on held-out tasks, through the same pool as training: `evaluate`.

Shape legend: K tasks, S adaptation steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ssm_metarl.config import TrainConfig
from ssm_metarl.env_runner.tasks import TaskFamily
from ssm_metarl.runtime.pool import LocalPool, RayPool
from ssm_metarl.types import SharedState, Stream, Task, TaskSpec


@dataclass(frozen=True)
class Evaluation:
    """Returns on held-out tasks, by strategy of adaptation.

    ``returns["meta"][i, k]``: mean return on task i after k calls of the adapter. ``skipped["meta"]``: in how many of
    all calls it found a reason not to learn, such as a number that is not finite.
    """

    split: str
    tasks: list[Task]
    returns: dict[str, np.ndarray]
    skipped: dict[str, int]
    successes: dict[str, np.ndarray] | None = None
    """The same for the share of episodes that succeed; None: the environment does not say."""


def make_specs(
    config: TrainConfig, stream: Stream, iteration: int, tasks: Sequence[Task], num_steps: int
) -> list[TaskSpec]:
    """One spec per task, in task order."""
    return [TaskSpec(config.seed, stream, iteration, index, task, num_steps) for index, task in enumerate(tasks)]


def evaluate(
    pool: LocalPool | RayPool,
    family: TaskFamily,
    config: TrainConfig,
    shared: SharedState,
    split: str,
    num_steps: int,
    strategies: Sequence[str] = ("meta",),
) -> Evaluation:
    """Adapts to the fixed tasks of a held-out split by each of these strategies and ``meta``, through the same pool.

    The random streams depend neither on the iteration nor on the strategy: two sets of parameters meet the same tasks
    and the same noise.
    """
    strategies = list(dict.fromkeys([*strategies, "meta"]))
    tasks = family.tasks(split, config.eval.num_tasks)
    specs = [
        replace(spec, strategy=strategy)
        for strategy in strategies
        for spec in make_specs(config, Stream.EVALUATE, 0, tasks, num_steps)
    ]
    results = list(pool.map("evaluate", shared, specs))
    parts = {name: results[i * len(tasks) : (i + 1) * len(tasks)] for i, name in enumerate(strategies)}
    knows_success = all(len(result.successes) == num_steps + 1 for result in results)
    return Evaluation(
        split,
        tasks,
        returns={name: np.array([result.returns for result in part]) for name, part in parts.items()},
        skipped={name: int(sum(result.metrics["skipped"] for result in part)) for name, part in parts.items()},
        successes={name: np.array([result.successes for result in part]) for name, part in parts.items()}
        if knows_success
        else None,
    )
