"""The pictures of learning and adaptation.

One group's pictures are coloured by what was done (before, after; none, online, meta), those of several by group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from ssm_metarl.evaluation.report.groups import Curve, Group, HeldOut, iterations, smooth, thinned, values, window
from ssm_metarl.evaluation.report.pictures import Picture, Scale, around
from ssm_metarl.evaluation.report.wording import count, interval, listing, number, signed, task
from ssm_metarl.evaluation.statistics import Interval
from ssm_metarl.runtime.metrics import Record

RETURN = "mean return of an episode"

Line = tuple[str, str, list[Interval]]
"""Label, css class, and an estimate after k = 0, 1, ... steps."""


class Figure(NamedTuple):
    """A picture with its title and the sentence under it; without data, the sentence alone."""

    title: str
    caption: str
    picture: Picture | Markup | None = None

    @classmethod
    def of(cls, picture: Picture, caption: str) -> Figure:
        """The figure of a picture."""
        return cls(picture.title, caption, picture)


def learning_curve(name: str, groups: Sequence[Group]) -> Figure | None:
    """Return on training tasks before and after adaptation, with bands; None if no iteration is done.

    Of a single group also the evaluations on held-out tasks.
    """
    shown = [learned for group in groups if (learned := _learned(group))]
    if not shown:
        return None
    alone = len(groups) == 1
    dots = _validations(groups[0]) if alone else np.empty((0, 3))
    heights = [line for learned in shown for curve in (learned.before, learned.after) for line in curve]
    labels = ["after", "before"] if alone else [learned.group.label for learned in shown]
    furthest = max(float(learned.steps.max()) for learned in shown)
    picture = Picture(
        name,
        "Return over training",
        "; ".join(_in_words(learned) for learned in shown),
        (0.0, furthest if furthest > 0 else 1.0),
        around(np.concatenate([*heights, dots[:, 1], dots[:, 2]]).tolist()),
        right=labels,
    )
    picture.y_axis(RETURN)
    picture.x_axis("environment steps")
    for learned in shown:
        _draw(picture, learned, alone)
    for step, before, after in dots:
        picture.dot(step, before, "before ring", f"held-out tasks, before: {number(before)}")
        picture.dot(step, after, "after ring", f"held-out tasks, after: {number(after)}")
    if alone:
        ends = [(shown[0].after.mean[-1], "after", "after"), (shown[0].before.mean[-1], "before", "before")]
    else:
        ends = [(learned.after.mean[-1], learned.group.label, learned.group.css) for learned in shown]
    picture.end_labels(ends)
    return Figure.of(picture, _learning_caption(shown, alone, len(dots) > 0))


def adaptation_curve(name: str, group: Group, joined: HeldOut) -> Figure:
    """Return over adaptation steps, a line per strategy."""
    lines = [(strategy, strategy, means) for strategy, means in joined.means.items()]
    picture = _over_steps(name, "Return after k adaptation steps", RETURN, lines, lines, group)
    what = f"{count(len(joined.curves.tasks), 'held-out task')}, {count(len(joined.runs), 'seed')}"
    return Figure.of(picture, f"{what}; bars: {joined.curves.interval}.")


def success_curve(name: str, group: Group, joined: HeldOut) -> Figure | None:
    """Success rate over adaptation steps, a line per strategy; None where the family knows no success."""
    if joined.curves.successes is None:
        return None
    lines = [(strategy, strategy, joined.curves.success(strategy) or []) for strategy in joined.means]
    picture = _over_steps(name, "Success after k adaptation steps", "share of episodes", lines, lines, group)
    return Figure.of(picture, f"Bars: {joined.curves.interval}.")


def adaptation_curves(name: str, parts: Sequence[tuple[Group, HeldOut]]) -> list[Figure]:
    """A picture per strategy on one scale, in each a line per group."""
    everything = [(group.label, group.css, means) for group, joined in parts for means in joined.means.values()]
    found = {strategy for _, joined in parts for strategy in joined.means}
    figures = []
    for strategy in sorted(found, key=by_interest):
        lines = [
            (group.label, group.css, joined.means[strategy]) for group, joined in parts if strategy in joined.means
        ]
        title = f"Return after k steps, strategy {strategy}"
        picture = _over_steps(f"{name}-{strategy}", title, RETURN, lines, everything, parts[0][0])
        figures.append(Figure.of(picture, "Bars: 95 % intervals over tasks, and over seeds where there are several."))
    return figures


def by_interest(strategy: str) -> tuple[bool, bool]:
    """Sorts strategies: meta, online, none."""
    return strategy != "meta", strategy != "online"


def task_spread(name: str, joined: HeldOut) -> Figure:
    """A row per held-out task, from its return before adaptation to the one after; the best at the top."""
    before, after = joined.before, joined.after
    rows, better = len(after), int((after > before).sum())
    picture = Picture(
        name,
        "Each held-out task",
        f"{better} of {count(rows, 'task')} have a higher return after adaptation than before.",
        around([*before, *after]),
        (-0.7, rows - 0.3),
        height=76 + max(rows * min(12.0, 300 / rows), 60),
        left=12,
        right=["  "],
    )
    picture.text(1, 15, "one row per task")
    picture.x_axis(RETURN)
    for row, index in enumerate(np.argsort(after)):
        start, end = before[index], after[index]
        hint = f"{task(joined.curves.tasks[index])}: {number(start)} \u2192 {number(end)}"
        picture.segment((start, row), (end, row), "after" if end >= start else "worse")
        picture.dot(start, row, "before", hint, 3.2)
        picture.dot(end, row, "after", hint, 3.2)
    return Figure.of(picture, f"{better} of {count(rows, 'task')} improved. Grey: before, orange: after adaptation.")


def gains(name: str, parts: Sequence[tuple[Group, HeldOut]]) -> Figure:
    """What adaptation gained on each held-out task: a row of dots per group, and the mean with its interval."""
    gains_GK = [joined.after - joined.before for _, joined in parts]
    picture = Picture(
        name,
        "Gain on each held-out task",
        "; ".join(f"{group.label} {' '.join(interval(joined.gain, sign=True))}" for group, joined in parts),
        around(np.concatenate([*gains_GK, *(joined.gain for _, joined in parts), [0.0]]).tolist()),
        (len(parts) - 0.5, -0.5),
        height=80 + 64 * len(parts),
        left=12,
        right=["  "],
    )
    picture.x_axis("return after \u2212 return before adaptation")
    picture.segment((0.0, -0.5), (0.0, len(parts) - 0.5), "nothing")
    for row, ((group, joined), gain_K) in enumerate(zip(parts, gains_GK, strict=True)):
        middle = row + 0.12
        for index, offset in enumerate(_swarm(gain_K, picture.x)):
            hint = f"{task(joined.curves.tasks[index])}: {signed(gain_K[index])}"
            picture.dot(gain_K[index], middle + offset, f"{group.css} pale", hint, 3.0)
        mean = joined.gain
        picture.segment((mean.low, middle), (mean.high, middle), f"{group.css} strong")
        picture.dot(mean.mean, middle, f"{group.css} strong", f"mean {' '.join(interval(mean, sign=True))}", 5.5)
        label = f"{group.label}  {interval(mean, sign=True)[0]}"
        picture.text(picture.x.start, picture.y(row - 0.34), label, f"label {group.css}")
    return Figure.of(picture, "Pale dots: tasks. Large dot and bar: mean and 95 % interval. Dashed: nothing gained.")


class _Learned(NamedTuple):
    group: Group
    steps: np.ndarray
    before: Curve
    after: Curve
    width: int


def _learned(group: Group) -> _Learned | None:
    records = iterations(group)
    steps = values(records, "num_env_steps").mean(axis=1) if records else np.empty(0)
    keep = thinned(np.flatnonzero(np.isfinite(steps)))
    if not len(keep):
        return None
    width = window(len(records))
    before, after = (
        Curve(*(line[keep] for line in smooth(values(records, f"return_{when}_adaptation"), width)))
        for when in ("pre", "post")
    )
    return _Learned(group, steps[keep], before, after, width)


def _draw(picture: Picture, learned: _Learned, alone: bool) -> None:
    """One group's two curves. Of several groups only the later band is drawn: it would be too much to see anything."""
    css = learned.group.css
    before, after = ("before", "after") if alone else (f"{css} faint", css)
    if alone:
        picture.band(learned.steps, learned.before.low, learned.before.high, before)
    picture.band(learned.steps, learned.after.low, learned.after.high, after)
    for css, curve in ((before, learned.before), (after, learned.after)):
        picture.line(learned.steps, curve.mean, css)
        if len(learned.steps) == 1:
            picture.dot(learned.steps[0], curve.mean[0], css)


