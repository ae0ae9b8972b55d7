"""Checkpoints that are cut short or damaged, and disks that are full, read-only, or gone."""

from __future__ import annotations

import contextlib
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import damage
import faults
import numpy as np
from faults import Fault
from processes import driver, wait_until

from scenarios.common import Record, command, done_line, iterations_in, make_config, undisturbed
from ssm_metarl.runtime import checkpoint
from ssm_metarl.runtime.checkpoint import CheckpointError, TrainState
from ssm_metarl.runtime.storage import open_storage

IDENTITY = {"seed": 0}
CASES = (
    "full disk of checkpoints",
    "read-only disk of checkpoints",
    "full disk of runs",
    "deleted run",
    "deleted run with its checkpoints",
)


def make_state(iteration: int, attempt: int = 0, size: int = 3000) -> TrainState:
    """Any state; the attempts at an iteration can be told apart."""
    numbers = np.random.default_rng([iteration, attempt]).normal(size=(3, size)).astype(np.float32)
    return TrainState(
        iteration, 100 * iteration, dict(zip(("params_P", "exp_avg", "exp_avg_sq"), numbers, strict=True))
    )


def same(one: TrainState, other: TrainState) -> bool:
    """Whether two states are equal to the bit."""
    equal = one.arrays.keys() == other.arrays.keys() and all(
        np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays
    )
    return equal and (one.iteration, one.num_env_steps) == (other.iteration, other.num_env_steps)


def killed_saves(folder: Path, n: int) -> Record:
    """SIGKILL inside a save, at each point; then the same iteration is saved again."""
    record = Record("killed saves", "always a loadable state; the replay counts", len(damage.POINTS) * n)
    for point in damage.POINTS:
        for trial in range(n):
            root = folder / f"{point.replace(' ', '-')}-{trial}"
            storage, warnings = open_storage(root), []
            storage.make()
            checkpoint.save(storage, make_state(1), IDENTITY, 1, warnings.append)
            damage.save_and_die(root, make_state(2), point, IDENTITY)
            for attempt, allowed in ((0, [make_state(1), make_state(2)]), (1, [make_state(2, 1)])):
                if attempt:
                    checkpoint.save(storage, make_state(2, 1), IDENTITY, 1, warnings.append)
                found = checkpoint.load_newest(storage, warnings.append)
                good = found is not None and any(same(found[0], state) for state in allowed)
                record.check(good, f"{point}, trial {trial}, attempt {attempt}: {found and found[0].iteration}")
            left = storage.folders()
            record.check(len(left) == 1, f"{point}, trial {trial}: the next save leaves {left}")
    record.detail = f"{n} each: {', '.join(damage.POINTS)}"
    return record


def damaged_checkpoints(folder: Path, n: int, seed: int = 0) -> Record:
    """Damage of a random kind to one of three checkpoints: it is refused, and the newest whole one is found."""
    record = Record("damaged checkpoints", "0 loaded silently", n)
    rng, kinds = random.Random(seed), Counter()
    storage, states = open_storage(folder / "whole"), {i: make_state(i, size=100) for i in (1, 2, 3)}
    storage.make()
    for state in states.values():
        checkpoint.save(storage, state, IDENTITY, 3, print)
    for trial in range(n):
        copy = folder / f"copy-{trial}"
        shutil.copytree(folder / "whole", copy)
        victim = rng.choice(sorted(copy.glob("it-*")))
        what = damage.damage(victim, rng)
        kinds[what.partition(":")[0]] += 1
        refused = 0
        for path in sorted(copy.glob("it-*")):
            try:
                state, identity = checkpoint.load(path)
                good = identity == IDENTITY and same(state, states[int(path.name[3:11])])
                record.check(good, f"{what}: {path.name} was loaded with iteration {state.iteration}")
            except CheckpointError as error:
                refused += 1
                record.check(path.name in str(error), f"{what}: the error does not name {path.name}: {error}")
        record.check(refused >= 1, f"{what}: nothing was refused")
        warnings: list[str] = []
        found = checkpoint.load_newest(open_storage(copy), warnings.append)
        good = found is None or same(found[0], states[found[0].iteration])
        record.check(good and (found is not None or refused == 3), f"{what}: newest is {found and found[0].iteration}")
        shutil.rmtree(copy)
    record.detail = ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
    return record


