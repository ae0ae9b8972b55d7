"""The MuJoCo families: states against gymnasium's version 5 bit by bit, rewards and ends against their definitions."""

import math
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from ssm_metarl.config import EnvConfig
from ssm_metarl.env_runner.families import NATIVE
from ssm_metarl.env_runner.families.mujoco_env import MujocoVectorEnv
from ssm_metarl.env_runner.rollout import action_scaler
from ssm_metarl.env_runner.tasks import make_family
from ssm_metarl.env_runner.vector import TaskError

DISABLED, NEXT_STEP, SAME_STEP = AutoresetMode.DISABLED, AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP
# Family -> the robot of gymnasium that it is.
ROBOTS = {
    "AntDir": "Ant-v5",
    "AntGoal": "Ant-v5",
    "AntVel": "Ant-v5",
    "HalfCheetahDir": "HalfCheetah-v5",
    "HalfCheetahVel": "HalfCheetah-v5",
    "HopperRandParams": "Hopper-v5",
    "HumanoidDir": "Humanoid-v5",
    "Walker2dRandParams": "Walker2d-v5",
    "Walker2dVel": "Walker2d-v5",
}
RAND_PARAMS = ["HopperRandParams", "Walker2dRandParams"]
FIELDS = {"body_mass": 1.5, "body_inertia": 1.5, "dof_damping": 1.3, "geom_friction": 1.5}


def ours(name: str, rows: int = 1, horizon: int | None = 1000, mode: AutoresetMode = DISABLED, variant=None):
    return NATIVE[f"ssm_metarl/{name}-v0"](rows, horizon, mode, variant)


def robot(name: str) -> dict:
    """How gymnasium makes the robot of a family."""
    return {"id": ROBOTS[name]} | ({"frame_skip": 8} if name == "Walker2dVel" else {})


def random_actions(env: MujocoVectorEnv, steps: int, seed: int = 0) -> np.ndarray:
    shape = (steps, *env.action_space.shape)
    return np.random.default_rng(seed).uniform(env.action_space.low, env.action_space.high, shape).astype(np.float32)


def state(env: gymnasium.Env) -> np.ndarray:
    return np.concatenate([env.unwrapped.data.qpos, env.unwrapped.data.qvel])


# States and observations


@pytest.mark.parametrize(
    "name, mode, terminates",
    [
        ("HalfCheetahVel", NEXT_STEP, False),
        ("HopperRandParams", NEXT_STEP, True),
        ("HopperRandParams", SAME_STEP, True),
        ("Walker2dRandParams", NEXT_STEP, True),
        ("Walker2dVel", NEXT_STEP, True),
        ("AntVel", NEXT_STEP, True),
        ("AntVel", SAME_STEP, True),
        ("HumanoidDir", NEXT_STEP, True),
    ],
)
def test_states_and_observations_are_gymnasiums_bit_by_bit(name, mode, terminates):
    """Over many episodes and starts. Fails if the noise of starts, substeps, clips or the order of numbers differ."""
    steps, rows = 250, 3
    env = ours(name, rows, 25, mode)
    sync = {"vectorization_mode": "sync", "vector_kwargs": {"autoreset_mode": mode}}
    theirs = gymnasium.make_vec(**robot(name), num_envs=rows, max_episode_steps=25, **sync)
    observation, expected = env.reset(seed=7)[0], theirs.reset(seed=7)[0]
    ends = np.zeros(2, int)
    for action in random_actions(env, steps):
        assert observation.dtype == np.float32 and observation.shape == expected.shape
        np.testing.assert_array_equal(observation, expected.astype(np.float32))
        np.testing.assert_array_equal(env.simulator.state_NS, [state(single) for single in theirs.envs])
        observation, _, *over, _ = env.step(action)
        expected, _, *expected_over, _ = theirs.step(action)
        np.testing.assert_array_equal(over, expected_over)
        ends += np.sum(over, axis=1)
    assert (ends[0] > 2) == terminates and ends[1] > 0


@pytest.mark.parametrize("name", ["HalfCheetahDir", "AntGoal", "HopperRandParams"])
def test_a_single_environment_starts_as_gymnasiums(name):
    env = gymnasium.make(f"ssm_metarl/{name}-v0")
    theirs = gymnasium.make(**robot(name))
    for seed in (5, None, None, 6):
        expected = theirs.reset(seed=seed)[0].astype(np.float32)
        np.testing.assert_array_equal(env.reset(seed=seed)[0], expected)


