"""`Environment`: any gymnasium id or task family, one episode or several side by side, whose tasks can be set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode

from ssm_metarl.config import EnvConfig
from ssm_metarl.env_runner.tasks import make_family
from ssm_metarl.env_runner.vector import first_row
from ssm_metarl.types import Stream, Task, make_rng


class Environment:
    """A gymnasium-like environment over a family of tasks.

    With ``batch_size=1`` all values are those of one gymnasium environment: observation [O], float reward, two bools.
    With more, they are batched, and a row whose episode ended begins a new one at its next step (gymnasium's NEXT_STEP:
    that step's action is ignored, its reward is 0).

    Args:
        env_name: a gymnasium id or a family, such as ``ssm_metarl/Navigation2D-v0``.
        batch_size: B, episodes side by side.
        max_episode_steps: replaces the environment's own time limit.
        seed: of the episodes and of ``sample_tasks``; None: a fresh one.
        vary: what differs between tasks, as in ``env.vary``.

    Raises:
        TaskError: an unknown name, with the near ones; spaces that cannot be served.

    Example::

        with Environment("ssm_metarl/Navigation2D-v0", seed=0) as env:
            env.set_task(env.sample_tasks(1)[0])
            observation, info = env.reset()
            observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    """

    def __init__(
        self,
        env_name: str = "CartPole-v1",
        batch_size: int = 1,
        max_episode_steps: int | None = None,
        seed: int | None = None,
        vary: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("max_episode_steps", max_episode_steps)):
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value} must be at least 1")
        config = EnvConfig(id=env_name, horizon=max_episode_steps, vary=vary or {})
        self.family = make_family(config, override_time_limit=True)
        self.batch_size = batch_size
        mode = AutoresetMode.DISABLED if batch_size == 1 else AutoresetMode.NEXT_STEP
        self._vector = self.family.make_vector(batch_size, mode)
        single = batch_size == 1
        self.observation_space = self.family.observation_space if single else self._vector.observation_space
        self.action_space = self.family.action_space if single else self._vector.action_space
        self.observation_space.seed(seed)
        self.action_space.seed(seed)
        self._seed = seed
        self._task_rng = np.random.default_rng() if seed is None else make_rng(seed, Stream.SAMPLE_TASKS)
        self._return_B, self._length_B = np.zeros(batch_size), np.zeros(batch_size, np.int64)
        # Rows whose next step only begins an episode (or, with one row, may not be taken).
        self._ended_B = np.zeros(batch_size, bool)
        self._returns: list[float] = []
        self._lengths: list[int] = []

    def sample_tasks(self, n: int) -> list[Task]:
        """``n`` training tasks of the family."""
        return self.family.sample(self._task_rng, n)

    def set_task(self, task: Task | Sequence[Task]) -> None:
        """Gives all rows this task, or each row its own (a list of ``batch_size``); call ``reset`` afterwards."""
        self._vector.set_tasks(task)

    @property
    def task(self) -> Task | list[Task]:
        """The current task, a list of them if batched; ``{}`` is the nominal one."""
        return self._vector.tasks[0] if self.batch_size == 1 else list(self._vector.tasks)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins new episodes: (observation, info). Without ``seed`` the first call uses the constructor's."""
        seed, self._seed = self._seed if seed is None else seed, None
        observation_BO, info = self._vector.reset(seed=seed, options=options)
        self._return_B[:], self._length_B[:], self._ended_B[:] = 0.0, 0, False
        return (observation_BO[0], first_row(info)) if self.batch_size == 1 else (observation_BO, info)

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Gymnasium's (observation, reward, terminated, truncated, info).

        ``info["foreign_truncation"]``: the environment cut the episode, not its time limit.

        Raises ValueError: an action that does not fit ``action_space``; ResetNeeded: the (single) episode is over.
        """
        if self.batch_size == 1 and self._ended_B[0]:
            raise gymnasium.error.ResetNeeded("the episode is over: call reset()")
        observation_BO, reward_B, terminated_B, truncated_B, info = self._vector.step(self._actions(action))
        self._count(reward_B, terminated_B | truncated_B)
        if self.batch_size > 1:
            return observation_BO, reward_B, terminated_B, truncated_B, info
        return observation_BO[0], float(reward_B[0]), bool(terminated_B[0]), bool(truncated_B[0]), first_row(info)

    def _actions(self, action: Any) -> np.ndarray:
        action = np.asarray(action)
        space = self.action_space
        fits = action.shape == space.shape and action.dtype.kind in "iuf"
        if fits and isinstance(self.family.action_space, Discrete):
            fits = action.dtype.kind in "iu" and bool(np.all((action >= 0) & (action < self.family.action_dim)))
        if not fits:
            raise ValueError(f"action {action!r} does not fit the action space {space}")
        return action[None] if self.batch_size == 1 else action

    def _count(self, reward_B: np.ndarray, ending_B: np.ndarray) -> None:
        self._return_B += reward_B
        self._length_B += ~self._ended_B
        self._returns += self._return_B[ending_B].tolist()
        self._lengths += self._length_B[ending_B].tolist()
        self._return_B[ending_B], self._length_B[ending_B] = 0.0, 0
        self._ended_B = ending_B

    def episode_statistics(self) -> dict[str, list]:
        """Undiscounted ``returns`` and ``lengths`` of the episodes finished so far, in the order of their ends."""
        return {"returns": list(self._returns), "lengths": list(self._lengths)}

    def close(self) -> None:
        """Frees what the environment holds; may be called twice."""
        self._vector.close()

    def __enter__(self) -> Environment:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
