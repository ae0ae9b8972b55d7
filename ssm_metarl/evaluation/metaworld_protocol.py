"""Meta-World's evaluation of meta-learning: adapt for some episodes, then count the episodes that succeed.

`ProtocolAgent` is a trained policy as the package's ``metaworld.evaluation.MetaLearningAgent``, so that the package's
own evaluation can judge it. `evaluate_protocol` is ours: the package's counts the episodes of a class that end first,
and as a success ends an episode there, it finds too many.

Shape legend: N rows (environments), O observation, I policy input, A action, T time steps, B episodes, S tasks,
E evaluation episodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from gymnasium.vector import AutoresetMode

from ssm_metarl.config import ConfigError, Strategy
from ssm_metarl.deployment import DeployedPolicy
from ssm_metarl.env_runner.families.metaworld_family import MetaWorldFamily
from ssm_metarl.env_runner.rollout import action_scaler
from ssm_metarl.env_runner.vector import MetaVectorEnv
from ssm_metarl.runtime.life import Life
from ssm_metarl.types import Rollout, Task

Arrays = dict[str, np.ndarray]


class Timestep(NamedTuple):
    """What an agent is told of a step: the fields of ``metaworld.evaluation.Timestep``, each over all N rows."""

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    aux_policy_outputs: Arrays


class MetaLearningAgent(Protocol):
    """Meta-World's protocol. Each row has a task of its own; a row whose episode ends begins another at once."""

    def init(self) -> None:
        """New tasks: forget what was adapted."""

    def adapt_action(self, observations: np.ndarray) -> tuple[np.ndarray, Arrays]:
        """Actions [N, A] that explore, and whatever `step` wants back. observations: [N, O]."""

    def step(self, timestep: Timestep) -> None:
        """What came of them."""

    def adapt(self) -> None:
        """Learn from the episodes since the last time. All rows then begin episodes."""

    def eval_action(self, observations: np.ndarray) -> np.ndarray:
        """Actions [N, A]; what comes of them is not told."""

    def reset(self, env_mask: np.ndarray) -> None:
        """The next observation of these rows, bool [N], begins an episode. Told during the evaluation only."""


