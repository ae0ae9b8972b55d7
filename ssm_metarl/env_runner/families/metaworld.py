"""Meta-World's environments (package ``metaworld``, Yu et al. 2019): one robot arm, 50 classes of tasks.

A task is numbers: ``env_class``, the position of its class among the sorted names, and ``rand_vec``, Meta-World's own
description of a goal (and of where objects lie) within the class. The goal is not observed. Nothing else is random: an
episode is a function of its task and its actions.

Compiling a class takes about 0.1 s and its model 21 to 40 MB, nearly all of it meshes. So a class is compiled when an
episode needs it, the rows share its model, and only some models are kept.

Shape legend: N rows, O observation, A action.
"""

from __future__ import annotations

import functools
import itertools
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode

from ssm_metarl.env_runner.families.listed import ListVectorEnv
from ssm_metarl.env_runner.families.native import SingleEnv
from ssm_metarl.env_runner.vector import TaskError, did_you_mean
from ssm_metarl.types import Task

BENCHMARKS = ("ML1", "ML10", "ML25", "ML45")
HORIZON = 500
"""Steps of an episode, in all of Meta-World."""
GOAL_SIZE = 6
"""Numbers of a ``rand_vec``; those of a class that has fewer come first, zeros follow."""
KEPT_MODELS = 10
FIRST_ENV = "reach-v3"
_TASK = {"env_class", "rand_vec"}
_REWARDS = ("v1", "v2")
# All that an episode changes of a model; the tests compare with environments that have a model of their own.
_FIELDS = ("body_pos", "site_pos")
_MOST_DRAWS = 10


@functools.cache
def environment_classes() -> dict[str, type]:
    """Name -> environment class, sorted by name. Raises TaskError without the package."""
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ImportError as error:
        raise TaskError(
            f"env.id: Meta-World cannot be used ({error}); to install it: pip install 'ssm-metarl[metaworld]'"
        ) from error
    return {name: ALL_V3_ENVIRONMENTS[name] for name in sorted(ALL_V3_ENVIRONMENTS)}


def training_classes(benchmark: str, env_name: str | None) -> list[str]:
    """The names of a benchmark's training classes, in its own order.

    Raises TaskError: an unknown benchmark or ``env_name``, or an ``env_name`` for another benchmark than ML1.
    """
    if benchmark not in BENCHMARKS:
        raise TaskError(f"env.kwargs: benchmark = {benchmark!r} is none of Meta-World's: {', '.join(BENCHMARKS)}")
    known = environment_classes()
    if benchmark != "ML1":
        if env_name is not None:
            raise TaskError(f"env.kwargs: env_name chooses the class of ML1; {benchmark} has its own, leave it out")
        from metaworld import env_dict

        return list(getattr(env_dict, f"{benchmark}_V3")["train"])
    env_name = FIRST_ENV if env_name is None else env_name
    if env_name not in known:
        raise TaskError(f"env.kwargs: Meta-World has no env_name {env_name!r}{did_you_mean(str(env_name), known)}")
    return [env_name]


def as_numbers(env_name: str, rand_vec: Sequence[float]) -> Task:
    """The task of a class and one of its goals."""
    goal = (*map(float, rand_vec), *[0.0] * GOAL_SIZE)[:GOAL_SIZE]
    return {"env_class": float(list(environment_classes()).index(env_name)), "rand_vec": goal}


def class_of(task: Task) -> str:
    """The name of a task's class. Raises TaskError."""
    names, index = list(environment_classes()), task["env_class"]
    if index not in range(len(names)):
        raise TaskError(f"Meta-World: env_class = {index!r:.40} must be a whole number from 0 to {len(names) - 1}")
    return names[int(index)]


