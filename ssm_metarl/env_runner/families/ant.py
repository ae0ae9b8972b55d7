"""Ant that shall run at an unknown velocity, in an unknown direction, or to an unknown place.

Sources: Finn et al., "Model-Agnostic Meta-Learning" (2017), section 5.3; the variants' papers and code.
Shape legend: N rows, O = 105 observation (gymnasium's Ant-v5), A = 8 torques.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from ssm_metarl.env_runner.families.mujoco_env import PEARL_SEED, MujocoVectorEnv, torques, unbounded
from ssm_metarl.env_runner.families.native import SingleEnv, Variant
from ssm_metarl.types import Task

CONTACT_COST = 0.0005
GOAL_RADIUS = 3.0
FORWARD_OR_BACKWARD = {"angle": {"choice": (0.0, math.pi)}}
ANY_DIRECTION = {"angle": {"uniform": (0.0, 2 * math.pi)}}
# The rest of the reward: what effort costs and what a step is worth; where the torso has to stay, None: anywhere.
MAML = {"control_cost": 0.005, "alive": 0.05, "healthy_z": (0.2, 1.0)}
PROMP_DIR = {"control_cost": 0.5, "alive": 1.0, "healthy_z": (0.0, 1.0)}
PEARL_DIR = {"control_cost": 0.5, "alive": 1.0, "healthy_z": (0.2, 1.0)}
PROMP_GOAL = {"control_cost": 0.1, "alive": 0.0, "healthy_z": None}


def goal_in_disc(uniform_angle: float, uniform_radius: float) -> Task:
    """The goal in the disc of 3 m that two numbers of [0, 1) choose, uniformly over its area."""
    angle, radius = 2 * math.pi * uniform_angle, GOAL_RADIUS * math.sqrt(uniform_radius)
    return {"goal_x": radius * math.cos(angle), "goal_y": radius * math.sin(angle)}


def draw_goal(rng: np.random.Generator) -> Task:
    """A task of ProMP, PEARL and VariBAD."""
    return goal_in_disc(rng.random(), rng.random())


def pearl_goals() -> tuple[list[Task], list[Task]]:
    """150 training and 30 test tasks, as many as in PEARL, in its order of draws: all angles, then all radii.

    Its code leaves them unseeded, so that every run has others; here they are always those of the seed 1337.
    """
    generator = np.random.RandomState(PEARL_SEED)
    angles, radii = generator.random_sample(180), generator.random_sample(180)
    tasks = [goal_in_disc(angle, radius) for angle, radius in zip(angles.tolist(), radii.tolist(), strict=True)]
    return tasks[:150], tasks[150:]


class AntVectorEnv(MujocoVectorEnv):
    """The robot. Every reward is progress plus a bonus for the step, less costs of torques and of contact forces.

    The costs are ``control_cost ||a||² + 0.0005 ||clip(contact forces, -1, 1)||²``. Velocities are those of the torso's
    place at the last substep's beginning, as in version 5. MAML also shows orientation and centre of mass; here every
    variant sees version 5's 105 numbers.
    """

    xml = "ant.xml"
    frame_skip = 5
    sensors = ("cfrc_ext", "xpos")
    reset_noise = 0.1
    normal_velocities = True
    row_observation_space = unbounded(105)
    row_action_space = torques(8)

    def position(self) -> np.ndarray:
        # Body 0 is the world, body 1 the torso.
        return self.simulator.sensors["xpos"][:, 3:5].copy()

    def contacts(self) -> np.ndarray:
        """The forces and torques on each body from outside, float64 [N, 14 * 6], the world's first."""
        return np.minimum(np.maximum(self.simulator.sensors["cfrc_ext"], -1.0), 1.0)

    def costs(self, action_NA: np.ndarray) -> np.ndarray:
        """What is taken from the progress, [N]: the costs, less the bonus."""
        contacts, settings = self.contacts(), self.variant.settings
        effort_N = settings["control_cost"] * np.vecdot(action_NA, action_NA)
        return effort_N + CONTACT_COST * np.vecdot(contacts, contacts) - settings["alive"]

    def terminated(self) -> np.ndarray:
        if self.variant.settings["healthy_z"] is None:
            return super().terminated()
        low, high = self.variant.settings["healthy_z"]
        height_N = self.simulator.qpos_NQ[:, 2]
        return ~((height_N >= low) & (height_N <= high))

    def observation(self) -> np.ndarray:
        observation_NO = np.empty(self.observation_space.shape, np.float32)
        observation_NO[:, :27] = self.simulator.state_NS[:, 2:]
        observation_NO[:, 27:] = self.contacts()[:, 6:]
        return observation_NO


