"""Meta-World's evaluation protocol: rates counted by hand, agents of the package and of ours, its own evaluation."""

import gymnasium
import metaworld
import metaworld.evaluation
import numpy as np
import pytest
from metaworld.policies import SawyerReachV3Policy

from ssm_metarl.config import ConfigError, EnvConfig, load_config
from ssm_metarl.deployment import DeployedPolicy
from ssm_metarl.env_runner.families.metaworld import environment_classes
from ssm_metarl.env_runner.families.metaworld_family import MetaWorldFamily
from ssm_metarl.env_runner.rollout import collect
from ssm_metarl.env_runner.tasks import make_family
from ssm_metarl.evaluation.metaworld_protocol import ProtocolAgent, evaluate_protocol
from ssm_metarl.runtime.life import Life
from ssm_metarl.runtime.policy_file import Spaces
from ssm_metarl.runtime.worker import make_policy


@pytest.fixture(scope="module", autouse=True)
def few_goals():
    """Benchmarks with 6 goals per class, to build them quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metaworld, "_N_GOALS", 6)
        yield


@pytest.fixture(scope="module")
def ml1(few_goals):
    return metaworld.ML1("reach-v3", seed=0)


@pytest.fixture(scope="module")
def family(few_goals):
    return make_family(EnvConfig(id="ssm_metarl/ML1-v0"))


def bare(task: metaworld.Task) -> gymnasium.Env:
    """The package's own environment under its own task."""
    env = metaworld.env_dict.ALL_V3_ENVIRONMENTS[task.env_name]()
    env.set_task(task)
    return env


class Wanderer:
    """Goes from where the hand is to points drawn at random in the space of goals: succeeds now and then."""

    def __init__(self, seed):
        self.rng, self.calls = np.random.default_rng(seed), []

    def init(self):
        self.calls.append("init")

    def adapt_action(self, observations):
        return self.eval_action(observations), {"extra": np.zeros(len(observations))}

    def step(self, timestep):
        assert timestep.aux_policy_outputs["extra"].shape == timestep.reward.shape == (len(timestep.observation),)
        self.calls.append("end" if timestep.truncated.all() else "step")

    def adapt(self):
        self.calls.append("adapt")

    def reset(self, env_mask):
        if env_mask.any():
            self.calls.append("reset")

    def eval_action(self, observations):
        target = self.rng.uniform((-0.1, 0.8, 0.05), (0.1, 0.9, 0.3), (len(observations), 3))
        steer = np.clip(10 * (target - observations[:, :3]), -1, 1)
        return np.concatenate([steer, np.zeros((len(observations), 1))], axis=1).astype(np.float32)


def test_success_rates_are_those_counted_by_hand(ml1):
    """Of 5 goals in batches of 3 and 2 and 2 episodes each, after one episode of adaptation."""
    family = make_family(EnvConfig(id="ssm_metarl/ML1-v0", horizon=35))
    tasks, agent, hand = family.tasks("test", 5), Wanderer(4), Wanderer(4)
    result = evaluate_protocol(agent, family, tasks, adaptation_episodes=1, evaluation_episodes=2, num_envs=3)
    success_SE, return_SE = np.zeros((5, 2), bool), np.zeros((5, 2))
    for batch in (range(3), range(3, 5)):
        envs = [bare(ml1.test_tasks[index]) for index in batch]
        for episode in (-1, 0, 1):
            observation_NO = np.float32([env.reset()[0] for env in envs])
            for _ in range(35):
                steps = [env.step(a) for env, a in zip(envs, hand.eval_action(observation_NO), strict=True)]
                observation_NO = np.float32([step[0] for step in steps])
                if episode >= 0:
                    success_SE[batch, episode] |= [step[4]["success"] > 0 for step in steps]
                    return_SE[batch, episode] += [step[1] for step in steps]
    np.testing.assert_array_equal(result.success_SE, success_SE)
    np.testing.assert_allclose(result.return_SE, return_SE, rtol=1e-12)
    assert 0 < success_SE.mean() < 1, "else it shows nothing"
    assert result.success_rate == result.class_rates["reach-v3"] == success_SE.mean()
    assert agent.calls == ["init", *["step"] * 34, "end", "adapt", "reset", "reset", "reset"] * 2


