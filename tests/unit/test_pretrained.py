"""The policies that ship with the package must go on loading, acting and adapting as they did when they were made."""

import gymnasium
import numpy as np
import pytest

from ssm_metarl import load_policy, pretrained
from ssm_metarl.cli import main
from ssm_metarl.evaluation.live import Home, live
from ssm_metarl.runtime.metrics import params_sha256

NUM_TASKS = 6
PINNED = {
    "navigation2d": (
        "ssm_metarl/Navigation2D-v0",
        "ssm",
        "ac7c103f484d3f04036eef0694a52cf8ef6492f021be1fe9b5871b7982e30625",
        -25.0,
        25.0,
    ),
    "cartpole": (
        "ssm_metarl/CartPole-v0",
        "mlp",
        "7dd8e23ed3facc8e7dc2e34d949b165f451c8d3c915facbb4e854507e0c0f25c",
        90.0,
        60.0,
    ),
}
"""Name -> environment, core, hash; bounds: the return after one adaptation step, and what that adds."""


def test_there_are_these():
    assert pretrained.names() == sorted(PINNED)


@pytest.mark.parametrize("name", PINNED)
def test_they_load_as_they_were_made(name):
    env_id, core, sha256, *_ = PINNED[name]
    policy = load_policy(f"pretrained:{name}")
    assert params_sha256(policy.policy.to_vector()) == sha256
    assert (policy.config.env.id, policy.config.policy.core, policy.config.seed) == (env_id, core, 0)
    assert sum(file.stat().st_size for file in pretrained.FOLDER.glob(f"{name}.*")) < 50_000


@pytest.mark.parametrize("name", PINNED)
def test_they_adapt_to_tasks_that_they_have_never_seen(name):
    *_, least_after, least_gain = PINNED[name]
    returns = []
    for index in range(NUM_TASKS):
        policy = load_policy(f"pretrained:{name}")
        lived = live(policy, Home.choose(policy, index), 20, lambda _: None)
        returns.append([rollout.mean_return for rollout in lived.rollouts])
    before, after = np.mean(returns, axis=0)
    assert after > least_after and after - before > least_gain


def episode_length(policy, env):
    policy.reset()
    observation, _ = env.reset(seed=0)
    steps, ended = 0, False
    while not ended and steps < 100:
        observation, _, terminated, truncated, _ = env.step(policy.act(observation))
        steps, ended = steps + 1, terminated or truncated
    return steps


def test_an_adapted_policy_is_put_to_work_in_a_plain_environment(tmp_path):
    """As its user would: adapt, save, load elsewhere, act step by step."""
    policy = load_policy("pretrained:cartpole")
    task = {"length": 0.5, "force_sign": -1.0}
    env = gymnasium.make("ssm_metarl/CartPole-v0")
    env.unwrapped.set_task(task)
    home = Home.choose(policy, 0)
    vector = home.family.make_vector(10)
    vector.set_tasks(task)
    rng = np.random.default_rng(0)
    for _ in range(2):
        policy.life.learn(policy.life.play(vector, home.family.horizon, rng))
    adapted = load_policy(policy.save(tmp_path / "adapted.safetensors"))
    assert episode_length(adapted, env) == 100
    assert episode_length(load_policy("pretrained:cartpole"), env) < 50
    env.close()


def test_the_command_of_readme(capsys):
    assert main(["adapt", "pretrained:navigation2d"]) == 0
    assert "before adaptation" in capsys.readouterr().out
