"""A linear system whose dynamics change at times that nobody announces, and what can be had without learning to learn.

    x_t = A_r x_{t-1} + b_r u_{t-1},    o_t = c x_t + noise

A regime r turns the state by an angle in [0.2, 1.2] and shrinks it by 0.95 in each step; its input acts in a direction
of its own. Observed are o_t (variance about 1) and the input u_t, standard normal; c is the same everywhere. Every
change brings a new regime, 30 to 60 steps after the last one. The task is to predict o_t from what was seen before t.

Offsets count from a change: offset 0 is the first target that the new dynamics made, -1 all before the first change.

Shape legend: K tasks, T time steps, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STEPS, SHORTEST, LONGEST = 300, 30, 60
RADIUS, ANGLES, NOISE, GAIN = 0.95, (0.2, 1.2), 0.08, 0.45
LAGS = 2
"""Of the windows that a model without memory reads: of the order of the system."""
FORGETTING, RIDGE = 0.95, 1e-3
WINDOWS = {"shock 0-4": (0, 5), "recover 5-19": (5, 20), "steady 20-29": (20, 30), "all": (0, STEPS)}
TRAIN, TEST = 0, 1
"""Which random stream a task comes from."""


@dataclass(frozen=True)
class Sequence:
    """One task: ``observation_T`` and ``input_T``, float64; ``offset_T`` of each target; the regime behind each."""

    observation_T: np.ndarray
    input_T: np.ndarray
    offset_T: np.ndarray
    regime_T: np.ndarray
    matrices: np.ndarray
    """A of each regime, [R, 2, 2]."""
    directions: np.ndarray
    """b of each regime, [R, 2]."""


def sample(stream: int, seed: int, count: int, noise: float = NOISE) -> list[Sequence]:
    """``count`` tasks: a function of the arguments; different streams and seeds share nothing."""
    streams = np.random.SeedSequence((stream, seed)).spawn(count)
    return [_sample_one(np.random.default_rng(stream), noise) for stream in streams]


def _sample_one(rng: np.random.Generator, noise: float) -> Sequence:
    changes = [int(rng.integers(SHORTEST, LONGEST + 1))]
    while changes[-1] <= STEPS - SHORTEST:
        changes.append(changes[-1] + int(rng.integers(SHORTEST, LONGEST + 1)))
    changes = [t for t in changes if t <= STEPS - SHORTEST]
    regime_T = np.searchsorted(changes, np.arange(STEPS), side="right")
    angle_R, phase_R = rng.uniform(*ANGLES, len(changes) + 1), rng.uniform(0, 2 * np.pi, len(changes) + 1)
    cos_R, sin_R = RADIUS * np.cos(angle_R), RADIUS * np.sin(angle_R)
    matrices = np.stack([np.stack([cos_R, -sin_R], -1), np.stack([sin_R, cos_R], -1)], 1)
    directions = np.stack([np.cos(phase_R), np.sin(phase_R)], -1)
    input_T, state_TS = rng.normal(size=STEPS), np.zeros((STEPS, 2))
    state_TS[0] = rng.normal(size=2) / GAIN
    for t in range(1, STEPS):
        r = regime_T[t]
        state_TS[t] = matrices[r] @ state_TS[t - 1] + directions[r] * input_T[t - 1]
    observation_T = GAIN * state_TS[:, 0] + noise * rng.normal(size=STEPS)
    since_T = np.arange(STEPS) - np.array([0, *changes])[regime_T]
    offset_T = np.where(regime_T > 0, since_T, -1)
    return Sequence(observation_T, input_T, offset_T, regime_T, matrices, directions)


def windows(sequence: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Features [T - LAGS, 2 LAGS] (the last observations, the last inputs, oldest first) and targets [T - LAGS]."""
    length = len(sequence.observation_T) - LAGS
    columns = [signal[lag : lag + length] for signal in _signals(sequence) for lag in range(LAGS)]
    return np.stack(columns, axis=1), sequence.observation_T[LAGS:]


def _signals(sequence: Sequence) -> tuple[np.ndarray, np.ndarray]:
    return sequence.observation_T, sequence.input_T


def persistence(sequence: Sequence) -> np.ndarray:
    """Predicts the last observation. [T - LAGS], as the predictions below."""
    return sequence.observation_T[LAGS - 1 : -1]


def fit_ridge(tasks: list[Sequence]) -> np.ndarray:
    """The linear map from windows to targets that is best over all tasks: weights, and a constant as the last."""
    features, targets = (np.concatenate(parts) for parts in zip(*map(windows, tasks), strict=True))
    features = _with_constant(features)
    return np.linalg.solve(features.T @ features + RIDGE * np.eye(features.shape[1]), features.T @ targets)


def frozen_arx(sequence: Sequence, weights_F: np.ndarray) -> np.ndarray:
    """The predictions of `fit_ridge`'s map."""
    return _with_constant(windows(sequence)[0]) @ weights_F


def recursive_least_squares(
    features_TF: np.ndarray, target_T: np.ndarray, forgetting: float = FORGETTING
) -> np.ndarray:
    """Each target predicted by the map that fits all earlier ones best, a target n steps ago weighing forgetting^n.

    The weights start at zero with a penalty of one (Ljung, "System Identification", 1999, section 11.2).
    """
    weights_F, covariance_FF = np.zeros(features_TF.shape[1]), np.eye(features_TF.shape[1])
    predictions_T = np.empty(len(target_T))
    for t, (feature_F, target) in enumerate(zip(features_TF, target_T, strict=True)):
        predictions_T[t] = feature_F @ weights_F
        direction_F = covariance_FF @ feature_F
        gain_F = direction_F / (forgetting + feature_F @ direction_F)
        weights_F = weights_F + gain_F * (target - predictions_T[t])
        covariance_FF = (covariance_FF - np.outer(gain_F, direction_F)) / forgetting
    return predictions_T


def oracle(sequence: Sequence, noise: float = NOISE) -> np.ndarray:
    """The best prediction of one who knows every regime and when it begins: a Kalman filter."""
    observation_T, input_T = _signals(sequence)
    mean_S, covariance_SS, readout_S = np.zeros(2), np.eye(2) / GAIN**2, np.array([GAIN, 0.0])
    predictions_T = np.empty(len(observation_T))
    for t, r in enumerate(sequence.regime_T):
        if t > 0:
            matrix = sequence.matrices[r]
            mean_S = matrix @ mean_S + sequence.directions[r] * input_T[t - 1]
            covariance_SS = matrix @ covariance_SS @ matrix.T
        predictions_T[t] = readout_S @ mean_S
        direction_S = covariance_SS @ readout_S
        gain_S = direction_S / (readout_S @ direction_S + noise**2 + 1e-12)
        mean_S = mean_S + gain_S * (observation_T[t] - predictions_T[t])
        covariance_SS = covariance_SS - np.outer(gain_S, direction_S)
    return predictions_T[LAGS:]


def scores(sequence: Sequence, prediction_T: np.ndarray) -> dict[str, float]:
    """Mean squared error in each of `WINDOWS`, divided by the variance of the task's targets."""
    target_T, offset_T = sequence.observation_T[LAGS:], sequence.offset_T[LAGS:]
    error_T = (prediction_T - target_T) ** 2 / target_T.var()
    return {
        name: float(error_T[(offset_T >= first) & (offset_T < end)].mean()) for name, (first, end) in WINDOWS.items()
    }


def _with_constant(features_TF: np.ndarray) -> np.ndarray:
    return np.column_stack([features_TF, np.ones(len(features_TF))])
