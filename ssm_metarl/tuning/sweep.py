"""A sweep from its file to its results: ``ssm-metarl tune``.

    load_sweep ─► opened folder ─► Ledger ─► search (Ray Tune) ─► table, comparison on test tasks, files

After a kill the same with ``--resume``: the Ledger reads from the folder what is done, and only the rest is searched.
"""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray

from ssm_metarl.config import ConfigError, dump_yaml
from ssm_metarl.deployment import load_policy
from ssm_metarl.env_runner.tasks import TaskError, make_family
from ssm_metarl.runtime.checkpoint import CheckpointError
from ssm_metarl.runtime.driver import RunStopped
from ssm_metarl.runtime.metrics import params_sha256
from ssm_metarl.runtime.pool import PoolError
from ssm_metarl.runtime.process import ENVIRONMENT, limit_threads
from ssm_metarl.runtime.ray_start import Watch, count_cpus, forsake, joined_address, start_ray
from ssm_metarl.runtime.signals import Abandoned, StopSignals
from ssm_metarl.tuning import page
from ssm_metarl.tuning.compare import compare
from ssm_metarl.tuning.config import Sweep, load_sweep
from ssm_metarl.tuning.folder import SweepFolder, opened, trial_name
from ssm_metarl.tuning.ledger import Ledger
from ssm_metarl.tuning.records import OVER, SweepRecord, TrialRecord
from ssm_metarl.tuning.search import most_at_once, search
from ssm_metarl.tuning.table import Display, option_text, ranked, settings_text, table, to_csv

BEST, RESULTS, REPORT = "best.yaml", "results.csv", "report.html"
REDRAW_S = 0.5


def run_sweep(path: Path, overrides: Mapping[str, Any], resume: bool) -> int:
    """Runs the sweep in a file, prints its table, and writes ``results.csv``, ``best.yaml`` and ``report.html``.

    Args:
        path: the sweep's file. overrides: dotted settings laid over its base. resume: go on with one that exists.

    Returns the exit status: 1 if every trial failed.

    Raises:
        ConfigError: wrong from the start. PoolError: no trial could begin. RunStopped: a signal came.
        CheckpointError: what was saved cannot be read. OSError: nothing can be written any more.
    """
    limit_threads()
    sweep, display, stop = load_sweep(path, overrides), Display(), StopSignals()
    _require_family(sweep, path)
    with opened(sweep, resume) as folder, stop:
        ledger = Ledger(sweep, folder, display.say)
        _require_same_policy(sweep, ledger)
        try:
            with ExitStack() as stack:
                if not ledger.is_done or sweep.num_workers:
                    watch = stack.enter_context(_ray(sweep))
                    stop.listen()  # Ray has taken SIGTERM for itself when it started.
                if not ledger.is_done:
                    _search(sweep, folder, ledger, display, stop, watch)
                with stop.abandonable():
                    return _finish(sweep, folder, ledger)
        except Abandoned:
            stop.quiet()
            display.end()
            name = signal.Signals(stop.received).name
            raise RunStopped(f"stopped by {name}: {_kept(ledger)}", stop.received) from None
        except PoolError as error:
            display.end()
            raise PoolError(f"{error}; {_kept(ledger)}") from error


@contextmanager
def _ray(sweep: Sweep) -> Iterator[Watch]:
    """Ray, joined or started with all CPUs; ended afterwards, or left to itself if it is gone."""
    cpus = 1
    if not ray.is_initialized() and joined_address() is None:
        cpus = max(1, int(count_cpus()))
        _require_room(sweep, [float(cpus)])
    owns = start_ray(cpus, {**ENVIRONMENT, "RAY_CHDIR_TO_TRIAL_DIR": "0"})
    watch = Watch()
    try:
        yield watch
    finally:
        watch.close()
        if watch.gone:
            forsake()
        elif owns:
            ray.shutdown()


def _search(
    sweep: Sweep, folder: SweepFolder, ledger: Ledger, display: Display, stop: StopSignals, watch: Watch
) -> None:
    """Works on the trials that are left."""
    nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    concurrent = min(_require_room(sweep, nodes), sweep.max_concurrent or sweep.count)
    begun = len(ledger.record().trials)
    going_on = f", {begun} of them begun" if begun else ""
    display.say(f"{sweep.count} trials{going_on}, {concurrent} at a time: {folder.where}")
    shown_at = 0.0

    def changed() -> None:
        nonlocal shown_at
        watch.check()
        if time.monotonic() - shown_at > REDRAW_S:
            shown_at = time.monotonic()
            display.update(ledger.record())

    if stop.requested:
        raise Abandoned
    with stop.abandonable():
        search(sweep, folder.where, ledger, concurrent, changed, display.say)
    display.update(ledger.record())
    display.end()


