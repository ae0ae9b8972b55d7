"""The pictures of a sweep: parallel coordinates, response curves and learning curves, coloured by score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from markupsafe import Markup

from ssm_metarl.config_text import plain
from ssm_metarl.evaluation.report.charts import Figure
from ssm_metarl.evaluation.report.pictures import Picture, Scale, tick_text, ticks
from ssm_metarl.evaluation.report.wording import count, number
from ssm_metarl.tuning.axes import Axis, bounded, cut, score_range, spread, value_text
from ssm_metarl.tuning.records import SweepRecord, TrialRecord

COLOURS = 7
FEWEST_FOR_A_MEDIAN, FEWEST_OF_A_VALUE = 5, 3
MEASURE = {
    "post_adaptation": "return after adaptation",
    "pre_adaptation": "return before adaptation",
    "gain": "gain of adaptation",
}
_PITCH, _LETTERS, _INSET, _MANY = 76, 50, 34.0, 50


@dataclass(frozen=True)
class Drawn:
    """A trial as the pictures show it."""

    trial: TrialRecord
    score: float
    """nan if it failed or has none."""
    colour: str
    """Class of its colour, by the rank of its score."""
    is_best: bool
    is_one_of_many: bool

    @property
    def is_early(self) -> bool:
        """Its score is not that of a trial that went to its end."""
        return self.trial.state != "finished"

    @property
    def css(self) -> str:
        """Classes of its line."""
        flags = {"early": self.is_early, "many": self.is_one_of_many, "best": self.is_best}
        return " ".join([self.colour, "trial", *(name for name, holds in flags.items() if holds)])

    @property
    def name(self) -> str:
        """``trial 007``, and what is to be known about it."""
        base, best = (" (the base)" if self.trial.index == 0 else ""), (", the best" if self.is_best else "")
        return f"{trial_name(self.trial)}{base}{best}, {state_text(self.trial)}"


def is_of_adapter(sweep: SweepRecord) -> bool:
    """Whether the trials only adapt: a sweep varies the Adapter's settings alone, or none of them."""
    return bool(sweep.space) and all(key.startswith("adapter.") for key in sweep.space)


def trial_name(trial: TrialRecord) -> str:
    """``trial 007``, as its folder is called."""
    return f"trial {trial.index:03d}"


def state_text(trial: TrialRecord) -> str:
    """``finished``; of one that has not, where it is: ``stopped at 4``."""
    return trial.state if trial.state == "finished" or not trial.iterations else f"{trial.state} at {trial.iterations}"


def settings_text(settings: Mapping[str, Any]) -> str:
    """``inner.lr 0.1, policy.core gru``."""
    return ", ".join(f"{key} {value_text(value)}" for key, value in settings.items())


def drawn(sweep: SweepRecord) -> list[Drawn]:
    """All trials that have begun: those without a score, then from the lowest score to the highest, the best last."""
    scores = {id(trial): _score(trial, sweep) for trial in sweep.trials if trial.state != "waiting" or trial.curve}
    finite = sorted({score for score in scores.values() if math.isfinite(score)})
    # By rank: a few runs that diverged would otherwise leave one colour to all the others.
    colour = {score: f"s{_share(rank, len(finite)) * (COLOURS - 1):.0f}" for rank, score in enumerate(finite)}
    found = [
        Drawn(trial, score, colour.get(score, "unscored"), trial.index == sweep.best, len(scores) > _MANY)
        for trial in sweep.trials
        if (score := scores.get(id(trial))) is not None
    ]
    return sorted(found, key=lambda it: (it.is_best, it.score if math.isfinite(it.score) else -math.inf))


def parallel(sweep: SweepRecord, trials: Sequence[Drawn], axes: Sequence[Axis]) -> Figure:
    """A line per trial through its settings to its score. The axes lie one below the other: any number of them fits
    a narrow screen."""
    rows, (lowest, highest) = len(axes), _range(trials)
    scale = Scale(*spread([lowest, highest]), 0.0, 1.0)
    picture = Picture(
        "parallel",
        "Parallel coordinates",
        f"Parallel coordinates of {count(len(trials), 'trial')}: {', '.join(axis.key for axis in axes)} and the score.",
        (0.0, 1.0),
        (rows, 0.0),
        height=76 + (_PITCH if rows > 4 else 1.3 * _PITCH) * rows,
        left=_INSET,
        right=["  "],
    )
    for row in range(rows + 1):
        picture.segment((0.0, row), (1.0, row), "rail")
    for it in trials:
        shares = [axis.share(axis.unit(it.trial.settings)) for axis in axes]
        _parallel_line(picture, it, [*shares, scale(_within(it.score, lowest))], _hint(it, sweep, whole=True))
    for row, axis in enumerate(axes):
        marks = [(axis.share(unit), text) for unit, text in axis.ticks(_LETTERS - 4)]
        _label(picture, row, plain(axis.key) + (" (log)" if axis.is_log else ""), marks)
    _label(picture, rows, f"score: {MEASURE[sweep.metric]}", _score_marks(scale))
    return Figure(picture.title, _parallel_caption(trials, axes, lowest), picture)


