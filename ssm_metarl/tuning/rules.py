"""Which trials go on: the rules of the schedulers as functions of learning curves, in the order of the trials.

ASHA and median stopping as they ship with Ray Tune judge a trial by what others happen to have reported by then: which
ones go on depends on how fast the machines are. Here the fate of trial i at a rung depends on the curves of trials
j <= i alone, so a sweep comes to the same end on any machine, whatever was killed on its way. The price: a trial that
reaches a rung before an earlier one waits there, without a CPU, until that one has reached it too or has ended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from ssm_metarl.config import Config, Count, Real

Decision = Literal["go", "stop", "wait"]


@dataclass(frozen=True)
class Curve:
    """Iteration -> score of one trial, one entry per report. What is not a number is worse than any number.

    Example: ``Curve({4: -40.0, 8: -20.0})``
    """

    scores: dict[int, float]

    @property
    def end(self) -> int:
        """Iteration of the last report, 0 if there is none."""
        return max(self.scores, default=0)

    def at(self, iteration: int) -> float:
        """The score of the report after so many iterations."""
        return _ranked(self.scores[iteration])

    def until(self, iteration: int) -> list[float]:
        """The scores up to then."""
        return [_ranked(score) for at, score in self.scores.items() if at <= iteration]


class Asha(Config):
    """Asynchronous successive halving (Li et al., 2020): at each rung only the best of those seen so far go on."""

    grace_iterations: Count = 1
    """The first rung; the others are at reduction_factor times this, its square times this, and so on."""
    reduction_factor: Real = Field(3.0, ge=1.1)
    """A trial goes on if it is among the best 1/reduction_factor of itself and those before it that reached the rung;
    the best one always does."""

    def judges(self, after: int, until: int) -> bool:
        """Whether there is a rung after so many iterations and not after ``until``."""
        rung = float(self.grace_iterations)
        while rung <= after:
            rung *= self.reduction_factor
        return rung <= until

    def keeps(self, rung: int, own: Curve, earlier: Sequence[Curve]) -> bool:
        """Whether a trial with the curve ``own`` goes on; ``earlier`` are the curves that reached the rung."""
        better = sum(curve.at(rung) > own.at(rung) for curve in earlier)
        return better < max(1, math.floor((len(earlier) + 1) / self.reduction_factor))


class Median(Config):
    """Median stopping (Golovin et al., 2017): a trial ends whose best is below the median of the others' means."""

    grace_iterations: Count = 1
    """No trial ends before."""
    every: Count = 1
    """Iterations between judgements."""

    def judges(self, after: int, until: int) -> bool:
        """Whether there is a rung after so many iterations and not after ``until``."""
        passed = [(iteration - self.grace_iterations) // self.every for iteration in (after, until)]
        return passed[1] >= 0 and passed[1] > passed[0]

    def keeps(self, rung: int, own: Curve, earlier: Sequence[Curve]) -> bool:
        """Whether a trial with the curve ``own`` goes on; ``earlier`` are the curves that reached the rung."""
        means = [np.mean(curve.until(rung)) for curve in earlier]
        # Of an even number the lower of the two in the middle: a mean with minus infinity would say nothing.
        return not means or max(own.until(rung)) >= sorted(means)[(len(means) - 1) // 2]


Scheduler = Asha | Median


def is_rung(scheduler: Scheduler | None, iteration: int, per_report: int, iterations: int) -> bool:
    """Whether a trial is judged at its report after ``iteration`` iterations: rungs count from the next report on.

    Args:
        per_report: iterations between reports. iterations: those of a whole trial; at the end nobody is judged.
    """
    return scheduler is not None and iteration < iterations and scheduler.judges(iteration - per_report, iteration)


def decide(scheduler: Scheduler, rung: int, own: Curve, earlier: Sequence[Curve], ended: Sequence[bool]) -> Decision:
    """What a trial does that has reported at a rung.

    Args:
        earlier: the curves of all trials before it. ended: which of them report no more.
    """
    if any(curve.end < rung and not has_ended for curve, has_ended in zip(earlier, ended, strict=True)):
        return "wait"
    return "go" if scheduler.keeps(rung, own, [curve for curve in earlier if rung in curve.scores]) else "stop"


def _ranked(score: float) -> float:
    return score if math.isfinite(score) else -math.inf
