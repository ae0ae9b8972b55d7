"""``ssm-metarl check-env``: what is wrong with an environment or a family of tasks, how to mend it, how fast it is.

A check is a function from a `Subject` to its findings. What it raises is a finding too, and the other checks still run.
Budgets of steps and of seconds are looked at between steps, so a single step that never returns is not caught.
"""

from __future__ import annotations

import contextlib
import functools
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium
import numpy as np

from ssm_metarl.config import EnvConfig
from ssm_metarl.env_runner.families import NATIVE
from ssm_metarl.env_runner.family import TaskFamily, as_task
from ssm_metarl.env_runner.probe import (
    Played,
    cpu_seconds,
    episode,
    first_difference,
    play,
    row_episode,
    row_stepper,
    said,
    stepper,
)
from ssm_metarl.env_runner.tasks import make_family
from ssm_metarl.env_runner.vector import MetaVectorEnv, TaskError
from ssm_metarl.types import Task

WIDTH = 100
STEPS, SECONDS = 200, 2.0
"""Budget of one episode that is compared with another."""
PLAY_STEPS, ENDLESS_STEPS, PLAY_SECONDS = 1000, 10_000, 5.0
NUM_TASKS = 6
SPEED_BLOCKS, SPEED_SECONDS = 5, 10.0
PROVISIONAL_HORIZON = 1000
CANNOT_BE_MADE = "as it cannot be made"


@dataclass(frozen=True)
class Finding:
    """What a check says. ``error``: training will fail or be wrong; ``warning``: it may be meant so."""

    level: Literal["fine", "not tried", "warning", "error"]
    text: str
    cure: str = ""


class NotTried(Exception):
    """A check for which something earlier is missing."""


@dataclass
class Subject:
    """What is examined, and what earlier checks have found out about it."""

    config: EnvConfig
    family: TaskFamily | None = None
    no_horizon: str = ""
    """The message of a family that says no horizon."""
    faulty: set[str] = field(default_factory=set)
    """Names of the checks that found an error."""
    _opened: list[Any] = field(default_factory=list)

    def need_family(self) -> TaskFamily:
        """The family, or NotTried."""
        if self.family is None:
            raise NotTried(CANNOT_BE_MADE)
        return self.family

    def need(self, *names: str) -> None:
        """Raises NotTried if one of these checks found an error."""
        for name in names:
            if name in self.faulty:
                raise NotTried(f"see {name}")

    def need_episodes(self, *names: str) -> None:
        """Comparing episodes needs some, which repeat."""
        self.need("reset", "step", "observations", "rewards", "seed", *names)

    def make_env(self) -> gymnasium.Env:
        """A single environment, as its author wrote it."""
        try:
            env = self._make_env()
        except NotTried:
            raise
        except Exception as error:
            if self.family is None:
                raise NotTried(CANNOT_BE_MADE) from error
            raise
        self._opened.append(env)
        return env

    def _make_env(self) -> gymnasium.Env:
        config, family = self.config, self.family
        if family is None or config.id.rpartition(":")[2] in gymnasium.registry:
            variant = {"variant": config.variant} if config.variant else {}
            return gymnasium.make(config.id, disable_env_checker=True, **config.kwargs, **variant)
        if type(family).make_env is TaskFamily.make_env:
            raise NotTried("as the family has vector environments of its own")
        env = family.make_env()
        family.apply_task(env, family.sample(np.random.default_rng(0), 1)[0])
        return env

    def make_vector(self, num_envs: int) -> MetaVectorEnv:
        """Rows, as rollouts have them."""
        env = self.need_family().make_vector(num_envs)
        self._opened.append(env)
        return env

    @property
    def is_native(self) -> bool:
        return self.config.id.rpartition(":")[2] in NATIVE

    @functools.cached_property
    def env(self) -> gymnasium.Env:
        """The one that is looked at."""
        return self.make_env()

    @functools.cached_property
    def played(self) -> Played:
        """Some episodes of random actions in it."""
        return play(self.env, PLAY_STEPS, ENDLESS_STEPS if self.no_horizon else PLAY_STEPS, PLAY_SECONDS)

    def close(self) -> None:
        """Frees what was made."""
        for env in self._opened:
            with contextlib.suppress(Exception):
                env.close()

    def seen(self, about: str) -> list[Finding]:
        """What those episodes brought to light."""
        return [Finding(*fault) for fault in self.played.faults.get(about, ())]


