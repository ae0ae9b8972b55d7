"""The configuration of a run: a frozen pydantic tree, the one place of a setting's type, bound, default and meaning.

``load_config`` reads a YAML file and dotted overrides (``{"inner.lr": 0.3}``: command line, Tune, tests) in one way,
what is wrong becomes a ``ConfigError``. ``algorithm`` is a preset: defaults of other settings, which yield to what was
set explicitly, in any order and from any source.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    Strict,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticKnownError

from ssm_metarl.config_text import ConfigError, did_you_mean, explain, parse_yaml, read_yaml, unknown_setting

__all__ = ["ConfigError", "TrainConfig", "dump_yaml", "load_config", "parse_yaml", "settings"]

PRESETS: dict[str, dict[str, Any]] = {
    "maml": {"outer.rule": "gradient", "outer.num_passes": 1},
    "fomaml": {"outer.rule": "gradient", "outer.num_passes": 1, "inner.first_order": True},
    "promp": {"outer.rule": "clipped", "outer.num_passes": 5},
}
NOT_IDENTITY = frozenset({"workers", "run", "checkpoint", "eval", "adapter", "iterations"})


# A ValueError of the validators below completes the sentence "KEY = VALUE must be ...".
def _below(bits: int) -> Callable[[int], int]:
    def check(number: int) -> int:
        if number >= 2**bits:
            raise ValueError(f"less than 2**{bits}")
        return number

    return check


def _numeric(value: Any) -> Any:
    # Lax floats would take True for 1.0, and bytes; strings must pass, because YAML 1.1 reads 1e-3 as one.
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise PydanticKnownError("float_type")
    return value


def _folder_name(name: str) -> str:
    if name[0] in ".-" or len(name) > 100 or not all(letter.isalnum() or letter in "._-+=@" for letter in name):
        raise ValueError("a plain folder name: at most 100 letters, digits and . _ - + = @, not starting with . or -")
    return name


def _printable(text: str) -> str:
    if not text.isprintable() or text.isspace():
        raise ValueError("non-empty text without control characters")
    return text


def _at_least_one(thing: str) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
    def check(names: tuple[str, ...]) -> tuple[str, ...]:
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a list of at least one {thing}, each named once")
        return names

    return check


Real = Annotated[float, BeforeValidator(_numeric)]
Whole = Annotated[int, Strict(), Field(ge=0), AfterValidator(_below(31))]
Count = Annotated[int, Strict(), Field(ge=1), AfterValidator(_below(31))]
Flag = Annotated[bool, Strict()]
Text = Annotated[str, Field(min_length=1), AfterValidator(_printable)]
Input = Literal["observation", "previous_action", "previous_reward", "episode_start"]
Strategy = Literal["none", "online", "meta"]

_DISTRIBUTIONS: dict[str, tuple[str, Callable[..., bool]]] = {
    "uniform": ("[low, high] with low <= high", lambda low, high: low <= high),
    "loguniform": ("[low, high] with 0 < low <= high", lambda low, high: 0 < low <= high),
    "normal": ("[mean, std] with std >= 0", lambda mean, std: std >= 0),
    "choice": ("a list of at least one number", lambda *numbers: len(numbers) > 0),
    "scale": ("[low, high] with low <= high", lambda low, high: low <= high),
    "scale_pow": ("[base, limit] with base > 0 and limit >= 0", lambda base, limit: base > 0 and limit >= 0),
}


def _distribution(value: Any) -> dict[str, tuple[float, ...]]:
    """``{"uniform": [0.3, 1]}`` -> ``{"uniform": (0.3, 1.0)}``."""
    kind, arguments = next(iter(value.items())) if isinstance(value, Mapping) and len(value) == 1 else (None, None)
    if not isinstance(kind, str) or kind not in _DISTRIBUTIONS:
        names = ", ".join(_DISTRIBUTIONS)
        raise ValueError(
            f"a mapping with one key of {names}, such as {{uniform: [0.5, 2]}}{did_you_mean(kind, _DISTRIBUTIONS)}"
        )
    rule, is_valid = _DISTRIBUTIONS[kind]
    try:
        numbers = tuple(float(_numeric(argument)) for argument in arguments)
        valid = isinstance(arguments, list | tuple) and all(map(math.isfinite, numbers)) and is_valid(*numbers)
    except (TypeError, ValueError, OverflowError, PydanticKnownError):
        valid = False
    if not valid:
        raise ValueError(f"{{{kind}: {rule}}}, finite numbers")
    return {kind: numbers}


Distribution = Annotated[dict[str, tuple[float, ...]], BeforeValidator(_distribution)]


class Config(BaseModel):
    """What every section shares: unknown keys, inf and nan are refused, nothing changes after construction."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class EnvConfig(Config):
    """The family of tasks."""

    id: Text = "ssm_metarl/Navigation2D-v0"
    """A task family of ssm_metarl, any gymnasium id (then env.vary says what differs between tasks), or a TaskFamily
    of your own: its import path module:Class, or its name among the entry points of the group ssm_metarl.families."""
    variant: Text | None = None
    """How a paper sets the family up: maml, pearl, promp, varibad, where they differ; null: the family's first."""
    kwargs: dict[Text, bool | int | float | Text] = {}
    """Arguments of the environment's or the family's constructor, such as {num_arms: 5}."""
    horizon: Count | None = None
    """Steps after which an episode ends; null: the family's own."""
    episodes_per_task: Count = 10
    """Episodes of each rollout; a task costs (inner.num_steps + 1) times as many."""
    vary: dict[Text, Distribution] = {}
    """What differs between tasks: parameter -> distribution, such as {length: {uniform: [0.3, 1.0]}}. Distributions:
    uniform [low, high], loguniform [low, high], normal [mean, std], choice [numbers], and factors on the nominal value:
    scale [low, high], scale_pow [base, limit] (base ** U(-limit, limit))."""
    normalize_observations: Flag = False
    """Give the policy observations with mean 0 and deviation 1, by running statistics of all training episodes."""
    normalize_rewards: Flag = False
    """Give the policy rewards (its input previous_reward) in units of the running deviation of discounted returns;
    advantages are scaled per task in any case, and returns are reported as they are."""


