"""Adaptation curves of one run or of several: intervals per number of adaptation steps, and a table for people.

Shape legend: R seeds (training runs), K tasks, S adaptation steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ssm_metarl.config import ConfigError
from ssm_metarl.evaluation.statistics import (
    Interval,
    bootstrap,
    bootstrap_mean,
    paired_difference,
    probability_of_improvement,
)
from ssm_metarl.types import Task

PAIRS = (("meta", "none"), ("online", "none"), ("meta", "online"))
_STEPS, _EPISODES, _CELL = "steps", "episodes seen", 26


@dataclass(frozen=True)
class Curves:
    """Returns on the same K held-out tasks after k = 0, 1, ... S adaptation steps, of R runs.

    Example: ``Curves("ssm_metarl/Navigation2D-v0", "test", 10, tasks, {"none": none_RKS, "meta": meta_RKS})``
    """

    env: str
    split: str
    episodes_per_task: int
    """Episodes of one rollout, on which one adaptation step is taken and over which one return is a mean."""
    tasks: Sequence[Task]
    returns: Mapping[str, np.ndarray]
    """Strategy -> mean return, float64 [R, K, S + 1]; axis 0 the runs in the order in which they were given."""
    successes: Mapping[str, np.ndarray] | None = None
    """The same for the share of episodes that succeed; None: the family knows no success."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Strategy -> in how many of its R x K x S calls the adapter found a reason not to learn."""

    @property
    def num_runs(self) -> int:
        """R."""
        return len(next(iter(self.returns.values())))

    @property
    def interval(self) -> str:
        """What kind of interval it is."""
        if self.num_runs == 1:
            return "95 %, bootstrap over the tasks of one run"
        return f"95 %, hierarchical bootstrap over {self.num_runs} runs and their tasks"

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs of strategies to compare: those of `PAIRS` that were both measured."""
        return [pair for pair in PAIRS if set(pair) <= set(self.returns)]

    def mean(self, strategy: str) -> list[Interval]:
        """Mean return, one interval per k."""
        return _per_step(bootstrap_mean, self.returns[strategy])

    def iqm(self, strategy: str) -> list[Interval]:
        """Interquartile mean of the returns, one interval per k."""
        return _per_step(lambda values_RK: bootstrap(values_RK, "iqm"), self.returns[strategy])

    def success(self, strategy: str) -> list[Interval] | None:
        """Success rate, one interval per k; None where the family knows no success."""
        return None if self.successes is None else _per_step(bootstrap_mean, self.successes[strategy])

    def difference(self, a: str, b: str) -> list[Interval]:
        """Mean return of strategy ``a`` above that of ``b``, paired by run and task, one interval per k."""
        return _per_step(paired_difference, self.returns[a], self.returns[b])

    def improvement(self, a: str, b: str) -> list[Interval]:
        """Probability that ``a`` is above ``b`` for the same run and task, one interval per k."""
        return _per_step(probability_of_improvement, self.returns[a], self.returns[b])


def join(records: Mapping[str, Mapping[str, Any]]) -> Curves:
    """The curves of several runs on the same tasks, of the strategies that all of them have.

    Args:
        records: name of the run (for messages) -> contents of its ``eval.json``; one run is fine.

    Raises:
        ConfigError: the runs differ in environment, tasks, inner loop or adapter, or two are one and the same.
    """
    require_alike({name: {**record, "num_steps": _num_steps(record)} for name, record in records.items()})
    for (name, record), (other, other_record) in itertools.combinations(records.items(), 2):
        if record["params_sha256"] == other_record["params_sha256"]:
            raise ConfigError(f"{name} and {other} have the same parameters: one run counted twice; name it once")
    first = next(iter(records.values()))
    results = [record["strategies"] for record in records.values()]
    common = [strategy for strategy in results[0] if all(strategy in result for result in results)]
    returns = {strategy: np.array([result[strategy]["returns"] for result in results]) for strategy in common}
    successes = None
    if all(result[strategy]["success"] for result in results for strategy in common):
        successes = {name: np.array([result[name]["success"]["rates"] for result in results]) for name in common}
    skipped = {name: sum(result[name].get("skipped", 0) for result in results) for name in common}
    return Curves(first["env"], first["split"], first["episodes_per_task"], first["tasks"], returns, successes, skipped)


def require_alike(records: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ConfigError, naming the settings, where runs were not, or will not be, measured alike.

    ``records`` is as in `join`, with ``num_steps`` (S) in place of results.
    """
    names = list(records)
    conditions = [_conditions(record) for record in records.values()]
    for name, other in zip(names[1:], conditions[1:], strict=True):
        differing = [key for key in {**conditions[0], **other} if conditions[0].get(key) != other.get(key)]
        if differing:
            lines = [_difference(key, conditions[0].get(key), other.get(key)) for key in differing]
            raise ConfigError(
                f"{names[0]} and {name} were not measured alike, so their curves cannot be joined:\n"
                + "\n".join(lines)
                + "\nevaluate them with the same settings, or one by one"
            )