def examine(config: EnvConfig) -> int:
    """Prints what every check says. Returns 0, or 1 if the environment cannot be trained in as it is."""
    subject, wrong = Subject(config), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, check in CHECKS.items():
            findings = run_check(check, subject)
            for finding in findings:
                _print_finding(name, finding)
            wrong += [(name, finding) for finding in findings if finding.level in ("warning", "error")]
            if any(finding.level == "error" for finding in findings):
                subject.faulty.add(name)
        subject.close()
    if subject.faulty:
        print(f"\n{config.id} cannot be trained in as it is:")
    else:
        print(f"\n{config.id} can be trained in, but:" if wrong else f"\nall is well with {config.id}")
    for name, finding in wrong:
        print(_wrapped(f"  {name}: ", finding.text, "    "))
        if finding.cure:
            print(_wrapped("    cure: ", finding.cure, "      "))
    return int(bool(subject.faulty))


def run_check(check: Callable[[Subject], list[Finding]], subject: Subject) -> list[Finding]:
    """What one check says; what it raises is an error."""
    try:
        return check(subject)
    except NotTried as reason:
        return [Finding("not tried", str(reason))]
    except TaskError as error:
        return [Finding("error", " ".join(str(error).split()))]
    except Exception as error:
        return [Finding("error", said(error))]


def construction(subject: Subject) -> list[Finding]:
    """Builds the family."""
    config = subject.config
    try:
        subject.family = make_family(config)
    except TaskError as error:
        if not str(error).startswith("env.horizon:"):
            return [Finding("error", str(error), _cure(error, config))]
        # The check of ends says more about it; the others go on with some number.
        subject.no_horizon = str(error)
        subject.family = make_family(config.model_copy(update={"horizon": PROVISIONAL_HORIZON}))
    family = subject.family
    spaces = f"observes {family.observation_dim} numbers, acts by {family.action_space}"
    horizon = "no horizon" if subject.no_horizon else f"horizon {family.horizon}"
    return [Finding("fine", f"{spaces}, {horizon}")]


def _cure(error: TaskError, config: EnvConfig) -> str:
    missing = error.__cause__
    if isinstance(missing, ImportError) and missing.name and "pip install" not in str(error):
        if missing.name == config.id.rpartition(":")[0]:
            return "install it, or start in the folder that it is in: python -m ssm_metarl check-env ..."
        return f"pip install {missing.name.partition('.')[0]}, or the package that brings it"
    if "no gymnasium environment is called" in str(error) and ":" not in config.id:
        return "if another package registers it, name that package too: env.id: package:ID"
    return ""


def reset(subject: Subject) -> list[Finding]:
    """How episodes begin."""
    return subject.seen("reset") or [
        Finding("fine", f"{len(subject.played.lengths) + 1} times, an observation and a dict")
    ]


def step(subject: Subject) -> list[Finding]:
    """What a step returns."""
    subject.need("reset")
    return subject.seen("step") or [Finding("fine", f"{subject.played.steps} with random actions")]


def observations(subject: Subject) -> list[Finding]:
    """Observations against their space."""
    subject.need("reset")
    fine = f"{subject.played.steps} of the shape and the type that the space says, finite and within its bounds"
    return subject.seen("observation") or [Finding("fine", fine)]


def rewards(subject: Subject) -> list[Finding]:
    """Rewards are numbers."""
    played = subject.played
    if not played.rewards and not played.faults.get("reward"):
        raise NotTried("see reset and step")
    low, high = (min(played.rewards), max(played.rewards)) if played.rewards else (0.0, 0.0)
    return subject.seen("reward") or [Finding("fine", f"between {low:.4g} and {high:.4g}")]


