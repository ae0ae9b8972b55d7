"""A trained policy lives in one task: it plays, learns from what it played, plays on, and says how it goes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ssm_metarl.config import ConfigError
from ssm_metarl.deployment import DeployedPolicy
from ssm_metarl.env_runner.tasks import TaskFamily, make_family
from ssm_metarl.types import Rollout, Stream, Task, make_rng

BAR_WIDTH = 40
REWARD, COST, MORE = "█", "░", "›"


@dataclass(frozen=True)
class Home:
    """The task that a policy lives in.

    Example: ``Home.choose(policy, task_index=3)``
    """

    family: TaskFamily
    index: int
    """Of the task in the test split: ``tasks[index]`` of ``eval.json``."""
    task: Task

    @classmethod
    def choose(cls, policy: DeployedPolicy, task_index: int | None = None) -> Home:
        """A held-out task of ``env.id``, drawn by ``seed`` from the first ``eval.num_tasks`` if no index is given.

        Raises:
            ConfigError: a negative index. TaskError: the environment cannot be made.
        """
        config, family = policy.config, make_family(policy.config.env)
        if task_index is not None and task_index < 0:
            raise ConfigError(f"--task {task_index}: the tasks are counted from 0")
        if task_index is None:
            task_index = int(make_rng(config.seed, Stream.SAMPLE_TASKS, 0).integers(config.eval.num_tasks))
        return cls(family, task_index, family.tasks("test", task_index + 1)[task_index])

    def __str__(self) -> str:
        values = " ".join(f"{name}={np.round(value, 3).tolist()}" for name, value in self.task.items()) or "nominal"
        note = "" if self.family.disjoint else " (the family is too small to hold tasks out: training saw it)"
        return f"{self.family.id}, test task {self.index}: {values}{note}"


@dataclass(frozen=True)
class Lived:
    """What a life came to: the rollouts in their order; between two of them the policy adapted."""

    home: Home
    rollouts: list[Rollout]
    num_steps: int
    """Gradient steps between the meta-parameters and the last rollout."""

    def __str__(self) -> str:
        first, last = self.rollouts[0], self.rollouts[-1]
        if first is last:
            return f"mean return {first.mean_return:.2f}, without adaptation"
        steps = f"{self.num_steps} step{'s' * (self.num_steps != 1)}"
        means = f"{first.mean_return:.2f} before adaptation, {last.mean_return:.2f} after {steps}"
        return f"mean return {means} (the first {_count(first)} and the last {_count(last)} episodes)"


def live(policy: DeployedPolicy, home: Home, num_episodes: int | None, tell: Callable[[str], None] = print) -> Lived:
    """Plays episodes of one task, and adapts after every ``env.episodes_per_task`` of them but the last.

    The random streams are those of evaluation: with the same seed and strategy, the first episodes are the ones whose
    mean returns stand in ``eval.json`` for this task.

    Args:
        policy: adapts in place. home: the task. tell: is given a line for each episode, and for what was learned.
        num_episodes: None: those of ``eval.num_steps`` adaptations and of the rollout after them.

    Raises:
        ConfigError: no episodes. TaskError: something in the environment is not finite.
    """
    config = policy.config
    per_rollout = config.env.episodes_per_task
    num_episodes = per_rollout * (config.eval.num_steps + 1) if num_episodes is None else num_episodes
    if num_episodes < 1:
        raise ConfigError(f"--episodes {num_episodes}: must be at least 1")
    rng, rollouts, bars = make_rng(config.seed, Stream.EVALUATE, 0, home.index), [], None
    for first in range(0, num_episodes, per_rollout):
        if rollouts:
            tell(_learned(policy.life.learn(rollouts[-1], task_id=home.index), first, len(rollouts) == 1))
        rollouts.append(_play(policy, home, min(per_rollout, num_episodes - first), rng))
        returns_B = rollouts[-1].return_B
        if bars is None:
            bars = Bars(returns_B)
            tell(f"episode       return   {bars}")
        for episode, value in zip(itertools.count(first + 1), returns_B):
            tell(f"{episode:7d}   {value:10.2f}   {bars.draw(value)}")
    return Lived(home, rollouts, policy.adapter.num_steps)


class Bars:
    """Text bars of one scale for all returns to come, chosen by the first ones.

    Returns below 0 are costs, which shrink: the largest of the first fills the width. Others are rewards, which grow:
    it fills a quarter.

    Args:
        first: returns, [B].
    """

    def __init__(self, first: np.ndarray) -> None:
        largest = float(np.abs(first).max()) or 1.0
        self._cost = bool(np.mean(first) < 0)
        self._unit = _round_up(largest / (BAR_WIDTH if self._cost else BAR_WIDTH / 4))

    def __str__(self) -> str:
        return f"each {COST} is -{self._unit:g}: less is better" if self._cost else f"each {REWARD} is {self._unit:g}"

    def draw(self, value: float) -> str:
        """The bar of one return."""
        length = round(abs(value) / self._unit)
        return (COST if value < 0 else REWARD) * min(length, BAR_WIDTH) + MORE * (length > BAR_WIDTH)


def _round_up(value: float) -> float:
    """To 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * (1 - 1e-9))


def _play(policy: DeployedPolicy, home: Home, count: int, rng: np.random.Generator) -> Rollout:
    vector = home.family.make_vector(count)
    try:
        vector.set_tasks(home.task)
        return policy.life.play(vector, home.family.horizon, rng)
    finally:
        vector.close()


def _learned(info: dict, episodes: int, is_first: bool) -> str:
    """The line between two rollouts. That the first of them is a new task goes without saying."""
    news = f"seems to be another task ({info['new_task']}); " if info["new_task"] and not is_first else ""
    if info["skipped"]:
        what = f"nothing learned: {info['skipped']}"
    elif info["steps"] == 0:
        what = "nothing is learned"
    else:
        steps = f"{info['steps']} gradient step{'s' * (info['steps'] != 1)}"
        what = f"adapts: {steps}, the parameters move by {info['param_change']:.3g}"
    return f"------- after {episodes} episodes: {news}{what}"


def _count(rollout: Rollout) -> int:
    return rollout.mask_TB.shape[1]
