"""Where the time of the iterations went, and its pictures.

Shape legend: R runs (seeds), N iterations; the four parts are `PARTS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ssm_metarl.evaluation.report.charts import Figure
from ssm_metarl.evaluation.report.groups import Group, iterations, values
from ssm_metarl.evaluation.report.pictures import Picture
from ssm_metarl.evaluation.report.wording import count, listing, percent, seconds

PARTS = {"rollout": "rollout", "gradient": "gradient", "outer": "outer step", "waiting": "waiting"}
"""Part, as in ``metrics.jsonl`` (``rollout_s``) and in the style sheet -> its name for people."""
TITLE = "Where the time of an iteration went"
MOST_COLUMNS = 60
LONG = 3.0
"""Times the median from which an iteration is not like the others: workers started in it, or one was replaced."""


class Spent(NamedTuple):
    """Wall seconds of an iteration by part, mean over runs."""

    iteration: np.ndarray
    """int [N], counted from 0."""
    seconds: np.ndarray
    """[N, 4]; a row adds up to the iteration."""

    @property
    def total(self) -> np.ndarray:
        """[N]."""
        return self.seconds.sum(axis=1)

    @property
    def is_usual(self) -> np.ndarray:
        """Whether the iteration is not much longer than the others, bool [N]."""
        return self.total <= LONG * np.median(self.total)


def time_spent(group: Group) -> Spent | None:
    """Where the time of each iteration went; None if no line says so: an older version wrote them.

    ``rollout_s``, ``gradient_s`` and ``waiting_s`` are sums over the workers, so they are divided by their number.
    While the driver makes its outer step the workers wait: that time is shown as the outer step's.
    """
    records = iterations(group)
    if not records:
        return None
    rollout, gradient, outer, waiting = (values(records, f"{part}_s") for part in PARTS)
    workers = np.maximum(values(records, "workers"), 1.0)
    outer = np.minimum(outer, waiting / workers)
    seconds_NR4 = np.stack([rollout / workers, gradient / workers, outer, waiting / workers - outer], axis=2)
    known_N = (seconds_NR4 >= 0).all(axis=(1, 2)) & (seconds_NR4.sum(axis=2) > 0).all(axis=1)
    if not known_N.any():
        return None
    numbers = np.array([lines[0]["iteration"] for lines in records])
    return Spent(numbers[known_N], seconds_NR4[known_N].mean(axis=1))


def time_per_iteration(name: str, spent: Spent) -> Figure:
    """A column per iteration, or per few of them: its parts on top of each other. Long ones are cut off."""
    usual, most = spent.seconds[spent.is_usual], float(spent.total[spent.is_usual].max()) * 1.25
    shares = usual.sum(axis=0) / usual.sum()
    labels = [f"{text} {percent(share)}" for text, share in zip(PARTS.values(), shares, strict=True)]
    shown = spent.seconds * np.minimum(1.0, most / spent.total)[:, None]
    columns = np.array_split(np.arange(len(shown)), min(len(shown), MOST_COLUMNS))
    means, real = (np.array([rows[column].mean(axis=0) for column in columns]) for rows in (shown, spent.seconds))
    picture = Picture(
        name, TITLE, f"{listing(labels)}.", (0.5, len(shown) + 0.5), (0.0, float(means.sum(axis=1).max())), right=labels
    )
    picture.y_axis("seconds")
    for column, parts, took in zip(columns, means, real, strict=True):
        first, last = column[0], column[-1]
        for (css, text), part, top, amount in zip(PARTS.items(), parts, np.cumsum(parts), took, strict=True):
            hint = f"iteration {spent.iteration[first] + 1}: {text} {seconds(amount)}"
            picture.box((first + 0.54, last + 1.46), (top - part, top), css, hint)
    picture.x_axis("iteration")
    middles = np.cumsum(means[-1]) - means[-1] / 2
    picture.end_labels(list(zip(middles, labels, PARTS, strict=True)))
    return Figure.of(picture, _caption(spent, len(columns[0])))


def _caption(spent: Spent, per_column: int) -> str:
    sentences = [f"An iteration took {seconds(float(np.median(spent.total)))} (median)."]
    if per_column > 1:
        sentences.append(f"A column is the mean of up to {per_column} iterations.")
    if cut := spent.total[~spent.is_usual].tolist():
        took = f"took {seconds(cut[0])}" if len(cut) == 1 else f"took up to {seconds(max(cut))}"
        is_first = spent.iteration[0] == 0 and not spent.is_usual[0]
        why = " (the workers start in the first)" if is_first else ""
        sentences.append(f"{count(len(cut), 'iteration')} {took}{why}: cut off, and not in the shares.")
    return " ".join(sentences)


def time_by_group(name: str, parts: Sequence[tuple[Group, Spent]]) -> Figure:
    """A bar per group: the mean iteration, from its first part to its last."""
    means = [spent.seconds[spent.is_usual].mean(axis=0) for _, spent in parts]
    picture = Picture(
        name,
        TITLE,
        "; ".join(f"{group.label} {seconds(mean.sum())}" for (group, _), mean in zip(parts, means, strict=True)),
        (0.0, max(mean.sum() for mean in means) * 1.02),
        (len(parts) - 0.5, -0.5),
        height=90 + 48 * len(parts),
        left=12,
        right=["  "],
    )
    picture.x_axis("seconds of an iteration")
    for place, (css, text) in zip((12, 100, 200, 316), PARTS.items(), strict=True):
        picture.text(place, 15, f"\u25a0 {text}", f"label {css}")
    for row, ((group, _), mean) in enumerate(zip(parts, means, strict=True)):
        for (css, text), part, end in zip(PARTS.items(), mean, np.cumsum(mean), strict=True):
            picture.box((end - part, end), (row + 0.38, row - 0.04), css, f"{text} {seconds(part)}")
        label = f"{group.label}  {seconds(mean.sum())}"
        picture.text(picture.x.start, picture.y(row - 0.14), label, f"label {group.css}")
    return Figure.of(picture, "Mean over iterations and seeds, without iterations of more than three times the median.")