def _validations(group: Group) -> np.ndarray:
    """(environment steps, before, after) of the evaluations on held-out tasks that all its runs made, [M, 3]."""
    found = [
        {event["iteration"]: event for event in run.events if event.get("event") == "evaluation" and _is_dated(event)}
        for run in group.runs
    ]
    rows = []
    for records in iterations(group):
        done = records[0]["iteration"] + 1
        events = [evaluations[done] for evaluations in found if done in evaluations]
        if len(events) == len(found):
            means = [values([events], when).mean() for when in ("pre", "post")]
            rows.append([values([records], "num_env_steps").mean(), *means])
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def _is_dated(event: Record) -> bool:
    return isinstance(event.get("iteration"), int)


def _in_words(learned: _Learned) -> str:
    name = f"{learned.group.label}: " if learned.group.label else ""
    before, after = learned.before.mean, learned.after.mean
    return (
        f"{name}after adaptation from {number(after[0])} to {number(after[-1])}, "
        f"before it from {number(before[0])} to {number(before[-1])}"
    )


def _learning_caption(shown: Sequence[_Learned], alone: bool, has_dots: bool) -> str:
    width, seeds = (max(numbers) for numbers in zip(*((s.width, len(s.group.runs)) for s in shown), strict=True))
    line = f"mean of {width} neighbouring iterations" if width > 1 else "one point per iteration"
    band = ""
    if seeds > 1:
        band = "; band: lowest to highest seed"
    elif width > 1:
        band = "; band: lowest to highest of them"
    over = f", and of {count(seeds, 'seed')}" if seeds > 1 and alone else ""
    parts = [f"Training tasks. Line: {line}{over}{band}."]
    if has_dots:
        parts.append("Rings: held-out tasks.")
    if not alone:
        parts.append("Dashed: before adaptation.")
    return " ".join(parts)