class PolicyConfig(Config):
    """The policy's network."""

    core: Literal["ssm", "lti", "gru", "mlp"] = "ssm"
    """Selective state space recurrence, a linear time-invariant one, or a baseline (gru; mlp has no memory)."""
    hidden_dim: Count = 32
    """Width of the core's state."""
    num_layers: Count = 1
    """Layers of the core."""
    inputs: Annotated[tuple[Input, ...], AfterValidator(_at_least_one("input"))] = ("observation",)
    """What the policy reads at each step."""
    initial_log_std: Real = Field(-0.5, ge=-5.0, le=2.0)
    """Logarithm of the initial standard deviation of continuous actions, in units in which a bounded Box is [-1, 1]."""


class InnerConfig(Config):
    """The inner loop: adaptation to one task by gradient steps."""

    lr: Real = Field(0.1, gt=0.0)
    """Step size of an inner gradient step."""
    num_steps: Whole = 1
    """Inner gradient steps, each on support episodes of its own; 0: no inner loop."""
    first_order: Flag = False
    """Leave the inner steps' second derivatives out of the meta-gradient."""
    estimator: Literal["dice", "lvc", "naive"] = "lvc"
    """Surrogate of the inner policy-gradient loss: decides what its second derivative estimates."""


class OuterConfig(Config):
    """The outer loop: what happens to the meta-parameters."""

    lr: Real = Field(3e-3, gt=0.0)
    """Step size of Adam on the meta-parameters."""
    rule: Literal["gradient", "clipped"] = "clipped"
    """Plain policy gradient, or the clipped surrogate of PPO."""
    num_passes: Count = 5
    """Outer steps over one batch of rollouts."""
    clip: Real = Field(0.3, gt=0.0)
    """Range of the probability ratio around 1 (rule clipped)."""
    kl_penalty: Real = Field(5e-4, ge=0.0)
    """Weight of KL(collecting policy || current policy) before adaptation (rule clipped)."""
    max_grad_norm: Real = Field(10.0, gt=0.0)
    """The meta-gradient is scaled down to this norm."""