def test_the_rate_is_the_mean_over_classes(monkeypatch):
    class Stub(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)

        def reset(self, *, seed=None, options=None):
            self.age = 0
            return np.zeros(1, np.float32), {}

        def step(self, action):
            self.age += 1
            # A success ends the episode, so these rows are through with theirs before the others.
            done = self.age >= (2 if self.wins else 6)
            return np.zeros(1, np.float32), 1.0, done, False, {"success": self.wins and self.age == 2}

    class Family(MetaWorldFamily):
        def __init__(self):
            self.horizon = 10

        def build_vector(self, num_envs, autoreset_mode):
            return super(MetaWorldFamily, self).build_vector(num_envs, autoreset_mode)

        def make_env(self):
            return Stub()

        def apply_task(self, env, task):
            env.wins = task["wins"] > 0

    class Still(Wanderer):
        def eval_action(self, observations):
            return np.zeros((len(observations), 4), np.float32)

    wins = [1.0, 0.0, 0.0, 0.0, 1.0]
    tasks = [{"wins": value, "env_class": float(row == 4)} for row, value in enumerate(wins)]
    result = evaluate_protocol(Still(0), Family(), tasks, adaptation_steps=0, evaluation_episodes=3, num_envs=5)
    names = list(environment_classes())
    assert result.class_rates == {names[0]: 0.25, names[1]: 1.0} and result.success_rate == 0.625
    np.testing.assert_array_equal(result.return_SE, np.array([2, 6, 6, 6, 2])[:, None] * np.ones((1, 3)))


class Scripted:
    """The package's own policy, told the goal that its environments hide; for `collect` and for the protocol."""

    def __init__(self, tasks):
        self.policy, self.goals = SawyerReachV3Policy(), [task["rand_vec"][3:] for task in tasks]

    def eval_action(self, observations):
        told = [np.hstack([seen[:-3], goal]) for seen, goal in zip(observations, self.goals, strict=True)]
        return np.clip([self.policy.get_action(each) for each in told], -1, 1).astype(np.float32)

    def init(self):
        pass

    def reset(self, env_mask):
        pass

    def initial_state(self, batch_size):
        return None

    def step(self, input_BI, carry):
        return self.eval_action(input_BI), carry

    def noise(self, rng, *shape):
        return np.zeros((*shape, 4), np.float32)

    def act(self, out_BA, noise):
        return out_BA + noise

    def distribution(self, out_BA):
        return out_BA

    def log_prob(self, dist, action):
        return np.zeros(dist.shape[:-1], np.float32)


# What its own policy says when it asks for more than the arm can do.
@pytest.mark.filterwarnings("ignore:Constant.s. may be too high:UserWarning")
def test_a_policy_that_knows_the_goal_succeeds(family):
    tasks = family.tasks("test", 4)
    vector = family.make_vector(4)
    vector.set_tasks(tasks)
    rollout = collect(vector, Scripted(tasks), 80, ("observation",), np.random.default_rng(0))
    assert rollout.success_B.all() and (rollout.reward_TB[-1] > 9).all() and (rollout.reward_TB[0] < 5).all()
    short = make_family(EnvConfig(id="ssm_metarl/ML1-v0", horizon=80))
    result = evaluate_protocol(Scripted(tasks), short, tasks, adaptation_steps=0, evaluation_episodes=1, num_envs=4)
    assert result.success_rate == 1.0
    np.testing.assert_allclose(result.return_SE[:, 0], rollout.return_B, rtol=1e-5)


def deployed(**settings) -> DeployedPolicy:
    base = {"env.id": "ssm_metarl/ML1-v0", "env.horizon": 12, "policy.hidden_dim": 5}
    config = load_config(None, {**base, "inner.lr": 0.5, **settings})
    family = make_family(config.env)
    return DeployedPolicy(config, make_policy(family, config).to_vector(), Spaces.of(family))


