"""Humanoid that shall walk in an unknown direction.

Source: Rakelly et al., "Efficient Off-Policy Meta-RL via Probabilistic Context Variables" (2019), and its code.
Shape legend: N rows, O = 348 observation (gymnasium's Humanoid-v5), A = 17 torques, B bodies.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from ssm_metarl.env_runner.families.mujoco_env import PEARL_SEED, MujocoVectorEnv, torques, unbounded
from ssm_metarl.env_runner.families.native import SingleEnv, Variant
from ssm_metarl.types import Task

VELOCITY_WEIGHT = 1.25
CONTROL_COST = 0.1
IMPACT_COST = 5e-7
MAX_IMPACT_COST = 10.0
ALIVE = 5.0
MIN_Z, MAX_Z = 1.0, 2.0
ANY_DIRECTION = {"angle": {"uniform": (0.0, 2 * math.pi)}}


def pearl_directions() -> tuple[list[Task], list[Task]]:
    """100 training and 30 test tasks, as many as in PEARL.

    Its code leaves them unseeded, so that every run has others; here they are always those of the seed 1337.
    """
    drawn = np.random.RandomState(PEARL_SEED).uniform(0.0, 2 * math.pi, 130)
    tasks: list[Task] = [{"angle": angle} for angle in drawn.tolist()]
    return tasks[:100], tasks[100:]


class HumanoidDirVectorEnv(MujocoVectorEnv):
    """Reward ``1.25 v - 0.1 ||a||² - min(5e-7 ||contact forces||², 10) + 5``; over unless 1 <= z <= 2.

    v is the velocity of the centre of mass (m/s) in the direction ``angle`` (radians, 0 is along x). The sources write
    1.25 v as a quarter of the way over the substep's time. Their observations have 376 numbers, of which those of the
    world and of unactuated joints are constant; here every variant sees version 5's 348.
    """

    xml = "humanoid.xml"
    frame_skip = 5
    sensors = ("cinert", "cvel", "qfrc_actuator", "cfrc_ext", "xipos")
    reset_noise = 0.01
    row_observation_space = unbounded(348)
    row_action_space = torques(17, 0.4)
    parameters: ClassVar[dict[str, float]] = {"angle": 0.0}
    variants: ClassVar[dict[str, Variant]] = {
        "pearl": Variant(
            "PEARL (Rakelly et al. 2019), 100 training and 30 test tasks", 200, ANY_DIRECTION, task_set=pearl_directions
        ),
        "promp": Variant("ProMP (Rothfuss et al. 2019)", 100, {"angle": {"choice": (0.0, math.pi)}}),
        "promp_2d": Variant("ProMP (Rothfuss et al. 2019), any direction", 100, ANY_DIRECTION),
        "varibad": Variant("VariBAD (Zintgraf et al. 2020)", 200, ANY_DIRECTION),
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        mass_B = self.simulator.body_mass_B
        self._share_of_mass_B = mass_B / mass_B.sum()

    def refresh(self) -> None:
        self._heading_N2 = np.stack([np.cos(self.params["angle"]), np.sin(self.params["angle"])], axis=1)

    def position(self) -> np.ndarray:
        centres_NB3 = self.simulator.sensors["xipos"].reshape(self.num_envs, -1, 3)
        return self._share_of_mass_B @ centres_NB3[:, :, :2]

    def reward(self, velocity: np.ndarray, action_NA: np.ndarray) -> np.ndarray:
        forces_NL = self.simulator.sensors["cfrc_ext"]
        impact_N = np.minimum(IMPACT_COST * np.vecdot(forces_NL, forces_NL), MAX_IMPACT_COST)
        progress_N = VELOCITY_WEIGHT * np.vecdot(velocity, self._heading_N2)
        return progress_N - CONTROL_COST * np.vecdot(action_NA, action_NA) - impact_N + ALIVE

    def terminated(self) -> np.ndarray:
        height_N = self.simulator.qpos_NQ[:, 2]
        return ~((height_N >= MIN_Z) & (height_N <= MAX_Z))

    def observation(self) -> np.ndarray:
        sensors = self.simulator.sensors
        # Without the world's rows of the bodies' quantities, and without the forces on the free joint.
        parts = (
            self.simulator.state_NS[:, 2:],
            sensors["cinert"][:, 10:],
            sensors["cvel"][:, 6:],
            sensors["qfrc_actuator"][:, 6:],
            sensors["cfrc_ext"][:, 6:],
        )
        return np.concatenate(parts, axis=1, dtype=np.float32, casting="same_kind")


class HumanoidDirEnv(SingleEnv):
    """One row, for ``gymnasium.make``."""

    vector_class = HumanoidDirVectorEnv