class AdvantageConfig(Config):
    """How returns become advantages."""

    discount: Real = Field(0.99, gt=0.0, le=1.0)
    """Discount factor per step."""
    gae_lambda: Real = Field(1.0, ge=0.0, le=1.0)
    """Lambda of generalized advantage estimation; 1: discounted return minus baseline."""


class AdapterConfig(Config):
    """Test-time adaptation of a trained policy; training does not read it."""

    strategy: Strategy = "meta"
    """none: nothing is learned; online: gradient steps that add up; meta: every task starts from the meta-parameters
    and takes the steps that meta-training took."""
    lr: Annotated[Real, Field(gt=0.0)] | None = None
    """Step size of an adaptation step; null: inner.lr for meta, a tenth of it for online."""
    max_steps_per_call: Count = 1
    """Gradient steps that one call of adapt may take."""
    max_grad_norm: Real = Field(10.0, gt=0.0)
    """A longer gradient is scaled down to this norm (strategy online)."""
    trust_region: Real = Field(1.0, gt=0.0)
    """Largest distance from the meta-parameters, as a share of their norm (strategy online)."""
    parameters: Annotated[tuple[Text, ...], AfterValidator(_at_least_one("name"))] = ("*",)
    """Names of the parameters that adapt, with the wildcards * and ?; the others stay as they are."""
    false_alarm_rate: Real = Field(0.001, gt=0.0, lt=0.5)
    """How often an unchanged task may be taken for a new one, per call of observe (strategy meta)."""


class WorkersConfig(Config):
    """Who does the work; results do not depend on it."""

    num_workers: Whole | Literal["auto"] = "auto"
    """Worker processes; 0: in this process, without Ray; auto: one per core, at most one per task, and on a cluster as
    many as there are cores for at the time."""
    cpus_per_worker: Real = Field(1.0, gt=0.0)
    """CPUs that a worker reserves in Ray."""
    task_deadline_s: Real = Field(600.0, gt=0.0)
    """Seconds after which a call counts as hung; counted from when a worker that is ready was given it."""
    start_timeout_s: Real = Field(120.0, gt=0.0)
    """Seconds to wait for a first worker; also for each of the others to start, before another is tried."""
    max_respawns: Count = 3
    """Replacements per worker, with no call finished in between, after which the run ends."""


class EvalConfig(Config):
    """Evaluation on fixed held-out tasks."""

    every: Whole = 10
    """Iterations between evaluations; 0: only the final one, which always runs."""
    num_tasks: Count = 40
    """Held-out tasks."""
    num_steps: Whole = 3
    """Adaptation steps up to which the final table goes."""
    strategies: Annotated[tuple[Strategy, ...], AfterValidator(_at_least_one("strategy"))] = ("none", "online", "meta")
    """Strategies of adaptation that the final table compares; meta is always among them."""


class CheckpointConfig(Config):
    """When state is saved."""

    every: Count = 10
    """Iterations between checkpoints."""
    keep: Count = 3
    """Number of newest checkpoints that are kept."""
    dir: Text | None = None
    """Where they go: a folder, or a URI of any pyarrow or fsspec filesystem (s3://bucket/path, gs://...); the
    run's name is appended. null: checkpoints in the run's folder."""
    max_failures: Whole = 3
    """Saves in a row that may fail (a full disk, a store out of reach) before training ends."""


class RunConfig(Config):
    """Where the run's folder is."""

    name: Annotated[Text, AfterValidator(_folder_name)] | None = None
    """Name of the run; a named run that exists is resumed. null: a fresh name."""
    dir: Text = "runs"
    """Folder of runs: a path, or a URI of any pyarrow or fsspec filesystem (s3://bucket/path, gs://...)."""
    grace_s: Real = Field(2.0, ge=0.0)
    """Seconds that SIGTERM or Ctrl-C leave the iteration under way; it is abandoned if it does not end within them.
    (Ray kills a job that it stops after 3 seconds.)"""


