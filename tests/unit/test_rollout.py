"""`collect`: shapes, masks, ends, policy inputs, repeatability, and what stops it."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode

from ssm_metarl.config import EnvConfig
from ssm_metarl.env_runner.rollout import action_scaler, collect, input_dim
from ssm_metarl.env_runner.tasks import TaskError, TaskFamily, make_family
from ssm_metarl.types import Rollout

ALL_INPUTS = ("previous_reward", "observation", "episode_start", "previous_action")


class FakePolicy:
    """Walks by a fixed mean plus noise, or picks actions by a coin; its carry counts steps; keeps its inputs."""

    def __init__(self, family: TaskFamily, mean: float = 0.5, noise: float = 1.0) -> None:
        self.discrete, self.action_dim, self.mean, self.scale = family.discrete, family.action_dim, mean, noise
        self.inputs: list[np.ndarray] = []

    def initial_state(self, batch_size: int) -> np.ndarray:
        return np.zeros((1, batch_size, 1), np.float32)

    def step(self, input_BI: np.ndarray, carry: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert input_BI.dtype == np.float32
        self.inputs.append(input_BI.copy())
        return np.full((len(input_BI), self.action_dim), carry.flat[0], np.float32), carry + 1

    def noise(self, rng: np.random.Generator, *shape: int) -> np.ndarray:
        if self.discrete:
            return rng.integers(self.action_dim, size=shape)
        return (self.scale * rng.standard_normal((*shape, self.action_dim))).astype(np.float32)

    def act(self, out_BA: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return noise if self.discrete else np.float32(self.mean) + noise

    def distribution(self, out_TBA: np.ndarray) -> np.ndarray:
        return out_TBA if self.discrete else np.concatenate([out_TBA, out_TBA], axis=-1)

    def log_prob(self, dist_TBD: np.ndarray, action_TBA: np.ndarray) -> np.ndarray:
        steps, rows = dist_TBD.shape[:2]
        return np.tile(-np.arange(rows, dtype=np.float32), (steps, 1))


class LineEnv(gymnasium.Env):
    """Observes 10 + the step; reward is the step; ends or breaks when told to."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    lifetime, cut_at, break_at, broken_reward = 1000.0, 1000.0, 1000.0, 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_number = 0
        return np.array([10.0], np.float32), {}

    def step(self, action):
        assert np.all(np.abs(action) <= 1)
        self.step_number += 1
        t = self.step_number
        broken = t >= self.break_at
        reward = np.nan if broken and self.broken_reward else t
        observation = np.array([np.inf if broken and not self.broken_reward else 10.0 + t], np.float32)
        return observation, float(reward), t >= self.lifetime, t >= self.cut_at, {}


@pytest.fixture(scope="module", autouse=True)
def line_env():
    gymnasium.register("test/Line-v0", LineEnv, max_episode_steps=6)
    yield
    gymnasium.registry.pop("test/Line-v0")


def line(horizon: int = 8) -> TaskFamily:
    vary = {name: {"uniform": [1, 2]} for name in ("lifetime", "cut_at", "break_at", "broken_reward")}
    return make_family(EnvConfig(id="test/Line-v0", horizon=horizon, vary=vary))


def roll(
    family: TaskFamily, tasks, rows: int = 4, seed: int = 0, inputs: tuple[str, ...] = ("observation",), **policy
) -> Rollout:
    env = family.make_vector(rows)
    env.set_tasks(tasks)
    return collect(env, FakePolicy(family, **policy), family.horizon, inputs, np.random.default_rng(seed))


@pytest.mark.parametrize("env_id", ["ssm_metarl/Navigation2D-v0", "ssm_metarl/CartPole-v0", "CartPole-v1"])
def test_shapes_are_fixed_and_rows_masked_after_their_end(env_id):
    family = make_family(EnvConfig(id=env_id, horizon=60))
    rollout = roll(family, family.tasks("test", 4), rows=4)
    shapes = {name: getattr(rollout, name).shape for name in ("observation_TBO", "reward_TB", "mask_TB", "logp_TB")}
    assert shapes["observation_TBO"] == (60, 4, family.observation_dim)
    assert {shapes[name] for name in ("reward_TB", "mask_TB", "logp_TB")} == {(60, 4)}
    if family.discrete:
        assert rollout.action_TBA.shape == (60, 4) and rollout.action_TBA.dtype == np.int64
        assert rollout.dist_TBD.shape == (60, 4, 2)
        lengths = rollout.mask_TB.sum(axis=0)
        assert len(set(lengths)) > 1 and 5 < lengths.min() < lengths.max() < 60
        np.testing.assert_array_equal(rollout.mask_TB, np.arange(60)[:, None] < lengths)
        # One reward a step, none after the end.
        np.testing.assert_array_equal(rollout.reward_TB, rollout.mask_TB)
        assert rollout.num_steps == lengths.sum() and rollout.mean_return == lengths.mean()
    else:
        assert rollout.action_TBA.shape == (60, 4, 2) and rollout.action_TBA.dtype == np.float32
        assert rollout.dist_TBD.shape == (60, 4, 4)
    for name, array in vars(rollout).items():
        if name not in ("action_TBA", "foreign_truncation_B", "success_B"):
            assert array.dtype == np.float32, name
    assert not rollout.foreign_truncation_B.any()
    assert rollout.success_B is None, "these environments do not know success"


