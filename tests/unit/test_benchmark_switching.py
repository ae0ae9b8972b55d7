"""The building blocks of benchmarks/switching.py are what its tables say, and nothing sees what it should not."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import linear_system
import switching_linear
import switching_policy
from linear_system import LAGS, TEST, TRAIN, sample, scores, windows

from ssm_metarl.config import load_config
from ssm_metarl.core.baselines import MLP
from ssm_metarl.core.ssm import SSM
from ssm_metarl.env_runner.tasks import make_family


def one_task(noise=0.0, seed=3):
    return sample(TEST, seed, 1, noise)[0]


def test_training_and_test_tasks_have_nothing_in_common():
    tasks = [*sample(TRAIN, 0, 3), *sample(TRAIN, 1, 3), *sample(TEST, 0, 3)]
    inputs = [task.input_T for task in tasks]
    assert len({values[0] for values in inputs}) == len(tasks)
    assert not set(np.concatenate([t.matrices[:, 0, 0] for t in tasks[:6]])) & set(tasks[6].matrices[:, 0, 0])
    again = sample(TRAIN, 1, 3)[2]
    assert np.array_equal(again.observation_T, tasks[5].observation_T)


def test_changes_are_as_far_apart_as_promised():
    for task in sample(TEST, 0, 30):
        changes = np.flatnonzero(task.offset_T == 0)
        assert np.array_equal(changes, np.flatnonzero(np.diff(task.regime_T)) + 1) and len(changes) >= 4
        gaps = np.diff([0, *changes, len(task.offset_T)])
        assert gaps.min() >= 30 and gaps[:-1].max() <= 60


def test_offset_0_is_the_first_target_of_the_new_dynamics():
    """Without noise, a fit of one regime is exact up to offset -1 of the next, and wrong from its offset 0 on."""
    task = one_task()
    features_TF, target_T = windows(task)
    [first, *_] = np.flatnonzero(task.offset_T[LAGS:] == 0)
    weights_F, *_ = np.linalg.lstsq(features_TF[:first], target_T[:first], rcond=None)
    error_T = np.abs(features_TF @ weights_F - target_T)
    assert error_T[:first].max() < 1e-9 and error_T[first] > 1e-3


def test_windows_hold_what_was_known_before_the_target():
    task = one_task()
    features_TF, target_T = windows(task)
    t = 17
    expected = [*task.observation_T[t - 2 : t], *task.input_T[t - 2 : t]]
    assert np.array_equal(features_TF[t - LAGS], expected) and target_T[t - LAGS] == task.observation_T[t]


def test_the_oracle_is_exact_without_noise_and_best_with_it():
    task = one_task()
    assert np.abs(linear_system.oracle(task, 0.0) - task.observation_T[LAGS:]).max() < 1e-5
    tasks = sample(TEST, 0, 20)
    error = np.mean([scores(task, linear_system.oracle(task))["all"] for task in tasks])
    noise = np.mean([linear_system.NOISE**2 / task.observation_T[LAGS:].var() for task in tasks])
    assert error == pytest.approx(noise, rel=0.1)  # nobody can predict the noise of the target


def test_recursive_least_squares_equals_the_batch_solution():
    features_TF, target_T = windows(one_task(noise=0.1))
    forgetting = 0.9
    found_T = linear_system.recursive_least_squares(features_TF, target_T, forgetting)
    for t in (0, 1, 5, 60, 200):
        weight_T = forgetting ** np.arange(t - 1, -1, -1)
        weighted = features_TF[:t].T * weight_T
        normal = weighted @ features_TF[:t] + forgetting**t * np.eye(features_TF.shape[1])
        expected = features_TF[t] @ np.linalg.solve(normal, weighted @ target_T[:t])
        assert found_T[t] == pytest.approx(expected, abs=1e-7)


def test_scores_are_errors_over_the_variance_in_their_windows():
    task = one_task()
    target_T = task.observation_T[LAGS:]
    assert scores(task, np.full_like(target_T, target_T.mean()))["all"] == pytest.approx(1, rel=0.5)
    wrong_T = target_T.copy()
    late = task.offset_T[LAGS:] >= 30
    wrong_T[late] += 10.0
    found = scores(task, wrong_T)
    assert found.pop("all") > 1 and set(found.values()) == {0.0}
    wrong_T = target_T + 2.0 * (task.offset_T[LAGS:] == 4)
    found = scores(task, wrong_T)
    assert found["shock 0-4"] == pytest.approx(4 / 5 / target_T.var()) and found["recover 5-19"] == 0


def predictors():
    torch.manual_seed(0)
    mlp, memory = MLP(2 * LAGS, 1, 8), SSM(2, 1, 8)
    nn.init.normal_(mlp.head.weight)
    nn.init.normal_(memory.head.weight)
    return {
        "persistence": linear_system.persistence,
        "arx": lambda task: linear_system.frozen_arx(task, np.ones(2 * LAGS + 1)),
        "rls": lambda task: linear_system.recursive_least_squares(*windows(task)),
        "oracle": linear_system.oracle,
        "memory": lambda task: switching_linear.remember(memory, task),
        "none": lambda task: switching_linear.live(mlp, task, "none")[0],
        "online": lambda task: switching_linear.live(mlp, task, "online")[0],
        "meta": lambda task: switching_linear.live(mlp, task, "meta")[0],
    }


@pytest.mark.parametrize("name", predictors())
def test_nobody_sees_the_future(name):
    """A prediction of time t is the same whatever comes at t and later."""
    task, t = one_task(noise=0.1), 90
    other = one_task(noise=0.1, seed=4)
    changed = replace(
        task,
        observation_T=np.concatenate([task.observation_T[:t], other.observation_T[t:]]),
        input_T=np.concatenate([task.input_T[:t], other.input_T[t:]]),
    )
    predict = predictors()[name]
    ours, theirs = predict(task), predict(changed)
    assert np.array_equal(ours[: t - LAGS + 1], theirs[: t - LAGS + 1])
    assert not np.allclose(ours[t - LAGS + 1 :], theirs[t - LAGS + 1 :])


def test_none_is_the_frozen_model_and_the_others_learn():
    task, model = one_task(noise=0.1), MLP(2 * LAGS, 1, 8)
    features_TF = torch.tensor(windows(task)[0], dtype=torch.float32)
    found = {name: switching_linear.live(model, task, name)[0] for name in switching_linear.STRATEGIES}
    with torch.no_grad():
        assert np.allclose(found["none"], model(features_TF)[:, 0].numpy(), atol=1e-6)
    assert scores(task, found["online"])["all"] < scores(task, found["none"])["all"]


def test_alarms_are_counted_once_per_change():
    task = one_task()
    offset_T = task.offset_T[LAGS:]
    first, second = np.flatnonzero(offset_T == 0)[:2]
    found = switching_linear.count_alarms(task, [5, int(first) + 2, int(first) + 9, int(second)])
    assert found["changes"] == (offset_T == 0).sum() and found["calls"] == len(offset_T)
    assert found["delays"] == [2, 0] and found["false"] == 2


def test_lives_change_to_another_held_out_task():
    config = load_config(switching_policy.CONFIGS / "cartpole.yaml")
    lives = switching_policy.pairs(make_family(config.env), 10)
    assert all(after["force_sign"] == -before["force_sign"] for before, after in lives)
    assert len({task["length"] for life in lives for task in life}) == 20
    lives = switching_policy.pairs(make_family(load_config(switching_policy.CONFIGS / "pendulum.yaml").env), 10)
    assert len({task["m"] for life in lives for task in life}) == 20


def test_a_life_is_the_same_twice_and_begins_alike_for_all_strategies():
    config = load_config(switching_policy.CONFIGS / "cartpole.yaml", {"env.horizon": 10})
    family = make_family(config.env)
    params_P = switching_policy.make_policy(family, config).to_vector()
    [tasks] = switching_policy.pairs(family, 1)
    lives = {
        name: switching_policy.live(family, config, params_P, name, *tasks, 0)[0]
        for name in switching_linear.STRATEGIES
    }
    assert {len(life) for life in lives.values()} == {switching_policy.BEFORE + switching_policy.AFTER}
    assert len({life[0] for life in lives.values()}) == 1
    assert lives["meta"] == switching_policy.live(family, config, params_P, "meta", *tasks, 0)[0]


def test_the_quick_benchmark_makes_its_tables():
    runs = [switching_linear.run_seed(seed, quick=True) for seed in (0, 1)]
    text = switching_linear.tables(json.loads(json.dumps(runs)))
    assert all(f"| {name} |" in text for name in (*switching_linear.REFERENCES, *switching_linear.STRATEGIES))
    assert "meta - none" in text and "false alarms" in text and "nan" not in text
    text = switching_policy.table("cartpole", [switching_policy.run_seed("cartpole", 0, quick=True)])
    assert "| none |" in text and "| **meta - none** |" in text and "nan" not in text
