"""Families of tasks: distributions, held-out sets, ids, and the values that tasks set inside gymnasium environments."""

from typing import ClassVar

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssm_metarl.config import EnvConfig
from ssm_metarl.env_runner.distributions import Distribution
from ssm_metarl.env_runner.tasks import TaskFamily, make_family
from ssm_metarl.env_runner.vector import TaskError

NAVIGATION, CARTPOLE, PENDULUM = (f"ssm_metarl/{name}-v0" for name in ("Navigation2D", "CartPole", "Pendulum"))


def family(env_id: str, vary: dict | None = None, horizon: int | None = None) -> TaskFamily:
    return make_family(EnvConfig(id=env_id, vary=vary or {}, horizon=horizon))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def keys(tasks: list[dict]) -> set[tuple]:
    return {tuple(task.items()) for task in tasks}


# Distributions

numbers = st.floats(-1e6, 1e6)
factors = st.floats(0.01, 100)


@given(low=numbers, high=numbers, seed=st.integers(0, 99))
def test_uniform_and_scale_stay_between_their_bounds(low, high, seed):
    low, high = min(low, high), max(low, high)
    assert low <= Distribution("uniform", (low, high)).sample(rng(seed), 7.0) <= high
    values = np.array(Distribution("scale", (low, high)).sample(rng(seed), (2.0, -4.0)))
    assert np.all((values / [2.0, -4.0] >= low) & (values / [2.0, -4.0] <= high))


@given(low=factors, high=factors, seed=st.integers(0, 99))
def test_loguniform_stays_between_its_bounds_and_is_uniform_in_the_logarithm(low, high, seed):
    low, high = min(low, high), max(low, high)
    value = Distribution("loguniform", (low, high)).sample(rng(seed), 7.0)
    assert low <= value <= high
    assert np.log(value) == pytest.approx(rng(seed).uniform(np.log(low), np.log(high)), abs=1e-9)


@given(base=factors, limit=st.floats(0, 3), seed=st.integers(0, 99))
def test_scale_pow_is_a_power_of_the_base_times_the_nominal_value(base, limit, seed):
    value = Distribution("scale_pow", (base, limit)).sample(rng(seed), 2.0)
    assert value == pytest.approx(2.0 * base ** rng(seed).uniform(-limit, limit))


@given(values=st.lists(numbers, min_size=1, unique=True), seed=st.integers(0, 99))
def test_choice_picks_one_of_its_values(values, seed):
    distribution = Distribution("choice", tuple(values))
    assert distribution.sample(rng(seed), 7.0) in values
    assert distribution.support(7.0) == tuple(values)


def test_arrays_get_a_number_per_element_as_plain_floats():
    drawn = Distribution.parse({"normal": [5.0, 0.1]}).sample(rng(), (1.0, 1.0, 1.0))
    assert isinstance(drawn, tuple) and len(set(drawn)) == 3
    assert all(type(value) is float and 4 < value < 6 for value in drawn)
    assert type(Distribution("uniform", (0, 1)).sample(rng(), 1.0)) is float


def test_distributions_reach_all_they_should():
    grid = [Distribution("uniform", (0.25, 1.0)).sample(generator, 1.0) for generator in [rng()] for _ in range(2000)]
    assert min(grid) < 0.26 and max(grid) > 0.99 and np.mean(grid) == pytest.approx(0.625, abs=0.02)
    normal = [Distribution("normal", (3.0, 2.0)).sample(generator, 1.0) for generator in [rng()] for _ in range(2000)]
    assert np.mean(normal) == pytest.approx(3.0, abs=0.2) and np.std(normal) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(
    "kind, arguments",
    [("uniform", (2, 2)), ("loguniform", (2, 2)), ("normal", (2, 0)), ("scale", (1, 1)), ("scale_pow", (3, 0))],
)
def test_a_distribution_without_spread_has_one_value(kind, arguments):
    assert len(Distribution(kind, arguments).support(5.0)) == 1
    assert Distribution(kind, (1.5, 2.5)).support(5.0) is None


# Native families


