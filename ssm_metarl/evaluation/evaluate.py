"""From a run's folder to its adaptation curve: return after k = 0, 1, 2, ... steps on held-out tasks."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from ssm_metarl.config import ConfigError, TrainConfig, load_config
from ssm_metarl.env_runner.tasks import make_family
from ssm_metarl.evaluation.statistics import Interval, bootstrap_mean
from ssm_metarl.runtime import checkpoint
from ssm_metarl.runtime.driver import Evaluation, evaluate
from ssm_metarl.runtime.metrics import params_sha256
from ssm_metarl.runtime.pool import make_pool
from ssm_metarl.runtime.process import limit_threads
from ssm_metarl.runtime.run_folder import checkpoint_storage


def evaluate_run(folder: Path, overrides: Mapping[str, Any]) -> tuple[TrainConfig, Evaluation]:
    """Evaluates the newest valid checkpoint of a run on its test tasks, and writes ``eval.json`` into its folder.

    Args:
        folder: the run's folder. overrides: dotted settings laid over the run's own, such as ``eval.num_tasks``.

    Raises:
        ConfigError: not a run's folder, or a setting is wrong. CheckpointError: no checkpoint that can be used.
    """
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} is not the folder of a run: it has no config.yaml")
    limit_threads()
    config = load_config(folder / "config.yaml", overrides)
    skipped: list[str] = []
    found = checkpoint.load_newest(checkpoint_storage(config, folder), skipped.append)
    if found is None:
        reasons = "; ".join(skipped) or "there is none"
        raise checkpoint.CheckpointError(f"{folder} has no checkpoint that can be used ({reasons}); train it first")
    params_P = found[0].arrays["params_P"]
    with closing(make_pool(config, lambda event: print(f"{event['event']}: {event['cause']}", flush=True))) as pool:
        num_steps = max(config.eval.num_steps, config.inner.num_steps)
        evaluation = evaluate(pool, make_family(config.env), config, params_P, "test", num_steps)
    write_evaluation(folder, config, evaluation, params_P)
    return config, evaluation


def intervals(evaluation: Evaluation) -> list[Interval]:
    """One interval over tasks per number of adaptation steps."""
    return [bootstrap_mean(returns_K) for returns_K in evaluation.returns_KS.T]


def write_evaluation(folder: Path, config: TrainConfig, evaluation: Evaluation, params_P: np.ndarray) -> None:
    """Writes ``eval.json``: every return, the intervals, and what they were measured with."""
    record = {
        "env": config.env.id,
        "split": evaluation.split,
        "episodes_per_task": config.env.episodes_per_task,
        "inner": config.inner.model_dump(),
        "mean_return": [interval._asdict() for interval in intervals(evaluation)],
        "interval": "95 %, bootstrap over tasks of one run",
        "returns": evaluation.returns_KS.tolist(),
        "tasks": evaluation.tasks,
        "params_sha256": params_sha256(params_P),
        "versions": checkpoint.versions(),
    }
    part = folder / "eval.json.part"
    part.write_text(json.dumps(record, indent=1), encoding="utf-8")
    os.replace(part, folder / "eval.json")


def adaptation_table(config: TrainConfig, evaluation: Evaluation) -> str:
    """The adaptation curve as text."""
    tasks, per_task = len(evaluation.tasks), config.env.episodes_per_task
    lines = [
        f"{config.env.id}, {tasks} held-out tasks ({evaluation.split} split), {per_task} episodes each",
        "adaptation steps   episodes seen   mean return   95 % interval over tasks",
    ]
    for k, interval in enumerate(intervals(evaluation)):
        bounds = f"[{interval.low:.2f}, {interval.high:.2f}]"
        lines.append(f"{k:16d}   {k * per_task:13d}   {interval.mean:11.2f}   {bounds:>25}")
    return "\n".join(lines)
