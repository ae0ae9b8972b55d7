"""Any gymnasium environment as a family: what differs between tasks are numbers inside the environment (``env.vary``).

Shape legend: N rows, O observation (flat), A action.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.vector import AutoresetMode

from ssm_metarl.env_runner.distributions import Value
from ssm_metarl.env_runner.families.listed import ListVectorEnv, make_env
from ssm_metarl.env_runner.vector import TaskError, did_you_mean

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


def _refresh(env: gymnasium.Env, paths: Collection[str]) -> None:
    """Recomputes what an environment, or the simulator under it, derives from these attributes only once, at its start.

    MuJoCo's derived constants (``body_subtreemass``, ``dof_invweight0``, ...) belong to the masses that a model was
    compiled with; contacts and joint limits are as stiff as they say. The families with random parameters of the
    literature (Hopper and Walker2D) leave them as they were.
    """
    if isinstance(env, CartPoleEnv):
        env.total_mass = env.masspole + env.masscart
        env.polemass_length = env.masspole * env.length
    # Whoever has a model of MuJoCo has imported it.
    mujoco = sys.modules.get("mujoco")
    model, data = getattr(env, "model", None), getattr(env, "data", None)
    simulated = mujoco and isinstance(model, mujoco.MjModel) and isinstance(data, mujoco.MjData)
    if simulated and any(path.startswith("model.") for path in paths):
        # It moves the body to the reference posture; reset() would put it back, but an episode under way goes on.
        qpos_Q = data.qpos.copy()
        mujoco.mj_setConst(model, data)
        data.qpos[:] = qpos_Q
        mujoco.mj_fwdPosition(model, data)


class GenericVectorEnv(ListVectorEnv):
    """Environments of any gymnasium id, whose tasks are numbers inside them.

    Args:
        env_id: any gymnasium id.
        num_envs: N.
        horizon: steps after which an episode is truncated; an earlier time limit of the environment is foreign.
        attributes: what tasks set.
        max_episode_steps: replaces the id's own time limit.
        autoreset_mode: gymnasium's.
        kwargs: of the environment's constructor.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        horizon: int,
        attributes: Sequence[Attribute] = (),
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        envs = [make_env(env_id, max_episode_steps, kwargs) for _ in range(num_envs)]
        self._attributes = {attribute.path: attribute for attribute in attributes}
        self._separate_attributes(env_id, envs)
        super().__init__(envs, env_id, horizon, autoreset_mode)

    def _separate_attributes(self, env_id: str, envs: Sequence[gymnasium.Env]) -> None:
        for attribute in self._attributes.values():
            for env in envs:
                attribute.own(env)
            containers = [attribute.container(env) for env in envs]
            if len({id(container) for container in containers}) < len(containers):
                raise TaskError(
                    f"env.vary: {attribute.path} of {env_id} is one object that all environments share, "
                    "so tasks would change each other; let the environment's constructor make its own"
                )

    def _apply_task(self, row: int, task: Mapping[str, Any]) -> None:
        unknown = task.keys() - self._attributes.keys()
        if unknown:
            name = min(unknown)
            raise TaskError(f"{self.name} does not vary {name!r}{did_you_mean(name, self._attributes)}")
        env = self.envs[row]
        for path, attribute in self._attributes.items():
            attribute.set(env, task.get(path, attribute.nominal))
        _refresh(env.unwrapped, self._attributes)
