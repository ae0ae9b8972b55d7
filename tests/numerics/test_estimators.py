"""The three estimators on an MDP small enough to enumerate: every trajectory, weighted by its probability.

``python tests/numerics/test_estimators.py`` prints the table of docs/algorithms.md.
"""

import itertools

import pytest
import torch

from ssm_metarl.meta_rl.objectives import surrogate

STATES, ACTIONS, HORIZON, DISCOUNT = 2, 2, 3, 0.9
TRANSITION = torch.tensor([[[0.8, 0.2], [0.3, 0.7]], [[0.5, 0.5], [0.1, 0.9]]], dtype=torch.float64)  # [s, a, s']
REWARD = torch.tensor([[1.0, -0.5], [0.3, 2.0]], dtype=torch.float64)  # [s, a]
START = torch.tensor([0.6, 0.4], dtype=torch.float64)
BASELINE = torch.tensor([0.7, 1.3], dtype=torch.float64)
DOCUMENTED = (0.83, 1.68)
"""Relative errors of the expected Hessians of lvc and naive, as docs/algorithms.md prints them."""
THETA = torch.tensor([0.4, -0.3, 0.2, 0.9], dtype=torch.float64)


def log_policy(theta):
    return torch.log_softmax(theta.reshape(STATES, ACTIONS), dim=-1)


def trajectories():
    steps = itertools.product(range(STATES), range(ACTIONS))
    return [list(trajectory) for trajectory in itertools.product(list(steps), repeat=HORIZON)]


def probability(theta, trajectory):
    logp = log_policy(theta)
    chance = START[trajectory[0][0]]
    for t, (state, action) in enumerate(trajectory):
        chance = chance * logp[state, action].exp()
        if t + 1 < HORIZON:
            chance = chance * TRANSITION[state, action, trajectory[t + 1][0]]
    return chance


def discounted_return(trajectory, start=0):
    return sum(DISCOUNT**t * REWARD[s, a] for t, (s, a) in enumerate(trajectory) if t >= start)


def exact_objective(theta):
    return sum(probability(theta, trajectory) * discounted_return(trajectory) for trajectory in trajectories())


def expected_surrogate(theta, estimator, use_baseline):
    """Expectation of the estimator's objective over trajectories of the policy at THETA (a sum over steps, not their
    mean)."""
    total = torch.zeros((), dtype=torch.float64)
    for trajectory in trajectories():
        weight = probability(THETA, trajectory)
        state, action = (torch.tensor(column) for column in zip(*trajectory, strict=True))
        logp, old = log_policy(theta)[state, action], log_policy(THETA)[state, action]
        advantage = torch.stack([discounted_return(trajectory, t) for t in range(HORIZON)])
        if use_baseline:
            advantage = advantage - torch.tensor([DISCOUNT**t for t in range(HORIZON)]) * BASELINE[state]
        columns = [x.reshape(HORIZON, 1) for x in (logp, old, advantage, torch.ones(HORIZON, dtype=torch.float64))]
        total = total + weight * HORIZON * surrogate(*columns, estimator)
    return total


def derivatives(function):
    theta = THETA.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(theta), theta)
    return gradient, torch.autograd.functional.hessian(function, THETA)


def biases():
    """Norm of the error of each estimator's expected Hessian, relative to the exact one's norm."""
    _, exact = derivatives(exact_objective)
    found = {
        name: derivatives(lambda at, name=name: expected_surrogate(at, name, True))[1]
        for name in ("dice", "lvc", "naive")
    }
    return {name: ((hessian - exact).norm() / exact.norm()).item() for name, hessian in found.items()}


@pytest.mark.parametrize("use_baseline", [False, True])
def test_dice_has_the_exact_gradient_and_hessian(use_baseline):
    gradient, hessian = derivatives(exact_objective)
    found_gradient, found_hessian = derivatives(lambda at: expected_surrogate(at, "dice", use_baseline))
    torch.testing.assert_close(found_gradient, gradient, rtol=0, atol=1e-10)
    torch.testing.assert_close(found_hessian, hessian, rtol=0, atol=1e-10)
    assert gradient.norm() > 0.1 and hessian.norm() > 0.1


@pytest.mark.parametrize("estimator", ["lvc", "naive"])
def test_all_estimators_have_the_exact_gradient(estimator):
    gradient, _ = derivatives(exact_objective)
    found, _ = derivatives(lambda at: expected_surrogate(at, estimator, True))
    torch.testing.assert_close(found, gradient, rtol=0, atol=1e-10)


def test_the_biases_are_as_documented():
    """docs/algorithms.md prints these figures."""
    found = biases()
    assert found["dice"] < 1e-10
    assert 0.0 < found["lvc"] < found["naive"]
    assert (round(found["lvc"], 2), round(found["naive"], 2)) == DOCUMENTED


if __name__ == "__main__":
    for name, bias in biases().items():
        print(f"| `{name}` | {bias:.2f} |")
