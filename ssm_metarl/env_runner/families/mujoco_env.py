"""`MujocoVectorEnv`: robots of gymnasium's version 5 in a batch, under rewards and models that differ between tasks.

Shape legend: N rows, O observation, A action, Q positions, V velocities, D axes in which progress is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.utils import seeding

from ssm_metarl.env_runner.families.native import NativeVectorEnv
from ssm_metarl.env_runner.families.simulator import MujocoSimulator, Simulator
from ssm_metarl.env_runner.vector import Advance

# By path, because importing gymnasium's package would import mujoco.
ASSETS = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
PEARL_SEED = 1337


def unbounded(size: int) -> Box:
    """The observation space of ``size`` numbers."""
    return Box(-np.inf, np.inf, (size,), np.float32)


def torques(count: int, limit: float = 1.0) -> Box:
    """The action space of ``count`` actuators."""
    return Box(-limit, limit, (count,), np.float32)


class MujocoVectorEnv(NativeVectorEnv):
    """A robot: class attributes say which, four methods say what it is rewarded for and what it sees.

    States, starts and observations are bit for bit those of gymnasium's version 5, whose model files it loads, but that
    observations are float32. Each row has its own random generator, and ``reset(seed=s)`` seeds row i with s + i, as
    ``SyncVectorEnv`` does.

    Actions are clipped to the Box, and costs are those of the clipped action. Version 5 lets MuJoCo clip the torque but
    charges for the action as it came; inside the Box that is the same.
    """

    xml: ClassVar[str]
    """The model, of ``ASSETS``."""
    frame_skip: ClassVar[int]
    """Substeps of a step."""
    sensors: ClassVar[tuple[str, ...]] = ()
    """Fields of MjData that rewards and observations need beside positions and velocities."""
    reset_noise: ClassVar[float]
    """Starts are uniform within this of the model's own."""
    normal_velocities: ClassVar[bool] = False
    """Starting velocities are normal, with ``reset_noise`` as deviation, instead of uniform."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.simulator: Simulator = MujocoSimulator(
            ASSETS / self.xml, self.num_envs, self.frame_skip, self.sensors, self.label
        )
        self.dt = self.simulator.timestep * self.frame_skip
        """Seconds of a step."""
        # In the type of the controls, because numpy takes longer to convert than to clip.
        self._low_NA, self._high_NA = (np.float64(bound) for bound in (self.action_space.low, self.action_space.high))
        self._rngs: list[np.random.Generator] | None = None
        self.refresh()

    def position(self) -> np.ndarray:
        """A new array with what velocity is the change of, in metres: [N] or [N, D]."""
        return self.simulator.qpos_NQ[:, 0].copy()

    def reward(self, velocity: np.ndarray, action_NA: np.ndarray) -> np.ndarray:
        """A new array reward_N. ``velocity`` is that of ``position`` over the step, in m/s."""
        raise NotImplementedError

    def terminated(self) -> np.ndarray:
        """A new array, bool [N]: whose episode is over."""
        return np.zeros(self.num_envs, bool)

    def observation(self) -> np.ndarray:
        """A new float32 array [N, O]."""
        raise NotImplementedError

    def share_rng(self, rng: np.random.Generator) -> None:
        super().share_rng(rng)
        self._rngs = [rng] * self.num_envs

    def _restart(self, rows_N: np.ndarray, seed: int | None, options: dict[str, Any], info: dict[str, Any]) -> None:
        self._no_options(options)
        if self._rngs is None:
            self._rngs = self.np_random.spawn(self.num_envs)
        simulator, noise = self.simulator, self.reset_noise
        num_positions, num_velocities = simulator.qpos_NQ.shape[1], simulator.qvel_NV.shape[1]
        for row in np.flatnonzero(rows_N).tolist():
            if seed is not None:
                self._rngs[row] = seeding.np_random(seed + row)[0]
            rng = self._rngs[row]
            qpos_Q = simulator.init_qpos_Q + rng.uniform(-noise, noise, num_positions)
            if self.normal_velocities:
                qvel_V = noise * rng.standard_normal(num_velocities)
            else:
                qvel_V = rng.uniform(-noise, noise, num_velocities)
            simulator.set_state(row, qpos_Q, qvel_V)

    def _advance(self, actions: np.ndarray, ended_N: np.ndarray | None) -> Advance:
        simulator, action_NA = self.simulator, self.simulator.ctrl_NA
        action_NA[:] = actions
        # Not np.minimum and np.maximum: their AVX-512 slows the clock for the simulator.
        np.clip(action_NA, self._low_NA, self._high_NA, out=action_NA)
        before = self.position()
        simulator.step(None if ended_N is None else ~ended_N)
        reward_N = self.reward((self.position() - before) / self.dt, action_NA)
        return reward_N, self.terminated(), self._no_row, {}

    def _observe(self) -> np.ndarray:
        return self.observation()