class DoorEnv(LineEnv):
    """Succeeds for a moment at step ``opens_at``, as Meta-World says it: a float in info. Ends at step 5."""

    opens_at = 1.0

    def step(self, action):
        observation, reward, _, truncated, _ = super().step(action)
        return (
            observation,
            reward,
            self.step_number >= 5,
            truncated,
            {"success": float(self.step_number == self.opens_at)},
        )


def test_a_success_counts_whenever_it_was_in_the_episode():
    gymnasium.register("test/Door-v0", DoorEnv, max_episode_steps=6)
    family = make_family(EnvConfig(id="test/Door-v0", horizon=8, vary={"opens_at": {"uniform": [1, 2]}}))
    rollout = roll(family, [{"opens_at": step} for step in (1.0, 3.0, 5.0, 6.0)])
    np.testing.assert_array_equal(rollout.success_B, [True, True, True, False])
    gymnasium.registry.pop("test/Door-v0")


def test_a_rollout_tells_what_happened():
    family = make_family(EnvConfig(horizon=20))
    task = {"goal_x": 5.0, "goal_y": -5.0}
    rollout = roll(family, task, rows=3)
    position = np.zeros((3, 2))
    assert np.abs(rollout.action_TBA).max() > 1, "the stored action is the policy's own"
    for t in range(20):
        np.testing.assert_allclose(rollout.observation_TBO[t], position, atol=1e-6)
        position += np.clip(0.1 * rollout.action_TBA[t].astype(np.float64), -0.1, 0.1)
        np.testing.assert_allclose(rollout.reward_TB[t], -np.linalg.norm(position - [5, -5], axis=1), rtol=1e-6)
        assert rollout.dist_TBD[t].tolist() == [[t] * 4] * 3 and rollout.logp_TB[t].tolist() == [0, -1, -2]
    np.testing.assert_allclose(rollout.final_observation_BO, position, atol=1e-6)
    assert rollout.mask_TB.all() and rollout.input_TBI is rollout.observation_TBO


@pytest.mark.parametrize("env_id", ["ssm_metarl/Navigation2D-v0", "ssm_metarl/CartPole-v0"])
def test_inputs_come_in_the_order_asked_for(env_id):
    family = make_family(EnvConfig(id=env_id, horizon=5))
    env, policy = family.make_vector(3), FakePolicy(family)
    env.set_tasks(family.tasks("test", 1)[0])
    rollout = collect(env, policy, 5, ALL_INPUTS, np.random.default_rng(0))
    width = family.observation_dim
    assert rollout.input_TBI.shape == (5, 3, input_dim(family, ALL_INPUTS)) == (5, 3, 1 + width + 1 + family.action_dim)
    np.testing.assert_array_equal(rollout.input_TBI, np.stack(policy.inputs))
    reward_TB1, observation, start_TB1, action = np.split(rollout.input_TBI, [1, 1 + width, 2 + width], axis=2)
    np.testing.assert_array_equal(observation, rollout.observation_TBO)
    np.testing.assert_array_equal(start_TB1[..., 0], np.eye(5, dtype=np.float32)[:, [0] * 3])
    assert not reward_TB1[0].any() and not action[0].any()
    np.testing.assert_array_equal(reward_TB1[1:, :, 0], rollout.reward_TB[:-1])
    expected = np.eye(2)[rollout.action_TBA] if family.discrete else rollout.action_TBA
    np.testing.assert_array_equal(action[1:], expected[:-1])


def test_input_dim_counts_what_is_asked_for():
    family = make_family(EnvConfig(id="ssm_metarl/Pendulum-v0"))
    assert [input_dim(family, (name,)) for name in ALL_INPUTS] == [1, 3, 1, 1]


def test_only_a_foreign_time_limit_leaves_something_to_bootstrap():
    tasks = [{"lifetime": 3.0}, {"lifetime": 1000.0}]
    rollout = roll(line(horizon=8), tasks, rows=2)
    assert rollout.mask_TB.sum(axis=0).tolist() == [3, 6] and rollout.reward_TB.shape == (8, 2)
    assert rollout.foreign_truncation_B.tolist() == [False, True]
    assert rollout.final_observation_BO.tolist() == [[13], [16]]
    for horizon in (5, 6):
        own = roll(line(horizon), tasks, rows=2)
        assert not own.foreign_truncation_B.any() and own.final_observation_BO.tolist() == [[13], [10 + horizon]]


