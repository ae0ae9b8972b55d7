"""`TaskFamily`: a distribution over tasks, its held-out tasks, and the environments that play them.

Subclass it for a family of one's own; ``tasks.make_family`` builds the family of a configuration.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode

from ssm_metarl.env_runner.families.listed import ListVectorEnv, served
from ssm_metarl.env_runner.vector import MetaVectorEnv, TaskError
from ssm_metarl.types import Stream, Task, make_rng

SPLITS = ("validation", "test")


class TaskFamily:
    """Tasks that belong together, and how to play them.

    A family of one's own says three things: what a task is, how to make an environment, how to give it a task. It is
    named in ``env.id`` by its import path ``module:Class``, or by its name among the entry points of the group
    ``ssm_metarl.families``; ``env.kwargs`` are arguments of its constructor.

    Example::

        class Planets(TaskFamily):
            horizon = 200

            def sample_task(self, rng):
                return {"gravity": rng.uniform(1.6, 24.8)}

            def make_env(self):
                return gymnasium.make("Pendulum-v1")

            def apply_task(self, env, task):
                env.unwrapped.g = task["gravity"]
    """

    id: str = ""
    """Its name; empty: that of the class."""
    horizon: int
    """Steps after which an episode ends."""
    disjoint: bool = True
    """Training, validation and test tasks have none in common."""
    _task: Task | None = None

    # What a family of one's own writes.

    def sample_task(self, rng: np.random.Generator) -> Task:
        """One task: names -> numbers, or flat lists of them of always the same length."""
        raise TaskError(f"{type(self).__name__} must define sample_task(rng), which returns one task")

    def make_env(self) -> gymnasium.Env:
        """One environment. Its own time limit, if earlier than ``horizon``, is foreign: its returns are cut there."""
        raise TaskError(f"{type(self).__name__} must define make_env(), which returns a gymnasium environment")

    def apply_task(self, env: gymnasium.Env, task: Task) -> None:
        """Gives an environment its task, before it is reset; by default its own ``set_task``. ``{}``: as it is made."""
        if task:
            env.unwrapped.set_task(task)

    # What it then offers.

    def sample(self, rng: np.random.Generator, n: int) -> list[Task]:
        """``n`` tasks of the training split, drawn with replacement."""
        return [self._drawn(rng) for _ in range(n)]

    def tasks(self, split: str, n: int) -> list[Task]:
        """The first ``n`` tasks of the fixed ``validation`` or ``test`` set, the same for every run."""
        rng = make_rng(0, Stream.HELD_OUT_TASKS, split_index(split))
        return [self._drawn(rng) for _ in range(n)]

    def encode(self, task: Task) -> np.ndarray:
        """The task's numbers in the order of their names, float32 [number of values]."""
        return np.concatenate([np.zeros(0), *(np.atleast_1d(task[name]) for name in sorted(task))]).astype(np.float32)

    def make_vector(self, num_envs: int, autoreset_mode: AutoresetMode = AutoresetMode.DISABLED) -> MetaVectorEnv:
        """``num_envs`` rows that play tasks of this family."""
        vector = self.build_vector(num_envs, autoreset_mode)
        if self._task:
            vector.set_tasks(self._task)
        return vector

    def build_vector(self, num_envs: int, autoreset_mode: AutoresetMode) -> MetaVectorEnv:
        """What `make_vector` returns, under the nominal task; a list of `make_env` unless a family has better."""
        return _CustomVectorEnv(self, num_envs, autoreset_mode)

    # The names that other libraries use.

    def sample_tasks(self, n: int) -> list[Task]:
        """``n`` training tasks, from a random stream of the family's own."""
        return self.sample(self._own_rng, n)

    def set_task(self, task: Task) -> None:
        """All that `make_vector` makes from now on begins with this task."""
        self._task = dict(task)

    @property
    def observation_space(self) -> Box:
        """Of one row."""
        return self._spaces[0]

    @property
    def action_space(self) -> gymnasium.Space:
        """Of one row, as a policy sees it: Discrete actions count from 0."""
        return self._spaces[1]

    @property
    def env_action_space(self) -> gymnasium.Space:
        """The environment's own, with its dtype and its first discrete action."""
        return self._spaces[2]

    @property
    def discrete(self) -> bool:
        return isinstance(self.action_space, Discrete)

    @property
    def observation_dim(self) -> int:
        """O."""
        return int(self.observation_space.shape[0])

    @property
    def action_dim(self) -> int:
        """A, or the number of discrete actions."""
        return int(self.action_space.n) if self.discrete else int(self.action_space.shape[0])

    @functools.cached_property
    def _spaces(self) -> tuple[Box, gymnasium.Space, gymnasium.Space]:
        probe = self.make_vector(1)
        try:
            return probe.single_observation_space, probe.single_action_space, probe.env_action_space
        finally:
            probe.close()

    @functools.cached_property
    def _own_rng(self) -> np.random.Generator:
        return np.random.default_rng()

    def _drawn(self, rng: np.random.Generator) -> Task:
        task = as_task(self.sample_task(rng), f"{self.id}: sample_task")
        sizes = {name: np.size(value) for name, value in task.items()}
        expected = self.__dict__.setdefault("_sizes", sizes)
        if sizes != expected:
            raise TaskError(f"{self.id}: sample_task returned values of sizes {sizes}, and before of {expected}")
        return task


class _CustomVectorEnv(ListVectorEnv):
    """Environments of a family that was written as a class."""

    def __init__(self, family: TaskFamily, num_envs: int, autoreset_mode: AutoresetMode) -> None:
        self._family = family
        try:
            envs = [served(family.make_env(), family.id) for _ in range(num_envs)]
        except TaskError:
            raise
        # Somebody else's code raises anything; the worker that meets it should say whose it was.
        except Exception as error:
            raise TaskError(f"{family.id}: make_env failed: {type(error).__name__}: {error}") from error
        super().__init__(envs, family.id, family.horizon, autoreset_mode)

    def _apply_task(self, row: int, task: Mapping[str, Any]) -> None:
        self._family.apply_task(self.envs[row], dict(task))


def split_index(split: str) -> int:
    """The number of a held-out split. Raises ValueError for any other."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}; sample() draws training tasks")
    return SPLITS.index(split)


def as_task(mapping: Any, whose: str) -> Task:
    """A task made of plain numbers and flat tuples of them. Raises TaskError, which says what of it is something else.

    Example: ``as_task({"goal": np.array([0.5, 1])}, "mine")`` is ``{"goal": (0.5, 1.0)}``
    """
    if not isinstance(mapping, Mapping) or not all(isinstance(name, str) for name in mapping):
        raise TaskError(f"{whose} returned {mapping!r:.80}; a task is a mapping from names to numbers")
    task: Task = {}
    for name, value in mapping.items():
        try:
            numbers = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            numbers = None
        if numbers is None or numbers.ndim > 1 or not np.isfinite(numbers).all():
            rule = "it must be a finite number or a flat list of them"
            raise TaskError(f"{whose} returned {name} = {value!r:.80}; {rule}")
        task[name] = tuple(numbers.tolist()) if numbers.ndim else float(numbers)
    return task
