import numpy as np
import pytest

from ssm_metarl.config import AdvantageConfig
from ssm_metarl.meta_rl.advantages import compute_advantages, fit_baseline, gae, normalise, returns_to_go
from ssm_metarl.types import Rollout


def make_rollout(reward, mask=None, observation=None, final=None, foreign=None):
    reward = np.asarray(reward, dtype=np.float32)
    horizon, rows = reward.shape
    mask = np.ones_like(reward) if mask is None else np.asarray(mask, dtype=np.float32)
    observation = np.zeros((horizon, rows, 1), np.float32) if observation is None else observation
    return Rollout(
        observation_TBO=observation,
        input_TBI=observation,
        action_TBA=np.zeros((horizon, rows, 1), np.float32),
        dist_TBD=np.zeros((horizon, rows, 2), np.float32),
        logp_TB=np.zeros((horizon, rows), np.float32),
        reward_TB=reward,
        mask_TB=mask,
        final_observation_BO=np.zeros((rows, 1), np.float32) if final is None else final,
        foreign_truncation_B=np.zeros(rows, bool) if foreign is None else np.asarray(foreign),
    )


def test_returns_to_go_by_hand():
    reward = np.array([[1.0, 1.0], [2.0, 5.0], [4.0, 7.0]])
    mask = np.array([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    expected = [[1 + 0.5 * (2 + 0.5 * 4), 1.0], [2 + 0.5 * 4, 0.0], [4.0, 0.0]]
    np.testing.assert_allclose(returns_to_go(reward, mask, 0.5), expected)


def test_gae_by_hand():
    reward, value = np.array([[1.0], [2.0]]), np.array([[0.5], [0.25]])
    delta = [1 + 0.9 * 0.25 - 0.5, 2 + 0.9 * 10.0 - 0.25]
    found = gae(reward, value, np.ones((2, 1)), np.array([10.0]), 0.9, 0.8)
    np.testing.assert_allclose(found[:, 0], [delta[0] + 0.9 * 0.8 * delta[1], delta[1]])


def test_gae_with_lambda_one_is_the_return_minus_the_value():
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=(6, 3)), rng.normal(size=(6, 3))
    mask = (np.arange(6)[:, None] < np.array([6, 4, 1])).astype(float)
    expected = (returns_to_go(reward, mask, 0.95) - value) * mask
    np.testing.assert_allclose(gae(reward, value, mask, np.zeros(3), 0.95, 1.0), expected, atol=1e-12)


def test_an_episode_that_ends_inside_is_bootstrapped_at_its_own_last_step():
    mask = np.array([[1.0], [1.0], [0.0]])
    found = gae(np.zeros((3, 1)), np.zeros((3, 1)), mask, np.array([8.0]), 0.5, 1.0)
    np.testing.assert_allclose(found[:, 0], [0.5 * 0.5 * 8, 0.5 * 8, 0.0])


def test_the_baseline_finds_a_return_that_is_in_its_span():
    rng = np.random.default_rng(1)
    observation = rng.normal(size=(20, 5, 1)).astype(np.float32)
    value = 3.0 * observation[..., 0] - observation[..., 0] ** 2 + 2.0
    reward = value.copy()
    reward[:-1] -= 0.9 * value[1:]
    found, bootstrap = fit_baseline(make_rollout(reward, observation=observation), 0.9)
    np.testing.assert_allclose(found, value, atol=1e-3)
    assert not bootstrap.any()


def test_a_foreign_time_limit_is_bootstrapped_from_the_true_last_observation():
    """With V(o) = o and rewards that make it so, episodes cut anywhere must give the same line, and zero advantages."""
    rng = np.random.default_rng(2)
    horizon, rows, discount = 12, 40, 0.9
    states = rng.normal(size=(horizon + 1, rows))
    length = rng.integers(3, horizon + 1, size=rows)
    mask = (np.arange(horizon)[:, None] < length).astype(np.float32)
    reward = states[:-1] - discount * states[1:]
    final = states[length, np.arange(rows)][:, None].astype(np.float32)
    observation = states[:-1, :, None].astype(np.float32)
    rollout = make_rollout(reward, mask, observation, final, foreign=np.ones(rows, bool))
    value, bootstrap = fit_baseline(rollout, discount)
    np.testing.assert_allclose(bootstrap, final[:, 0], atol=5e-2)
    advantage = gae(rollout.reward_TB, value, mask, bootstrap, discount, 1.0)
    assert np.abs(advantage).max() < 5e-2
    ignoring = make_rollout(reward, mask, observation, final)
    value, bootstrap = fit_baseline(ignoring, discount)
    assert np.abs(gae(reward, value, mask, bootstrap, discount, 1.0)).max() > 0.5


def test_normalise_uses_valid_steps_only():
    advantage, mask = np.array([[1.0, 100.0], [3.0, 5.0]]), np.array([[1.0, 0.0], [1.0, 1.0]])
    found = normalise(advantage, mask)
    valid = found[mask > 0]
    assert found[0, 1] == 0.0 and found.dtype == np.float32
    assert valid.mean() == pytest.approx(0, abs=1e-6) and valid.std() == pytest.approx(1, abs=1e-6)


def test_degenerate_rollouts_stay_finite():
    for reward, mask in (
        (np.zeros((1, 1)), None),
        (np.full((3, 2), 7.0), None),
        (np.zeros((4, 2)), [[1, 1], [0, 1], [0, 0], [0, 0]]),
    ):
        found = compute_advantages(make_rollout(reward, mask), AdvantageConfig())
        assert np.isfinite(found).all()
