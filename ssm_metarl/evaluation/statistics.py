"""Intervals that say how much of a figure is chance.

Shape legend: R seeds (training runs), K tasks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000


class Interval(NamedTuple):
    """A mean with its percentile-bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def bootstrap_mean(values_RK: np.ndarray, level: float = 0.95, resamples: int = RESAMPLES) -> Interval:
    """Hierarchical bootstrap of the mean: seeds are resampled, then tasks within each drawn seed.

    Args:
        values_RK: [R, K], or [K] for a single run: then only tasks are resampled, and the interval says nothing about
            other seeds.
        level: share of resampled means inside the interval.
        resamples: bootstrap draws; the draws are the same every time.

    Raises:
        ValueError: empty, or not finite.
    """
    values_RK = np.atleast_2d(np.asarray(values_RK, dtype=np.float64))
    if values_RK.size == 0 or not np.isfinite(values_RK).all():
        raise ValueError("bootstrap_mean needs at least one value, all finite")
    runs, tasks = values_RK.shape
    rng = np.random.default_rng(0)
    means = np.empty(resamples)
    for draw in range(resamples):
        seeds = rng.integers(runs, size=runs)
        means[draw] = values_RK[seeds[:, None], rng.integers(tasks, size=(runs, tasks))].mean()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values_RK.mean()), float(low), float(high))
