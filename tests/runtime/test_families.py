"""Every family trains in small: finite numbers, nothing lost. One of each kind does so through the Ray pool (see also
test_sameness.py)."""

import gymnasium
import numpy as np
import pytest

from ssm_metarl.config import load_config
from ssm_metarl.runtime.driver import MetaTrainer
from ssm_metarl.runtime.metrics import read_metrics

# The larger benchmarks take 7 to 25 s to be drawn up and are the same code.
LARGE = {f"ssm_metarl/ML{size}-v0" for size in (10, 25, 45)}
IDS = sorted(key for key in gymnasium.registry if key.startswith("ssm_metarl/") and key not in LARGE)
# A worker's start takes seconds, and what distinguishes the others are formulas.
KINDS = ("HopperRandParams", "TMaze")


@pytest.mark.parametrize("env_id", IDS)
def test_a_short_training(env_id, tmp_path):
    train(env_id, 0, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_short_training_through_the_pool(kind, ray_session, tmp_path):
    train(f"ssm_metarl/{kind}-v0", 1, tmp_path)


def train(env_id, num_workers, tmp_path):
    settings = {
        "env.id": env_id,
        "env.horizon": 12,
        "env.episodes_per_task": 2,
        "policy.hidden_dim": 4,
        "iterations": 1,
        "tasks_per_iteration": 2,
        "workers.num_workers": num_workers,
        "eval.num_tasks": 1,
        "eval.num_steps": 1,
        "eval.strategies": ["meta"],
        "run.dir": str(tmp_path),
        "run.name": "run",
    }
    summary = MetaTrainer(load_config(None, settings)).run()
    [record] = read_metrics(summary.folder)
    assert np.isfinite([value for value in record.values() if isinstance(value, float)]).all()
    assert 8 <= record["num_env_steps"] <= 2 * 2 * 2 * 12 and record["respawns"] == record["retries"] == 0
    assert np.isfinite([summary.pre, summary.post]).all()
