"""What a sweep varies: ranges and choices of settings, checked at both ends by the configuration's own rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssm_metarl.config import ConfigError, TrainConfig, settings
from ssm_metarl.config_text import did_you_mean, plain, short, unknown_setting

DIGITS = 4
"""Significant digits of what is drawn: settings are read, and typed again, by people."""

_KINDS: dict[str, tuple[str, Callable[..., bool]]] = {
    "uniform": ("[low, high] with low < high", lambda low, high: low < high),
    "loguniform": ("[low, high] with 0 < low < high", lambda low, high: 0 < low < high),
    "int_uniform": ("[low, high], whole numbers with low < high", lambda low, high: low < high),
    "choice": ("a list of at least two different values", lambda *values: len(values) > 1),
}
_EXAMPLE = "{loguniform: [0.001, 1.0]}"
_FIXED = {
    "seed": "trials that differ by their seed differ by luck",
    "iterations": "trials are compared at equal length",
    "run": "where a run is changes no result",
    "checkpoint": "where a run is saved changes no result",
    "workers": "who does the work changes no result",
    "eval": "scores would be measured in different ways",
    "env.id": "returns of different tasks cannot be compared",
    "env.vary": "returns of different tasks cannot be compared",
    "env.variant": "returns of different tasks cannot be compared",
    "env.kwargs": "returns of different tasks cannot be compared",
    "env.horizon": "returns over different times cannot be compared",
    "adapter": "training does not read it; to search it on a trained policy, name the policy with 'policy:'",
}


@dataclass(frozen=True)
class Range:
    """What one setting may be.

    Example: ``Range("loguniform", (0.001, 1.0))``
    """

    kind: str
    arguments: tuple[Any, ...]
    """The two ends, or the choices."""

    def draw(self, rng: np.random.Generator) -> Any:
        """One value, plain data."""
        if self.kind == "choice":
            return self.at(rng.integers(len(self.arguments)))
        low, high = self.arguments
        if self.kind == "int_uniform":
            return self.at(rng.integers(low, high, endpoint=True))
        if self.kind == "uniform":
            return self.at(rng.uniform(low, high))
        return self.at(math.exp(rng.uniform(math.log(low), math.log(high))))

    def at(self, place: float) -> Any:
        """The value at a place: a number of the range, to `DIGITS` significant digits if it is a real one; of choices
        that with this index."""
        if self.kind == "choice":
            return self.arguments[int(place)]
        if self.kind == "int_uniform":
            return int(place)
        low, high = self.arguments
        return min(max(float(f"{place:.{DIGITS}g}"), low), high)

    def place(self, value: Any) -> float | None:
        """The place of a value, None if it is outside."""
        if self.kind == "choice":
            return self.arguments.index(value) if value in self.arguments else None
        low, high = self.arguments
        return value if isinstance(value, int | float) and low <= value <= high else None


def parse_space(tree: Any, base: TrainConfig, of_adapter: bool) -> tuple[dict[str, Range], list[str]]:
    """The ranges of a ``space:`` section, and what is wrong with it, one sentence per problem.

    Args:
        base: the configuration that is varied. of_adapter: only ``adapter.*`` may vary, otherwise all but that.
    """
    if not isinstance(tree, Mapping) or not tree:
        return {}, [f"space = {short(tree)} must be a mapping from a setting to its range: inner.lr: {_EXAMPLE}"]
    ranges, problems = {}, []
    for key, value in tree.items():
        try:
            ranges[key] = _range(key, value, base, of_adapter)
        except ConfigError as error:
            problems += str(error).splitlines()
    return ranges, problems


def value_of(config: TrainConfig, key: str) -> Any:
    """A setting by its dotted key, as plain JSON data."""
    tree = config.model_dump(mode="json")
    for part in key.split("."):
        tree = tree[part]
    return tree


def _range(key: Any, value: Any, base: TrainConfig, of_adapter: bool) -> Range:
    if not isinstance(key, str):
        raise ConfigError(f"space: the key {short(key)} is not a setting: keys are text")
    _require_variable(key, of_adapter)
    if isinstance(value, Mapping) and len(value) == 1:
        [(kind, arguments)] = value.items()
    else:
        kind, arguments = None, None
    if kind not in _KINDS:
        raise ConfigError(
            f"space.{key} = {short(value)} must be a range with one kind of {', '.join(_KINDS)}, such as "
            f"{_EXAMPLE}{did_you_mean(kind, _KINDS) or '; a value that stays the same belongs into base'}"
        )
    _require_fitting(key, kind)
    arguments = _numbers(key, kind, arguments) if kind != "choice" else arguments
    if not isinstance(arguments, list | tuple) or not _fits(kind, arguments):
        raise ConfigError(f"space.{key} = {short(value)} must be {{{kind}: {_KINDS[kind][0]}}}")
    accepted = _accepted(key, arguments, base)
    if kind == "choice" and any(accepted.count(choice) > 1 for choice in accepted):
        raise ConfigError(f"space.{key} = {short(value)} must be {{choice: {_KINDS[kind][0]}}}")
    return Range(kind, tuple(accepted if kind == "choice" else arguments))


def _require_variable(key: str, of_adapter: bool) -> None:
    """Raises ConfigError unless it is a setting that trials may have different values of."""
    if key not in settings() and not key.startswith(("env.vary.", "env.kwargs.")):
        raise ConfigError(f"space: {unknown_setting(key, settings())}")
    section = key.partition(".")[0]
    if of_adapter:
        if section != "adapter":
            raise ConfigError(f"space.{plain(key)} cannot vary: the policy is trained, only adapter.* can")
        return
    reason = _FIXED.get(".".join(key.split(".")[:2])) or _FIXED.get(section)
    if reason:
        raise ConfigError(f"space.{plain(key)} cannot vary: {reason}")


def _require_fitting(key: str, kind: str) -> None:
    """Raises ConfigError for a kind that draws real numbers where whole ones are wanted: both ends may be whole."""
    schema = settings()[key]
    types = {branch.get("type") for branch in schema.get("anyOf", [schema])}
    if kind in ("uniform", "loguniform") and "integer" in types and "number" not in types:
        raise ConfigError(f"space.{key}: {kind} draws real numbers, but this is a whole one: use int_uniform")


def _numbers(key: str, kind: str, arguments: Any) -> list[Any]:
    """The ends as numbers; what is none stays as it is, to be refused."""
    if not isinstance(arguments, list | tuple):
        return arguments
    whole = kind == "int_uniform"
    numbers = []
    for argument in arguments:
        usable = not isinstance(argument, bool) and isinstance(argument, int if whole else int | float | str)
        try:
            # YAML 1.1 reads 1e-3 as text.
            number = float(argument) if usable else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        numbers.append(argument if whole and math.isfinite(number) else number)
    return numbers


def _fits(kind: str, arguments: list[Any]) -> bool:
    if kind != "choice" and (len(arguments) != 2 or not all(map(math.isfinite, arguments))):
        return False
    return _KINDS[kind][1](*arguments)


def _accepted(key: str, values: list[Any], base: TrainConfig) -> list[Any]:
    """The values as the configuration holds them. Raises ConfigError for those that it does not take."""
    accepted, problems = [], []
    for value in values:
        try:
            accepted.append(value_of(base.override({key: value}, f"space.{key}"), key))
        except ConfigError as error:
            problems += str(error).splitlines()
    if problems:
        raise ConfigError("\n".join(problems))
    return accepted
