"""Intervals that say how much of a figure is chance.

Seeds and tasks are both taken for samples: an interval speaks of other training seeds and of other tasks of the family.
All seeds are judged on the same tasks, so that the two are crossed: a task that is hard for one seed is hard for all,
and more seeds do not average that away. (To draw tasks anew within every seed, as for nested data, would say they do.)

Shape legend: R seeds (training runs), K tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import numpy as np

RESAMPLES = 10_000
TRIMMED = 0.25
_CHUNK = 2_000_000

Statistic = Literal["mean", "iqm"]


class Interval(NamedTuple):
    """An estimate with its interval. ``mean`` is the interquartile mean where that is the statistic."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:z.2f} [{self.low:z.2f}, {self.high:z.2f}]"


def iqm(values: np.ndarray) -> float:
    """Interquartile mean of all values: without the lowest and the highest quarter, each rounded down to whole values.

    Equals ``scipy.stats.trim_mean(values, 0.25)``. Raises ValueError: empty, or not finite.
    """
    return float(_evaluate(_checked(values).ravel(), "iqm"))


def bootstrap(
    values_RK: np.ndarray, statistic: Statistic = "mean", level: float = 0.95, resamples: int = RESAMPLES
) -> Interval:
    """Hierarchical bootstrap: seeds are resampled, and the tasks that they share.

    A draw deviates from the estimate by the sum of two deviations: of the resampled seeds on all tasks, and of the
    resampled tasks under all seeds. Plain percentiles of such draws are not a 95 % interval; two corrections make
    them one (``benchmarks/coverage.py`` measures it, and what plain ones cover):

    - The spread of R resampled seeds is too small by (R - 1) / R (Davison and Hinkley, "Bootstrap Methods and their
      Application", 1997, section 3.8), and with few seeds it is itself a matter of luck. Each draw's deviation is
      multiplied by sqrt(R / chi2), chi2 drawn with R - 1 degrees of freedom: the tails become Student's
      (Weerahandi, "Generalized Confidence Intervals", 1993). The same holds for tasks.
    - What a seed and a task have together, and the noise of their episodes, would be counted twice, with the seeds and
      with the tasks (Owen, "The pigeonhole bootstrap", 2007). The deviation of the tasks is therefore shrunk to what is
      common to all seeds, by a two-way analysis of variance.

    With few seeds, one thing stays uncorrected: a skewed distribution of their luck, which is covered less often.

    Args:
        values_RK: [R, K], or [K] for a single run: then only tasks are resampled, and the interval says nothing about
            other seeds. (With a single task it says nothing about other tasks.)
        statistic: ``mean`` or ``iqm``, over all seeds and tasks.
        level: how often the interval should contain the truth.
        resamples: bootstrap draws; the draws are the same every time.

    Raises:
        ValueError: empty, or not finite; an unknown statistic.
    """
    values_RK = np.atleast_2d(_checked(values_RK))
    if statistic not in get_args(Statistic):
        raise ValueError(f"statistic must be one of {', '.join(get_args(Statistic))}, not {statistic!r}")
    centre = float(_evaluate(values_RK.ravel(), statistic))
    rng = np.random.default_rng(0)
    draws = centre + _deviations(values_RK, statistic, resamples, rng)
    draws += _share_of_tasks(values_RK, statistic) * _deviations(values_RK.T, statistic, resamples, rng)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(centre, float(low), float(high))


def bootstrap_mean(values_RK: np.ndarray, level: float = 0.95, resamples: int = RESAMPLES) -> Interval:
    """`bootstrap` of the mean."""
    return bootstrap(values_RK, "mean", level, resamples)


def paired_difference(a_RK: np.ndarray, b_RK: np.ndarray, statistic: Statistic = "mean") -> Interval:
    """`bootstrap` of ``a - b``, seed by seed and task by task: both must be of the same seeds and tasks.

    Raises:
        ValueError: shapes differ, empty, or not finite.
    """
    return bootstrap(np.subtract(*_paired(a_RK, b_RK)), statistic)


def probability_of_improvement(a_RK: np.ndarray, b_RK: np.ndarray) -> Interval:
    """How often ``a`` is above ``b`` for the same seed and task; a tie counts half.

    Where ``a`` wins every time the interval has no width, like that of any bootstrap.

    Raises:
        ValueError: shapes differ, empty, or not finite.
    """
    a_RK, b_RK = _paired(a_RK, b_RK)
    return Interval(*np.clip(bootstrap((np.sign(a_RK - b_RK) + 1) / 2), 0.0, 1.0).tolist())


def _checked(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError("an interval needs at least one value, all finite")
    return values


def _paired(a_RK: np.ndarray, b_RK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a_RK, b_RK = _checked(a_RK), _checked(b_RK)
    if a_RK.shape != b_RK.shape:
        raise ValueError(f"values must be paired by seed and task, not of shapes {a_RK.shape} and {b_RK.shape}")
    return a_RK, b_RK


def _evaluate(values: np.ndarray, statistic: Statistic) -> np.ndarray:
    """The statistic over the last axis."""
    if statistic == "mean":
        return values.mean(axis=-1)
    count = values.shape[-1]
    cut = int(TRIMMED * count)
    return np.partition(values, (cut, count - cut - 1), axis=-1)[..., cut : count - cut].mean(axis=-1)


def _deviations(values_NM: np.ndarray, statistic: Statistic, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How far the statistic is off when the N rows are resampled, with the tails of N - 1 degrees of freedom."""
    rows = len(values_NM)
    if rows == 1:
        return np.zeros(resamples)
    if statistic == "mean":
        values_NM = values_NM.mean(axis=1, keepdims=True)
    centre = _evaluate(values_NM.ravel(), statistic)
    drawn = [
        _evaluate(values_NM[rng.integers(rows, size=(count, rows))].reshape(count, -1), statistic)
        for count in _chunks(resamples, values_NM.size)
    ]
    return (np.concatenate(drawn) - centre) * np.sqrt(rows / rng.chisquare(rows - 1, size=resamples))


def _chunks(resamples: int, size: int) -> Iterator[int]:
    """How many draws of ``size`` values to hold at a time."""
    most = max(1, _CHUNK // size)
    for begun in range(0, resamples, most):
        yield min(most, resamples - begun)


def _share_of_tasks(values_RK: np.ndarray, statistic: Statistic) -> float:
    """The part of the standard deviation of task means that seeds share; the rest is counted with the seeds."""
    runs, tasks = values_RK.shape
    if runs == 1 or tasks == 1:
        return float(runs == 1)
    if statistic == "iqm":
        # A trimmed mean varies as the mean of the values that are drawn in to the quartiles (its influence function).
        values_RK = np.clip(values_RK, *np.quantile(values_RK, [TRIMMED, 1 - TRIMMED]))
    task_means_K = values_RK.mean(axis=0)
    residual_RK = values_RK - task_means_K - values_RK.mean(axis=1, keepdims=True) + values_RK.mean()
    noise = (residual_RK**2).sum() / ((runs - 1) * (tasks - 1)) / runs
    variance = task_means_K.var(ddof=1)
    return float(np.sqrt(1 - noise / variance)) if variance > noise else 0.0