@dataclass
class _Learner:
    """A copy of the policy, for one row."""

    deployed: DeployedPolicy
    strategy: Strategy | None
    seed: tuple[int, ...]
    steps: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    """(input_I, observation_O, output_A, action_A, reward) of the episode under way."""
    episodes: list[list[tuple[np.ndarray, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        config, shared = self.deployed.config, self.deployed.shared
        policy = self.deployed.spaces.build_policy(config)
        policy.load_state_dict(policy.from_vector(shared.params_P))
        self.life = Life(policy, config, self.strategy, shared.statistics)
        self.rng = np.random.default_rng(self.seed)
        self.follow()

    def follow(self) -> None:
        """Acts by what was learned, from the start of an episode."""
        self._folded = self.life.policy.fold()
        self.restart()

    def restart(self) -> None:
        """The next observation begins an episode."""
        self._carry = self._folded.initial_state(1)
        self._action_A, self._starts = np.zeros(self.deployed.spaces.action_dim, np.float32), True

    def act(self, observation_O: np.ndarray, *, sample: bool) -> np.ndarray:
        """The policy's action [A], before it is scaled."""
        observation_O = observation_O.astype(np.float32)
        blocks = {
            "observation": self.life.normalizer.observation(observation_O),
            "previous_action": self._action_A,
            "episode_start": np.array([self._starts], np.float32),
        }
        input_I = np.concatenate([blocks[name] for name in self.deployed.config.policy.inputs])
        out_1A, self._carry = self._folded.step(input_I[None], self._carry)
        action_1A = self._folded.act(out_1A, self._folded.noise(self.rng, 1)) if sample else self._folded.mode(out_1A)
        self._action_A, self._starts = action_1A[0], False
        self._acted = (input_I, observation_O, out_1A[0], action_1A[0])
        return action_1A[0]

    def observe(self, reward: float, ended: bool) -> None:
        """The outcome of the last action."""
        self.steps.append((*self._acted, np.float32(reward)))
        if ended:
            self.episodes.append(self.steps)
            self.steps = []
            self.restart()

    def learn(self) -> None:
        """One call of the adapter, on the episodes that have ended."""
        if not self.episodes:
            raise ValueError("adapt() needs at least one finished episode in every row since the last one")
        self.life.learn(self._rollout())
        self.episodes, self.steps = [], []
        self.follow()

    def _rollout(self) -> Rollout:
        length_B = [len(episode) for episode in self.episodes]
        mask_TB = (np.arange(max(length_B))[:, None] < length_B).astype(np.float32)
        input_TBI, observation_TBO, out_TBA, action_TBA, reward_TB = (
            np.zeros((*mask_TB.shape, *np.shape(value)), np.float32) for value in self.episodes[0][0]
        )
        for b, episode in enumerate(self.episodes):
            for t, step in enumerate(episode):
                input_TBI[t, b], observation_TBO[t, b], out_TBA[t, b], action_TBA[t, b], reward_TB[t, b] = step
        dist_TBD = self._folded.distribution(out_TBA)
        return Rollout(
            observation_TBO=observation_TBO,
            input_TBI=input_TBI,
            action_TBA=action_TBA,
            dist_TBD=dist_TBD,
            logp_TB=self._folded.log_prob(dist_TBD, action_TBA),
            reward_TB=reward_TB,
            mask_TB=mask_TB,
            # Read only where something other than the horizon cuts an episode, which nothing in Meta-World does.
            final_observation_BO=observation_TBO[-1],
            foreign_truncation_B=np.zeros(len(length_B), bool),
        )


class ProtocolAgent:
    """A trained policy in Meta-World's protocol: one copy of it per row, each adapted to its row's task.

    ``adapt`` is one call of the adapter on the row's episodes, as in ``ssm-metarl evaluate`` and ``adapt``.

    Args:
        policy: what `load_policy` returns; it stays as it is.
        strategy: how it adapts; None: ``adapter.strategy``.
        seed: of the sampled actions.
        sample: evaluation samples actions, as adaptation does. Without, it takes the most probable ones, and as nothing
            in Meta-World is random, all evaluation episodes of a task are alike.

    Raises:
        ConfigError: a policy that the protocol cannot serve, which shows no rewards in evaluation.

    Example::

        policy = load_policy("runs/ml10")
        family = make_family(policy.config.env)
        result = evaluate_protocol(ProtocolAgent(policy), family, family.tasks("test", 250))
        print(result.success_rate, result.class_rates)
    """

    def __init__(
        self, policy: DeployedPolicy, strategy: Strategy | None = None, seed: int = 0, sample: bool = True
    ) -> None:
        if policy.spaces.discrete:
            raise ConfigError("Meta-World's protocol is for continuous actions, and this policy's are discrete")
        if "previous_reward" in policy.config.policy.inputs:
            raise ConfigError(
                "Meta-World's protocol shows no rewards in evaluation, but this policy reads previous_reward: train "
                "one with other policy.inputs, or evaluate this one with ssm-metarl evaluate"
            )
        self._policy, self._strategy, self._seed, self._sample, self._count = policy, strategy, seed, sample, 0
        self._space, self._scale = policy.spaces.action_space, action_scaler(policy.spaces.action_space)
        self._learners: list[_Learner] = []

    def init(self) -> None:
        """New tasks: every row begins from the meta-parameters."""
        self._learners, self._count = [], self._count + 1

    def adapt_action(self, observations: np.ndarray) -> tuple[np.ndarray, Arrays]:
        """Sampled actions [N, A] for observations [N, O]."""
        return self._actions(observations, sample=True), {}

    def step(self, timestep: Timestep) -> None:
        """Remembers a step of the adaptation."""
        ended_N = timestep.terminated | timestep.truncated
        for learner, reward, ended in zip(self._learners, timestep.reward, ended_N, strict=True):
            learner.observe(reward, bool(ended))

    def adapt(self) -> None:
        """Each row learns from its episodes."""
        for learner in self._learners:
            learner.learn()

    def eval_action(self, observations: np.ndarray) -> np.ndarray:
        """Actions [N, A] for observations [N, O]."""
        return self._actions(observations, sample=self._sample)

    def reset(self, env_mask: np.ndarray) -> None:
        """The marked rows begin episodes."""
        for learner, begins in zip(self._learners, env_mask, strict=bool(self._learners)):
            if begins:
                learner.restart()

    def _actions(self, observations: np.ndarray, *, sample: bool) -> np.ndarray:
        if not self._learners:
            seeds = [(self._seed, self._count, row) for row in range(len(observations))]
            self._learners = [_Learner(self._policy, self._strategy, seed) for seed in seeds]
        pairs = zip(self._learners, observations, strict=True)
        raw_NA = np.stack([learner.act(observation_O, sample=sample) for learner, observation_O in pairs])
        return np.clip(self._scale(raw_NA), self._space.low, self._space.high).astype(self._space.dtype)


@dataclass(frozen=True)
class ProtocolResult:
    """What `evaluate_protocol` measured."""

    success_rate: float
    """Mean over the classes, as Meta-World reports it."""
    class_rates: Mapping[str, float]
    """Class -> the share of its evaluation episodes that succeed, over all of its goals."""
    tasks: Sequence[Task]
    success_SE: np.ndarray
    """bool [S, E]: ``info["success"]`` was true at some step."""
    return_SE: np.ndarray
    """Undiscounted returns of whole episodes, float64 [S, E]."""


def evaluate_protocol(
    agent: MetaLearningAgent,
    family: MetaWorldFamily,
    tasks: Sequence[Task],
    *,
    adaptation_steps: int = 1,
    adaptation_episodes: int = 10,
    evaluation_episodes: int = 3,
    num_envs: int = 20,
) -> ProtocolResult:
    """Adapts to each task and plays exactly ``evaluation_episodes`` whole episodes of it.

    Args:
        agent: one made for Meta-World's own evaluation serves as well.
        family: of the tasks.
        tasks: such as ``family.tasks("test", 250)``, all test goals of ML10.
        adaptation_steps: calls of ``agent.adapt()``, each after ``adaptation_episodes`` of every row. 0: none.
        num_envs: N, tasks side by side.

    Raises:
        ValueError: a count that is too small.
    """
    counts = {"tasks": len(tasks), "evaluation_episodes": evaluation_episodes, "num_envs": num_envs}
    counts |= {"adaptation_episodes": adaptation_episodes}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}: {count} must be at least 1")
    successes, returns = [], []
    for start in range(0, len(tasks), num_envs):
        batch = list(tasks[start : start + num_envs])
        with closing(family.make_vector(len(batch), AutoresetMode.SAME_STEP)) as env:
            env.set_tasks(batch)
            agent.init()
            for _ in range(adaptation_steps):
                _adapt(agent, env, adaptation_episodes)
            success_NE, return_NE = _evaluate(agent, env, evaluation_episodes)
        successes.append(success_NE)
        returns.append(return_NE)
    success_SE = np.concatenate(successes)
    names = [family.class_of(task) for task in tasks]
    rates = {name: float(success_SE[[other == name for other in names]].mean()) for name in dict.fromkeys(names)}
    return ProtocolResult(
        float(np.mean(list(rates.values()))), rates, tuple(tasks), success_SE, np.concatenate(returns)
    )


def _adapt(agent: MetaLearningAgent, env: MetaVectorEnv, episodes: int) -> None:
    observation_NO, _ = env.reset(seed=0)
    finished_N = np.zeros(env.num_envs, np.int64)
    while (finished_N < episodes).any():
        actions, extra = agent.adapt_action(observation_NO)
        following_NO, reward_N, terminated_N, truncated_N, _ = env.step(actions)
        agent.step(Timestep(observation_NO, actions, reward_N, terminated_N, truncated_N, extra))
        finished_N += terminated_N | truncated_N
        observation_NO = following_NO
    agent.adapt()


def _evaluate(agent: MetaLearningAgent, env: MetaVectorEnv, episodes: int) -> tuple[np.ndarray, np.ndarray]:
    """success_NE, return_NE of the first ``episodes`` of each row, however long those of others last."""
    rows, finished_N = np.arange(env.num_envs), np.zeros(env.num_envs, np.int64)
    # The episodes of a row that go on while others still play their last one are counted in a column that is cut off.
    success_NE, return_NE = np.zeros((env.num_envs, episodes + 1), bool), np.zeros((env.num_envs, episodes + 1))
    observation_NO, _ = env.reset(seed=0)
    agent.reset(np.ones(env.num_envs, bool))
    while (finished_N < episodes).any():
        observation_NO, reward_N, terminated_N, truncated_N, info = env.step(agent.eval_action(observation_NO))
        return_NE[rows, finished_N] += reward_N
        success_NE[rows, finished_N] |= _succeeds(info, env.num_envs)
        ended_N = terminated_N | truncated_N
        agent.reset(ended_N)
        finished_N = np.minimum(finished_N + ended_N, episodes)
    return success_NE[:, :episodes], return_NE[:, :episodes]


def _succeeds(info: Mapping[str, Any], rows: int) -> np.ndarray:
    """Which rows succeed at this step; those whose episode it ends say so in ``final_info``."""
    success_N = np.zeros(rows, bool)
    for said in (info, info.get("final_info", {})):
        if "success" in said:
            success_N |= said["success"].astype(bool) & said["_success"]
    return success_N
