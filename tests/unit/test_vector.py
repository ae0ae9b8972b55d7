"""The vector environments: dynamics against closed forms and gymnasium, ends, autoreset, gymnasium's checks."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

from ssm_metarl.config import EnvConfig
from ssm_metarl.env_runner.families.cartpole import CartPoleVectorEnv
from ssm_metarl.env_runner.families.navigation import Navigation2DVectorEnv
from ssm_metarl.env_runner.families.pendulum import PendulumVectorEnv
from ssm_metarl.env_runner.tasks import make_family
from ssm_metarl.env_runner.vector import MetaVectorEnv, TaskError

DISABLED, NEXT_STEP, SAME_STEP = AutoresetMode.DISABLED, AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP
NATIVE = ["ssm_metarl/Navigation2D-v0", "ssm_metarl/CartPole-v0", "ssm_metarl/Pendulum-v0"]


class CountdownEnv(gymnasium.Env):
    """Observes the step; terminates after ``lifetime`` steps; talks in its infos. Actions 5 and 6."""

    observation_space = gymnasium.spaces.Discrete(100)
    action_space = gymnasium.spaces.Discrete(2, start=5)
    lifetime = 1000.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.age, self.over = 0, False
        return 0, {"age": 0}

    def step(self, action):
        assert not self.over, "stepped after its end"
        assert self.action_space.contains(action)
        self.age += 1
        self.over = self.age >= self.lifetime
        return self.age, float(action), self.over, False, {"age": self.age, "parity": self.age % 2}


@pytest.fixture(scope="module", autouse=True)
def countdown_env():
    gymnasium.register("test/Countdown-v0", CountdownEnv, max_episode_steps=6)
    yield
    gymnasium.registry.pop("test/Countdown-v0")


def countdown(mode: AutoresetMode, lifetimes: list[float], horizon: int = 10) -> MetaVectorEnv:
    vary = {"lifetime": {"uniform": [1, 100]}}
    env = make_family(EnvConfig(id="test/Countdown-v0", vary=vary, horizon=horizon)).make_vector(len(lifetimes), mode)
    env.set_tasks([{"lifetime": lifetime} for lifetime in lifetimes])
    return env


def navigate(mode: AutoresetMode, goals: list[tuple[float, float]], horizon: int = 100) -> Navigation2DVectorEnv:
    env = Navigation2DVectorEnv(len(goals), horizon, mode)
    env.set_tasks([{"goal_x": x, "goal_y": y} for x, y in goals])
    return env


def run(env: MetaVectorEnv, actions: list[np.ndarray]) -> list[tuple]:
    env.reset(seed=0)
    return [env.step(action) for action in actions]


# Navigation2D


def test_navigation_moves_clips_and_rewards_as_maml_defines_it():
    env = navigate(DISABLED, [(0.3, 0.4), (-0.5, 0.0)])
    observation, _ = env.reset(seed=0)
    assert observation.dtype == np.float32 and observation.tolist() == [[0, 0], [0, 0]]
    actions = np.array([[0.05, -0.02], [5.0, -5.0]], np.float32)
    position = np.zeros((2, 2))
    for _ in range(3):
        observation, reward, terminated, truncated, _ = env.step(actions)
        position += np.clip(actions.astype(np.float64), -0.1, 0.1)
        np.testing.assert_array_equal(observation, position.astype(np.float32))
        expected = -np.linalg.norm(position - [[0.3, 0.4], [-0.5, 0.0]], axis=1)
        np.testing.assert_allclose(reward, expected, rtol=1e-15)
        assert not terminated.any() and not truncated.any()


@pytest.mark.parametrize(
    "offset, over", [((0.0, 0.0), True), ((0.009, 0.009), True), ((0.011, 0.0), False), ((0.0, -0.011), False)]
)
def test_navigation_ends_within_a_hundredth_in_both_axes(offset, over):
    env = navigate(DISABLED, [(0.1 + offset[0], 0.1 + offset[1])])
    assert run(env, [np.full((1, 2), 0.1)])[0][2].tolist() == [over]


def test_the_goal_is_nowhere_in_the_observation():
    family = make_family(EnvConfig())
    env = family.make_vector(3)
    generator = np.random.default_rng(1)
    actions = generator.uniform(-0.1, 0.1, (20, 3, 2)).astype(np.float32)
    seen = []
    for tasks in (family.sample(generator, 3), family.sample(generator, 3)):
        env.set_tasks(tasks)
        seen.append([env.reset(seed=5)[0], *(env.step(action)[0] for action in actions)])
    assert env.single_observation_space.shape == (2,)
    np.testing.assert_array_equal(seen[0], seen[1])


def test_navigation_in_gymnasium_says_nothing_of_its_task_at_reset():
    env = gymnasium.make("ssm_metarl/Navigation2D-v0")
    assert env.reset(seed=0, options={"task": {"goal_x": 0.1, "goal_y": 0.2}})[1] == {}


# CartPole and Pendulum against gymnasium


def balance(observation: np.ndarray) -> np.ndarray:
    return (observation[:, 2] + 0.5 * observation[:, 3] + 0.05 * observation[:, 1] > 0).astype(np.int64)


@pytest.mark.parametrize("seed", range(3))
def test_cartpole_equals_gymnasium_bit_by_bit(seed):
    ours = CartPoleVectorEnv(1, 500, DISABLED)
    theirs = gymnasium.make("CartPole-v1")
    observation, _ = ours.reset(seed=seed)
    np.testing.assert_array_equal(observation[0], theirs.reset(seed=seed)[0])
    generator, steps, over = np.random.default_rng(seed), 0, False
    while not over:
        # Mostly balanced, so that the episode is long, with noise, so that it goes everywhere.
        action = balance(observation) if generator.random() < 0.8 else generator.integers(0, 2, 1)
        observation, reward, terminated, truncated, _ = ours.step(action)
        expected = theirs.step(int(action[0]))
        np.testing.assert_array_equal(observation[0], expected[0])
        assert (reward[0], terminated[0], truncated[0]) == expected[1:4]
        steps, over = steps + 1, bool(terminated[0] or truncated[0])
    assert steps > 100


def test_cartpole_rows_with_their_own_physics_equal_gymnasium_bit_by_bit():
    generator = np.random.default_rng(0)
    tasks = [
        {"length": x, "masspole": x / 4, "gravity": 5 + x, "force_mag": 8 * x} for x in generator.uniform(0.3, 2, 13)
    ]
    ours = CartPoleVectorEnv(13, 500, DISABLED)
    ours.set_tasks(tasks)
    state = generator.uniform(-1, 1, (4, 13))
    for _ in range(100):
        actions = generator.integers(0, 2, 13)
        following, reward, terminated = ours.dynamics(state, actions)
        for row, task in enumerate(tasks):
            theirs = gymnasium.envs.classic_control.CartPoleEnv()
            for name, value in task.items():
                setattr(theirs, name, value)
            theirs.total_mass = theirs.masspole + theirs.masscart
            theirs.polemass_length = theirs.masspole * theirs.length
            theirs.state = state[:, row]
            _, expected_reward, expected_terminated, _, _ = theirs.step(actions[row])
            np.testing.assert_array_equal(following[:, row], theirs.state)
            assert (reward[row], terminated[row]) == (expected_reward, expected_terminated)
        state = np.where(np.abs(following) < 3, following, 0.1)


def test_the_force_sign_mirrors_the_actions():
    env = CartPoleVectorEnv(2, 100, DISABLED)
    env.set_tasks([{"force_sign": 1.0}, {"force_sign": -1.0}])
    state = np.full((4, 2), 0.01)
    following, _, _ = env.dynamics(state, np.array([1, 0]))
    np.testing.assert_array_equal(following[:, 0], following[:, 1])
    assert not np.array_equal(following[:, 0], env.dynamics(state, np.array([0, 0]))[0][:, 0])


@pytest.mark.parametrize("mass, length", [(1.0, 1.0), (0.5, 1.3), (1.7, 0.8)])
def test_pendulum_equals_gymnasium(mass, length):
    ours = PendulumVectorEnv(1, 200, DISABLED)
    ours.set_tasks({"m": mass, "l": length})
    theirs = gymnasium.make("Pendulum-v1")
    theirs.unwrapped.m, theirs.unwrapped.l = mass, length
    np.testing.assert_array_equal(ours.reset(seed=3)[0][0], theirs.reset(seed=3)[0])
    generator = np.random.default_rng(0)
    for _ in range(200):
        action = generator.uniform(-3, 3, (1, 1)).astype(np.float32)
        observation, reward, terminated, truncated, _ = ours.step(action)
        expected = theirs.step(action[0])
        if length == 1.0:
            np.testing.assert_array_equal(observation[0], expected[0])
        # gymnasium squares by a power function, which may round differently.
        np.testing.assert_allclose(observation[0], expected[0], rtol=1e-5, atol=1e-6)
        assert reward[0] == pytest.approx(expected[1], rel=1e-6, abs=1e-12)
        assert (terminated[0], truncated[0]) == expected[2:4]


def test_the_native_and_the_generic_cartpole_are_the_same():
    vary = {"length": {"uniform": [0.2, 2]}, "masspole": {"uniform": [0.1, 1]}}
    tasks = [{"length": 0.3, "masspole": 0.2}, {"length": 1.7, "masspole": 0.7}]
    native = make_family(EnvConfig(id="ssm_metarl/CartPole-v0", vary=vary)).make_vector(1)
    generic = make_family(EnvConfig(id="CartPole-v1", vary=vary, horizon=200)).make_vector(1)
    for task in tasks:
        native.set_tasks(task), generic.set_tasks(task)
        observation, _ = native.reset(seed=1)
        np.testing.assert_array_equal(observation, generic.reset(seed=1)[0])
        for _ in range(60):
            action = balance(observation)
            observation, *ours = native.step(action)
            expected, *theirs = generic.step(action)
            np.testing.assert_array_equal(observation, expected)
            np.testing.assert_array_equal(ours[:3], theirs[:3])


# Ends and autoreset


@pytest.mark.parametrize("mode", [DISABLED, NEXT_STEP, SAME_STEP])
def test_the_horizon_truncates_and_is_not_foreign(mode):
    env = navigate(mode, [(0.5, 0.5)] * 2, horizon=3)
    steps = run(env, [np.zeros((2, 2), np.float32)] * 3)
    assert [truncated.tolist() for _, _, _, truncated, _ in steps] == [[False] * 2, [False] * 2, [True] * 2]
    assert not any(terminated.any() or info["foreign_truncation"].any() for _, _, terminated, _, info in steps)


@pytest.mark.parametrize("make", [lambda: navigate(DISABLED, [(0.1, 0.0), (0.3, 0.0)], 5), lambda: None])
def test_rows_that_ended_are_frozen_until_reset(make):
    env = make() or countdown(DISABLED, [1, 3], horizon=5)
    move = np.tile(np.float32([0.099, 0.0]), (2, 1))
    action = move if env.action_space.dtype == np.float32 else np.zeros(2, np.int64)
    steps = run(env, [action] * 7)
    assert [s[2].tolist() for s in steps] == [[True, False], [False, False], [False, True]] + [[False, False]] * 4
    assert not any(s[3].any() for s in steps)
    rewarded = [(s[1] != 0).tolist() for s in steps]
    assert rewarded == [[True, True], [False, True], [False, True]] + [[False, False]] * 4
    for row, last in [(0, 0), (1, 2)]:
        for later in steps[last:]:
            np.testing.assert_array_equal(later[0][row], steps[last][0][row])
    env.reset(options={"reset_mask": np.array([True, False])})
    assert env.step(action)[2].tolist() == [True, False]


def test_next_step_autoreset_is_gymnasiums():
    ours = countdown(NEXT_STEP, [2, 1000], horizon=6)
    theirs = gymnasium.make_vec("test/Countdown-v0", 2, "sync", {"autoreset_mode": NEXT_STEP})
    theirs.set_attr("lifetime", [2.0, 1000.0])
    actions = [np.array([0, 1])] * 9
    for got, expected in zip(run(ours, actions), run(theirs, [a + 5 for a in actions]), strict=True):
        np.testing.assert_array_equal(got[0].argmax(axis=1), expected[0])
        np.testing.assert_array_equal(got[1:4], expected[1:4])
        assert got[4].pop("foreign_truncation").tolist() == [False, False] and got[4].pop("_foreign_truncation").all()
        np.testing.assert_equal(got[4], expected[4])


def test_same_step_autoreset_is_gymnasiums():
    ours = countdown(SAME_STEP, [2, 1000], horizon=6)
    theirs = gymnasium.make_vec("test/Countdown-v0", 2, "sync", {"autoreset_mode": SAME_STEP})
    theirs.set_attr("lifetime", [2.0, 1000.0])
    actions = [np.array([0, 1])] * 9
    for got, expected in zip(run(ours, actions), run(theirs, [a + 5 for a in actions]), strict=True):
        np.testing.assert_array_equal(got[0].argmax(axis=1), expected[0])
        np.testing.assert_array_equal(got[1:4], expected[1:4])
        assert ("final_obs" in got[4]) == ("final_obs" in expected[4])
        if "final_obs" in expected[4]:
            np.testing.assert_array_equal(got[4]["_final_obs"], expected[4]["_final_obs"])
            for row in np.flatnonzero(expected[4]["_final_obs"]):
                assert got[4]["final_obs"][row].argmax() == expected[4]["final_obs"][row]
                assert got[4]["final_info"]["age"][row] == expected[4]["final_info"]["age"][row]
            np.testing.assert_array_equal(got[4]["final_info"]["_age"], expected[4]["final_info"]["_age"])
        np.testing.assert_array_equal(got[4]["age"], expected[4]["age"])
        for name in ("age", "parity"):
            np.testing.assert_array_equal(got[4][f"_{name}"], expected[4].get(f"_{name}", [False, False]))


@pytest.mark.parametrize("mode", [NEXT_STEP, SAME_STEP])
def test_native_rows_begin_again_on_their_own(mode):
    env = navigate(mode, [(0.1, 0.0), (0.3, 0.0)], horizon=5)
    steps = run(env, [np.tile(np.float32([0.1, 0.0]), (2, 1))] * 6)
    positions = np.round(np.float64([observation[:, 0] for observation, *_ in steps]), 3).T.tolist()
    if mode is NEXT_STEP:
        assert positions == [[0.1, 0, 0.1, 0, 0.1, 0], [0.1, 0.2, 0.3, 0, 0.1, 0.2]]
        assert [s[1][0] == 0 for s in steps][1::2] == [True] * 3
    else:
        assert positions == [[0] * 6, [0.1, 0.2, 0, 0.1, 0.2, 0]]
        assert steps[2][4]["final_obs"][1].tolist() == pytest.approx([0.3, 0.0])
    assert not any(s[3].any() for s in steps)


@pytest.mark.parametrize(
    "horizon, truncated_at, foreign", [(4, 4, False), (6, 6, False), (10, 6, True)], ids=["own", "equal", "foreign"]
)
def test_a_time_limit_earlier_than_the_horizon_is_foreign(horizon, truncated_at, foreign):
    env = countdown(DISABLED, [1000, 2], horizon)
    steps = run(env, [np.zeros(2, np.int64)] * 10)
    truncated = np.array([s[3] for s in steps])
    assert np.flatnonzero(truncated[:, 0]).tolist() == [truncated_at - 1] and not truncated[:, 1].any()
    marks = np.array([s[4]["foreign_truncation"] for s in steps])
    assert marks[truncated_at - 1].tolist() == [foreign, False] and marks.sum() == foreign
    assert steps[-1][0].argmax(axis=1).tolist() == [truncated_at, 2]


def test_an_episode_that_terminates_at_a_time_limit_was_not_cut():
    steps = run(countdown(DISABLED, [6], horizon=10), [np.zeros(1, np.int64)] * 6)
    assert steps[-1][2].tolist() == [True] and not steps[-1][4]["foreign_truncation"].any()


# Generic details


def test_discrete_actions_count_from_zero_and_observations_are_flat():
    env = countdown(DISABLED, [1000, 1000])
    assert env.single_action_space == gymnasium.spaces.Discrete(2) and env.single_observation_space.shape == (100,)
    assert run(env, [np.array([0, 1])])[0][1].tolist() == [5.0, 6.0]


def test_box_actions_are_clipped_to_bounds_and_type(monkeypatch):
    class Echo(CountdownEnv):
        action_space = gymnasium.spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, np.inf]), dtype=np.float64)

        def step(self, action):
            assert self.action_space.contains(action)
            return 0, float(action[0] + 1000 * action[1]), False, False, {}

    spec = gymnasium.envs.registration.EnvSpec("test/Echo-v0", Echo)
    monkeypatch.setitem(gymnasium.registry, "test/Echo-v0", spec)
    env = make_family(EnvConfig(id="test/Echo-v0", horizon=5)).make_vector(2)
    assert run(env, [np.float32([[-7, -7], [0.5, 7]])])[0][1].tolist() == [-1.0, 7000.5]


def test_generic_rows_are_seeded_like_gymnasiums():
    ours = make_family(EnvConfig(id="CartPole-v1")).make_vector(3)
    theirs = gymnasium.make_vec("CartPole-v1", 3, "sync")
    np.testing.assert_array_equal(ours.reset(seed=7)[0], theirs.reset(seed=7)[0])


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_an_observation_of_another_shape_than_its_space_is_refused(monkeypatch, shape):
    """Numpy would repeat a single number over the row, and training would go on with it."""

    class Ragged(CountdownEnv):
        observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

        def reset(self, *, seed=None, options=None):
            return np.zeros(2, np.float32), {}

        def step(self, action):
            return np.zeros(shape, np.float32), 0.0, False, False, {}

    spec = gymnasium.envs.registration.EnvSpec("test/Ragged-v0", Ragged)
    monkeypatch.setitem(gymnasium.registry, "test/Ragged-v0", spec)
    env = make_family(EnvConfig(id="test/Ragged-v0", horizon=5)).make_vector(1)
    env.reset(seed=0)
    with pytest.raises(
        TaskError, match=r"test/Ragged-v0 returned an observation of shape \(.*\), its space says \(2,\)"
    ):
        env.step(np.array([0]))


def test_float64_observations_arrive_as_float32(monkeypatch):
    class Wide(CountdownEnv):
        observation_space = gymnasium.spaces.Box(-1e300, 1e300, (2,), np.float64)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.array([0.1, 0.2]), {}

    spec = gymnasium.envs.registration.EnvSpec("test/Wide-v0", Wide)
    monkeypatch.setitem(gymnasium.registry, "test/Wide-v0", spec)
    env = make_family(EnvConfig(id="test/Wide-v0", horizon=5)).make_vector(1)
    observation, _ = env.reset(seed=0)
    assert observation.dtype == np.float32 and env.observation_space.contains(observation)


# Tasks


@pytest.mark.parametrize("env_id", NATIVE)
def test_seed_and_tasks_decide_everything(env_id):
    family = make_family(EnvConfig(id=env_id))
    tasks = family.tasks("test", 3)

    def trace(seed: int, tasks: list) -> np.ndarray:
        env = family.make_vector(3)
        env.set_tasks(tasks)
        env.action_space.seed(0)
        steps = run_seeded(env, seed, [env.action_space.sample() for _ in range(5)])
        return np.concatenate([np.concatenate([o.ravel(), r]) for o, r, *_ in steps])

    def run_seeded(env: MetaVectorEnv, seed: int, actions: list) -> list:
        env.reset(seed=seed)
        return [env.step(action) for action in actions]

    np.testing.assert_array_equal(trace(1, tasks), trace(1, tasks))
    assert not np.array_equal(trace(1, tasks), trace(1, family.tasks("validation", 3)))
    if env_id != NATIVE[0]:
        assert not np.array_equal(trace(1, tasks), trace(2, tasks))


def test_one_task_serves_all_rows_and_reset_takes_tasks():
    env = CartPoleVectorEnv(2, 100, DISABLED)
    env.set_tasks({"length": 0.7})
    assert env.params["length"].tolist() == [0.7, 0.7] and env.tasks == [{"length": 0.7}] * 2
    env.reset(seed=0, options={"task": [{"length": 0.3}, {"masspole": 0.2}]})
    assert env.params["length"].tolist() == [0.3, 0.5] and env.params["masspole"].tolist() == [0.1, 0.2]
    options = {"task": {"length": 0.9}, "reset_mask": np.array([False, True])}
    env.reset(options=options)
    assert env.tasks == [{"length": 0.3}, {"length": 0.9}] and set(options) == {"task", "reset_mask"}


@pytest.mark.parametrize(
    "tasks, words",
    [
        ([{}], "1 tasks for 2 rows"),
        ({"lenght": 1.0}, "no parameter 'lenght'; did you mean 'length'"),
        ({"length": 0.0}, "length = 0.0 must be finite and greater than 0"),
        ({"gravity": float("nan")}, "gravity = nan must be finite"),
    ],
)
def test_wrong_tasks_are_refused(tasks, words):
    with pytest.raises(TaskError, match=words):
        CartPoleVectorEnv(2, 100, DISABLED).set_tasks(tasks)


def test_wrong_calls_are_refused():
    env = CartPoleVectorEnv(2, 100, DISABLED)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="needs a full reset"):
        env.reset(options={"reset_mask": np.array([True, False])})
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions have shape \(3,\), must be \(2,\)"):
        env.step(np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="numpy array of 2 booleans"):
        env.reset(options={"reset_mask": [True, False]})
    with pytest.raises(TaskError, match="no reset option 'tsak'; did you mean 'task'"):
        env.reset(options={"tsak": {}})


# gymnasium's ways in


@pytest.mark.parametrize("env_id", NATIVE)
def test_gymnasiums_checker_finds_no_fault(env_id):
    env = gymnasium.make(env_id)
    with warnings.catch_warnings():
        # It says these of its own CartPole and Pendulum too.
        warnings.filterwarnings("ignore", ".*infinity.*")
        warnings.filterwarnings("ignore", ".*symmetric and normalized space.*")
        check_env(env.unwrapped)


@pytest.mark.parametrize("env_id", NATIVE)
def test_made_environments_end_at_the_horizon_or_where_they_are_told(env_id):
    horizon = make_family(EnvConfig(id=env_id)).horizon
    assert gymnasium.spec(env_id).max_episode_steps == horizon
    hold = {"options": {"task": {"tau": 1e-6}}} if "CartPole" in env_id else {}
    for limit in (None, 3, horizon + 7):
        env = gymnasium.make(env_id, max_episode_steps=limit)
        env.reset(seed=0, **hold)
        over, steps = False, 0
        while not over:
            idle = np.zeros(env.action_space.shape, env.action_space.dtype)
            _, reward, terminated, truncated, _ = env.step(idle)
            over, steps = terminated or truncated, steps + 1
        assert truncated and not terminated and steps == (limit or horizon) and reward != 0


@pytest.mark.parametrize("env_id", NATIVE)
def test_make_vec_works_in_both_ways_with_gymnasiums_wrappers(env_id):
    env = gymnasium.make_vec(env_id, num_envs=3, max_episode_steps=4)
    assert isinstance(env, MetaVectorEnv) and env.metadata["autoreset_mode"] is NEXT_STEP
    env.set_tasks(make_family(EnvConfig(id=env_id)).tasks("test", 3))
    wrapped = DictInfoToList(RecordEpisodeStatistics(env))
    wrapped.reset(seed=0)
    env.action_space.seed(0)
    infos = [wrapped.step(env.action_space.sample())[-1] for _ in range(4)]
    assert [info["episode"]["l"] for info in infos[-1]] == [4, 4, 4]
    sync = gymnasium.make_vec(env_id, num_envs=3, vectorization_mode="sync")
    assert sync.reset(seed=0)[0].shape == env.reset(seed=0)[0].shape
    assert gymnasium.make_vec(env_id, num_envs=2, autoreset_mode="SameStep").autoreset_mode is SAME_STEP


def test_environments_share_no_spaces():
    one, other = (gymnasium.make(NATIVE[0]) for _ in range(2))
    one.action_space.seed(0), other.action_space.seed(0)
    expected = one.action_space.sample()
    one.action_space.sample()
    np.testing.assert_array_equal(other.action_space.sample(), expected)


def test_a_made_environment_takes_a_task():
    env = gymnasium.make("ssm_metarl/Navigation2D-v0").unwrapped
    env.set_task({"goal_x": 0.0, "goal_y": 0.3})
    env.reset(seed=0)
    assert env.task == {"goal_x": 0.0, "goal_y": 0.3}
    assert env.step(np.zeros(2, np.float32))[1] == pytest.approx(-0.3)
    cartpole = gymnasium.make("ssm_metarl/CartPole-v0")
    cartpole.reset(seed=0)
    with pytest.raises(gymnasium.error.InvalidAction, match="action 2 is not in Discrete"):
        cartpole.unwrapped.step(2)