class AntVelVectorEnv(AntVectorEnv):
    """Reward ``1 - |v - goal_velocity|`` and MAML's bonus and costs; v along x in m/s. Over unless 0.2 <= z <= 1."""

    parameters: ClassVar[dict[str, float]] = {"goal_velocity": 1.5}
    variants: ClassVar[dict[str, Variant]] = {
        "maml": Variant("MAML (Finn et al. 2017)", 100, {"goal_velocity": {"uniform": (0.0, 3.0)}}, settings=MAML)
    }

    def reward(self, velocity: np.ndarray, action_NA: np.ndarray) -> np.ndarray:
        return 1.0 - np.abs(velocity[:, 0] - self.params["goal_velocity"]) - self.costs(action_NA)


class AntDirVectorEnv(AntVectorEnv):
    """Reward: the velocity (m/s) in the direction ``angle`` (radians, 0 is along x), and the variant's bonus and costs.

    Forward and backward are the angles 0 and pi. VariBAD's code feeds its +1 and -1 into cosine and sine as if they
    were radians, so that its tasks are 57 degrees to the left and to the right; here they are what its paper says,
    forward and backward. PEARL's configuration trains on two angles, unseeded; here they are a continuum.
    """

    parameters: ClassVar[dict[str, float]] = {"angle": 0.0}
    variants: ClassVar[dict[str, Variant]] = {
        "maml": Variant("MAML (Finn et al. 2017)", 100, FORWARD_OR_BACKWARD, settings=MAML),
        "promp": Variant("ProMP (Rothfuss et al. 2019)", 100, FORWARD_OR_BACKWARD, settings=PROMP_DIR),
        "promp_2d": Variant("ProMP (Rothfuss et al. 2019), any direction", 100, ANY_DIRECTION, settings=PROMP_DIR),
        "pearl": Variant("PEARL (Rakelly et al. 2019)", 200, ANY_DIRECTION, settings=PEARL_DIR),
        "varibad": Variant("VariBAD (Zintgraf et al. 2020)", 200, FORWARD_OR_BACKWARD, settings=PEARL_DIR),
    }

    def refresh(self) -> None:
        self._heading_N2 = np.stack([np.cos(self.params["angle"]), np.sin(self.params["angle"])], axis=1)

    def reward(self, velocity: np.ndarray, action_NA: np.ndarray) -> np.ndarray:
        return np.vecdot(velocity, self._heading_N2) - self.costs(action_NA)


class AntGoalVectorEnv(AntVectorEnv):
    """Reward ``-(|x - goal_x| + |y - goal_y|)`` in metres and the variant's bonus and costs; MAML adds 4.

    MAML's goals lie in a square of 6 m and its episodes are over unless 0.2 <= z <= 1; the others' goals lie in a disc
    of radius 3 m, and only the horizon ends an episode.
    """

    parameters: ClassVar[dict[str, float]] = {"goal_x": 2.0, "goal_y": 0.0}
    variants: ClassVar[dict[str, Variant]] = {
        "maml": Variant(
            "MAML (Finn et al. 2017)",
            100,
            {"goal_x": {"uniform": (-3.0, 3.0)}, "goal_y": {"uniform": (-3.0, 3.0)}},
            settings=MAML | {"alive": 4.05},
        ),
        "promp": Variant("ProMP (Rothfuss et al. 2019)", 100, draw=draw_goal, settings=PROMP_GOAL),
        "pearl": Variant(
            "PEARL (Rakelly et al. 2019), 150 training and 30 test tasks",
            200,
            draw=draw_goal,
            task_set=pearl_goals,
            settings=PROMP_GOAL,
        ),
        "varibad": Variant("VariBAD (Zintgraf et al. 2020)", 200, draw=draw_goal, settings=PROMP_GOAL),
    }

    def refresh(self) -> None:
        self._goal_N2 = np.stack([self.params["goal_x"], self.params["goal_y"]], axis=1)

    def reward(self, velocity: np.ndarray, action_NA: np.ndarray) -> np.ndarray:
        distance_N = np.abs(self.position() - self._goal_N2).sum(axis=1)
        return -distance_N - self.costs(action_NA)


class AntVelEnv(SingleEnv):
    """One row, for ``gymnasium.make``."""

    vector_class = AntVelVectorEnv


class AntDirEnv(SingleEnv):
    """One row, for ``gymnasium.make``."""

    vector_class = AntDirVectorEnv


class AntGoalEnv(SingleEnv):
    """One row, for ``gymnasium.make``."""

    vector_class = AntGoalVectorEnv
