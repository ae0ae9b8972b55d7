"""`MetaVectorEnv`: several episodes of tasks side by side, as a gymnasium vector environment whose tasks can be set.

Backends: `families.native.NumpyVectorEnv` (a family is a few array formulas) and `families.generic.GenericVectorEnv`
(a list of gymnasium environments). Shape legend: N rows (sub-environments), O observation, A action.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ssm_metarl.types import Task

Advance = tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]
"""What one step of a backend returns: reward_N float64, terminated_N, truncated_N other than by the horizon, infos."""


class TaskError(ValueError):
    """A task, a family or an environment that cannot be used. The message names it and the cure."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the known names near ``name``, or all if they are few, or nothing."""
    known = sorted(known)
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, cutoff=0.5)]
    if near:
        return f"; did you mean {' or '.join(repr(candidate) for candidate in near)}?"
    return f"; known: {', '.join(known)}" if 0 < len(known) <= 20 else ""


class MetaVectorEnv(VectorEnv):
    """Base of all backends: keeps tasks, clocks and ends; a backend knows how to restart, advance and observe rows.

    The task's horizon ends an episode with ``truncated``. Any other truncation is foreign, and marked in
    ``info["foreign_truncation"]`` (bool [N]), because only there is the value of the last observation worth something.

    Autoreset modes are gymnasium's (``metadata["autoreset_mode"]``), but in ``DISABLED`` mode, the one of rollouts, a
    row that has ended may be stepped: it returns its last observation, reward 0 and no end, until ``reset``.
    Until tasks are set, the rows have the nominal one.

    Args:
        num_envs: N.
        horizon: steps after which an episode is truncated.
        observation_space: of one row, a 1-D float32 Box.
        action_space: of one row, a 1-D Box or a Discrete that starts at 0.
        autoreset_mode: gymnasium's ``AutoresetMode`` or its value.
    """

    def __init__(
        self,
        num_envs: int,
        horizon: int,
        observation_space: gymnasium.spaces.Box,
        action_space: gymnasium.Space,
        autoreset_mode: AutoresetMode | str,
    ) -> None:
        self.num_envs, self.horizon = num_envs, horizon
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {"render_modes": [], "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = copy.deepcopy(observation_space)
        self.single_action_space = copy.deepcopy(action_space)
        self.env_action_space = self.single_action_space
        """The action space of what is behind it, whose Discrete actions may not begin at 0."""
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.tasks: list[Task] = [{} for _ in range(num_envs)]
        self.wanted_infos: tuple[str, ...] | None = None
        """Names of the infos to return, where batching them takes time; None: all that there are."""
        self._clock = 0
        self._began_N = np.zeros(num_envs, np.int64)
        self._first_deadline = horizon
        self._ended_N = np.zeros(num_envs, bool)
        self._some_ended = False
        self._was_reset = False
        self._every_row = np.ones(num_envs, bool)
        self._no_row = np.zeros(num_envs, bool)
        # Read-only, because infos hand them out.
        self._every_row.flags.writeable = self._no_row.flags.writeable = False

    def _apply_task(self, row: int, task: Mapping[str, Any]) -> None:
        """Gives a row its task; parameters that the task leaves out get their nominal value. Raises TaskError."""
        raise NotImplementedError

    def _restart(self, rows_N: np.ndarray, seed: int | None, options: dict[str, Any], info: dict[str, Any]) -> None:
        """Starts new episodes in the marked rows; adds what they say to ``info``."""
        raise NotImplementedError

    def _advance(self, actions: np.ndarray, ended_N: np.ndarray | None) -> Advance:
        """One step of all rows but the ended ones (None: there are none), which must stay as they are."""
        raise NotImplementedError

    def _observe(self) -> np.ndarray:
        """A new float32 array [N, O]."""
        raise NotImplementedError

    def set_tasks(self, tasks: Task | Sequence[Task]) -> None:
        """Gives each row its task (a list of N), or all rows the same one. Call ``reset`` afterwards.

        Raises TaskError: a wrong number of tasks, an unknown parameter, a value that is not finite or out of bounds.
        """
        self._set_tasks(tasks, self._every_row)

    def _set_tasks(self, tasks: Task | Sequence[Task], rows_N: np.ndarray) -> None:
        tasks = [tasks] * self.num_envs if isinstance(tasks, Mapping) else list(tasks)
        if len(tasks) != self.num_envs:
            raise TaskError(f"{len(tasks)} tasks for {self.num_envs} rows: give one task, or one per row")
        for row in np.flatnonzero(rows_N):
            self._apply_task(row, tasks[row])
            self.tasks[row] = dict(tasks[row])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts new episodes. Options: ``task`` (as for ``set_tasks``), ``reset_mask`` (bool [N]: only these rows)."""
        super().reset(seed=seed)
        options = dict(options or {})
        rows_N = self._rows_to_reset(options.pop("reset_mask", None))
        if "task" in options:
            self._set_tasks(options.pop("task"), rows_N)
        info: dict[str, Any] = {}
        self._begin(rows_N, seed, options, info)
        self._ended_N = self._ended_N & ~rows_N
        self._some_ended = bool(self._ended_N.any())
        self._was_reset = True
        return self._observe(), info

    def _begin(self, rows_N: np.ndarray, seed: int | None, options: dict[str, Any], info: dict[str, Any]) -> None:
        self._restart(rows_N, seed, options, info)
        self._began_N[rows_N] = self._clock
        self._first_deadline = int(self._began_N.min()) + self.horizon

    def _rows_to_reset(self, mask_N: np.ndarray | None) -> np.ndarray:
        if mask_N is None:
            return self._every_row
        if not isinstance(mask_N, np.ndarray) or mask_N.shape != (self.num_envs,) or mask_N.dtype != bool:
            raise ValueError(f"options['reset_mask'] must be a numpy array of {self.num_envs} booleans")
        if not mask_N.any() or not self._was_reset:
            raise ValueError("options['reset_mask'] needs a full reset() before it, and at least one True")
        return mask_N

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Gymnasium's five values, batched. ``info["foreign_truncation"]``: truncations that are not the horizon's."""
        if not self._was_reset:
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions have shape {actions.shape}, must be {self.action_space.shape}")
        ended_N = self._ended_N if self._some_ended else None
        reward_N, terminated_N, foreign_N, info = self._advance(actions, ended_N)
        self._clock += 1
        # Most steps are no one's last; this comparison of two ints spares them some array operations.
        soon = self._clock >= self._first_deadline
        at_horizon_N = self._clock - self._began_N >= self.horizon if soon else self._no_row
        truncated_N = at_horizon_N | foreign_N
        if ended_N is not None:
            reward_N[ended_N] = 0.0
            terminated_N[ended_N] = truncated_N[ended_N] = False
        if foreign_N is not self._no_row:
            foreign_N = truncated_N & ~at_horizon_N & ~terminated_N
        info["foreign_truncation"], info["_foreign_truncation"] = foreign_N, self._every_row
        info = self._autoreset(terminated_N | truncated_N, info)
        return self._observe(), reward_N, terminated_N, truncated_N, info

    def _autoreset(self, ending_N: np.ndarray, info: dict[str, Any]) -> dict[str, Any]:
        """Does what the mode wants after a step that ended these episodes; returns the step's infos."""
        some_ending = np.count_nonzero(ending_N) > 0
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            return self._end_and_begin(ending_N, info) if some_ending else info
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            if self._some_ended:
                self._begin(self._ended_N, None, {}, info)
            self._ended_N, self._some_ended = ending_N, some_ending
        elif some_ending:
            self._ended_N, self._some_ended = self._ended_N | ending_N, True
        return info

    def _end_and_begin(self, ending_N: np.ndarray, info: dict[str, Any]) -> dict[str, Any]:
        last_NO, final_obs = self._observe(), np.full(self.num_envs, None, dtype=object)
        for row in np.flatnonzero(ending_N):
            final_obs[row] = last_NO[row]
        final = {"final_obs": final_obs, "final_info": _only(info, ending_N)}
        info = _only(info, ~ending_N) | final | {f"_{name}": ending_N for name in final}
        self._begin(ending_N, None, {}, info)
        return info


def _only(info: dict[str, Any], rows_N: np.ndarray) -> dict[str, Any]:
    """A copy of batched infos, its masks (the keys that begin with _) narrowed to these rows."""
    narrowed = {}
    for name, value in info.items():
        if isinstance(value, dict):
            narrowed[name] = _only(value, rows_N)
        else:
            narrowed[name] = value & rows_N if name.startswith("_") else value.copy()
    return narrowed


def first_row(info: Mapping[str, Any]) -> dict[str, Any]:
    """The infos of a single environment from those of a batch of one."""
    return {
        name: first_row(value) if isinstance(value, dict) else value.tolist()[0] if value.ndim == 1 else value[0]
        for name, value in info.items()
        if not name.startswith("_")
    }
