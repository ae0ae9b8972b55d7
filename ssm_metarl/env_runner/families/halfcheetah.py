"""HalfCheetah that shall run at an unknown velocity, or in an unknown direction.

Sources: Finn et al., "Model-Agnostic Meta-Learning" (2017), section 5.3; the variants' papers and code.
Shape legend: N rows, O = 17 observation (gymnasium's HalfCheetah-v5), A = 6 torques.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ssm_metarl.env_runner.families.mujoco_env import PEARL_SEED, MujocoVectorEnv, torques, unbounded
from ssm_metarl.env_runner.families.native import SingleEnv, Variant
from ssm_metarl.types import Task

CONTROL_COST = 0.05


def pearl_velocities() -> tuple[list[Task], list[Task]]:
    """PEARL's 100 training and 30 test tasks, which its code draws with a fixed seed."""
    drawn = np.random.RandomState(PEARL_SEED).uniform(0.0, 3.0, 130)
    tasks: list[Task] = [{"goal_velocity": velocity} for velocity in drawn.tolist()]
    return tasks[:100], tasks[100:]


class HalfCheetahVectorEnv(MujocoVectorEnv):
    """The robot. Episodes end at the horizon alone; all sources charge 0.05 ||a||², half of what version 5 does.

    MAML and PEARL also show the torso's position (20 numbers); here every variant sees version 5's 17.
    """

    xml = "half_cheetah.xml"
    frame_skip = 5
    reset_noise = 0.1
    normal_velocities = True
    row_observation_space = unbounded(17)
    row_action_space = torques(6)

    def observation(self) -> np.ndarray:
        return self.simulator.state_NS[:, 1:].astype(np.float32)


class HalfCheetahVelVectorEnv(HalfCheetahVectorEnv):
    """Reward ``-|v - goal_velocity| - 0.05 ||a||²``, velocities forward in m/s."""

    parameters: ClassVar[dict[str, float]] = {"goal_velocity": 1.0}
    variants: ClassVar[dict[str, Variant]] = {
        "maml": Variant("MAML (Finn et al. 2017)", 100, {"goal_velocity": {"uniform": (0.0, 2.0)}}),
        "promp": Variant("ProMP (Rothfuss et al. 2019)", 100, {"goal_velocity": {"uniform": (0.0, 3.0)}}),
        "pearl": Variant(
            "PEARL (Rakelly et al. 2019), its 100 training and 30 test tasks",
            200,
            {"goal_velocity": {"uniform": (0.0, 3.0)}},
            task_set=pearl_velocities,
        ),
        "varibad": Variant("VariBAD (Zintgraf et al. 2020)", 200, {"goal_velocity": {"uniform": (0.0, 3.0)}}),
    }

    def reward(self, velocity: np.ndarray, action_NA: np.ndarray) -> np.ndarray:
        return -np.abs(velocity - self.params["goal_velocity"]) - CONTROL_COST * np.vecdot(action_NA, action_NA)


class HalfCheetahDirVectorEnv(HalfCheetahVectorEnv):
    """Reward ``direction * v - 0.05 ||a||²``: 1 is forward, -1 backward. Training and test have the same two tasks."""

    parameters: ClassVar[dict[str, float]] = {"direction": 1.0}
    variants: ClassVar[dict[str, Variant]] = {
        name: Variant(source, horizon, {"direction": {"choice": (-1.0, 1.0)}})
        for name, source, horizon in (
            ("maml", "MAML (Finn et al. 2017)", 100),
            ("promp", "ProMP (Rothfuss et al. 2019)", 100),
            ("pearl", "PEARL (Rakelly et al. 2019)", 200),
            ("varibad", "VariBAD (Zintgraf et al. 2020)", 200),
        )
    }

    def reward(self, velocity: np.ndarray, action_NA: np.ndarray) -> np.ndarray:
        return self.params["direction"] * velocity - CONTROL_COST * np.vecdot(action_NA, action_NA)


class HalfCheetahVelEnv(SingleEnv):
    """One row, for ``gymnasium.make``."""

    vector_class = HalfCheetahVelVectorEnv


class HalfCheetahDirEnv(SingleEnv):
    """One row, for ``gymnasium.make``."""

    vector_class = HalfCheetahDirVectorEnv
