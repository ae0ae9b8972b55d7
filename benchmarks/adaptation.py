"""Does the inner loop earn its keep? Held-out tasks, five seeds, the same number of environment steps in both arms.

    python benchmarks/adaptation.py [cartpole pendulum ...] [--seeds 5] [--processes 2] [--json FILE]

Arm "meta" is the configuration in ``benchmarks/configs/NAME.yaml``; arm "no inner loop" is the same with ``inner.num_steps: 0`` and
twice the iterations, so that it sees as many environment steps and takes twice as many outer steps. Both are judged on the same
held-out tasks with the same noise; differences are paired by seed and task, intervals are hierarchical bootstraps (seeds, then tasks).
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


def train(name: str, seed: int, overrides: dict) -> dict:
    """One run, in this process; what it reached on the held-out tasks."""
    from ssm_metarl.config import load_config
    from ssm_metarl.runtime.driver import MetaTrainer

    with tempfile.TemporaryDirectory() as folder:
        settings = {"seed": seed, "workers.num_workers": 0, "run.dir": folder, "eval.every": 0, **overrides}
        config = load_config(CONFIGS / f"{name}.yaml", settings)
        began = time.process_time()
        trainer = MetaTrainer(config)
        summary = trainer.run()
    return {
        "returns": summary.evaluation.returns_KS.tolist(),
        "num_env_steps": trainer.num_env_steps,
        "cpu_s": time.process_time() - began,
        "params_sha256": summary.params_sha256,
    }


def no_inner_loop(name: str) -> dict:
    """The overrides of the control arm: as many environment steps, no adaptation in training."""
    from ssm_metarl.config import load_config

    config = load_config(CONFIGS / f"{name}.yaml")
    return {"inner.num_steps": 0, "iterations": config.iterations * (config.inner.num_steps + 1)}


def compare(name: str, meta: list[dict], control: list[dict]) -> list[str]:
    """Lines of the table for one family."""
    import numpy as np

    from ssm_metarl.config import load_config
    from ssm_metarl.evaluation.statistics import bootstrap_mean

    num_steps = load_config(CONFIGS / f"{name}.yaml").inner.num_steps
    meta_RKS, control_RKS = (np.array([run["returns"] for run in arm]) for arm in (meta, control))
    before, after, plain = meta_RKS[:, :, 0], meta_RKS[:, :, num_steps], control_RKS[:, :, 0]
    rows = [
        ("meta, before adaptation", before),
        (f"meta, after {num_steps} step(s)", after),
        ("no inner loop", plain),
        (f"no inner loop, adapted by {num_steps} step(s)", control_RKS[:, :, num_steps]),
        ("**after - before**", after - before),
        ("**after - no inner loop**", after - plain),
        ("after - no inner loop adapted", after - control_RKS[:, :, num_steps]),
    ]
    steps = np.mean([run["num_env_steps"] for run in meta]), np.mean([run["num_env_steps"] for run in control])
    cpu = np.mean([run["cpu_s"] for run in meta]), np.mean([run["cpu_s"] for run in control])
    head = f"{name}: {len(meta)} seeds x {before.shape[1]} tasks; env steps {steps[0]:,.0f} | {steps[1]:,.0f}; CPU-s {cpu[0]:.0f} | {cpu[1]:.0f}"
    return [
        head,
        "",
        "| return | mean [95 %] |",
        "|---|---|",
        *(f"| {label} | {bootstrap_mean(x)} |" for label, x in rows),
        "",
    ]


def main() -> None:
    from ssm_metarl.runtime.checkpoint import versions

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=["cartpole", "pendulum"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    arms = [
        (name, arm, seed, overrides)
        for name in options.names
        for arm, overrides in (("meta", {}), ("no inner loop", no_inner_loop(name)))
        for seed in range(options.seeds)
    ]
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as executor:
        futures = [executor.submit(train, name, seed, overrides) for name, _, seed, overrides in arms]
        runs = [
            {"name": n, "arm": a, "seed": s, **future.result()}
            for (n, a, s, _), future in zip(arms, futures, strict=True)
        ]
    for name in options.names:
        chosen = [
            [run for run in runs if run["name"] == name and run["arm"] == arm] for arm in ("meta", "no inner loop")
        ]
        print("\n".join(compare(name, *chosen)))
    print(versions())
    if options.json:
        options.json.write_text(json.dumps({"versions": versions(), "runs": runs}))


if __name__ == "__main__":
    prepare_process()
    main()
