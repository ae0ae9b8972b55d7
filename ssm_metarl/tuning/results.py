"""``results.json`` in a trial's folder: its settings, its reports, and why it failed if it did. The truth of a sweep.

It is written whole, with its checksum; what was not written so does not count.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from ssm_metarl.runtime.checkpoint import sealed
from ssm_metarl.runtime.storage import Storage
from ssm_metarl.tuning.records import Point, State, TrialRecord

FORMAT = 1
FILE = "results.json"


@dataclass(frozen=True)
class Report:
    """One report of a trial.

    Example: ``Report(4, -40.0, -20.0, 24000, 6.1, "ab12...")``
    """

    iteration: int
    pre: float
    post: float
    num_env_steps: int
    """Since the trial began; evaluation not counted."""
    seconds: float
    """Wall time of all its reports so far, of each the attempt that was reported."""
    params_sha256: str

    @classmethod
    def parse(cls, tree: Any) -> Report:
        """From plain data. Raises ValueError, TypeError or KeyError."""
        report = cls(**tree)
        numbers = (report.pre, report.post, report.seconds)
        if not all(type(number) is int and number >= 0 for number in (report.iteration, report.num_env_steps)):
            raise ValueError("counts are whole numbers")
        if not all(isinstance(number, int | float) for number in numbers) or not isinstance(report.params_sha256, str):
            raise ValueError("returns and seconds are numbers")
        return report


@dataclass(frozen=True)
class TrialResults:
    """Contents of a ``results.json``."""

    settings: dict[str, Any]
    reports: tuple[Report, ...] = ()
    failed: str = ""
    """Why the trial cannot go on, whoever tries; empty: it can."""

    def record(self, index: int, state: State, cause: str) -> TrialRecord:
        """As others see the trial."""
        last = self.reports[-1] if self.reports else Report(0, 0.0, 0.0, 0, 0.0, "")
        curve = tuple(Point(it.iteration, it.pre, it.post) for it in self.reports)
        counts = (last.num_env_steps, last.seconds, last.params_sha256)
        return TrialRecord(index, self.settings, curve, state, cause, *counts)


def write_results(folder: Storage, results: TrialResults) -> None:
    """Writes the file, at once or not at all. Raises OSError."""
    folder.write(FILE, sealed({"format": FORMAT, **asdict(results)}))


def parse_results(data: bytes) -> TrialResults:
    """Reads the file. Raises ValueError: it is damaged, or of another version."""
    try:
        tree = json.loads(data)
        if tree["format"] != FORMAT or data != sealed(tree):
            raise ValueError("it is of another version, or does not have its own checksum")
        reports = tuple(Report.parse(it) for it in tree["reports"])
        iterations = [it.iteration for it in reports]
        if iterations != sorted(set(iterations)) or not isinstance(tree["settings"], dict):
            raise ValueError("it does not hold one report after the other")
        return TrialResults(tree["settings"], reports, str(tree["failed"]))
    # Readers of foreign bytes raise anything: all of it means that the file is not to be used.
    except Exception as error:
        raise ValueError(f"{FILE} cannot be read: {type(error).__name__}: {error}") from error
