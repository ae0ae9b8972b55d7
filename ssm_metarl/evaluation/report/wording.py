"""Numbers, intervals, tasks and events in words that people read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ssm_metarl.evaluation.statistics import Interval
from ssm_metarl.runtime.metrics import Record

MINUS, NO_NUMBER = "\u2212", "\u2013"
MOST_WRITTEN_OUT = 1e10
FAULTS = {
    "respawns": ("respawn", "worker replaced", "workers replaced"),
    "retries": ("retry", "call tried again", "calls tried again"),
    "recollections": ("recollect", "lost rollout made again", "lost rollouts made again"),
    "failed_saves": ("save_failed", "checkpoint that could not be written", "checkpoints that could not be written"),
}
"""Field of ``metrics.jsonl`` -> the event of ``events.jsonl`` that it counts, one of them and many in words."""

_EVENTS = {
    "respawn": "A worker was replaced",
    "retry": "A call was tried again",
    "recollect": "A lost rollout was made again",
    "save_failed": "A checkpoint could not be written",
    "waiting": "Waited for workers",
    "resize": "Machines came or went",
    "warning": "Warning",
}


def number(value: float, width: float | None = None) -> str:
    """A number with the digits that mean something: about two of ``width`` (of its uncertainty), else three of its own.

    Example: ``number(-12.3456, 0.8)`` is ``−12.35``; ``number(1234.5)`` is ``1,234``.
    """
    if not math.isfinite(value):
        return NO_NUMBER
    if abs(value) >= MOST_WRITTEN_OUT:
        return f"{value:.2e}".replace("-", MINUS)
    finest = width / 10 if width and math.isfinite(width) else abs(value) / 100
    decimals = min(max(-math.floor(math.log10(finest)), 0), 6) if finest > 0 else 0
    text = f"{value:,.{decimals}f}"
    is_zero = not text.strip("-0.,")
    return text.removeprefix("-") if is_zero else text.replace("-", MINUS)


def signed(value: float, width: float | None = None) -> str:
    """The same with its sign, for differences."""
    text = number(value, width)
    return f"+{text}" if value > 0 else text


def interval(estimate: Interval, sign: bool = False) -> tuple[str, str]:
    """The estimate, and its interval in brackets, with as many decimals as the interval's width allows."""
    width, text = estimate.high - estimate.low or None, signed if sign else number
    return text(estimate.mean, width), f"[{text(estimate.low, width)}, {text(estimate.high, width)}]"


def whole(value: float) -> str:
    """A count that may be a mean: ``746,994``."""
    return number(value, 10.0)


def percent(share: float) -> str:
    """``0.257`` is ``26 %``."""
    return f"{number(100 * share, 10.0)} %"


def count(amount: int, one: str, many: str | None = None) -> str:
    """``3 tasks``; ``1 task``."""
    return f"{amount:,} {one if amount == 1 else many or one + 's'}"


def seconds(amount: float) -> str:
    """A duration: ``45 s``, ``12 min``, ``3.4 h``."""
    if amount < 120:
        return f"{number(amount, amount)} s"
    return f"{number(amount / 60, 1.0)} min" if amount < 7200 else f"{number(amount / 3600, 1.0)} h"


def listing(parts: Iterable[str]) -> str:
    """``a, b and c``."""
    *most, last = list(parts) or [""]
    return f"{', '.join(most)} and {last}" if most else last


def task(parameters: Mapping[str, Any]) -> str:
    """A task's parameters on one line."""
    return ", ".join(f"{name} {_short(value)}" for name, value in parameters.items())


def event(record: Record) -> dict[str, str]:
    """When, what and why, of a line of ``events.jsonl`` that is no evaluation."""
    kind = str(record.get("event"))
    concerned = "; ".join(str(record[name]) for name in ("worker", "spec") if name in record)
    when = str(record.get("time", "")).partition("+")[0].replace("T", " ")
    what = _EVENTS.get(kind, kind) + (f" ({concerned})" if concerned else "")
    return {
        "when": when,
        "iteration": str(record.get("iteration", "")),
        "what": what,
        "why": str(record.get("cause", "")),
    }


def environment(name: str) -> str:
    """The short name of an environment: ``ssm_metarl/Navigation2D-v0`` is ``Navigation2D``."""
    base, _, version = name.rpartition("/")[2].rpartition("-v")
    return base if base and version.isdigit() else name


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"({', '.join(_short(part) for part in value)})"
    return number(value) if isinstance(value, int | float) else str(value)
