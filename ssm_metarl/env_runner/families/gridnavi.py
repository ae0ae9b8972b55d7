"""GridNavi: search a small grid for a hidden goal cell, then stay there.

Source: Zintgraf et al., "VariBAD" (2020), section 5.1, and its code. Shape legend: N rows, C cells, O = 2 (x, y).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Discrete

from ssm_metarl.env_runner.families.native import SingleEnv, Variant
from ssm_metarl.env_runner.families.shared import FiniteVectorEnv, ReportsSuccess
from ssm_metarl.env_runner.vector import TaskError

SIDE = 5
NUM_CELLS = SIDE * SIDE
POSITION_C2 = np.stack(np.divmod(np.arange(NUM_CELLS), SIDE), axis=1)
_MOVE_A2 = np.array([[0, 0], [0, 1], [1, 0], [0, -1], [-1, 0]])
NEXT_CA = (np.clip(POSITION_C2[:, None] + _MOVE_A2, 0, SIDE - 1) * [SIDE, 1]).sum(axis=-1)
"""Where each of the actions leads: stay, up (y + 1), right (x + 1), down, left; a wall stops it."""
GOAL_CELLS = tuple(float(cell) for cell in range(NUM_CELLS) if POSITION_C2[cell].max() > 1)
"""The 21 cells 5 x + y that are not in the 2 x 2 corner where an episode begins."""
REWARD_ON_GOAL, REWARD_ELSEWHERE = 1.0, -0.1


class GridNaviVectorEnv(ReportsSuccess, FiniteVectorEnv):
    """Reward 1 on the goal after the move (``info["success"]``), else -0.1; the goal ends nothing.

    The observation is the position, x and y from 0 to 4, not scaled, as in the source. ``goal_cell`` is 5 x + y. An
    episode has 15 steps; for VariBAD's several episodes in a row, here 4, set ``episode_steps`` to 15 and the horizon
    to 60. The source trains and tests on all 21 goals; here 13 are to train, 4 to validate, 4 to test.

    Args:
        args, kwargs: as for `FiniteVectorEnv`, such as ``episode_steps``.
    """

    parameters: ClassVar[dict[str, float]] = {"goal_cell": NUM_CELLS - 1.0}
    variants: ClassVar[dict[str, Variant]] = {"varibad": Variant("VariBAD", 15, {"goal_cell": {"choice": GOAL_CELLS}})}
    row_action_space = Discrete(len(_MOVE_A2))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, observation_CO=POSITION_C2, **kwargs)

    def check_task(self, row: int) -> None:
        cell = self.params["goal_cell"][row]
        if cell not in range(NUM_CELLS):
            raise TaskError(
                f"{self.label}: goal_cell = {cell} must be 5 x + y, a whole number from 0 to {NUM_CELLS - 1}"
            )

    def move(self, cell_N: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cell_N = NEXT_CA[cell_N, actions]
        self.success_N = cell_N == self.params["goal_cell"]
        return cell_N, np.where(self.success_N, REWARD_ON_GOAL, REWARD_ELSEWHERE)


class GridNaviEnv(SingleEnv):
    """One row, for ``gymnasium.make``."""

    vector_class = GridNaviVectorEnv
