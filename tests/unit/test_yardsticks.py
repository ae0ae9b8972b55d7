"""The yardsticks: reached by the agents that they speak of, in the environments; not beaten; equal to brute force."""

import functools
import itertools

import numpy as np
import pytest

from ssm_metarl.config import EnvConfig
from ssm_metarl.env_runner.families import yardsticks
from ssm_metarl.env_runner.families.gridnavi import GOAL_CELLS, NEXT_CA
from ssm_metarl.env_runner.families.point_robot import GOAL_RADIUS
from ssm_metarl.env_runner.families.tmaze import FORWARD, NORTH, SOUTH
from ssm_metarl.env_runner.tasks import make_family
from ssm_metarl.env_runner.vector import MetaVectorEnv

TABLE = yardsticks.table()
BLIND = {row.family: row.value for row in TABLE if row.agent == "blind"}
KNOWN = {row.family: row.value for row in TABLE if row.agent == "knows the task"}


def environment(name: str, rows: int, **kwargs) -> MetaVectorEnv:
    """A row per task, drawn from the distribution and not from a paper's fixed tasks."""
    name, _, variant = name.partition(" ")
    family = make_family(EnvConfig(id=f"ssm_metarl/{name}-v0", variant=variant or None, kwargs=kwargs))
    env = family.make_vector(rows)
    rng = np.random.default_rng(0)
    env.set_tasks([family.sample_task(rng) for _ in range(rows)])
    return env


def play(env: MetaVectorEnv, act) -> np.ndarray:
    """The return of each row; ``act(step, observation, reward)``."""
    observation, _ = env.reset(seed=9)  # another seed than that of the tasks
    total, reward = np.zeros(env.num_envs), np.zeros(env.num_envs)
    for step in range(env.horizon):
        observation, reward, *_ = env.step(act(step, observation, reward))
        total += reward
    return total


def error(returns: np.ndarray) -> float:
    return float(returns.std(ddof=1) / np.sqrt(len(returns)))


def walker(env: MetaVectorEnv, target_N2: np.ndarray):
    """Walks each row straight to its target."""
    bound = env.single_action_space.high[0]

    def act(step, observation, reward):
        return np.clip((target_N2 - observation) * bound / 0.1, -bound, bound).astype(np.float32)

    return act


def goals_of(env: MetaVectorEnv) -> np.ndarray:
    return np.stack([env.params["goal_x"], env.params["goal_y"]], axis=1)


# Points

POINTS = [
    ("Navigation2D", None),
    ("PointRobot pearl", None),
    ("PointRobot varibad", None),
    ("SparsePointRobot pearl", GOAL_RADIUS),
    ("SparsePointRobot varibad", GOAL_RADIUS),
]


@pytest.mark.parametrize("name, radius", POINTS)
def test_the_straight_walk_has_the_return_of_the_closed_form(name, radius):
    env = environment(name, 1000)
    start, _ = env.reset(seed=9)
    expected = yardsticks.point_known(goals_of(env) - start, env.horizon, radius)
    returns = play(env, walker(env, goals_of(env)))
    np.testing.assert_allclose(returns, expected, atol=1e-4)
    assert abs(returns.mean() - KNOWN[name]) < 4 * error(returns)


def test_no_other_walk_is_better():
    generator = np.random.default_rng(0)
    for name, _ in POINTS:
        env = environment(name, 500)
        best = play(env, walker(env, goals_of(env)))
        for _ in range(4):
            aim = walker(env, goals_of(env))
            noise = generator.normal(0, 0.5, (env.horizon, 500, 2)) * env.single_action_space.high[0]
            other = play(
                env, lambda step, o, r, aim=aim, noise=noise: (aim(step, o, r) + noise[step]).astype(np.float32)
            )
            assert (other <= best + 1e-4).all()


MIDDLES = {"Navigation2D": (0, 0), "PointRobot pearl": (0, 0), "PointRobot varibad": (0, 0.789)}


