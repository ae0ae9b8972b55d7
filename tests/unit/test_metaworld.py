"""Meta-World: its tasks as numbers, its environments bit by bit, and few models in memory."""

import json
import pickle
import sys
import warnings

import gymnasium
import metaworld
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from ssm_metarl.config import EnvConfig
from ssm_metarl.env_runner.families import metaworld as families
from ssm_metarl.env_runner.families.metaworld import (
    BENCHMARKS,
    MetaWorldVectorEnv,
    Models,
    as_numbers,
    class_of,
    environment_classes,
)
from ssm_metarl.env_runner.tasks import make_family
from ssm_metarl.env_runner.vector import TaskError

DISABLED = AutoresetMode.DISABLED
IDS = [f"ssm_metarl/{name}-v0" for name in BENCHMARKS]


@pytest.fixture(scope="module")
def built():
    """Meta-World's ML1 as a family builds it: the family, and the package's benchmark behind it."""
    benchmarks = []

    class Recorded(metaworld.ML1):
        def __init__(self, env_name, seed):
            assert (env_name, seed) == ("reach-v3", 0)
            super().__init__(env_name, seed)
            benchmarks.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metaworld, "ML1", Recorded)
        family = make_family(EnvConfig(id="ssm_metarl/ML1-v0"))
        family.tasks("test", 1)
        family.tasks("test", 2)
        family.sample(np.random.default_rng(0), 1)
    [benchmark] = benchmarks
    return family, benchmark


@pytest.fixture(scope="module")
def family(built):
    return built[0]


@pytest.fixture(scope="module")
def ml1(built):
    return built[1]


@pytest.fixture
def few_goals(monkeypatch):
    """Benchmarks with 2 goals per class, to build them in seconds."""
    monkeypatch.setattr(metaworld, "_N_GOALS", 2)


@pytest.fixture
def no_benchmark(monkeypatch):
    def build(*_, **__):
        raise AssertionError("a benchmark was built")

    monkeypatch.setattr(metaworld, "_make_tasks", build)


def bare(task: metaworld.Task) -> gymnasium.Env:
    """The package's own environment under its own task."""
    env = metaworld.env_dict.ALL_V3_ENVIRONMENTS[task.env_name]()
    env.set_task(task)
    return env


def goals(env_name: str, count: int) -> tuple[list[dict], list[metaworld.Task]]:
    """Tasks as numbers, and as the package has them."""
    compiled, rng = Models(1, "v2").get(env_name), np.random.default_rng(0)
    vectors = [compiled.draw(compiled.make_data(), rng) for _ in range(count)]
    content = {"env_cls": metaworld.env_dict.ALL_V3_ENVIRONMENTS[env_name], "partially_observable": True}
    packaged = [metaworld.Task(env_name, pickle.dumps({"rand_vec": vector, **content})) for vector in vectors]
    return [as_numbers(env_name, vector) for vector in vectors], packaged


# Tasks


def test_tasks_are_the_benchmarks_own_goals_as_numbers(ml1, family):
    def vectors(tasks):
        return [tuple(pickle.loads(task.data)["rand_vec"].tolist()) for task in tasks]

    training, test = vectors(ml1.train_tasks), vectors(ml1.test_tasks)
    assert [task["rand_vec"] for task in family.tasks("test", 52)] == test + test[:2]
    drawn = family.sample(np.random.default_rng(0), 400)
    assert {task["rand_vec"] for task in drawn} == set(training), "50 goals, all of them in 400 draws"
    assert {class_of(task) for task in drawn} == {"reach-v3"}
    validation = family.tasks("validation", 7)
    assert family.tasks("validation", 3) == validation[:3] == make_family(EnvConfig(id=IDS[0])).tasks("validation", 3)
    held_out = [task["rand_vec"] for task in validation]
    assert family.disjoint and len({*training, *test, *held_out}) == 107


def test_a_task_is_small_plain_and_of_one_size(ml1, family):
    [task] = family.sample(np.random.default_rng(0), 1)
    assert len(pickle.dumps(task)) < 300 and pickle.loads(pickle.dumps(task)) == task
    assert json.loads(json.dumps(task)) == {**task, "rand_vec": list(task["rand_vec"])}
    assert family.encode(task).shape == (7,) == family.encode(goals("drawer-close-v3", 1)[0][0]).shape


def test_a_task_of_numbers_sets_the_goal_that_the_packages_task_sets(ml1, family):
    env = family.make_vector(1)
    for task, original in zip(pickle.loads(pickle.dumps(family.tasks("test", 3))), ml1.test_tasks, strict=False):
        env.set_tasks(task)
        env.reset(seed=0)
        reference = bare(original)
        reference.reset()
        ours = env.envs[0]._env
        np.testing.assert_array_equal(ours._target_pos, reference._target_pos)
        np.testing.assert_array_equal(ours._last_rand_vec, pickle.loads(original.data)["rand_vec"])


