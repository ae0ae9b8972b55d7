"""The page of a sweep: what was best, what each setting does, every trial. No scripts, no network, light and dark."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssm_metarl.evaluation.report.charts import Figure
from ssm_metarl.evaluation.report.page import template
from ssm_metarl.evaluation.report.wording import count, listing, number, seconds, signed
from ssm_metarl.tuning.axes import Axis
from ssm_metarl.tuning.charts import (
    MEASURE,
    Drawn,
    drawn,
    is_of_adapter,
    learning,
    parallel,
    response,
    settings_text,
    state_text,
    trial_name,
)
from ssm_metarl.tuning.records import STATES, SweepRecord, TrialRecord

MOST_DRAWN = 500
_TEMPLATE = Path(__file__).with_name("sweep.html.jinja")
_STATE_WORDS = {"stopped": "stopped early"}
# What XML cannot hold, not even escaped, and halves of surrogate pairs, which UTF-8 cannot.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(sweep: SweepRecord) -> str:
    """The page of a sweep as text. Any part that there is nothing to show of is left out, or says so."""
    trials = drawn(sweep)
    best, base = sweep_trial(sweep, sweep.best), sweep_trial(sweep, 0)
    page = template(_TEMPLATE).render(
        title=f"{sweep.name}: a search with {count(len(sweep.trials), 'trial')}",
        subtitle=_subtitle(sweep, trials),
        verdict=verdict(sweep),
        hero=_hero(sweep, best, base) if best else None,
        facts=_facts(sweep),
        comparison=sweep.comparison,
        figures=_figures(sweep, trials),
        left_out=len(trials) - len(_shown(trials)),
        heads=["trial", "before", "after", "gain", "state", "settings"],
        rows=[_row(it) for it in reversed(trials)],
        failures=_failures(sweep),
    )
    return _UNPRINTABLE.sub("\ufffd", page)


def verdict(sweep: SweepRecord) -> str:
    """One sentence: the best trial, its settings, its returns, and whether it beats the base, trial 000."""
    best = sweep_trial(sweep, sweep.best)
    if best is None:
        return "No trial has finished with a score yet, so there is no best one."
    point = best.curve[-1]
    settings = f" ({settings_text(best.settings)})" if best.settings else ""
    return (
        f"The best is {trial_name(best)}{settings}: a return of {number(point.pre)} before and {number(point.post)} "
        f"after adaptation on validation tasks; {_against_base(sweep, best)}."
    )


def sweep_trial(sweep: SweepRecord, index: int | None) -> TrialRecord | None:
    """The trial of that number, if there is one with a point to show."""
    return next((trial for trial in sweep.trials if trial.index == index and trial.curve), None)


def _against_base(sweep: SweepRecord, best: TrialRecord) -> str:
    base = sweep_trial(sweep, 0)
    if best.index == 0:
        return "it is the base itself, which no other finished trial beats"
    difference = _difference(sweep, best, base)
    if base is None or not math.isfinite(difference):
        return "the base (trial 000) has no score to compare it with"
    measure, score = MEASURE[sweep.metric], number(base.score(sweep.metric))
    early = "" if base.state == "finished" else f", {state_text(base)} of {sweep.iterations} iterations"
    words = f"there it beats the base (trial 000, {score}{early}) by {number(difference)} in {measure}"
    return words if difference > 0 else f"there it does not beat the base (trial 000, {measure} {score}{early})"


def _difference(sweep: SweepRecord, best: TrialRecord, base: TrialRecord | None) -> float:
    """How much better the best is than the base; nan if there is no telling."""
    if base is None or base.state == "failed":
        return math.nan
    return best.score(sweep.metric) - base.score(sweep.metric)


def _subtitle(sweep: SweepRecord, trials: Sequence[Drawn]) -> str:
    parts = [count(len(sweep.space), "setting"), f"judged by the {MEASURE[sweep.metric]} on validation tasks"]
    if any(it.trial.iterations for it in trials):
        words = ("call of the Adapter", "calls of the Adapter") if is_of_adapter(sweep) else ("iteration",)
        parts.append(f"up to {count(sweep.iterations, *words)}")
    return " \u00b7 ".join(parts)


def _hero(sweep: SweepRecord, best: TrialRecord, base: TrialRecord | None) -> dict[str, str]:
    point, difference = best.curve[-1], _difference(sweep, best, base)
    shown = best.index != 0 and math.isfinite(difference)
    return {
        "before": number(point.pre),
        "after": number(point.post),
        "name": trial_name(best),
        "gain": signed(difference) if shown else "",
        "measure": MEASURE[sweep.metric],
    }


def _facts(sweep: SweepRecord) -> list[tuple[str, str]]:
    amounts = [(sum(trial.state == state for trial in sweep.trials), state) for state in STATES]
    facts = [(f"{amount:,}", _STATE_WORDS.get(state, state)) for amount, state in amounts if amount]
    steps = sum(trial.num_env_steps for trial in sweep.trials)
    time = sum(trial.seconds for trial in sweep.trials)
    if steps:
        facts.append((f"{steps:,}", "environment steps"))
    return [*facts, (seconds(time), "of trials, added up")] if time > 0 else facts


def _figures(sweep: SweepRecord, trials: Sequence[Drawn]) -> list[Figure]:
    shown = _shown(trials)
    axes = [
        Axis.of(key, spec, [it.trial.settings[key] for it in shown if key in it.trial.settings])
        for key, spec in sweep.space.items()
    ]
    responses = [response(f"response-{index}", sweep, shown, axis) for index, axis in enumerate(axes)]
    figures = [parallel(sweep, shown, axes) if axes else None, *responses, learning(sweep, shown)]
    return [figure for figure in figures if figure] if shown else []


def _shown(trials: Sequence[Drawn]) -> list[Drawn]:
    """The trials that the pictures have room for: the base, and those with the highest scores."""
    return [it for rank, it in enumerate(trials, 1) if len(trials) - rank < MOST_DRAWN or it.trial.index == 0]


def _row(it: Drawn) -> dict[str, Any]:
    trial = it.trial
    returns = ["\u2013"] * 3
    if trial.curve:
        point = trial.curve[-1]
        returns = [number(point.pre), number(point.post), signed(point.post - point.pre)]
    cells = [f"{trial.index:03d}", *returns, state_text(trial), settings_text(trial.settings)]
    return {"cells": cells, "colour": it.colour, "is_best": it.is_best}


def _failures(sweep: SweepRecord) -> list[dict[str, str]]:
    """Each cause once, with the trials that it ended."""
    by_cause: dict[str, list[TrialRecord]] = {}
    for trial in sweep.trials:
        if trial.state == "failed":
            by_cause.setdefault(trial.cause or "no cause is known", []).append(trial)
    return [
        {
            "who": ("trials " if len(trials) > 1 else "trial ") + listing(f"{it.index:03d}" for it in trials),
            "cause": cause,
        }
        for cause, trials in by_cause.items()
    ]
