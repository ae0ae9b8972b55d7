"""The best trial against the base, on test tasks that neither has been chosen on. Paired by task.

Shape legend: K tasks, S adaptation steps, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssm_metarl.config import TrainConfig
from ssm_metarl.deployment import load_policy, load_run
from ssm_metarl.evaluation.statistics import Interval, bootstrap_mean, paired_difference
from ssm_metarl.runtime.checkpoint import CheckpointError
from ssm_metarl.runtime.metrics import params_sha256
from ssm_metarl.runtime.run_folder import open_folder
from ssm_metarl.tuning.config import Sweep
from ssm_metarl.tuning.folder import TRIALS, SweepFolder, trial_name
from ssm_metarl.tuning.records import Metric, SweepRecord, TrialRecord
from ssm_metarl.tuning.trials import held_out_returns
from ssm_metarl.types import SharedState

SPLIT = "test"
UNEQUAL = 1.1


@dataclass(frozen=True)
class Measured:
    """A trial on test tasks: mean returns before and after adaptation, each float64 [K]."""

    name: str
    pre_K: np.ndarray
    post_K: np.ndarray

    def scores_K(self, metric: Metric) -> np.ndarray:
        """What ``metric`` names, per task."""
        return {"pre_adaptation": self.pre_K, "post_adaptation": self.post_K, "gain": self.post_K - self.pre_K}[metric]


def compare(sweep: Sweep, folder: SweepFolder, record: SweepRecord) -> str:
    """The table of the best trial and the base on test tasks, and what it says, in one sentence. Empty: none is best.

    Raises:
        CheckpointError: a trial's last checkpoint cannot be used. ConfigError: its folder has vanished.
        TaskError: a task failed on every attempt. PoolError: no worker could be had, or kept.
    """
    trials = {trial.index: trial for trial in record.trials}
    if record.best is None:
        return ""
    base, best = trials[0], trials[record.best]
    if base.state != "finished":
        return f"no comparison with the base: trial {trial_name(0)} has {base.state}"
    if record.best == 0:
        return "The defaults, trial 000, are the best that was found."
    return describe(sweep, [_measure(sweep, folder, it) for it in (best, base)], [best, base])


def describe(sweep: Sweep, measured: list[Measured], trials: list[TrialRecord]) -> str:
    """The table and the sentence."""
    best, base = measured
    difference = paired_difference(best.scores_K(sweep.metric), base.scores_K(sweep.metric))
    rows = [(it.name, bootstrap_mean(it.pre_K), bootstrap_mean(it.post_K)) for it in measured]
    rows.append(("difference", paired_difference(best.pre_K, base.pre_K), paired_difference(best.post_K, base.post_K)))
    lines = [
        f"{sweep.base.env.id}, {len(best.pre_K)} {SPLIT} tasks, {_effort(sweep, trials)}",
        f"mean return [95 %, bootstrap over tasks]{'before adaptation':>22}{'after adaptation':>26}",
        *(f"{name:<34}{_cell(pre):>28}{_cell(post):>26}" for name, pre, post in rows),
        verdict(sweep, difference),
    ]
    return "\n".join(lines)


def verdict(sweep: Sweep, difference: Interval) -> str:
    """Whether the best settings beat those of the base on test tasks, in words."""
    what = {
        "post_adaptation": "the return after adaptation",
        "pre_adaptation": "the return before adaptation",
        "gain": "the gain of adaptation",
    }[sweep.metric]
    by = f"by {difference.mean:z.2f} in {what}, 95 % interval [{difference.low:z.2f}, {difference.high:z.2f}]"
    chance = (
        "(Over tasks, of this one policy.)" if sweep.policy else "(Over tasks; of one seed each, not of other seeds.)"
    )
    if difference.low > 0:
        said = f"The best settings beat the defaults {by}."
    elif difference.high < 0:
        said = f"The best settings do NOT beat the defaults: they are worse {by}."
    else:
        said = f"The best settings do NOT beat the defaults beyond chance: they differ {by}."
    return f"{said}\n{chance}"


def _final(sweep: Sweep, folder: SweepFolder, trial: TrialRecord) -> tuple[TrainConfig, SharedState]:
    """The configuration of a trial, and what it ended with."""
    if sweep.policy:
        config = folder.config(sweep, trial.index, trial.settings)
        return config, load_policy(sweep.policy).shared
    run = open_folder(folder.path(TRIALS, trial_name(trial.index)))
    config, shared = load_run(run.path, {})
    if params_sha256(shared.params_P) != trial.params_sha256:
        raise CheckpointError(f"{run.where} does not have the parameters of its last report any more")
    return config, shared


def _measure(sweep: Sweep, folder: SweepFolder, trial: TrialRecord) -> Measured:
    config, shared = _final(sweep, folder, trial)
    returns_KS = held_out_returns(config, shared, SPLIT, None if sweep.policy else "meta")
    label = "defaults" if trial.index == 0 else "best"
    return Measured(f"{label}, trial {trial_name(trial.index)}", returns_KS[:, 0], returns_KS[:, -1])


def _effort(sweep: Sweep, trials: list[TrialRecord]) -> str:
    """How much both have had."""
    if sweep.policy:
        return f"one policy, {sweep.iterations} calls of the Adapter"
    low, high = sorted(trial.num_env_steps for trial in trials)
    steps = f"{low:,} environment steps each" if low == high else f"{low:,} and {high:,} environment steps"
    # Episodes that end early make small differences, settings such as tasks_per_iteration large ones.
    return f"{sweep.iterations} iterations each, {steps}{', which is NOT equal' if high > UNEQUAL * low else ''}"


def _cell(interval: Interval) -> str:
    mean, low, high = (f"{value:z.2f}" if abs(value) < 999.995 else f"{value:.0f}" for value in interval)
    return f"{mean} [{low}, {high}]"
