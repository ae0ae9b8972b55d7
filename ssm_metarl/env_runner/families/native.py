"""Native families: a few array formulas, for all rows of a batch at once, or for one row as a plain environment.

Shape legend: N rows (sub-environments), O observation, A action, S state of the dynamics.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode

from ssm_metarl.env_runner.vector import Advance, MetaVectorEnv, TaskError, did_you_mean
from ssm_metarl.types import Task

NO_HORIZON = sys.maxsize


class NumpyVectorEnv(MetaVectorEnv):
    """A family as array formulas over all rows at once: a subclass with these class attributes and three methods.

    Example: ``Navigation2DVectorEnv(num_envs=10, max_episode_steps=100)``
    """

    parameters: ClassVar[dict[str, float]]
    """Name of every parameter that a task can have -> its nominal value."""
    positive: ClassVar[tuple[str, ...]] = ()
    """Parameters that must be greater than 0."""
    default_vary: ClassVar[dict[str, dict[str, tuple[float, ...]]]]
    """What differs between tasks unless ``env.vary`` says otherwise."""
    default_horizon: ClassVar[int]
    row_observation_space: ClassVar[Box]
    row_action_space: ClassVar[gymnasium.Space]

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        horizon = self.default_horizon if max_episode_steps is None else max_episode_steps
        super().__init__(num_envs, horizon, self.row_observation_space, self.row_action_space, autoreset_mode)
        self.params = {name: np.full(num_envs, value, np.float64) for name, value in self.parameters.items()}
        self._state_SN = self.initial_state(np.random.default_rng(0), num_envs)
        self.refresh()

    def initial_state(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """The states in which ``count`` episodes begin, float64 [S, count]."""
        raise NotImplementedError

    def dynamics(self, state_SN: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A new array with the next states, reward_N float64, terminated_N."""
        raise NotImplementedError

    def observation(self, state_SN: np.ndarray) -> np.ndarray:
        """A new float32 array [N, O]."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Recomputes what derives from ``self.params``."""

    def _set_tasks(self, tasks: Task | Sequence[Task], rows_N: np.ndarray) -> None:
        super()._set_tasks(tasks, rows_N)
        self.refresh()

    def _apply_task(self, row: int, task: Mapping[str, Any]) -> None:
        unknown = task.keys() - self.parameters.keys()
        if unknown:
            name = min(unknown)
            raise TaskError(f"{type(self).__name__} has no parameter {name!r}{did_you_mean(name, self.parameters)}")
        for name, nominal in self.parameters.items():
            value = float(task.get(name, nominal))
            if not math.isfinite(value) or (name in self.positive and value <= 0):
                rule = "finite and greater than 0" if name in self.positive else "finite"
                raise TaskError(
                    f"{type(self).__name__}: {name} = {value} must be {rule}; see its distribution in env.vary"
                )
            self.params[name][row] = value

    def _restart(self, rows_N: np.ndarray, seed: int | None, options: dict[str, Any], info: dict[str, Any]) -> None:
        if options:
            name = min(options)
            hint = did_you_mean(name, ("task", "reset_mask"))
            raise TaskError(f"{type(self).__name__} has no reset option {name!r}{hint}")
        self._state_SN[:, rows_N] = self.initial_state(self.np_random, int(rows_N.sum()))

    def _advance(self, actions: np.ndarray, ended_N: np.ndarray | None) -> Advance:
        state_SN, reward_N, terminated_N = self.dynamics(self._state_SN, actions)
        if ended_N is not None:
            np.copyto(state_SN, self._state_SN, where=ended_N)
        self._state_SN = state_SN
        return reward_N, terminated_N, self._no_row, {}

    def _observe(self) -> np.ndarray:
        return self.observation(self._state_SN)


class SingleEnv(gymnasium.Env):
    """One row of a native family as a plain environment: what ``gymnasium.make`` returns inside its ``TimeLimit``."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}
    vector_class: ClassVar[type[NumpyVectorEnv]]

    def __init__(self, render_mode: None = None) -> None:
        self.render_mode = render_mode
        # The TimeLimit of gymnasium.make is the only clock, so that max_episode_steps can be changed there.
        self._vector = self.vector_class(1, NO_HORIZON, AutoresetMode.DISABLED)
        self.observation_space = self._vector.single_observation_space
        self.action_space = self._vector.single_action_space

    @property
    def task(self) -> Task:
        """The current task (``{}``: the nominal one)."""
        return self._vector.tasks[0]

    def set_task(self, task: Task) -> None:
        """Sets the task of the episodes after the next ``reset``. Raises TaskError."""
        self._vector.set_tasks(task)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode. Options: ``task``."""
        super().reset(seed=seed)
        self._vector.np_random = self.np_random
        observation_NO, info = self._vector.reset(options=options)
        return observation_NO[0], info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Gymnasium's five values. Raises InvalidAction: a Discrete action out of range (a Box clips)."""
        if isinstance(self.action_space, Discrete) and not self.action_space.contains(action):
            raise gymnasium.error.InvalidAction(f"action {action!r} is not in {self.action_space}")
        actions = np.asarray(action, self.action_space.dtype)[None]
        observation_NO, reward_N, terminated_N, _, _ = self._vector.step(actions)
        return observation_NO[0], float(reward_N[0]), bool(terminated_N[0]), False, {}
