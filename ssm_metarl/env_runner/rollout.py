"""`collect`: episodes of one task under one set of folded parameters. The hot loop of training.

Shape legend: T time steps (the horizon), B episodes (rows), O observation, I policy input, A action,
D parameters of the action distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from gymnasium.spaces import Discrete, Space
from gymnasium.vector import AutoresetMode

from ssm_metarl.env_runner.family import TaskFamily
from ssm_metarl.env_runner.normalizer import Normalizer
from ssm_metarl.env_runner.vector import MetaVectorEnv, TaskError
from ssm_metarl.types import Rollout


class ActingPolicy(Protocol):
    """What a rollout needs of a policy: that of ``Policy.fold``."""

    def initial_state(self, batch_size: int) -> Any: ...

    def step(self, input_BI: np.ndarray, carry: Any) -> tuple[np.ndarray, Any]: ...

    def noise(self, rng: np.random.Generator, *shape: int) -> np.ndarray: ...

    def act(self, out_BA: np.ndarray, noise: np.ndarray) -> np.ndarray: ...

    def distribution(self, out_TBA: np.ndarray) -> np.ndarray: ...

    def log_prob(self, dist_TBD: np.ndarray, action_TBA: np.ndarray) -> np.ndarray: ...


def input_dim(family: TaskFamily, inputs: tuple[str, ...]) -> int:
    """Width of the policy's input; a previous Discrete action is one-hot."""
    widths = _input_widths(family.observation_dim, family.action_dim)
    return sum(widths[name] for name in inputs)


def _input_widths(observation_dim: int, action_dim: int) -> dict[str, int]:
    return {"observation": observation_dim, "previous_action": action_dim, "previous_reward": 1, "episode_start": 1}


def action_scaler(space: Space) -> Callable[[np.ndarray], np.ndarray]:
    """From a policy's action to the environment's: in a bounded Box, -1 .. 1 spans low .. high (the environment clips).

    So a standard deviation of 1 means the same in every family. Discrete and unbounded actions pass as they are.
    """
    if isinstance(space, Discrete) or not space.is_bounded():
        return lambda action: action
    half_range = (space.high - space.low) / 2
    centre = space.low + half_range
    if np.any(centre):
        return lambda action: centre + half_range * action
    return (lambda action: half_range * action) if np.any(half_range != 1) else lambda action: action


def collect(
    env: MetaVectorEnv,
    policy: ActingPolicy,
    horizon: int,
    inputs: tuple[str, ...],
    rng: np.random.Generator,
    normalizer: Normalizer | None = None,
) -> Rollout:
    """Plays one episode in each row of ``env``, at most ``horizon`` steps, with sampled actions.

    The result is a function of the rows' tasks, the policy and the state of ``rng``.

    Args:
        env: in autoreset mode DISABLED, its tasks set. From now on it returns no infos that rollouts do not read.
        policy: acts on float32 [B, I].
        horizon: T; the arrays have this length, whenever the episodes end.
        inputs: ``policy.inputs``.
        rng: seeds the environment and samples the actions.
        normalizer: puts the policy's inputs into other units; the rollout's observations and rewards stay as they are.

    Raises:
        TaskError: an observation, a reward or an action's log-probability is not finite; names the task and the step.
    """
    if env.autoreset_mode is not AutoresetMode.DISABLED:
        raise ValueError(f"collect needs an environment in autoreset mode DISABLED, not {env.autoreset_mode.name}")
    env.wanted_infos = ("success",)
    recorder, to_environment = _Recorder(env, horizon, inputs, normalizer), action_scaler(env.single_action_space)
    observation_BO, _ = env.reset(seed=int(rng.integers(2**31)))
    # All noise at once: drawing it takes longer than the policy's step, by the call and not by the number.
    noise_TB = policy.noise(rng, horizon, env.num_envs)
    _require_finite(env, 0, "noise of the policy's actions", noise_TB)
    carry, playing = policy.initial_state(env.num_envs), env.num_envs
    _require_finite(env, 0, "observation", observation_BO)
    for t in range(horizon):
        out_BA, carry = policy.step(recorder.write_input(t, observation_BO), carry)
        _require_finite(env, t, "policy's output", out_BA)
        action_BA = policy.act(out_BA, noise_TB[t])
        observation_BO, reward_B, terminated_B, truncated_B, info = env.step(to_environment(action_BA))
        _require_finite(env, t, "reward", reward_B)
        _require_finite(env, t + 1, "observation", observation_BO)
        recorder.write_step(t, out_BA, action_BA, reward_B)
        if "success" in info:
            recorder.write_success(info["success"])
        ending_B = terminated_B | truncated_B
        if ending := np.count_nonzero(ending_B):
            recorder.write_end(t, ending_B, info["foreign_truncation"])
            playing -= ending
            if playing == 0:
                break
    return recorder.finish(policy, observation_BO)