def response(name: str, sweep: SweepRecord, trials: Sequence[Drawn], axis: Axis) -> Figure:
    """The score against one setting, a dot per trial, with the running median of those that finished."""
    lowest, highest = _range(trials)
    points = [(it, _jittered(axis, it), _within(it.score, lowest)) for it in trials]
    points = [point for point in points if math.isfinite(point[1]) and math.isfinite(point[2])]
    title = cut(plain(axis.key), _LETTERS)
    if not points:
        return Figure(title, "No trial with a score has a value here.")
    description = f"{MEASURE[sweep.metric]} of {count(len(points), 'trial')} against {axis.key}"
    picture = Picture(name, title, description, (axis.low, axis.high), spread([lowest, highest]), right=["  "])
    picture.y_axis(MEASURE[sweep.metric])
    marks = axis.ticks(_LETTERS - 4)
    label = title + (" (log)" if axis.is_log else "")
    picture.x_axis(label, [unit for unit, _ in marks], [text for _, text in marks])
    _base_line(picture, trials)
    trend = _median(picture, axis, [(it, y) for it, _, y in points])
    for it, x, y in points:
        css = f"{it.colour} ring" if it.is_early else f"{it.colour} strong"
        value = value_text(it.trial.settings[axis.key])
        picture.dot(x, y, css, f"{_hint(it, sweep)}, {axis.key} {value}", 7.0 if it.is_best else 4.5)
    return Figure(title, _response_caption(points, trials, trend), picture)


def learning(sweep: SweepRecord, trials: Sequence[Drawn]) -> Figure | None:
    """Return after adaptation over the iterations, or calls of the Adapter; None if no trial has two points."""
    trials = [it for it in trials if it.trial.curve]
    if all(len(it.trial.curve) < 2 for it in trials):
        return None
    points = [point for it in trials for point in it.trial.curve]
    emphasised = [it for it in trials if it.is_best or it.trial.index == 0]
    shown = [point.post for it in emphasised for point in it.trial.curve]
    posts = [point.post for point in points]
    lowest, highest = score_range(posts, shown or posts)
    of_adapter = is_of_adapter(sweep)
    steps, last = "calls of the Adapter" if of_adapter else "iterations", max(point.iteration for point in points)
    picture = Picture(
        "learning",
        "Adaptation curves" if of_adapter else "Learning curves",
        f"Return after adaptation on validation tasks of {count(len(trials), 'trial')} over their {steps}.",
        (0.0, max(sweep.iterations, last, 1)),
        spread([lowest, highest]),
        right=[_ending(it) for it in emphasised],
    )
    picture.y_axis("return after adaptation, validation tasks")
    picture.x_axis(steps, [at for at in ticks(picture.x.low, picture.x.high) if at == int(at)])
    for it in trials:
        _curve(picture, it, lowest, _hint(it, sweep))
    picture.end_labels([(_within(it.trial.curve[-1].post, lowest), _ending(it), it.colour) for it in emphasised])
    stopped = "Dashed, ending in a ring: not (yet) at the end. " if any(it.is_early for it in trials) else ""
    return Figure(picture.title, f"{stopped}Colour: by score. {_outside(posts, lowest, 'point')}".strip(), picture)


def _score(trial: TrialRecord, sweep: SweepRecord) -> float:
    score = math.nan if trial.state == "failed" else trial.score(sweep.metric)
    return score if math.isfinite(score) else math.nan


def _share(rank: int, amount: int) -> float:
    return rank / (amount - 1) if amount > 1 else 1.0


def _range(trials: Sequence[Drawn]) -> tuple[float, float]:
    return score_range((it.score for it in trials), (it.score for it in trials if it.is_best or it.trial.index == 0))


def _within(score: float, lowest: float) -> float:
    """The score, or the end of the axis that it lies beyond; nan if it is not finite."""
    return max(lowest, *bounded([score])) if math.isfinite(score) else math.nan


def _outside(scores: Iterable[float], lowest: float, what: str = "score") -> str:
    amount = sum(score < lowest for score in bounded(scores))
    return f"{count(amount, what)} below {number(lowest)}: drawn at the edge." if amount else ""


def _hint(it: Drawn, sweep: SweepRecord, whole: bool = False) -> str:
    text = f"{it.name}: {MEASURE[sweep.metric]} {number(it.score)}"
    return f"{text}; {settings_text(it.trial.settings)}" if whole else text


def _score_marks(scale: Scale) -> list[tuple[float, str]]:
    scores = ticks(scale.low, scale.high)
    return [(scale(score), tick_text(score, scores[1] - scores[0])) for score in scores]


