"""Part of `switching.py`: policies that live through a change of their environment's physics.

Each policy is meta-trained on its family as ``benchmarks/configs/NAME.yaml`` says. Then it plays rollouts of some
episodes and learns from each: `BEFORE` on a held-out task and then, without a word, `AFTER` on another one. A policy
with memory, trained on as many environment steps without an inner loop, lives the same lives beside it.

Shape legend: R seeds, K lives, N rollouts of a life.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from switching_linear import STRATEGIES, verdict

from ssm_metarl.config import TrainConfig, load_config
from ssm_metarl.env_runner.tasks import TaskFamily, make_family
from ssm_metarl.evaluation.statistics import Interval, bootstrap, paired_difference
from ssm_metarl.runtime.driver import MetaTrainer
from ssm_metarl.runtime.life import Life
from ssm_metarl.runtime.pool import LocalPool
from ssm_metarl.runtime.process import limit_threads
from ssm_metarl.runtime.worker import make_policy
from ssm_metarl.types import Stream, Task, make_rng

CONFIGS = Path(__file__).parent / "configs"
FAMILIES = {
    "cartpole": "the force's sign flips, the pole has another length",
    "pendulum": "the pendulum has another mass",
}
BEFORE, AFTER = 4, 8
MEMORY = "memory (SSM), no inner loop, none"
COLUMNS = {
    "before": slice(BEFORE - 2, BEFORE),
    "shock": slice(BEFORE, BEFORE + 1),
    **{f"+{n}": slice(BEFORE + n, BEFORE + n + 1) for n in (1, 2, 3)},
    f"+{AFTER - 3} to +{AFTER - 1}": slice(-3, None),
    "all after": slice(BEFORE, None),
}
"""Rollouts of a life, counted from the change; "before" are the last two before it."""
LIVES = 20
STREAM = 1_000_000
"""Marks the random streams of lives, so that they are not those of an evaluation."""


def run_seed(name: str, seed: int, quick: bool) -> dict[str, Any]:
    """Trains for one seed; the returns of all lives by strategy [K][N], and when ``meta`` found a new task."""
    limit_threads()
    settings = {"seed": seed, "workers.num_workers": 0, **({"iterations": 1} if quick else {})}
    config = load_config(CONFIGS / f"{name}.yaml", settings)
    memory = config.override({"policy.core": "ssm", "inner.num_steps": 0})
    params_P, meta_costs = train(config, None)
    memory_P, memory_costs = train(memory, meta_costs["env_steps"])
    family = make_family(config.env)
    tasks = pairs(family, 2 if quick else LIVES)
    lives = {
        strategy: [live(family, config, params_P, strategy, *task, index) for index, task in enumerate(tasks)]
        for strategy in STRATEGIES
    }
    lives[MEMORY] = [live(family, memory, memory_P, "none", *task, index) for index, task in enumerate(tasks)]
    return {
        "name": name,
        "seed": seed,
        "returns": {row: [returns for returns, _ in found] for row, found in lives.items()},
        "alarms": [alarms for _, alarms in lives["meta"]],
        "costs": {"meta-training": meta_costs, MEMORY: memory_costs},
        "tasks": tasks,
    }


def train(config: TrainConfig, budget: int | None) -> tuple[np.ndarray, dict[str, float]]:
    """Meta-parameters after the configuration's iterations, or after ``budget`` environment steps; and what it cost."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trainer = MetaTrainer(config.override({"run.dir": folder}))
        pool = LocalPool(config, print)
        while trainer.iteration < config.iterations if budget is None else trainer.num_env_steps < budget:
            trainer.step(pool)
    return trainer.params_P, {"env_steps": trainer.num_env_steps, "cpu_s": time.process_time() - began}


def pairs(family: TaskFamily, count: int) -> list[tuple[Task, Task]]:
    """Held-out tasks before and after the change. A sign always flips: by chance it would in every other life."""
    tasks = family.tasks("test", 2 * count)
    lives = []
    for before, after in zip(tasks[:count], tasks[count:], strict=True):
        flipped = {name: -before[name] for name in before if name == "force_sign"}
        lives.append((before, {**after, **flipped}))
    return lives


