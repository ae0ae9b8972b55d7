"""Where a run's numbers go: ``metrics.jsonl`` (the truth), TensorBoard, and one line per iteration for people."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

Record = dict[str, Any]


def params_sha256(params_P: np.ndarray) -> str:
    """What identifies a set of parameters: the hash of their bytes, little-endian float32 in the policy's order."""
    return hashlib.sha256(np.ascontiguousarray(params_P, dtype="<f4").tobytes()).hexdigest()


class Sink:
    """Whoever wants to hear of a run's progress overrides what it wants to hear."""

    def task(self, iteration: int, num_done: int, num_tasks: int) -> None:
        """A task of the first pass is back."""

    def iteration(self, record: Record) -> None:
        """An iteration is done."""

    def evaluation(self, iteration: int, returns: dict[str, float]) -> None:
        """Held-out tasks were evaluated after ``iteration`` iterations: mean returns ``pre`` and ``post``."""

    def event(self, event: Record) -> None:
        """Something happened to a worker, or a checkpoint."""

    def close(self) -> None:
        """Nothing more will come."""


class FileSink(Sink):
    """``metrics.jsonl``, ``events.jsonl`` and ``tb/`` of a run's folder.

    Args:
        folder: the run's folder.
        first_iteration: lines of this iteration and later ones are cut off: they are about to be written again.
    """

    def __init__(self, folder: Path, first_iteration: int) -> None:
        path = folder / "metrics.jsonl"
        written = read_metrics(folder) if path.exists() else []
        kept = [record for record in written if record["iteration"] < first_iteration]
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        part.replace(path)
        self._metrics = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (closed by close)
        self._events = open(folder / "events.jsonl", "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._board = SummaryWriter(str(folder / "tb"), purge_step=first_iteration)

    def iteration(self, record: Record) -> None:
        self._metrics.write(json.dumps(record) + "\n")
        for name, value in record.items():
            if isinstance(value, int | float) and name != "iteration":
                self._board.add_scalar(f"train/{name}", value, record["iteration"])

    def evaluation(self, iteration: int, returns: dict[str, float]) -> None:
        self._events.write(json.dumps({"event": "evaluation", "iteration": iteration, **returns}) + "\n")
        for name, value in returns.items():
            self._board.add_scalar(f"held_out/{name}", value, iteration)

    def event(self, event: Record) -> None:
        self._events.write(json.dumps(event) + "\n")

    def close(self) -> None:
        self._metrics.close()
        self._events.close()
        self._board.close()


class ConsoleSink(Sink):
    """One readable line per iteration; on a terminal, a live count of the tasks that are back."""

    def __init__(self, iterations: int) -> None:
        self._iterations = iterations
        self._live = sys.stdout.isatty()

    def task(self, iteration: int, num_done: int, num_tasks: int) -> None:
        if self._live:
            print(
                f"\riteration {iteration + 1:4d}/{self._iterations}  {num_done}/{num_tasks} tasks",
                end="\x1b[K",
                flush=True,
            )

    def iteration(self, record: Record) -> None:
        self._print(
            f"iteration {record['iteration'] + 1:4d}/{self._iterations}"
            f"  return {_number(record['return_pre_adaptation'])} -> {_number(record['return_post_adaptation'])}"
            f"  (before -> after adaptation)  |g| {record['grad_norm']:.3g}"
            f"  {record['num_env_steps']:,} steps  {record['iteration_s']:.1f} s"
        )

    def evaluation(self, iteration: int, returns: dict[str, float]) -> None:
        curve = f"{_number(returns['pre'])} -> {_number(returns['post'])}"
        self._print(f"held-out tasks  return {curve}  after {iteration} iterations")

    def event(self, event: Record) -> None:
        self._print(f"{event['event']}: {event.get('cause', '')} {event.get('spec', '')}".rstrip())

    def _print(self, line: str) -> None:
        print(("\r\x1b[K" if self._live else "") + line, flush=True)


def read_metrics(folder: Path) -> list[Record]:
    """The iterations of a run's ``metrics.jsonl``; a last line cut short by a kill is left out."""
    records = []
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def _number(value: float) -> str:
    """Three or four significant digits at a fixed width."""
    return f"{value:8.2f}" if math.isfinite(value) and abs(value) < 1000 else f"{value:8.0f}"