def ends(subject: Subject) -> list[Finding]:
    """When episodes end."""
    family, played = subject.need_family(), subject.played
    seen = played.lengths
    if subject.no_horizon:
        shown = f"episodes took {min(seen)} to {max(seen)} steps" if seen else f"no end within {played.steps} steps"
        text = f"{'never ends' if not seen else 'has no horizon'}: no time limit, and {shown}"
        return [Finding("error", text, "set the number of steps of an episode, such as --env.horizon 200")]
    if len(seen) >= 3 and max(seen) == 1 and family.horizon > 1:
        text = f"all {len(seen)} episodes ended at their first step"
        return [Finding("warning", text, "if that is not meant, look at what step returns as terminated")]
    own_limit = subject.env.spec.max_episode_steps if subject.env.spec and not subject.is_native else None
    if own_limit is not None and own_limit < family.horizon:
        text = f"its own time limit of {own_limit} steps comes before the horizon of {family.horizon}"
        return [Finding("warning", text, f"env.horizon {own_limit}, or max_episode_steps where it is registered")]
    shown = f"episodes took {min(seen)} to {max(seen)} steps" if seen else f"no end within {played.steps} steps"
    return [Finding("fine", f"{shown}; cut after {family.horizon}")]


def seed(subject: Subject) -> list[Finding]:
    """The same seed and the same actions make the same episode."""
    subject.need_episodes()
    one, other = subject.make_env(), subject.make_env()
    for number in range(3):
        first = episode(one, number, STEPS, SECONDS)
        at = first_difference(first, episode(other, number, STEPS, SECONDS))
        if at is not None:
            text = f"ignores its seed: the same seed and actions made another episode, from step {at} on"
            return [Finding("error", text, "draw from self.np_random only, after super().reset(seed=seed)")]
        at = first_difference(first, episode(one, number, STEPS, SECONDS))
        if at is not None:
            text = f"reset leaves something of the episode before: from step {at} on the same seed made another episode"
            return [Finding("error", text, "set in reset all that step changes")]
    return [Finding("fine", "the same seed and actions repeat an episode")]


def instances(subject: Subject) -> list[Finding]:
    """Stepping one environment leaves another as it is."""
    subject.need_episodes()
    one, other = subject.make_env(), subject.make_env()
    alone = episode(one, 0, STEPS, SECONDS)
    at = first_difference(alone, episode(one, 0, STEPS, SECONDS, beside=other))
    if at is None:
        return [Finding("fine", "two of them do not disturb each other")]
    text = f"two instances share state: stepping one changed the other, at step {at}"
    return [Finding("error", text, "make in __init__ what belongs to one environment, not in the class or the module")]


def tasks(subject: Subject) -> list[Finding]:
    """Tasks as data: plain numbers, which repeat and travel to workers."""
    family = subject.need_family()
    drawn = family.sample(np.random.default_rng(0), NUM_TASKS)
    # Numbers travel to workers; whatever else a family draws is refused here.
    drawn = [as_task(task, f"{family.id}: sample") for task in drawn]
    cure = "draw tasks from the rng that is given, and remember nothing"
    if family.sample(np.random.default_rng(0), NUM_TASKS) != drawn:
        return [Finding("error", "the same random generator drew other tasks the second time", cure)]
    config = subject.config.model_copy(update={"horizon": family.horizon})
    if make_family(config).tasks("test", 3) != family.tasks("test", 3):
        return [Finding("error", "made a second time, as in a worker, the family has other test tasks", cure)]
    if not drawn[0]:
        return [Finding("fine", "one; --env.vary.NAME '{uniform: [0.5, 2]}' says what differs between tasks")]
    if all(task == drawn[0] for task in drawn):
        return [Finding("warning", f"all are the same: {drawn[0]}", "nothing is learned from one task; let it vary")]
    numbers = ", ".join(f"{name} {np.round(value, 3).tolist()}" for name, value in sorted(drawn[0].items()))
    return [Finding("fine", textwrap.shorten(f"such as {numbers}", 150))]


