"""`StopSignals`: SIGTERM and Ctrl-C ask a run to stop; what does not end within the grace time is abandoned.

with StopSignals(grace_s=2.0) as stop:
    ray.init()
    stop.listen()                   # Ray takes SIGTERM for itself when it starts
    while not stop.requested:
        with stop.abandonable():    # raises Abandoned here, and nowhere else, when the grace time is over
            work()
        keep_the_books()
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

REPEAT_S = 0.25


class Abandoned(BaseException):
    """Breaks off work in its midst. No Exception: what retries failed work must let it pass."""


class StopSignals:
    """Handlers of SIGTERM and SIGINT for as long as the context lasts; the main thread's business.

    The first signal lets the work under way go on for ``grace_s`` seconds, the second ends it at once.

    Args:
        grace_s: seconds.
        signals: those that ask for a stop; none: nothing is handled.
    """

    def __init__(self, grace_s: float = 0.0, signals: Sequence[int] = (signal.SIGTERM, signal.SIGINT)) -> None:
        self._grace_s, self._signals = grace_s, signals
        self._before: dict[int, Any] = {}
        self._timer_before = (0.0, 0.0)
        self._in_work = False
        self.received: int | None = None

    @property
    def requested(self) -> bool:
        """Whether a stop was asked for."""
        return self.received is not None

    def __enter__(self) -> StopSignals:
        if self._signals:
            self._timer_before = signal.getitimer(signal.ITIMER_REAL)
            self._before = {number: signal.getsignal(number) for number in (*self._signals, signal.SIGALRM)}
            self.listen()
        return self

    def listen(self) -> None:
        """Handles the signals, once more if something else has taken them: ``ray.init`` takes SIGTERM."""
        if self._signals:
            signal.signal(signal.SIGALRM, self._on_alarm)
        for number in self._signals:
            signal.signal(number, self._on_signal)

    def __exit__(self, *_: object) -> None:
        if not self._signals:
            return
        self.quiet()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.setitimer(signal.ITIMER_REAL, *self._timer_before)

    @contextmanager
    def abandonable(self) -> Iterator[None]:
        """Work that `Abandoned` may break off at any point: it must leave nothing half done that matters."""
        try:
            self._in_work = True
            yield
        except KeyboardInterrupt:
            if not self.requested:
                raise
            raise Abandoned from None
        finally:
            self._in_work = False

    def quiet(self) -> None:
        """No more `Abandoned`: call it when one was caught."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._in_work = False

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        grace_s = self._grace_s if self.received is None else 0.0
        self.received = self.received or number
        # The alarm rings again: an exception that is raised while a destructor runs is lost.
        signal.setitimer(signal.ITIMER_REAL, max(grace_s, 0.001), REPEAT_S)

    def _on_alarm(self, _: int, __: FrameType | None) -> None:
        # Ray runs handlers in the midst of its waits, and only this exception comes out of them whole.
        if self._in_work:
            raise KeyboardInterrupt