def test_ml10_takes_classes_in_turn_and_tests_on_others(few_goals, monkeypatch):
    reference = metaworld.ML10(seed=3)
    monkeypatch.setattr(metaworld, "ML10", lambda seed: reference if seed == 3 else None)
    family = make_family(EnvConfig(id="ssm_metarl/ML10-v0", kwargs={"benchmark_seed": 3}))
    test = family.tasks("test", 12)
    names = ["drawer-open-v3", "door-close-v3", "shelf-place-v3", "sweep-into-v3", "lever-pull-v3"]
    assert [family.class_of(task) for task in test] == (names * 3)[:12]
    assert test[10:] == test[:2] and len({task["rand_vec"] for task in test}) == 10
    drawn = family.sample(np.random.default_rng(1), 20)
    counts = {family.class_of(task): 0 for task in drawn}
    for task in drawn:
        counts[family.class_of(task)] += 1
    assert list(counts.values()) == [2] * 10 and not counts.keys() & set(names)
    assert [family.class_of(task) for task in family.tasks("validation", 2)] == ["reach-v3", "push-v3"]
    in_turn = [reference.test_tasks[start] for start in (0, 2, 4, 6, 8)]
    for task, original in zip(test, in_turn, strict=False):
        content = pickle.loads(original.data)["rand_vec"]
        assert task == as_numbers(original.env_name, content), "the benchmark's first goal of each class"


def test_building_the_benchmark_leaves_the_global_random_stream_alone(few_goals):
    np.random.seed(5)
    expected = np.random.random(3)
    np.random.seed(5)
    make_family(EnvConfig(id="ssm_metarl/ML1-v0")).tasks("test", 2)
    np.testing.assert_array_equal(np.random.random(3), expected)


# Environments


@pytest.mark.parametrize("env_name", ["reach-v3", "basketball-v3", "door-open-v3"])
def test_rows_that_share_a_model_equal_environments_of_their_own_bit_by_bit(env_name):
    """Three goals side by side, and a second episode of another goal after a first: nothing of one is in the other."""
    (tasks, originals), rng = goals(env_name, 3), np.random.default_rng(1)
    env, references = MetaWorldVectorEnv(3, 500, DISABLED), [bare(original) for original in originals]
    for order in ([0, 1, 2], [2, 0, 0]):
        for reference, index in zip(references, order, strict=True):
            reference.set_task(originals[index])
        observation_NO, _ = env.reset(seed=0, options={"task": [tasks[index] for index in order]})
        np.testing.assert_array_equal(observation_NO, np.float32([each.reset()[0] for each in references]))
        for actions in rng.uniform(-1, 1, (210 if order[0] == 0 else 20, 3, 4)).astype(np.float32):
            observation_NO, reward_N, terminated_N, truncated_N, info = env.step(actions)
            expected = [each.step(action) for each, action in zip(references, actions, strict=True)]
            np.testing.assert_array_equal(observation_NO, np.float32([step[0] for step in expected]))
            np.testing.assert_array_equal(reward_N, [step[1] for step in expected])
            np.testing.assert_array_equal(info["success"], [step[4]["success"] > 0 for step in expected])
            assert not terminated_N.any() and not truncated_N.any()
        assert (observation_NO[:, -3:] == 0).all(), "the goal is hidden"


def test_the_spaces_are_those_of_the_package(family):
    env = metaworld.env_dict.ALL_V3_ENVIRONMENTS["reach-v3"]()
    for bound in ("low", "high"):
        ours, theirs = getattr(family.observation_space, bound), getattr(env.observation_space, bound)
        np.testing.assert_array_equal(ours[:36], np.float32(theirs[:36]))
        assert np.isinf(ours[36:]).all(), "gymnasium warns of the goal's equal bounds"
    np.testing.assert_array_equal(family.action_space.low, env.action_space.low)
    assert (family.observation_dim, family.action_dim, family.horizon) == (39, 4, 500)


def test_actions_outside_the_box_are_clipped_and_ended_rows_stay():
    env, twin = (MetaWorldVectorEnv(2, 3, DISABLED) for _ in range(2))
    for each in (env, twin):
        each.reset(seed=0)
    for _ in range(3):
        observation_NO, *_, truncated_N, info = env.step(np.full((2, 4), 7.0, np.float32))
        clipped_NO = twin.step(np.ones((2, 4), np.float32))[0]
        np.testing.assert_array_equal(observation_NO, clipped_NO)
    assert truncated_N.all() and not info["foreign_truncation"].any()
    after_NO, reward_N, *_ = env.step(np.ones((2, 4), np.float32))
    np.testing.assert_array_equal(after_NO, observation_NO)
    assert (reward_N == 0).all()


def test_an_episode_may_last_longer_than_meta_worlds(family):
    env = family.make_vector(1)
    longer = MetaWorldVectorEnv(1, 503, DISABLED)
    for each, steps in ((env, 500), (longer, 503)):
        each.reset(seed=0)
        truncated = [each.step(np.zeros((1, 4), np.float32))[3][0] for _ in range(steps)]
        assert truncated == [False] * (steps - 1) + [True]


