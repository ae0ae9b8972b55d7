"""Normalisation: moments and their merges, what the policy reads, and that it goes wherever the parameters go."""

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ssm_metarl.config import load_config
from ssm_metarl.deployment import export, load_policy
from ssm_metarl.env_runner.normalizer import CLIP, Normalizer, gather
from ssm_metarl.env_runner.rollout import collect
from ssm_metarl.env_runner.tasks import make_family
from ssm_metarl.runtime.checkpoint import CheckpointError
from ssm_metarl.runtime.driver import MetaTrainer
from ssm_metarl.runtime.worker import TaskWorker, make_policy
from ssm_metarl.types import Moments, Statistics, Stream, TaskSpec

ON = {"env.normalize_observations": True, "env.normalize_rewards": True}
SMALL = {
    "env.id": "ssm_metarl/Pendulum-v0",
    "env.horizon": 12,
    "env.episodes_per_task": 3,
    "tasks_per_iteration": 3,
    "iterations": 3,
    "eval.num_tasks": 2,
    "eval.every": 2,
    "checkpoint.every": 1,
    "workers.num_workers": 0,
    "policy.inputs": ["observation", "previous_reward"],
    "policy.hidden_dim": 8,
    **ON,
}


def config(**overrides):
    return load_config(None, {**SMALL, **overrides})


def trainer(tmp_path, name="run", **overrides):
    return MetaTrainer(config(**{"run.dir": str(tmp_path), "run.name": name}, **overrides))


pieces = st.lists(
    arrays(np.float64, st.tuples(st.integers(0, 6), st.just(2)), elements=st.floats(-1e3, 1e3)), max_size=5
)


@given(pieces=pieces)
def test_merged_moments_are_those_of_all(pieces):
    merged = Moments(0, np.zeros(2), np.zeros(2))
    for piece in pieces:
        merged = merged.merge(Moments.of(piece))
    everything = np.concatenate([np.zeros((0, 2)), *pieces])
    assert merged.count == len(everything)
    if len(everything):
        np.testing.assert_allclose(merged.mean_X, everything.mean(axis=0), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(merged.variance_X, everything.var(axis=0), rtol=1e-7, atol=1e-6)


def test_observations_get_mean_0_and_deviation_1_and_are_cut_off():
    seen = np.random.default_rng(0).normal([3.0, -50.0, 7.0], [0.1, 20.0, 0.0], (10_000, 3))
    statistics = Statistics(Moments.of(seen), Moments.of(np.zeros((2, 1))))
    scaled = Normalizer(config(), statistics).observation(seen.astype(np.float32))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-2)
    np.testing.assert_allclose(scaled[:, :2].std(axis=0), 1, atol=1e-2)
    assert np.abs(scaled[:, 2]).max() < 0.1, "what never changed is not blown up"
    far = Normalizer(config(), statistics).observation(np.float32([[1e6, -1e6, 7.0]]))
    assert far.tolist()[0][:2] == [CLIP, -CLIP]


def test_rewards_are_divided_by_the_deviation_of_discounted_returns():
    statistics = Statistics(Moments.of(np.zeros((2, 3))), Moments.of(np.array([[-4.0], [4.0]])))
    rewards = np.float32([2.0, -8.0, 1e9])
    np.testing.assert_allclose(Normalizer(config(), statistics).reward(rewards), [0.5, -2.0, CLIP], rtol=1e-5)
    for silent in (Normalizer(config(), None), Normalizer(config(**{"env.normalize_rewards": False}), statistics)):
        assert silent.reward(rewards) is rewards


def rollout(settings, statistics, params_P=None):
    family = make_family(settings.env)
    vector = family.make_vector(3)
    vector.set_tasks(family.tasks("test", 3))
    policy, normalizer = make_policy(family, settings), Normalizer(settings, statistics)
    params = None if params_P is None else policy.from_vector(params_P)
    return collect(
        vector, policy.fold(params), family.horizon, settings.policy.inputs, np.random.default_rng(0), normalizer
    )


