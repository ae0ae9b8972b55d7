"""Point robots: a point on the plane and a hidden goal, felt through a dense or a sparse reward.

Sources: Rakelly et al., "Efficient Off-Policy Meta-RL via Probabilistic Context Variables" (PEARL, 2019), and Zintgraf
et al., "VariBAD" (2020), with their code. Shape legend: N rows, S = O = A = 2 (x, y), G goals.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from gymnasium.spaces import Box

from ssm_metarl.env_runner.families.native import NumpyVectorEnv, SingleEnv, Variant
from ssm_metarl.env_runner.families.shared import ReportsSuccess
from ssm_metarl.types import Task

MAX_STEP = 0.1
GOAL_RADIUS = 0.2
PEARL_SEED, PEARL_TASKS, PEARL_TRAINING = 1337, 100, 80


def _half_circle(rng: np.random.Generator) -> Task:
    angle = rng.uniform(0.0, np.pi)
    return {"goal_x": float(np.cos(angle)), "goal_y": float(np.sin(angle))}


def _split(goal_G2: np.ndarray) -> tuple[list[Task], list[Task]]:
    tasks: list[Task] = [{"goal_x": x, "goal_y": y} for x, y in goal_G2.tolist()]
    return tasks[:PEARL_TRAINING], tasks[PEARL_TRAINING:]


def _pearl_square() -> tuple[list[Task], list[Task]]:
    return _split(np.random.RandomState(PEARL_SEED).uniform(-1.0, 1.0, (PEARL_TASKS, 2)))


def _pearl_half_circle() -> tuple[list[Task], list[Task]]:
    angle_G = np.linspace(0.0, np.pi, PEARL_TASKS)
    goal_G2 = np.stack([np.cos(angle_G), np.sin(angle_G)], axis=1)
    np.random.RandomState(PEARL_SEED).shuffle(goal_G2)
    return _split(goal_G2)


class PointRobotVectorEnv(NumpyVectorEnv):
    """``s += move``, at most 0.1 an axis; reward ``-||s - g||`` after the move; no episode ends early.

    The observation is the position alone. Variants:

    - ``pearl``: starts anywhere in the square [-1, 1]², 20 steps, actions are moves. The source's fixed goals in that
      square (seed 1337), 80 to train and 20 to test. The source clips actions in a wrapper, here it is the dynamics.
    - ``varibad``: starts at 0, 100 steps, goals on the upper half of the unit circle, actions in [-1, 1] are tenths.
    """

    parameters: ClassVar[dict[str, float]] = {"goal_x": 0.0, "goal_y": 1.0}
    variants: ClassVar[dict[str, Variant]] = {
        "pearl": Variant(
            "PEARL, point-robot",
            20,
            {"goal_x": {"uniform": (-1.0, 1.0)}, "goal_y": {"uniform": (-1.0, 1.0)}},
            task_set=_pearl_square,
            settings={"max_action": 0.1, "start_half_width": 1.0},
        ),
        "varibad": Variant(
            "VariBAD, PointEnv", 100, draw=_half_circle, settings={"max_action": 1.0, "start_half_width": 0.0}
        ),
    }
    row_observation_space = Box(-np.inf, np.inf, (2,), np.float32)

    @property
    def row_action_space(self) -> Box:
        """The variant's."""
        bound = self.variant.settings["max_action"]
        return Box(-bound, bound, (2,), np.float32)

    def refresh(self) -> None:
        self._goal_SN = np.stack([self.params["goal_x"], self.params["goal_y"]])
        self._step_per_action = MAX_STEP / self.variant.settings["max_action"]

    def initial_state(self, rng: np.random.Generator, count: int) -> np.ndarray:
        half_width = self.variant.settings["start_half_width"]
        return rng.uniform(-half_width, half_width, (2, count)) if half_width else np.zeros((2, count))

    def dynamics(self, state_SN: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        move_SN = self._step_per_action * actions.T.astype(np.float64)
        state_SN = state_SN + np.minimum(np.maximum(move_SN, -MAX_STEP), MAX_STEP)
        offset_SN = state_SN - self._goal_SN
        return state_SN, -np.hypot(offset_SN[0], offset_SN[1]), np.zeros(self.num_envs, bool)

    def observation(self, state_SN: np.ndarray) -> np.ndarray:
        return state_SN.T.astype(np.float32, order="C")


class SparsePointRobotVectorEnv(ReportsSuccess, PointRobotVectorEnv):
    """Starts at 0; reward ``1 - ||s - g||`` within 0.2 of the goal (``info["success"]``), else 0.

    Goals lie on the upper half of the unit circle. ``pearl``: 100 of them, evenly spaced and shuffled (seed 1337), 80
    to train and 20 to test, 20 steps; the source trains on the dense reward and only evaluates on the sparse one, here
    it is sparse always. ``varibad``: any of them, 100 steps.
    """

    variants: ClassVar[dict[str, Variant]] = {
        "pearl": Variant(
            "PEARL, sparse-point-robot",
            20,
            draw=_half_circle,
            task_set=_pearl_half_circle,
            settings={"max_action": 0.1, "start_half_width": 0.0},
        ),
        "varibad": Variant(
            "VariBAD, SparsePointEnv", 100, draw=_half_circle, settings={"max_action": 1.0, "start_half_width": 0.0}
        ),
    }

    def dynamics(self, state_SN: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        state_SN, reward_N, terminated_N = super().dynamics(state_SN, actions)
        self.success_N = reward_N >= -GOAL_RADIUS
        return state_SN, np.where(self.success_N, 1.0 + reward_N, 0.0), terminated_N


class PointRobotEnv(SingleEnv):
    """One row, for ``gymnasium.make``."""

    vector_class = PointRobotVectorEnv


class SparsePointRobotEnv(SingleEnv):
    """One row, for ``gymnasium.make``."""

    vector_class = SparsePointRobotVectorEnv
