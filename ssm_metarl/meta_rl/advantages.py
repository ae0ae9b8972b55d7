"""Advantages of one task's episodes: linear-feature baseline, generalised advantage estimation, normalisation.

Pure numpy in float64: nothing here is differentiated, and the baseline's normal equations need the digits.

Shape legend: T time steps, B episodes, O observation, F baseline features.
"""

from __future__ import annotations

import numpy as np

from ssm_metarl.config import AdvantageConfig
from ssm_metarl.types import Batch, Rollout

RIDGE = 1e-5
"""Keeps the baseline's normal equations solvable when features repeat each other (constant observations)."""


def baseline_features(observation: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Features ``[o, o^2, t, t^2, t^3, 1]``, t in units of 100 steps, o clipped to 10 (Duan et al. 2016, section 3).

    Args:
        observation: [..., O]. time: [...] steps since the episode began. Returns [..., F].
    """
    clipped = np.clip(observation, -10.0, 10.0).astype(np.float64)
    t = time[..., None] / 100.0
    return np.concatenate([clipped, clipped**2, t, t**2, t**3, np.ones_like(t)], axis=-1)


def returns_to_go(reward_TB: np.ndarray, mask_TB: np.ndarray, discount: float) -> np.ndarray:
    """``G_t = sum_{k >= t} discount^(k - t) r_k`` within each episode, [T, B]."""
    return _discounted_sum(reward_TB.astype(np.float64) * mask_TB, np.full_like(mask_TB, discount, dtype=np.float64))


def fit_baseline(rollout: Rollout, discount: float) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression of the returns on the features, over the rollout itself.

    An episode cut by a foreign time limit is worth ``G_t + discount^(L - t) V(o_L)``: as V is linear in its weights,
    the unknown V(o_L) moves to the left-hand side and one regression still solves it.

    Returns:
        value_TB, and bootstrap_B: V of the last observation where a foreign limit cut, else 0.
    """
    horizon, _ = rollout.mask_TB.shape
    mask_TB = rollout.mask_TB.astype(bool)
    length_B = mask_TB.sum(axis=0)
    time_T1 = np.arange(horizon)[:, None]
    features_TBF = baseline_features(rollout.observation_TBO, np.broadcast_to(time_T1, mask_TB.shape))
    final_BF = baseline_features(rollout.final_observation_BO, length_B) * rollout.foreign_truncation_B[:, None]
    weight_TB = discount ** np.maximum(length_B - time_T1, 0)
    rows = (features_TBF - weight_TB[..., None] * final_BF)[mask_TB]
    targets = returns_to_go(rollout.reward_TB, rollout.mask_TB, discount)[mask_TB]
    coefficients = np.linalg.solve(rows.T @ rows + RIDGE * np.eye(rows.shape[1]), rows.T @ targets)
    return features_TBF @ coefficients, final_BF @ coefficients


def gae(
    reward_TB: np.ndarray,
    value_TB: np.ndarray,
    mask_TB: np.ndarray,
    bootstrap_B: np.ndarray,
    discount: float,
    gae_lambda: float,
) -> np.ndarray:
    """``A_t = sum_k (discount * lambda)^k delta_{t+k}`` with ``delta_t = r_t + discount V_{t+1} - V_t``, [T, B].

    The value after an episode's last step is ``bootstrap_B`` (0 for one that truly ended); outside the mask all is 0.
    Source: Schulman et al. 2016, Eq. 16.
    """
    mask_TB = mask_TB.astype(np.float64)
    following_TB = np.concatenate([mask_TB[1:], np.zeros_like(mask_TB[:1])])
    next_value_TB = np.concatenate([value_TB[1:], np.zeros_like(value_TB[:1])])
    next_value_TB = np.where(following_TB > 0, next_value_TB, bootstrap_B)
    delta_TB = (reward_TB + discount * next_value_TB - value_TB) * mask_TB
    return _discounted_sum(delta_TB, discount * gae_lambda * mask_TB)


def normalise(advantage_TB: np.ndarray, mask_TB: np.ndarray) -> np.ndarray:
    """Zero mean and unit deviation over one task's valid steps; a constant becomes zero. float32 [T, B]."""
    valid = advantage_TB[mask_TB > 0]
    scaled_TB = (advantage_TB - valid.mean()) / (valid.std() + 1e-8)
    return (scaled_TB * mask_TB).astype(np.float32)


def compute_advantages(rollout: Rollout, config: AdvantageConfig) -> np.ndarray:
    """Normalised advantages of one task's rollout, float32 [T, B]."""
    value_TB, bootstrap_B = fit_baseline(rollout, config.discount)
    advantage_TB = gae(rollout.reward_TB, value_TB, rollout.mask_TB, bootstrap_B, config.discount, config.gae_lambda)
    return normalise(advantage_TB, rollout.mask_TB)


def make_batch(rollout: Rollout, config: AdvantageConfig) -> Batch:
    """What a policy-gradient loss reads of a rollout."""
    return Batch(
        input_TBI=rollout.input_TBI,
        action_TBA=rollout.action_TBA,
        dist_TBD=rollout.dist_TBD,
        logp_TB=rollout.logp_TB,
        advantage_TB=compute_advantages(rollout, config),
        mask_TB=rollout.mask_TB,
    )


def _discounted_sum(x_TB: np.ndarray, factor_TB: np.ndarray) -> np.ndarray:
    """``y_t = x_t + factor_t * y_{t+1}``."""
    total_TB = np.empty_like(x_TB)
    running_B = np.zeros_like(x_TB[0])
    for t in reversed(range(len(x_TB))):
        running_B = x_TB[t] + factor_TB[t] * running_B
        total_TB[t] = running_B
    return total_TB