class Compiled:
    """A class with its model, which all rows share. What episodes change of the model belongs to the rows."""

    def __init__(self, env_name: str, reward_version: str) -> None:
        self.env_name, self._reward_version = env_name, reward_version
        self._class = environment_classes()[env_name]
        self.model = self._class().model
        self._arrays = [getattr(self.model, name) for name in _FIELDS]
        self._fresh = self.fields()

    def fields(self) -> list[np.ndarray]:
        """A copy of what episodes change of the model."""
        return [array.copy() for array in self._arrays]

    def load(self, fields: Sequence[np.ndarray]) -> None:
        """Puts such a copy back."""
        for array, values in zip(self._arrays, fields, strict=True):
            array[...] = values

    def make_data(self) -> Any:
        """Room for the state of one row."""
        import mujoco

        return mujoco.MjData(self.model)

    def instance(self, data: Any) -> Any:
        """A new environment (2 ms) over this model and over ``data``, as untouched as the first of its process."""
        import mujoco

        self.load(self._fresh)
        mujoco.mj_resetData(self.model, data)
        env = self._class.__new__(self._class)
        env._initialize_simulation = lambda: (self.model, data)
        env.__init__(reward_function_version=self._reward_version)
        # Its own clock would forbid any horizon longer than 500.
        env.max_path_length = sys.maxsize
        return env

    def begin(self, data: Any, rand_vec: Sequence[float]) -> tuple[Any, np.ndarray]:
        """A new environment under a task, and its first observation [O]. Raises TaskError: not a goal of this class."""
        from metaworld.types import Task as PackagedTask

        env = self.instance(data)
        goal = np.array(rand_vec[: env._random_reset_space.low.size])
        packed = {"rand_vec": goal, "env_cls": self._class, "partially_observable": True}
        env.set_task(PackagedTask(self.env_name, pickle.dumps(packed)))
        env._get_state_rand_vec = self._patient(env._get_state_rand_vec)
        try:
            return env, env.reset()[0]
        finally:
            # It refers to the environment: left there, it would keep model and all until the garbage collector comes.
            del env._get_state_rand_vec

    def draw(self, data: Any, rng: np.random.Generator) -> np.ndarray:
        """A goal of this class, drawn as the benchmarks draw theirs."""
        env = self.instance(data)
        env._freeze_rand_vec, env.seeded_rand_vec, env._set_task_called, env.np_random = False, True, True, rng
        env.reset()
        return env._last_rand_vec

    def _patient(self, frozen: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
        """Classes draw until goal and object are far enough apart: a frozen goal that is not would hang the process."""
        calls = itertools.count()

        def draw() -> np.ndarray:
            if next(calls) >= _MOST_DRAWS:
                raise TaskError(
                    f"Meta-World: rand_vec = {frozen().tolist()} is no goal of {self.env_name}: where the goal and the "
                    "object lie are too near each other; take one of the family's own tasks"
                )
            return frozen()

        return draw


class Models:
    """Compiled classes: all those that are in use, and the last ``kept`` ones that were."""

    def __init__(self, kept: int, reward_version: str) -> None:
        if kept < 1:
            raise TaskError(f"env.kwargs: kept_models = {kept} must be at least 1")
        if reward_version not in _REWARDS:
            raise TaskError(f"env.kwargs: reward_version = {reward_version!r} must be one of {', '.join(_REWARDS)}")
        self._kept, self._reward_version = kept, reward_version
        self.alive: WeakValueDictionary[str, Compiled] = WeakValueDictionary()
        self._recent: OrderedDict[str, Compiled] = OrderedDict()

    def get(self, env_name: str) -> Compiled:
        """Compiles it if need be."""
        compiled = self.alive.get(env_name) or Compiled(env_name, self._reward_version)
        self.alive[env_name] = self._recent[env_name] = compiled
        self._recent.move_to_end(env_name)
        while len(self._recent) > self._kept:
            self._recent.popitem(last=False)
        return compiled


class _Row(gymnasium.Env):
    """One row: each episode is played by a new instance of its task's class, so that none has a past."""

    def __init__(self, models: Models) -> None:
        from metaworld.sawyer_xyz_env import SawyerXYZEnv

        hand, objects, goal = SawyerXYZEnv._HAND_SPACE, np.full(14, np.inf), np.full(3, np.inf)
        # Meta-World bounds the hidden goal by 0 and 0; gymnasium warns of equal bounds whenever it makes one.
        low_O = np.hstack([np.hstack([hand.low, -1.0, -objects])] * 2 + [-goal])
        high_O = np.hstack([np.hstack([hand.high, 1.0, objects])] * 2 + [goal])
        self.observation_space = Box(low_O, high_O, dtype=np.float64)
        self.action_space = Box(-1.0, 1.0, (4,), np.float32)
        self._models, self._compiled, self._data, self._env = models, None, None, None
        self.env_name, self._rand_vec = "", ()

    def set_goal(self, env_name: str, rand_vec: Sequence[float] | None) -> None:
        """The task from the next ``reset`` on; ``rand_vec`` None: some goal of the class, always the same."""
        self.env_name, self._rand_vec = env_name, rand_vec

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if options:
            name = min(options)
            raise TaskError(f"Meta-World has no reset option {name!r}{did_you_mean(name, ('task', 'reset_mask'))}")
        compiled = self._models.get(self.env_name)
        if compiled is not self._compiled:
            self._compiled, self._data = compiled, compiled.make_data()
        goal = compiled.draw(self._data, np.random.default_rng(0)) if self._rand_vec is None else self._rand_vec
        self._env, observation_O = compiled.begin(self._data, goal)
        self._fields = compiled.fields()
        return observation_O, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._compiled.load(self._fields)
        observation_O, reward, _, _, info = self._env.step(action)
        return observation_O, float(reward), False, False, {"success": bool(info["success"])}


class MetaWorldVectorEnv(ListVectorEnv):
    """Rows that play tasks of any class; ``info["success"]`` says whether a row's goal is reached at this step.

    Observes 39 numbers: hand, gripper and up to two objects, now and one step before, and zeros where the goal would
    be. Actions [4] in -1 .. 1 move the hand and close the gripper. The nominal task is a goal of the benchmark's first
    training class.

    Args:
        num_envs: N.
        max_episode_steps: the horizon; None: 500.
        autoreset_mode: gymnasium's.
        benchmark: ML1, ML10, ML25 or ML45.
        env_name: the class of ML1; None: reach-v3.
        kept_models: compiled classes kept beside those in use, 21 to 40 MB each.
        reward_version: Meta-World's reward functions, ``v2`` (0 .. 10 per step) or those of the first paper, ``v1``.

    Raises:
        TaskError: the package is missing, or an argument is unknown.
    """

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        benchmark: str = "ML1",
        env_name: str | None = None,
        kept_models: int = KEPT_MODELS,
        reward_version: str = "v2",
    ) -> None:
        self._nominal = training_classes(benchmark, env_name)[0]
        self.models = Models(kept_models, reward_version)
        rows = [_Row(self.models) for _ in range(num_envs)]
        for row in rows:
            row.set_goal(self._nominal, None)
        horizon = HORIZON if max_episode_steps is None else max_episode_steps
        super().__init__(rows, f"Meta-World {benchmark}", horizon, autoreset_mode)

    def _apply_task(self, row: int, task: Mapping[str, Any]) -> None:
        unknown = task.keys() - _TASK
        if unknown:
            name = min(unknown)
            raise TaskError(f"{self.name} has no parameter {name!r}{did_you_mean(name, _TASK)}")
        goal = task.get("rand_vec")
        if goal is not None and (np.shape(goal) != (GOAL_SIZE,) or not np.isfinite(goal).all()):
            raise TaskError(f"{self.name}: rand_vec = {goal!r:.80} must be {GOAL_SIZE} finite numbers")
        self.envs[row].set_goal(class_of(task) if "env_class" in task else self._nominal, goal)

    def share_rng(self, rng: np.random.Generator) -> None:
        """Nothing is random; this generator is only the one that gymnasium asks for."""
        self.np_random = rng


class MetaWorldEnv(SingleEnv):
    """One row: what ``gymnasium.make("ssm_metarl/ML10-v0")`` returns inside its ``TimeLimit``."""

    vector_class: ClassVar[type[MetaWorldVectorEnv]] = MetaWorldVectorEnv