@pytest.mark.parametrize("name", MIDDLES)
def test_the_blind_walk_to_the_middle_has_the_return_that_is_said(name):
    env = environment(name, 4000)
    returns = play(env, walker(env, np.tile(MIDDLES[name], (4000, 1))))
    assert abs(returns.mean() - BLIND[name]) < 4 * error(returns)


def test_the_middle_of_the_half_circle_is_its_median():
    goals = yardsticks.half_circle(1000)
    cost = [np.hypot(goals[:, 0], goals[:, 1] - y).mean() for y in np.linspace(0, 1, 1001)]
    assert np.argmin(cost) / 1000 == pytest.approx(MIDDLES["PointRobot varibad"][1], abs=0.001)


def test_navigation_without_the_goal_is_the_mean_distance_from_the_middle():
    mean_distance = (np.sqrt(2) + np.log(1 + np.sqrt(2))) / 6
    assert BLIND["Navigation2D"] == pytest.approx(-100 * mean_distance, abs=0.01)


@pytest.mark.parametrize("name", ["SparsePointRobot pearl", "SparsePointRobot varibad"])
def test_the_blind_sparse_walk_pays_what_is_said(name):
    env = environment(name, 8000)
    returns = [play(env, walker(env, np.full((8000, 2), np.sqrt(0.5) * distance))) for distance in (0.95, 0.97, 1.0)]
    best = max(returns, key=np.mean)
    assert abs(best.mean() - BLIND[name]) < 4 * error(best)


# Bandits


def test_the_best_of_k_arms_pays_k_parts_of_k_plus_one():
    for name, parameter in [("BernoulliBandit", "probability"), ("GaussianBandit", "mean")]:
        env = environment(name, 2000, num_arms=4)
        best = env.params[parameter].argmax(axis=1)
        returns = play(env, lambda *_, best=best: best)
        assert abs(returns.mean() - yardsticks.bandit_known(4, 100)) < 4 * error(returns)


def brute_force(num_arms: int, pulls: int) -> float:
    """The best of all deterministic learners of histories, each history with its probability, by expectation."""

    def value(history: tuple) -> float:
        if len(history) == pulls:
            return 0.0
        values = []
        for arm in range(num_arms):
            rewards = [reward for pulled, reward in history if pulled == arm]
            chance = (sum(rewards) + 1) / (len(rewards) + 2)
            win, lose = (value((*history, (arm, reward))) for reward in (1, 0))
            values.append(chance * (1 + win) + (1 - chance) * lose)
        return max(values)

    return value(())


@pytest.mark.parametrize("num_arms, pulls", [(2, 1), (2, 2), (2, 5), (3, 4)])
def test_the_best_learner_of_small_bandits_is_that_of_brute_force(num_arms, pulls):
    assert yardsticks.bernoulli_learner(num_arms, pulls) == pytest.approx(brute_force(num_arms, pulls), abs=1e-12)


def test_two_pulls_of_two_arms_by_hand():
    # After a success the arm is worth 2/3, after a failure the other one 1/2.
    assert yardsticks.bernoulli_learner(2, 2) == pytest.approx(0.5 + 0.5 * 2 / 3 + 0.5 * 0.5)


@pytest.mark.parametrize("num_arms, pulls", [(2, 5), (2, 30), (3, 12)])
def test_blind_learner_bound_and_known_come_in_this_order(num_arms, pulls):
    exact, bound = yardsticks.bernoulli_learner(num_arms, pulls), yardsticks.bernoulli_learner_bound(num_arms, pulls)
    reached, standard_error = yardsticks.bernoulli_thompson(num_arms, pulls)
    assert yardsticks.bandit_blind(pulls) < exact <= bound <= yardsticks.bandit_known(num_arms, pulls)
    assert exact - 0.1 * pulls < reached < exact + 4 * standard_error


