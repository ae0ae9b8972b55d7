"""The file of a sweep: a base configuration, what varies, and how it is searched. Read, checked and written here."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from ssm_metarl.config import Config, ConfigError, Count, Real, Text, TrainConfig, Whole, load_config, settings
from ssm_metarl.config_text import did_you_mean, explain, plain, read_yaml, short, unknown_setting
from ssm_metarl.tuning import rules
from ssm_metarl.tuning.records import Metric
from ssm_metarl.tuning.rules import Asha, Median
from ssm_metarl.tuning.space import Range, parse_space, value_of

MAX_TRIALS = 10_000
_SCHEDULERS: dict[str, type[Asha] | type[Median]] = {"asha": Asha, "median": Median}
_SECTIONS = ("base", "space", "scheduler")


class _Plain(Config):
    """The single values of a sweep's file."""

    policy: Text | None = None
    """A trained policy (a run's folder, an exported .safetensors file, or pretrained:NAME) whose Adapter is searched,
    without training. null: every trial trains a policy."""
    metric: Metric = "post_adaptation"
    """What trials are judged by, on the validation tasks: mean return after adaptation, before it, or the gain."""
    search: Literal["random", "grid", "optuna"] = "random"
    """random: trial i is a function of seed and i alone; grid: every combination of choices; optuna: TPE, which learns
    from finished trials, and with several trials at a time from those that happen to have finished."""
    num_trials: Count | None = None
    """Trials, of which the first is the base itself; null: all of a grid."""
    budget_s: Annotated[Real, Field(gt=0.0)] | None = None
    """Seconds after which no report is begun any more; --resume goes on with another such time. null: no limit."""
    max_concurrent: Count | None = None
    """Trials at a time; null: as many as the CPUs take."""
    seed: Whole = 0
    """Seed of the search; that of the trainings is base.seed, the same for all."""


class Sweep(_Plain):
    """A sweep that can be run: everything in it was checked.

    Example: ``load_sweep(Path("tune_configs/quick.yaml"), {"run.dir": "/tmp/runs"})``
    """

    base: TrainConfig
    """The configuration that trials start from, with the sweep's own name as ``run.name``; trial 0 is this."""
    ranges: dict[str, Range]
    """Dotted key -> what it may be, in the order of the file."""
    scheduler: Asha | Median | None = None
    """Who ends trials early."""

    @property
    def name(self) -> str:
        """The sweep's folder in ``run.dir``."""
        return self.base.run.name

    @property
    def iterations(self) -> int:
        """Of a trial that goes to its end: iterations of training, or calls of the Adapter."""
        return self.base.eval.num_steps if self.policy else self.base.iterations

    @property
    def per_report(self) -> int:
        """Iterations from one report of a trial to the next; the last may be nearer."""
        return self.base.eval.every or self.base.iterations

    @property
    def num_workers(self) -> int:
        """Worker processes of a trial. Trials side by side use CPUs better than workers in a trial: auto is none."""
        return 0 if self.base.workers.num_workers == "auto" else self.base.workers.num_workers

    @property
    def space(self) -> dict[str, dict[str, Any]]:
        """The ranges as in the file."""
        return {key: {it.kind: list(it.arguments)} for key, it in self.ranges.items()}

    @property
    def count(self) -> int:
        """Number of trials."""
        return self.num_trials or _grid_size(self.ranges, self.base)

    def is_rung(self, iteration: int) -> bool:
        """Whether trials are judged after so many iterations, which is when one reports."""
        return rules.is_rung(self.scheduler, iteration, self.per_report, self.iterations)

    def identity(self) -> dict[str, Any]:
        """What makes two sweeps the same, as plain JSON data: not their length, and not who works, where."""
        tree = self.model_dump(mode="json", exclude={"base", "ranges", "num_trials", "budget_s", "max_concurrent"})
        base = self.base.model_dump(mode="json", exclude={"run", "workers", "checkpoint"})
        return {**tree, "base": base, "space": self.space}

    def dump(self) -> str:
        """The file of a sweep that is equal to this one, for `read_sweep`."""
        kind = next((name for name, it in _SCHEDULERS.items() if isinstance(self.scheduler, it)), None)
        tree = self.model_dump(mode="json", exclude={"base", "ranges", "scheduler"})
        # Only what was set: `algorithm` in a space must still be able to change what it is a preset of.
        tree["base"] = self.base.model_dump(mode="json", exclude_unset=True)
        tree["space"] = self.space
        tree["scheduler"] = {kind: self.scheduler.model_dump(mode="json")} if kind else "none"
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def load_sweep(path: Path, overrides: Mapping[str, Any]) -> Sweep:
    """The sweep in a YAML file, its base under the dotted overrides of the command line.

    Raises:
        ConfigError: one line per problem: file, key, rule and cure. CheckpointError: the policy is damaged.
    """
    tree = read_yaml(path)
    base, problems = TrainConfig(), []
    try:
        base = (_base if tree.get("policy") is None else _base_of_policy)(tree, path, overrides)
        if base.run.name is None:
            base = base.override({"run.name": path.stem}, f"{path} (the name of a sweep without --run.name)")
    except ConfigError as error:
        # The rest of the file can be checked all the same.
        problems = str(error).splitlines()
    try:
        sweep = parse_sweep({**tree, "policy": _absolute(tree.get("policy"))}, base, str(path))
    except ConfigError as error:
        problems += str(error).splitlines()
    if problems:
        raise ConfigError("\n".join(problems))
    return sweep


