"""What the scenarios share: tiny runs, in this process or in one of their own, and the record of what came out."""

from __future__ import annotations

import json
import re
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faults
from faults import Fault
from processes import Driver

from ssm_metarl.config import TrainConfig, load_config
from ssm_metarl.runtime.driver import MetaTrainer, Summary
from ssm_metarl.runtime.metrics import Sink, read_metrics

CPUS = 4
ATTEMPTS = 3
START_UP_S = 30.0
"""What the start of Ray or of a worker may take on a busy machine with two cores."""
SMALL: dict[str, Any] = {
    "tasks_per_iteration": 4,
    "env.horizon": 8,
    "env.episodes_per_task": 4,
    "policy.hidden_dim": 8,
    "eval.every": 0,
    "eval.num_tasks": 2,
    "eval.num_steps": 1,
    "workers.cpus_per_worker": 0.5,
    "workers.task_deadline_s": 60.0,
}
"""Settings of a run of which an iteration takes a fraction of a second."""


@dataclass
class Record:
    """A row: ``n`` trials, of which those named in ``failures`` did not keep the promise."""

    test: str
    promise: str
    n: int
    failures: list[str] = field(default_factory=list)
    detail: str = ""
    seconds: float = 0.0

    def check(self, kept: bool, failure: str) -> None:
        """Notes a failure unless the promise was kept."""
        if not kept:
            self.failures.append(failure)


class Ear(Sink):
    """Keeps what a run tells; ``on_task(iteration, done, total)`` and ``on_iteration(iteration)`` may interfere."""

    def __init__(
        self,
        on_task: Callable[[int, int, int], None] | None = None,
        on_iteration: Callable[[int], None] | None = None,
    ) -> None:
        self._on_task, self._on_iteration = on_task, on_iteration
        self.events: list[dict[str, Any]] = []

    def task(self, iteration: int, num_done: int, num_tasks: int) -> None:
        if self._on_task:
            self._on_task(iteration, num_done, num_tasks)

    def iteration(self, record: Mapping[str, Any]) -> None:
        if self._on_iteration:
            self._on_iteration(record["iteration"])

    def event(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def count(self) -> Counter[str]:
        """How often each event was."""
        return Counter(event["event"] for event in self.events)


def make_config(folder: Path, **sections: Any) -> TrainConfig:
    """`SMALL` under other dotted settings, a run of a fresh name in this folder."""
    settings = {"iterations": 2, "run.dir": str(folder), "run.name": uuid.uuid4().hex[:12], **SMALL, **sections}
    return load_config(None, settings)


def train(
    folder: Path,
    settings: Mapping[str, Any],
    plan: Sequence[Fault] = (),
    ear: Ear | None = None,
    disturbed: bool = False,
) -> Summary:
    """A run in this process, under a plan of faults."""
    config = make_config(folder, **settings)
    faults.write_plan(config, plan)
    if not disturbed:
        return MetaTrainer(config, [ear or Ear()]).run()
    with faults.stand_in(faults.Disturbed):
        return MetaTrainer(config, [ear or Ear()]).run()


def command(folder: Path, name: str, settings: Mapping[str, Any]) -> list[str]:
    """The arguments of the interpreter for a run as a user starts it."""
    options = {"iterations": 2, "run.dir": str(folder), "run.name": name, **SMALL, **settings}
    words = ["run_local.py"]
    for key, value in options.items():
        words += [f"--{key}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


def done_line(program: Driver) -> tuple[str, ...] | None:
    """Returns and hash of the last line of a run that is done, None if there is no such line."""
    found = re.search(
        r"^done: pre (\S+) post (\S+) params_sha256 ([0-9a-f]{64}) run .+\Z", program.stdout.strip(), re.M
    )
    return found.groups() if found else None


def undisturbed(folder: Path, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The end of such a run that nothing happens to, as `done_line` gives it: in this process, without Ray."""
    summary = train(folder, {**settings, "workers.num_workers": 0})
    return f"{summary.pre:.4g}", f"{summary.post:.4g}", summary.params_sha256


def iterations_in(run: Path) -> list[int]:
    """The iterations that stand in a run's metrics, in their order."""
    return [record["iteration"] for record in read_metrics(run)]