def test_a_learner_in_the_environment_reaches_what_thompson_sampling_does_and_no_more_than_the_bound():
    env, rows = environment("BernoulliBandit", 1000), np.arange(1000)
    generator, counts, pulled = np.random.default_rng(1), np.ones((2, 1000, 10)), []

    def act(step, observation, reward):
        if pulled:
            counts[1 - reward.astype(int), rows, pulled[-1]] += 1
        pulled.append(np.maximum(generator.beta(*counts), counts[0] / counts.sum(axis=0)).argmax(axis=1))
        return pulled[-1]

    returns, (reached, standard_error) = play(env, act), yardsticks.bernoulli_thompson(10, 100)
    assert abs(returns.mean() - reached) < 4 * np.hypot(error(returns), standard_error)
    assert returns.mean() < yardsticks.bernoulli_learner_bound(10, 100)


# Tabular MDP


def mdp(rng: np.random.Generator, num_states: int, num_actions: int) -> dict:
    transition = rng.dirichlet(np.ones(num_states), num_states * num_actions).ravel()
    return {"transition": tuple(transition), "mean_reward": tuple(rng.normal(1, 1, num_states * num_actions))}


def test_the_plan_of_a_small_mdp_is_the_best_of_all_policies():
    task = mdp(np.random.default_rng(3), 2, 2)
    mean, transition = np.reshape(task["mean_reward"], (2, 2)), np.reshape(task["transition"], (2, 2, 2))
    best = -np.inf
    for policy in itertools.product(range(2), repeat=6):
        action_HC, at, total = np.reshape(policy, (3, 2)), np.array([1.0, 0.0]), 0.0
        for action_C in action_HC:
            total += at @ mean[range(2), action_C]
            at = at @ transition[range(2), action_C]
        best = max(best, total)
    assert yardsticks.tabular_plan(task, 2, 2, 3)[0] == pytest.approx(best)


def test_planning_reaches_its_value_in_the_environment():
    env = environment("TabularMDP", 3000)
    plans = [yardsticks.tabular_plan(task, 10, 5, 10) for task in env.tasks]
    values, actions = np.array([plan[0] for plan in plans]), np.array([plan[1] for plan in plans])
    returns = play(env, lambda step, observation, _: actions[np.arange(3000), step, observation.argmax(axis=1)])
    assert abs((returns - values).mean()) < 4 * error(returns - values)
    assert abs(values.mean() - KNOWN["TabularMDP"]) < 4 * np.hypot(
        error(values), yardsticks.tabular_known(10, 5, 10)[1]
    )


# GridNavi


@functools.cache
def best_search(cell: int, unseen: frozenset, left: int) -> float:
    """The most that search can still earn, over all goals not yet seen, times their number."""
    if left == 0:
        return 0.0
    values = []
    for following in set(NEXT_CA[cell].tolist()):
        still_unseen = unseen - {following}
        found = len(unseen) - len(still_unseen)
        values.append(found * float(left) - 0.1 * len(still_unseen) + best_search(following, still_unseen, left - 1))
    return max(values)


@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_the_best_search_of_a_short_episode_is_that_of_brute_force(steps):
    exact = best_search(0, frozenset(GOAL_CELLS), steps) / 21
    assert yardsticks.gridnavi_learner(steps) == pytest.approx(exact)
    some = GOAL_CELLS[::3]
    assert best_search(0, frozenset(some), steps) / 7 <= yardsticks.gridnavi_learner(steps, some) + 1e-12
    assert yardsticks.gridnavi_learner(steps, (24.0,)) == pytest.approx(yardsticks.gridnavi_known(24.0, steps))


def test_the_way_of_the_search_sees_a_new_goal_at_each_step():
    cells = list(
        itertools.accumulate(yardsticks.SEARCH_WAY, lambda cell, action: int(NEXT_CA[cell, action]), initial=0)
    )
    assert set(cells[2:]) == set(GOAL_CELLS) and len(cells) == 23