def lost_disks(folder: Path, cases: tuple[str, ...] = CASES) -> Record:
    """In iteration 3 of a run the disk fills up, becomes read-only, or the run's folder is deleted."""
    record = Record("disks", "clear words, exit status 1, earlier state intact", 0)
    for case in cases:
        with faults.small_disk(256) if "disk" in case else contextlib.nullcontext(folder / "kept") as place:
            if place is not None:
                record.n += 1
                _lose(record, folder, place, case)
    record.detail = ", ".join(cases)
    if record.n < len(cases):
        record.detail += f"; {len(cases) - record.n} of them not tested: needs root"
    return record


def _lose(record: Record, folder: Path, place: Path, case: str) -> None:
    """A run that is paused in its third iteration while its disk is lost, and then must end in good order."""
    name, apart = case.replace(" ", "-"), case not in ("full disk of runs", "deleted run with its checkpoints")
    runs = place if case == "full disk of runs" else folder
    settings = {**faults.ENV, "iterations": 6, "workers.num_workers": 0, "checkpoint.every": 1}
    settings |= {"checkpoint.dir": str(place), "checkpoint.max_failures": 1} if apart else {}
    faults.write_plan(make_config(runs, **settings), [Fault("pause", iteration=2)])
    with driver(*command(runs, name, settings)) as program:
        wait_until(faults.count_strikes, 60.0, f"{case}: iteration 3 was not reached")
        match case.split()[0]:
            case "full":
                faults.fill(place)
            case "read-only":
                faults.make_read_only(place)
            case "deleted":
                shutil.rmtree(runs / name)
        faults.go_on()
        status, lines = program.finish(60), program.stderr.strip().splitlines()
        record.check(status == 1, f"{case}: exit status {status}: {program.stderr[-500:]} {program.stdout[-500:]}")
        clear = len(lines) == 1 and lines[0].startswith("error: ")
        record.check(clear, f"{case}: says {lines} {program.stdout[-300:]}")
    found = checkpoint.load_newest(open_storage(place / name if apart else runs / name / "checkpoints"), lambda _: None)
    done, expected = found[0].iteration if found else None, None if case == CASES[-1] else 2
    record.check(done == expected, f"{case}: the newest checkpoint is of iteration {done} instead of {expected}")


def full_for_a_while(folder: Path) -> Record:
    """A disk of checkpoints that is full during two of six iterations."""
    record = Record("disk full for a while", "training goes on, each failure is told, same hash", 0)
    with faults.small_disk(256) as disk:
        if disk is None:
            record.detail = "not tested: needs root"
            return record
        record.n = 1
        settings = {**faults.ENV, "iterations": 6, "workers.num_workers": 0, "checkpoint.every": 1}
        expected = undisturbed(folder, settings)
        settings["checkpoint.dir"] = str(disk)
        plan = [Fault("pause", iteration=2), Fault("pause", iteration=4)]
        faults.write_plan(make_config(folder, **settings), plan)
        with driver(*command(folder, "run", settings)) as program:
            wait_until(lambda: faults.count_strikes() == 1, 60.0, "iteration 3 was not reached")
            ballast = faults.fill(disk)
            faults.go_on()
            wait_until(lambda: faults.count_strikes() == 2, 60.0, "iteration 5 was not reached")
            ballast.unlink()
            faults.go_on()
            status = program.finish(60)
            record.check(status == 0, f"exit status {status}: {program.stderr[-500:]}")
            record.check(done_line(program) == expected, f"{done_line(program)} instead of {expected}")
            told = len(
                re.findall("^.*(could not be saved|save_failed|save failed|No space left)", program.stdout, re.M)
            )
            record.check(told >= 2, f"failures are told {told} times: {program.stdout}")
        found = iterations_in(folder / "run")
        record.check(found == list(range(6)), f"metrics have the iterations {found}")
        newest = checkpoint.load_newest(open_storage(disk / "run"), lambda _: None)
        record.check(newest is not None and newest[0].iteration == 6, "the last checkpoint is not the newest")
    record.detail = "two saves failed, the others counted"
    return record
