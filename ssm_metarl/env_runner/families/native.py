"""Native families: a few array formulas, for all rows of a batch at once, or for one row as a plain environment.

Shape legend: N rows (sub-environments), O observation, A action, S state of the dynamics.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode

from ssm_metarl.env_runner.distributions import Value
from ssm_metarl.env_runner.vector import Advance, MetaVectorEnv, TaskError, did_you_mean, first_row
from ssm_metarl.types import Task

NO_HORIZON = sys.maxsize
Varying = Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class Variant:
    """How one source sets a family up: which tasks, how long an episode is, which constants.

    Example: ``Variant("MAML (Finn et al. 2017)", 100, {"goal_velocity": {"uniform": (0.0, 2.0)}})``
    """

    source: str
    horizon: int
    vary: Varying = field(default_factory=dict)
    """What differs between tasks, as in ``env.vary``, which is laid over it."""
    draw: Callable[[np.random.Generator], Task] | None = None
    """Tasks that independent distributions cannot describe."""
    task_set: Callable[[], tuple[list[Task], list[Task]]] | None = None
    """Fixed (training, test) tasks."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the environment reads: reward constants, bounds."""


class NativeVectorEnv(MetaVectorEnv):
    """What the families written here share: parameters by name, one value per row, and variants by source.

    Args:
        num_envs: N.
        max_episode_steps: the horizon; None: that of the variant.
        autoreset_mode: gymnasium's.
        variant: a key of ``variants``; None: the first.

    Raises:
        TaskError: an unknown variant.
    """

    parameters: ClassVar[dict[str, Value]]
    """Every parameter that a task can have -> its nominal value, a number or a tuple of them."""
    positive: ClassVar[tuple[str, ...]] = ()
    """Parameters that must be greater than 0."""
    variants: ClassVar[dict[str, Variant]]
    row_observation_space: ClassVar[Box]
    row_action_space: ClassVar[gymnasium.Space]

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        variant: str | None = None,
    ) -> None:
        name = next(iter(self.variants)) if variant is None else variant
        if name not in self.variants:
            known = f"{did_you_mean(name, self.variants)}"
            raise TaskError(f"env.variant: {self.label} has no variant {name!r}{known}")
        self.variant = self.variants[name]
        horizon = self.variant.horizon if max_episode_steps is None else max_episode_steps
        super().__init__(num_envs, horizon, self.row_observation_space, self.row_action_space, autoreset_mode)
        self.params = {name: np.array([value] * num_envs, np.float64) for name, value in self.parameters.items()}
        """Name -> float64 [N], or [N, number of values]."""

    @property
    def label(self) -> str:
        """What messages call it."""
        return type(self).__name__.removesuffix("VectorEnv")

    def refresh(self) -> None:
        """Recomputes what derives from ``self.params``."""

    def check_task(self, row: int) -> None:
        """Raises TaskError where the parameters of a row do not go together."""

    def _set_tasks(self, tasks: Task | Sequence[Task], rows_N: np.ndarray) -> None:
        super()._set_tasks(tasks, rows_N)
        self.refresh()

    def _apply_task(self, row: int, task: Mapping[str, Any]) -> None:
        unknown = task.keys() - self.parameters.keys()
        if unknown:
            name = min(unknown)
            raise TaskError(f"{self.label} has no parameter {name!r}{did_you_mean(name, self.parameters)}")
        for name, nominal in self.parameters.items():
            self.params[name][row] = self._valid(name, task.get(name, nominal), nominal)
        self.check_task(row)

    def _valid(self, name: str, value: Any, nominal: Value) -> np.ndarray:
        is_array, positive = isinstance(nominal, tuple), name in self.positive
        try:
            numbers = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            numbers = np.array(np.nan)
        fits = numbers.shape == np.shape(nominal) and np.isfinite(numbers).all()
        if not fits or (positive and np.any(numbers <= 0)):
            what = f"{len(nominal)} numbers, each " if is_array else ""
            rule = "finite and greater than 0" if positive else "finite"
            where = "see its distribution in env.vary"
            raise TaskError(f"{self.label}: {name} = {value!r:.80} must be {what}{rule}; {where}")
        return numbers

    def share_rng(self, rng: np.random.Generator) -> None:
        """Draws from this generator until a ``reset`` with a seed."""
        self.np_random = rng

    def _no_options(self, options: Mapping[str, Any]) -> None:
        if options:
            name = min(options)
            raise TaskError(f"{self.label} has no reset option {name!r}{did_you_mean(name, ('task', 'reset_mask'))}")


class NumpyVectorEnv(NativeVectorEnv):
    """A family as array formulas over all rows at once: a subclass with those class attributes and three methods.

    Example: ``Navigation2DVectorEnv(num_envs=10, max_episode_steps=100)``
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.refresh()
        self._state_SN = self.initial_state(np.random.default_rng(0), self.num_envs)

    def initial_state(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """The states in which ``count`` episodes begin, float64 [S, count]."""
        raise NotImplementedError

    def dynamics(self, state_SN: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A new array with the next states, reward_N float64, terminated_N."""
        raise NotImplementedError

    def observation(self, state_SN: np.ndarray) -> np.ndarray:
        """A new float32 array [N, O]."""
        raise NotImplementedError

    def _restart(self, rows_N: np.ndarray, seed: int | None, options: dict[str, Any], info: dict[str, Any]) -> None:
        self._no_options(options)
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
    """One row of a native family as a plain environment: what ``gymnasium.make`` returns inside its ``TimeLimit``.

    Args:
        render_mode: there is none.
        kwargs: as for the vector environment, such as ``variant``.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}
    vector_class: ClassVar[type[NativeVectorEnv]]

    def __init__(self, render_mode: None = None, **kwargs: Any) -> None:
        self.render_mode = render_mode
        # The TimeLimit of gymnasium.make is the only clock, so that max_episode_steps can be changed there.
        self._vector = self.vector_class(1, NO_HORIZON, AutoresetMode.DISABLED, **kwargs)
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
        self._vector.share_rng(self.np_random)
        observation_NO, info = self._vector.reset(options=options)
        return observation_NO[0], first_row(info)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Gymnasium's five values. Raises InvalidAction: a Discrete action out of range (a Box clips)."""
        if isinstance(self.action_space, Discrete) and not self.action_space.contains(action):
            raise gymnasium.error.InvalidAction(f"action {action!r} is not in {self.action_space}")
        actions = np.asarray(action, self.action_space.dtype)[None]
        observation_NO, reward_N, terminated_N, _, info = self._vector.step(actions)
        del info["foreign_truncation"]
        return observation_NO[0], float(reward_N[0]), bool(terminated_N[0]), False, first_row(info)

    def close(self) -> None:
        """Frees what the simulator holds."""
        self._vector.close()
