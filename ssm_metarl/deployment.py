"""A trained policy put to work, without Ray: `load_policy` reads a run or an exported file, `export` writes one.

Shape legend: B rows (episodes), O observation, I policy input, A action, P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ssm_metarl import pretrained
from ssm_metarl.adaptation.test_time_adaptation import Adapter
from ssm_metarl.config import ConfigError, TrainConfig, load_config
from ssm_metarl.core.policy import FoldedPolicy, Policy
from ssm_metarl.env_runner.rollout import action_scaler
from ssm_metarl.env_runner.tasks import make_family
from ssm_metarl.runtime import checkpoint, policy_file
from ssm_metarl.runtime.checkpoint import CheckpointError
from ssm_metarl.runtime.life import Life
from ssm_metarl.runtime.policy_file import SUFFIX, Spaces
from ssm_metarl.runtime.run_folder import checkpoint_storage, open_folder
from ssm_metarl.runtime.storage import is_uri
from ssm_metarl.types import SharedState, Statistics

PRETRAINED = "pretrained:"


class DeployedPolicy:
    """A trained policy that acts, remembers within an episode, and can go on learning.

    Args:
        config: of the training, with the adaptation settings to use.
        params_P: its meta-parameters, float32 [P].
        spaces: what it reads and returns.
        statistics: what training has seen, if ``env.normalize_*`` put its inputs into units of it.

    Raises:
        ValueError: parameters of another policy.

    Example::

        policy = load_policy("pretrained:cartpole")
        action = policy.act(observation)  # mode of the distribution; act(observation, sample=True) explores
        policy.reset()  # before the first observation of the next episode
    """

    def __init__(
        self, config: TrainConfig, params_P: np.ndarray, spaces: Spaces, statistics: Statistics | None = None
    ) -> None:
        self.config, self.spaces, self.statistics = config, spaces, statistics
        policy = spaces.build_policy(config)
        policy.load_state_dict(policy.from_vector(params_P))
        self.life = Life(policy, config, statistics=statistics)
        """Plays and learns in vector environments, as ``ssm-metarl adapt`` does."""
        self.rng = np.random.default_rng(config.seed)
        """Samples actions."""
        self._scale = action_scaler(spaces.action_space)
        self._folded, self._folded_from = None, b""
        self.reset()

    @property
    def policy(self) -> Policy:
        """The network."""
        return self.life.policy

    @property
    def adapter(self) -> Adapter:
        """Changes the network's parameters by what it is shown (strategy ``adapter.strategy``); ``act`` follows."""
        return self.life.adapter

    @property
    def shared(self) -> SharedState:
        """All that it has learned, as evaluation wants it (a copy)."""
        return SharedState(self.policy.to_vector(), self.statistics)

    def reset(self, rows_B: np.ndarray | None = None) -> None:
        """The next observation begins an episode: in all rows, whose number may change, or in the marked ones.

        Raises:
            ValueError: ``rows_B`` is not a mask of the rows.
        """
        if rows_B is None:
            self._carry_LBN = None
            return
        rows_B = np.asarray(rows_B)
        rows = None if self._carry_LBN is None else (self._carry_LBN.shape[1],)
        if rows_B.dtype != bool or rows_B.shape != rows:
            raise ValueError(f"rows_B must be one bool per row of the last act, shape {rows}, not {rows_B.shape}")
        self._carry_LBN[:, rows_B], self._previous_BA[rows_B], self._start_B[rows_B] = 0.0, 0.0, True

    def act(
        self, observation: np.ndarray, reward: float | np.ndarray | None = None, *, sample: bool = False
    ) -> np.ndarray | np.integer:
        """The action for what is observed, inside the environment's action space.

        Args:
            observation: [O], or [B, O] for rows that are played side by side, as many from one reset to the next.
            reward: of the step before, a number or [B]; read only if the policy has the input ``previous_reward``, and
                not at the start of an episode.
            sample: draw the action instead of taking the most probable one.

        Returns:
            [A] or [B, A] of the space's dtype, or for Discrete actions an int64 or [B].

        Raises:
            ValueError: a wrong shape, a number that is not finite, no reward where one is needed. Nothing is remembered
                of that call.
        """
        observation_BO = self._observation(observation)
        rows = len(observation_BO)
        reward_B = self._reward(reward, rows)
        if self._carry_LBN is None:
            self._begin(rows)
        if self._carry_LBN.shape[1] != rows:
            raise ValueError(
                f"act got {rows} rows after {self._carry_LBN.shape[1]}; call reset() before another number"
            )
        folded = self._fold()
        out_BA, self._carry_LBN = folded.step(self._input(observation_BO, reward_B), self._carry_LBN)
        action_B = folded.act(out_BA, folded.noise(self.rng, rows)) if sample else folded.mode(out_BA)
        self._previous_BA = np.eye(self.spaces.action_dim, dtype=np.float32)[action_B] if folded.discrete else action_B
        self._start_B[:] = False
        actions = self._to_environment(action_B)
        return actions if np.ndim(observation) == 2 else actions[0]

    def save(self, path: str | Path) -> Path:
        """Writes the policy with its present parameters to ``path`` and a YAML file beside it; returns ``path``.

        Raises:
            ConfigError: the name does not end in .safetensors. OSError: it cannot be written.
        """
        return policy_file.write(path, self.config, self.spaces, self.policy, self.statistics)

    def _observation(self, observation: np.ndarray) -> np.ndarray:
        size, observation_BO = self.spaces.observation_dim, np.asarray(observation)
        if observation_BO.ndim not in (1, 2) or observation_BO.shape[-1] != size or 0 in observation_BO.shape:
            raise ValueError(f"an observation has shape [{size}] or [B, {size}], not {[*observation_BO.shape]}")
        observation_BO = np.atleast_2d(observation_BO).astype(np.float32)
        if not np.isfinite(observation_BO).all():
            raise ValueError(f"the observation holds a number that is not finite: {observation_BO.tolist()}")
        return observation_BO

    def _reward(self, reward: float | np.ndarray | None, rows: int) -> np.ndarray:
        if "previous_reward" not in self.config.policy.inputs:
            return np.zeros(rows)
        if reward is None and self._carry_LBN is not None and not self._start_B.all():
            raise ValueError("this policy reads previous_reward: call act(observation, reward of the last step)")
        reward_B = np.zeros(rows) if reward is None else np.broadcast_to(np.asarray(reward, np.float64), rows)
        if not np.isfinite(reward_B).all():
            raise ValueError(f"the reward is not finite: {reward}")
        return reward_B

    def _begin(self, rows: int) -> None:
        self._carry_LBN = self._fold().initial_state(rows)
        self._previous_BA = np.zeros((rows, self.spaces.action_dim), np.float32)
        self._start_B = np.ones(rows, bool)

    def _input(self, observation_BO: np.ndarray, reward_B: np.ndarray) -> np.ndarray:
        """What the policy reads, [B, I]: the blocks that a rollout gives it, in the order of ``policy.inputs``."""
        normalizer, reward_B = self.life.normalizer, np.where(self._start_B, 0.0, reward_B)
        blocks = {
            "observation": normalizer.observation(observation_BO),
            "previous_action": self._previous_BA,
            "previous_reward": normalizer.reward(reward_B.astype(np.float32))[:, None],
            "episode_start": self._start_B[:, None].astype(np.float32),
        }
        return np.concatenate([blocks[name] for name in self.config.policy.inputs], axis=1)

    def _to_environment(self, action_B: np.ndarray) -> np.ndarray:
        space = self.spaces.action_space
        if self.spaces.discrete:
            return action_B + int(space.start)
        return np.clip(self._scale(action_B), space.low, space.high).astype(space.dtype)

    def _fold(self) -> FoldedPolicy:
        """The network under its present parameters."""
        # By value: an assignment to Parameter.data or through a numpy view changes no version counter.
        present = self.policy.to_vector().tobytes()
        if present != self._folded_from:
            self._folded, self._folded_from = self.policy.fold(), present
        return self._folded


