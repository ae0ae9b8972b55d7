"""`Distribution`: how one parameter differs between tasks, one line of ``env.vary``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ssm_metarl.env_runner.vector import TaskError

Value = float | tuple[float, ...]
"""What a task says of one parameter: a number, or the numbers of an array in C order."""


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
