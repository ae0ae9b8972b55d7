"""Does the inner loop earn its keep? Held-out tasks, five seeds, the same number of environment steps in every arm.

    python benchmarks/adaptation.py [cartpole pendulum ...] [--seeds 5] [--processes 2] [--json FILE]
    python benchmarks/adaptation.py [cartpole pendulum ...] --again FILE     # the tables of runs that are done

- "meta": the configuration in ``benchmarks/configs/NAME.yaml``.
- "same batches": without an inner loop (``inner.num_steps: 0``), with more episodes per task, so that every outer step
  sees about as many environment steps.
- "more updates": without an inner loop, otherwise unchanged: smaller batches, more outer steps.

The two controls train until they have seen as many environment steps as "meta". All are judged on the same held-out
tasks; differences are paired by seed and task, intervals are hierarchical bootstraps (seeds are resampled, and the
tasks that they share).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from ssm_metarl.runtime.process import prepare_process

CONFIGS = Path(__file__).parent / "configs"
ARMS = ("meta", "same batches", "more updates")


def make_config(name: str, arm: str, overrides: dict):
    """The configuration of one arm."""
    from ssm_metarl.config import load_config

    config = load_config(CONFIGS / f"{name}.yaml", overrides)
    more_episodes = config.env.episodes_per_task * (config.inner.num_steps + 1)
    control = {
        "meta": {},
        "same batches": {"inner.num_steps": 0, "env.episodes_per_task": more_episodes},
        "more updates": {"inner.num_steps": 0},
    }
    return config.override(control[arm])


def train_arms(name: str, seed: int) -> list[dict]:
    """One run of each arm, in this process."""
    runs: list[dict] = []
    for arm in ARMS:
        runs.append(train(name, arm, seed, budget=runs[0]["num_env_steps"] if runs else None))
    return runs


def train(name: str, arm: str, seed: int, budget: int | None) -> dict:
    """One run, up to ``budget`` environment steps (None: its iterations), and its returns on the held-out tasks."""
    from ssm_metarl.runtime.driver import MetaTrainer
    from ssm_metarl.runtime.held_out import evaluate
    from ssm_metarl.runtime.pool import LocalPool

    with tempfile.TemporaryDirectory() as folder:
        config = make_config(name, arm, {"seed": seed, "workers.num_workers": 0, "run.dir": folder})
        began = time.process_time()
        trainer, pool = MetaTrainer(config), LocalPool(config, print)
        while trainer.iteration < config.iterations if budget is None else trainer.num_env_steps < budget:
            trainer.step(pool)
        cpu_s = time.process_time() - began
        # Judged alike: every arm adapts on, and is measured over, as many episodes.
        judge = LocalPool(make_config(name, "meta", {}), print)
        steps = make_config(name, "meta", {}).inner.num_steps
        evaluation = evaluate(judge, trainer.family, config, trainer.shared, "test", steps)
    return {
        "name": name,
        "arm": arm,
        "seed": seed,
        "returns": evaluation.returns["meta"].tolist(),
        "num_env_steps": trainer.num_env_steps,
        "iterations": trainer.iteration,
        "cpu_s": cpu_s,
    }


def table(name: str, runs: list[dict]) -> str:
    """The table of one family."""
    import numpy as np

    from ssm_metarl.evaluation.statistics import bootstrap_mean

    steps = make_config(name, "meta", {}).inner.num_steps
    arms = {arm: np.array([run["returns"] for run in runs if run["arm"] == arm]) for arm in ARMS}
    before, after = arms["meta"][:, :, 0], arms["meta"][:, :, steps]
    rows = [("meta, before adaptation", before), (f"meta, after {steps} step(s)", after)]
    rows += [(f"no inner loop, {arm}", arms[arm][:, :, 0]) for arm in ARMS[1:]]
    rows += [(f"no inner loop, {arm}, then {steps} step(s)", arms[arm][:, :, steps]) for arm in ARMS[1:]]
    rows += [("**after - before**", after - before)]
    rows += [(f"**after - no inner loop, {arm}**", after - arms[arm][:, :, 0]) for arm in ARMS[1:]]
    costs = []
    for arm in ARMS:
        env_steps, cpu_s = (
            np.mean([run[key] for run in runs if run["arm"] == arm]) for key in ("num_env_steps", "cpu_s")
        )
        costs.append(f"{arm}: {env_steps / 1e6:.2f} M steps, {cpu_s:.0f} CPU-s")
    lines = [f"{name}, {len(before)} seeds x {before.shape[1]} held-out tasks ({'; '.join(costs)})", ""]
    lines += ["| | mean return [95 %] |", "|---|---|", *(f"| {label} | {bootstrap_mean(x)} |" for label, x in rows)]
    return "\n".join([*lines, ""])


def main() -> None:
    from ssm_metarl.runtime.checkpoint import versions

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=["cartpole", "pendulum"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--again", type=Path)
    options = parser.parse_args()
    if options.again:
        found = json.loads(options.again.read_text())
    else:
        jobs = [(name, seed) for name in options.names for seed in range(options.seeds)]
        with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as executor:
            runs = [run for arms in executor.map(train_arms, *zip(*jobs, strict=True)) for run in arms]
        found = {"versions": versions(), "runs": runs}
    for name in options.names:
        print(table(name, [run for run in found["runs"] if run["name"] == name]))
    print(found["versions"])
    if options.json:
        options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    prepare_process()
    main()