def test_the_default_families_are_the_published_ones():
    navigation = family(NAVIGATION)
    goals = np.array([navigation.encode(task) for task in navigation.sample(rng(), 1000)])
    assert navigation.horizon == 100 and (navigation.observation_dim, navigation.action_dim) == (2, 2)
    assert not navigation.discrete and np.abs(goals).max() <= 0.5 and goals.min() < -0.49 and goals.max() > 0.49

    cartpole = family(CARTPOLE)
    tasks = cartpole.sample(rng(), 1000)
    assert cartpole.horizon == 200 and cartpole.discrete and (cartpole.observation_dim, cartpole.action_dim) == (4, 2)
    assert {task["force_sign"] for task in tasks} == {-1.0, 1.0}
    assert 0.25 <= min(t["length"] for t in tasks) < 0.27 and 0.98 < max(t["length"] for t in tasks) <= 1.0

    pendulum = family(PENDULUM)
    masses = [task["m"] for task in pendulum.sample(rng(), 1000)]
    assert pendulum.horizon == 200 and (pendulum.observation_dim, pendulum.action_dim) == (3, 1)
    assert 0.5 <= min(masses) < 0.52 and 1.98 < max(masses) <= 2.0


def test_vary_overrides_the_defaults_key_by_key():
    cartpole = family(CARTPOLE, {"force_sign": {"choice": [1]}, "gravity": {"scale": [0.5, 2]}}, horizon=50)
    tasks = cartpole.sample(rng(), 200)
    assert cartpole.horizon == 50 and set(tasks[0]) == {"force_sign", "gravity", "length"}
    assert {task["force_sign"] for task in tasks} == {1.0}
    assert all(4.9 <= task["gravity"] <= 19.6 for task in tasks)


def test_sampling_follows_the_generator_and_not_the_order_of_keys():
    vary = {"masspole": {"uniform": [0.1, 0.2]}, "gravity": {"uniform": [9, 10]}}
    one, other = family(CARTPOLE, vary), family(CARTPOLE, dict(reversed(vary.items())))
    assert one.sample(rng(3), 5) == other.sample(rng(3), 5) != one.sample(rng(4), 5)
    assert one.tasks("test", 5) == other.tasks("test", 5)


def test_encode_lists_the_numbers_by_name():
    encoded = family(NAVIGATION).encode({"goal_y": 0.25, "goal_x": -0.5})
    assert encoded.dtype == np.float32 and encoded.tolist() == [-0.5, 0.25]


# Held-out tasks


@pytest.mark.parametrize("env_id", [NAVIGATION, CARTPOLE, PENDULUM])
def test_held_out_tasks_are_fixed_prefix_stable_and_disjoint(env_id):
    tasks = family(env_id)
    validation, test = tasks.tasks("validation", 40), tasks.tasks("test", 40)
    assert tasks.disjoint and len(keys(validation) | keys(test) | keys(tasks.sample(rng(), 500))) == 580
    assert tasks.tasks("test", 7) == test[:7] == family(env_id).tasks("test", 7)


def test_held_out_tasks_are_the_same_for_ever():
    assert family(NAVIGATION).encode(family(NAVIGATION).tasks("test", 1)[0]).tolist() == pytest.approx(
        [-0.3987, 0.4040], abs=1e-4
    )


def test_a_finite_family_is_partitioned():
    lengths, signs = [0.1 * k for k in range(1, 11)], [-1, 1]
    tasks = family(CARTPOLE, {"length": {"choice": lengths}, "force_sign": {"choice": signs}})
    validation, test = tasks.tasks("validation", 4), tasks.tasks("test", 4)
    training = keys(tasks.sample(rng(), 500))
    assert tasks.disjoint and len(keys(validation)) == len(keys(test)) == 4 and len(training) == 12
    assert len(training | keys(validation) | keys(test)) == 20
    assert tasks.tasks("test", 10) == (test * 3)[:10]


def test_a_small_finite_family_has_the_same_tasks_everywhere():
    tasks = family(CARTPOLE, {"length": {"uniform": [0.5, 0.5]}, "force_sign": {"choice": [-1, 1]}})
    everything = keys(tasks.sample(rng(), 100))
    assert not tasks.disjoint and len(everything) == 2
    assert keys(tasks.tasks("validation", 2)) == keys(tasks.tasks("test", 2)) == everything


def test_a_family_without_variation_has_one_task():
    tasks = family("CartPole-v1")
    assert tasks.sample(rng(), 2) == tasks.tasks("test", 2) == [{}, {}] and not tasks.disjoint
    assert tasks.encode({}).shape == (0,)


def test_there_is_no_training_set_to_ask_for():
    with pytest.raises(ValueError, match=r"validation, test, not 'train'; sample\(\)"):
        family(NAVIGATION).tasks("train", 1)


# Generic families


