"""The families of a configuration: `make_family` finds the family that ``env.id`` names, `VariedFamily` draws from
``env.vary``. Held-out tasks are the same for every run.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from ssm_metarl.config import EnvConfig
from ssm_metarl.env_runner.distributions import Distribution, Value
from ssm_metarl.env_runner.families import NATIVE
from ssm_metarl.env_runner.families.generic import Attribute, GenericVectorEnv
from ssm_metarl.env_runner.families.listed import make_env
from ssm_metarl.env_runner.families.metaworld import BENCHMARKS
from ssm_metarl.env_runner.families.metaworld_family import MetaWorldFamily
from ssm_metarl.env_runner.family import SPLITS, TaskFamily, split_index
from ssm_metarl.env_runner.vector import MetaVectorEnv, TaskError, did_you_mean
from ssm_metarl.types import Stream, Task, make_rng

ENTRY_POINTS = "ssm_metarl.families"
FAMILIES = {f"ssm_metarl/{name}-v0": functools.partial(MetaWorldFamily, name) for name in BENCHMARKS}
"""Ids of ours whose tasks are no distributions over parameters."""
MIN_TASKS_TO_SPLIT = 10
MAX_COMBINATIONS = 1_000_000
_PARTITION = len(SPLITS)


class VariedFamily(TaskFamily):
    """Tasks that differ in the parameters of ``vary``, and how to play them.

    ``disjoint`` is true where a parameter varies continuously, and where at least 10 combinations of choices can be
    split (60 % training, 20 % validation, 20 % test); a smaller family has the same tasks everywhere.

    Args:
        family_id: its name.
        horizon: steps after which an episode ends.
        nominal: parameter -> its value when nothing varies, for all parameters that may vary.
        vary: parameter -> distribution.
        make: ``make(num_envs, autoreset_mode)`` builds the vector environment.
        draw: what independent distributions cannot describe; ``vary`` is laid over it.
        task_set: fixed (training, test) tasks instead of a distribution; validation tasks are drawn beside them.

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
        draw: Callable[[np.random.Generator], Task] | None = None,
        task_set: tuple[Sequence[Task], Sequence[Task]] | None = None,
    ) -> None:
        for name, distribution in vary.items():
            if name not in nominal:
                raise TaskError(f"env.vary: {family_id} has no parameter {name!r}{did_you_mean(name, nominal)}")
            distribution.check(name, nominal[name])
        self.id, self.horizon, self._make, self._draw = family_id, horizon, make, draw
        # Sorted, so that the order of keys in a file changes no task.
        self.vary = {name: vary[name] for name in sorted(vary)}
        self._nominal = {name: nominal[name] for name in self.vary}
        self._task_set = task_set
        self._partition()

    def _partition(self) -> None:
        supports = [distribution.support(self._nominal[name]) for name, distribution in self.vary.items()]
        is_continuous = None in supports or self._draw is not None or self._task_set is not None
        self._supports = None if is_continuous else supports
        self.disjoint = is_continuous
        if is_continuous:
            return
        count = math.prod(len(support) for support in supports)
        if count > MAX_COMBINATIONS:
            raise TaskError(f"env.vary: the choices have {count} combinations; use uniform for one of them")
        order = make_rng(0, Stream.HELD_OUT_TASKS, _PARTITION).permutation(count)
        self.disjoint = count >= MIN_TASKS_TO_SPLIT
        held_out = count // 5 if self.disjoint else 0
        self._training = order[2 * held_out :]
        self._held_out = {"validation": order[:held_out], "test": order[held_out : 2 * held_out]}
        if not self.disjoint:
            self._held_out = dict.fromkeys(SPLITS, order)

    def sample_task(self, rng: np.random.Generator) -> Task:
        drawn = self._draw(rng) if self._draw else {}
        return drawn | {name: distribution.sample(rng, self._nominal[name]) for name, distribution in self.vary.items()}

    def sample(self, rng: np.random.Generator, n: int) -> list[Task]:
        if self._task_set:
            training = self._task_set[0]
            return [dict(training[index]) for index in rng.integers(len(training), size=n)]
        if self._supports is None:
            return super().sample(rng, n)
        return [self._combination(index) for index in self._training[rng.integers(len(self._training), size=n)]]

    def tasks(self, split: str, n: int) -> list[Task]:
        """The first ``n`` tasks of the fixed ``validation`` or ``test`` set; a finite set begins again at its end."""
        split_index(split)
        if self._task_set and split == "test":
            test = self._task_set[1]
            return [dict(test[index % len(test)]) for index in range(n)]
        if self._supports is None:
            return super().tasks(split, n)
        held_out = self._held_out[split]
        return [self._combination(held_out[index % len(held_out)]) for index in range(n)]

    def _combination(self, index: int) -> Task:
        positions = np.unravel_index(index, [len(support) for support in self._supports]) if self._supports else ()
        return {name: s[p] for name, s, p in zip(self.vary, self._supports, positions, strict=True)}

    def build_vector(self, num_envs: int, autoreset_mode: AutoresetMode) -> MetaVectorEnv:
        return self._make(num_envs, autoreset_mode)