@pytest.mark.parametrize("core", ["ssm", "mlp"])
def test_a_trained_policy_adapts_in_the_protocol_as_by_adapt(family, core):
    """The same random streams: after adaptation, each row has the parameters that its own `Life` would have."""
    inputs = ("observation", "previous_action", "episode_start")
    policy, tasks = deployed(**{"policy.inputs": inputs, "policy.core": core}), family.tasks("test", 2)
    before_P, agent = policy.policy.to_vector(), ProtocolAgent(policy, seed=3, sample=False)
    short = make_family(policy.config.env)
    result = evaluate_protocol(agent, short, tasks, adaptation_episodes=1, evaluation_episodes=2, num_envs=2)
    assert result.return_SE.shape == (2, 2)
    np.testing.assert_array_equal(result.return_SE[:, 0], result.return_SE[:, 1], err_msg="nothing is random in it")
    np.testing.assert_array_equal(policy.policy.to_vector(), before_P)
    for row, task in enumerate(tasks):
        vector, life, rng = short.make_vector(1), deployed_life(policy), np.random.default_rng((3, 1, row))
        vector.set_tasks(task)
        rollout = life.play(vector, 12, _WithoutSeeds(rng))
        life.learn(rollout)
        learned_P = agent._learners[row].life.policy.to_vector()
        np.testing.assert_allclose(learned_P, life.policy.to_vector(), rtol=1e-5, atol=1e-6)
        assert np.abs(learned_P - before_P).max() > 1e-3
    agent.init()
    agent.eval_action(np.zeros((2, 39)))
    np.testing.assert_array_equal(agent._learners[0].life.policy.to_vector(), before_P)


def deployed_life(policy: DeployedPolicy):
    return Life(DeployedPolicy(policy.config, policy.policy.to_vector(), policy.spaces).policy, policy.config, "meta")


class _WithoutSeeds:
    """A generator of actions alone, which hands out a constant where an environment asks for its seed."""

    def __init__(self, rng):
        self.rng = rng

    def integers(self, *_):
        return 0

    def __getattr__(self, name):
        return getattr(self.rng, name)


def test_episodes_of_different_lengths_become_one_rollout():
    agent, timestep = ProtocolAgent(deployed()), metaworld.evaluation.Timestep
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="needs at least one finished episode"):
        agent.adapt_action(np.zeros((1, 39)))
        agent.adapt()
    agent.init()
    rewards = []
    for end in (False, False, True, False, True, False):
        observations = rng.normal(size=(1, 39))
        actions, extra = agent.adapt_action(observations)
        assert actions.shape == (1, 4) and actions.dtype == np.float32
        rewards.append(rng.normal())
        agent.step(timestep(observations, actions, np.array([rewards[-1]]), np.array([end]), np.array([False]), extra))
    rollout = agent._learners[0]._rollout()
    np.testing.assert_array_equal(rollout.mask_TB, [[1, 1], [1, 1], [1, 0]])
    expected = np.float32([[rewards[0], rewards[3]], [rewards[1], rewards[4]], [rewards[2], 0]])
    np.testing.assert_array_equal(rollout.reward_TB, expected)
    agent.adapt()


def test_the_packages_own_evaluation_runs_the_agent(ml1):
    """2 environments of 1 goal each, whose episodes end after 6 steps."""
    envs = metaworld._make_ml_envs_inner(
        ml1, 2, seed=1, total_tasks_per_cls=2, split="test", max_episode_steps=6, task_select="pseudorandom"
    )
    agent = ProtocolAgent(deployed())
    rate, mean_return, rates = metaworld.evaluation.metalearning_evaluation(
        agent, envs, num_evals=2, adaptation_steps=2, adaptation_episodes=2, evaluation_episodes=1
    )
    assert rate == rates["reach-v3"] == 0.0 and mean_return > 0
    assert agent._count == 2 and len(agent._learners) == 2
    envs.close()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"env.id": "ssm_metarl/CartPole-v0"}, "for continuous actions"),
        ({"policy.inputs": ("observation", "previous_reward")}, "shows no rewards in evaluation"),
    ],
)
def test_policies_that_the_protocol_cannot_serve_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        ProtocolAgent(deployed(**settings))


def test_counts_must_make_sense(family):
    with pytest.raises(ValueError, match="evaluation_episodes: 0"):
        evaluate_protocol(Wanderer(0), family, family.tasks("test", 1), evaluation_episodes=0)
    with pytest.raises(ValueError, match="tasks: 0"):
        evaluate_protocol(Wanderer(0), family, [])