def live(
    family: TaskFamily, config: TrainConfig, params_P: np.ndarray, strategy: str, before: Task, after: Task, index: int
) -> tuple[list[float], list[int]]:
    """Mean return of each rollout, and after which the adapter took the task for a new one.

    The random streams are the same for all strategies; nobody tells the adapter which task it is.
    """
    policy = make_policy(family, config)
    policy.load_state_dict(policy.from_vector(params_P))
    life, rng = Life(policy, config, strategy), make_rng(config.seed, Stream.EVALUATE, STREAM, index)
    vector = family.make_vector(config.env.episodes_per_task)
    returns, alarms = [], []
    for number in range(BEFORE + AFTER):
        vector.set_tasks(before if number < BEFORE else after)
        rollout = life.play(vector, family.horizon, rng)
        returns.append(round(rollout.mean_return, 3))
        if life.learn(rollout)["new_task"] is not None:
            alarms.append(number)
    return returns, alarms


def table(name: str, runs: list[dict[str, Any]]) -> str:
    """The report on one family, in markdown."""
    returns = {row: np.array([run["returns"][row] for run in runs]) for row in runs[0]["returns"]}
    columns = {
        row: {c: x_RKN[:, :, span].mean(axis=2) for c, span in COLUMNS.items()} for row, x_RKN in returns.items()
    }
    seeds, lives, _ = returns["meta"].shape
    costs = []
    for label in runs[0]["costs"]:
        steps, cpu_s = (np.mean([run["costs"][label][key] for run in runs]) for key in ("env_steps", "cpu_s"))
        costs.append(f"{label}: {steps / 1e6:.2f} M steps, {cpu_s:.0f} CPU-s")
    lines = [
        f"{name}: {FAMILIES[name]}; {seeds} training seeds x {lives} lives ({'; '.join(costs)})",
        "",
        f"| | {' | '.join(COLUMNS)} |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for row, cells in columns.items():
        lines.append(f"| {row} | {' | '.join(_text(bootstrap(x_RK)) for x_RK in cells.values())} |")
    for a, b in (("meta", "none"), ("online", "none"), ("meta", "online"), ("meta", MEMORY)):
        cells = [_text(paired_difference(columns[a][c], columns[b][c])) for c in COLUMNS]
        lines.append(f"| **{a} - {b}** | {' | '.join(cells)} |")
    difference = paired_difference(columns["meta"]["all after"], columns["none"]["all after"])
    lines += ["", f"meta above none, all after: {_text(difference)} {verdict(difference.low > 0)}"]
    return "\n".join([*lines, "", _alarm_text(runs)])


def _alarm_text(runs: list[dict[str, Any]]) -> str:
    alarms = [life for run in runs for life in run["alarms"]]
    fall = np.concatenate([np.diff(run["returns"]["meta"])[:, BEFORE - 1] for run in runs])
    noticed = np.array([BEFORE in life for life in alarms])
    falls = [f"{fall[which].mean():+.0f}" if which.any() else "-" for which in (noticed, ~noticed)]
    later = sum(BEFORE not in life and any(number > BEFORE for number in life) for life in alarms)
    false = sum(number < BEFORE for life in alarms for number in life)
    again = sum(max(0, sum(number >= BEFORE for number in life) - 1) for life in alarms)
    return (
        f"meta took the first rollout after the change for a new task in {noticed.sum()} of {len(alarms)} lives "
        f"(change of return at the shock, mean: {falls[0]} there, {falls[1]} in the other lives), a later one in "
        f"{later}; alarms before the change: {false} in {len(alarms) * BEFORE} rollouts; further alarms after it: "
        f"{again} in {len(alarms) * AFTER}"
    )


def _text(interval: Interval) -> str:
    return "{} [{}, {}]".format(*map(round, interval))
