"""Which settings trials have: drawn at random, every combination, or proposed by Optuna. Trial 0 has the base's."""

from __future__ import annotations

import math
from itertools import product
from typing import Any, Protocol

import numpy as np

from ssm_metarl.config import ConfigError
from ssm_metarl.runtime.life import adaptation_config
from ssm_metarl.tuning.config import Sweep
from ssm_metarl.tuning.records import TrialRecord
from ssm_metarl.tuning.space import Range, value_of

Settings = dict[str, Any]


class Proposer(Protocol):
    """Where the settings of trials come from."""

    def propose(self, index: int) -> Settings:
        """Dotted key -> value for a trial that has none yet."""

    def learn(self, trial: TrialRecord) -> None:
        """A trial is over."""


def make_proposer(sweep: Sweep) -> Proposer:
    """The one that ``search`` names. Raises ConfigError: its package is missing."""
    return {"random": Random, "grid": Grid, "optuna": Optuna}[sweep.search](sweep)


def base_settings(sweep: Sweep) -> Settings:
    """What the base has where trials vary; for a null that stands for a number, the number."""
    settings = {key: value_of(sweep.base, key) for key in sweep.ranges}
    if "adapter.lr" in settings:
        settings["adapter.lr"] = adaptation_config(sweep.base, sweep.base.adapter.strategy).lr
    return settings


class Random:
    """Settings of trial i are a function of the sweep's seed and i alone: a longer sweep begins like a shorter one."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep

    def propose(self, index: int) -> Settings:
        """See `Proposer`."""
        sweep = self._sweep
        if index == 0:
            return base_settings(sweep)
        return {
            key: it.draw(np.random.default_rng(np.random.SeedSequence(sweep.seed, spawn_key=(index, position))))
            for position, (key, it) in enumerate(sweep.ranges.items())
        }

    def learn(self, trial: TrialRecord) -> None:
        """Nothing to learn."""


class Grid:
    """Every combination of choices, the last setting changing fastest; the base's own is trial 0 and comes once."""

    def __init__(self, sweep: Sweep) -> None:
        base = base_settings(sweep)
        self._all = [base]
        for values in product(*(it.arguments for it in sweep.ranges.values())):
            settings = dict(zip(sweep.ranges, values, strict=True))
            if settings != base:
                self._all.append(settings)

    def propose(self, index: int) -> Settings:
        """See `Proposer`."""
        return self._all[index]

    def learn(self, trial: TrialRecord) -> None:
        """Nothing to learn."""


class Optuna:
    """Optuna's TPE, asked for settings and told the scores. What it proposes depends on which trials are over by then:
    with more than one at a time, on their timing. (What a trial comes to, given its settings, does not.)

    A trial that ended early is told as pruned, one that failed as failed.
    """

    def __init__(self, sweep: Sweep) -> None:
        try:
            import optuna
        except ModuleNotFoundError as error:
            raise ConfigError(f'search: optuna needs a package: {error}; pip install "ssm-metarl[optuna]"') from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._sweep = optuna, sweep
        self._distributions = {key: _distribution(optuna, it) for key, it in sweep.ranges.items()}
        sampler = optuna.samplers.TPESampler(seed=sweep.seed)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._asked: dict[int, Any] = {}

    def propose(self, index: int) -> Settings:
        """See `Proposer`."""
        if index == 0:
            return base_settings(self._sweep)
        self._asked[index] = self._study.ask(self._distributions)
        return {key: it.at(self._asked[index].params[key]) for key, it in self._sweep.ranges.items()}

    def learn(self, trial: TrialRecord) -> None:
        """See `Proposer`."""
        states = self._optuna.trial.TrialState
        score = trial.score(self._sweep.metric)
        state = {"finished": states.COMPLETE, "stopped": states.PRUNED}.get(trial.state, states.FAIL)
        if not math.isfinite(score):
            state = states.FAIL
        asked = self._asked.pop(trial.index, None)
        if asked is not None:
            if state == states.PRUNED:
                asked.report(score, trial.iterations)
            self._study.tell(asked, score if state == states.COMPLETE else None, state)
            return
        # Of an earlier process, or the base, which need not lie in the space.
        params = {key: it.place(trial.settings[key]) for key, it in self._sweep.ranges.items()}
        if state == states.COMPLETE and None not in params.values():
            create = self._optuna.trial.create_trial
            self._study.add_trial(create(params=params, distributions=self._distributions, value=score))


def _distribution(optuna: Any, it: Range) -> Any:
    kinds = optuna.distributions
    if it.kind == "choice":
        # By place: a choice may be a list, which Optuna does not take.
        return kinds.CategoricalDistribution(tuple(range(len(it.arguments))))
    if it.kind == "int_uniform":
        return kinds.IntDistribution(*it.arguments)
    return kinds.FloatDistribution(*it.arguments, log=it.kind == "loguniform")