# Rewards and ends


def contacts(env: gymnasium.Env) -> float:
    return float(np.square(np.clip(env.data.cfrc_ext, -1, 1)).sum())


def ant_goal(info: dict, task: dict, env: gymnasium.Env) -> float:
    return -abs(env.data.body("torso").xpos[0] - task["goal_x"]) - abs(env.data.body("torso").xpos[1] - task["goal_y"])


def along(info: dict, task: dict, env: gymnasium.Env) -> float:
    return info["x_velocity"] * math.cos(task["angle"]) + info["y_velocity"] * math.sin(task["angle"])


def cheetah_velocity(info: dict, task: dict, env: gymnasium.Env) -> float:
    return -abs(info["x_velocity"] - task["goal_velocity"])


def humanoid(info: dict, task: dict, env: gymnasium.Env) -> float:
    # The sources' form: a quarter of the way over the time of one of the 5 substeps.
    way = along(info, task, env) * 5 * env.model.opt.timestep
    return 0.25 * way / env.model.opt.timestep - min(5e-7 * np.square(env.data.cfrc_ext).sum(), 10)


def ant_velocity(info: dict, task: dict, env: gymnasium.Env) -> float:
    return 1 - abs(info["x_velocity"] - task["goal_velocity"])


def walker_velocity(info: dict, task: dict, env: gymnasium.Env) -> float:
    return -abs(info["x_velocity"] - task["goal_velocity"])


def direction(info: dict, task: dict, env: gymnasium.Env) -> float:
    return task["direction"] * info["x_velocity"]


def height_between(low: float, high: float):
    return lambda env: low <= env.data.qpos[2] <= high


def walks(env: gymnasium.Env) -> bool:
    return 0.8 < env.data.qpos[1] < 2 and -1 < env.data.qpos[2] < 1


def always(env: gymnasium.Env) -> bool:
    return True


VELOCITIES = [{"goal_velocity": velocity} for velocity in (0.0, 0.5, 2.5)]
ANGLES = [{"angle": angle} for angle in (0.0, math.pi, 4.0)]
GOALS = [{"goal_x": x, "goal_y": y} for x, y in ((2.0, -1.0), (0.0, 0.0), (-0.3, 2.5))]
DIRECTIONS = [{"direction": sign} for sign in (1.0, -1.0, 1.0)]
# Family, variant, tasks, progress, cost of ||a||², of clipped contact forces, bonus, who plays on.
DEFINITIONS = [
    ("HalfCheetahVel", "maml", VELOCITIES, cheetah_velocity, 0.05, 0, 0, always),
    ("HalfCheetahDir", "pearl", DIRECTIONS, direction, 0.05, 0, 0, always),
    ("AntVel", "maml", VELOCITIES, ant_velocity, 0.005, 0.0005, 0.05, height_between(0.2, 1)),
    ("AntDir", "maml", ANGLES, along, 0.005, 0.0005, 0.05, height_between(0.2, 1)),
    ("AntDir", "promp", ANGLES, along, 0.5, 0.0005, 1, height_between(0, 1)),
    ("AntDir", "pearl", ANGLES, along, 0.5, 0.0005, 1, height_between(0.2, 1)),
    ("AntDir", "varibad", ANGLES, along, 0.5, 0.0005, 1, height_between(0.2, 1)),
    ("AntGoal", "maml", GOALS, ant_goal, 0.005, 0.0005, 4.05, height_between(0.2, 1)),
    ("AntGoal", "pearl", GOALS, ant_goal, 0.1, 0.0005, 0, always),
    ("HumanoidDir", "pearl", ANGLES, humanoid, 0.1, 0, 5, height_between(1, 2)),
    ("Walker2dVel", "promp", VELOCITIES, walker_velocity, 0.001, 0, 15, walks),
]


