"""ssm_metarl: distributed meta-reinforcement learning with state space policies.

Names are imported when they are first used: ``import ssm_metarl`` loads neither torch nor Ray.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "SSM": "core.ssm",
    "MetaMAML": "meta_rl.meta_maml",
    "Adapter": "adaptation.test_time_adaptation",
    "AdaptationConfig": "adaptation.test_time_adaptation",
    "Environment": "env_runner.environment",
    "TaskFamily": "env_runner.tasks",
    "TaskError": "env_runner.tasks",
    "TrainConfig": "config",
    "ConfigError": "config",
    "load_config": "config",
    "MetaTrainer": "runtime.driver",
    "CheckpointError": "runtime.checkpoint",
    "load_policy": "deployment",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
