"""The sweep as text: one row of five columns per trial, live on a terminal; ``results.csv``."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from ssm_metarl.tuning.folder import trial_name
from ssm_metarl.tuning.records import OVER, SweepRecord, TrialRecord

COLUMNS = ("trial", "settings", "iterations", "return (pre -> post)", "state")
_ALWAYS = ("trial", "state", "iterations", "num_env_steps", "pre", "post", "seconds", "params_sha256")


def rows(sweep: SweepRecord, trials: Sequence[TrialRecord]) -> list[tuple[str, ...]]:
    """Cells of the five columns."""
    return [
        (
            trial_name(trial.index),
            settings_text(trial.settings),
            f"{trial.iterations}/{sweep.iterations}",
            _returns(trial),
            _cut(trial.state + (f": {trial.cause}" if trial.cause else ""), 100),
        )
        for trial in trials
    ]


def table(sweep: SweepRecord, trials: Sequence[TrialRecord]) -> list[str]:
    """Lines: the head, and one per trial."""
    cells = [COLUMNS, *rows(sweep, trials)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(COLUMNS))]
    return [_line(row, widths) for row in cells]


def ranked(sweep: SweepRecord) -> list[TrialRecord]:
    """The trials, the best first: those that went to their end, then those that came less far."""

    def key(trial: TrialRecord) -> tuple[Any, ...]:
        score = trial.score(sweep.metric)
        return trial.state != "finished", -trial.iterations, -score if math.isfinite(score) else math.inf, trial.index

    return sorted(sweep.trials, key=key)


def settings_text(settings: Mapping[str, Any], width: int | None = 60) -> str:
    """``inner.lr 0.1, outer.lr 0.003``, cut to so many characters."""
    text = ", ".join(f"{key} {option_text(value)}" for key, value in settings.items())
    return text if width is None else _cut(text, width)


def option_text(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def to_csv(sweep: SweepRecord) -> str:
    """One row per trial: what it came to, its settings, and why it failed."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*_ALWAYS, *sweep.space, "cause"])
    for trial in sweep.trials:
        last = trial.curve[-1] if trial.curve else None
        numbers = [trial.iterations, trial.num_env_steps, *((last.pre, last.post) if last else ("", ""))]
        own = [trial_name(trial.index), trial.state, *numbers, round(trial.seconds, 3), trial.params_sha256]
        writer.writerow([*own, *(option_text(trial.settings.get(key)) for key in sweep.space), trial.cause])
    return out.getvalue()


class Display:
    """Shows a sweep while it runs: on a terminal the table, redrawn; otherwise a line per trial that is over.

    Args:
        out: where to.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._live = self._out.isatty()
        self._drawn = 0
        self._told: set[int] = set()
        self._last: list[str] = []

    def say(self, line: str) -> None:
        """A line that stays."""
        self._erase()
        print(line, file=self._out, flush=True)

    def update(self, sweep: SweepRecord) -> None:
        """The sweep has changed, or may have."""
        if self._live:
            self._draw(sweep)
            return
        for trial in sweep.trials:
            if trial.state in OVER and trial.index not in self._told:
                self._told.add(trial.index)
                self.say("trial " + "  ".join(rows(sweep, [trial])[0]))

    def end(self) -> None:
        """Makes room for what comes after."""
        self._erase()

    def _draw(self, sweep: SweepRecord) -> None:
        size = shutil.get_terminal_size()
        lines = [line[: size.columns - 1] for line in table(sweep, _newest(sweep, size.lines - 3))]
        if lines != self._last:
            self._erase()
            print("\n".join(lines), file=self._out, flush=True)
            self._drawn, self._last = len(lines), lines

    def _erase(self) -> None:
        if self._drawn:
            print(f"\x1b[{self._drawn}A\x1b[J", end="", file=self._out, flush=True)
        self._drawn, self._last = 0, []


def _newest(sweep: SweepRecord, room: int) -> list[TrialRecord]:
    """As many trials as there is room for: those under way, then the best, in their order."""
    urgent = sorted(sweep.trials, key=lambda trial: (trial.state != "running", trial.index != sweep.best, -trial.index))
    return sorted(urgent[: max(1, room)], key=lambda trial: trial.index)


def _returns(trial: TrialRecord) -> str:
    if not trial.curve:
        return ""
    return f"{_number(trial.curve[-1].pre)} -> {_number(trial.curve[-1].post)}"


def _cut(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) and abs(value) < 1000 else f"{value:.0f}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