@pytest.mark.parametrize(
    "name, variant, tasks, progress, effort, contact, bonus, plays",
    DEFINITIONS,
    ids=[f"{definition[0]}-{definition[1]}" for definition in DEFINITIONS],
)
def test_rewards_and_ends_are_the_sources(name, variant, tasks, progress, effort, contact, bonus, plays):
    """Three rows of three tasks against three environments of gymnasium, with the definition written out."""
    env = ours(name, 3, variant=variant)
    env.set_tasks(tasks)
    env.reset(seed=3)
    singles = [gymnasium.make(**robot(name)).unwrapped for _ in tasks]
    for row, single in enumerate(singles):
        single.reset(seed=3 + row)
    playing, ended = [True] * 3, 0
    for action in random_actions(env, 80, seed=4):
        _, reward, terminated, _, _ = env.step(action)
        for row, (single, task) in enumerate(zip(singles, tasks, strict=True)):
            if not playing[row]:
                assert reward[row] == 0 and not terminated[row]
                continue
            _, _, _, _, info = single.step(action[row])
            costs = effort * float(np.square(action[row], dtype=np.float64).sum()) + contact * contacts(single)
            assert reward[row] == pytest.approx(progress(info, task, single) - costs + bonus, rel=1e-9, abs=1e-9)
            playing[row] = plays(single)
            assert terminated[row] != playing[row]
            ended += terminated[row]
    # Random torques knock these over, so that ends were seen.
    assert (ended > 0) == (name in ("HumanoidDir", "Walker2dVel")) or name.startswith("Ant")


@pytest.mark.parametrize(
    "name, variant, column, bounds",
    [
        ("AntVel", "maml", 2, (0.2, 1.0)),
        ("AntDir", "promp", 2, (0.0, 1.0)),
        ("AntGoal", "pearl", 2, (-math.inf, math.inf)),
        ("HumanoidDir", "promp", 2, (1.0, 2.0)),
        ("HopperRandParams", "pearl", 1, (0.7, math.inf)),
        ("HopperRandParams", "pearl", 2, (-0.2, 0.2)),
        ("HopperRandParams", "pearl", 5, (-100.0, 100.0)),
        ("Walker2dVel", "promp", 1, (0.8, 2.0)),
        ("Walker2dRandParams", "pearl", 2, (-1.0, 1.0)),
    ],
)
def test_an_episode_is_over_where_a_number_of_the_state_leaves_its_bounds(name, variant, column, bounds):
    env = ours(name, 4, variant=variant)
    env.reset(seed=0)
    assert not env.terminated().any()
    low, high = bounds
    env.simulator.state_NS[:, column] = np.clip([low - 0.01, low + 0.01, high - 0.01, high + 0.01], -1e9, 1e9)
    assert env.terminated().tolist() == [low > -math.inf, False, False, high < math.inf]
    env.simulator.state_NS[:, column] = np.nan
    assert env.terminated().all() == (name != "AntGoal")


@pytest.mark.parametrize("name", ["HalfCheetahVel", "HumanoidDir"])
def test_actions_are_clipped_to_the_box_and_cost_what_they_are_clipped_to(name):
    env, twin = ours(name, 2), ours(name, 2)
    env.reset(seed=0), twin.reset(seed=0)
    for action in random_actions(env, 5) * 3:
        clipped = np.clip(action, env.action_space.low, env.action_space.high)
        np.testing.assert_array_equal(env.step(action)[0], twin.step(clipped)[0])
        np.testing.assert_array_equal(env.step(np.float64(action))[1], twin.step(clipped)[1])


def test_the_box_of_a_humanoid_is_what_a_policy_scales_to():
    env = ours("HumanoidDir")
    np.testing.assert_array_equal(action_scaler(env.single_action_space)(np.ones(17)), np.full(17, np.float32(0.4)))


# Random bodies


@pytest.mark.parametrize("name", RAND_PARAMS)
def test_random_bodies_are_gymnasiums_with_these_fields(name):
    """Rows with a task each, two of them the same, and one that is nominal, against environments set by hand."""
    family = make_family(EnvConfig(id=f"ssm_metarl/{name}-v0"))
    one, two = family.sample(np.random.default_rng(0), 2)
    tasks = [one, two, one, {}]
    env = ours(name, 4)
    env.set_tasks(tasks)
    env.reset(seed=11)
    singles = [gymnasium.make(**robot(name)).unwrapped for _ in tasks]
    for row, (single, task) in enumerate(zip(singles, tasks, strict=True)):
        for field in FIELDS if task else ():
            array = getattr(single.model, field)
            array *= np.reshape(task[f"{field}_scale"], array.shape)
        single.reset(seed=11 + row)
    over = np.zeros(4, bool)
    for action in random_actions(env, 60):
        observation, reward, terminated, _, _ = env.step(action)
        for row in np.flatnonzero(~over):
            expected = singles[row].step(action[row])
            np.testing.assert_array_equal(observation[row], expected[0].astype(np.float32))
            velocity = expected[4]["x_velocity"]
            cost = 0.001 * np.square(action[row], dtype=np.float64).sum()
            assert reward[row] == pytest.approx(velocity + 1 - cost, rel=1e-9, abs=1e-9)
            assert terminated[row] == expected[2]
        over |= terminated
    assert over.any()


