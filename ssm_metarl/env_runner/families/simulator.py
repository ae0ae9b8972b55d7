"""The simulator behind the MuJoCo families: N rows of one model, of which an environment sees arrays only.

`Simulator` is the seam: what another backend has to offer. `MujocoSimulator` is the one there is: a loop over
``mj_step``; everything else happens once for all rows.
Shape legend: N rows, Q positions, V velocities, S = Q + V, A actuators, B bodies,
K values of a model field, L of a sensor.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ssm_metarl.env_runner.vector import TaskError


class Simulator(Protocol):
    """N rows that are stepped together, in three methods: write ``ctrl_NA``, call ``step``, read the other arrays.

    The arrays are allocated once and overwritten by ``step`` and ``set_state``: who keeps values copies them.
    """

    ctrl_NA: np.ndarray
    """float64, to be written: what the actuators do during the next steps, in the model's units."""
    state_NS: np.ndarray
    """float64: positions, then velocities."""
    qpos_NQ: np.ndarray
    """A view of ``state_NS``: metres and radians, a quaternion for a free joint."""
    qvel_NV: np.ndarray
    """A view of ``state_NS``: per second."""
    sensors: dict[str, np.ndarray]
    """Field of MjData -> float64 [N, L], those asked for at construction."""
    init_qpos_Q: np.ndarray
    """Where the model stands when nothing moved it."""
    body_mass_B: np.ndarray
    """Kilograms of the nominal model's bodies, the world's first."""
    timestep: float
    """Seconds of one substep."""

    def step(self, rows_N: np.ndarray | None) -> None:
        """``frame_skip`` substeps of the marked rows; None: of all. The other rows stay exactly as they are."""

    def set_state(self, row: int, qpos_Q: np.ndarray, qvel_V: np.ndarray) -> None:
        """Starts a row anew from this state, with no memory of what it did before."""

    def scale_fields(self, scales: Mapping[str, np.ndarray]) -> None:
        """Gives each row a model of its own: the nominal fields times these factors, float64 [N, K] each."""


class MujocoSimulator:
    """`Simulator` by mujoco's Python bindings. Bit for bit what gymnasium's MujocoEnv computes.

    All rows take turns in one MjData, which stays in the processor's cache: what a step depends on goes in and out of
    it, and that is positions, velocities, controls, and the last acceleration, from which the solver begins.

    Args:
        xml: the model's file.
        num_rows: N.
        frame_skip: substeps of one step.
        sensors: fields of MjData to read, such as ``xpos``; ``cfrc_ext`` costs an extra pass over the bodies.
        whose: who needs it, for the message when mujoco is missing.

    Raises:
        TaskError: mujoco is not installed.
    """

    def __init__(self, xml: Path, num_rows: int, frame_skip: int, sensors: Sequence[str], whose: str) -> None:
        try:
            import mujoco
        except ImportError as error:
            raise TaskError(f"{whose} needs MuJoCo: pip install 'ssm-metarl[mujoco]'") from error
        self._mujoco, self._frame_skip, self._has_forces = mujoco, frame_skip, "cfrc_ext" in sensors
        self._nominal = model = mujoco.MjModel.from_xml_path(str(xml))
        self._data = data = mujoco.MjData(model)
        self._models, self._copies = [model] * num_rows, []
        self.timestep, self.init_qpos_Q = float(model.opt.timestep), data.qpos.copy()
        self.body_mass_B = model.body_mass.copy()
        self.ctrl_NA, self._warmstart_NV = np.zeros((num_rows, model.nu)), np.zeros((num_rows, model.nv))
        self.state_NS = np.zeros((num_rows, model.nq + model.nv))
        self.qpos_NQ, self.qvel_NV = np.split(self.state_NS, [model.nq], axis=1)
        self.sensors = {name: np.zeros((num_rows, getattr(data, name).size)) for name in sensors}
        # Copies between memoryviews cost a quarter of those between arrays, when they are this small.
        self._ctrl, *self._inside = map(memoryview, (data.ctrl, data.qpos, data.qvel, data.qacc_warmstart))
        self._sensed = [memoryview(getattr(data, name).reshape(-1)) for name in sensors]
        outside = (self.ctrl_NA, self.qpos_NQ, self.qvel_NV, self._warmstart_NV)
        self._rows = [[memoryview(array[row]) for array in outside] for row in range(num_rows)]
        self._seen = [[memoryview(array[row]) for array in self.sensors.values()] for row in range(num_rows)]

    def step(self, rows_N: np.ndarray | None) -> None:
        mj_step, data, frame_skip, sensed = self._mujoco.mj_step, self._data, self._frame_skip, self._sensed
        data_ctrl, (data_qpos, data_qvel, data_warmstart) = self._ctrl, self._inside
        rows = range(len(self._rows)) if rows_N is None else np.flatnonzero(rows_N).tolist()
        for row in rows:
            model, (ctrl, qpos, qvel, warmstart) = self._models[row], self._rows[row]
            data_ctrl[:], data_qpos[:], data_qvel[:], data_warmstart[:] = ctrl, qpos, qvel, warmstart
            mj_step(model, data, frame_skip)
            qpos[:], qvel[:], warmstart[:] = data_qpos, data_qvel, data_warmstart
            if sensed:
                self._read_sensors(row)

    def _read_sensors(self, row: int) -> None:
        if self._has_forces:
            self._mujoco.mj_rnePostConstraint(self._models[row], self._data)
        for target, source in zip(self._seen[row], self._sensed, strict=True):
            target[:] = source

    def set_state(self, row: int, qpos_Q: np.ndarray, qvel_V: np.ndarray) -> None:
        model, data = self._models[row], self._data
        self._mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:] = qpos_Q, qvel_V
        self._mujoco.mj_forward(model, data)
        for target, source in zip(self._rows[row][1:] + self._seen[row], self._inside + self._sensed, strict=True):
            target[:] = source

    def scale_fields(self, scales: Mapping[str, np.ndarray]) -> None:
        nominal = {name: getattr(self._nominal, name) for name in scales}
        models: dict[bytes, object] = {}
        for row in range(len(self._models)):
            # Rows of one task share a model, which then stays in the processor's cache.
            key = b"".join(scale_NK[row].tobytes() for scale_NK in scales.values())
            if key not in models:
                if len(models) == len(self._copies):
                    self._copies.append(copy.copy(self._nominal))
                models[key] = model = self._copies[len(models)]
                for name, scale_NK in scales.items():
                    getattr(model, name)[:] = nominal[name] * scale_NK[row].reshape(nominal[name].shape)
            self._models[row] = models[key]
