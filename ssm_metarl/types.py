"""Records that travel between the driver, the workers and the disk: frozen, small, made of numbers and numpy arrays.

Shape legend: T time steps (the horizon), B episodes of one task, O observation, I policy input, A action,
D parameters of the action distribution, P parameters of the policy.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

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
        values = " ".join(f"{name}={np.round(value, 4).tolist()}" for name, value in self.task.items())
        return f"{self.stream.name.lower()} iteration={self.iteration} task={self.task_index} [{values}]"


@dataclass(frozen=True)
class SharedState:
    """What every task of one map call reads: frozen, put into the object store once.

    Example: ``SharedState(params_P=np.zeros(2306, np.float32))``
    """

    params_P: np.ndarray


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