def _parallel_line(picture: Picture, it: Drawn, places: Sequence[float], hint: str) -> None:
    picture.line(places, range(len(places)), it.css, hint=hint)
    if it.is_best or it.trial.index == 0:
        css, radius = ("strong", 6.0) if it.is_best else ("ring", 4.0)
        for row, place in enumerate(places):
            picture.dot(place, row, f"{it.colour} {css}", hint, radius)


def _label(picture: Picture, row: int, name: str, marks: Sequence[tuple[float, str]]) -> None:
    """An axis of the parallel coordinates, over the lines: its name above it, its values below it."""
    for place, text in marks:
        picture.whisker(place, row - 0.05, row + 0.05, "rail")
        picture.text(picture.x(place), picture.y(row) + 20, text, "label before mark", "middle")
    picture.text(4, picture.y(row) - 12, cut(name, _LETTERS), "label ink")


def _jittered(axis: Axis, it: Drawn) -> float:
    """Where a trial lies on an axis. Those of a category stand side by side, by the golden ratio: evenly, and always
    the same."""
    unit = axis.unit(it.trial.settings)
    return unit + 0.5 * ((it.trial.index * 0.618034) % 1.0 - 0.5) if axis.categories else unit


def _base_line(picture: Picture, trials: Sequence[Drawn]) -> None:
    for it in trials:
        if it.trial.index == 0 and math.isfinite(it.score):
            [score] = bounded([it.score])
            picture.segment((picture.x.low, score), (picture.x.high, score), "nothing")


def _median(picture: Picture, axis: Axis, points: Sequence[tuple[Drawn, float]]) -> str:
    """Draws the median of the finished trials' scores: of each value where there are few, else the running one.

    Args:
        points: trial and score.

    Returns:
        what it is, in a sentence; empty if there are too few trials.
    """
    ended = sorted((axis.unit(it.trial.settings), it.trial.index, y) for it, y in points if not it.is_early)
    if len(ended) < FEWEST_FOR_A_MEDIAN:
        return ""
    places = sorted({x for x, _, _ in ended})
    if not axis.categories and len(places) > len(ended) / FEWEST_OF_A_VALUE:
        half, ys = max(2, len(ended) // 10), [y for _, _, y in ended]
        medians = {x: median(ys[max(0, at - half) : at + half + 1]) for at, (x, _, _) in enumerate(ended)}
        picture.line(places, [medians[x] for x in places], "trend")
        return "Line: running median of the finished."
    width = 0.3 if axis.categories else 0.03 * (axis.high - axis.low)
    for place in places:
        own = [y for x, _, y in ended if x == place]
        if len(own) >= FEWEST_OF_A_VALUE:
            picture.segment((place - width, median(own)), (place + width, median(own)), "trend")
    return f"Bars: median of {FEWEST_OF_A_VALUE} or more finished trials."


def _curve(picture: Picture, it: Drawn, lowest: float, hint: str) -> None:
    points = [(point.iteration, _within(point.post, lowest)) for point in it.trial.curve]
    picture.line([x for x, _ in points], [y for _, y in points], it.css, hint=hint)
    if points and (it.is_early or len(points) == 1):
        picture.dot(*points[-1], f"{it.colour} ring", hint, 3.0)


def _ending(it: Drawn) -> str:
    words = [word for word, holds in (("best", it.is_best), ("base", it.trial.index == 0)) if holds]
    return " = ".join(words)


def _parallel_caption(trials: Sequence[Drawn], axes: Sequence[Axis], lowest: float) -> Markup:
    scored = [it.score for it in trials if math.isfinite(it.score)]
    legend = Markup("")
    if len(set(scored)) > 1:
        swatches = Markup("").join(Markup('<span class="swatch s{}"></span>').format(index) for index in range(COLOURS))
        legend = Markup("Score, by rank: {} {}{}. ").format(number(min(scored)), swatches, number(max(scored)))
    is_missing = any(not math.isfinite(axis.unit(it.trial.settings)) for it in trials for axis in axes)
    parts = [
        "Thick: the best." if any(it.is_best for it in trials) else "",
        "Rings: the base." if any(it.trial.index == 0 and not it.is_best for it in trials) else "",
        "Dashed: not at the end (stopped early, running or failed)." if any(it.is_early for it in trials) else "",
        "Grey: no score." if len(scored) < len(trials) else "",
        "A value that an axis cannot show interrupts the line." if is_missing else "",
        _outside(scored, lowest),
    ]
    return legend + " ".join(part for part in parts if part)


def _response_caption(points: Sequence[tuple[Drawn, float, float]], trials: Sequence[Drawn], trend: str) -> str:
    is_early = any(it.is_early for it, _, _ in points)
    has_base = any(it.trial.index == 0 and math.isfinite(it.score) for it in trials)
    parts = [
        "Rings: not at the end (stopped early or running)." if is_early else "",
        trend,
        "Dashed: the base's score." if has_base else "",
        _outside((it.score for it, _, _ in points), _range(trials)[0]),
    ]
    return " ".join(part for part in parts if part)
