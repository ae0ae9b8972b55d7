"""A policy on a disk, alone: ``NAME.safetensors``, its parameters by name in float32, and ``NAME.yaml``, all else.

"All else" is what acting and adapting need: the configuration, the sizes and the action space, the parameters' hash,
and for whoever wonders the versions. The two belong together: their hash is checked, and nothing is unpickled.

Shape legend: P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
import yaml
from gymnasium.spaces import Box, Discrete
from pydantic import ValidationError

from ssm_metarl.config import ConfigError, TrainConfig, settings
from ssm_metarl.config_text import explain, read_yaml, short
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.env_runner.rollout import input_dim
from ssm_metarl.env_runner.tasks import TaskFamily
from ssm_metarl.runtime.checkpoint import CheckpointError, statistics_from_arrays, statistics_to_arrays, versions
from ssm_metarl.runtime.metrics import params_sha256
from ssm_metarl.runtime.storage import open_storage
from ssm_metarl.types import SharedState, Statistics

FORMAT = 1
SUFFIX = ".safetensors"
_NOT_WRITTEN = {"workers", "run", "checkpoint", "eval"}


@dataclass(frozen=True)
class Spaces:
    """What a policy reads and returns.

    Example: ``Spaces(4, Discrete(2))``
    """

    observation_dim: int
    """O; an observation of another form than a vector is given flattened, as in training."""
    action_space: Discrete | Box
    """The environment's own."""

    @classmethod
    def of(cls, family: TaskFamily) -> Spaces:
        """Those of the environments of a family."""
        return cls(family.observation_dim, family.env_action_space)

    @property
    def discrete(self) -> bool:
        return isinstance(self.action_space, Discrete)

    @property
    def action_dim(self) -> int:
        """A, or the number of discrete actions."""
        return int(self.action_space.n) if self.discrete else int(self.action_space.shape[0])

    def build_policy(self, config: TrainConfig) -> Policy:
        """A policy of these sizes, with its initial parameters."""
        inputs = input_dim(self, config.policy.inputs)
        return build_policy(inputs, self.action_dim, self.discrete, config.policy, config.seed)

    def describe(self) -> dict[str, Any]:
        """As plain data, which `parse` reads."""
        space = self.action_space
        if self.discrete:
            action = {"count": int(space.n), "start": int(space.start)}
        else:
            action = {"low": space.low.tolist(), "high": space.high.tolist(), "dtype": str(space.dtype)}
        return {"observation_size": self.observation_dim, "action": action}

    @classmethod
    def parse(cls, description: Mapping[str, Any]) -> Spaces:
        """Raises ValueError, and whatever a wrong kind of data leads to."""
        action, size = description["action"], description["observation_size"]
        if type(size) is not int or size < 1:
            raise ValueError(f"observation_size is {short(size)}, not a positive whole number")
        if "count" in action:
            return cls(size, Discrete(action["count"], start=action["start"]))
        low, high = (np.array(action[bound], action["dtype"]) for bound in ("low", "high"))
        return cls(size, Box(low, high, dtype=low.dtype))

    def __str__(self) -> str:
        actions = f"{self.action_dim} discrete actions" if self.discrete else f"actions of {self.action_dim} numbers"
        return f"observations of {self.observation_dim} numbers and {actions}"


def require_suffix(path: str | Path) -> Path:
    """The path, if a policy can be written there. Raises ConfigError."""
    if Path(path).suffix != SUFFIX:
        raise ConfigError(f"{path}: the file of a policy ends in {SUFFIX}")
    return Path(path)


def write(
    path: str | Path, config: TrainConfig, spaces: Spaces, policy: Policy, statistics: Statistics | None = None
) -> Path:
    """Writes a policy under its present parameters to ``path`` and the YAML file beside it; returns ``path``.

    Raises:
        ConfigError: the name does not end in .safetensors. OSError: it cannot be written.
    """
    path = require_suffix(path)
    description = {
        "format": FORMAT,
        **spaces.describe(),
        "input_size": input_dim(spaces, config.policy.inputs),
        "params_sha256": params_sha256(policy.to_vector()),
        "versions": {**versions(), "safetensors": version("safetensors")},
        "config": config.model_dump(mode="json", exclude=_NOT_WRITTEN),
    }
    if statistics is not None:
        arrays = statistics_to_arrays(statistics)
        description["statistics"] = {name: array.tolist() for name, array in arrays.items()}
    params = {name: value.detach().numpy() for name, value in policy.named_parameters()}
    storage = open_storage(path.absolute().parent)
    storage.make()
    storage.write(path.name, safetensors.numpy.save(params))
    storage.write(f"{path.stem}.yaml", yaml.safe_dump(description, sort_keys=False).encode())
    return path


def read(path: Path) -> tuple[TrainConfig, SharedState, Spaces]:
    """What `write` wrote: the configuration, what was learned, and the spaces.

    Raises:
        CheckpointError: damaged, incomplete, or of a format that this version does not read.
    """
    try:
        description = read_yaml(path.with_suffix(".yaml"))
        if description.get("format") != FORMAT:
            found = short(description.get("format"))
            raise ValueError(f"its format is {found}, and this version of ssm_metarl reads {FORMAT}")
        config, spaces = _config(description["config"]), Spaces.parse(description)
        inputs = input_dim(spaces, config.policy.inputs)
        if description["input_size"] != inputs:
            raise ValueError(f"input_size is {short(description['input_size'])}, but its inputs have {inputs} numbers")
        params_P = _vector(config, spaces, safetensors.numpy.load(path.read_bytes()))
        if params_sha256(params_P) != description["params_sha256"]:
            raise ValueError("the parameters do not have the params_sha256 in the YAML file beside them")
        return config, SharedState(params_P, _statistics(description.get("statistics"), spaces)), spaces
    # Readers of foreign bytes raise anything: all of it means that this policy is not to be used.
    except Exception as error:
        is_plain = type(error) in (ValueError, ConfigError) or isinstance(error, OSError)
        reason = error if is_plain else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"the policy {path} cannot be used: {reason}") from error


def _statistics(lists: Mapping[str, Any] | None, spaces: Spaces) -> Statistics | None:
    if lists is None:
        return None
    found, rest = statistics_from_arrays({name: np.array(value, np.float64) for name, value in lists.items()})
    sizes = {"observation": spaces.observation_dim, "discounted_return": 1}
    for name, moments in {} if found is None else vars(found).items():
        arrays = (moments.mean_X, moments.squares_X)
        fits = all(array.shape == (sizes[name],) and np.isfinite(array).all() for array in arrays)
        if not fits or moments.count < 1:
            raise ValueError(f"statistics.{name} are not finite numbers of {sizes[name]} components")
    if found is None or rest:
        raise ValueError(f"statistics are of {', '.join(sizes)}, not of {short(sorted(lists))}")
    return found


def _config(tree: Any) -> TrainConfig:
    try:
        return TrainConfig.model_validate(tree)
    except ValidationError as error:
        raise ValueError("; ".join(explain(error, tree, settings()).values())) from error


def _vector(config: TrainConfig, spaces: Spaces, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The parameters in the policy's order, [P]; their names, shapes and dtype must be its own."""
    policy = spaces.build_policy(config)
    own = {name: (tuple(value.shape), "float32") for name, value in policy.named_parameters()}
    found = {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
    differing = sorted(name for name in own.keys() | found.keys() if own.get(name) != found.get(name))
    if differing:
        name = differing[0]
        raise ValueError(f"parameter {name} is {found.get(name)}, but the policy that is described has {own.get(name)}")
    return policy.to_vector({name: torch.from_numpy(array) for name, array in arrays.items()})