def _require_finite(env: MetaVectorEnv, step: int, what: str, values: np.ndarray) -> None:
    # A sum of squares is finite where all is, but for numbers whose squares overflow, and quicker than a look at each.
    if math.isfinite(np.vdot(values, values)):
        return
    finite = np.isfinite(values)
    if not finite.all():
        place = np.argwhere(~finite)[0]
        row = int(place[-2] if values.ndim > 1 else place[0])
        raise TaskError(f"the {what} of episode {row} is not finite at step {step}, task {env.tasks[row]} of {env}")


class _Recorder:
    """The arrays of one rollout while it is made."""

    def __init__(
        self, env: MetaVectorEnv, horizon: int, inputs: tuple[str, ...], normalizer: Normalizer | None
    ) -> None:
        self._normalizer = normalizer
        space, shape = env.single_action_space, (horizon, env.num_envs)
        self._discrete = isinstance(space, Discrete)
        observation_dim = env.single_observation_space.shape[0]
        action_dim = int(space.n) if self._discrete else space.shape[0]
        self.observation_TBO = np.zeros((*shape, observation_dim), np.float32)
        self.action_TBA = np.zeros(shape, np.int64) if self._discrete else np.zeros((*shape, action_dim), np.float32)
        self.reward_TB = np.zeros(shape, np.float32)
        self.length_B = np.full(env.num_envs, horizon)
        self.foreign_truncation_B = np.zeros(env.num_envs, bool)
        self.out_TBA = np.zeros((*shape, action_dim), np.float32)
        self.success_B: np.ndarray | None = None
        widths = _input_widths(observation_dim, action_dim)
        is_normalised = normalizer is not None and normalizer.normalizes_observations
        only_observation = inputs == ("observation",) and not is_normalised
        width = sum(widths[name] for name in inputs)
        self.input_TBI = self.observation_TBO if only_observation else np.zeros((*shape, width), np.float32)
        self._columns: dict[str, slice] = {}
        for name in () if only_observation else inputs:
            start = sum(widths[earlier] for earlier in self._columns)
            self._columns[name] = slice(start, start + widths[name])

    def write_input(self, t: int, observation_BO: np.ndarray) -> np.ndarray:
        """Records what is observed at step t; returns the policy's input."""
        self.observation_TBO[t] = observation_BO
        input_BI = self.input_TBI[t]
        for name, columns in self._columns.items():
            block = input_BI[:, columns]
            if name == "observation":
                block[:] = self._normalizer.observation(observation_BO) if self._normalizer else observation_BO
            elif name == "episode_start":
                block[:] = t == 0
            elif t > 0 and name == "previous_reward":
                reward_B = self.reward_TB[t - 1]
                block[:, 0] = self._normalizer.reward(reward_B) if self._normalizer else reward_B
            elif t > 0 and self._discrete:
                block[np.arange(len(block)), self.action_TBA[t - 1]] = 1.0
            elif t > 0:
                block[:] = self.action_TBA[t - 1]
        return input_BI

    def write_step(self, t: int, out_BA: np.ndarray, action_BA: np.ndarray, reward_B: np.ndarray) -> None:
        """Records what happened at step t."""
        self.out_TBA[t], self.action_TBA[t], self.reward_TB[t] = out_BA, action_BA, reward_B

    def write_success(self, success_B: np.ndarray) -> None:
        """Records who has succeeded; rows of which the environment says nothing have not."""
        earlier_B = False if self.success_B is None else self.success_B
        self.success_B = earlier_B | success_B.astype(bool)

    def write_end(self, t: int, ending_B: np.ndarray, foreign_truncation_B: np.ndarray) -> None:
        """Records whose last step was t."""
        self.length_B[ending_B] = t + 1
        self.foreign_truncation_B |= foreign_truncation_B

    def finish(self, policy: ActingPolicy, final_observation_BO: np.ndarray) -> Rollout:
        """The record, with the last true observation of each episode."""
        step_T1 = np.arange(len(self.reward_TB))[:, None]
        dist_TBD = policy.distribution(self.out_TBA)
        return Rollout(
            observation_TBO=self.observation_TBO,
            input_TBI=self.input_TBI,
            action_TBA=self.action_TBA,
            dist_TBD=dist_TBD,
            logp_TB=policy.log_prob(dist_TBD, self.action_TBA),
            reward_TB=self.reward_TB,
            mask_TB=(step_T1 < self.length_B).astype(np.float32),
            final_observation_BO=final_observation_BO,
            foreign_truncation_B=self.foreign_truncation_B,
            success_B=self.success_B,
        )
