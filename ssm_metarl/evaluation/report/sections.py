"""The parts of the report's page: what a run came to, what it survived, how it was set, how to repeat it.

Each is plain data for the template ``report.html.jinja``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from ssm_metarl.config import dump_yaml, settings
from ssm_metarl.evaluation.report import charts, timing
from ssm_metarl.evaluation.report.charts import Figure
from ssm_metarl.evaluation.report.groups import Group, HeldOut, differing_settings, held_out, values
from ssm_metarl.evaluation.report.run_files import Run, as_word, changed, repeat_command
from ssm_metarl.evaluation.report.wording import (
    FAULTS,
    count,
    event,
    interval,
    listing,
    number,
    percent,
    seconds,
    whole,
)
from ssm_metarl.evaluation.statistics import Interval
from ssm_metarl.runtime.storage import is_uri, join

MOST_EVENTS = 200
COLOURS = 7
LONGEST_LABEL = 15

Cells = dict[str, Any]
"""What a part of the template reads; a table has ``title``, ``head`` and ``rows``."""


def results(groups: list[Group], index: int, has_others: bool) -> Cells:
    """What the runs in one environment came to, in pictures and numbers. Names and colours the groups.

    ``index`` counts the environments of the page, ``has_others`` says whether there are several.
    """
    _name(groups)
    evaluated = [(group, joined) for group in groups if (joined := held_out(group))]
    alone = len(groups) == 1
    figures = _figures(groups, evaluated, f"e{index + 1}-" if has_others else "")
    return {
        "heading": groups[0].config.env.id if has_others else "",
        "hero": _hero(*evaluated[0]) if alone and evaluated else None,
        "facts": _facts(groups[0], evaluated[0][1] if evaluated else None) if alone else [],
        "legend": None if alone else _legend(groups, evaluated),
        "figures": figures,
        "tables": [table for group, joined in evaluated for table in _tables(group, joined)],
    }


def _name(groups: Sequence[Group]) -> None:
    """Labels: nothing for a single group, else what differs if that is short, else letters."""
    if len(groups) == 1:
        return
    differing = differing_settings(groups)
    labels = [
        " ".join(f"{key.rpartition('.')[2]} {choices[index]}" for key, choices in differing.items())
        for index in range(len(groups))
    ]
    if max(map(len, labels)) > LONGEST_LABEL:
        labels = [chr(ord("A") + index) if index < 26 else f"#{index + 1}" for index in range(len(groups))]
    for index, (group, label) in enumerate(zip(groups, labels, strict=True)):
        group.label, group.css = label, f"g{index % COLOURS + 1}"


def _figures(groups: Sequence[Group], evaluated: Sequence[tuple[Group, HeldOut]], prefix: str) -> list[Figure]:
    """Every picture, or a sentence in its place."""
    learning = charts.learning_curve(f"{prefix}learning", groups)
    figures = [learning or Figure("Return over training", "No iteration is done yet.")]
    alone = len(groups) == 1
    if not evaluated:
        figures.append(Figure("Return after k adaptation steps", "Not evaluated on held-out tasks yet."))
    elif alone:
        figures += _adaptation_of_one(*evaluated[0], prefix)
    else:
        figures += charts.adaptation_curves(f"{prefix}adaptation", evaluated)
        adapting = [(group, joined) for group, joined in evaluated if joined.steps]
        figures += [charts.gains(f"{prefix}gains", adapting)] if adapting else []
    spent = [(group, spent) for group in groups if (spent := timing.time_spent(group))]
    if not spent:
        unknown = "metrics.jsonl does not say: no iteration is done, or an older version wrote it."
        figures.append(Figure(timing.TITLE, unknown))
    elif alone:
        figures.append(timing.time_per_iteration(f"{prefix}time", spent[0][1]))
    else:
        figures.append(timing.time_by_group(f"{prefix}time", spent))
    return figures


def _adaptation_of_one(group: Group, joined: HeldOut, prefix: str) -> list[Figure]:
    success = charts.success_curve(f"{prefix}success", group, joined)
    return [
        charts.adaptation_curve(f"{prefix}adaptation", group, joined),
        *([success] if success else []),
        *([charts.task_spread(f"{prefix}tasks", joined)] if joined.steps else []),
    ]


def _hero(group: Group, joined: HeldOut) -> Cells:
    means, tasks = joined.means["meta"], count(len(joined.curves.tasks), "held-out task")
    if not joined.steps:
        what = f"mean return, {tasks}; this run takes no gradient steps to adapt"
        return {"before": "", "after": interval(means[0])[0], "gain": None, "what": what}
    episodes = count(joined.steps * group.config.env.episodes_per_task, "episode")
    width = joined.gain.high - joined.gain.low
    return {
        "before": number(means[0].mean, width),
        "after": number(means[joined.steps].mean, width),
        "gain": interval(joined.gain, sign=True),
        "what": f"mean return before \u2192 after {count(joined.steps, 'gradient step')} on {episodes}, {tasks}",
    }


def _facts(group: Group, joined: HeldOut | None) -> list[tuple[str, str]]:
    """(figure, what it counts) each."""
    facts = []
    if joined and joined.steps:
        better = int((joined.after > joined.before).sum())
        facts.append((f"{better} of {len(joined.after)}", "held-out tasks improved"))
    records = [run.records for run in group.runs if run.records]
    if not records:
        return facts
    each = " each" if len(group.runs) > 1 else ""
    fewest = min(len(lines) for lines in records)
    steps = np.mean([values([lines[-1:]], "num_env_steps") for lines in records])
    spent = np.mean([np.nansum(values([lines], "iteration_s")) for lines in records])
    facts += [
        (f"{fewest:,} of {group.config.iterations:,}", f"iterations{each}"),
        (whole(steps), f"environment steps{each}"),
        (seconds(spent), f"of training{each}"),
    ]
    return facts + ([(str(len(group.runs)), "seeds")] if each else [])


def _legend(groups: Sequence[Group], evaluated: Sequence[tuple[Group, HeldOut]]) -> Cells:
    """Which colour is which configuration, and what it came to."""
    differing, lettered, rows = differing_settings(groups), groups[0].label == "A", []
    for index, group in enumerate(groups):
        cells = [group.label] if lettered else []
        cells += [choices[index] for choices in differing.values()]
        joined = next((joined for other, joined in evaluated if other is group), None)
        if joined:
            means = joined.means["meta"]
            estimates = [interval(joined.gain, sign=True), interval(means[0]), interval(means[joined.steps])]
            cells += [" ".join(estimate) for estimate in estimates]
        else:
            cells += ["not evaluated", "", ""]
        rows.append((group.css, [*cells, listing(_seeds(group))]))
    head = [*([""] if lettered else []), *differing, "gained (95 %)", "before", "after", "seeds"]
    return {"head": head, "rows": rows}


def _seeds(group: Group) -> Iterable[str]:
    return sorted((str(run.config.seed) for run in group.runs), key=int)


def _tables(group: Group, joined: HeldOut) -> list[Cells]:
    """The estimates behind the pictures."""
    curves, name = joined.curves, f"{group.label}: " if group.label else ""
    strategies = sorted(curves.returns, key=charts.by_interest)

    def table(title: str, columns: dict[str, Sequence[Any]], show: Any) -> Cells:
        rows = [
            [str(k), f"{k * curves.episodes_per_task:,}", *(show(estimate) for estimate in estimates)]
            for k, estimates in enumerate(zip(*columns.values(), strict=True))
        ]
        return {"title": name + title, "head": ["steps", "episodes", *columns], "rows": rows}

    tables = [
        table("mean return", {s: joined.means[s] for s in strategies}, lambda it: " ".join(interval(it))),
        table("interquartile mean", {s: curves.iqm(s) for s in strategies}, lambda it: " ".join(interval(it))),
    ]
    if curves.successes is not None:
        shares = {strategy: curves.success(strategy) or [] for strategy in strategies}
        tables.append(table("share of episodes that succeed", shares, lambda it: " ".join(interval(it))))
    if curves.pairs:
        differences = {f"{a} \u2212 {b}": curves.difference(a, b) for a, b in curves.pairs}
        better = {f"{a} above {b}": curves.improvement(a, b) for a, b in curves.pairs}
        tables.append(table("difference, task by task", differences, lambda it: " ".join(interval(it, sign=True))))
        tables.append(table("how often better on a task", better, _shares))
    return tables


def _shares(it: Interval) -> str:
    return f"{percent(it.mean)} [{percent(it.low)}, {percent(it.high)}]"


def faults(runs: Sequence[Run]) -> Cells:
    """What the runs survived, counted and told."""
    totals = [{name: _counted(run, name) for name in FAULTS} for run in runs]
    sums = {name: sum(counts[name] for counts in totals) for name in FAULTS}
    words = [count(amount, *FAULTS[name][1:]) for name, amount in sums.items() if amount]
    table = None
    if words and len(runs) > 1:
        head = ["run", *(many for _, _, many in FAULTS.values())]
        rows = [[run.name, *(str(counts[name]) for name in FAULTS)] for run, counts in zip(runs, totals, strict=True)]
        table = {"title": "", "head": head, "rows": rows}
    nothing = "None: no worker was replaced, no call tried again, no rollout lost, and every checkpoint was written."
    events = [_happened(run, len(runs) > 1) for run in runs]
    return {
        "sentence": f"{listing(words)}." if words else nothing,
        "table": table,
        "events": [happened for happened in events if happened],
    }


def _counted(run: Run, name: str) -> int:
    """Faults of a kind in the iterations' lines, or in the events if there are more: those outside of iterations."""
    in_iterations = int(np.nansum(values([run.records], name)))
    return max(in_iterations, sum(record.get("event") == FAULTS[name][0] for record in run.events))


