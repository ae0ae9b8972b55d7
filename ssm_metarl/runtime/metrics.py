"""Where a run's numbers go: ``metrics.jsonl`` (the truth), TensorBoard, and one line per iteration for people."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

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
        """Something happened to a worker, a file or a checkpoint."""

    def flush(self) -> None:
        """Whatever was told must be on disk when this returns. Raises OSError where it cannot be."""

    def close(self) -> None:
        """Nothing more will come."""


class FileSink(Sink):
    """``metrics.jsonl``, ``events.jsonl`` and ``tb/`` of a run's folder.

    A line that cannot be written is kept and written with the next one; `flush` raises as long as there are such.

    Args:
        folder: the run's folder.
        first_iteration: lines of this iteration and later ones are cut off: they are about to be written again.
        warn: told what could not be written, and which lines are missing.
    """

    def __init__(self, folder: Path, first_iteration: int, warn: Callable[[str], None]) -> None:
        self._warn = warn
        path = folder / "metrics.jsonl"
        written = read_metrics(folder) if path.exists() else []
        kept = [record for record in written if record["iteration"] < first_iteration]
        if len(kept) < first_iteration:
            warn(
                f"{path} has {len(kept)} of the {first_iteration} iterations done; the others stand where they were run"
            )
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        part.replace(path)
        self._metrics, self._events = _Lines(path), _Lines(folder / "events.jsonl")
        self._board: _Board | None = _Board(folder / "tb", first_iteration)

    def iteration(self, record: Record) -> None:
        self._write(self._metrics, record)
        self._chart(
            "train", {name: value for name, value in record.items() if name != "iteration"}, record["iteration"]
        )

    def evaluation(self, iteration: int, returns: dict[str, float]) -> None:
        self._write(self._events, {"event": "evaluation", "iteration": iteration, **returns})
        self._chart("held_out", returns, iteration)

    def event(self, event: Record) -> None:
        # Not through _write: its warning would come back here.
        with contextlib.suppress(OSError):
            self._events.append(event)

    def flush(self) -> None:
        self._metrics.flush(sync=True)
        self._events.flush(sync=True)

    def close(self) -> None:
        if self._board:
            self._board.close()

    def _write(self, lines: _Lines, record: Record) -> None:
        try:
            lines.append(record)
        except OSError as error:
            self._warn(f"{lines.path} cannot be written for now: {error}")

    def _chart(self, group: str, values: Record, step: int) -> None:
        if self._board is None:
            return
        try:
            self._board.add(group, values, step)
        except OSError as error:
            self._board = None
            self._warn(f"TensorBoard's files are no longer written, metrics.jsonl has the same numbers: {error}")


class _Lines:
    """A file of JSON lines that exists and to which whole lines are appended, or none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending = b""
        path.touch()

    def append(self, record: Record) -> None:
        self._pending += json.dumps(record).encode() + b"\n"
        self.flush()

    def flush(self, sync: bool = False) -> None:
        """Writes what is pending. Raises OSError: the disk is full, the file or its folder are gone."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            size = os.fstat(descriptor).st_size
            try:
                written = os.write(descriptor, self._pending)
                if written < len(self._pending):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            except OSError:
                os.ftruncate(descriptor, size)
                raise
            self._pending = b""
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _Board:
    """TensorBoard's event file, written in this thread: tensorboardX's own blocks the run when the disk is full."""

    def __init__(self, folder: Path, first_iteration: int) -> None:
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".from-{first_iteration}")
        # Charts forget what earlier files say of the steps that come again.
        restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.write_event(event_pb2.Event(wall_time=time.time(), step=first_iteration, session_log=restart))
        self._writer.flush()

    def add(self, group: str, values: Record, step: int) -> None:
        for name, value in values.items():
            if isinstance(value, int | float):
                scalar = summary.scalar(f"{group}/{name}", value)
                self._writer.write_event(event_pb2.Event(wall_time=time.time(), step=step, summary=scalar))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


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
        success = ""
        if "success_post_adaptation" in record:
            shares = f"{record['success_pre_adaptation']:4.0%} -> {record['success_post_adaptation']:4.0%}"
            success = f"  success {shares}"
        self._print(
            f"iteration {record['iteration'] + 1:4d}/{self._iterations}"
            f"  return {_number(record['return_pre_adaptation'])} -> {_number(record['return_post_adaptation'])}"
            f"  (before -> after adaptation){success}  |g| {record['grad_norm']:.3g}"
            f"  {record['num_env_steps']:,} steps  {record['iteration_s']:.1f} s"
        )

    def evaluation(self, iteration: int, returns: dict[str, float]) -> None:
        curve = f"{_number(returns['pre'])} -> {_number(returns['post'])}"
        self._print(f"held-out tasks  return {curve}  after {iteration} iterations")

    def event(self, event: Record) -> None:
        concerned = ", ".join(str(event[name]) for name in ("worker", "spec") if name in event)
        self._print(f"{event['event']}: {event['cause']}" + (f" ({concerned})" if concerned else ""))

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