def test_rows_are_cut_and_end_each_at_their_time():
    rollout = roll(line(horizon=8), [{"cut_at": 2.0}, {"lifetime": 4.0}, {}], rows=3)
    assert rollout.foreign_truncation_B.tolist() == [True, False, True]
    assert rollout.mask_TB.sum(axis=0).tolist() == [2, 4, 6]
    assert rollout.final_observation_BO.tolist() == [[12], [14], [16]]


def test_a_shorter_horizon_than_the_familys_cuts_without_marks():
    env = line(horizon=6).make_vector(2)
    rollout = collect(env, FakePolicy(line()), 2, ("observation",), np.random.default_rng(0))
    assert rollout.mask_TB.tolist() == [[1, 1], [1, 1]] and not rollout.foreign_truncation_B.any()


@pytest.mark.parametrize("env_id", ["ssm_metarl/Navigation2D-v0", "ssm_metarl/CartPole-v0", "Pendulum-v1"])
def test_a_rollout_is_a_function_of_task_policy_and_rng(env_id):
    family = make_family(
        EnvConfig(id=env_id, horizon=30, vary={} if "metarl" in env_id else {"m": {"uniform": [1, 2]}})
    )
    first, second = family.tasks("test", 2)
    env = family.make_vector(4)

    def again(task, seed):
        env.set_tasks(task)
        return collect(env, FakePolicy(family), 30, ALL_INPUTS, np.random.default_rng(seed))

    reference = again(first, 1)
    assert not np.array_equal(again(second, 1).reward_TB, reference.reward_TB)
    other = again(first, 2)
    assert not np.array_equal(other.action_TBA, reference.action_TBA)
    starts_differ = not np.array_equal(other.observation_TBO[0], reference.observation_TBO[0])
    assert starts_differ == ("Navigation" not in env_id)
    # The environment has lived through other tasks and seeds; a new one has not.
    for repeated in (again(first, 1), roll(family, first, seed=1, inputs=ALL_INPUTS)):
        for name, array in vars(reference).items():
            np.testing.assert_array_equal(getattr(repeated, name), array, err_msg=name)


@pytest.mark.parametrize(
    "task, words",
    [
        (
            {"break_at": 3.0},
            r"observation of episode 1 is not finite at step 3, task .*'break_at': 3.0.* of GenericVec",
        ),
        ({"break_at": 3.0, "broken_reward": 1.0}, "reward of episode 1 is not finite at step 2, task"),
    ],
)
def test_a_number_that_is_not_finite_stops_the_rollout_and_names_the_task(task, words):
    family = line()
    env, policy = family.make_vector(2), FakePolicy(family)
    env.set_tasks([{}, task])
    with pytest.raises(TaskError, match=words):
        collect(env, policy, 8, ALL_INPUTS, np.random.default_rng(0))
    assert len(policy.inputs) == 3 and np.isfinite(policy.inputs).all()


def test_a_policy_that_is_not_finite_stops_before_the_environment_sees_its_action():
    family = make_family(EnvConfig())
    env = family.make_vector(2)
    policy = FakePolicy(family)
    policy.step = lambda input_BI, carry: (np.array([[0, 0], [0, np.nan]], np.float32), carry)
    with pytest.raises(TaskError, match="policy's output of episode 1 is not finite at step 0"):
        collect(env, policy, 5, ("observation",), np.random.default_rng(0))
    policy = FakePolicy(family, noise=np.inf)
    with pytest.raises(TaskError, match="noise of the policy's actions of episode 0 is not finite"):
        collect(env, policy, 5, ("observation",), np.random.default_rng(0))
    assert np.isfinite(env.step(np.zeros((2, 2)))[0]).all()


def test_an_environment_that_resets_itself_is_refused():
    env = make_family(EnvConfig()).make_vector(2, AutoresetMode.NEXT_STEP)
    with pytest.raises(ValueError, match="DISABLED, not NEXT_STEP"):
        collect(env, FakePolicy(make_family(EnvConfig())), 5, ("observation",), np.random.default_rng(0))


def test_a_policy_acts_in_units_of_the_box():
    scale = action_scaler(Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32)))
    actions = np.array([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0], [2.0, -2.0]], np.float32)
    np.testing.assert_allclose(scale(actions), [[-2, 0], [0, 5], [2, 10], [4, -5]])
    for space in (Box(-np.inf, np.inf, (2,)), Discrete(3)):
        assert action_scaler(space)(actions) is actions
