"""The families of tasks. ``NATIVE``: id -> vector environment of those written here; any other id is generic."""

from __future__ import annotations

import gymnasium

from ssm_metarl.env_runner.families.cartpole import CartPoleEnv
from ssm_metarl.env_runner.families.native import NativeVectorEnv, SingleEnv
from ssm_metarl.env_runner.families.navigation import Navigation2DEnv
from ssm_metarl.env_runner.families.pendulum import PendulumEnv

NATIVE: dict[str, type[NativeVectorEnv]] = {}


def register_family(family_id: str, single_class: type[SingleEnv]) -> None:
    """Makes a native family known to ``make_family``, ``gymnasium.make`` and ``gymnasium.make_vec``.

    Example: ``register_family("ssm_metarl/CartPole-v0", CartPoleEnv)``
    """
    vector_class = single_class.vector_class
    NATIVE[family_id] = vector_class
    gymnasium.register(
        family_id,
        entry_point=f"{single_class.__module__}:{single_class.__qualname__}",
        vector_entry_point=f"{vector_class.__module__}:{vector_class.__qualname__}",
        max_episode_steps=next(iter(vector_class.variants.values())).horizon,
    )


register_family("ssm_metarl/Navigation2D-v0", Navigation2DEnv)
register_family("ssm_metarl/CartPole-v0", CartPoleEnv)
register_family("ssm_metarl/Pendulum-v0", PendulumEnv)
