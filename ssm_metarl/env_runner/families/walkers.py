"""Hopper and Walker2d, with bodies that differ between tasks, or with an unknown velocity to walk at.

Sources: the rand_param_envs of ProMP (Rothfuss et al. 2019), PEARL (Rakelly et al. 2019) and VariBAD (Zintgraf et al.
2020); ProMP's Walker2DRandVel.
Shape legend: N rows, O observation (gymnasium's Hopper-v5: 11, Walker2d-v5: 17), A torques (3, 6).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from ssm_metarl.env_runner.distributions import Value
from ssm_metarl.env_runner.families.mujoco_env import PEARL_SEED, MujocoVectorEnv, torques, unbounded
from ssm_metarl.env_runner.families.native import SingleEnv, Variant
from ssm_metarl.types import Task

CONTROL_COST = 0.001
MAX_SEEN_VELOCITY = 10.0
LOG_SCALE_LIMIT = 3.0
# In the order in which rand_param_envs draws them: model field -> base of the power.
BASES = {"body_mass": 1.5, "body_inertia": 1.5, "dof_damping": 1.3, "geom_friction": 1.5}


class WalkerVectorEnv(MujocoVectorEnv):
    """What Hopper and Walker2d share: observations in which velocities are clipped to 10, and upright episodes."""

    frame_skip = 4
    reset_noise = 0.005

    def effort(self, action_NA: np.ndarray) -> np.ndarray:
        """What torques cost, [N]: ``0.001 ||a||²``."""
        return CONTROL_COST * np.vecdot(action_NA, action_NA)

    def observation(self) -> np.ndarray:
        observation_NO = self.simulator.state_NS[:, 1:].astype(np.float32)
        velocity_NV = observation_NO[:, self.simulator.qpos_NQ.shape[1] - 1 :]
        np.minimum(velocity_NV, MAX_SEEN_VELOCITY, out=velocity_NV)
        np.maximum(velocity_NV, -MAX_SEEN_VELOCITY, out=velocity_NV)
        return observation_NO


class RandParamsVectorEnv(WalkerVectorEnv):
    """Reward ``v + 1 - 0.001 ||a||²``, v forward in m/s; what differs between tasks is the body.

    A task gives a factor for each element of four fields of the model, in C order: masses and inertias of the bodies
    (the world's count but do nothing), damping of the degrees of freedom, friction of the geoms. The equations of
    motion are those of the task's body, but the constants that MuJoCo derives when it compiles a model
    (``mj_setConst``), and with them the stiffness of contacts and joint limits, stay those of the nominal body, as in
    rand_param_envs.
    """

    def reward(self, velocity: np.ndarray, action_NA: np.ndarray) -> np.ndarray:
        return velocity + 1.0 - self.effort(action_NA)

    def refresh(self) -> None:
        self.simulator.scale_fields({field: self.params[f"{field}_scale"] for field in BASES})


def factors(bodies: int, geoms: int, dofs: int) -> dict[str, Value]:
    """The parameters of a robot with so many parts, all factors 1."""
    counts = {"body_mass": bodies, "body_inertia": 3 * bodies, "dof_damping": dofs, "geom_friction": 3 * geoms}
    return {f"{field}_scale": (1.0,) * count for field, count in counts.items()}


def rand_params_variants(parameters: dict[str, Value]) -> dict[str, Variant]:
    """What PEARL and VariBAD make of a robot with these parameters."""
    vary = {f"{field}_scale": {"scale_pow": (base, LOG_SCALE_LIMIT)} for field, base in BASES.items()}
    return {
        "varibad": Variant("VariBAD (Zintgraf et al. 2020)", 200, vary),
        "pearl": Variant(
            "PEARL (Rakelly et al. 2019), 40 training and 10 test tasks", 200, vary, task_set=pearl_bodies(parameters)
        ),
    }


def pearl_bodies(parameters: dict[str, Value]) -> Callable[[], tuple[list[Task], list[Task]]]:
    """40 training and 10 test tasks, as many as in PEARL, in its order of draws.

    Its code leaves them unseeded, so that every run has others; here they are always those of the seed 1337.
    """

    def task_set() -> tuple[list[Task], list[Task]]:
        generator, tasks = np.random.RandomState(PEARL_SEED), []
        for _ in range(50):
            exponents = {
                name: generator.uniform(-LOG_SCALE_LIMIT, LOG_SCALE_LIMIT, len(parameters[f"{name}_scale"]))
                for name in BASES
            }
            tasks.append({f"{name}_scale": tuple((BASES[name] ** x).tolist()) for name, x in exponents.items()})
        return tasks[:40], tasks[40:]

    return task_set


class HopperRandParamsVectorEnv(RandParamsVectorEnv):
    """Over unless z > 0.7, |angle| < 0.2 and every number of the state but x and z is within 100."""

    xml = "hopper.xml"
    row_observation_space = unbounded(11)
    row_action_space = torques(3)
    parameters: ClassVar[dict[str, Value]] = factors(bodies=5, geoms=5, dofs=6)
    positive = tuple(parameters)
    variants: ClassVar[dict[str, Variant]] = rand_params_variants(parameters)

    def terminated(self) -> np.ndarray:
        size_NS = np.abs(self.simulator.state_NS)
        upright_N = (self.simulator.qpos_NQ[:, 1] > 0.7) & (size_NS[:, 2] < 0.2)
        return ~(upright_N & (size_NS[:, 2:].max(axis=1) < 100.0))


class Walker2d(WalkerVectorEnv):
    """The robot: over unless 0.8 < z < 2 and |angle| < 1."""

    xml = "walker2d_v5.xml"
    row_observation_space = unbounded(17)
    row_action_space = torques(6)

    def terminated(self) -> np.ndarray:
        height_N, angle_N = self.simulator.qpos_NQ[:, 1], self.simulator.qpos_NQ[:, 2]
        return ~((height_N > 0.8) & (height_N < 2.0) & (np.abs(angle_N) < 1.0))


class Walker2dRandParamsVectorEnv(Walker2d, RandParamsVectorEnv):
    """4 substeps a step: the source asks for 5, but its base class sets 4."""

    parameters: ClassVar[dict[str, Value]] = factors(bodies=8, geoms=8, dofs=9)
    positive = tuple(parameters)
    variants: ClassVar[dict[str, Variant]] = rand_params_variants(parameters)


class Walker2dVelVectorEnv(Walker2d):
    """Reward ``-|v - goal_velocity| + 15 - 0.001 ||a||²``, v forward in m/s; a step has 8 substeps, as in ProMP."""

    frame_skip = 8
    parameters: ClassVar[dict[str, float]] = {"goal_velocity": 1.0}
    variants: ClassVar[dict[str, Variant]] = {
        "promp": Variant("ProMP (Rothfuss et al. 2019)", 100, {"goal_velocity": {"uniform": (0.0, 10.0)}})
    }

    def reward(self, velocity: np.ndarray, action_NA: np.ndarray) -> np.ndarray:
        return 15.0 - np.abs(velocity - self.params["goal_velocity"]) - self.effort(action_NA)


class HopperRandParamsEnv(SingleEnv):
    """One row, for ``gymnasium.make``."""

    vector_class = HopperRandParamsVectorEnv


class Walker2dRandParamsEnv(SingleEnv):
    """One row, for ``gymnasium.make``."""

    vector_class = Walker2dRandParamsVectorEnv


class Walker2dVelEnv(SingleEnv):
    """One row, for ``gymnasium.make``."""

    vector_class = Walker2dVelVectorEnv