def test_a_body_does_not_outlive_its_task():
    env, fresh = ours("HopperRandParams", 2), ours("HopperRandParams", 2)
    task = {"body_mass_scale": (1.0, 3.0, 0.4, 1.0, 2.0)}
    env.set_tasks([task, {}])
    env.reset(seed=0)
    env.set_tasks([{}, task]), fresh.set_tasks([{}, task])
    env.reset(seed=1), fresh.reset(seed=1)
    for action in random_actions(env, 10):
        np.testing.assert_array_equal(env.step(action)[0], fresh.step(action)[0])
    assert not np.array_equal(env.simulator.state_NS[0], env.simulator.state_NS[1])


@pytest.mark.parametrize("name", RAND_PARAMS)
@pytest.mark.parametrize("field", FIELDS)
def test_each_field_changes_the_motion(name, field):
    env = ours(name, 2)
    nominal = env.parameters[f"{field}_scale"]
    assert len(nominal) == getattr(env.simulator._nominal, field).size
    env.set_tasks([{}, {f"{field}_scale": (1.5,) * len(nominal)}])
    env.reset(seed=0)
    # The same start, so that nothing else differs.
    qpos = env.simulator.init_qpos_Q
    for row in range(2):
        env.simulator.set_state(row, qpos, np.linspace(-1, 1, env.simulator.qvel_NV.shape[1]))
    np.testing.assert_array_equal(*env.simulator.state_NS)
    for action in random_actions(env, 30):
        env.simulator.ctrl_NA[:] = action[0]
        env.simulator.step(None)
    assert not np.array_equal(*env.simulator.state_NS)


@pytest.mark.parametrize(
    "task, words",
    [
        (
            {"body_mass_scale": (1.0, 1.0, 0.0, 1.0, 1.0)},
            "body_mass_scale = .* 5 numbers, each finite and greater",
        ),
        ({"dof_damping_scale": (-1.0,) * 6}, "greater than 0"),
        ({"geom_friction_scale": (1.0,) * 5}, "must be 15 numbers"),
        ({"body_mass": 1.0}, "no parameter 'body_mass'; did you mean 'body_mass_scale'"),
    ],
)
def test_bodies_that_cannot_be_are_refused(task, words):
    with pytest.raises(TaskError, match=words):
        ours("HopperRandParams", 2).set_tasks(task)


# Variants


@pytest.mark.parametrize(
    "name, variant, horizon, low, high",
    [
        ("HalfCheetahVel", None, 100, 0, 2),
        ("HalfCheetahVel", "maml", 100, 0, 2),
        ("HalfCheetahVel", "promp", 100, 0, 3),
        ("HalfCheetahVel", "pearl", 200, 0, 3),
        ("HalfCheetahVel", "varibad", 200, 0, 3),
        ("AntVel", None, 100, 0, 3),
        ("AntDir", "promp_2d", 100, 0, 2 * math.pi),
        ("AntDir", "pearl", 200, 0, 2 * math.pi),
        ("AntGoal", "maml", 100, -3, 3),
        ("HumanoidDir", None, 200, 0, 2 * math.pi),
        ("HumanoidDir", "varibad", 200, 0, 2 * math.pi),
        ("Walker2dVel", None, 100, 0, 10),
        ("HopperRandParams", None, 200, 1.5**-3, 1.5**3),
        ("Walker2dRandParams", "varibad", 200, 1.5**-3, 1.5**3),
    ],
)
def test_a_variant_has_the_horizon_and_the_range_of_its_source(name, variant, horizon, low, high):
    family = make_family(EnvConfig(id=f"ssm_metarl/{name}-v0", variant=variant))
    tasks = family.tasks("validation", 500)
    values = np.concatenate([np.ravel(next(iter(task.values()))) for task in tasks])
    assert family.horizon == horizon and family.make_vector(1).horizon == horizon
    assert low <= values.min() < low + 0.02 * (high - low) and high - 0.02 * (high - low) < values.max() <= high


