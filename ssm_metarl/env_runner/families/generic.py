"""Any gymnasium environment as a family: what differs between tasks are numbers inside the environment (``env.vary``).

Shape legend: N rows, O observation (flat), A action.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode

from ssm_metarl.env_runner.vector import Advance, MetaVectorEnv, TaskError, did_you_mean

Value = float | tuple[float, ...]

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*|\[\d+\])*")
_KEY = re.compile(r"([A-Za-z_]\w*)|\[(\d+)\]")
_CARTPOLE_DERIVED = {"total_mass": "masscart or masspole", "polemass_length": "masspole or length"}


@dataclass(frozen=True)
class Attribute:
    """A number or an array of numbers in an environment: ``length``, ``model.body_mass``, ``model.opt.gravity[2]``.

    ``nominal`` is the value that a fresh environment has; an array is a flat tuple in C order.
    """

    path: str
    keys: tuple[str | int, ...]
    nominal: Value
    number_type: type

    @classmethod
    def find(cls, path: str, env: gymnasium.Env) -> Attribute:
        """Looks the path up in a fresh environment and proves that it can be set. Raises TaskError."""
        if not _PATH.fullmatch(path):
            raise TaskError(f"env.vary: {path!r} is no path to an attribute, such as length or model.opt.gravity[2]")
        if isinstance(env.unwrapped, CartPoleEnv) and path in _CARTPOLE_DERIVED:
            raise TaskError(f"env.vary: {path} follows from other attributes; vary {_CARTPOLE_DERIVED[path]}")
        keys = tuple(name or int(index) for name, index in _KEY.findall(path))
        value = _follow(env.unwrapped, keys, path)
        number_type = value.dtype.type if isinstance(value, np.ndarray) else type(value)
        if number_type is bool or not issubclass(number_type, int | float | np.integer | np.floating):
            kind = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"a {number_type.__name__}"
            raise TaskError(f"env.vary: {path} is {kind}; only numbers and arrays of numbers can vary")
        nominal = tuple(value.ravel().tolist()) if isinstance(value, np.ndarray) else float(value)
        attribute = cls(path, keys, nominal, number_type)
        try:
            attribute.own(env)
            attribute.set(env, nominal)
        except (AttributeError, TypeError, ValueError) as error:
            raise TaskError(f"env.vary: {path} cannot be set: {error}") from error
        return attribute

    def set(self, env: gymnasium.Env, value: Value) -> None:
        """Sets it. A number keeps its type, but an ``int`` becomes a ``float`` where the value is not whole.

        Raises TaskError: a wrong number of elements, a value that is not finite, a fraction for an integer array.
        """
        numbers = np.asarray(value, np.float64)
        if numbers.shape != np.shape(self.nominal) or not np.isfinite(numbers).all():
            wanted = f"{len(self.nominal)} finite numbers" if isinstance(self.nominal, tuple) else "a finite number"
            raise TaskError(f"{self.path} = {value} must be {wanted}")
        container = self.container(env)
        holds_whole_numbers = isinstance(container, np.ndarray) and container.dtype.kind != "f"
        if holds_whole_numbers and (numbers != np.round(numbers)).any():
            raise TaskError(f"{self.path} holds whole numbers, but a task has {value}; use a choice of whole numbers")
        if isinstance(self.nominal, tuple):
            # In place, because physics engines hand out views of memory that they own.
            container[...] = numbers.reshape(container.shape)
        elif isinstance(self.keys[-1], int):
            container[self.keys[-1]] = self._number(float(numbers))
        else:
            setattr(container, self.keys[-1], self._number(float(numbers)))

    def _number(self, value: float) -> Any:
        whole_type = issubclass(self.number_type, int | np.integer)
        return value if whole_type and not value.is_integer() else self.number_type(value)

    def own(self, env: gymnasium.Env) -> None:
        """Gives the environment its own copy of a list or array that belongs to its class."""
        for depth, key in enumerate(self.keys):
            owner = _follow(env.unwrapped, self.keys[:depth], self.path)
            if not isinstance(key, str) or key in getattr(owner, "__dict__", {}):
                continue
            # The static look-up does not mistake a property that returns an array for an attribute.
            shared = inspect.getattr_static(type(owner), key, None)
            if isinstance(shared, list | np.ndarray):
                setattr(owner, key, shared.copy())

    def container(self, env: gymnasium.Env) -> Any:
        """The object that ``set`` changes."""
        return _follow(env.unwrapped, self.keys if isinstance(self.nominal, tuple) else self.keys[:-1], self.path)


def _follow(root: Any, keys: Sequence[str | int], path: str) -> Any:
    value = root
    for key in keys:
        if isinstance(key, str) and not hasattr(value, key):
            hint = did_you_mean(key, [name for name in dir(value) if not name.startswith("_")])
            raise TaskError(f"env.vary: {path}: a {type(value).__name__} has no attribute {key!r}{hint}")
        try:
            value = getattr(value, key) if isinstance(key, str) else value[key]
        except (IndexError, KeyError, TypeError) as error:
            raise TaskError(f"env.vary: {path}: [{key}] of a {type(value).__name__}: {error}") from error
    return value


def _refresh(env: gymnasium.Env) -> None:
    """Recomputes what an environment derives from its attributes only once, in its constructor."""
    if isinstance(env, CartPoleEnv):
        env.total_mass = env.masspole + env.masscart
        env.polemass_length = env.masspole * env.length


def make_env(env_id: str, max_episode_steps: int | None = None) -> gymnasium.Env:
    """One environment with a flat 1-D Box of observations, and gymnasium's own wrappers.

    ``max_episode_steps`` replaces the id's own time limit. Raises TaskError: a missing package, a space that no policy
    here can serve.
    """
    try:
        env = gymnasium.make(env_id, max_episode_steps=max_episode_steps, disable_env_checker=True)
    except (gymnasium.error.Error, ImportError) as error:
        raise TaskError(f"env.id: {env_id} cannot be made: {error}") from error
    space = env.action_space
    flat_box = isinstance(space, Box) and len(space.shape) == 1 and space.dtype.kind == "f"
    if not flat_box and not isinstance(space, Discrete):
        raise TaskError(
            f"env.id: {env_id} has the action space {space}; only Discrete and 1-D Box of floats are served: "
            "wrap the environment so that it has one of these, and register the wrapped one with gymnasium"
        )
    space = env.observation_space
    if not (isinstance(space, Box) and len(space.shape) == 1):
        if not space.is_np_flattenable:
            raise TaskError(
                f"env.id: {env_id} has the observation space {space}, which has no fixed number of values: wrap the "
                "environment so that it observes a Box, and register the wrapped one with gymnasium"
            )
        env = gymnasium.wrappers.FlattenObservation(env)
    return env


class GenericVectorEnv(MetaVectorEnv):
    """A list of gymnasium environments, stepped in a loop.

    Actions: Discrete ones count from 0 whatever the environment's ``start``; those of a Box are clipped to its bounds.

    Args:
        env_id: any gymnasium id.
        num_envs: N.
        horizon: steps after which an episode is truncated; an earlier time limit of the environment is foreign.
        attributes: what tasks set.
        max_episode_steps: replaces the id's own time limit.
        autoreset_mode: gymnasium's.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        horizon: int,
        attributes: Sequence[Attribute] = (),
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        self.env_id = env_id
        self.envs = [make_env(env_id, max_episode_steps) for _ in range(num_envs)]
        self._attributes = {attribute.path: attribute for attribute in attributes}
        self._separate_attributes()
        self._env_action_space = self.envs[0].action_space
        discrete = isinstance(self._env_action_space, Discrete)
        action_space = Discrete(int(self._env_action_space.n)) if discrete else self._env_action_space
        super().__init__(num_envs, horizon, _float32(self.envs[0].observation_space), action_space, autoreset_mode)
        self._observation_NO = np.zeros(self.observation_space.shape, np.float32)

    def _separate_attributes(self) -> None:
        for attribute in self._attributes.values():
            for env in self.envs:
                attribute.own(env)
            containers = [attribute.container(env) for env in self.envs]
            if len({id(container) for container in containers}) < len(containers):
                raise TaskError(
                    f"env.vary: {attribute.path} of {self.env_id} is one object that all environments share, "
                    "so tasks would change each other; let the environment's constructor make its own"
                )

    def _apply_task(self, row: int, task: Mapping[str, Any]) -> None:
        unknown = task.keys() - self._attributes.keys()
        if unknown:
            name = min(unknown)
            raise TaskError(f"{self.env_id} does not vary {name!r}{did_you_mean(name, self._attributes)}")
        env = self.envs[row]
        for path, attribute in self._attributes.items():
            attribute.set(env, task.get(path, attribute.nominal))
        _refresh(env.unwrapped)

    def _restart(self, rows_N: np.ndarray, seed: int | None, options: dict[str, Any], info: dict[str, Any]) -> None:
        for row in np.flatnonzero(rows_N):
            row_seed = None if seed is None else seed + int(row)
            observation, row_info = self.envs[row].reset(seed=row_seed, options=options or None)
            self._set_observation(row, observation)
            self._add_info(info, row_info, row)

    def _advance(self, actions: np.ndarray, ended_N: np.ndarray | None) -> Advance:
        reward_N, terminated_N = np.zeros(self.num_envs), np.zeros(self.num_envs, bool)
        truncated_N, info = np.zeros(self.num_envs, bool), {}
        for row, (env, action) in enumerate(zip(self.envs, self._env_actions(actions), strict=True)):
            if ended_N is not None and ended_N[row]:
                continue
            observation, reward_N[row], terminated_N[row], truncated_N[row], row_info = env.step(action)
            self._set_observation(row, observation)
            if row_info:
                self._add_info(info, row_info, row)
        return reward_N, terminated_N, truncated_N, info

    def _set_observation(self, row: int, observation: Any) -> None:
        # Assigning alone would broadcast an observation of one number over the row.
        if np.shape(observation) != self.single_observation_space.shape:
            shapes = f"{np.shape(observation)}, its space says {self.single_observation_space.shape}"
            raise TaskError(f"{self.env_id} returned an observation of shape {shapes}; task {self.tasks[row]}")
        self._observation_NO[row] = observation

    def _env_actions(self, actions: np.ndarray) -> Sequence[Any]:
        space = self._env_action_space
        if isinstance(space, Discrete):
            return (actions + space.start).tolist()
        return np.clip(actions, space.low, space.high).astype(space.dtype)

    def _observe(self) -> np.ndarray:
        return self._observation_NO.copy()

    def __repr__(self) -> str:
        return f"GenericVectorEnv({self.env_id}, num_envs={self.num_envs})"

    def close_extras(self, **kwargs: Any) -> None:
        for env in self.envs:
            env.close()


def _float32(space: Box) -> Box:
    # Bounds such as the largest float64 become infinite, which is what they mean.
    with np.errstate(over="ignore"):
        return Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)
