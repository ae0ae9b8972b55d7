"""`Environment`: the seed's way to step any gymnasium id or task family."""

import gymnasium
import numpy as np
import pytest

from ssm_metarl.env_runner.environment import Environment
from ssm_metarl.env_runner.tasks import TaskError


def finish(env: Environment) -> tuple[int, dict]:
    steps, over, info = 0, False, {}
    while not over:
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        over, steps = terminated or truncated, steps + 1
    return steps, info


def test_one_environment_is_gymnasiums():
    ours, theirs = Environment(seed=3), gymnasium.make("CartPole-v1")
    observation, info = ours.reset()
    np.testing.assert_array_equal(observation, theirs.reset(seed=3)[0])
    assert info == {} and ours.action_space == theirs.action_space
    assert ours.observation_space == theirs.observation_space
    over, action = False, 0
    while not over:
        action = 1 - action
        got, expected = ours.step(action), theirs.step(action)
        np.testing.assert_array_equal(got[0], expected[0])
        assert got[1:4] == expected[1:4] and [type(value) for value in got[1:4]] == [float, bool, bool]
        over = got[2] or got[3]
    assert got[4] == {"foreign_truncation": False}
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"call reset\(\)"):
        ours.step(0)


@pytest.mark.parametrize("env_name", ["CartPole-v1", "ssm_metarl/CartPole-v0"])
def test_a_batch_is_gymnasiums_vector_environment(env_name):
    env = Environment(env_name, batch_size=3, max_episode_steps=10, seed=0)
    observation, _ = env.reset()
    assert observation.shape == (3, 4) and env.observation_space.shape == (3, 4) and env.action_space.shape == (3,)
    for _ in range(10):
        observation, reward, terminated, truncated, _ = env.step(np.zeros(3, np.int64))
        over = terminated | truncated
        if over.any():
            break
    assert reward.tolist() == [1, 1, 1]
    *_, reward, terminated, truncated, _ = env.step(np.zeros(3, np.int64))
    np.testing.assert_array_equal(reward[over], 0)
    assert not (terminated | truncated)[over].any()
    statistics = env.episode_statistics()
    assert len(statistics["returns"]) == len(statistics["lengths"]) >= over.sum()
    np.testing.assert_array_equal(statistics["returns"], statistics["lengths"])


def test_statistics_count_finished_episodes_and_not_the_resets():
    env = Environment("ssm_metarl/Navigation2D-v0", batch_size=2, max_episode_steps=3)
    env.set_task([{"goal_x": 1.0, "goal_y": 0.0}, {"goal_x": 0.0, "goal_y": 2.0}])
    env.reset()
    for _ in range(8):
        env.step(np.zeros((2, 2)))
    assert env.episode_statistics() == {"returns": [-3.0, -6.0, -3.0, -6.0], "lengths": [3, 3, 3, 3]}
    single = Environment("ssm_metarl/Navigation2D-v0", max_episode_steps=2)
    for _ in range(2):
        single.reset(options={"task": {"goal_x": 1.0, "goal_y": 0.0}})
        finish(single)
    single.reset()
    single.step(np.zeros(2))
    assert single.episode_statistics()["lengths"] == [2, 2]


@pytest.mark.parametrize("steps", [7, 250])
@pytest.mark.parametrize("env_name", ["Pendulum-v1", "ssm_metarl/Pendulum-v0"])
def test_max_episode_steps_shortens_and_lengthens(env_name, steps):
    env = Environment(env_name, max_episode_steps=steps, seed=0)
    env.reset()
    assert finish(env) == (steps, {"foreign_truncation": False})


def test_the_seed_decides_episodes_tasks_and_sampled_actions():
    def trace(seed):
        with Environment("ssm_metarl/CartPole-v0", seed=seed) as env:
            env.set_task(env.sample_tasks(2)[1])
            first = env.reset()[0]
            return [env.task, first.tolist(), env.step(env.action_space.sample())[0].tolist(), env.reset()[0].tolist()]

    assert trace(1) == trace(1) and all(a != b for a, b in zip(trace(1), trace(2), strict=True))
    assert trace(1)[1] != trace(1)[3]


def test_tasks_change_the_rewards():
    env = Environment("ssm_metarl/Navigation2D-v0", seed=0)
    rewards = []
    for task in env.sample_tasks(3):
        env.set_task(task)
        env.reset()
        rewards.append(env.step(np.zeros(2))[1])
        assert env.task == task and rewards[-1] == pytest.approx(-np.hypot(task["goal_x"], task["goal_y"]))
    assert len(set(rewards)) == 3


def test_vary_makes_a_family_of_any_id():
    env = Environment("Pendulum-v1", batch_size=2, vary={"m": {"uniform": [0.5, 2.0]}}, seed=0)
    tasks = env.sample_tasks(2)
    env.set_task(tasks)
    env.reset()
    assert env.task == tasks and tasks[0] != tasks[1]
    with pytest.raises(TaskError, match="does not vary 'mass'"):
        env.set_task({"mass": 1.0})


@pytest.mark.parametrize("action", [2, -1, 0.5, [0, 1], None, "left"])
def test_an_action_that_does_not_fit_is_refused(action):
    env = Environment(seed=0)
    env.reset()
    with pytest.raises(ValueError, match="does not fit the action space Discrete"):
        env.step(action)
    env.step(1)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"env_name": "Typo-v9"}, "no gymnasium environment is called 'Typo-v9'"),
        ({"env_name": "CartPole-v11"}, "did you mean .*'CartPole-v1'"),
        ({"batch_size": 0}, "batch_size = 0 must be at least 1"),
        ({"max_episode_steps": 0}, "max_episode_steps = 0 must be at least 1"),
        ({"vary": {"length": {"unifrom": [1, 2]}}}, "uniform"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Environment(**arguments)


def test_infos_of_a_single_environment_are_unbatched(monkeypatch):
    class Talkative(gymnasium.envs.classic_control.PendulumEnv):
        def step(self, action):
            info = {"success": True, "place": np.array([1.0, 2.0]), "deep": {"word": "yes", "count": 3}}
            return *super().step(action)[:4], info

    spec = gymnasium.envs.registration.EnvSpec("test/Talkative-v0", Talkative, max_episode_steps=5)
    monkeypatch.setitem(gymnasium.registry, "test/Talkative-v0", spec)
    env = Environment("test/Talkative-v0")
    env.reset()
    info = env.step([0.0])[4]
    assert info.pop("place").tolist() == [1.0, 2.0] and type(info["success"]) is bool
    assert info == {"success": True, "deep": {"word": "yes", "count": 3}, "foreign_truncation": False}


def test_close_may_be_called_twice():
    env = Environment()
    env.close(), env.close()
    with Environment("ssm_metarl/Pendulum-v0") as other:
        other.reset()
