"""A run's folder in an object store: this process works in a folder of its own, and the store has the same files.

A store cannot append to a file. So the lines of ``metrics.jsonl`` and ``events.jsonl`` go there in shards, one per
checkpoint (``metrics/000000004711.jsonl``: those from that byte on), and become one file again whenever a run starts or
ends. TensorBoard's files follow at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ssm_metarl.runtime.metrics import Sink
from ssm_metarl.runtime.storage import Storage

LINES = ("metrics", "events")
FILES = ("config.yaml", "eval.json")


def fetch(store: Storage, to: Path) -> None:
    """Brings what a store has of a run into a folder: ``config.yaml``, ``eval.json``, and all lines. Raises OSError."""
    there = set(store.files(""))
    for name in there.intersection(FILES):
        (to / name).write_bytes(store.read(name))
    folders = set(store.folders())
    for stem in LINES:
        parts = [f"{stem}.jsonl"] if f"{stem}.jsonl" in there else []
        parts += [f"{stem}/{name}" for name in sorted(store.files(stem))] if stem in folders else []
        # A line may be in the whole file and in a shard: a kill in between leaves it in both.
        lines = dict.fromkeys(line for part in parts for line in store.read(part).splitlines(keepends=True))
        if lines:
            (to / f"{stem}.jsonl").write_bytes(b"".join(lines))


class Mirror(Sink):
    """Keeps a store up to date with a run's folder.

    Args:
        folder: where the files are written, before this sink is told.
        store: the run's folder in the store.
        warn: told what could not be written at the end.

    Raises:
        OSError: the store cannot be written.
    """

    def __init__(self, folder: Path, store: Storage, warn: Callable[[str], None]) -> None:
        self._folder, self._store, self._warn = folder, store, warn
        self._sent: dict[str, int] = {}
        store.make()
        self._join_lines()

    def flush(self) -> None:
        for stem in LINES:
            data = self._read(stem)[self._sent[stem] :]
            if data:
                self._store.write(f"{stem}/{self._sent[stem]:012d}.jsonl", data)
                self._sent[stem] += len(data)

    def close(self) -> None:
        try:
            self._join_lines()
            for path in sorted((self._folder / "tb").glob("*")):
                self._store.write(f"tb/{path.name}", path.read_bytes())
        except OSError as error:
            self._warn(f"{self._store.path()} lacks the last lines of the run: {error}")

    def _join_lines(self) -> None:
        """The whole files first, so that no line is ever missing; then the shards go."""
        shards = set(self._store.folders()).intersection(LINES)
        for stem in LINES:
            data = self._read(stem)
            self._store.write(f"{stem}.jsonl", data)
            self._sent[stem] = len(data)
        for stem in shards:
            self._store.remove(stem)

    def _read(self, stem: str) -> bytes:
        return (self._folder / f"{stem}.jsonl").read_bytes()
