"""Records that travel between the driver, the workers and the disk: frozen, small, made of numbers and numpy arrays.

Shape legend: T time steps (the horizon), B episodes of one task, O observation, I policy input, A action,
D parameters of the action distribution, P parameters of the policy.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np

Task = dict[str, float | tuple[float, ...]]
"""One task of a family: parameter name -> number(s). Example: ``{"goal_x": 0.31, "goal_y": -0.2}``."""


class Stream(enum.IntEnum):
    """What a random stream is for. The values are part of every result: never renumber them."""

    INITIALISE = 0
    SAMPLE_TASKS = 1
    TRAIN = 2
    EVALUATE = 3
    HELD_OUT_TASKS = 4


def make_rng(seed: int, stream: Stream, *key: int) -> np.random.Generator:
    """The one way to a random generator: from the run's seed and integers, never from worker, attempt or time."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(stream), *key)))


@dataclass(frozen=True)
class TaskSpec:
    """One unit of work. Its result is a pure function of the shared state and of this record.

    Example: ``TaskSpec(0, Stream.TRAIN, iteration=12, task_index=3, task={"goal_x": 0.3}, num_adaptation_steps=1)``
    """

    seed: int
    stream: Stream
    iteration: int
    task_index: int
    task: Task
    num_adaptation_steps: int
    strategy: str = "meta"
    """How the policy adapts when it is evaluated."""

    def rng(self) -> np.random.Generator:
        """The random stream of this task's rollouts."""
        return make_rng(self.seed, self.stream, self.iteration, self.task_index)

    def __str__(self) -> str:
        values = " ".join(f"{name}={_short(value)}" for name, value in self.task.items())
        return f"{self.stream.name.lower()} iteration={self.iteration} task={self.task_index} [{values}]"


@dataclass(frozen=True)
class Moments:
    """How many vectors there were, their mean and their summed squared deviations from it, by component.

    Example: ``Moments.of(np.ones((100, 4))).merge(Moments.of(np.zeros((50, 4)))).count == 150``
    """

    count: int
    mean_X: np.ndarray
    squares_X: np.ndarray

    @classmethod
    def of(cls, values_MX: np.ndarray) -> Self:
        """Those of M vectors, in float64."""
        values_MX = values_MX.astype(np.float64)
        mean_X = values_MX.sum(axis=0) / max(1, len(values_MX))
        return cls(len(values_MX), mean_X, np.square(values_MX - mean_X).sum(axis=0))

    def merge(self, other: Self) -> Self:
        """Those of all vectors together (Chan, Golub and LeVeque 1979). The order of merges decides the last bits."""
        if not (self.count and other.count):
            return self if self.count else other
        count, shift_X = self.count + other.count, other.mean_X - self.mean_X
        squares_X = self.squares_X + other.squares_X + shift_X**2 * (self.count * other.count / count)
        return type(self)(count, self.mean_X + shift_X * (other.count / count), squares_X)

    @property
    def variance_X(self) -> np.ndarray:
        """By component."""
        return self.squares_X / max(1, self.count)


@dataclass(frozen=True)
class Statistics:
    """What training has seen, to put what the policy reads into units of it.

    Example: ``Statistics(observation=Moments.of(observations), discounted_return=Moments.of(returns[:, None]))``
    """

    observation: Moments
    discounted_return: Moments
    """Of the discounted sum of the rewards so far, at each step of each episode."""

    def merge(self, other: Self) -> Self:
        """Those of both."""
        observation = self.observation.merge(other.observation)
        return type(self)(observation, self.discounted_return.merge(other.discounted_return))


@dataclass(frozen=True)
class SharedState:
    """What every task of one map call reads: frozen, put into the object store once. All that training has learned.

    Example: ``SharedState(params_P=np.zeros(2306, np.float32))``
    """

    params_P: np.ndarray
    statistics: Statistics | None = None
    """None: nothing is normalised, or nothing was seen yet."""


@dataclass(frozen=True)
class Rollout:
    """Episodes of one task under one set of parameters, time first, padded to the horizon and masked after their end.

    ``dist_TBD`` and ``logp_TB`` are those of the policy that acted, ``foreign_truncation_B`` marks episodes that a time
    limit other than the task's horizon cut off: only those are bootstrapped, from ``final_observation_BO``.
    """

    observation_TBO: np.ndarray
    input_TBI: np.ndarray
    action_TBA: np.ndarray
    """float32 [T, B, A] for a Box, int64 [T, B] for Discrete actions, as the policy sampled it: not yet scaled to the
    Box, nor clipped."""
    dist_TBD: np.ndarray
    logp_TB: np.ndarray
    reward_TB: np.ndarray
    mask_TB: np.ndarray
    """float32, 1 while the episode lasts."""
    final_observation_BO: np.ndarray
    foreign_truncation_B: np.ndarray
    success_B: np.ndarray | None = None
    """bool [B]: ``info["success"]`` was true at some step of the episode; None: the environment does not say."""

    @property
    def num_steps(self) -> int:
        """Environment steps in it, padding not counted."""
        return int(self.mask_TB.sum())

    @property
    def return_B(self) -> np.ndarray:
        """Undiscounted return of each episode, float64 [B]."""
        return (self.reward_TB * self.mask_TB).sum(axis=0, dtype=np.float64)

    @property
    def mean_return(self) -> float:
        """Undiscounted return, mean over the episodes."""
        return float(self.return_B.mean())


@dataclass(frozen=True)
class Batch:
    """What a policy-gradient loss reads of a rollout: kept on the workers' side between the passes of one iteration."""

    input_TBI: np.ndarray
    action_TBA: np.ndarray
    dist_TBD: np.ndarray
    logp_TB: np.ndarray
    advantage_TB: np.ndarray
    mask_TB: np.ndarray


@dataclass(frozen=True)
class TaskResult:
    """The answer to a spec. ``returns``: mean return after k = 0, 1, ... adaptation steps (empty for later passes).

    ``successes``: the same for the share of episodes that succeed, empty where the environment does not say.
    """

    spec: TaskSpec
    gradient_P: np.ndarray | None
    returns: tuple[float, ...] = ()
    successes: tuple[float, ...] = ()
    num_env_steps: int = 0
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    statistics: Statistics | None = None
    """Of its rollouts, if something is normalised."""


def _short(value: float | tuple[float, ...]) -> str:
    """The number, or the first of many."""
    rounded = np.round(value, 4).tolist()
    return f"{rounded}" if np.size(value) <= 8 else f"[{', '.join(map(str, rounded[:4]))}, ... {len(rounded)} numbers]"
