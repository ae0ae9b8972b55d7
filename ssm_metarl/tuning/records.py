"""What a sweep came to: its trials with their learning curves. Frozen, plain data; the page and the tables read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Metric = Literal["post_adaptation", "pre_adaptation", "gain"]
"""What a trial is judged by, on validation tasks: the mean return after adaptation, before it, or the difference."""

State = Literal["finished", "stopped", "failed", "running", "waiting"]
STATES: tuple[str, ...] = get_args(State)
OVER: frozenset[str] = frozenset({"finished", "stopped", "failed"})
"""The states of a trial that reports no more."""


@dataclass(frozen=True)
class Point:
    """Mean returns on validation tasks after so many iterations, before and after adaptation.

    Example: ``Point(iteration=10, pre=-40.2, post=-12.5)``
    """

    iteration: int
    pre: float
    post: float

    def value(self, metric: Metric) -> float:
        """The number that ``metric`` names; more is better."""
        return {"post_adaptation": self.post, "pre_adaptation": self.pre, "gain": self.post - self.pre}[metric]


@dataclass(frozen=True)
class TrialRecord:
    """One trial: a run under settings of its own.

    Example: ``TrialRecord(3, {"inner.lr": 0.2}, (Point(4, -40.0, -20.0),), "stopped", "", 24000, 6.1, "ab12...")``
    """

    index: int
    """Its number in the sweep; trial 0 is the base configuration."""
    settings: dict[str, Any]
    """Dotted key -> value, only what the space varies."""
    curve: tuple[Point, ...]
    """One point per report, in order."""
    state: State
    cause: str
    """Of a failure; else empty."""
    num_env_steps: int
    """Environment steps at the last report; evaluation not counted."""
    seconds: float
    """Wall time until the last report, over all attempts."""
    params_sha256: str
    """Of the parameters at the last report; empty before the first."""

    @property
    def iterations(self) -> int:
        """Iterations at the last report."""
        return self.curve[-1].iteration if self.curve else 0

    def score(self, metric: Metric) -> float:
        """The metric at the last report; nan if there is none."""
        return self.curve[-1].value(metric) if self.curve else float("nan")


@dataclass(frozen=True)
class SweepRecord:
    """A whole sweep."""

    name: str
    space: Mapping[str, Mapping[str, Any]]
    """As in the file: dotted key -> {kind: arguments}."""
    metric: Metric
    iterations: int
    """Those of a trial that goes to its end; of a sweep of the Adapter the calls of adapt."""
    trials: tuple[TrialRecord, ...]
    best: int | None
    """Index of the best trial that went to its end; None: there is none yet."""
    comparison: str
    """Text of the comparison with the base on test tasks, as the terminal shows it; empty if there is none."""