@pytest.mark.parametrize(
    "name, variant, values",
    [
        ("HalfCheetahDir", variant, {-1.0, 1.0}) for variant in ("maml", "promp", "pearl", "varibad")
    ] + [("AntDir", variant, {0.0, math.pi}) for variant in ("maml", "promp", "varibad")]
    + [("HumanoidDir", "promp", {0.0, math.pi})],
)  # fmt: skip
def test_forward_and_backward_are_all_the_tasks_there_are(name, variant, values):
    family = make_family(EnvConfig(id=f"ssm_metarl/{name}-v0", variant=variant))
    seen = {value for task in family.sample(np.random.default_rng(0), 50) for value in task.values()}
    assert seen == values and not family.disjoint


def test_damping_varies_less_than_the_other_fields():
    tasks = make_family(EnvConfig(id="ssm_metarl/HopperRandParams-v0")).tasks("validation", 300)
    for field, base in FIELDS.items():
        exponents = np.log([task[f"{field}_scale"] for task in tasks]) / math.log(base)
        assert -3 <= exponents.min() < -2.95 and 2.95 < exponents.max() <= 3
        assert abs(np.corrcoef(exponents[:, 0], exponents[:, 1])[0, 1]) < 0.2


@pytest.mark.parametrize(
    "name, training, test",
    [
        ("HalfCheetahVel", 100, 30),
        ("AntGoal", 150, 30),
        ("HumanoidDir", 100, 30),
        ("HopperRandParams", 40, 10),
        ("Walker2dRandParams", 40, 10),
    ],
)
def test_pearls_tasks_are_fixed_and_apart(name, training, test):
    family = make_family(EnvConfig(id=f"ssm_metarl/{name}-v0", variant="pearl"))
    sampled = {tuple(task.items()) for task in family.sample(np.random.default_rng(0), 3000)}
    held_out = {tuple(task.items()) for task in family.tasks("test", 500)}
    assert (len(sampled), len(held_out)) == (training, test) and not sampled & held_out
    family.make_vector(1).set_tasks(family.tasks("test", 1))


@pytest.fixture
def global_seed_1337():
    """PEARL's code draws from numpy's global generator."""
    before = np.random.get_state()
    np.random.seed(1337)
    yield
    np.random.set_state(before)


def pearl_set(name: str) -> list:
    training, test = NATIVE[f"ssm_metarl/{name}-v0"].variants["pearl"].task_set()
    return training + test


def test_pearls_velocities_are_those_of_its_code(global_seed_1337):
    drawn = np.random.uniform(0.0, 3.0, size=(130,))
    assert [task["goal_velocity"] for task in pearl_set("HalfCheetahVel")] == drawn.tolist()


def test_pearls_directions_follow_its_codes_draws(global_seed_1337):
    drawn = np.random.uniform(0.0, 2.0 * np.pi, size=(130,))
    assert [task["angle"] for task in pearl_set("HumanoidDir")] == drawn.tolist()


def test_pearls_goals_follow_its_codes_order_of_draws(global_seed_1337):
    angle, radius = np.random.random(180) * 2 * np.pi, 3 * np.random.random(180) ** 0.5
    goals = [(task["goal_x"], task["goal_y"]) for task in pearl_set("AntGoal")]
    np.testing.assert_allclose(goals, np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1), rtol=1e-12)


def test_pearls_bodies_follow_its_codes_order_of_draws(global_seed_1337):
    shapes = {"body_mass": (8,), "body_inertia": (8, 3), "dof_damping": (9, 1), "geom_friction": (8, 3)}
    for task in pearl_set("Walker2dRandParams"):
        for field, shape in shapes.items():
            drawn = np.array(FIELDS[field]) ** np.random.uniform(-3.0, 3.0, size=shape)
            assert task[f"{field}_scale"] == pytest.approx(drawn.ravel().tolist(), rel=1e-12)