def tasks_in_play(subject: Subject) -> list[Finding]:
    """Tasks change what happens, at once, and leave nothing behind."""
    family = subject.need_family()
    subject.need_episodes("instances", "tasks")
    drawn = family.sample(np.random.default_rng(0), NUM_TASKS)
    other = next((task for task in drawn if task != drawn[0]), drawn[0])

    def row(env: MetaVectorEnv, *tasks: Task) -> list[Any]:
        if tasks:
            env.set_tasks(tasks)
        return row_episode(env, STEPS, SECONDS)

    one = subject.make_vector(1)
    first = row(one, drawn[0])
    if (at := first_difference(first, row(subject.make_vector(1), drawn[0]))) is not None:
        text = f"the same task, seed and actions made another episode, from step {at} on"
        return [Finding("error", text, "draw from self.np_random only, after super().reset(seed=seed)")]
    if (at := first_difference(first, row(one))) is not None:
        text = f"a task takes effect late: the second episode under it is another one, from step {at} on"
        return [Finding("error", text, "read the task in reset or step, after it was given")]
    pairs = (row(subject.make_vector(1), other), row(one, other)), (first, row(one, drawn[0]))
    if differences := [at for pair in pairs if (at := first_difference(*pair)) is not None]:
        at = differences[0]
        text = f"a task leaks: what happens depends on the task before, from step {at} on"
        return [Finding("error", text, "set all that any task changes, whatever the task before was")]
    two = subject.make_vector(2)
    if (at := first_difference(row(two, drawn[0], drawn[0]), row(two, drawn[0], other))) is not None:
        text = f"environments share the task: that of the second changed the first, from step {at} on"
        return [Finding("error", text, "give the task to the environment itself, not to its class or module")]
    if other == drawn[0]:
        return [Finding("fine", "there is one task only")]
    if all(first_difference(first, row(one, task)) is None for task in drawn[1:]):
        text = f"the tasks do not change what happens in {len(first) - 1} random steps"
        return [
            Finding(
                "warning",
                text,
                "rare rewards may hide it; else see that tasks reach the environment, and differ enough",
            )
        ]
    return [Finding("fine", "they change what happens, and each repeats itself")]


def speed(subject: Subject) -> list[Finding]:
    """CPU time of a step, alone and in rows."""
    subject.need_episodes()
    players = {"row alone": row_stepper(subject.make_vector(1)), "row of 10": row_stepper(subject.make_vector(10))}
    with contextlib.suppress(NotTried):
        players = {"raw step": stepper(subject.make_env()), **players}
    cost = cpu_seconds(players, SPEED_BLOCKS, SPEED_SECONDS)
    raw, best = cost.get("raw step"), cost["row of 10"]
    ratios = {name: f" ({cost[name] / raw:.2f} x raw)" for name in cost if raw and name != "raw step"}
    shown = ", ".join(f"{name}: {_duration(seconds)}{ratios.get(name, '')}" for name, seconds in cost.items())
    rate = f"{1 / best:,.0f} steps/s, 1 M steps in {_duration(1e6 * best)}" if best else "no time at all"
    return [Finding("fine", f"{shown}; {rate} (CPU time of one core, resets included)")]


CHECKS: dict[str, Callable[[Subject], list[Finding]]] = {
    "construction": construction,
    "reset": reset,
    "step": step,
    "observations": observations,
    "rewards": rewards,
    "ends": ends,
    "seed": seed,
    "instances": instances,
    "tasks": tasks,
    "tasks in play": tasks_in_play,
    "speed": speed,
}


def _print_finding(name: str, finding: Finding) -> None:
    status = {"fine": "ok", "not tried": "-", "warning": "warn", "error": "error"}[finding.level]
    text = f"not tried, {finding.text}" if finding.level == "not tried" else finding.text
    print(_wrapped(f"{name:<15}{status:<7}", text, " " * 22), flush=True)


def _wrapped(head: str, text: str, indent: str) -> str:
    return "\n".join(textwrap.wrap(head + text, WIDTH, subsequent_indent=indent, break_on_hyphens=False))


def _duration(seconds: float) -> str:
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
