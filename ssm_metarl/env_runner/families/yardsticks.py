"""What is the best return? For the families written here: with the task known, and without.

Three kinds of agent: one that knows the task; one that learns (does not know the task, but sees its rewards and
remembers); one that is blind (knows no task and sees no reward: the best that a policy without memory or reward inputs
does before it has adapted). "Exact" is the expectation of the best such agent, over the family's tasks, episodes and
noise (goals on the plane: a sum over a fine grid); "upper bound" is a number that no such agent exceeds. All are
returns of one episode, undiscounted.

Shape legend: N rows, G goals, H steps, C cells, A actions, K arms.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ssm_metarl.env_runner.families.gridnavi import GOAL_CELLS, POSITION_C2, REWARD_ELSEWHERE, REWARD_ON_GOAL
from ssm_metarl.env_runner.families.point_robot import GOAL_RADIUS, MAX_STEP
from ssm_metarl.env_runner.families.tabular import TabularMDPVectorEnv
from ssm_metarl.types import Task

# Bandits


def bandit_known(num_arms: int, pulls: int) -> float:
    """Exact, for both bandits: the best of K arms uniform on [0, 1] has the mean K / (K + 1); pull it every time."""
    return pulls * num_arms / (num_arms + 1)


def bandit_blind(pulls: int) -> float:
    """Exact, for both bandits: without rewards every arm is as good as the mean of them all, 0.5."""
    return 0.5 * pulls


def bernoulli_learner(num_arms: int, pulls: int) -> float:
    """Exact: the Bayes-optimal learner, by dynamic programming over the successes and failures of each arm.

    The number of states grows like ``pulls ** (2 num_arms)``: for at most 2 arms and 30 pulls, or 3 and 12.
    """

    @functools.cache
    def value(counts: tuple[tuple[int, int], ...], left: int) -> float:
        if left == 0:
            return 0.0
        best = 0.0
        # Arms with equal counts are worth the same.
        for arm, (successes, failures) in enumerate(counts):
            if arm and counts[arm - 1] == counts[arm]:
                continue
            chance = (successes + 1) / (successes + failures + 2)
            others = counts[:arm] + counts[arm + 1 :]
            after_success = value(tuple(sorted((*others, (successes + 1, failures)))), left - 1)
            after_failure = value(tuple(sorted((*others, (successes, failures + 1)))), left - 1)
            best = max(best, chance * (1 + after_success) + (1 - chance) * after_failure)
        return best

    return value(((0, 0),) * num_arms, pulls)


def bernoulli_learner_bound(num_arms: int, pulls: int) -> float:
    """Upper bound on the Bayes-optimal learner: the relaxation that lets it pull several arms at once (Whittle 1988).

    With a price on every pull the arms are separate problems of optimal stopping; the bound is the least over prices of
    what they earn together, plus the price of ``pulls`` pulls. Nor does anyone beat `bandit_known`.
    """

    def bound(price: float) -> float:
        return price * pulls + num_arms * _stopping_value(price, pulls)

    return min(bound(_minimise(bound, 0.0, 1.0)), bandit_known(num_arms, pulls))


def bernoulli_thompson(num_arms: int, pulls: int, trials: int = 4000) -> tuple[float, float]:
    """What a simple learner reaches, and its standard error: optimistic Thompson sampling (May et al. 2012), simulated.

    It draws each arm's probability from what is known of it, but never less than the mean, and pulls the greatest.
    """
    rng = np.random.default_rng(0)
    probability_NK, row_N = rng.random((trials, num_arms)), np.arange(trials)
    counts_2NK, return_N = np.ones((2, trials, num_arms)), np.zeros(trials)
    for _ in range(pulls):
        mean_NK = counts_2NK[0] / counts_2NK.sum(axis=0)
        arm_N = np.maximum(rng.beta(*counts_2NK), mean_NK).argmax(axis=1)
        reward_N = (rng.random(trials) < probability_NK[row_N, arm_N]).astype(np.int64)
        counts_2NK[1 - reward_N, row_N, arm_N] += 1
        return_N += reward_N
    return float(return_N.mean()), float(return_N.std(ddof=1) / np.sqrt(trials))


def _stopping_value(price: float, pulls: int) -> float:
    """The most that one arm with an unknown probability earns if each pull costs ``price``, and one may stop."""
    value_S = np.zeros(pulls + 1)  # by successes so far
    for pulled in range(pulls - 1, -1, -1):
        chance_S = (np.arange(pulled + 1) + 1) / (pulled + 2)
        after_S = chance_S * (1 + value_S[1:]) + (1 - chance_S) * value_S[:-1]
        value_S = np.maximum(after_S - price, 0.0)
    return float(value_S[0])


# Tabular MDP


def tabular_plan(task: Task, num_states: int, num_actions: int, steps: int) -> tuple[float, np.ndarray]:
    """Exact for a known task: its best return from state 0, and the actions int [H, C], by backward induction."""
    mean_CA = np.reshape(task["mean_reward"], (num_states, num_actions))
    transition_CAC = np.reshape(task["transition"], (num_states, num_actions, num_states))
    value_C, action_HC = np.zeros(num_states), np.empty((steps, num_states), np.int64)
    for step in range(steps - 1, -1, -1):
        gain_CA = mean_CA + transition_CAC @ value_C
        action_HC[step], value_C = gain_CA.argmax(axis=1), gain_CA.max(axis=1)
    return float(value_C[0]), action_HC


def tabular_known(num_states: int, num_actions: int, steps: int, num_tasks: int = 1000) -> tuple[float, float]:
    """The mean of `tabular_plan` over tasks drawn from the family, and its standard error."""
    env, rng = TabularMDPVectorEnv(num_states=num_states, num_actions=num_actions), np.random.default_rng(0)
    values = []
    for _ in range(num_tasks):
        task = env.variant.draw(rng) | {"mean_reward": rng.normal(1.0, 1.0, num_states * num_actions)}
        values.append(tabular_plan(task, num_states, num_actions, steps)[0])
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(num_tasks))


def tabular_blind(steps: int) -> float:
    """Exact: mean rewards are drawn apart from transitions, so without rewards each action is expected to pay 1."""
    return 1.0 * steps


# GridNavi


def gridnavi_known(goal_cell: float, steps: int) -> float:
    """Exact for a known goal: the shortest way, then stay."""
    return _gridnavi_return(_distance(goal_cell), steps)


def gridnavi_known_mean(steps: int, goals: Sequence[float] = GOAL_CELLS) -> float:
    """Exact: the mean of `gridnavi_known` over goals, of which one split has a part only."""
    return float(np.mean([gridnavi_known(cell, steps) for cell in goals]))


def gridnavi_learner(steps: int, goals: Sequence[float] = GOAL_CELLS) -> float:
    """The best search of one episode, which stays where it finds the goal: exact for all 21 goals, else an upper bound.

    No way sees more than one new cell a step, nor a cell before its distance; `SEARCH_WAY` sees a new goal cell at each
    of the steps 2 to 22. With fewer goals the agent knows which they are.
    """
    step, returns = 0, []
    for distance in sorted(_distance(cell) for cell in goals):
        step = max(step + 1, distance)
        returns.append(_gridnavi_return(step, steps))
    return float(np.mean(returns))


def gridnavi_blind(steps: int, goals: Sequence[float] = GOAL_CELLS) -> float:
    """Exact: without rewards no step is on the goal with a chance above 1 / G, nor earlier than the nearest allows."""
    on_goal = max(steps + 1 - min(_distance(cell) for cell in goals), 0) / len(goals)
    return steps * REWARD_ELSEWHERE + on_goal * (REWARD_ON_GOAL - REWARD_ELSEWHERE)


def _distance(cell: float) -> int:
    return int(POSITION_C2[int(cell)].sum())


def _gridnavi_return(arrival: int, steps: int) -> float:
    on_goal = max(steps - arrival + 1, 0)
    return on_goal * REWARD_ON_GOAL + (steps - on_goal) * REWARD_ELSEWHERE


SEARCH_WAY = (2, 2, 1, 2, 3, 2, 1, 1, 4, 4, 4, 4, 1, 2, 2, 2, 2, 1, 4, 4, 4, 4)
"""Actions of GridNavi that see all goal cells one after the other."""

# T-maze


def tmaze(*, remembers: bool, knows_task: bool) -> float:
    """Exact: who remembers the cue and knows its meaning is always right, anyone else in half of all episodes."""
    return 1.0 if remembers and knows_task else 0.5


# Points on the plane


def point_known(offset_N2: np.ndarray, steps: int, radius: float | None = None) -> np.ndarray:
    """Exact for a known goal: the return [N] of the straight walk, from where the goal is ``offset`` away.

    For Navigation2D, and for the point robots with a dense reward or, with a ``radius``, a sparse one. Each axis moves
    at most 0.1 a step, so walking both down at once makes every distance on the way as small as it can be. That
    Navigation2D ends at the goal takes nothing away, since the reward there is 0.
    """
    return_N = np.zeros(len(offset_N2))
    for step in range(1, steps + 1):
        left_N2 = np.maximum(np.abs(offset_N2) - MAX_STEP * step, 0.0)
        distance_N = np.hypot(left_N2[:, 0], left_N2[:, 1])
        return_N += -distance_N if radius is None else (distance_N <= radius) * (1 - distance_N)
    return return_N


def point_blind(goal_G2: np.ndarray, start_N2: np.ndarray, steps: int) -> float:
    """Exact for a dense reward without an end, if goals lie symmetrically to the y axis, and starts on it or goals also
    symmetrically to the x axis: walk to the point of the y axis with the least mean distance, and stay.

    On Navigation2D this is the best fixed point. A blind search can end an episode early by luck, as each step tries
    at most 0.0004 of the square; that adds less than 1.5 to the return of 100 steps.
    """

    def cost(point_2: np.ndarray) -> float:
        return float(np.hypot(goal_G2[:, 0] - point_2[0], goal_G2[:, 1] - point_2[1]).mean())

    middle_2 = np.array([0.0, _minimise(lambda y: cost(np.array([0.0, y])), -1.0, 1.0)])
    total, offset_N2 = 0.0, start_N2 - middle_2
    for step in range(1, steps + 1):
        left_N2 = np.sign(offset_N2) * np.maximum(np.abs(offset_N2) - MAX_STEP * step, 0.0)
        points, counts = np.unique(left_N2.round(12), axis=0, return_counts=True)
        total += sum(cost(middle_2 + point) * count for point, count in zip(points, counts, strict=True)) / len(
            start_N2
        )
    return -total


def sparse_point_blind(steps: int) -> float:
    """Exact for the sparse point robot: walk to where the chance of being near a goal, times what it pays, is greatest.

    Within the half circle that depends on the distance from 0 alone, which grows quickest on the diagonal.
    """
    angle_G = (np.arange(4000) + 0.5) / 4000 * np.pi
    goal_G2 = np.stack([np.cos(angle_G), np.sin(angle_G)], axis=1)
    distance_D = np.linspace(0.0, 1.2, 601)
    gain_D = np.empty_like(distance_D)
    for index, distance in enumerate(distance_D):
        away_G = np.hypot(*(goal_G2 - distance * np.sqrt(0.5)).T)
        gain_D[index] = np.mean((away_G <= GOAL_RADIUS) * (1 - away_G))
    best_D = np.maximum.accumulate(gain_D)
    reach_H = np.sqrt(2) * MAX_STEP * np.arange(1, steps + 1)
    return float(best_D[np.searchsorted(distance_D, reach_H + 1e-9, side="right") - 1].sum())


def square(half_width: float, side: int) -> np.ndarray:
    """``side²`` points spread evenly over a square around 0, [G, 2]."""
    axis = ((np.arange(side) + 0.5) / side * 2 - 1) * half_width
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)


def half_circle(count: int) -> np.ndarray:
    """Points spread evenly over the upper half of the unit circle, [G, 2]."""
    angle_G = (np.arange(count) + 0.5) / count * np.pi
    return np.stack([np.cos(angle_G), np.sin(angle_G)], axis=1)


def _minimise(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a convex function is least, by golden section."""
    ratio = (np.sqrt(5.0) - 1) / 2
    for _ in range(45):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if function(left) < function(right) else (left, high)
    return (low + high) / 2


