"""`TaskFamily`: a distribution over tasks, its held-out tasks, and the environments that play them.

Every family, native or generic, is a mapping from parameter to `Distribution`. Held-out tasks are the same for every
run. ``make_family`` builds the family of a configuration.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from ssm_metarl.config import EnvConfig
from ssm_metarl.env_runner.families import NATIVE
from ssm_metarl.env_runner.families.generic import Attribute, GenericVectorEnv, Value, make_env
from ssm_metarl.env_runner.vector import MetaVectorEnv, TaskError, did_you_mean
from ssm_metarl.types import Stream, Task, make_rng

SPLITS = ("validation", "test")
MIN_TASKS_TO_SPLIT = 10
MAX_COMBINATIONS = 1_000_000
_PARTITION = len(SPLITS)


@dataclass(frozen=True)
class Distribution:
    """One line of ``env.vary``.

    ``uniform`` [low, high], ``loguniform`` [low, high], ``normal`` [mean, std], ``choice`` [numbers]; or a factor on
    the nominal value: ``scale`` [low, high], ``scale_pow`` [base, limit] (base ** U(-limit, limit)).

    Example: ``Distribution.parse({"uniform": (0.25, 1.0)})``
    """

    kind: str
    arguments: tuple[float, ...]

    @classmethod
    def parse(cls, mapping: Mapping[str, Sequence[float]]) -> Distribution:
        """From the form that the configuration has checked: one kind and its arguments."""
        [(kind, arguments)] = mapping.items()
        return cls(kind, tuple(arguments))

    def sample(self, rng: np.random.Generator, nominal: Value) -> Value:
        """One value; for an array one per element, drawn independently."""
        size = len(nominal) if isinstance(nominal, tuple) else None
        drawn = self._draw(rng, size)
        if self.kind in ("scale", "scale_pow"):
            drawn = drawn * np.asarray(nominal)
        return tuple(np.asarray(drawn).tolist()) if size is not None else float(drawn)

    def _draw(self, rng: np.random.Generator, size: int | None) -> np.ndarray | float:
        first, last = self.arguments[0], self.arguments[-1]
        match self.kind:
            case "uniform" | "scale":
                return rng.uniform(first, last, size)
            case "loguniform":
                # The exponential of a logarithm may miss the bounds by a rounding error.
                return np.clip(np.exp(rng.uniform(math.log(first), math.log(last), size)), first, last)
            case "normal":
                return rng.normal(first, last, size)
            case "scale_pow":
                return first ** rng.uniform(-last, last, size)
            case "choice":
                return np.asarray(self.arguments)[rng.integers(len(self.arguments), size=size)]
        raise TaskError(f"unknown distribution {self.kind!r}")

    def support(self, nominal: Value) -> tuple[Value, ...] | None:
        """All values that it can take, None if they are a continuum."""
        if self.kind == "choice":
            return self.arguments
        first, last = self.arguments
        is_one_value = {"normal": last == 0, "scale_pow": first == 1 or last == 0}.get(self.kind, first == last)
        return (self.sample(np.random.default_rng(0), nominal),) if is_one_value else None

    def check(self, name: str, nominal: Value) -> None:
        """Raises TaskError where it makes no sense for this parameter."""
        if self.kind == "choice" and isinstance(nominal, tuple):
            raise TaskError(
                f"env.vary: {name} is an array; choice is for one number: name an element, such as {name}[0]"
            )
        if self.kind == "choice" and len(set(self.arguments)) < len(self.arguments):
            raise TaskError(f"env.vary: {name}: choice {list(self.arguments)} names a value twice; name each once")
        if self.kind in ("scale", "scale_pow") and not np.any(nominal):
            raise TaskError(f"env.vary: {name} is 0, and so is any multiple of it: use uniform, normal or choice")


class TaskFamily:
    """Tasks that differ in the parameters of ``vary``, and how to play them.

    ``disjoint``: training, validation and test tasks have none in common. It is true where a parameter varies
    continuously, and where at least 10 combinations of choices can be split (60 % training, 20 % validation, 20 %
    test); a smaller family has the same tasks everywhere.

    Args:
        family_id: its name.
        horizon: steps after which an episode ends.
        nominal: parameter -> its value when nothing varies, for all parameters that may vary.
        vary: parameter -> distribution.
        make: ``make(num_envs, autoreset_mode)`` builds the vector environment.

    Raises:
        TaskError: ``vary`` names an unknown parameter, or a distribution makes no sense for it.
    """

    def __init__(
        self,
        family_id: str,
        horizon: int,
        nominal: Mapping[str, Value],
        vary: Mapping[str, Distribution],
        make: Callable[[int, AutoresetMode], MetaVectorEnv],
    ) -> None:
        for name, distribution in vary.items():
            if name not in nominal:
                raise TaskError(f"env.vary: {family_id} has no parameter {name!r}{did_you_mean(name, nominal)}")
            distribution.check(name, nominal[name])
        self.id, self.horizon, self._make = family_id, horizon, make
        # Sorted, so that the order of keys in a file changes no task.
        self.vary = {name: vary[name] for name in sorted(vary)}
        self._nominal = {name: nominal[name] for name in self.vary}
        probe = self.make_vector(1)
        self.observation_space, self.action_space = probe.single_observation_space, probe.single_action_space
        probe.close()
        self.discrete = isinstance(self.action_space, gymnasium.spaces.Discrete)
        self.observation_dim = int(self.observation_space.shape[0])
        self.action_dim = int(self.action_space.n) if self.discrete else int(self.action_space.shape[0])
        self._partition()

    def _partition(self) -> None:
        supports = [distribution.support(self._nominal[name]) for name, distribution in self.vary.items()]
        self._supports = None if None in supports else supports
        self.disjoint = self._supports is None
        if self._supports is None:
            return
        count = math.prod(len(support) for support in self._supports)
        if count > MAX_COMBINATIONS:
            raise TaskError(f"env.vary: the choices have {count} combinations; use uniform for one of them")
        order = make_rng(0, Stream.HELD_OUT_TASKS, _PARTITION).permutation(count)
        self.disjoint = count >= MIN_TASKS_TO_SPLIT
        held_out = count // 5 if self.disjoint else 0
        self._training = order[2 * held_out :]
        self._held_out = {"validation": order[:held_out], "test": order[held_out : 2 * held_out]}
        if not self.disjoint:
            self._held_out = dict.fromkeys(SPLITS, order)

    def sample(self, rng: np.random.Generator, n: int) -> list[Task]:
        """``n`` tasks of the training split, drawn with replacement."""
        if self._supports is None:
            return [self._draw(rng) for _ in range(n)]
        return [self._combination(index) for index in self._training[rng.integers(len(self._training), size=n)]]

    def tasks(self, split: str, n: int) -> list[Task]:
        """The first ``n`` tasks of the fixed ``validation`` or ``test`` set; a finite set begins again at its end."""
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}; sample() draws training tasks")
        if self._supports is None:
            rng = make_rng(0, Stream.HELD_OUT_TASKS, SPLITS.index(split))
            return [self._draw(rng) for _ in range(n)]
        held_out = self._held_out[split]
        return [self._combination(held_out[index % len(held_out)]) for index in range(n)]

    def _draw(self, rng: np.random.Generator) -> Task:
        return {name: distribution.sample(rng, self._nominal[name]) for name, distribution in self.vary.items()}

    def _combination(self, index: int) -> Task:
        positions = np.unravel_index(index, [len(support) for support in self._supports]) if self._supports else ()
        return {name: s[p] for name, s, p in zip(self.vary, self._supports, positions, strict=True)}

    def encode(self, task: Task) -> np.ndarray:
        """The task's numbers in the order of their names, float32 [number of values]."""
        return np.concatenate([np.zeros(0), *(np.atleast_1d(task[name]) for name in self.vary)]).astype(np.float32)

    def make_vector(self, num_envs: int, autoreset_mode: AutoresetMode = AutoresetMode.DISABLED) -> MetaVectorEnv:
        """``num_envs`` rows that play tasks of this family."""
        return self._make(num_envs, autoreset_mode)