def load_policy(source: str | Path, overrides: Mapping[str, Any] | None = None) -> DeployedPolicy:
    """A trained policy with its Adapter; needs no Ray, and no environment unless ``source`` is a run.

    Args:
        source: a run's folder or its URI (its newest valid checkpoint), a ``.safetensors`` file that `export` wrote, or
            ``pretrained:NAME``.
        overrides: dotted settings laid over those of the training, such as ``{"adapter.strategy": "online"}``. Another
            ``env.id`` begins with that environment's own horizon and tasks.

    Raises:
        ConfigError: nothing like that is there, a setting is wrong, or the policy does not fit ``env.id``.
        CheckpointError: it is damaged, incomplete, or of a format that this version does not read.
        TaskError: the environment cannot be made.
    """
    overrides, text = dict(overrides or {}), str(source)
    fixed = sorted(key for key in overrides if key.startswith("policy."))
    if fixed:
        raise ConfigError(f"{', '.join(fixed)}: what a trained policy is cannot be changed; train another one")
    if text.startswith(PRETRAINED):
        config, shared, spaces = policy_file.read(pretrained.path(text.removeprefix(PRETRAINED)))
    elif is_uri(source) or Path(source).is_dir():
        where = {key: value for key, value in overrides.items() if key == "checkpoint.dir"}
        run = open_folder(text)
        config, shared = load_run(run.path, where)
        spaces = Spaces.of(make_family(config.env))
    elif Path(source).suffix == SUFFIX and Path(source).is_file():
        config, shared, spaces = policy_file.read(Path(source))
    else:
        raise ConfigError(f"{source} is neither a run's folder nor a {SUFFIX} file; there is also {PRETRAINED}NAME")
    if overrides:
        config, spaces = _changed(config, spaces, overrides)
    return DeployedPolicy(config, shared.params_P, spaces, shared.statistics)