def read_sweep(data: bytes, source: str) -> Sweep:
    """What `Sweep.dump` wrote. Raises ConfigError: damaged, or of another version."""
    try:
        tree = yaml.safe_load(data)
        return parse_sweep(tree, TrainConfig.model_validate(tree["base"]), source)
    # Readers of foreign bytes raise anything: all of it means that this is not the file that was written.
    except Exception as error:
        raise ConfigError(
            f"{source} is not the file of a sweep, so it cannot go on: {' '.join(str(error).split())}; "
            "choose another run.name"
        ) from error


def parse_sweep(tree: Mapping[Any, Any], base: TrainConfig, source: str) -> Sweep:
    """A sweep over ``base`` as the mapping of its file says. Raises ConfigError, with one line per problem."""
    values, problems = _plain_values(tree)
    ranges, wrong = parse_space(tree.get("space"), base, of_adapter=tree.get("policy") is not None)
    problems += wrong
    try:
        scheduler = _scheduler(tree.get("scheduler"))
    except ConfigError as error:
        problems += str(error).splitlines()
    if not problems:
        sweep = Sweep(**values.model_dump(), base=base, ranges=ranges, scheduler=scheduler)
        problems = _contradictions(sweep)
    if problems:
        raise ConfigError("\n".join(f"{source}: {problem}" for problem in problems))
    return sweep


def _plain_values(tree: Mapping[Any, Any]) -> tuple[_Plain | None, list[str]]:
    known = {**_Plain.model_json_schema()["properties"], **{section: {} for section in _SECTIONS}}
    rest, problems = {}, []
    for key, value in tree.items():
        if key in _Plain.model_fields:
            rest[key] = value
        elif isinstance(key, str) and key.partition(".")[0] in TrainConfig.model_fields:
            problems.append(f"{plain(key)} is a setting of the training: put it under base")
        elif key not in _SECTIONS:
            unknown = unknown_setting(key, known) if isinstance(key, str) else f"the key {short(key)} is not text"
            problems.append(unknown)
    try:
        return _Plain.model_validate(rest), problems
    except ValidationError as error:
        return None, [*problems, *explain(error, rest, known).values()]