def make_family(config: EnvConfig, *, override_time_limit: bool = False) -> TaskFamily:
    """The family that a configuration describes.

    Args:
        config: ``id`` is a native family or any gymnasium id; ``vary`` overrides a native family's defaults key by key.
        override_time_limit: ``horizon`` replaces a gymnasium id's own time limit, which otherwise cuts if earlier.

    Raises:
        TaskError: an unknown id, parameter or attribute, no horizon, or spaces that cannot be served.
    """
    _require_known(config.id)
    vary = {name: Distribution.parse(mapping) for name, mapping in config.vary.items()}
    if config.id.rpartition(":")[2] in NATIVE:
        return _native_family(config.id.rpartition(":")[2], config.horizon, vary)
    return _generic_family(config.id, config.horizon, vary, override_time_limit)


def _require_known(env_id: str) -> None:
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise TaskError(f"env.id: {env_id}: module {module} cannot be imported: {error}") from error
    # gymnasium.make would take the newest version of a name without one; a result should say what it is of.
    if name not in gymnasium.registry:
        hint = did_you_mean(name, gymnasium.registry)
        raise TaskError(f"env.id: no family and no gymnasium environment is called {name!r}{hint}")


def _native_family(family_id: str, horizon: int | None, vary: Mapping[str, Distribution]) -> TaskFamily:
    native = NATIVE[family_id]
    defaults = {name: Distribution.parse(mapping) for name, mapping in native.default_vary.items()}
    steps = native.default_horizon if horizon is None else horizon

    def make(num_envs: int, autoreset_mode: AutoresetMode) -> MetaVectorEnv:
        return native(num_envs, steps, autoreset_mode)

    return TaskFamily(family_id, steps, native.parameters, {**defaults, **vary}, make)


def _generic_family(
    env_id: str, horizon: int | None, vary: Mapping[str, Distribution], override_time_limit: bool
) -> TaskFamily:
    time_limit = horizon if override_time_limit else None
    probe = make_env(env_id, time_limit)
    try:
        attributes = [Attribute.find(path, probe) for path in vary]
        steps = horizon or probe.spec.max_episode_steps
    finally:
        probe.close()
    if steps is None:
        raise TaskError(f"env.horizon: {env_id} has no time limit of its own; set the number of steps of an episode")

    def make(num_envs: int, autoreset_mode: AutoresetMode) -> MetaVectorEnv:
        return GenericVectorEnv(env_id, num_envs, steps, attributes, time_limit, autoreset_mode)

    return TaskFamily(env_id, steps, {a.path: a.nominal for a in attributes}, vary, make)
