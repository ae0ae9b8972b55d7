"""Processes seen from outside: who is whose child, which are a run's workers, and a run in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
MARKER = "SSM_METARL_TEST_ID"
WORKERS = ("TaskWorker", "Disturbed")


@dataclass(frozen=True)
class Process:
    """A line of the process table. ``title`` is its command line, or what it calls itself."""

    pid: int
    parent: int
    session: int
    title: str


def processes() -> dict[int, Process]:
    """All that run (zombies are dead)."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may end while we look
            state, parent, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if state not in "ZX":
                found[int(folder.name)] = Process(int(folder.name), int(parent), int(session), title)
    return found


def descendants(pid: int) -> list[Process]:
    """Children of a process, their children, and so on."""
    table = processes()
    found, generation = [], [pid]
    while generation:
        children = [process for process in table.values() if process.parent in generation]
        found += children
        generation = [process.pid for process in children]
    return found


def worker_pids(driver: int | None = None, ready: bool = False) -> list[int]:
    """The Ray workers of a driver (None: this process); ``ready``: only those that wait for work."""
    pattern = rf"ray::({'|'.join(WORKERS)})" + ("" if ready else r"(\.\w+)?(\(\))?")
    return [process.pid for process in descendants(driver or os.getpid()) if re.fullmatch(pattern, process.title)]


def is_alive(pid: int) -> bool:
    """Whether a process runs."""
    return pid in processes()


def kill(pid: int) -> None:
    """SIGKILL; nothing if it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def wait_until(condition: Callable[[], object], timeout_s: float, what: str, every_s: float = 0.02) -> None:
    """Raises TimeoutError naming ``what`` if the condition does not come true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} within {timeout_s:g} s")
        time.sleep(every_s)


class Driver:
    """A Python program in a session of its own, known by a mark that its children inherit.

    Args:
        arguments: of the interpreter, run in the project's root.
        environment: set for it, besides ours.
    """

    def __init__(self, *arguments: object, environment: Mapping[str, str] | None = None) -> None:
        self._mark = f"{MARKER}={uuid.uuid4().hex}"
        self._stdout, self._stderr = (tempfile.NamedTemporaryFile(suffix=".log") for _ in range(2))  # noqa: SIM115
        name, value = self._mark.split("=")
        # Ray gives its workers the lowest priority; on a busy machine the tests would wait for them for minutes.
        ours = {"RAY_worker_niceness": "0", name: value}
        self.began = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **ours, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=self._stdout,
            stderr=self._stderr,
            start_new_session=True,
        )
        self.pid = self._process.pid

    @property
    def stdout(self) -> str:
        """What it has printed."""
        return Path(self._stdout.name).read_text(encoding="utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        """What it has printed as errors."""
        return Path(self._stderr.name).read_text(encoding="utf-8", errors="replace")

    @property
    def returncode(self) -> int | None:
        """Its exit status, None while it runs; the negative number of a signal that ended it."""
        return self._process.poll()

    def wait_for(self, pattern: str, timeout_s: float = 90.0) -> None:
        """Waits for a line like it, or for the end of the program. Raises TimeoutError."""
        wait_until(
            lambda: re.search(pattern, self.stdout, re.MULTILINE) or self.returncode is not None,
            timeout_s,
            f"{pattern!r} was not printed",
            every_s=0.003,
        )

    def signal(self, number: int, group: bool = False) -> None:
        """Sends it to the program, or as a terminal does to its whole process group; nothing if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            if self.returncode is None:
                (os.killpg if group else os.kill)(self.pid, number)

    def finish(self, timeout_s: float = 120.0) -> int:
        """Waits for its end. Returns its exit status. Raises subprocess.TimeoutExpired."""
        return self._process.wait(timeout_s)

    def left(self, within_s: float, but: re.Pattern[str] | None = None) -> list[str]:
        """Its processes that are still there after so many seconds, but those with such titles."""

        def find() -> list[Process]:
            return [process for process in self._own() if not (but and but.search(process.title))]

        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not find(), within_s, "", every_s=0.1)
        return [f"{process.pid} {process.title[:80]}" for process in find()]

    def _own(self) -> list[Process]:
        own = []
        for process in processes().values():
            with contextlib.suppress(OSError):
                marked = self._mark.encode() in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
                if marked or process.session == self.pid:
                    own.append(process)
        return own

    def close(self) -> None:
        """Ends whatever is left of it."""
        for process in self._own():
            kill(process.pid)
        self._process.wait(20)
        for file in (self._stdout, self._stderr):
            file.close()


@contextlib.contextmanager
def driver(*arguments: object, environment: Mapping[str, str] | None = None) -> Iterator[Driver]:
    """A `Driver` of which nothing is left afterwards."""
    program = Driver(*arguments, environment=environment)
    try:
        yield program
    finally:
        program.close()