def load_run(folder: Path, overrides: Mapping[str, Any]) -> tuple[TrainConfig, SharedState]:
    """The configuration of a run under ``overrides``, and what it has learned, by its newest valid checkpoint.

    Raises:
        ConfigError: not a run's folder, or a setting is wrong. CheckpointError: no checkpoint that can be used.
    """
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} is not the folder of a run: it has no config.yaml")
    config, skipped = load_config(folder / "config.yaml", overrides), []
    found = checkpoint.load_newest(checkpoint_storage(config, folder), skipped.append)
    if found is None:
        reasons = "; ".join(skipped) or "there is none"
        raise CheckpointError(f"{folder} has no checkpoint that can be used ({reasons}); train it first")
    statistics, arrays = checkpoint.statistics_from_arrays(found[0].arrays)
    return config, SharedState(arrays["params_P"], statistics)


def export(run: str | Path, path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Path:
    """Writes the policy of a run (or whatever `load_policy` reads) as two files that need neither the run nor Ray.

    Args:
        run, overrides: as for `load_policy`.
        path: ends in .safetensors; None: ``policy.safetensors`` in the run's folder.

    Returns the path. Raises what `load_policy` and `DeployedPolicy.save` raise.
    """
    if path is None and not Path(run).is_dir():
        raise ConfigError(f"{run} is not the folder of a run: say with --out where the exported policy should go")
    return load_policy(run, overrides).save(Path(run) / f"policy{SUFFIX}" if path is None else path)


def _changed(config: TrainConfig, spaces: Spaces, overrides: dict[str, Any]) -> tuple[TrainConfig, Spaces]:
    """The configuration under ``overrides``, and the spaces of the environment that it then has."""
    if overrides.get("env.id", config.env.id) != config.env.id:
        overrides = {"env.horizon": None, "env.vary": {}, **overrides}
    changed = config.override(overrides)
    if changed.env.id == config.env.id:
        return changed, spaces
    other = Spaces.of(make_family(changed.env))
    kinds = [(spaces.observation_dim, spaces.action_dim, spaces.discrete) for spaces in (spaces, other)]
    if kinds[0] != kinds[1]:
        raise ConfigError(
            f"env.id: {changed.env.id} has {other}, but the policy was trained on {config.env.id}, with {spaces}; "
            "choose an environment of the same sizes, or train a policy for this one"
        )
    return changed, other