def _happened(run: Run, named: bool) -> Cells | None:
    """The run's events that are no evaluations."""
    events = [event(record) for record in run.events if record.get("event") != "evaluation"]
    if not events:
        return None
    rows = [[it["when"], it["iteration"], it["what"], it["why"]] for it in events[:MOST_EVENTS]]
    amount = count(len(events), "entry", "entries")
    if len(events) > MOST_EVENTS:
        amount += f", the first {MOST_EVENTS} shown; all are in events.jsonl"
    head = ["when (UTC)", "iterations done", "what", "why"]
    return {"name": run.name if named else "", "amount": amount, "title": "", "head": head, "rows": rows}


def configuration(group: Group, named: bool) -> Cells:
    """What was set otherwise than the defaults, and everything."""
    differing = changed(group.config)
    rows = [
        [Markup("<code>{}</code>").format(key), as_word(value), as_word(default), _meaning(key)]
        for key, (value, default) in differing.items()
        if not key.startswith("run.") and (key != "seed" or len(group.runs) == 1)
    ]
    amount = "all as the defaults" if not rows else f"{count(len(rows), 'setting')} not as the defaults"
    title = group.label if named and group.label else group.config.env.id if named else "What was set"
    head = ["setting", "value", "default", "meaning"]
    table = {"title": "", "head": head, "rows": rows}
    return {"title": title, "amount": amount, "table": table, "yaml": dump_yaml(group.config)}


