"""Random tabular MDPs: a few states and actions, whose transitions and rewards are drawn anew for each task.

Source: Duan et al., "RL²" (2016), section 3.2. Shape legend: N rows, C states, A actions, O = C (one-hot),
P = N C A (row, state, action), K = C A.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Discrete

from ssm_metarl.env_runner.families.native import SingleEnv, Variant
from ssm_metarl.env_runner.families.shared import FiniteVectorEnv, whole_number
from ssm_metarl.env_runner.vector import TaskError
from ssm_metarl.types import Task

SUM_TOLERANCE = 1e-6


class TabularMDPVectorEnv(FiniteVectorEnv):
    """Starts in state 0; the reward of state and action is normal around ``mean_reward`` with standard deviation 1.

    ``transition`` lists, in C order, the probability of each next state after each state and action. Each such row of
    it is drawn from Dirichlet(1, ..., 1), each mean reward from a normal distribution with mean 1 and deviation 1. The
    observation is the state, one-hot. An episode has 10 steps. RL² lets the policy remember several of them: for 5 set
    ``episode_steps`` to 10 and the horizon to 50.

    Args:
        args, kwargs: as for `FiniteVectorEnv`, such as ``episode_steps``.
        num_states: C.
        num_actions: A.
    """

    variants: ClassVar[dict[str, Variant]] = {"rl2": Variant("RL²", 10, {"mean_reward": {"normal": (1.0, 1.0)}})}

    def __init__(self, *args: Any, num_states: int = 10, num_actions: int = 5, **kwargs: Any) -> None:
        states = self.num_states = whole_number(self.label, "num_states", num_states, 2)
        actions = self.num_actions = whole_number(self.label, "num_actions", num_actions, 2)
        self.parameters = {
            "transition": (1.0 / states,) * (states * actions * states),
            "mean_reward": (1.0,) * (states * actions),
        }
        self.variants = {name: dataclasses.replace(v, draw=self._draw) for name, v in type(self).variants.items()}
        self.row_action_space = Discrete(actions)
        super().__init__(*args, observation_CO=np.eye(states), **kwargs)
        self._first_N = np.arange(self.num_envs) * states

    def _draw(self, rng: np.random.Generator) -> Task:
        transition = rng.dirichlet(np.ones(self.num_states), self.num_states * self.num_actions)
        return {"transition": tuple(transition.ravel().tolist())}

    def check_task(self, row: int) -> None:
        transition_KC = self.params["transition"][row].reshape(-1, self.num_states)
        error_K = np.abs(transition_KC.sum(axis=1) - 1.0)
        if transition_KC.min() < 0 or error_K.max() > SUM_TOLERANCE:
            worst = int(np.argmax(np.where(transition_KC.min(axis=1) < 0, np.inf, error_K)))
            state, action = divmod(worst, self.num_actions)
            raise TaskError(
                f"{self.label}: the {self.num_states} probabilities of transition after state {state} and action "
                f"{action} are {transition_KC[worst].tolist()!s:.80}; they must be at least 0 and sum to 1 (env.vary "
                "cannot see to that: leave transition to the family, or set it in a task)"
            )

    def refresh(self) -> None:
        self._mean_P = self.params["mean_reward"].ravel()
        # Without the last sum, which is 1 up to rounding, no draw falls behind the last state.
        self._upto_PC = np.cumsum(self.params["transition"].reshape(-1, self.num_states), axis=1)[:, :-1]

    def move(self, cell_N: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        drawn_N1 = self.np_random.random((self.num_envs, 1))
        place_N = (self._first_N + cell_N) * self.num_actions + actions
        next_N = (drawn_N1 >= self._upto_PC[place_N]).sum(axis=1)
        return next_N, self._mean_P[place_N] + self.np_random.standard_normal(self.num_envs)


class TabularMDPEnv(SingleEnv):
    """One row, for ``gymnasium.make``."""

    vector_class = TabularMDPVectorEnv
