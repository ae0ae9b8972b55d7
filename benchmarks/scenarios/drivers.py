"""Drivers that are killed or told to stop: runs in processes of their own, as a user starts them."""

from __future__ import annotations

import random
import re
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import faults
from faults import Fault
from processes import Driver, driver, wait_until

from scenarios.common import START_UP_S, Record, command, done_line, iterations_in, make_config, undisturbed
from ssm_metarl.runtime import checkpoint
from ssm_metarl.runtime.storage import open_storage

SLOWER: dict[str, Any] = {"env.horizon": 20, "env.episodes_per_task": 40}
"""Iterations of some tenths of a second, so that something may happen in their midst."""
STOPS = {"SIGTERM": (signal.SIGTERM, 143), "SIGINT": (signal.SIGINT, 130)}
GONE_WITHIN_S = 10.0
AGENTS = re.compile("ray::(Dashboard|RuntimeEnv)Agent")
"""Processes of Ray that hold no resources; after a SIGKILL they try for a minute to reach the dead cluster."""
AGENTS_GONE_WITHIN_S = 90.0


def killed_drivers(
    folder: Path, iterations: int, kills: int, every: tuple[int, ...], wait_for_agents: bool = True, seed: int = 0
) -> Record:
    """SIGKILL of the driver in each of the first ``kills`` iterations, resumed by the same command until it is done."""
    record = Record("killed drivers", "same hash, each iteration once in metrics, no orphan", len(every) * kills)
    rng, settings = random.Random(seed), {"iterations": iterations, "workers.num_workers": 2, **SLOWER}
    expected = undisturbed(folder, settings)
    for interval in every:
        name = f"every-{interval}"
        words = command(folder, name, {**settings, "checkpoint.every": interval})
        for iteration in range(1, kills + 1):
            with driver(*words) as program:
                program.wait_for(rf"^iteration +{iteration}/")
                time.sleep(rng.uniform(0.0, 0.5))
                program.signal(signal.SIGKILL)
                status, left = program.finish(), program.left(GONE_WITHIN_S, but=AGENTS)
                what = f"{name}, killed in iteration {iteration}"
                record.check(status in (-signal.SIGKILL, 0), f"{what}: exit status {status}: {program.stderr[-300:]}")
                record.check(not left, f"{what}: left {left}")
                if wait_for_agents and (iteration, interval) == (1, every[0]):
                    left = program.left(AGENTS_GONE_WITHIN_S)
                    record.check(not left, f"{what}: left {left} after {AGENTS_GONE_WITHIN_S:g} s")
        with driver(*words) as program:
            status = program.finish()
            record.check(status == 0, f"{name}, last: exit status {status}: {program.stderr[-300:]}")
            record.check(done_line(program) == expected, f"{name}: {done_line(program)} instead of {expected}")
        found = iterations_in(folder / name)
        record.check(found == list(range(iterations)), f"{name}: metrics have the iterations {found}")
    record.detail = f"{iterations} iterations, checkpoint.every {' and '.join(map(str, every))}, 2 workers"
    return record


def stopped_drivers(
    folder: Path, moments: int, names: tuple[str, ...] = tuple(STOPS), resumed: int = 3, seed: int = 0
) -> Record:
    """Signals at random moments of a run's life, its start and its end included; some are resumed to their end."""
    record = Record("signals", "exit status, loadable, no orphan after 10 s, same hash", moments * len(names))
    rng, settings = random.Random(seed), {"iterations": 12, "workers.num_workers": 2, "checkpoint.every": 2, **SLOWER}
    expected = undisturbed(folder, settings)
    with driver(*command(folder, "whole", settings)) as program:
        program.finish()
        lifetime = time.monotonic() - program.began
    seen: Counter[str] = Counter()
    for name in names:
        for moment in range(moments):
            run, wait = f"{name}-{moment}", rng.uniform(0.1, 1.0) * lifetime
            with driver(*command(folder, run, settings)) as program:
                time.sleep(wait)
                # A terminal sends Ctrl-C to all of the foreground, Ray's processes included.
                program.signal(STOPS[name][0], group=name == "SIGINT")
                what = f"{name} after {wait:.1f} of {lifetime:.1f} s"
                seen[_judge_stop(record, program, what, STOPS[name], folder / run)] += 1
            if moment < resumed:
                with driver(*command(folder, run, settings)) as program:
                    program.finish()
                    record.check(done_line(program) == expected, f"{what}, resumed: {program.stderr[-300:]}")
                    found = iterations_in(folder / run)
                    record.check(found == list(range(12)), f"{what}, resumed: metrics have the iterations {found}")
    record.detail = f"{moments} moments each; {', '.join(f'{count} {how}' for how, count in sorted(seen.items()))}"
    return record


def _judge_stop(record: Record, program: Driver, what: str, stop: tuple[int, int], run: Path) -> str:
    """Checks a program that got a signal; returns how it ended."""
    number, status = stop
    began = time.monotonic()
    try:
        found = program.finish(START_UP_S * 2)
    except Exception as error:  # a run that does not end is a finding; the next ones shall be seen, too
        record.check(False, f"{what}: {error}")
        return "never"
    seconds = time.monotonic() - began
    left = program.left(GONE_WITHIN_S)
    record.check(not left, f"{what}: left {left}")
    record.check("Traceback" not in program.stderr, f"{what}: traceback: ...{program.stderr[-300:]}")
    reached = len(re.findall(r"^iteration", program.stdout, re.MULTILINE))
    loaded = _newest(run)
    record.check(loaded is not None or reached < 2, f"{what}: {reached} iterations, and no checkpoint")
    if found == 0:
        record.check(done_line(program) is not None, f"{what}: exit status 0, but it was not done")
        return "after the end"
    # A shell reports a signal that nothing handled in the same way.
    record.check(found in (status, -number), f"{what}: exit status {found}: {program.stderr[-300:]}")
    # While Ray is starting, a signal waits for that.
    limit_s = GONE_WITHIN_S if reached else START_UP_S
    record.check(seconds < limit_s, f"{what}: ended only after {seconds:.1f} s")
    if found == -number:
        return "before Python listened"
    record.check("stopped by" in program.stderr, f"{what}: says {program.stderr!r}")
    return "in training" if reached else "in start-up"


def stopped_while_hung(folder: Path, names: tuple[str, ...] = tuple(STOPS)) -> Record:
    """A signal while a worker hangs, far from its deadline: the iteration is abandoned when the grace time is over."""
    record = Record("signal in a hung call", "abandons the iteration, saves, ends within 10 s", len(names))
    settings = {**faults.ENV, "iterations": 3, "workers.num_workers": 1, "checkpoint.every": 3}
    for name in names:
        number, status = STOPS[name]
        faults.write_plan(make_config(folder, **settings), [Fault("hang", iteration=1, times=1)])
        with driver(*command(folder, name, settings)) as program:
            wait_until(faults.count_strikes, 90.0, "the fault did not strike")
            program.signal(number, group=name == "SIGINT")
            _judge_stop(record, program, name, (number, status), folder / name)
            loaded = _newest(folder / name)
            record.check(loaded == 1, f"{name}: the newest checkpoint is of iteration {loaded} instead of 1")
    record.detail = ", ".join(names)
    return record


def _newest(run: Path) -> int | None:
    """Iterations done in the newest checkpoint that can be loaded."""
    found = checkpoint.load_newest(open_storage(run / "checkpoints"), lambda _: None)
    return found[0].iteration if found else None
