"""Runs that differ only by their seed, joined: learning curves, and intervals over seeds and tasks.

Shape legend: R runs (seeds), N iterations, K held-out tasks, S adaptation steps.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ssm_metarl.config import ConfigError, TrainConfig
from ssm_metarl.evaluation.curves import Curves, join
from ssm_metarl.evaluation.report.run_files import LARGEST, Run, as_word, flat
from ssm_metarl.evaluation.statistics import Interval, paired_difference
from ssm_metarl.runtime.metrics import Record

NOT_COMPARED = frozenset({"seed", "run", "workers", "checkpoint"})
"""Settings and sections that say which run it is and who does the work: results do not depend on the latter."""
MOST_POINTS = 240


@dataclass
class Group:
    """Runs of one configuration, each with another seed. ``label`` and ``css`` are how pictures name and colour it."""

    runs: list[Run]
    label: str = ""
    css: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def config(self) -> TrainConfig:
        """The configuration, with the first run's seed."""
        return self.runs[0].config

    @property
    def steps(self) -> int:
        """Adaptation steps that count as "after": those of training."""
        return self.config.inner.num_steps


class Curve(NamedTuple):
    """A smoothed curve [N] with its band."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class HeldOut:
    """The joined evaluations of a group."""

    runs: list[Run]
    """Those with an evaluation on the same tasks."""
    curves: Curves
    steps: int
    """The k of "after": ``inner.num_steps`` of training, or as far as the evaluation went."""

    @property
    def before(self) -> np.ndarray:
        """Return on each task before adaptation, mean over runs, [K]."""
        return self.curves.returns["meta"][:, :, 0].mean(axis=0)

    @property
    def after(self) -> np.ndarray:
        """Return on each task after adaptation by strategy ``meta``, mean over runs, [K]."""
        return self.curves.returns["meta"][:, :, self.steps].mean(axis=0)

    @functools.cached_property
    def means(self) -> dict[str, list[Interval]]:
        """Strategy -> mean return after k = 0 ... S steps."""
        return {strategy: self.curves.mean(strategy) for strategy in self.curves.returns}

    @functools.cached_property
    def gain(self) -> Interval:
        """After minus before, paired by run and task."""
        returns_RKS = self.curves.returns["meta"]
        return paired_difference(returns_RKS[:, :, self.steps], returns_RKS[:, :, 0])


def make_groups(runs: Sequence[Run]) -> list[Group]:
    """Joins the runs that differ only by seed, in the order given; of two with one seed the first counts, said."""
    groups: dict[str, Group] = {}
    for run in runs:
        group = groups.setdefault(json.dumps(_compared(run.config), sort_keys=True), Group([]))
        twin = next((other for other in group.runs if other.config.seed == run.config.seed), None)
        if twin is None:
            group.runs.append(run)
        else:
            group.notes.append(f"{run.name} is left out: {twin.name} has the same configuration and seed.")
    return list(groups.values())


def differing_settings(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Dotted key -> its value in each group, for the settings in which they differ."""
    compared = [_compared(group.config) for group in groups]
    return {
        key: [as_word(settings[key]) for settings in compared]
        for key in compared[0]
        if any(settings[key] != compared[0][key] for settings in compared)
    }


def iterations(group: Group) -> list[list[Record]]:
    """The records of the iterations that all its runs have, [N][R]."""
    by_iteration = [{record["iteration"]: record for record in run.records} for run in group.runs]
    common = sorted(set.intersection(*(set(records) for records in by_iteration)))
    return [[records[iteration] for records in by_iteration] for iteration in common]


def values(records_NR: Sequence[Sequence[Record]], name: str) -> np.ndarray:
    """One field of the records, float64 [N, R]; nan where it is missing or no number that was measured."""
    return np.array([[_measured(record.get(name)) for record in records] for records in records_NR], dtype=np.float64)


def window(length: int) -> int:
    """How many neighbouring iterations a smoothed curve averages: odd, about a fifteenth of them, and 1 of a few."""
    return 1 if length < 6 else max(3, 2 * (length // 30) + 1)


def smooth(values_NR: np.ndarray, width: int) -> Curve:
    """Running means over ``width`` neighbours, fewer at the ends.

    The band of one run is from the lowest to the highest of the neighbours, that of several from the lowest to the
    highest of their running means.
    """
    half = width // 2
    windows = [values_NR[max(0, index - half) : index + half + 1] for index in range(len(values_NR))]
    means_NR = np.array([part.mean(axis=0) for part in windows])
    if values_NR.shape[1] > 1:
        return Curve(means_NR.mean(axis=1), means_NR.min(axis=1), means_NR.max(axis=1))
    lows, highs = (np.array([pick(part) for part in windows]) for pick in (np.min, np.max))
    return Curve(means_NR[:, 0], lows, highs)


def thinned(indices: np.ndarray) -> np.ndarray:
    """At most 240 of the indices, evenly, the first and the last among them."""
    places = np.linspace(0, len(indices) - 1, min(len(indices), MOST_POINTS)).round().astype(int)
    return indices[np.unique(places)]


def held_out(group: Group) -> HeldOut | None:
    """The joined evaluations, None without any. A note says which is left out: measured otherwise than the first."""
    runs = [run for run in group.runs if run.evaluation]
    if not runs:
        return None
    first, alike = runs[0], [runs[0]]
    for run in runs[1:]:
        try:
            join({first.name: first.evaluation, run.name: run.evaluation})
        except ConfigError as error:
            group.notes.append(f"The evaluation of {run.name} is left out: {' '.join(str(error).split())}.")
        else:
            alike.append(run)
    # Names need not be unique: runs of several folders may share theirs.
    curves = join({str(run.folder): run.evaluation for run in alike})
    return HeldOut(alike, curves, min(group.steps, curves.returns["meta"].shape[2] - 1))


def _compared(config: TrainConfig) -> dict[str, Any]:
    return {key: value for key, value in flat(config).items() if key.partition(".")[0] not in NOT_COMPARED}


def _measured(value: Any) -> float:
    # Compared before it is converted: an integer of a thousand digits would not fit.
    return float(value) if isinstance(value, int | float) and abs(value) <= LARGEST else math.nan