def test_a_rollout_keeps_what_happened_and_gives_the_policy_what_is_normalised():
    plain = rollout(config(), None)
    np.testing.assert_array_equal(plain.input_TBI[..., :3], plain.observation_TBO)
    statistics = gather([plain], config())
    seen = plain.observation_TBO[plain.mask_TB > 0]
    assert statistics.observation.count == seen.shape[0] == 36
    np.testing.assert_allclose(statistics.observation.mean_X, seen.mean(axis=0), rtol=1e-5)
    discounted = np.zeros((12, 3))
    for t in range(12):
        discounted[t] = plain.reward_TB[t] + 0.99 * (discounted[t - 1] if t else 0)
    np.testing.assert_allclose(statistics.discounted_return.variance_X[0], discounted.var(), rtol=1e-9)
    scaled = rollout(config(), statistics)
    normalizer = Normalizer(config(), statistics)
    np.testing.assert_array_equal(scaled.observation_TBO[0], plain.observation_TBO[0])
    np.testing.assert_array_equal(scaled.input_TBI[..., :3], normalizer.observation(scaled.observation_TBO))
    np.testing.assert_array_equal(scaled.input_TBI[1:, :, 3], normalizer.reward(scaled.reward_TB[:-1]))
    assert (scaled.input_TBI[0, :, 3] == 0).all()


def test_nothing_is_gathered_where_nothing_is_normalised():
    off = config(**dict.fromkeys(ON, False))
    assert gather([rollout(off, None)], off) is None


def test_the_driver_merges_in_task_order_after_the_iteration(tmp_path):
    one = trainer(tmp_path)
    with one.at_work() as pool:
        assert one.shared.statistics is None
        specs, shared = one._training_specs(), one.shared
        one.step(pool)
    worker = TaskWorker(one.config)
    expected = None
    for spec in specs:
        seen = worker.adapt_and_collect(shared, spec)[0].statistics
        expected = seen if expected is None else expected.merge(seen)
    assert one.statistics.observation.count == expected.observation.count == 3 * 2 * 3 * 12
    np.testing.assert_array_equal(one.statistics.observation.squares_X, expected.observation.squares_X)
    np.testing.assert_array_equal(one.statistics.discounted_return.mean_X, expected.discounted_return.mean_X)


def test_a_resumed_run_ends_as_an_undisturbed_one(tmp_path):
    whole = trainer(tmp_path, "whole").run()
    trainer(tmp_path, "parts", iterations=1).run()
    parts = trainer(tmp_path, "parts")
    assert parts.iteration == 1 and parts.statistics.observation.count > 0
    summary = parts.run()
    assert (summary.params_sha256, summary.post) == (whole.params_sha256, whole.post)
    off = trainer(tmp_path, "off", **dict.fromkeys(ON, False)).run()
    assert off.params_sha256 != whole.params_sha256


def test_a_deployed_policy_reads_what_it_read_in_training(tmp_path):
    one = trainer(tmp_path)
    one.run()
    for source in (one.folder, export(one.folder, tmp_path / "p.safetensors")):
        policy = load_policy(source)
        spec = TaskSpec(0, Stream.EVALUATE, 0, 0, one.family.tasks("test", 1)[0], 0)
        worker = TaskWorker(one.config)
        expected = worker.evaluate(one.shared, spec).returns
        assert worker.evaluate(policy.shared, spec).returns == expected
        seen = rollout(one.config, one.statistics, one.params_P)
        policy.reset()
        for t in range(12):
            reward_B = seen.reward_TB[t - 1] if t else None
            action = policy.act(seen.observation_TBO[t], reward_B)
            expected_BA = np.clip(2 * seen.dist_TBD[t, :, :1], -2, 2)
            np.testing.assert_allclose(action, expected_BA, atol=1e-5)


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda s: s["observation.mean_X"].pop(), "statistics.observation"),
        (lambda s: s.pop("discounted_return.count"), "discounted_return.count"),
        (lambda s: s.update({"observation.squares_X": [float("nan")] * 3}), "not finite numbers of 3"),
        (lambda s: s.update(more=[1.0]), "statistics are of observation, discounted_return, not of"),
    ],
)
def test_damaged_statistics_are_refused(damage, words, tmp_path):
    one = trainer(tmp_path, iterations=1)
    one.run()
    path = export(one.folder, tmp_path / "p.safetensors")
    description = yaml.safe_load(path.with_suffix(".yaml").read_text())
    damage(description["statistics"])
    path.with_suffix(".yaml").write_text(yaml.safe_dump(description))
    with pytest.raises(CheckpointError, match=words):
        load_policy(path)
