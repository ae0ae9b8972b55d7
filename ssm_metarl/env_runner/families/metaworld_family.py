"""`MetaWorldFamily`: the meta-learning benchmarks of Meta-World, ``ssm_metarl/ML1-v0``, ``ML10``, ``ML25``, ``ML45``.

The package's own gymnasium ids are not used: its ``ML1-train`` plays the test goals.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from ssm_metarl.env_runner.families.metaworld import (
    HORIZON,
    KEPT_MODELS,
    Compiled,
    MetaWorldVectorEnv,
    as_numbers,
    class_of,
    training_classes,
)
from ssm_metarl.env_runner.family import TaskFamily, split_index
from ssm_metarl.env_runner.vector import TaskError
from ssm_metarl.types import Stream, Task, make_rng

Goals = dict[str, list[Task]]
"""Class -> its tasks, both in the benchmark's order."""


class MetaWorldFamily(TaskFamily):
    """One benchmark: 50 goals for each of its training classes, and 50 for each of its test classes.

    Training tasks are the benchmark's own, each class as often as the others. Test tasks are its own too, one class
    after the other in turn: other goals of the same class in ML1, goals of five other classes in the rest (but
    ``basketball-v3`` of Meta-World's ML25 is among both). The benchmarks have no validation tasks: these are further
    goals of the training classes, drawn as the benchmark draws its own.

    The benchmark is built when tasks are first asked for (ML1 takes about 1 s, ML10 7 s, ML45 25 s), so only by the
    process that deals them out.

    Args:
        benchmark: ML1, ML10, ML25 or ML45.
        env_name: the class of ML1; None: reach-v3.
        benchmark_seed: of its goals.
        kept_models, reward_version: as for `MetaWorldVectorEnv`.

    Raises:
        TaskError: the package is missing, or an argument is unknown.

    Example::

        family = MetaWorldFamily("ML1", env_name="push-v3")
        vector = family.make_vector(20)
        vector.set_tasks(family.tasks("test", 20))
    """

    horizon = HORIZON

    def __init__(
        self,
        benchmark: str,
        env_name: str | None = None,
        benchmark_seed: int = 0,
        kept_models: int = KEPT_MODELS,
        reward_version: str = "v2",
    ) -> None:
        self.id = f"ssm_metarl/{benchmark}-v0"
        self._benchmark, self._seed = benchmark, benchmark_seed
        self._train_classes = training_classes(benchmark, env_name)
        if type(benchmark_seed) is not int or benchmark_seed < 0:
            raise TaskError(f"env.kwargs: benchmark_seed = {benchmark_seed!r} must be a whole number, 0 or more")
        self._arguments = {
            "benchmark": benchmark,
            "env_name": env_name,
            "kept_models": kept_models,
            "reward_version": reward_version,
        }
        MetaWorldVectorEnv(**self._arguments).close()  # wrong arguments are found at once
        self._validation: list[Task] = []

    def sample_task(self, rng: np.random.Generator) -> Task:
        return self.sample(rng, 1)[0]

    def sample(self, rng: np.random.Generator, n: int) -> list[Task]:
        """``n`` training tasks, drawn with replacement: as many of each class, as far as ``n`` allows."""
        goals = list(self._goals[0].values())
        classes = np.concatenate([rng.permutation(len(goals)) for _ in range(-(-n // len(goals)))])[:n]
        return [dict(goals[index][rng.integers(len(goals[index]))]) for index in classes]

    def tasks(self, split: str, n: int) -> list[Task]:
        """The first ``n`` tasks of the fixed ``validation`` or ``test`` set, one of each class in turn.

        The test set of 50 goals a class begins again at its end.
        """
        if split_index(split) == split_index("validation"):
            if len(self._validation) < n:
                self._validation = self._draw_validation(n)
            return [dict(task) for task in self._validation[:n]]
        goals = list(self._goals[1].values())
        turns = (divmod(index, len(goals)) for index in range(n))
        return [dict(goals[which][turn % len(goals[which])]) for turn, which in turns]

    def class_of(self, task: Task) -> str:
        """Meta-World's name of the task's class, such as ``reach-v3``."""
        return class_of(task)

    def build_vector(self, num_envs: int, autoreset_mode: AutoresetMode) -> MetaWorldVectorEnv:
        return MetaWorldVectorEnv(num_envs, self.horizon, autoreset_mode, **self._arguments)

    @functools.cached_property
    def _goals(self) -> tuple[Goals, Goals]:
        """The benchmark's training and test tasks."""
        import metaworld

        which = {"env_name": self._train_classes[0]} if self._benchmark == "ML1" else {}
        benchmark = getattr(metaworld, self._benchmark)(**which, seed=self._seed)
        return _by_class(benchmark.train_tasks), _by_class(benchmark.test_tasks)

    def _draw_validation(self, n: int) -> list[Task]:
        names, tasks = self._train_classes, {}
        # A class at a time, so that one model is in memory, whatever n is.
        for position, name in enumerate(names[:n]):
            compiled = Compiled(name, self._arguments["reward_version"])
            data, rng = compiled.make_data(), make_rng(0, Stream.HELD_OUT_TASKS, split_index("validation"), position)
            for index in range(position, n, len(names)):
                tasks[index] = as_numbers(name, compiled.draw(data, rng))
        return [tasks[index] for index in range(n)]


def _by_class(packaged: Sequence[Any]) -> Goals:
    goals: Goals = {}
    for name, data in packaged:
        # Pickled a moment ago, by the package and in this process.
        content = pickle.loads(data)
        unknown = content.keys() - {"rand_vec", "env_cls", "partially_observable"}
        if unknown or not content["partially_observable"]:
            raise TaskError(f"Meta-World's task of {name} is not what this version knows: install metaworld==3.1.1")
        goals.setdefault(name, []).append(as_numbers(name, content["rand_vec"]))
    return goals