def _meaning(key: str) -> str:
    return " ".join(settings()[key].get("description", "").split())


def repetition(run: Run) -> Cells:
    """The command, and what tells whether the result is the same: hashes and versions."""
    hashes = [line["params_sha256"] for line in run.records if "params_sha256" in line]
    trained = (run.manifest or {}).get("versions", {})
    measured = (run.evaluation or {}).get("versions", {})
    root = run.config.run.dir
    rows = [["folder", join(root, run.name) if is_uri(root) else str(run.folder)]]
    if hashes:
        rows.append(["parameters (sha256)", hashes[-1]])
    for name, digest in (run.manifest or {}).get("files", {}).items():
        rows.append([f"newest checkpoint, {name} (sha256)", digest])
    for name in dict.fromkeys([*trained, *measured]):
        found = list(dict.fromkeys(str(versions[name]) for versions in (trained, measured) if name in versions))
        rows.append([name, found[0] if len(found) == 1 else f"{found[0]} in training, {found[1]} in evaluation"])
    if not (trained or measured):
        rows.append(["versions", "not known: there is no checkpoint in the folder, and no evaluation"])
    return {
        "name": run.name,
        "seed": run.config.seed,
        "command": repeat_command(run.config),
        "promise": "The same parameters come out, bit for bit, on the same kind of processor with the same versions, "
        "whatever the number of workers.",
        "identity": {"title": "", "head": ["", ""], "rows": rows},
    }
