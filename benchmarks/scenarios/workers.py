"""Workers that are many, few, killed, or wrong: a run in this process against the same run undisturbed."""

from __future__ import annotations

import random
import time
from pathlib import Path

import faults
from faults import Fault
from processes import kill, wait_until, worker_pids

from scenarios.common import ATTEMPTS, START_UP_S, Ear, Record, train
from ssm_metarl.env_runner.tasks import TaskError

PLACES = ("support rollout", "inner step", "query rollout", "between passes", "sending", "starting")
KINDS = ("raise", "hang", "nan", "nan-observation", "ragged", "short", "memory", "segfault", "exit", "kill")
DEADLINE_S = 4.0


def sameness(folder: Path, counts: tuple[int, ...], seeds: tuple[int, ...], presets: tuple[str, ...]) -> Record:
    """Runs with these numbers of workers have one hash per seed and preset, and every worker had its share."""
    record = Record("sameness", "one hash per seed and preset", len(counts) * len(seeds) * len(presets))
    for preset in presets:
        for seed in seeds:
            hashes = {}
            for count in counts:
                before = set(worker_pids())

                def wait_for_all(iteration: int, count: int = count, before: set[int] = before) -> None:
                    if iteration == 0:
                        wait_until(
                            lambda: len(set(worker_pids(ready=True)) - before) >= count, 120, f"{count} workers ready"
                        )

                settings = {"seed": seed, "algorithm": preset, "workers.num_workers": count, "tasks_per_iteration": 8}
                summary = train(folder, settings, ear=Ear(on_iteration=wait_for_all))
                hashes[count] = (summary.params_sha256, summary.pre, summary.post)
            record.check(len(set(hashes.values())) == 1, f"{preset}, seed {seed}: {hashes}")
    record.detail = f"workers {', '.join(map(str, counts))}; {len(seeds)} seeds; {', '.join(presets)}"
    return record


def killed_workers(folder: Path, n: int, places: tuple[str, ...] = PLACES, seed: int = 0) -> Record:
    """SIGKILL of one of two workers at each place of a promp run."""
    record = Record("killed workers", "same hash", n * len(places))
    rng, events = random.Random(seed), 0
    expected = train(folder, {**faults.ENV, "workers.num_workers": 0}).params_sha256
    for place in places:
        for trial in range(n):
            iteration, task, step = rng.randrange(2), rng.randrange(4), rng.randrange(8)
            where, rollout = {
                "support rollout": ("environment", 0),
                "query rollout": ("environment", 1),
                "inner step": ("inner", 0),
            }.get(place, (place, 0))
            victims: list[int] = []
            plan = [Fault("kill", iteration, task, rollout, step, where=where)] if place != "between passes" else []

            def between(now: int, done: int, total: int, when: int = iteration, victims: list[int] = victims) -> None:
                if (now, done) == (when, total):
                    victims.append(rng.choice(worker_pids()))
                    kill(victims[0])

            ear = Ear(on_task=between if not plan else None)
            summary = train(folder, {**faults.ENV, "workers.num_workers": 2}, plan, ear, disturbed=True)
            name = f"{place}, trial {trial} (iteration {iteration}, task {task}, step {step})"
            struck = faults.count_strikes() + len(victims)
            record.check(struck == 1, f"{name}: {struck} kills instead of 1")
            record.check(summary.params_sha256 == expected, f"{name}: another hash")
            events += ear.count()["respawn"]
    record.detail = f"{n} each in: {', '.join(places)}; promp, 2 workers; {events} respawns"
    return record


def faults_once(folder: Path, kinds: tuple[str, ...] = KINDS, seed: int = 0) -> Record:
    """Each fault once, at a random step of a random task, with two workers."""
    record = Record("a fault once", "same hash", len(kinds))
    rng = random.Random(seed)
    expected = train(folder, {**faults.ENV, "workers.num_workers": 0}).params_sha256
    for kind in kinds:
        fault = Fault(kind, rng.randrange(2), rng.randrange(4), rng.randrange(2), rng.randrange(8))
        ear = Ear()
        settings = {**faults.ENV, "workers.num_workers": 2, "workers.task_deadline_s": DEADLINE_S}
        try:
            summary = train(folder, settings, [fault], ear)
        except RuntimeError as error:
            record.check(False, f"{fault}: {error}")
            continue
        record.check(faults.count_strikes() == 1, f"{fault}: struck {faults.count_strikes()} times instead of once")
        record.check(summary.params_sha256 == expected, f"{fault}: another hash")
        record.check(ear.count()["retry"] == 1, f"{fault}: told as {dict(ear.count())} instead of one retry")
    record.detail = ", ".join(kinds)
    return record


def faults_always(folder: Path, kinds: tuple[str, ...] = KINDS, seed: int = 0) -> Record:
    """Each fault whenever its task is tried: the run ends naming the task."""
    bound = ATTEMPTS * DEADLINE_S + START_UP_S
    promise = f"ends naming the task, within attempts x deadline + start-up = {bound:g} s"
    record, rng, slowest = Record("a fault always", promise, len(kinds)), random.Random(seed), 0.0
    for kind in kinds:
        fault = Fault(kind, 0, rng.randrange(4), rng.randrange(2), rng.randrange(8), times=99)
        settings = {**faults.ENV, "workers.num_workers": 2, "workers.task_deadline_s": DEADLINE_S}
        try:
            train(folder, settings, [fault])
            record.check(False, f"{fault}: the run went on")
        except TaskError as error:
            named = f"iteration=0 task={fault.task} " in str(error)
            record.check(named, f"{fault}: {str(error).splitlines()[0]}")
        except RuntimeError as error:
            record.check(False, f"{fault}: {type(error).__name__} instead of TaskError: {error}")
        if not (strikes := faults.marks()):
            record.check(False, f"{fault}: did not strike")
            continue
        seconds = time.time() - strikes[0].stat().st_mtime
        slowest = max(slowest, seconds)
        record.check(seconds <= bound, f"{fault}: ended after {seconds:.1f} s")
        record.check(len(strikes) == ATTEMPTS, f"{fault}: struck {len(strikes)} times instead of {ATTEMPTS}")
    record.detail = f"{', '.join(kinds)}; slowest {slowest:.1f} s with a deadline of {DEADLINE_S:g} s"
    return record
