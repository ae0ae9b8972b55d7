"""The table of docs/reliability.md: what is promised, tried so many times, and what came out.

    python benchmarks/reliability.py [--quick] [--only NAME ...] [--json FILE]

``--quick`` runs every scenario small. Disks that fill up and become read-only are mounted, which needs root; without
it those rows say that they were not tested. The exit status is 1 if a promise was not kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ssm_metarl.runtime.process import prepare_process

Scenario = Callable[..., Any]


def scenarios() -> dict[str, tuple[Scenario, dict[str, Any], dict[str, Any]]]:
    """Name -> function, its sizes in full, its sizes when quick."""
    from scenarios import costs, disks, drivers, nodes, workers

    return {
        "sameness": (
            workers.sameness,
            {"counts": (0, 1, 2, 4, 7), "seeds": (0, 1, 2), "presets": ("maml", "promp")},
            {"counts": (0, 4), "seeds": (0,), "presets": ("maml",)},
        ),
        "killed-workers": (workers.killed_workers, {"n": 10}, {"n": 1}),
        "faults-once": (workers.faults_once, {}, {"kinds": ("raise", "hang", "segfault")}),
        "faults-always": (workers.faults_always, {}, {"kinds": ("nan", "exit")}),
        "killed-nodes": (nodes.killed_nodes, {"n": 10}, {"n": 1, "moments": ("between passes",)}),
        "killed-drivers": (
            drivers.killed_drivers,
            {"iterations": 10, "kills": 10, "every": (1, 3)},
            {"iterations": 2, "kills": 1, "every": (1,), "wait_for_agents": False},
        ),
        "killed-saves": (disks.killed_saves, {"n": 10}, {"n": 2}),
        "damaged-checkpoints": (disks.damaged_checkpoints, {"n": 1000}, {"n": 100}),
        "lost-disks": (disks.lost_disks, {}, {}),
        "full-for-a-while": (disks.full_for_a_while, {}, {}),
        "signals": (drivers.stopped_drivers, {"moments": 20}, {"moments": 1, "resumed": 1}),
        "signal-in-a-hung-call": (drivers.stopped_while_hung, {}, {"names": ("SIGTERM",)}),
        "endurance": (costs.endurance, {"iterations": 300, "respawns": 30}, {"iterations": 20, "respawns": 2}),
        "cost-of-the-pool": (costs.pool_cost, {"n": 30}, {"n": 5}),
        "cost-of-checkpoints": (costs.checkpoint_cost, {"n": 30}, {"n": 5}),
    }


SHARED_RAY = ("sameness", "killed-workers", "faults-once", "faults-always")
"""These train in this process, on a Ray that runs already; each of the others gets a process of its own."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="every scenario small")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these scenarios")
    parser.add_argument("--json", type=Path, help="write the records here; with --only, in the place of those there")
    options = parser.parse_args()
    table = scenarios()
    names = options.only or list(table)
    if unknown := set(names) - table.keys():
        parser.error(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(table)}")
    if len(names) == 1:
        records = [run(names[0], *table[names[0]], options.quick)]
    else:
        records = [record for name in names for record in run_alone(name, options.quick)]
    from ssm_metarl.runtime.checkpoint import versions

    command = " ".join(sys.argv)
    if options.only and options.json and options.json.exists():
        kept, new = json.loads(options.json.read_text(encoding="utf-8")), {each["test"]: each for each in records}
        records = [new.pop(each["test"], each) for each in kept["records"]] + list(new.values())
        command = f"{kept['command']}; {command}"
    report = {"command": command, "versions": versions(), "cores": os.cpu_count(), "records": records}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    if len(names) > 1 or not options.json:
        print_table(report)
    return 1 if any(record["failures"] for record in records) else 0


def run(name: str, scenario: Scenario, full: dict[str, Any], small: dict[str, Any], quick: bool) -> dict[str, Any]:
    """One scenario in this process."""
    import faults
    import ray
    from scenarios.common import CPUS

    faults.prepare()
    if name in SHARED_RAY:
        ray.init("local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        record = scenario(Path(folder), **(small if quick else full))
    record.seconds = time.monotonic() - began
    ray.shutdown()
    return asdict(record)


def run_alone(name: str, quick: bool) -> list[dict[str, Any]]:
    """One scenario in a process of its own; a crash of it is a failure on record."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.json"
        words = [sys.executable, __file__, "--only", name, "--json", str(path), *(["--quick"] if quick else [])]
        done = subprocess.run(words, capture_output=True, text=True, timeout=7200, check=False)
        if path.exists():
            records = json.loads(path.read_text(encoding="utf-8"))["records"]
        else:
            failure = f"the scenario ended with status {done.returncode}: {done.stderr[-2000:]}"
            records = [{"test": name, "promise": "", "n": 0, "failures": [failure], "detail": "", "seconds": 0.0}]
    for failure in records[0]["failures"]:
        print(f"  {failure}", file=sys.stderr, flush=True)
    return records


def print_table(report: dict[str, Any]) -> None:
    """Markdown."""
    print(f"`{report['command']}`; {report['versions']}; {report['cores']} cores\n")
    print("| test | promise | n | failures | what was tried, and found | s |")
    print("|---|---|---|---|---|---|")
    for record in report["records"]:
        cells = [record["test"], record["promise"], record["n"], len(record["failures"]), record["detail"]]
        print(f"| {' | '.join(map(str, cells))} | {record['seconds']:.0f} |")
    for record in report["records"]:
        for failure in record["failures"]:
            print(f"\nfailure of {record['test']}: {failure}")


if __name__ == "__main__":
    prepare_process()
    sys.exit(main())
