"""`Ledger`: what is known of a sweep's trials, and what follows from it: who works next, who ends, who waits.

It knows no Ray and no clock. All of it is in the trials' folders too, and is read again from there after a kill.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ssm_metarl.tuning.config import Sweep
from ssm_metarl.tuning.folder import SweepFolder, trial_name
from ssm_metarl.tuning.propose import Proposer, make_proposer
from ssm_metarl.tuning.records import Point, State, SweepRecord, TrialRecord
from ssm_metarl.tuning.results import Report, TrialResults
from ssm_metarl.tuning.rules import Curve, decide


@dataclass
class _Trial:
    results: TrialResults
    at_work: bool = False
    trouble: str = ""
    """Why it cannot go on in this process; another may try again."""
    over: State | None = None
    blocked: bool = False
    """It waits at a rung for earlier trials."""


class Ledger:
    """The trials of a sweep.

    Args:
        sweep: the sweep.
        folder: its folder, from which it begins.
        warn: told what in it cannot be used.

    Raises:
        CheckpointError: a trial's folder cannot be read. ConfigError: the search needs a package.
    """

    def __init__(self, sweep: Sweep, folder: SweepFolder, warn: Callable[[str], None]) -> None:
        self.sweep, self._folder = sweep, folder
        self._proposer: Proposer = make_proposer(sweep)
        self._trials: list[_Trial | None] = []
        for index in range(sweep.count):
            try:
                results = folder.read(index)
            except ValueError as error:
                warn(f"trial {trial_name(index)} begins again: {error}")
                folder.clear(sweep, index)
                results = None
            self._trials.append(results and _Trial(results))
        self._settle()

    @property
    def is_done(self) -> bool:
        """Whether no trial has anything left to do."""
        return all(trial is not None and trial.over for trial in self._trials)

    def next(self) -> int | None:
        """The trial to work on now: the lowest that is new or may go on. None: none, for now or for good."""
        for index, trial in enumerate(self._trials):
            if trial is None or not (trial.over or trial.at_work or trial.blocked):
                return index
        return None

    def begin(self, index: int) -> None:
        """Somebody works on a trial; a new one gets its settings and its folder. Raises OSError."""
        if self._trials[index] is None:
            results = TrialResults(self._proposer.propose(index))
            self._folder.write(index, results)
            self._trials[index] = _Trial(results)
        self._trials[index].at_work = True

    def report(self, index: int, reports: Sequence[Report]) -> bool:
        """Takes all reports of a trial so far. Returns whether it goes on at once."""
        trial = self._trials[index]
        trial.results = TrialResults(trial.results.settings, tuple(reports))
        self._settle()
        return not (trial.over or trial.blocked)

    def fail(self, index: int, failed: str = "", trouble: str = "") -> None:
        """A trial is given up, with the reports that it has.

        Args:
            failed: why it cannot go on, whoever tries. trouble: why it cannot for now.
        """
        trial = self._trials[index]
        trial.results, trial.trouble = replace(trial.results, failed=failed), trouble
        self._settle()

    def leave(self, index: int) -> None:
        """Nobody works on a trial any more."""
        self._trials[index].at_work = False

    def trial(self, index: int) -> TrialRecord:
        """A trial that has begun."""
        trial = self._trials[index]
        state = trial.over or ("running" if trial.at_work else "waiting")
        return trial.results.record(index, state, trial.results.failed or trial.trouble)

    def record(self, comparison: str = "") -> SweepRecord:
        """The sweep, with all trials that have begun."""
        trials = tuple(self.trial(index) for index, trial in enumerate(self._trials) if trial is not None)
        sweep = self.sweep
        return SweepRecord(sweep.name, sweep.space, sweep.metric, sweep.iterations, trials, self.best, comparison)

    @property
    def best(self) -> int | None:
        """The trial with the highest score of those that went to their end; the first of equals."""
        metric, best = self.sweep.metric, None
        for index, trial in enumerate(self._trials):
            if trial is None or trial.over != "finished":
                continue
            score = self.trial(index).score(metric)
            if math.isfinite(score) and (best is None or score > self.trial(best).score(metric)):
                best = index
        return best

    def _settle(self) -> None:
        """Draws the conclusions from what is known, in the order of the trials."""
        curves: list[Curve] = []
        ended: list[bool] = []
        for index, trial in enumerate(self._trials):
            if trial is not None and not trial.over:
                self._judge(index, trial, curves, ended)
                if trial.over:
                    self._proposer.learn(self.trial(index))
            curves.append(Curve({}) if trial is None else self._curve(trial))
            ended.append(trial is not None and trial.over is not None)

    def _judge(self, index: int, trial: _Trial, curves: Sequence[Curve], ended: Sequence[bool]) -> None:
        own = self._curve(trial)
        trial.blocked = False
        if trial.results.failed or trial.trouble:
            trial.over = "failed"
        elif own.end >= self.sweep.iterations:
            trial.over = "finished"
        elif index > 0 and own.end > 0 and self.sweep.is_rung(own.end):
            decision = decide(self.sweep.scheduler, own.end, own, curves, ended)
            trial.blocked = decision == "wait"
            trial.over = "stopped" if decision == "stop" else None

    def _curve(self, trial: _Trial) -> Curve:
        points = (Point(it.iteration, it.pre, it.post) for it in trial.results.reports)
        return Curve({point.iteration: point.value(self.sweep.metric) for point in points})
