"""Single gymnasium environments, stepped in a loop: what families without array formulas are made of.

Shape legend: N rows, O observation (flat), A action.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, flatdim
from gymnasium.vector import AutoresetMode

from ssm_metarl.env_runner.vector import Advance, MetaVectorEnv, TaskError

MAX_OBSERVATION = 4096
"""Numbers in one observation above which it is an image or the like, which no core here is made for."""
_EXTRAS = {"mujoco": "mujoco", "metaworld": "metaworld"}


def make_env(
    env_id: str, max_episode_steps: int | None = None, kwargs: Mapping[str, Any] | None = None
) -> gymnasium.Env:
    """One environment of a gymnasium id, with gymnasium's own wrappers, as `served` leaves it.

    Args:
        env_id: registered with gymnasium.
        max_episode_steps: replaces the id's own time limit.
        kwargs: of its constructor.

    Raises:
        TaskError: a missing package, a wrong argument, a space that no policy here can serve.
    """
    try:
        env = gymnasium.make(env_id, max_episode_steps=max_episode_steps, disable_env_checker=True, **(kwargs or {}))
    except (gymnasium.error.Error, ImportError) as error:
        raise TaskError(f"env.id: {env_id} cannot be made: {error}{_cure(error)}") from error
    except TypeError as error:
        if not kwargs:
            raise
        raise TaskError(f"env.kwargs: {env_id} does not take {dict(kwargs)}: {error}") from error
    return served(env, env_id)


def _cure(error: BaseException) -> str:
    """The pip line for a missing package that one of our extras brings."""
    for package, extra in _EXTRAS.items():
        if package in str(error).lower() and importlib.util.find_spec(package) is None:
            return f"; to install it: pip install 'ssm-metarl[{extra}]'"
    return ""


def served(env: gymnasium.Env, name: str) -> gymnasium.Env:
    """The environment with a flat 1-D Box of observations. Raises TaskError, with the wrapper that helps."""
    space = env.action_space
    flat_box = isinstance(space, Box) and len(space.shape) == 1 and space.dtype.kind == "f"
    if not flat_box and not isinstance(space, Discrete):
        raise TaskError(
            f"env.id: {name} has the action space {space}; only Discrete and 1-D Box of floats are served: "
            "wrap the environment (gymnasium.wrappers.TransformAction) so that it has one of these, and register the "
            "wrapped one with gymnasium"
        )
    space = env.observation_space
    if not space.is_np_flattenable:
        which = "gymnasium.wrappers.FilterObservation keeps some of its keys" if isinstance(space, Dict) else ""
        raise TaskError(
            f"env.id: {name} has the observation space {space}, which has no fixed number of values: wrap the "
            f"environment so that it observes a Box ({which or 'gymnasium.wrappers.TransformObservation'}), and "
            "register the wrapped one with gymnasium"
        )
    if flatdim(space) > MAX_OBSERVATION:
        raise TaskError(
            f"env.id: {name} observes {flatdim(space)} numbers ({space}); policies here read vectors of at most "
            f"{MAX_OBSERVATION}: make images smaller with gymnasium.wrappers.GrayscaleObservation and "
            "ResizeObservation, or encode them, and register the wrapped environment with gymnasium"
        )
    is_flat = isinstance(space, Box) and len(space.shape) == 1
    return env if is_flat else gymnasium.wrappers.FlattenObservation(env)


class ListVectorEnv(MetaVectorEnv):
    """A list of gymnasium environments, stepped in a loop; a subclass knows how to give one its task.

    Actions: Discrete ones count from 0 whatever the environment's ``start``; those of a Box are clipped to its bounds.

    Args:
        envs: one per row, as `served` returns them.
        name: what messages call them.
        horizon: steps after which an episode is truncated; an earlier time limit of an environment is foreign.
        autoreset_mode: gymnasium's.
    """

    def __init__(
        self, envs: Sequence[gymnasium.Env], name: str, horizon: int, autoreset_mode: AutoresetMode | str
    ) -> None:
        self.envs, self.name = list(envs), name
        space = self.envs[0].action_space
        action_space = Discrete(int(space.n)) if isinstance(space, Discrete) else space
        super().__init__(
            len(self.envs), horizon, _float32(self.envs[0].observation_space), action_space, autoreset_mode
        )
        self.env_action_space = space
        self._observation_NO = np.zeros(self.observation_space.shape, np.float32)
        self._row_shape, self._every_index = self._observation_NO.shape[1:], np.arange(self.num_envs)
        # Bound once: TimeLimit and OrderEnforcing cost attribute look-ups at every call.
        self._steps = [env.step for env in self.envs]

    def _restart(self, rows_N: np.ndarray, seed: int | None, options: dict[str, Any], info: dict[str, Any]) -> None:
        for row in np.flatnonzero(rows_N):
            row_seed = None if seed is None else seed + int(row)
            observation, row_info = self.envs[row].reset(seed=row_seed, options=options or None)
            self._set_observation(row, observation)
            self._add_info(info, self._wanted(row_info), row)

    def _advance(self, actions: np.ndarray, ended_N: np.ndarray | None) -> Advance:
        env_actions = self._env_actions(actions)
        if ended_N is None:
            rows = self._every_index
            answers = [step(action) for step, action in zip(self._steps, env_actions, strict=True)]
        else:
            rows = np.flatnonzero(~ended_N)
            answers = [self._steps[row](env_actions[row]) for row in rows]
        if not answers:
            return np.zeros(self.num_envs), np.zeros(self.num_envs, bool), self._no_row, {}
        observations, rewards, terminated, truncated, row_infos = zip(*answers, strict=True)
        self._set_observations(rows, observations)
        info = self._batched(rows, row_infos) if any(row_infos) else {}
        truncated_N = self._placed(rows, truncated, bool) if any(truncated) else self._no_row
        return self._placed(rows, rewards, np.float64), self._placed(rows, terminated, bool), truncated_N, info

    def _placed(self, rows: np.ndarray, values: Sequence[Any], dtype: type) -> np.ndarray:
        """The values at their rows, 0 elsewhere."""
        if len(values) == self.num_envs:
            return np.fromiter(values, dtype, self.num_envs)
        placed_N = np.zeros(self.num_envs, dtype)
        placed_N[rows] = values
        return placed_N

    def _batched(self, rows: np.ndarray, row_infos: Sequence[dict[str, Any]]) -> dict[str, Any]:
        info: dict[str, Any] = {}
        wanted = self.wanted_infos
        if wanted is not None and not any(name in row_info for name in wanted for row_info in row_infos):
            return info
        for row, row_info in zip(rows.tolist(), row_infos, strict=True):
            self._add_info(info, self._wanted(row_info), row)
        return info

    def _wanted(self, row_info: dict[str, Any]) -> dict[str, Any]:
        if self.wanted_infos is None:
            return row_info
        return {name: row_info[name] for name in self.wanted_infos if name in row_info}

    def _set_observations(self, rows: np.ndarray, observations: Sequence[Any]) -> None:
        shapes = [getattr(observation, "shape", None) for observation in observations]
        if shapes.count(self._row_shape) == self.num_envs:
            np.concatenate(observations, out=self._observation_NO.reshape(-1))
        else:
            for row, observation in zip(rows, observations, strict=True):
                self._set_observation(row, observation)

    def _set_observation(self, row: int, observation: Any) -> None:
        shape = observation.shape if isinstance(observation, np.ndarray) else _shape(observation)
        # Assigning alone would broadcast an observation of one number over the row.
        if shape != self._row_shape:
            found = f"{'ragged' if shape is None else shape}, its space says {self._row_shape}"
            raise TaskError(f"{self.name} returned an observation of shape {found}; task {self.tasks[row]}")
        self._observation_NO[row] = observation

    def _env_actions(self, actions: np.ndarray) -> Sequence[Any]:
        space = self.env_action_space
        if isinstance(space, Discrete):
            # Numpy's integers, as a space samples them: Discrete checks them more quickly than Python's.
            return list(actions + space.start)
        # Not np.minimum and np.maximum: their AVX-512 slows the clock for what the environments do next.
        return np.clip(actions, space.low, space.high).astype(space.dtype, copy=False)

    def _observe(self) -> np.ndarray:
        return self._observation_NO.copy()

    def __repr__(self) -> str:
        return f"{type(self).__name__.lstrip('_')}({self.name}, num_envs={self.num_envs})"

    def close_extras(self, **kwargs: Any) -> None:
        for env in self.envs:
            env.close()


def _shape(observation: Any) -> tuple[int, ...] | None:
    """None: a list of lists of different lengths."""
    try:
        return np.shape(observation)
    except ValueError:
        return None


def _float32(space: Box) -> Box:
    # Bounds such as the largest float64 become infinite, which is what they mean.
    with np.errstate(over="ignore"):
        return Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)
