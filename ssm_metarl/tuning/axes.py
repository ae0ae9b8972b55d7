"""The axes of a sweep's pictures: where a setting's values lie, linear, logarithmic or as categories."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssm_metarl.config_text import short
from ssm_metarl.evaluation.report.pictures import around, ticks

MOST_TICKS = 5
_LARGE = 1e100
_OUTLIER = 5.0


@dataclass(frozen=True)
class Axis:
    """One searched setting. Its values lie at units: themselves, their log10, or the index of their category."""

    key: str
    low: float
    high: float
    is_log: bool = False
    is_whole: bool = False
    categories: tuple[str, ...] = ()

    @classmethod
    def of(cls, key: str, spec: Mapping[str, Any], values: Sequence[Any]) -> Axis:
        """The axis that holds what the space allows and all values that were tried.

        Args:
            key: the setting. spec: what the space says of it, such as ``{"loguniform": [0.001, 1.0]}``.
            values: those of the trials; that of the base may lie outside the space.
        """
        kind, arguments = next(iter(spec.items()), ("", ()))
        arguments = list(arguments) if isinstance(arguments, list | tuple) else []
        if kind != "choice":
            is_log = "log" in kind
            units = [_unit(value, is_log) for value in [*arguments[:2], *values]]
            if any(map(math.isfinite, units)):
                return cls(key, *spread(units), is_log, is_whole=kind == "int_uniform")
        categories = _categories([*(arguments if kind == "choice" else ()), *values])
        return cls(key, -0.5, len(categories) - 0.5 if categories else 0.5, categories=categories)

    def unit(self, settings: Mapping[str, Any]) -> float:
        """Where a trial's value lies between ``low`` and ``high``; nan if the axis cannot show it (0 where it is
        logarithmic), or there is none."""
        if self.key not in settings:
            return math.nan
        value = settings[self.key]
        if not self.categories:
            return _unit(value, self.is_log)
        text = value_text(value)
        return float(self.categories.index(text)) if text in self.categories else math.nan

    def share(self, unit: float) -> float:
        """A unit as a share of the axis, 0 to 1."""
        return (unit - self.low) / (self.high - self.low)

    def ticks(self, room: float) -> list[tuple[float, str]]:
        """A few (unit, text), the texts of categories cut to what fits side by side into ``room`` letters."""
        if self.categories:
            step = math.ceil(len(self.categories) / 8)
            letters = max(3, int(room * step / len(self.categories)) - 1)
            return [(float(at), cut(self.categories[at], letters)) for at in range(0, len(self.categories), step)]
        units = log_ticks(self.low, self.high) if self.is_log else ticks(self.low, self.high, MOST_TICKS)
        units = [unit for unit in units if not self.is_whole or unit.is_integer()]
        # + 0.0 makes 0 of -0.
        return [(unit, f"{10**unit if self.is_log else unit + 0.0:.6g}") for unit in units]


def log_ticks(low: float, high: float, most: int = MOST_TICKS) -> list[float]:
    """At most ``most`` log10 of round numbers between two log10: powers of ten, or 1, 2 and 5 times them."""
    powers = [float(power) for power in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)]
    fine = [power + math.log10(step) for power in range(math.floor(low), math.floor(high) + 1) for step in (1, 2, 5)]
    fine = [unit for unit in fine if low - 1e-9 <= unit <= high + 1e-9]
    if len(powers) < 3 and 2 <= len(fine) <= most:
        return fine
    if len(powers) < 2:
        return [math.log10(value) for value in ticks(10**low, 10**high, most) if value > 0]
    return powers[:: math.ceil(len(powers) / most)]


def score_range(scores: Iterable[float], shown: Iterable[float]) -> tuple[float, float]:
    """The part of the scores that is drawn to scale: without those far below the others, of runs that diverged.

    Args:
        scores: all of them; those that are not finite are left out. shown: scores that must lie within.

    Returns:
        the lowest that is drawn to scale, and the highest.
    """
    finite, shown = sorted(bounded(scores)), bounded(shown)
    if not finite:
        return 0.0, 0.0
    highest, middle = finite[-1], statistics.median(finite)
    bound = min(highest - _OUTLIER * (highest - middle), *shown, highest)
    return (bound if highest > middle and finite[0] < bound else finite[0]), highest


def spread(units: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis that holds all finite units (at least one) with some room, and is never empty.

    Units that differ by rounding errors alone count as equal.
    """
    finite = [unit for unit in units if math.isfinite(unit)]
    low, high = min(finite), max(finite)
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1 / _LARGE):
        return around([high if abs(high) > 1 / _LARGE else 0.0])
    return around([low, high], 0.04)


def bounded(values: Iterable[float]) -> list[float]:
    """The finite ones, near enough to 0 to calculate with."""
    return [max(-_LARGE, min(value, _LARGE)) for value in values if math.isfinite(value)]


def value_text(value: Any) -> str:
    """A setting's value as people read it: ``0.0347``, ``true``, ``(observation, previous_reward)``."""
    if isinstance(value, list | tuple):
        return f"({', '.join(map(value_text, value))})"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "\u2013"
    return value if isinstance(value, str) else short(value)


def cut(text: str, letters: int) -> str:
    """At most so many letters of a text."""
    return text if len(text) <= letters else f"{text[: letters - 1]}\u2026"


def _unit(value: Any, is_log: bool) -> float:
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except OverflowError:
        return math.nan
    if not math.isfinite(number) or (is_log and number < 1 / _LARGE):
        return math.nan
    number = max(-_LARGE, min(number, _LARGE))
    return math.log10(number) if is_log else number


def _categories(values: Sequence[Any]) -> tuple[str, ...]:
    """Each value once: numbers by size, anything else in the order of the file, then what only trials have."""
    if values and all(math.isfinite(_unit(value, False)) for value in values):
        values = sorted(values)
    return tuple(dict.fromkeys(map(value_text, values)))
