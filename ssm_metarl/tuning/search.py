"""Ray Tune around the `Ledger`: who hands out trials, who ends them, who listens.

To Tune, a trial is a stretch of work on one of ours: from where it stands until it is over or must wait for others. It
comes back as another trial of Tune's when it may go on, or after a kill. So to wait, to resume and to begin are one and
the same (Tune starts every trial that it knows; only a searcher can hold one back), and nothing is ever read from
Tune's own files, which are pickles, and written in place.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from ssm_metarl.config import ConfigError
from ssm_metarl.runtime.pool import PoolError
from ssm_metarl.tuning.config import Sweep
from ssm_metarl.tuning.ledger import Ledger
from ssm_metarl.tuning.results import Report
from ssm_metarl.tuning.trainable import MetaTrainable, bundles

MAX_RESTARTS = 2
"""A trial whose process dies is taken up again so often."""
NOTICE_S = 20.0
_QUIET = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # The new one prints a head at verbose=0 too.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000000",
}


def search(
    sweep: Sweep, where: str, ledger: Ledger, concurrent: int, changed: Callable[[], None], say: Callable[[str], None]
) -> None:
    """Works on the trials until all are over, or ``budget_s`` is; Ray is running.

    Args:
        where: the sweep's folder.
        concurrent: trials at a time.
        changed: called many times a second, and whenever something has. say: told of waiting.

    Raises:
        ConfigError: a machine does not see the folder. PoolError: nobody could begin. OSError: nothing can be written.
    """
    hands = _Hands(sweep, where, ledger)
    with tempfile.TemporaryDirectory(prefix="ssm_metarl-tune-", ignore_cleanup_errors=True) as scratch, _quiet():
        tuner = tune.Tuner(
            MetaTrainable,
            tune_config=tune.TuneConfig(
                search_alg=hands,
                scheduler=_Judge(hands),
                num_samples=-1,
                max_concurrent_trials=concurrent,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=scratch,
                callbacks=[_Listener(hands, changed, say)],
                failure_config=tune.FailureConfig(max_failures=MAX_RESTARTS),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except _Ended as ended:
            raise ended.error from None


def most_at_once(sweep: Sweep, nodes: list[float]) -> int:
    """How many trials machines with so many CPUs take side by side: their bundles are put where they first fit."""
    free, wanted = list(nodes), bundles(sweep.num_workers, sweep.base.workers.cpus_per_worker)
    for count in range(sweep.count):
        for bundle in wanted:
            place = next((index for index, cpus in enumerate(free) if cpus + 1e-9 >= bundle["CPU"]), None)
            if place is None:
                return count
            free[place] -= bundle["CPU"]
    return sweep.count


class _Ended(BaseException):
    """Takes an error past Tune, which would clean up, with patience, on a Ray that may be gone."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _NotWritten:
    """Tune pickles what it is given; nothing of it is read back."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Hands(_NotWritten, Searcher):
    """Hands out the trials that may go on."""

    def __init__(self, sweep: Sweep, where: str, ledger: Ledger) -> None:
        super().__init__()
        workers = {"num_workers": sweep.num_workers, "cpus_per_worker": sweep.base.workers.cpus_per_worker}
        self.sweep, self.ledger, self._common = sweep, ledger, {"sweep": where, **workers}
        self._until = time.monotonic() + sweep.budget_s if sweep.budget_s else float("inf")
        self._index_of: dict[str, int] = {}
        self.fatal = ""

    @property
    def out_of_time(self) -> bool:
        """Whether ``budget_s`` is over."""
        return time.monotonic() > self._until

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """What the next trial of Tune's is to work on."""
        # One at least, however short the time: of a sweep without trials Tune makes an analysis, from its own pickles.
        if self.ledger.is_done or (self.out_of_time and self._index_of):
            return Searcher.FINISHED
        index = self.ledger.next()
        if index is None:
            return None
        self.ledger.begin(index)
        self._index_of[trial_id] = index
        return {**self._common, "index": index}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Nobody works on it any more."""
        self.ledger.leave(self._index_of[trial_id])

    def save(self, checkpoint_path: str) -> None:
        """Nothing: it is all in the sweep's folder."""


class _Judge(_NotWritten, FIFOScheduler):
    """Ends a stretch of work when the trial is over, or must wait."""

    def __init__(self, hands: _Hands) -> None:
        super().__init__()
        self._hands = hands

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Writes a report into the ledger, and does what follows."""
        hands, index = self._hands, trial.config["index"]
        hands.fatal = hands.fatal or result["fatal"]
        if result["reports"]:
            goes_on = hands.ledger.report(index, [Report(**report) for report in result["reports"]])
        else:
            goes_on = False
            hands.ledger.fail(index, failed=result["failed"], trouble=result["trouble"] or result["fatal"])
        return TrialScheduler.CONTINUE if goes_on and not hands.out_of_time else TrialScheduler.STOP


class _Listener(_NotWritten, tune.Callback):
    """Hears of everything that happens in Tune."""

    def __init__(self, hands: _Hands, changed: Callable[[], None], say: Callable[[str], None]) -> None:
        self._hands, self._changed, self._say = hands, changed, say
        self._idle_since, self._noticed = time.monotonic(), False

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Its process died too often, or raised what it should not."""
        limit = f"workers.task_deadline_s = {self._hands.sweep.base.workers.task_deadline_s:g}"
        cause = f"its process failed {trial.num_failures} times (or a call outlived {limit}): {_cause(trial)}"
        self._hands.ledger.fail(trial.config["index"], trouble=cause)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Something may have happened."""
        try:
            self._check({trial.status for trial in trials})
        except (ConfigError, PoolError) as error:
            raise _Ended(error) from error

    def _check(self, states: set[str]) -> None:
        """Raises what ends the sweep."""
        if self._hands.fatal:
            raise ConfigError(self._hands.fatal)
        self._changed()
        if Trial.RUNNING in states or Trial.PENDING not in states:
            self._idle_since = time.monotonic()
            return
        waited, limit = time.monotonic() - self._idle_since, self._hands.sweep.base.workers.start_timeout_s
        if waited > limit:
            raise PoolError(f"no trial could begin within workers.start_timeout_s = {limit:g} s; {self._resources()}")
        if waited > NOTICE_S and not self._noticed:
            self._noticed = True
            self._say(self._resources())

    def _resources(self) -> str:
        workers = self._hands.sweep.base.workers
        free, total = (found.get("CPU", 0) for found in (ray.available_resources(), ray.cluster_resources()))
        wanted = f"{max(1, self._hands.sweep.num_workers)} x {workers.cpus_per_worker:g} CPUs"
        return f"waiting for resources: a trial needs {wanted}, the cluster has {free:g} of {total:g} CPUs free"


def _cause(trial: Trial) -> str:
    """The last line of what Tune wrote down, as text; its pickle of the same is not read."""
    try:
        lines = [line.strip() for line in Path(trial.error_file).read_text(encoding="utf-8").splitlines()]
    except (OSError, TypeError, ValueError):
        return "nothing is known of it"
    last = next((line for line in reversed(lines) if line), "nothing is known of it")
    return last.partition("Worker exit detail: ")[2].partition(" Some common causes")[0] or last


@contextmanager
def _quiet() -> Iterator[None]:
    """Tune prints nothing, writes no logs of its own, and takes no signal."""
    before = {name: os.environ.get(name) for name in _QUIET}
    logger = logging.getLogger("ray.tune")
    level = logger.level
    os.environ.update(_QUIET)
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