class OddEnv(gymnasium.Env):
    """One of everything that a path can meet."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    table = (1.0, 2.0)
    counts: ClassVar[list[int]] = [1, 2, 3]

    class Model:
        def __init__(self):
            self.body_mass = np.array([0.0, 2.0, 4.0])
            self.inertia = np.eye(2, dtype=np.float32)

    shared = Model()

    def __init__(self):
        self.model, self.steps, self.whole, self.name, self.flag = self.Model(), 3, np.arange(3), "odd", True

    @property
    def fixed(self):
        return 1.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(4, np.float32), {}

    def step(self, action):
        return np.array([*self.model.body_mass, self.counts[1]], np.float32), float(self.steps), False, False, {}


@pytest.fixture(scope="module", autouse=True)
def odd_env():
    gymnasium.register("test/Odd-v0", OddEnv)
    yield
    gymnasium.registry.pop("test/Odd-v0")


def odd(**vary):
    return family("test/Odd-v0", {path.replace("__", "."): value for path, value in vary.items()}, horizon=5)


def test_tasks_reach_arrays_elements_and_numbers():
    tasks = family(
        "test/Odd-v0",
        {"model.body_mass": {"scale": [2, 2]}, "model.inertia[1]": {"uniform": [3, 3]}, "steps": {"uniform": [4, 5]}},
        horizon=5,
    )
    task = tasks.sample(rng(), 1)[0]
    assert task["model.body_mass"] == (0.0, 4.0, 8.0) and task["model.inertia[1]"] == (3.0, 3.0)
    assert tasks.encode(task).shape == (6,)
    env = tasks.make_vector(2)
    arrays = [row.unwrapped.model.body_mass for row in env.envs]
    env.set_tasks([task, {}])
    env.reset(seed=0)
    observation, reward, *_ = env.step(np.zeros(2, np.int64))
    assert observation[:, :3].tolist() == [[0, 4, 8], [0, 2, 4]]
    assert reward.tolist() == [task["steps"], 3.0]
    assert env.envs[0].unwrapped.model.inertia.tolist() == [[1, 0], [3, 3]]
    assert all(row.unwrapped.model.body_mass is array for row, array in zip(env.envs, arrays, strict=True))
    env.set_tasks({})
    assert env.envs[0].unwrapped.model.body_mass.tolist() == [0, 2, 4]
    assert env.envs[0].unwrapped.model.inertia.dtype == np.float32


def test_an_int_stays_an_int_where_it_can():
    env = odd(steps={"choice": [4.0, 4.5]}).make_vector(1)
    for value, kind in [(4.0, int), (4.5, float), (7.0, int)]:
        env.set_tasks({"steps": value})
        assert env.envs[0].unwrapped.steps == value and type(env.envs[0].unwrapped.steps) is kind


def test_what_belongs_to_a_class_is_copied_before_it_is_changed():
    env = family("test/Odd-v0", {"counts[1]": {"choice": [7, 8]}}, horizon=5).make_vector(2)
    env.set_tasks([{"counts[1]": 7.0}, {"counts[1]": 8.0}])
    env.reset()
    assert env.step(np.zeros(2, np.int64))[0][:, 3].tolist() == [7, 8] and OddEnv.counts == [1, 2, 3]


@pytest.mark.parametrize(
    "path, distribution, words",
    [
        ("model.body_mas", {"scale": [1, 2]}, "no attribute 'body_mas'; did you mean 'body_mass'"),
        ("modl.body_mass", {"scale": [1, 2]}, "did you mean 'model'"),
        ("model.body_mass[3]", {"scale": [1, 2]}, "out of bounds"),
        ("model..x", {"scale": [1, 2]}, "no path to an attribute"),
        ("name", {"scale": [1, 2]}, "name is a str; only numbers"),
        ("flag", {"choice": [0, 1]}, "flag is a bool; only numbers"),
        ("model", {"scale": [1, 2]}, "model is a Model; only numbers"),
        ("fixed", {"scale": [1, 2]}, "fixed cannot be set"),
        ("table[0]", {"scale": [1, 2]}, "cannot be set"),
        ("model.body_mass", {"choice": [1, 2]}, r"name an element, such as model.body_mass\[0\]"),
        ("model.body_mass[0]", {"scale": [1, 2]}, "is 0, and so is any multiple"),
        ("steps", {"choice": [1, 1]}, "names a value twice"),
    ],
)
def test_what_cannot_vary_is_refused(path, distribution, words):
    with pytest.raises(TaskError, match=words):
        family("test/Odd-v0", {path: distribution}, horizon=5)


def test_an_object_that_environments_share_is_refused():
    tasks = family("test/Odd-v0", {"shared.body_mass": {"scale": [1, 2]}}, horizon=5)
    with pytest.raises(TaskError, match="one object that all environments share"):
        tasks.make_vector(2)


def test_a_fraction_does_not_fit_into_an_integer_array():
    env = odd(whole={"uniform": [0, 9]}).make_vector(1)
    env.set_tasks({"whole": (5.0, 6.0, 7.0)})
    assert env.envs[0].unwrapped.whole.tolist() == [5, 6, 7]
    with pytest.raises(TaskError, match="holds whole numbers"):
        env.set_tasks({"whole": (5.0, 6.5, 7.0)})
    with pytest.raises(TaskError, match="must be 3 finite numbers"):
        env.set_tasks({"whole": (5.0, 6.0)})


def test_cartpole_derives_its_masses_again():
    env = family("CartPole-v1", {"masspole": {"uniform": [0.2, 0.3]}, "length": {"uniform": [1, 2]}}).make_vector(1)
    env.set_tasks({"masspole": 0.25, "length": 2.0})
    inner = env.envs[0].unwrapped
    assert (inner.total_mass, inner.polemass_length) == (1.25, 0.5)
    with pytest.raises(TaskError, match="total_mass follows from other attributes; vary masscart or masspole"):
        family("CartPole-v1", {"total_mass": {"scale": [1, 2]}})


# Ids, horizons, spaces


@pytest.mark.parametrize(
    "env_id, words",
    [
        ("CartPol-v1", "did you mean .*'CartPole-v1'"),
        ("CartPole", "did you mean .*'CartPole-v1'"),
        ("Navigation2D-v0", "did you mean .*'ssm_metarl/Navigation2D-v0'"),
        ("ssm_metarl/navigation2d-v0", "did you mean 'ssm_metarl/Navigation2D-v0'"),
        ("no_such_module:Env-v0", "module no_such_module cannot be imported"),
    ],
)
def test_an_unknown_id_is_an_error_with_near_names(env_id, words):
    with pytest.raises(TaskError, match=words):
        family(env_id)


def test_an_id_may_name_its_module():
    assert family("ssm_metarl.env_runner:ssm_metarl/Pendulum-v0").id == PENDULUM
    assert family("gymnasium:CartPole-v1").horizon == 500


def test_unknown_parameters_are_errors_with_near_names():
    with pytest.raises(TaskError, match="no parameter 'lenght'; did you mean 'length'"):
        family(CARTPOLE, {"lenght": {"scale": [1, 2]}})
    with pytest.raises(TaskError, match=r"no parameter 'mass'.*known: g, l, m"):
        family(PENDULUM, {"mass": {"scale": [1, 2]}})


def test_the_horizon_is_the_configured_or_the_environments_own():
    assert family("CartPole-v1").horizon == 500 and family("CartPole-v1", horizon=20).horizon == 20
    with pytest.raises(TaskError, match=r"env.horizon: test/Odd-v0 has no time limit"):
        family("test/Odd-v0")


SEQUENCE = gymnasium.spaces.Sequence(gymnasium.spaces.Discrete(3))


class SpaceEnv(OddEnv):
    def __init__(self, observation_space=None, action_space=None):
        super().__init__()
        self.observation_space = observation_space or OddEnv.observation_space
        self.action_space = action_space or OddEnv.action_space


@pytest.mark.parametrize(
    "spaces, words",
    [
        ({"action_space": gymnasium.spaces.MultiDiscrete([2, 2])}, r"action space MultiDiscrete\(\[2 2\]\).*wrap"),
        ({"action_space": gymnasium.spaces.Box(-1, 1, (2, 2))}, r"action space Box.*only Discrete and 1-D Box"),
        ({"observation_space": SEQUENCE}, r"observation space Sequence.*wrap the environment"),
    ],
)
def test_spaces_that_cannot_be_served_are_named_with_the_cure(spaces, words, monkeypatch):
    spec = gymnasium.envs.registration.EnvSpec("test/Space-v0", SpaceEnv, kwargs=spaces)
    monkeypatch.setitem(gymnasium.registry, "test/Space-v0", spec)
    with pytest.raises(TaskError, match=words):
        family("test/Space-v0", horizon=5)


def test_a_missing_package_is_named(monkeypatch):
    def entry_point():
        raise gymnasium.error.DependencyNotInstalled("pip install something")

    spec = gymnasium.envs.registration.EnvSpec("test/Missing-v0", entry_point)
    monkeypatch.setitem(gymnasium.registry, "test/Missing-v0", spec)
    with pytest.raises(TaskError, match="test/Missing-v0 cannot be made: pip install something"):
        family("test/Missing-v0", horizon=5)