def test_goals_fill_the_disc_evenly():
    family = make_family(EnvConfig(id="ssm_metarl/AntGoal-v0", variant="promp"))
    goals = np.array([[task["goal_x"], task["goal_y"]] for task in family.tasks("validation", 2000)])
    radius = np.hypot(*goals.T)
    assert radius.max() <= 3
    # Within half the radius lies a quarter of the area, and of the angles each quadrant has a quarter.
    assert abs((radius < 1.5).mean() - 0.25) < 0.03
    assert abs(((goals > 0).all(axis=1)).mean() - 0.25) < 0.03


# The contract


@pytest.mark.parametrize("name", ROBOTS)
def test_gymnasiums_checker_finds_no_fault(name):
    env = gymnasium.make(f"ssm_metarl/{name}-v0")
    with warnings.catch_warnings():
        # It says these of gymnasium's own too.
        warnings.filterwarnings("ignore", ".*infinity.*")
        warnings.filterwarnings("ignore", ".*symmetric and normalized space.*")
        check_env(env.unwrapped)


@pytest.mark.parametrize("name", ["HalfCheetahVel", "HopperRandParams", "AntGoal", "HumanoidDir"])
def test_seed_and_tasks_decide_everything(name):
    family = make_family(EnvConfig(id=f"ssm_metarl/{name}-v0"))
    tasks = family.tasks("test", 3)
    used = family.make_vector(3)

    def trace(env: MujocoVectorEnv, seed: int, given: list) -> np.ndarray:
        env.set_tasks(given)
        observations = [env.reset(seed=seed)[0]]
        steps = [env.step(action) for action in random_actions(env, 15)]
        observations += [step[0] for step in steps]
        return np.concatenate([np.ravel(observations), np.ravel([step[1] for step in steps])])

    first = trace(used, 1, tasks)
    # Not what the simulator did before, nor how many rows there are beside.
    np.testing.assert_array_equal(first, trace(used, 1, tasks))
    np.testing.assert_array_equal(first, trace(family.make_vector(3), 1, tasks))
    assert not np.array_equal(first, trace(used, 2, tasks))
    assert not np.array_equal(first, trace(used, 1, family.tasks("validation", 3)))


def test_ended_rows_stay_until_they_are_reset():
    env = ours("HopperRandParams", 4)
    env.reset(seed=0)
    actions = random_actions(env, 300)
    last, ended_at = None, np.full(4, -1)
    for t, action in enumerate(actions):
        observation, reward, terminated, _, _ = env.step(action)
        if last is not None:
            over = ended_at >= 0
            np.testing.assert_array_equal(observation[over], last[over])
            assert (reward[over] == 0).all() and (observation[~over] != last[~over]).any(axis=1).all()
        ended_at[terminated] = t
        last = observation
        if (ended_at >= 0).sum() == 2:
            break
    over = ended_at >= 0
    assert over.sum() == 2 and len(set(ended_at)) > 1
    observation, _ = env.reset(seed=50, options={"reset_mask": over})
    np.testing.assert_array_equal(observation[~over], last[~over])
    fresh = ours("HopperRandParams", 4)
    np.testing.assert_array_equal(observation[over], fresh.reset(seed=50)[0][over])
    assert (env.step(actions[0])[0] != observation).any(axis=1).all()


def test_rows_without_a_seed_start_apart():
    observation, _ = ours("HalfCheetahVel", 3).reset()
    assert len(np.unique(observation[:, 0])) == 3
    assert not np.array_equal(ours("HalfCheetahVel", 3).reset()[0], observation)


def test_what_a_step_returned_is_not_overwritten_by_the_next():
    env = ours("AntVel", 2)
    env.reset(seed=0)
    first = env.step(np.ones((2, 8), np.float32))
    copies = [np.copy(part) for part in first[:4]]
    env.step(-np.ones((2, 8), np.float32))
    for part, copy in zip(first[:4], copies, strict=True):
        np.testing.assert_array_equal(part, copy)


# Without mujoco


@pytest.mark.parametrize("name", ["HalfCheetahVel", "AntGoal"])
def test_without_mujoco_the_message_says_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(TaskError, match=rf"{name} needs MuJoCo: pip install 'ssm-metarl\[mujoco\]'"):
        make_family(EnvConfig(id=f"ssm_metarl/{name}-v0"))


def test_the_families_can_be_imported_without_mujoco():
    code = """if True:
        import sys
        sys.modules["mujoco"] = None
        from ssm_metarl.env_runner.families import NATIVE
        assert "ssm_metarl/HumanoidDir-v0" in NATIVE
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
