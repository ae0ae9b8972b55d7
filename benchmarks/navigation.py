"""What README's command reaches: `run_local.py` with each seed, as a user runs it, one after the other.

    python benchmarks/navigation.py [--seeds 0 1 2 3 4] [--json FILE] [-- --policy.core mlp ...]

Everything after ``--`` goes to run_local.py. X is the mean return before, Y after one adaptation step of strategy
``meta``, over 40 held-out tasks, with 95 % intervals over tasks. Training seconds are the sum of ``iteration_s``:
evaluation, start-up and the report come on top. Below it the strategies, with intervals over seeds and tasks.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(seed: int, extra: list[str], folder: str) -> dict:
    """One training; its last line, its intervals and its costs."""
    name = f"seed{seed}"
    argv = [
        sys.executable,
        str(ROOT / "run_local.py"),
        "--seed",
        str(seed),
        "--run.dir",
        folder,
        "--run.name",
        name,
        *extra,
    ]
    began = time.perf_counter()
    done = (
        subprocess.run(argv, capture_output=True, text=True, timeout=3600, check=True).stdout.strip().splitlines()[-1]
    )
    wall = time.perf_counter() - began
    pre, post, digest = re.match(r"done: pre (\S+) post (\S+) params_sha256 (\w+)", done).groups()
    records = [json.loads(line) for line in (Path(folder) / name / "metrics.jsonl").read_text().splitlines()]
    evaluation = json.loads((Path(folder) / name / "eval.json").read_text())
    return {
        "seed": seed,
        "pre": float(pre),
        "post": float(post),
        "params_sha256": digest,
        "wall_s": wall,
        "training_s": sum(record["iteration_s"] for record in records),
        "num_env_steps": records[-1]["num_env_steps"],
        "iterations": len(records),
        "evaluation": evaluation,
        "standing_still": statistics.mean(-100 * math.hypot(*task.values()) for task in evaluation["tasks"]),
    }


def main() -> None:
    from ssm_metarl.evaluation.curves import join, table

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--json", type=Path)
    parser.add_argument("extra", nargs="*")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [run(seed, options.extra, folder) for seed in options.seeds]
    print(f"run_local.py {' '.join(options.extra)}; {runs[0]['evaluation']['versions']}\n")
    print("| seed | X: before [95 %] | Y: after 1 step | after 2 | after 3 | env steps | training s | all s |")
    print("|---|---|---|---|---|---|---|---|")
    for found in runs:
        means = found["evaluation"]["strategies"]["meta"]["mean"]
        curve = " | ".join("{mean:.1f} [{low:.1f}, {high:.1f}]".format(**interval) for interval in means)
        costs = f"{found['num_env_steps']:,} | {found['training_s']:.0f} | {found['wall_s']:.0f}"
        print(f"| {found['seed']} | {curve} | {costs} |")
    print(f"\nstanding still at the start: {runs[0]['standing_still']:.1f} on these tasks\n")
    print(table(join({f"seed {found['seed']}": found["evaluation"] for found in runs})))
    if options.json:
        options.json.write_text(json.dumps(runs))


if __name__ == "__main__":
    main()
