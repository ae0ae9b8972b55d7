"""Families of the user's own, constructor arguments, numbers inside MuJoCo's model: what works and what is refused."""

import textwrap

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Sequence
from gymnasium.vector import AutoresetMode

from ssm_metarl.config import EnvConfig
from ssm_metarl.env_runner import family as module
from ssm_metarl.env_runner.families import generic
from ssm_metarl.env_runner.family import TaskFamily, as_task
from ssm_metarl.env_runner.tasks import make_family
from ssm_metarl.env_runner.vector import TaskError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def family(env_id: str, **settings) -> TaskFamily:
    return make_family(EnvConfig(id=env_id, **settings))


def example_in_docstring() -> str:
    """The ten lines that the docstring of TaskFamily shows."""
    _, _, example = module.TaskFamily.__doc__.partition("Example::\n")
    return textwrap.dedent(example)


@pytest.fixture
def planets(tmp_path, monkeypatch):
    """A module of the user's, beside other things, and its entry point, as an installed distribution declares it."""
    lines = ["import gymnasium", "from ssm_metarl import TaskFamily", "", example_in_docstring(), "Moon = 1.6"]
    (tmp_path / "planets_of_mine.py").write_text("\n".join(lines), encoding="utf-8")
    info = tmp_path / "planets_of_mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planets-of-mine\nVersion: 1.0\n")
    points = {"planets": "Planets", "moon": "Moon", "gone": "Gone"}
    entries = "\n".join(f"{name} = planets_of_mine:{value}" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[ssm_metarl.families]\n{entries}\n")
    monkeypatch.syspath_prepend(str(tmp_path))


# The example


@pytest.mark.parametrize("env_id", ["planets_of_mine:Planets", "planets"])
def test_the_example_of_the_docstring_works_by_path_and_by_entry_point(env_id, planets):
    tasks = family(env_id)
    assert tasks.horizon == 200 and tasks.id == env_id
    assert (tasks.observation_dim, tasks.action_dim, tasks.discrete) == (3, 1, False)
    drawn = tasks.sample(rng(), 500)
    assert all(type(task["gravity"]) is float for task in drawn)
    assert min(task["gravity"] for task in drawn) < 1.8 and max(task["gravity"] for task in drawn) > 24.5
    env = tasks.make_vector(2)
    env.set_tasks([{"gravity": 3.0}, {"gravity": 20.0}])
    observation, _ = env.reset(seed=4)
    theirs = [gymnasium.make("Pendulum-v1") for _ in range(2)]
    theirs[0].unwrapped.g, theirs[1].unwrapped.g = 3.0, 20.0
    for row, other in enumerate(theirs):
        np.testing.assert_array_equal(observation[row], other.reset(seed=4 + row)[0])
    for _ in range(50):
        observation, reward, *_ = env.step(np.float32([[0.7], [-0.7]]))
        for row, other in enumerate(theirs):
            expected = other.step(np.float32([0.7 - 1.4 * row]))
            np.testing.assert_array_equal(observation[row], expected[0])
            assert reward[row] == expected[1]


def test_a_horizon_of_the_configuration_goes_before_the_familys(planets):
    tasks = family("planets", horizon=7)
    env = tasks.make_vector(1)
    env.reset(seed=0)
    ends = [env.step(np.zeros((1, 1), np.float32))[3][0] for _ in range(7)]
    assert tasks.horizon == 7 and ends == [False] * 6 + [True]


def test_held_out_tasks_are_fixed_and_distinct(planets):
    one, other = family("planets"), family("planets_of_mine:Planets")
    test = one.tasks("test", 20)
    one.sample(rng(), 3)
    assert other.tasks("test", 20) == test == one.tasks("test", 20) and one.tasks("test", 5) == test[:5]
    assert test != one.tasks("validation", 20) and one.disjoint
    with pytest.raises(ValueError, match="validation, test, not 'train'"):
        one.tasks("train", 1)


def test_the_names_of_other_libraries(planets):
    tasks = family("planets")
    drawn = tasks.sample_tasks(3)
    assert len({task["gravity"] for task in drawn}) == 3
    tasks.set_task(drawn[0])
    env = tasks.make_vector(2)
    assert env.tasks == [drawn[0]] * 2 and env.envs[1].unwrapped.g == drawn[0]["gravity"]
    assert tasks.encode(drawn[0]).tolist() == [np.float32(drawn[0]["gravity"])]


@pytest.mark.parametrize(
    "env_id, words",
    [
        ("planets_of_mine:Planet", "Planet is not in it; did you mean 'Planets'"),
        ("planets_of_mine:Moon", "Moon is not made from ssm_metarl.TaskFamily"),
        ("planets_of_mine:gymnasium", "gymnasium is not made from ssm_metarl.TaskFamily"),
        ("planets_of_min:Planets", "module planets_of_min cannot be imported"),
        ("moon", "entry point 'moon' is 1.6, not a class made from TaskFamily"),
        ("gone", "entry point 'gone' cannot be loaded"),
        ("planet", "no family and no gymnasium environment is called 'planet'.*'planets'"),
    ],
)
def test_a_name_that_leads_to_no_family_is_refused(env_id, words, planets):
    with pytest.raises(TaskError, match=f"env.id.*{words}"):
        family(env_id)


def test_a_module_that_does_not_run_is_named(tmp_path, monkeypatch, planets):
    (tmp_path / "module_with_a_mistake.py").write_text("import no_such_package_here\n")
    with pytest.raises(TaskError, match="module_with_a_mistake cannot be imported: No module named 'no_such_package"):
        family("module_with_a_mistake:Planets")


# What a family of one's own may get wrong. They are named by their path in this module.


class Point(gymnasium.Env):
    """Observes the task's numbers."""

    observation_space: gymnasium.Space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Discrete(2)

    def __init__(self, returned=(0.0, 0.0)):
        self.returned = returned

    def set_task(self, task):
        self.returned = np.float32(task["goal"])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.returned, {}

    def step(self, action):
        return self.returned, 0.0, False, False, {}


class Points(TaskFamily):
    """Its environment has set_task, and so it says nothing of its own about that."""

    horizon = 3

    def __init__(self, width: float = 1.0, kind: str = "square"):
        self.width, self.kind = width, kind

    def sample_task(self, rng):
        return {"goal": rng.uniform(0, self.width, 2), "count": np.int64(3)}

    def make_env(self):
        return Point()


class NoHorizon(Points):
    horizon = None


class Sampling(Points):
    """What sample_task returns comes from a test."""

    returns: object = None

    def sample_task(self, rng):
        return self.returns.pop(0) if isinstance(self.returns, list) else self.returns


class NoSampling(TaskFamily):
    horizon = 3

    def make_env(self):
        return Point()


class NoEnvironment(TaskFamily):
    horizon = 3

    def sample_task(self, rng):
        return {}


class Observing(Points):
    """What its environment observes comes from a test."""

    returned: object = None
    space: gymnasium.Space = Point.observation_space

    def make_env(self):
        env = Point(self.returned)
        env.observation_space = self.space
        return env


def here(cls: type) -> str:
    return f"{__name__}:{cls.__name__}"


def test_tasks_are_plain_numbers_and_reach_the_environments_own_set_task():
    tasks = family(here(Points))
    task = tasks.sample(rng(), 1)[0]
    assert set(map(type, task["goal"])) == {float} and type(task["goal"]) is tuple and task["count"] == 3.0
    assert tasks.encode(task).tolist() == [3.0, *np.float32(task["goal"])]
    env = tasks.make_vector(2)
    env.set_tasks([{"goal": (1.0, 2.0)}, {"goal": (3.0, 4.0)}])
    assert env.reset(seed=0)[0].tolist() == [[1, 2], [3, 4]]


def test_arguments_reach_the_constructor_and_wrong_ones_are_refused():
    tasks = family(here(Points), kwargs={"width": 100.0, "kind": "round"})
    assert tasks.kind == "round" and max(task["goal"][0] for task in tasks.sample(rng(), 50)) > 50
    with pytest.raises(
        TaskError, match=r"env.kwargs: .*Points does not take .*widht.*unexpected keyword argument 'widht'"
    ):
        family(here(Points), kwargs={"widht": 1.0})


@pytest.mark.parametrize("name, given", [("vary", {"goal": {"scale": [1, 2]}}), ("variant", "maml")])
def test_what_is_for_other_families_is_refused(name, given):
    with pytest.raises(TaskError, match=rf"env.{name}: .*Points draws its tasks itself; use env.kwargs"):
        family(here(Points), **{name: given})
    with pytest.raises(TaskError, match=r"env.variant: CartPole-v1 is no family of ssm_metarl.*leave it out"):
        family("CartPole-v1", variant="maml")
    with pytest.raises(TaskError, match=r"env.variant: Navigation2D has no variant 'mamll'.*maml"):
        family("ssm_metarl/Navigation2D-v0", variant="mamll")


def test_a_family_without_a_horizon_asks_for_one():
    with pytest.raises(TaskError, match=r"env.horizon: .*NoHorizon says no horizon; set the number of steps"):
        family(here(NoHorizon))
    assert family(here(NoHorizon), horizon=4).horizon == 4


def test_what_a_family_forgot_to_write_is_named():
    with pytest.raises(TaskError, match=r"NoSampling must define sample_task\(rng\), which returns one task"):
        family(here(NoSampling)).sample(rng(), 1)
    with pytest.raises(
        TaskError, match=r"NoEnvironment must define make_env\(\), which returns a gymnasium environment"
    ):
        _ = family(here(NoEnvironment)).observation_dim


@pytest.mark.parametrize(
    "returned, words",
    [
        (3.0, r"sample_task returned 3.0; a task is a mapping from names to numbers"),
        ([("goal", 1.0)], r"sample_task returned \('goal', 1.0\); a task is a mapping"),
        ({1: 2.0}, r"sample_task returned {1: 2.0}; a task is a mapping from names"),
        ({"goal": [[1, 2], [3]]}, r"returned goal = \[\[1, 2\], \[3\]\]; it must be a finite number or a flat list"),
        ({"goal": np.eye(2)}, r"returned goal = array[^;]*; it must be a finite number or a flat list"),
        ({"goal": "left"}, r"returned goal = 'left'; it must be a finite number"),
        ({"goal": float("nan")}, r"returned goal = nan; it must be a finite number"),
        ({"goal": (0.0, np.inf)}, r"returned goal = \(0.0, inf\); it must be a finite number"),
        (None, r"sample_task returned None; a task is a mapping"),
    ],
)
def test_tasks_that_are_none_are_refused(returned, words, monkeypatch):
    monkeypatch.setattr(Sampling, "returns", returned)
    with pytest.raises(TaskError, match=rf"Sampling: (sample_task )?{words}"):
        family(here(Sampling)).sample(rng(), 1)


def test_values_must_keep_their_size(monkeypatch):
    monkeypatch.setattr(Sampling, "returns", [{"goal": [1, 2]}, {"goal": [1, 2]}, {"goal": [1, 2, 3]}])
    with pytest.raises(TaskError, match=r"sizes {'goal': 3}, and before of {'goal': 2}"):
        family(here(Sampling)).sample(rng(), 3)


def test_as_task_makes_plain_numbers():
    task = as_task({"a": np.float32(0.5), "b": np.arange(2), "c": True, "d": []}, "mine")
    assert task == {"a": 0.5, "b": (0.0, 1.0), "c": 1.0, "d": ()} and type(task["a"]) is float


@pytest.mark.parametrize(
    "returned, words",
    [
        ([[1.0], [1.0, 2.0]], r"of shape ragged, its space says \(2,\)"),
        ([1.0, 2.0, 3.0], r"of shape \(3,\), its space says \(2,\)"),
        (np.float32([1.0]), r"of shape \(1,\), its space says \(2,\)"),
        (1.0, r"of shape \(\), its space says \(2,\)"),
    ],
)
def test_observations_of_a_wrong_shape_name_the_task(returned, words, monkeypatch):
    monkeypatch.setattr(Observing, "returned", returned)
    env = family(here(Observing)).make_vector(2)
    with pytest.raises(TaskError, match=rf"Observing returned an observation {words}; task {{}}"):
        env.reset(seed=0)


class Talkative(Point):
    """Its infos are of every kind; some come from some rows only, or change their kind."""

    def step(self, action):
        self.age = getattr(self, "age", 0) + 1
        info = {"whole": self.age, "real": 0.5 * self.age, "flag": self.age > 2, "small": np.float32(self.age)}
        info |= {"array": np.full(2, self.age), "text": f"at {self.age}", "nested": {"deep": 1.5, "age": self.age}}
        info |= {"mixed": self.age if action else 0.5, "nothing": None}
        if action:
            info["rare"] = 2.0
        return self.returned, 0.0, False, False, info if self.age != 3 else {}


class Talking(Points):
    def make_env(self):
        return Talkative(np.zeros(2, np.float32))


@pytest.mark.parametrize("actions", [(0, 0, 0), (1, 1, 1), (0, 1, 0)])
def test_infos_are_batched_as_gymnasium_batches_them(actions):
    ours = family(here(Talking), horizon=9).make_vector(3)
    theirs = gymnasium.vector.SyncVectorEnv([lambda: Talkative(np.zeros(2, np.float32))] * 3)
    ours.reset(seed=0), theirs.reset(seed=0)
    for _ in range(4):
        info, expected = ours.step(np.array(actions))[4], theirs.step(np.array(actions))[4]
        assert info.pop("_foreign_truncation").all() and not info.pop("foreign_truncation").any()
        np.testing.assert_equal(info, expected)
        assert {name: value.dtype for name, value in info.items() if name != "nested"} == {
            name: value.dtype for name, value in expected.items() if name != "nested"
        }


# Spaces


def test_dict_observations_are_flattened_in_the_order_of_keys(monkeypatch):
    space = Dict(there=Box(-1, 1, (2, 2)), here=Box(-9, 9, (1,)), kind=Discrete(3, start=1))
    returned = {"there": np.float32([[0.1, 0.2], [0.3, 0.4]]), "here": np.float32([7]), "kind": np.int64(2)}
    monkeypatch.setattr(Observing, "space", space)
    monkeypatch.setattr(Observing, "returned", returned)
    tasks = family(here(Observing))
    assert tasks.observation_dim == 8 and tasks.observation_space.dtype == np.float32
    observation, _ = tasks.make_vector(2).reset(seed=0)
    flat = {"here": [7], "kind": [0, 1, 0], "there": [0.1, 0.2, 0.3, 0.4]}
    np.testing.assert_allclose(observation, [[value for key in space for value in flat[key]]] * 2, rtol=1e-6)


@pytest.mark.parametrize(
    "space, words",
    [
        (Dict(a=Box(-1, 1, (2,)), b=Sequence(Discrete(3))), "no fixed number of values.*FilterObservation keeps some"),
        (Box(0, 255, (96, 96, 3), np.uint8), "observes 27648 numbers.*GrayscaleObservation and ResizeObservation"),
    ],
)
def test_observations_that_cannot_be_served_name_the_wrapper(space, words, monkeypatch):
    monkeypatch.setattr(Observing, "space", space)
    with pytest.raises(TaskError, match=f"Observing has|Observing {words}|{words}"):
        family(here(Observing)).make_vector(1)


# Arguments of gymnasium's environments


def test_arguments_reach_environments_of_gymnasium():
    tasks = family("Pendulum-v1", kwargs={"g": 2.5}, vary={"g": {"scale": [1, 2]}})
    env = tasks.make_vector(2)
    assert [row.unwrapped.g for row in env.envs] == [2.5, 2.5]
    assert all(2.5 <= task["g"] <= 5.0 for task in tasks.sample(rng(), 20)), "the nominal value is the given one"
    with pytest.raises(TaskError, match=r"env.kwargs: Pendulum-v1 does not take {'gravity': 2.5}.*'gravity'"):
        family("Pendulum-v1", kwargs={"gravity": 2.5})


def test_wrong_arguments_of_our_families_are_refused():
    with pytest.raises(TaskError, match=r"env.kwargs: ssm_metarl/Navigation2D-v0 does not take {'goals': 3}.*'goals'"):
        family("ssm_metarl/Navigation2D-v0", kwargs={"goals": 3})


# MuJoCo's model

HOPPER = {
    "model.body_mass": {"scale_pow": [1.5, 3]},
    "model.opt.gravity[2]": {"uniform": [-12, -8]},
    "model.geom_friction": {"scale_pow": [1.5, 3]},
}


def test_numbers_of_a_mujoco_model_vary_per_row():
    tasks = family("Hopper-v5", vary=HOPPER, horizon=50)
    drawn = tasks.sample(rng(), 2)
    env = tasks.make_vector(2)
    nominal = gymnasium.make("Hopper-v5").unwrapped.model
    assert len(drawn[0]["model.body_mass"]) == nominal.nbody and tasks.encode(drawn[0]).shape == (5 + 15 + 1,)
    env.set_tasks(drawn)
    for task, row in zip(drawn, env.envs, strict=True):
        model = row.unwrapped.model
        assert model.body_mass.tolist() == list(task["model.body_mass"]) and model.body_mass[0] == 0
        assert np.all(model.body_mass <= 1.5**3 * nominal.body_mass)
        assert model.geom_friction.ravel().tolist() == list(task["model.geom_friction"])
        assert model.opt.gravity.tolist() == [0.0, 0.0, task["model.opt.gravity[2]"]]
    env.reset(seed=0)
    observation = [env.step(np.zeros((2, 3), np.float32))[0] for _ in range(10)][-1]
    assert not np.allclose(observation[0], observation[1], atol=1e-3)


@pytest.mark.parametrize(
    "path, words",
    [
        ("model.body_mas", "a MjModel has no attribute 'body_mas'; did you mean .*'body_mass'"),
        ("model.opt.gravty[2]", "a MjOption has no attribute 'gravty'; did you mean 'gravity'"),
        ("model.opt.gravity[3]", "out of bounds"),
    ],
)
def test_unknown_numbers_of_a_model_are_refused_with_near_names(path, words):
    with pytest.raises(TaskError, match=words):
        family("Hopper-v5", vary={path: {"scale": [1, 2]}})


def test_what_mujoco_derives_follows_the_masses():
    env = family("HalfCheetah-v5", vary={"model.body_mass": {"scale": [0.5, 2]}}).make_vector(2)
    model, other = (row.unwrapped.model for row in env.envs)
    nominal = np.array(model.body_mass)
    before, weight = model.body_subtreemass.copy(), model.dof_invweight0.copy()
    env.set_tasks([{"model.body_mass": tuple(2 * nominal)}, {}])
    np.testing.assert_allclose(model.body_subtreemass, 2 * before, rtol=1e-12)
    assert not np.allclose(model.dof_invweight0, weight, rtol=0.01)
    np.testing.assert_array_equal(other.body_subtreemass, before)
    env.set_tasks({})
    np.testing.assert_allclose(model.body_subtreemass, before, rtol=1e-12)
    np.testing.assert_allclose(model.dof_invweight0, weight, rtol=1e-12)


def test_setting_a_task_leaves_the_nominal_simulation_as_gymnasium_has_it():
    env = family("HalfCheetah-v5", vary={"model.body_mass": {"scale": [0.5, 2]}}).make_vector(1, AutoresetMode.DISABLED)
    theirs = gymnasium.make("HalfCheetah-v5")
    env.set_tasks({})
    np.testing.assert_array_equal(env.reset(seed=1)[0][0], theirs.reset(seed=1)[0].astype(np.float32))
    generator = rng()
    for _ in range(40):
        action = generator.uniform(-1, 1, (1, 6)).astype(np.float32)
        observation, reward, *_ = env.step(action)
        expected, expected_reward, *_ = theirs.step(action[0])
        np.testing.assert_array_equal(observation[0], expected.astype(np.float32))
        assert reward[0] == expected_reward


def test_setting_a_task_in_the_midst_of_an_episode_does_not_move_the_body():
    env = family("Hopper-v5", vary=HOPPER).make_vector(1)
    env.reset(seed=0)
    for _ in range(5):
        env.step(np.ones((1, 3), np.float32))
    data = env.envs[0].unwrapped.data
    position, velocity, place = data.qpos.copy(), data.qvel.copy(), data.xpos.copy()
    env.set_tasks({})
    np.testing.assert_array_equal(data.qpos, position)
    np.testing.assert_array_equal(data.qvel, velocity)
    reference = mujoco.MjData(env.envs[0].unwrapped.model)
    reference.qpos[:] = position
    mujoco.mj_forward(env.envs[0].unwrapped.model, reference)
    np.testing.assert_allclose(data.xpos, reference.xpos, atol=1e-12)
    assert np.abs(data.xpos - place).max() < 0.1


def test_only_the_model_of_a_simulator_is_refreshed(monkeypatch):
    calls = []
    monkeypatch.setattr(mujoco, "mj_setConst", lambda *_: calls.append(1))
    env = family("Hopper-v5", vary={"_forward_reward_weight": {"scale": [1, 2]}}).make_vector(1)
    env.set_tasks({"_forward_reward_weight": 2.0})
    family("Pendulum-v1", vary={"m": {"scale": [1, 2]}}).make_vector(1).set_tasks({"m": 1.5})
    assert not calls and generic.sys.modules["mujoco"] is mujoco
