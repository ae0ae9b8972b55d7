"""Point robots, bandits, tabular MDPs, GridNavi and the T-maze: what their sources define, and what they refuse."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from ssm_metarl.config import EnvConfig
from ssm_metarl.env_runner.families.bandits import BernoulliBanditVectorEnv, GaussianBanditVectorEnv
from ssm_metarl.env_runner.families.gridnavi import GOAL_CELLS, GridNaviVectorEnv
from ssm_metarl.env_runner.families.point_robot import PointRobotVectorEnv, SparsePointRobotVectorEnv
from ssm_metarl.env_runner.families.tabular import TabularMDPVectorEnv
from ssm_metarl.env_runner.families.tmaze import FORWARD, NORTH, SOUTH, TMazeVectorEnv
from ssm_metarl.env_runner.tasks import TaskFamily, make_family
from ssm_metarl.env_runner.vector import TaskError

DISABLED = AutoresetMode.DISABLED
NAMES = ("BernoulliBandit", "GaussianBandit", "GridNavi", "PointRobot", "SparsePointRobot", "TabularMDP", "TMaze")
IDS = [f"ssm_metarl/{name}-v0" for name in NAMES]
POINTS = ("ssm_metarl/PointRobot-v0", "ssm_metarl/SparsePointRobot-v0")
MAKERS = {
    "BernoulliBandit": BernoulliBanditVectorEnv,
    "GaussianBandit": GaussianBanditVectorEnv,
    "GridNavi": GridNaviVectorEnv,
    "TabularMDP": TabularMDPVectorEnv,
    "TMaze": TMazeVectorEnv,
}


def family(name: str, **settings) -> TaskFamily:
    return make_family(EnvConfig(id=f"ssm_metarl/{name}-v0", **settings))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def goals_of(tasks: list[dict]) -> np.ndarray:
    return np.array([[task["goal_x"], task["goal_y"]] for task in tasks])


# Point robots


@pytest.mark.parametrize("variant, per_action, start", [("pearl", 1.0, 1.0), ("varibad", 0.1, 0.0)])
def test_point_robots_move_and_reward_as_their_sources_define_it(variant, per_action, start):
    env = PointRobotVectorEnv(3, None, DISABLED, variant)
    goals = np.array([[0.3, 0.4], [-1.0, 0.0], [0.0, 1.0]])
    env.set_tasks([{"goal_x": x, "goal_y": y} for x, y in goals])
    position = env.reset(seed=0)[0].astype(np.float64)
    assert env.single_action_space.high.tolist() == [pytest.approx(0.1 / per_action)] * 2
    assert np.abs(position).max() <= start and (position.std() > 0) == (start > 0)
    actions = np.array([[0.05, -0.02], [5.0, -5.0], [0.1, -0.1]], np.float32) / per_action
    for _ in range(3):
        observation, reward, terminated, truncated, _ = env.step(actions)
        position += np.clip(actions.astype(np.float64) * per_action, -0.1, 0.1)
        np.testing.assert_allclose(observation, position, atol=1e-6)
        np.testing.assert_allclose(reward, -np.linalg.norm(position - goals, axis=1), atol=1e-6)
        assert not terminated.any() and not truncated.any()


def test_the_start_of_pearls_robot_is_uniform_on_the_square():
    env = PointRobotVectorEnv(4000, None, DISABLED)
    start = env.reset(seed=0)[0]
    # The mean of n numbers uniform on [-1, 1] has the deviation 1 / sqrt(3 n), that of their squares sqrt(4 / 45 n).
    assert np.abs(start.mean(axis=0)).max() < 4 / np.sqrt(3 * 4000)
    assert np.abs((start**2).mean(axis=0) - 1 / 3).max() < 4 * np.sqrt(4 / 45 / 4000)


@pytest.mark.parametrize(
    "distance, reward", [(0.0, 1.0), (0.15, 0.85), (0.199, 0.801), (0.201, 0.0), (1.0, 0.0)], ids=str
)
def test_the_sparse_reward_is_one_less_the_distance_within_a_fifth(distance, reward):
    env = SparsePointRobotVectorEnv(1, None, DISABLED)
    env.set_tasks({"goal_x": 0.1 + distance, "goal_y": 0.0})
    assert env.reset(seed=0)[0].tolist() == [[0, 0]]
    _, got, terminated, _, info = env.step(np.float32([[0.1, 0.0]]))
    assert got[0] == pytest.approx(reward, abs=1e-6) and not terminated[0]
    assert info["success"].tolist() == [reward > 0]


def test_pearls_goals_are_its_hundred_fixed_ones():
    dense = family("PointRobot")
    generator = np.random.RandomState(1337)
    expected = np.array([generator.uniform(-1.0, 1.0) for _ in range(200)]).reshape(100, 2)  # x before y, goal by goal
    training = goals_of(dense.sample(rng(), 2000))
    assert dense.horizon == 20 and {tuple(goal) for goal in training} == {tuple(goal) for goal in expected[:80]}
    np.testing.assert_array_equal(goals_of(dense.tasks("test", 20)), expected[80:])
    validation = goals_of(dense.tasks("validation", 500))
    assert np.abs(validation).max() <= 1 and not {tuple(g) for g in validation} & {tuple(g) for g in expected}


def test_pearls_sparse_goals_are_a_hundred_on_the_half_circle_shuffled():
    sparse = family("SparsePointRobot")
    degrees = np.linspace(0, 180, num=100)
    np.random.RandomState(1337).shuffle(degrees)  # draws the same for rows of points
    expected = np.stack([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], axis=1)
    np.testing.assert_allclose(goals_of(sparse.tasks("test", 20)), expected[80:], atol=1e-12)
    assert len({task["goal_x"] for task in sparse.sample(rng(), 2000)}) == 80


@pytest.mark.parametrize("name", ["PointRobot", "SparsePointRobot"])
def test_varibads_goals_are_spread_over_the_half_circle(name):
    tasks = family(name, variant="varibad")
    goals = goals_of(tasks.sample(rng(), 2000))
    np.testing.assert_allclose(np.hypot(goals[:, 0], goals[:, 1]), 1.0)
    angles = np.arctan2(goals[:, 1], goals[:, 0])
    # Uniform on [0, pi]: a deviation of pi / sqrt(12).
    assert angles.min() >= 0 and abs(angles.mean() - np.pi / 2) < 4 * np.pi / np.sqrt(12 * 2000)
    assert tasks.horizon == 100 and tasks.disjoint and tasks.encode(tasks.tasks("test", 1)[0]).shape == (2,)


def test_who_says_what_varies_gets_no_fixed_goals():
    tasks = family("PointRobot", vary={"goal_x": {"uniform": [2, 3]}}).tasks("test", 50)
    assert goals_of(tasks)[:, 0].min() >= 2 and np.abs(goals_of(tasks)[:, 1]).max() <= 1


# Bandits


def test_a_bernoulli_arm_pays_with_its_probability():
    env = BernoulliBanditVectorEnv(4, 20_000, DISABLED, num_arms=3)
    env.set_tasks([{"probability": (0.0, 0.2, 1.0)}] * 3 + [{"probability": (0.7, 0.0, 0.0)}])
    env.reset(seed=0)
    rewards = np.array([env.step(np.array([0, 1, 2, 0]))[1] for _ in range(4000)])
    assert set(np.unique(rewards)) == {0.0, 1.0} and env.single_action_space.n == 3
    np.testing.assert_array_equal(rewards.mean(axis=0)[[0, 2]], [0, 1])
    for arm, chance in [(1, 0.2), (3, 0.7)]:
        assert abs(rewards[:, arm].mean() - chance) < 4 * np.sqrt(chance * (1 - chance) / 4000)


def test_a_gaussian_arm_pays_its_mean_and_unit_noise():
    env = GaussianBanditVectorEnv(2, 10_000, DISABLED, num_arms=2)
    env.set_tasks([{"mean": (0.25, 9.0)}, {"mean": (9.0, -3.0)}])
    env.reset(seed=0)
    rewards = np.array([env.step(np.array([0, 1]))[1] for _ in range(4000)])
    assert np.abs(rewards.mean(axis=0) - [0.25, -3.0]).max() < 4 / np.sqrt(4000)
    assert np.abs(rewards.var(axis=0) - 1).max() < 4 * np.sqrt(2 / 4000)
    assert abs(np.corrcoef(rewards.T)[0, 1]) < 4 / np.sqrt(4000)


@pytest.mark.parametrize("name, parameter", [("BernoulliBandit", "probability"), ("GaussianBandit", "mean")])
def test_a_bandits_trial_has_a_hundred_pulls_and_shows_nothing(name, parameter):
    tasks = family(name, kwargs={"num_arms": 4})
    values = np.array([task[parameter] for task in tasks.sample(rng(), 500)])
    assert values.shape == (500, 4) and values.min() >= 0 and values.max() <= 1 and len(np.unique(values)) == 2000
    env = tasks.make_vector(2)
    observations, ends = [env.reset(seed=0)[0]], []
    for step in range(100):
        observation, _, terminated, truncated, _ = env.step(np.array([step % 4, 0]))
        observations.append(observation)
        ends.append((terminated | truncated).tolist())
    assert not np.any(observations) and ends == [[False, False]] * 99 + [[True, True]]


# Tabular MDP


def cycle(num_states: int, num_actions: int) -> dict:
    """Action a leads from state s to s + a, and is worth 10 s + a."""
    transition = np.zeros((num_states, num_actions, num_states))
    for state in range(num_states):
        for action in range(num_actions):
            transition[state, action, (state + action) % num_states] = 1.0
    mean = 10.0 * np.arange(num_states)[:, None] + np.arange(num_actions)
    return {"transition": tuple(transition.ravel().tolist()), "mean_reward": tuple(mean.ravel().tolist())}


def test_a_tabular_mdp_goes_where_its_transitions_say():
    env = TabularMDPVectorEnv(500, 50, DISABLED, num_states=4, num_actions=3)
    env.set_tasks(cycle(4, 3))
    observation, state = env.reset(seed=0)[0], 0
    for action in [1, 1, 2, 0, 2, 1, 1]:
        assert observation.tolist() == np.tile(np.eye(4)[state], (500, 1)).tolist()
        observation, reward, terminated, *_ = env.step(np.full(500, action))
        assert abs(reward.mean() - (10 * state + action)) < 4 / np.sqrt(500) and not terminated.any()
        assert abs(reward.std() - 1) < 4 / np.sqrt(2 * 500)
        state = (state + action) % 4


def test_a_tabular_mdp_follows_its_probabilities():
    env = TabularMDPVectorEnv(4000, 50, DISABLED)
    task = {**env.variant.draw(rng(1)), "mean_reward": (0.0,) * 50}
    env.set_tasks(task)
    env.reset(seed=0)
    expected = np.eye(10)[0]
    for action in [3, 0, 4]:
        observation = env.step(np.full(4000, action))[0]
        expected = expected @ np.reshape(task["transition"], (10, 5, 10))[:, action]
        assert np.abs(observation.mean(axis=0) - expected).max() < 4 * 0.5 / np.sqrt(4000)


def test_random_mdps_are_dirichlet_and_normal():
    tasks = family("TabularMDP").sample(rng(), 200)
    transition = np.array([task["transition"] for task in tasks]).reshape(-1, 10)
    means = np.array([task["mean_reward"] for task in tasks])
    np.testing.assert_allclose(transition.sum(axis=1), 1.0)
    # An entry of Dirichlet(1, ..., 1) over 10 is Beta(1, 9), of variance 9 / 1100; that of this many is off by 0.0001.
    assert abs(transition.var() - 9 / 1100) < 0.0005
    assert abs(means.mean() - 1) < 4 / np.sqrt(means.size) and abs(means.std() - 1) < 4 / np.sqrt(2 * means.size)
    assert len(np.unique(transition)) == transition.size


def test_a_trial_of_several_episodes_begins_again_and_says_so():
    env = TabularMDPVectorEnv(2, 8, DISABLED, num_states=4, num_actions=3, episode_steps=3)
    env.set_tasks(cycle(4, 3))
    assert env.observation_space.shape == (2, 5)
    observations = [env.reset(seed=0)[0]] + [env.step(np.array([1, 2]))[0] for _ in range(7)]
    states = np.argmax(np.array(observations)[..., :4], axis=-1)
    assert states.T.tolist() == [[0, 1, 2, 0, 1, 2, 0, 1], [0, 2, 0, 0, 2, 0, 0, 2]]
    assert [o[:, 4].tolist() for o in observations] == [[float(t % 3 == 0)] * 2 for t in range(8)]
    _, _, terminated, truncated, _ = env.step(np.array([0, 0]))
    assert truncated.all() and not terminated.any()


# GridNavi


def test_gridnavi_moves_and_walls_stop_it():
    env = GridNaviVectorEnv(1, 100, DISABLED)
    env.reset(seed=0)
    ways = [(1, (0, 1)), (2, (1, 1)), (0, (1, 1)), (3, (1, 0)), (3, (1, 0)), (4, (0, 0)), (4, (0, 0))]
    ways += [(1, (0, y)) for y in (1, 2, 3, 4, 4)] + [(2, (x, 4)) for x in (1, 2, 3, 4, 4)]
    for action, position in ways:
        observation, reward, *_ = env.step(np.array([action]))
        assert tuple(observation[0]) == position and reward[0] == (1.0 if position == (4, 4) else -0.1)


def test_gridnavi_pays_on_the_goal_and_goes_on():
    env = GridNaviVectorEnv(2, None, DISABLED)
    env.set_tasks([{"goal_cell": 10.0}, {"goal_cell": 2.0}])  # (2, 0) and (0, 2)
    env.reset(seed=0)
    steps = [env.step(np.array([action, action])) for action in [2, 2, 0, *[0] * 12]]
    assert [s[1].tolist() for s in steps[:3]] == [[-0.1, -0.1], [1.0, -0.1], [1.0, -0.1]]
    assert [s[4]["success"].tolist() for s in steps[:3]] == [[False, False], [True, False], [True, False]]
    assert [s[3].all() for s in steps] == [False] * 14 + [True] and not any(s[2].any() for s in steps)
    assert env.step(np.array([0, 0]))[4]["success"].tolist() == [False, False]


def test_gridnavi_has_21_goals_split_without_overlap():
    tasks = family("GridNavi")
    cells = [{task["goal_cell"] for task in part} for part in (tasks.sample(rng(), 500), tasks.tasks("test", 4))]
    cells.append({task["goal_cell"] for task in tasks.tasks("validation", 4)})
    assert [len(part) for part in cells] == [13, 4, 4] and set.union(*cells) == set(GOAL_CELLS) and tasks.disjoint
    assert set(range(25)) - set(GOAL_CELLS) == {0, 1, 5, 6}


def test_gridnavi_goes_back_to_its_corner():
    env = GridNaviVectorEnv(1, 6, DISABLED, episode_steps=2)
    observations = [env.reset(seed=0)[0]] + [env.step(np.array([2]))[0] for _ in range(4)]
    assert np.concatenate(observations).tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1]]
    assert env.observation_space.contains(observations[0])


# T-maze


def walk(cue_sign: float, last: int, length: int = 4) -> list[tuple]:
    env = TMazeVectorEnv(64, None, DISABLED, length=length)
    env.set_tasks({"cue_sign": cue_sign})
    first = env.reset(seed=1)[0]
    steps = [env.step(np.full(64, FORWARD)) for _ in range(length)]
    return [(first,), *steps, env.step(np.full(64, last))]


@pytest.mark.parametrize("cue_sign", [-1.0, 1.0])
@pytest.mark.parametrize("arm, side", [(NORTH, 1.0), (SOUTH, -1.0)])
def test_the_arm_that_the_cue_means_pays(cue_sign, arm, side):
    steps = walk(cue_sign, arm)
    cue = steps[0][0][:, 0]
    assert set(cue) == {-1.0, 1.0} and abs(cue.sum()) < 4 * np.sqrt(64)
    right = cue * cue_sign == side
    _, reward, terminated, truncated, info = steps[-1]
    assert terminated.all() and not truncated.any()
    np.testing.assert_array_equal(reward, right.astype(float))
    np.testing.assert_array_equal(info["success"], right)
    assert all(not s[1].any() and not s[2].any() and not s[4]["success"].any() for s in steps[1:-1])


def test_the_cue_is_seen_once():
    for last in (NORTH, SOUTH):
        seen = np.array([step[0] for step in walk(1.0, last)])
        assert (np.abs(seen[0, :, 0]) == 1).all() and not seen[1:, :, 0].any()
        assert seen[:, 0, 1:].tolist() == [[1, 0]] * 4 + [[0, 1], [0, 0]]
        assert (seen[1:] == seen[1:, :1]).all(), "rows with different cues look alike after the first step"
    env = TMazeVectorEnv(8, None, DISABLED)
    env.reset(seed=0)
    assert not env.step(np.full(8, NORTH))[0][:, 0].any(), "who stands still at the start sees it once, too"


def test_standing_still_in_the_maze_costs_a_tenth():
    env = TMazeVectorEnv(3, None, DISABLED, length=2)
    env.reset(seed=0)
    actions = [(NORTH, FORWARD, SOUTH), (FORWARD,) * 3, (FORWARD,) * 3, (SOUTH, FORWARD, NORTH)]
    steps = [env.step(np.array(action)) for action in actions]
    assert [s[1].tolist() for s in steps[:3]] == [[-0.1, 0, -0.1], [0, 0, 0], [0, -0.1, 0]]
    assert steps[3][1][1] == -0.1 and steps[3][2].tolist() == [True, False, True] and steps[3][3].tolist()[1]


def test_cues_are_drawn_anew_for_each_episode():
    env = TMazeVectorEnv(1, None, DISABLED)
    env.reset(seed=0)
    assert len({env.reset()[0][0, 0] for _ in range(30)}) == 2


def test_the_maze_has_as_much_time_as_it_is_long():
    assert family("TMaze").horizon == 20 and family("TMaze", kwargs={"length": 50}).horizon == 100
    assert family("TMaze", kwargs={"length": 50}, horizon=51).horizon == 51
    tasks = family("TMaze")
    assert {task["cue_sign"] for task in tasks.sample(rng(), 50)} == {-1.0, 1.0} and not tasks.disjoint


# All of them


def trace(name: str, seed: int, tasks: list, steps: int = 25, **settings) -> np.ndarray:
    env = family(name, **settings).make_vector(len(tasks))
    env.set_tasks(tasks)
    env.action_space.seed(0)
    numbers = [env.reset(seed=seed)[0].ravel()]
    for _ in range(steps):
        observation, reward, *ends, _ = env.step(env.action_space.sample())
        numbers += [observation.ravel(), reward, *ends]
    return np.concatenate(numbers)


@pytest.mark.parametrize("name", NAMES)
def test_seed_and_tasks_decide_everything(name):
    tasks, others = family(name).tasks("test", 4), family(name).tasks("validation", 4)
    np.testing.assert_array_equal(trace(name, 1, tasks), trace(name, 1, tasks))
    if name in ("GridNavi", "SparsePointRobot"):
        # Random steps seldom meet a goal, and there is no chance in these.
        np.testing.assert_array_equal(trace(name, 1, tasks), trace(name, 2, tasks))
        return
    assert not np.array_equal(trace(name, 1, tasks), trace(name, 2, tasks))
    if name != "TMaze":
        assert not np.array_equal(trace(name, 1, tasks), trace(name, 1, others))


@pytest.mark.parametrize("name", NAMES)
def test_rows_with_the_same_task_know_nothing_of_their_neighbours(name):
    tasks = family(name)
    one, other = tasks.tasks("test", 2)
    env = tasks.make_vector(3)
    env.set_tasks([one, other, one])
    for parameter, values in env.params.items():
        np.testing.assert_array_equal(values[0], values[2])
        np.testing.assert_array_equal(values[1], other.get(parameter, tasks.make_vector(1).parameters[parameter]))
    env.set_tasks({})
    for parameter, nominal in env.parameters.items():
        np.testing.assert_array_equal(env.params[parameter], [nominal] * 3)


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_ended_stay_as_they_are(name):
    env = family(name, horizon=12).make_vector(6)
    env.action_space.seed(0)
    env.reset(seed=0)
    last, ended = None, np.zeros(6, bool)
    for _ in range(20):
        before = ended.copy()
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert not reward[before].any() and not (terminated | truncated)[before].any()
        assert not info.get("success", np.zeros(6, bool))[before].any()
        if last is not None:
            np.testing.assert_array_equal(observation[before], last[before])
        last, ended = observation, ended | terminated | truncated
    assert ended.all()
    env.reset(options={"reset_mask": np.array([True] + [False] * 5)})
    later = env.step(env.action_space.sample())[0]
    np.testing.assert_array_equal(later[1:], last[1:])


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasiums_checker_finds_no_fault(env_id):
    env = gymnasium.make(env_id)
    with warnings.catch_warnings():
        # It says these of its own Pendulum too.
        warnings.filterwarnings("ignore", ".*infinity.*")
        warnings.filterwarnings("ignore", ".*symmetric and normalized space.*")
        check_env(env.unwrapped, skip_render_check=True)
    assert env.spec.max_episode_steps == make_family(EnvConfig(id=env_id)).horizon
    env.reset(seed=0)
    ends = [env.step(env.action_space.high if env_id in POINTS else 1)[2:4] for _ in range(env.spec.max_episode_steps)]
    assert not any(map(any, ends[:-1])) and ends[-1] == (False, True)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_makes_vectors_of_them(env_id, mode):
    env = gymnasium.make_vec(env_id, 3, autoreset_mode=mode)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    for _ in range(30):
        observation, *_ = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation)


def test_arguments_reach_the_environment_through_gymnasium():
    assert gymnasium.make(IDS[0], num_arms=3).action_space.n == 3
    env = gymnasium.make("ssm_metarl/TMaze-v0", length=30, max_episode_steps=40)
    env.reset(seed=0)
    assert all(not any(env.step(FORWARD)[2:4]) for _ in range(30)) and env.step(NORTH)[2]
    assert gymnasium.make_vec("ssm_metarl/TabularMDP-v0", 2, num_states=3, episode_steps=5).observation_space.shape == (
        2,
        4,
    )


UNIFORM = (0.5, 0.5) * 4


@pytest.mark.parametrize(
    "name, arguments, task, words",
    [
        ("BernoulliBandit", {"num_arms": 2}, {"probability": (0.5, 1.5)}, r"\[0.5, 1.5\] must be from 0 to 1"),
        ("BernoulliBandit", {"num_arms": 2}, {"probability": (0.5, 0.5, 0.5)}, "must be 2 numbers, each finite"),
        ("GaussianBandit", {"num_arms": 2}, {"probability": (0.5, 0.5)}, "no parameter 'probability'; known: mean"),
        ("GridNavi", {}, {"goal_cell": 3.5}, "goal_cell = 3.5 must be .*whole number from 0 to 24"),
        ("GridNavi", {}, {"goal_cell": 25.0}, "from 0 to 24"),
        ("TMaze", {}, {"cue_sign": 0.5}, "cue_sign = 0.5 must be -1 or 1"),
        (
            "TabularMDP",
            {"num_states": 2, "num_actions": 2},
            {"transition": (*UNIFORM[:6], 0.5, 0.6)},
            r"after state 1 and action 1 are \[0.5, 0.6\]; they must be at least 0 and sum to 1",
        ),
        (
            "TabularMDP",
            {"num_states": 2, "num_actions": 2},
            {"transition": (0.5, 0.5, -0.5, 1.5, *UNIFORM[:4])},
            r"after state 0 and action 1 are \[-0.5, 1.5\]",
        ),
    ],
)
def test_wrong_tasks_are_refused(name, arguments, task, words):
    with pytest.raises(TaskError, match=words):
        MAKERS[name](1, None, DISABLED, **arguments).set_tasks(task)


@pytest.mark.parametrize(
    "name, arguments, words",
    [
        ("BernoulliBandit", {"num_arms": 0}, "num_arms = 0 must be a whole number of at least 2"),
        ("GaussianBandit", {"num_arms": 2.5}, "num_arms = 2.5 must be a whole number"),
        ("GaussianBandit", {"num_arms": True}, "num_arms = True must be a whole number"),
        ("TabularMDP", {"num_states": 1}, "num_states = 1 must be a whole number of at least 2"),
        ("TabularMDP", {"num_actions": "5"}, "num_actions = '5' must be a whole number"),
        ("TabularMDP", {"episode_steps": 0}, "episode_steps = 0 must be a whole number of at least 1"),
        ("TMaze", {"length": 0}, "length = 0 must be a whole number of at least 1"),
        ("TMaze", {"lenght": 5}, "TMaze-v0 does not take {'lenght': 5}"),
        ("GridNavi", {"variant": "pearl"}, "GridNavi has no variant 'pearl'"),
    ],
)
def test_wrong_arguments_are_refused(name, arguments, words):
    variant = arguments.pop("variant", None)
    with pytest.raises(TaskError, match=words):
        family(name, kwargs=arguments, variant=variant)


def test_a_maze_longer_than_its_time_is_refused():
    with pytest.raises(TaskError, match=r"env.horizon: TMaze: 30 steps end before .* at least 31"):
        family("TMaze", kwargs={"length": 30}, horizon=30)


def test_probabilities_cannot_vary_one_by_one():
    tasks = family("TabularMDP", vary={"transition": {"uniform": [0, 1]}})
    with pytest.raises(TaskError, match="leave transition to the family"):
        tasks.make_vector(1).set_tasks(tasks.sample(rng(), 1))