def test_a_worker_builds_no_benchmark_and_only_the_classes_it_needs(no_benchmark, monkeypatch):
    compiled = []

    class Counted(families.Compiled):
        def __init__(self, env_name, reward_version):
            compiled.append(env_name)
            super().__init__(env_name, reward_version)

    monkeypatch.setattr(families, "Compiled", Counted)
    family = make_family(EnvConfig(id="ssm_metarl/ML45-v0", kwargs={"kept_models": 2}))
    env = family.make_vector(6)
    assert (family.observation_dim, family.action_dim) == (39, 4) and compiled == []
    names = ["sweep-v3", "door-open-v3", "hammer-v3"]
    tasks = {name: {"env_class": float(list(environment_classes()).index(name))} for name in names}
    for name in ("sweep-v3", "door-open-v3", "sweep-v3", "hammer-v3"):
        env.reset(seed=0, options={"task": tasks[name]})
    assert compiled == names and set(env.models.alive) == {"sweep-v3", "hammer-v3"}
    env.reset(seed=0, options={"task": [tasks[name] for name in names * 2]})
    assert compiled == [*names, "door-open-v3"], "one model for all rows of a class"
    assert set(env.models.alive) == set(names), "what is in use stays, beyond the 2 that are kept"
    env.reset(options={"task": tasks["sweep-v3"]})
    assert len(env.models.alive) == 2 and "sweep-v3" in env.models.alive


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasiums_checks_pass(env_id, no_benchmark):
    env = gymnasium.make(env_id)
    with warnings.catch_warnings():
        # It says this of gymnasium's own CartPole too.
        warnings.filterwarnings("ignore", ".*infinity.*")
        check_env(env.unwrapped)
    task = {"env_class": 0.0}
    env.unwrapped.set_task(task)
    env.reset(seed=1)
    assert env.unwrapped.task == task and env.unwrapped._vector.envs[0].env_name == "assembly-v3"
    assert gymnasium.spec(env_id).max_episode_steps == 500


def test_make_vec_makes_rows_of_the_class_that_is_named(no_benchmark):
    env = gymnasium.make_vec("ssm_metarl/ML1-v0", num_envs=2, env_name="window-open-v3")
    assert isinstance(env, MetaWorldVectorEnv) and env.horizon == 500
    env.reset(seed=0)
    assert list(env.models.alive) == ["window-open-v3"]
    assert gymnasium.make("ssm_metarl/ML1-v0").spec.kwargs["benchmark"] == "ML1"


# Faults


@pytest.mark.parametrize(
    "env_id, kwargs, message",
    [
        ("ssm_metarl/ML1-v0", {"env_name": "reach-v2"}, "no env_name 'reach-v2'; did you mean 'reach-v3'"),
        ("ssm_metarl/ML10-v0", {"env_name": "reach-v3"}, "env_name chooses the class of ML1; ML10 has its own"),
        ("ssm_metarl/ML1-v0", {"kept_models": 0}, "kept_models = 0 must be at least 1"),
        ("ssm_metarl/ML1-v0", {"reward_version": "v3"}, "reward_version = 'v3' must be one of v1, v2"),
        ("ssm_metarl/ML1-v0", {"benchmark_seed": -1}, "benchmark_seed = -1 must be a whole number"),
        ("ssm_metarl/ML1-v0", {"goals": 3}, "ML1-v0 does not take {'goals': 3}"),
    ],
)
def test_wrong_arguments_are_named_with_their_cure(env_id, kwargs, message):
    with pytest.raises(TaskError, match=message):
        make_family(EnvConfig(id=env_id, kwargs=kwargs))


@pytest.mark.parametrize(
    "task, message",
    [
        ({"env_class": 50.0}, "env_class = 50.0 must be a whole number from 0 to 49"),
        ({"env_class": 0.5}, "env_class = 0.5 must be a whole number"),
        ({"rand_vec": (0.0,) * 5}, "must be 6 finite numbers"),
        ({"rand_vec": (np.nan,) * 6}, "must be 6 finite numbers"),
        ({"rand_vector": (0.0,) * 6}, "no parameter 'rand_vector'; did you mean 'rand_vec'"),
    ],
)
def test_wrong_tasks_are_named(family, task, message):
    with pytest.raises(TaskError, match=message):
        family.make_vector(1).set_tasks(task)


def test_a_goal_that_its_class_refuses_does_not_hang(family):
    env = family.make_vector(1)
    env.set_tasks({"rand_vec": (0.0, 0.6, 0.02, 0.0, 0.65, 0.2)})  # less than 0.15 from object to goal
    with pytest.raises(TaskError, match=r"is no goal of reach-v3: .* too near each other"):
        env.reset(seed=0)


def test_without_the_package_the_extra_is_named(monkeypatch):
    environment_classes.cache_clear()
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)
    try:
        for make in (lambda: make_family(EnvConfig(id=IDS[1])), lambda: gymnasium.make(IDS[1])):
            with pytest.raises(TaskError, match=r"pip install 'ssm-metarl\[metaworld\]'"):
                make()
    finally:
        environment_classes.cache_clear()