class TrainConfig(Config):
    """Everything that a training run can be told.

    Example: ``TrainConfig(seed=1, algorithm="maml", inner={"lr": 0.2})``
    """

    seed: Annotated[int, Strict(), Field(ge=0), AfterValidator(_below(63))] = 0
    """Seed of all random streams."""
    iterations: Count = 30
    """Meta-training iterations."""
    tasks_per_iteration: Count = 10
    """Tasks whose meta-gradients make one iteration."""
    algorithm: Literal["maml", "fomaml", "promp"] = "promp"
    """Preset of outer.rule, outer.num_passes and inner.first_order; what is set explicitly wins."""
    env: EnvConfig = EnvConfig()
    policy: PolicyConfig = PolicyConfig()
    inner: InnerConfig = InnerConfig()
    outer: OuterConfig = OuterConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    adapter: AdapterConfig = AdapterConfig()
    workers: WorkersConfig = WorkersConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="wrap")
    @classmethod
    def _put_preset_under(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        algorithm = data.get("algorithm", "promp") if isinstance(data, Mapping) else None
        preset = PRESETS.get(algorithm, {}) if isinstance(algorithm, str) else {}
        if not preset:
            return handler(data)
        tree, added = dict(data), []
        for key, value in preset.items():
            section, name = key.split(".")
            given = tree.get(section, {})
            given = given.model_dump(exclude_unset=True) if isinstance(given, Config) else given
            if isinstance(given, Mapping) and name not in given:
                tree[section] = {**given, name: value}
                added.append((section, name))
        config = handler(tree)
        for section, name in added:
            # Only explicit settings stay marked as set, so that override() can still change the preset.
            getattr(config, section).model_fields_set.discard(name)
        return config

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same experiment, as plain JSON data: all but who works, where and for how long."""
        return self.model_dump(mode="json", exclude=set(NOT_IDENTITY))

    def override(self, dotted: Mapping[str, Any], source: str = "override") -> TrainConfig:
        """The configuration with these settings changed: ``config.override({"inner.lr": 0.3})``. Raises ConfigError."""
        return _build(self.model_dump(exclude_unset=True), dotted, "configuration", source)


def load_config(
    path: str | Path | None = None, overrides: Mapping[str, Any] | None = None, source: str = "command line"
) -> TrainConfig:
    """The configuration of a YAML file (None: the built-in defaults) under dotted overrides.

    ``source`` is what messages call the overrides. Raises ConfigError, with one line per problem.
    """
    return _build({} if path is None else read_yaml(Path(path)), overrides or {}, str(path), source)


def dump_yaml(config: TrainConfig) -> str:
    """All settings as YAML, which ``load_config`` reads back as an equal configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


@functools.cache
def settings() -> dict[str, dict[str, Any]]:
    """Dotted key of every setting -> its JSON schema (type, bounds, choices, default, description)."""
    schema = TrainConfig.model_json_schema()
    found: dict[str, dict[str, Any]] = {}
    for name, entry in schema["properties"].items():
        if "$ref" in entry:
            section = schema["$defs"][entry["$ref"].rpartition("/")[2]]
            found |= {f"{name}.{field}": field_schema for field, field_schema in section["properties"].items()}
        else:
            found[name] = entry
    return found


def _build(tree: Mapping[Any, Any], overrides: Mapping[str, Any], file: str, source: str) -> TrainConfig:
    tree, problems = dict(tree), []
    for key, value in overrides.items():
        if key in settings() or key.startswith(("env.vary.", "env.kwargs.")):
            _place(tree, key.split(".", 2), value)
        else:
            problems.append(f"{source}: {unknown_setting(key, settings())}")
    try:
        config = TrainConfig.model_validate(tree)
    except ValidationError as error:
        for key, sentence in explain(error, tree, settings()).items():
            overridden = any(key == name or key.startswith((f"{name}.", f"{name}[")) for name in overrides)
            problems.append(f"{source if overridden else file}: {sentence}")
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def _place(node: dict[Any, Any], path: list[str], value: Any) -> None:
    head, *rest = path
    if not rest:
        node[head] = value
    elif isinstance(node.get(head, {}), Mapping):
        # A copy: the caller's tree is not ours. (A section that is no mapping stays, for the validation to report.)
        node[head] = dict(node.get(head, {}))
        _place(node[head], rest, value)