def _scheduler(value: Any) -> Asha | Median | None:
    if value is None or value == "none":
        return None
    tree = {value: {}} if isinstance(value, str) else value
    kind, arguments = next(iter(tree.items())) if isinstance(tree, Mapping) and len(tree) == 1 else (None, None)
    if kind not in _SCHEDULERS or not isinstance(arguments, Mapping):
        raise ConfigError(
            f"scheduler = {short(value)} must be none, {{asha: {{grace_iterations: 4, reduction_factor: 3}}}} or "
            f"{{median: {{grace_iterations: 4, every: 2}}}}{did_you_mean(kind, _SCHEDULERS)}"
        )
    model, tree = _SCHEDULERS[kind], {kind: dict(arguments)}
    try:
        return model.model_validate(tree[kind])
    except ValidationError as error:
        fields = model.model_json_schema()["properties"]
        sentences = explain(error, tree[kind], fields).values()
        raise ConfigError("\n".join(f"scheduler.{kind}: {sentence}" for sentence in sentences)) from error


def _contradictions(sweep: Sweep) -> list[str]:
    """What is wrong with settings that are each fine."""
    problems = []
    if sweep.search == "grid":
        problems += [
            f"space.{key}: a grid needs a choice, such as {{choice: [0.1, 0.3]}}; ranges are for random and optuna"
            for key, it in sweep.ranges.items()
            if it.kind != "choice"
        ]
    elif sweep.num_trials is None:
        problems.append("num_trials = null must be a whole number of at least 1: only search: grid ends by itself")
    if not problems and sweep.count > MAX_TRIALS:
        problems.append(f"num_trials: {sweep.count} trials are more than the {MAX_TRIALS} that a sweep may have")
    if sweep.policy and sweep.scheduler:
        problems.append("scheduler must be none: with 'policy:' a trial reports once, so there is nothing to end early")
    if sweep.policy and sweep.iterations == 0:
        problems.append("base: eval.num_steps = 0 must be at least 1: it is how often the Adapter learns")
    return problems


def _grid_size(ranges: Mapping[str, Range], base: TrainConfig) -> int:
    """Combinations of all choices, and the base where it is none of them."""
    has_base = all(value_of(base, key) in it.arguments for key, it in ranges.items())
    return prod(len(it.arguments) for it in ranges.values()) + (not has_base)


def _base(tree: Mapping[Any, Any], path: Path, overrides: Mapping[str, Any]) -> TrainConfig:
    """The base configuration of a sweep that trains."""
    value = tree.get("base", {})
    if isinstance(value, str):
        return load_config(path.parent / value, overrides)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path}: base = {short(value)} must be a mapping of settings, or the name of a YAML file")
    try:
        base = TrainConfig.model_validate(value)
    except ValidationError as error:
        sentences = explain(error, value, settings()).values()
        raise ConfigError("\n".join(f"{path}: base: {sentence}" for sentence in sentences)) from error
    return base.override(overrides, "command line")


def _base_of_policy(tree: Mapping[Any, Any], path: Path, overrides: Mapping[str, Any]) -> TrainConfig:
    """The configuration of the policy whose Adapter is searched, under the sweep's own base."""
    from ssm_metarl.deployment import load_policy
    from ssm_metarl.env_runner.tasks import TaskError

    own, policy = _base(tree, path, overrides), tree["policy"]
    if not isinstance(policy, str):
        return own  # Which is said with the other values.
    dotted = _dotted(own.model_dump(exclude_unset=True))
    try:
        config = load_policy(policy, {key: value for key, value in dotted.items() if not key.startswith("run.")}).config
    except (ConfigError, TaskError) as error:
        raise ConfigError(f"{path}: policy: {error}") from error
    # The sweep has a folder of its own, wherever the policy's run is.
    where = {"run.name": None, "run.dir": own.run.dir, "checkpoint.dir": own.checkpoint.dir}
    return config.override({**where, **{key: value for key, value in dotted.items() if key.startswith("run.")}})


def _dotted(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of every setting in a tree of sections."""
    dotted: dict[str, Any] = {}
    for name, section in tree.items():
        is_section = isinstance(section, Mapping)
        dotted |= {f"{name}.{field}": value for field, value in section.items()} if is_section else {name: section}
    return dotted


def _absolute(policy: Any) -> Any:
    """A path that means the same in every process; names and URIs as they are."""
    return str(Path(policy).absolute()) if isinstance(policy, str) and ":" not in policy and policy else policy
