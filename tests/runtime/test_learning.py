"""Small runs that must learn. In this process."""

import numpy as np

from ssm_metarl.config import load_config
from ssm_metarl.runtime.driver import MetaTrainer

IN_PROCESS = {"workers.num_workers": 0, "eval.every": 0, "eval.num_steps": 1}


def train(folder, **settings):
    return MetaTrainer(load_config(None, {**IN_PROCESS, "run.dir": str(folder), **settings})).run()


def test_navigation_learns_to_adapt_and_does_not_see_the_goal(tmp_path):
    summary = train(tmp_path, iterations=8, **{"eval.num_tasks": 20})
    assert summary.post > summary.pre + 10
    assert summary.post > -32
    # Nobody can do better than about -38 without knowing the goal: a better "before" would mean that it leaks.
    assert summary.pre < -36


def test_a_discrete_family_learns_to_adapt(tmp_path):
    """The force's sign is hidden from a policy without memory: only adaptation can find it."""
    settings = {
        "env.id": "ssm_metarl/CartPole-v0",
        "env.horizon": 50,
        "policy.core": "mlp",
        "inner.lr": 0.5,
        "outer.lr": 0.01,
        "eval.num_tasks": 20,
    }
    summary = train(tmp_path, iterations=10, **settings)
    assert summary.post > summary.pre + 5


def test_golden_numbers(tmp_path):
    """Behaviour must not change unawares: a change that is meant updates these, and says why in its commit."""
    summary = train(tmp_path, iterations=3, tasks_per_iteration=3, **{"env.episodes_per_task": 4, "eval.num_tasks": 4})
    returns = summary.evaluation.returns["meta"]
    assert np.abs(returns - GOLDEN).max() < 0.05, returns.round(3).tolist()


GOLDEN = [[-106.316, -54.198], [-76.482, -59.170], [-114.126, -59.662], [-104.386, -54.557]]