def _finish(sweep: Sweep, folder: SweepFolder, ledger: Ledger) -> int:
    """Says what the sweep came to, and writes it down."""
    record = ledger.record()
    folder.storage.write(RESULTS, to_csv(record).encode())
    print("\n" + "\n".join(table(record, ranked(record))) + "\n", flush=True)
    failures = [trial.cause for trial in record.trials if trial.state == "failed"]
    if len(failures) == sweep.count:
        print(f"error: every trial failed; the first because: {failures[0]}", file=sys.stderr)
        return 1
    if not ledger.is_done:
        print(f"budget_s = {sweep.budget_s:g} is over before all trials are; --resume goes on with them\n", flush=True)
    if record.best is not None:
        best = ledger.trial(record.best)
        print(f"best: trial {trial_name(best.index)}: {settings_text(best.settings, width=None)}\n", flush=True)
        folder.storage.write(BEST, _best_yaml(sweep, folder, best).encode())
        record = ledger.record(_comparison(sweep, folder, record))
        print(f"{record.comparison}\n", flush=True)
    folder.storage.write(REPORT, page.render(record).encode())
    print(_done(folder, record, ledger), flush=True)
    return 0


def _comparison(sweep: Sweep, folder: SweepFolder, record: SweepRecord) -> str:
    try:
        return compare(sweep, folder, record)
    except (ConfigError, CheckpointError, TaskError, PoolError) as error:
        # The search is done and written down: what cannot be measured now must not make it a failure.
        return f"no comparison with the base: {error}"


def _best_yaml(sweep: Sweep, folder: SweepFolder, best: TrialRecord) -> str:
    """The best trial's configuration, for ``train --config``, under a comment that says where it is from."""
    config = sweep.base.override({**best.settings, "run.name": None})
    name, score = trial_name(best.index), best.score(sweep.metric)
    use = f"ssm-metarl train --config {BEST}"
    if sweep.policy:
        options = " ".join(f"--{key} {shlex.quote(option_text(value))}" for key, value in best.settings.items())
        use = f"ssm-metarl adapt {sweep.policy} {options}"
    lines = [
        f"trial {name} of the sweep {folder.where}, the best of its {sweep.count}",
        f"{sweep.metric} on validation tasks: {score:.6g}, after {best.iterations} iterations",
        f"params_sha256 {best.params_sha256}",
        use,
    ]
    return "".join(f"# {line}\n" for line in lines) + dump_yaml(config)


def _done(folder: SweepFolder, record: SweepRecord, ledger: Ledger) -> str:
    if record.best is None:
        return f"done: {len(record.trials)} trials, none went to its end, {folder.where}"
    best = ledger.trial(record.best)
    name, post = trial_name(best.index), best.curve[-1].post
    return f"done: {len(record.trials)} trials, best trial {name} post {post:.4g}, {folder.where}"


def _kept(ledger: Ledger) -> str:
    """How to go on."""
    over = sum(trial.state in OVER for trial in ledger.record().trials)
    return f"{over} of {ledger.sweep.count} trials are over; the same command with --resume goes on from there"


def _require_family(sweep: Sweep, path: Path) -> None:
    """Raises ConfigError: the environment cannot be made."""
    try:
        make_family(sweep.base.env)
    except TaskError as error:
        raise ConfigError(f"{path}: base: {error}") from error


def _require_same_policy(sweep: Sweep, ledger: Ledger) -> None:
    """Raises ConfigError: trials that are over were of a policy with other parameters."""
    if not sweep.policy:
        return
    now = params_sha256(load_policy(sweep.policy).policy.to_vector())
    if any(trial.params_sha256 not in ("", now) for trial in ledger.record().trials):
        problem = f"policy: {sweep.policy} has other parameters than when the sweep began"
        raise ConfigError(f"{problem}; choose another run.name")


def _require_room(sweep: Sweep, nodes: list[float]) -> int:
    """How many trials such machines take at a time. Raises ConfigError: not even one."""
    if count := most_at_once(sweep, nodes):
        return count
    each, cpus = max(1, sweep.num_workers), sweep.base.workers.cpus_per_worker
    raise ConfigError(
        f"workers: a trial needs {each} x {cpus:g} CPUs (workers.num_workers x workers.cpus_per_worker), and there are "
        f"{' + '.join(f'{it:g}' for it in nodes) or 'none'}; ask for fewer or smaller workers"
    )