def _over_steps(
    name: str, title: str, measure: str, lines: Sequence[Line], scale: Sequence[Line], group: Group
) -> Picture:
    """Estimates over k with their intervals; ``scale``: all that the y axis must hold."""
    last = max(len(means) for _, _, means in lines) - 1
    bounds = [bound for _, _, means in scale for estimate in means for bound in estimate]
    description = "; ".join(
        f"{label}: {listing(' '.join(interval(estimate)) for estimate in means)}" for label, _, means in lines
    )
    labels = [label for label, _, _ in lines]
    picture = Picture(name, title, description, (-0.2, last + 0.2), around(bounds), right=labels)
    picture.y_axis(measure)
    per_step = count(group.config.env.episodes_per_task, "episode")
    picture.x_axis(f"adaptation steps k, on {per_step} each", range(last + 1))
    for index, (label, css, means) in enumerate(lines):
        shift = 5.0 * (index - (len(lines) - 1) / 2)
        picture.line(range(len(means)), [estimate.mean for estimate in means], f"{css} thin", shift)
        for k, estimate in enumerate(means):
            picture.whisker(k, estimate.low, estimate.high, css, shift)
            picture.dot(k, estimate.mean, css, f"{label}, k = {k}: {' '.join(interval(estimate))}", shift=shift)
    picture.end_labels([(means[-1].mean, label, css) for label, css, means in lines])
    return picture


def _swarm(gain_K: np.ndarray, x: Scale) -> np.ndarray:
    """Offsets in rows [K] that keep dots from covering each other, as far as a row has room."""
    offsets, placed = np.zeros(len(gain_K)), []
    choices = [sign * step * 0.1 for step in range(4) for sign in (1, -1)]
    for index in np.argsort(gain_K):
        place = x(gain_K[index])
        near = [offset for other, offset in placed if abs(other - place) < 6.0]
        offsets[index] = next((choice for choice in choices if choice not in near), 0.0)
        placed.append((place, offsets[index]))
    return offsets
