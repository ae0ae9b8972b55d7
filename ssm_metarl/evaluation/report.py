"""Pictures of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ssm_metarl.evaluation.evaluate import intervals
from ssm_metarl.runtime.driver import Evaluation
from ssm_metarl.runtime.metrics import read_metrics

BEFORE, AFTER = "#7a7a7a", "#c2410c"


def draw_learning_curve(folder: Path, title: str, evaluation: Evaluation, num_steps: int) -> Path:
    """Draws return before and after adaptation over training into ``learning_curve.png`` of the run's folder.

    Args:
        folder: the run's folder, with ``metrics.jsonl``. title: above the picture.
        evaluation: the final one; drawn at the right as means with 95 % intervals. num_steps: adaptation steps that
            count as "after".
    """
    records = read_metrics(folder)
    steps = np.array([record["num_env_steps"] for record in records]) / 1e6
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for key, label, colour in (
        ("return_pre_adaptation", "before adaptation", BEFORE),
        ("return_post_adaptation", f"after {num_steps} step{'s' * (num_steps != 1)}", AFTER),
    ):
        axes.plot(steps, [record[key] for record in records], color=colour, label=f"{label} (training tasks)")
    held_out = intervals(evaluation)
    for k, colour in ((0, BEFORE), (num_steps, AFTER)):
        mean, low, high = held_out[k]
        bar = [[mean - low], [high - mean]]
        axes.errorbar(
            steps[-1] * 1.02, mean, yerr=bar, fmt="o", color=colour, capsize=4, label=f"held-out tasks: {mean:.1f}"
        )
    axes.set_xlabel("environment steps (millions)")
    axes.set_ylabel("mean return of an episode")
    axes.set_title(title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    path = folder / "learning_curve.png"
    figure.savefig(path, dpi=120)
    return path
