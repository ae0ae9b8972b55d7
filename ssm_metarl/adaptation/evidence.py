"""What an `Adapter` makes of its observations: running moments, and a test for "this is not the same task any more"."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution

WINDOW = 20
"""Values that a new one is compared with: the last so many."""
MIN_DEGREES_OF_FREEDOM = 4


class Moments:
    """Mean and variance of all rows seen so far, per feature (Chan, Golub, LeVeque 1983: merging of batches)."""

    def __init__(self) -> None:
        self.count, self.mean_O, self.sum_of_squares_O = 0, np.zeros(0), np.zeros(0)

    def shift(self, rows_BO: np.ndarray) -> float:
        """Distance of a batch's mean from the mean so far, in standard deviations (root mean square over features)."""
        if self.count and rows_BO.shape[1:] != self.mean_O.shape:
            raise ValueError(f"observations have {rows_BO.shape[1]} features now, and had {len(self.mean_O)} before")
        if self.count < 2:
            return 0.0
        variance_O = self.sum_of_squares_O / (self.count - 1)
        return float(np.sqrt(np.mean((rows_BO.mean(axis=0) - self.mean_O) ** 2 / (variance_O + 1e-8))))

    def add(self, rows_BO: np.ndarray) -> None:
        """Counts a batch [B, O] in."""
        batch, mean_O = len(rows_BO), rows_BO.mean(axis=0)
        squares_O = ((rows_BO - mean_O) ** 2).sum(axis=0)
        if self.count == 0:
            self.count, self.mean_O, self.sum_of_squares_O = batch, mean_O, squares_O
            return
        total, gap_O = self.count + batch, mean_O - self.mean_O
        self.sum_of_squares_O = self.sum_of_squares_O + squares_O + gap_O**2 * self.count * batch / total
        self.mean_O = self.mean_O + gap_O * batch / total
        self.count = total


class RiseTest:
    """Whether new values are higher than the last ones by more than chance: Student's t, one-sided, equal variances.

    For independent normal values of one distribution a call is a false alarm with a probability of about
    ``false_alarm_rate``, however many values it brings; values with heavier tails raise more.

    Args:
        false_alarm_rate: per call.
    """

    def __init__(self, false_alarm_rate: float) -> None:
        self._limit = NormalDist().inv_cdf(1.0 - false_alarm_rate)
        self.values: deque[float] = deque(maxlen=WINDOW)

    def rises(self, values: Sequence[float]) -> bool:
        """Compares with the window; values that do not rise enter it."""
        reference, new = np.array(self.values), np.asarray(values, dtype=np.float64)
        degrees = len(reference) + len(new) - 2
        if len(reference) > 1 and degrees >= MIN_DEGREES_OF_FREEDOM:
            squares = ((reference - reference.mean()) ** 2).sum() + ((new - new.mean()) ** 2).sum()
            error = math.sqrt(squares / degrees * (1 / len(reference) + 1 / len(new)))
            gap = new.mean() - reference.mean()
            # Values that are all the same: whatever exceeds them by more than rounding is new.
            t = gap / error if error > 0 else math.copysign(math.inf, gap) if abs(gap) > 1e-6 else 0.0
            if _normal_equivalent(t, degrees) > self._limit:
                return True
        self.values.extend(new.tolist())
        return False

    def clear(self) -> None:
        """Forgets the window: another task begins."""
        self.values.clear()


def _normal_equivalent(t: float, degrees: int) -> float:
    """The standard normal value that is exceeded as often as ``t`` is by Student's t (Wallace 1959)."""
    if math.isinf(t):
        return t
    scale = (8 * degrees + 1) / (8 * degrees + 3)
    return math.copysign(scale * math.sqrt(degrees * math.log1p(t * t / degrees)), t)


def describe(context: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Of what `Adapter.observe` is given: a record of plain values, and the finite numbers that tests may use.

    Numbers: ``return`` and ``loss`` [n], ``observations`` [B, O]; what is empty or not finite is left out of them.

    Raises:
        ValueError: a value that cannot be read as numbers.
    """
    record = {name: value for name, value in context.items() if isinstance(value, str | int | float | None)}
    numbers = {}
    for name in ("return", "loss", "observations"):
        if name in context:
            numbers[name] = _numbers(name, context[name])
    for name in numbers.keys() & {"return", "loss"}:
        numbers[name] = numbers[name].ravel()
        record[name] = float(numbers[name].mean()) if numbers[name].size else None
    if "observations" in numbers:
        rows = np.atleast_1d(numbers["observations"])
        numbers["observations"] = rows.reshape(-1, rows.shape[-1])
    usable = {name: value for name, value in numbers.items() if value.size and np.isfinite(value).all()}
    return record | _predictive(context), usable


def _numbers(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"observe cannot read {name!r} as numbers: {error}") from error


def _predictive(context: Mapping[str, Any]) -> dict[str, float]:
    """Mean entropy [nats] of what the target predicts, and the mean probability of the likeliest outcome."""
    distribution = context.get("distribution")
    if "logits" in context:
        distribution = Categorical(logits=torch.from_numpy(_numbers("logits", context["logits"])), validate_args=False)
    if distribution is None:
        return {}
    if not isinstance(distribution, Distribution):
        raise ValueError(f"observe takes a torch Distribution as 'distribution', got {type(distribution).__name__}")
    found = {"entropy": float(distribution.entropy().mean())}
    if isinstance(distribution, Categorical):
        found["confidence"] = float(distribution.probs.max(dim=-1).values.mean())
    return found