# All of them


@dataclass(frozen=True)
class Yardstick:
    """One number: which agent of a family (its default variant, or the one named) can have which return at best."""

    family: str
    agent: str
    value: float
    kind: str
    """``exact``, ``upper bound``, ``best fixed point``, or simulated: ``estimate`` and ``reached``."""


def table() -> list[Yardstick]:
    """The yardsticks of all families here as they are by default, over the distribution of their tasks."""
    known, learner, blind = "knows the task", "learns", "blind"
    starts, goals = square(1.0, 20), square(1.0, 60)
    pearl_offsets = (starts[:, None] - goals).reshape(-1, 2)
    arc, origin = half_circle(1000), np.zeros((1, 2))
    mdp, mdp_error = tabular_known(10, 5, 10)
    thompson, thompson_error = bernoulli_thompson(10, 100)
    rows = [
        ("Navigation2D", known, point_known(square(0.5, 200), 100).mean(), "exact"),
        ("Navigation2D", blind, point_blind(square(0.5, 200), origin, 100), "best fixed point"),
        ("PointRobot pearl", known, point_known(pearl_offsets, 20).mean(), "exact"),
        ("PointRobot pearl", blind, point_blind(goals, starts, 20), "exact"),
        ("PointRobot varibad", known, point_known(arc, 100).mean(), "exact"),
        ("PointRobot varibad", blind, point_blind(arc, origin, 100), "exact"),
        ("SparsePointRobot pearl", known, point_known(arc, 20, GOAL_RADIUS).mean(), "exact"),
        ("SparsePointRobot pearl", blind, sparse_point_blind(20), "exact"),
        ("SparsePointRobot varibad", known, point_known(arc, 100, GOAL_RADIUS).mean(), "exact"),
        ("SparsePointRobot varibad", blind, sparse_point_blind(100), "exact"),
        ("BernoulliBandit", known, bandit_known(10, 100), "exact"),
        ("BernoulliBandit", learner, bernoulli_learner_bound(10, 100), "upper bound"),
        ("BernoulliBandit", f"{learner} (Thompson)", thompson, f"reached (standard error {thompson_error:.2f})"),
        ("BernoulliBandit", blind, bandit_blind(100), "exact"),
        ("GaussianBandit", known, bandit_known(10, 100), "exact"),
        ("GaussianBandit", blind, bandit_blind(100), "exact"),
        ("TabularMDP", known, mdp, f"estimate (standard error {mdp_error:.2f})"),
        ("TabularMDP", blind, tabular_blind(10), "exact"),
        ("GridNavi", known, gridnavi_known_mean(15), "exact"),
        ("GridNavi", learner, gridnavi_learner(15), "exact"),
        ("GridNavi", blind, gridnavi_blind(15), "exact"),
        ("TMaze", f"{known} and remembers the cue", tmaze(remembers=True, knows_task=True), "exact"),
        ("TMaze", f"{known} and forgets the cue", tmaze(remembers=False, knows_task=True), "exact"),
        ("TMaze", "remembers the cue", tmaze(remembers=True, knows_task=False), "exact"),
    ]
    return [Yardstick(family, agent, float(value), kind) for family, agent, value, kind in rows]