def make_family(config: EnvConfig, *, override_time_limit: bool = False) -> TaskFamily:
    """The family that a configuration describes.

    Args:
        config: ``id`` is a family of ours, one of the user's (an entry point or ``module:Class``) or any gymnasium id;
            ``vary`` overrides a family's defaults key by key.
        override_time_limit: ``horizon`` replaces a gymnasium id's own time limit, which otherwise cuts if earlier.

    Raises:
        TaskError: an unknown id, variant, parameter or attribute, no horizon, or spaces that cannot be served.
    """
    vary = {name: Distribution.parse(mapping) for name, mapping in config.vary.items()}
    custom = _custom_class(config.id)
    if custom is not None:
        return _custom_family(custom, config)
    name = config.id.rpartition(":")[2]
    _require_known(config.id)
    if name in FAMILIES:
        return _custom_family(FAMILIES[name], config)
    if name in NATIVE:
        return _native_family(name, config, vary)
    if config.variant is not None:
        raise TaskError(f"env.variant: {config.id} is no family of ssm_metarl, and has no variants; leave it out")
    return _generic_family(config, vary, override_time_limit)


def _custom_class(env_id: str) -> type[TaskFamily] | None:
    """The class that an entry point or an import path names; None: ``env_id`` is something else."""
    [*found] = entry_points(group=ENTRY_POINTS, name=env_id)
    if found:
        try:
            family_class = found[0].load()
        except (ImportError, AttributeError) as error:
            raise TaskError(f"env.id: the entry point {env_id!r} cannot be loaded: {error}") from error
        if not (inspect.isclass(family_class) and issubclass(family_class, TaskFamily)):
            raise TaskError(f"env.id: the entry point {env_id!r} is {family_class!r}, not a class made from TaskFamily")
        return family_class
    module, _, name = env_id.rpartition(":")
    if not module or "/" in name or "-v" in name:
        return None
    found = getattr(_imported(module, env_id), name, None)
    if inspect.isclass(found) and issubclass(found, TaskFamily):
        return found
    if name in gymnasium.registry:
        return None
    classes = [key for key, value in vars(_imported(module, env_id)).items() if inspect.isclass(value)]
    wrong = (
        "is not made from ssm_metarl.TaskFamily" if found is not None else f"is not in it{did_you_mean(name, classes)}"
    )
    raise TaskError(f"env.id: {env_id}: {name} {wrong}")


def _imported(module: str, env_id: str) -> object:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TaskError(f"env.id: {env_id}: module {module} cannot be imported: {error}") from error


def _require_known(env_id: str) -> None:
    module, _, name = env_id.rpartition(":")
    if module:
        _imported(module, env_id)
    # gymnasium.make would take the newest version of a name without one; a result should say what it is of.
    if name not in gymnasium.registry:
        hint = did_you_mean(name, [*gymnasium.registry, *entry_points(group=ENTRY_POINTS).names])
        raise TaskError(f"env.id: no family and no gymnasium environment is called {name!r}{hint}")


def _custom_family(family_class: Callable[..., TaskFamily], config: EnvConfig) -> TaskFamily:
    for name, given in (("vary", config.vary), ("variant", config.variant)):
        if given:
            raise TaskError(f"env.{name}: {config.id} draws its tasks itself; use env.kwargs if it takes arguments")
    try:
        family = family_class(**config.kwargs)
    except TypeError as error:
        raise TaskError(f"env.kwargs: {config.id} does not take {config.kwargs}: {error}") from error
    family.id = family.id or config.id
    family.horizon = config.horizon or getattr(family, "horizon", None)
    if not family.horizon:
        raise TaskError(f"env.horizon: {config.id} says no horizon; set the number of steps of an episode")
    return family


def _native_family(family_id: str, config: EnvConfig, vary: Mapping[str, Distribution]) -> TaskFamily:
    native, arguments = NATIVE[family_id], {"variant": config.variant, **config.kwargs}

    def make(num_envs: int, autoreset_mode: AutoresetMode) -> MetaVectorEnv:
        try:
            return native(num_envs, config.horizon, autoreset_mode, **arguments)
        except TypeError as error:
            if not config.kwargs:
                raise
            raise TaskError(f"env.kwargs: {family_id} does not take {config.kwargs}: {error}") from error

    probe = make(1, AutoresetMode.DISABLED)
    probe.close()
    variant = probe.variant
    defaults = {name: Distribution.parse(mapping) for name, mapping in variant.vary.items()}
    # Who says what varies does not want a paper's fixed tasks.
    task_set = variant.task_set() if variant.task_set and not vary else None
    return VariedFamily(family_id, probe.horizon, probe.parameters, {**defaults, **vary}, make, variant.draw, task_set)


def _generic_family(config: EnvConfig, vary: Mapping[str, Distribution], override_time_limit: bool) -> TaskFamily:
    time_limit = config.horizon if override_time_limit else None
    probe = make_env(config.id, time_limit, config.kwargs)
    try:
        attributes = [Attribute.find(path, probe) for path in vary]
        steps = config.horizon or probe.spec.max_episode_steps
    finally:
        probe.close()
    if steps is None:
        raise TaskError(f"env.horizon: {config.id} has no time limit of its own; set the number of steps of an episode")

    def make(num_envs: int, autoreset_mode: AutoresetMode) -> MetaVectorEnv:
        return GenericVectorEnv(config.id, num_envs, steps, attributes, time_limit, autoreset_mode, config.kwargs)

    return VariedFamily(config.id, steps, {a.path: a.nominal for a in attributes}, vary, make)