def gridnavi(agent) -> np.ndarray:
    family = make_family(EnvConfig(id="ssm_metarl/GridNavi-v0"))
    env = family.make_vector(21)
    env.set_tasks([{"goal_cell": cell} for cell in GOAL_CELLS])
    return play(env, agent)


def test_searching_and_knowing_reach_what_is_said():
    found = np.zeros(21, bool)

    def search(step, observation, reward):
        np.logical_or(found, reward > 0, out=found)
        return np.where(found, 0, yardsticks.SEARCH_WAY[step])

    def know(step, observation, reward):
        x, y = np.divmod(GOAL_CELLS, 5)
        return np.where(observation[:, 0] < x, 2, np.where(observation[:, 1] < y, 1, 0))

    assert gridnavi(search).mean() == pytest.approx(yardsticks.gridnavi_learner(15))
    returns = gridnavi(know)
    assert returns == pytest.approx([yardsticks.gridnavi_known(cell, 15) for cell in GOAL_CELLS])
    assert returns.mean() == pytest.approx(KNOWN["GridNavi"])


def test_a_blind_walk_to_any_cell_reaches_what_is_said():
    best = gridnavi(lambda step, *_: np.full(21, 2))
    assert best.mean() == pytest.approx(BLIND["GridNavi"]) == pytest.approx(1.1 * 14 / 21 - 1.5)
    far = gridnavi(lambda step, *_: np.full(21, 2 if step < 4 else 1))
    goals = (13.0, 17.0, 21.0, 24.0)  # at distances 5, 5, 5, 8; the walk misses the first three
    assert far[-1] == pytest.approx(yardsticks.gridnavi_blind(15, (24.0,)))
    assert far[[GOAL_CELLS.index(goal) for goal in goals]].mean() < yardsticks.gridnavi_blind(15, goals)


# T-maze


@pytest.mark.parametrize("remembers", [True, False])
@pytest.mark.parametrize("knows_task", [True, False])
def test_the_maze_takes_memory_and_the_task(remembers, knows_task):
    env = environment("TMaze", 4000)
    cues, meaning = [], env.params["cue_sign"] if knows_task else 1.0

    def act(step, observation, reward):
        cues.append(observation[:, 0])
        cue = cues[0] if remembers else observation[:, 0]
        return np.where(observation[:, 2] == 0, FORWARD, np.where(cue * meaning > 0, NORTH, SOUTH))

    returns = play(env, act)
    expected = yardsticks.tmaze(remembers=remembers, knows_task=knows_task)
    assert abs(returns.mean() - expected) <= 4 * 0.5 / np.sqrt(4000) * (expected < 1)


# Whoever ignores the task


@pytest.mark.parametrize("name", BLIND)
@pytest.mark.parametrize("seed", range(3))
def test_an_agent_that_ignores_the_task_does_not_beat_the_blind(name, seed):
    """The same actions in all rows, whatever their tasks: 10 such agents at a time, each held to the yardstick."""
    env, generator = environment(name, 500), np.random.default_rng(seed)
    for _ in range(10):
        if hasattr(env.single_action_space, "n"):
            actions = generator.integers(env.single_action_space.n, size=env.horizon)
        else:
            steady = generator.normal(0, 1, 2) * np.exp(generator.normal(0, 1))
            actions = (steady * env.single_action_space.high).astype(np.float32)[None].repeat(env.horizon, axis=0)
            actions[generator.integers(3, env.horizon) :] = 0.0
        returns = play(env, lambda step, *_, actions=actions: np.repeat(actions[step][None], 500, axis=0))
        # Ending by luck, see point_blind.
        luck = 1.5 if name == "Navigation2D" else 0.0
        assert returns.mean() < BLIND[name] + luck + 4 * error(returns)


def test_the_table_names_each_family_and_orders_its_agents():
    families = {row.family.split()[0] for row in TABLE}
    assert families >= {"Navigation2D", "PointRobot", "BernoulliBandit", "TabularMDP", "GridNavi", "TMaze"}
    assert all(BLIND[name] < KNOWN[name] for name in BLIND)
