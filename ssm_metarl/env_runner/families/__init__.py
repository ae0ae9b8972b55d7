"""The families of tasks. ``NATIVE``: id -> vector environment of those written here; any other id is generic."""

from __future__ import annotations

import gymnasium

from ssm_metarl.env_runner.families.ant import AntDirEnv, AntGoalEnv, AntVelEnv
from ssm_metarl.env_runner.families.bandits import BernoulliBanditEnv, GaussianBanditEnv
from ssm_metarl.env_runner.families.cartpole import CartPoleEnv
from ssm_metarl.env_runner.families.gridnavi import GridNaviEnv
from ssm_metarl.env_runner.families.halfcheetah import HalfCheetahDirEnv, HalfCheetahVelEnv
from ssm_metarl.env_runner.families.humanoid import HumanoidDirEnv
from ssm_metarl.env_runner.families.metaworld import BENCHMARKS, HORIZON, MetaWorldEnv, MetaWorldVectorEnv
from ssm_metarl.env_runner.families.native import NativeVectorEnv, SingleEnv
from ssm_metarl.env_runner.families.navigation import Navigation2DEnv
from ssm_metarl.env_runner.families.pendulum import PendulumEnv
from ssm_metarl.env_runner.families.point_robot import PointRobotEnv, SparsePointRobotEnv
from ssm_metarl.env_runner.families.tabular import TabularMDPEnv
from ssm_metarl.env_runner.families.tmaze import TMazeEnv
from ssm_metarl.env_runner.families.walkers import HopperRandParamsEnv, Walker2dRandParamsEnv, Walker2dVelEnv

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
register_family("ssm_metarl/AntDir-v0", AntDirEnv)
register_family("ssm_metarl/AntGoal-v0", AntGoalEnv)
register_family("ssm_metarl/AntVel-v0", AntVelEnv)
register_family("ssm_metarl/HalfCheetahDir-v0", HalfCheetahDirEnv)
register_family("ssm_metarl/HalfCheetahVel-v0", HalfCheetahVelEnv)
register_family("ssm_metarl/HumanoidDir-v0", HumanoidDirEnv)
register_family("ssm_metarl/HopperRandParams-v0", HopperRandParamsEnv)
register_family("ssm_metarl/Walker2dRandParams-v0", Walker2dRandParamsEnv)
register_family("ssm_metarl/Walker2dVel-v0", Walker2dVelEnv)
register_family("ssm_metarl/BernoulliBandit-v0", BernoulliBanditEnv)
register_family("ssm_metarl/GaussianBandit-v0", GaussianBanditEnv)
register_family("ssm_metarl/GridNavi-v0", GridNaviEnv)
register_family("ssm_metarl/PointRobot-v0", PointRobotEnv)
register_family("ssm_metarl/SparsePointRobot-v0", SparsePointRobotEnv)
register_family("ssm_metarl/TabularMDP-v0", TabularMDPEnv)
register_family("ssm_metarl/TMaze-v0", TMazeEnv)

for _benchmark in BENCHMARKS:
    # Their tasks come from the package, not from distributions: see `tasks.FAMILIES`.
    gymnasium.register(
        f"ssm_metarl/{_benchmark}-v0",
        entry_point=f"{MetaWorldEnv.__module__}:{MetaWorldEnv.__qualname__}",
        vector_entry_point=f"{MetaWorldVectorEnv.__module__}:{MetaWorldVectorEnv.__qualname__}",
        max_episode_steps=HORIZON,
        kwargs={"benchmark": _benchmark},
    )