def table(curves: Curves) -> str:
    """The adaptation curves as text: mean returns, differences between strategies, success rates where there are any.

    A row per number of adaptation steps, a column per strategy; 110 characters wide.
    """
    runs = f", {curves.num_runs} runs" if curves.num_runs > 1 else ""
    per_task, strategies = curves.episodes_per_task, list(curves.returns)
    lines = [
        f"{curves.env}, {len(curves.tasks)} held-out tasks ({curves.split} split), {per_task} episodes each{runs}",
        f"intervals: {curves.interval}",
    ]
    lines += _block("mean return", {name: curves.mean(name) for name in strategies}, per_task)
    against_none = [(a, b) for a, b in curves.pairs if b == "none"]
    if against_none:
        columns = {f"{a} - {b}": curves.difference(a, b) for a, b in against_none}
        lines += _block("difference in mean return, task by task", columns, per_task)
    if curves.successes is not None:
        lines += _block("success rate", {name: curves.success(name) for name in strategies}, per_task)
    if reasons := _reasons_not_to_learn(curves):
        lines += ["", *reasons]
    return "\n".join(lines)


def _per_step(statistic: Callable[..., Interval], *values_RKS: np.ndarray) -> list[Interval]:
    return [statistic(*columns) for columns in zip(*(np.moveaxis(values, -1, 0) for values in values_RKS), strict=True)]


def _num_steps(record: Mapping[str, Any]) -> int:
    return len(next(iter(record["strategies"].values()))["returns"][0]) - 1


def _conditions(record: Mapping[str, Any]) -> dict[str, Any]:
    """What runs must share to be joined, by the name of the setting where there is one."""
    return {
        "env.id": record["env"],
        "env.horizon": record.get("horizon"),
        "env.episodes_per_task": record["episodes_per_task"],
        "split": record["split"],
        "eval.num_tasks": len(record["tasks"]),
        "env.vary (the held-out tasks)": record["tasks"],
        "number of adaptation steps": record["num_steps"],
        **{f"inner.{name}": value for name, value in record["inner"].items()},
        **{f"adapter.{name}": value for name, value in record["adapter"].items()},
    }


def _difference(key: str, first: Any, other: Any) -> str:
    if key.startswith("env.vary"):
        return f"  {key} differs"
    return f"  {key}: {first} and {other}"


def _block(title: str, columns: Mapping[str, Sequence[Interval]], per_task: int) -> list[str]:
    """One part of the table."""
    lines = ["", f"{title} [95 %]", f"{_STEPS}   {_EPISODES}" + "".join(f"   {name:>{_CELL}}" for name in columns)]
    for k, intervals in enumerate(zip(*columns.values(), strict=True)):
        cells = "".join(f"   {_cell(interval):>{_CELL}}" for interval in intervals)
        lines.append(f"{k:{len(_STEPS)}d}   {k * per_task:{len(_EPISODES)}d}{cells}")
    return lines


def _reasons_not_to_learn(curves: Curves) -> list[str]:
    runs, tasks, columns = next(iter(curves.returns.values())).shape
    calls = runs * tasks * (columns - 1)
    return [
        f"{name}: the adapter found a reason not to learn in {count} of its {calls} calls"
        for name, count in curves.skipped.items()
        if count
    ]


def _cell(interval: Interval) -> str:
    mean, low, high = (f"{value:z.2f}" if abs(value) < 999.995 else f"{value:.0f}" for value in interval)
    return f"{mean} [{low}, {high}]"
