"""Dynamics that change and nobody says so: what test-time adaptation is worth, strategies side by side.

    python benchmarks/switching.py [--only linear cartpole pendulum] [--seeds 5] [--processes 2] [--quick] [--json FILE]

- ``linear``: one-step prediction of a linear system that changes every 30 to 60 steps (`linear_system.py`), beside
  persistence, a frozen ARX(2), recursive least squares and an oracle that knows the regime. Errors are squared errors
  divided by the variance of the task's targets, 0-4, 5-19 and 20-29 steps after a change, and over all steps from the
  first change on.
- ``cartpole``, ``pendulum``: a policy lives through a change of its environment's physics; the mean return of its
  rollouts before the change, in the first one after it (shock), and while it recovers.

Differences are paired by training seed and test task; intervals are hierarchical bootstraps over both (95 %). The exit
status is 1 if a promise is not kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from ssm_metarl.runtime.process import prepare_process

PARTS = ("linear", "cartpole", "pendulum")


def main() -> int:
    import switching_linear
    import switching_policy

    from ssm_metarl.runtime.checkpoint import versions

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some of the parts")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--quick", action="store_true", help="a short training: does it run? (its numbers mean nothing)"
    )
    parser.add_argument("--json", type=Path, help="write every measured number into this file")
    options = parser.parse_args()
    runs: dict[str, list[Future]] = {part: [] for part in options.only}
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as executor:
        for part in runs:
            for seed in range(options.seeds):
                work = (switching_linear.run_seed,) if part == "linear" else (switching_policy.run_seed, part)
                runs[part].append(executor.submit(*work, seed, options.quick))
        records = {part: [future.result() for future in futures] for part, futures in runs.items()}
    command = " ".join(sys.argv)
    reports = [
        switching_linear.tables(found) if part == "linear" else switching_policy.table(part, found)
        for part, found in records.items()
    ]
    print(f"`python {command}`; {versions()}\n", *reports, sep="\n\n")
    if options.json:
        report = {"command": command, "versions": versions(), "seeds": options.seeds, "runs": records}
        options.json.write_text(json.dumps(report), encoding="utf-8")
    return int(not options.quick and any("MISSED" in report for report in reports))


if __name__ == "__main__":
    prepare_process()
    sys.exit(main())
