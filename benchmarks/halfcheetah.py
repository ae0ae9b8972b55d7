"""Does a robot learn to adapt? HalfCheetah-Dir and -Vel, three seeds, three million environment steps each.

    python benchmarks/halfcheetah.py [--only dir vel] [--seeds 3] [--json FILE] [-- --outer.lr 0.001 ...]
    python benchmarks/halfcheetah.py --again FILE     # the tables of runs that are done

Everything after ``--`` goes to ``ssm-metarl train``. Each run is that command with ``configs/halfcheetah.yaml``
in one process. The curve is of the training tasks of single iterations, averaged over five; the judgement is the final
evaluation on held-out tasks (of HalfCheetah-Dir there are only two, the same as in training, each judged 20 times).
Differences are paired by seed and task, intervals hierarchical bootstraps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

CONFIG = Path(__file__).parent / "configs" / "halfcheetah.yaml"
FAMILIES = {"dir": "ssm_metarl/HalfCheetahDir-v0", "vel": "ssm_metarl/HalfCheetahVel-v0"}
MARKS = (0.5e6, 1e6, 1.5e6, 2e6, 2.5e6, 3e6)
WINDOW = 5


def train(which: str, seed: int, extra: list[str]) -> dict:
    """One run, its curve and its final evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, "-m", "ssm_metarl", "train", "--config", str(CONFIG), "--env.id", FAMILIES[which]]
        argv += ["--seed", str(seed), "--run.dir", folder, "--run.name", "run", "--workers.num_workers", "0"]
        began = time.perf_counter()
        done = subprocess.run([*argv, *extra], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        evaluation = json.loads((Path(folder) / "run" / "eval.json").read_text(encoding="utf-8"))
    keys = ("num_env_steps", "return_pre_adaptation", "return_post_adaptation", "iteration_s")
    return {
        "family": which,
        "seed": seed,
        "extra": extra,
        "wall_s": time.perf_counter() - began,
        "curve": [[record[key] for key in keys] for record in records],
        "evaluation": evaluation,
    }


def print_tables(runs: list[dict]) -> None:
    from ssm_metarl.evaluation.curves import join, table
    from ssm_metarl.evaluation.statistics import paired_difference

    for which in dict.fromkeys(run["family"] for run in runs):
        own = [run for run in runs if run["family"] == which]
        print(f"{FAMILIES[which]}, {len(own)} seeds; {own[0]['evaluation']['versions']}\n")
        print("| million steps | " + " | ".join(f"{mark / 1e6:.1f}" for mark in MARKS) + " |")
        print("|---|" + "---|" * len(MARKS))
        for run in own:
            curve = np.array(run["curve"])
            cells = []
            for mark in MARKS:
                at = int(np.searchsorted(curve[:, 0], mark * 0.999))
                window = curve[max(0, at - WINDOW + 1) : at + 1]
                cells.append(f"{window[:, 1].mean():.1f} -> {window[:, 2].mean():.1f}" if at < len(curve) else "")
            print(f"| seed {run['seed']}: before -> after | " + " | ".join(cells) + " |")
        evaluations = {f"seed {run['seed']}": run["evaluation"] for run in own}
        print(f"\n{table(join(evaluations))}\n")
        returns_RKS = np.array([run["evaluation"]["strategies"]["meta"]["returns"] for run in own])
        print(f"after one step - before: {paired_difference(returns_RKS[:, :, 1], returns_RKS[:, :, 0])}")
        rates = [run["curve"][-1][0] / sum(row[3] for row in run["curve"]) for run in own]
        print(f"environment steps per second of training, one process: {', '.join(f'{rate:,.0f}' for rate in rates)}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--again", type=Path)
    parser.add_argument("extra", nargs="*")
    options = parser.parse_args()
    if options.again:
        runs = json.loads(options.again.read_text(encoding="utf-8"))
    else:
        with ThreadPoolExecutor(options.processes) as pool:
            jobs = [(which, seed, options.extra) for which in options.only for seed in range(options.seeds)]
            runs = list(pool.map(train, *zip(*jobs, strict=True)))
    print_tables(runs)
    if options.json:
        options.json.write_text(json.dumps(runs), encoding="utf-8")


if __name__ == "__main__":
    main()
