"""How much one driver can bear: the real `MetaTrainer` and `RayPool`, and up to 1,000 simulated workers without torch.

    python benchmarks/scale.py [--quick] [--only PART ...] [--json FILE]

Two Ray nodes on this machine: the driver's, and the workers', where four processes stand for all workers: a worker is
handed one call at a time, waits, and answers with a gradient of the policy's size. An iteration has a first pass (all
there is of MAML) and a later one (ProMP has four). Parts:

- cost: CPU time of the driver's process (all threads) per task, for 10, 100 and 1,000 tasks in flight and policies of
  0.1, 1 and 10 MB, in turn; "queue": tasks of 0.1 to 0.2 s, so that the answers of 1,000 workers queue up.
- processes: sixteen real worker processes beside sixteen workers in four processes.
- memory: 50 iterations of 1,000 tasks of 0.1 MB. memory-...: what larger gradients do to the object stores (2 GB for
  the driver's node, 4 GB for the workers'), with as many workers as tasks or fewer, and with a first task that takes
  ten times as long as the others.

The exit status is 1 if a promise was not kept (``--quick`` does not judge).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssm_metarl.runtime.process import prepare_process

ARMS = [(mb, count, False) for mb in (0.1, 1.0, 10.0) for count in (10, 100, 1000) if mb * count <= 1000]
QUEUES = [(0.1, 1000, True), (1.0, 1000, True)]
PARTS: dict[str, dict[str, Any]] = {
    "cost": {"iterations": 10, "arms": [*ARMS, *QUEUES]},
    "processes": {"iterations": 10, "mb": 0.1, "count": 16},
    "memory": {"iterations": 50, "mb": 0.1, "count": 1000},
    "memory-1": {"iterations": 5, "mb": 1.0, "count": 1000},
    "memory-1-waves": {"iterations": 5, "mb": 1.0, "count": 1000, "num_workers": 100},
    "memory-1-straggler": {"iterations": 5, "mb": 1.0, "count": 1000, "num_workers": 100, "straggler": True},
    "memory-10": {"iterations": 5, "mb": 10.0, "count": 100},
    "memory-10-1000": {"iterations": 2, "mb": 10.0, "count": 1000},
}
QUICK: dict[str, dict[str, Any]] = {
    "cost": {"iterations": 2, "arms": [(0.1, 4, False), (1.0, 4, False), (0.1, 16, True)]},
    "processes": {"iterations": 1, "mb": 0.1, "count": 2},
    "memory": {"iterations": 4, "mb": 0.1, "count": 8},
}
CPU_LIMIT_MS, GROWTH_LIMIT = 3.0, 0.02
SECONDS = (0.2, 1.0, 10.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tiny version of the first three parts")
    parser.add_argument("--only", nargs="+", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path, help="write the records here; with --only, in the place of those there")
    options = parser.parse_args()
    table = QUICK if options.quick else PARTS
    names = options.only or list(table)
    if unknown := set(names) - table.keys():
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(table)}")
    if len(names) == 1:
        parts = {names[0]: run(names[0], table[names[0]])}
    else:
        parts = {name: run_alone(name, options.quick) for name in names}
    from ssm_metarl.runtime.checkpoint import versions

    if options.only and options.json and options.json.exists():
        parts = json.loads(options.json.read_text(encoding="utf-8"))["parts"] | parts
    report = {"versions": versions(), "cores": os.cpu_count(), "parts": parts, "claims": claims(parts)}
    if options.json:
        options.json.write_text(json.dumps(report), encoding="utf-8")
    print_report(report)
    return 0 if options.quick or all(claim["holds"] for claim in report["claims"].values()) else 1


def run(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One part in this process. Its Ray has a folder of its own: another one on this machine is not disturbed."""
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        os.environ["RAY_TMPDIR"] = folder
        # By default Ray gives its workers the lowest priority, but these stand for other machines.
        os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (the name is Ray's)
        from scaling import measure

        return getattr(measure, name.partition("-")[0])(**settings)


def run_alone(name: str, quick: bool) -> dict[str, Any]:
    """One part in a process of its own: memory and clocks start at zero."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.json"
        words = [sys.executable, __file__, "--only", name, "--json", str(path), *(["--quick"] if quick else [])]
        done = subprocess.run(words, capture_output=True, text=True, timeout=7200, check=False)
        if not path.exists():
            raise SystemExit(f"{name} ended with status {done.returncode}: {done.stderr[-2000:]}")
        return json.loads(path.read_text(encoding="utf-8"))["parts"][name]


def median(values: list[float], seed: int = 0) -> tuple[float, float, float]:
    """Median and its 95 % bootstrap interval over iterations."""
    import numpy as np

    draws = np.random.default_rng(seed).integers(len(values), size=(2000, len(values)))
    low, high = np.quantile(np.median(np.asarray(values)[draws], axis=1), [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)


def grouped(records: list[dict[str, Any]]) -> dict[tuple, list[dict[str, Any]]]:
    """The iterations of each (MB, tasks, processes of workers, whether answers queue up, pass)."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for record in records:
        key = (record["mb"], record["tasks"], record["processes"], record["backlog"], record["pass"])
        groups.setdefault(key, []).append(record)
    return dict(sorted(groups.items(), key=lambda item: (item[0][:4], item[0][4] != "first")))


def claims(parts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What was promised -> what was found, for those parts that were run."""
    found = {}
    if "cost" in parts:
        groups = grouped(parts["cost"]["records"])
        most = max(key[1] for key in groups if key[0] == 0.1 and not key[3])
        for key, records in groups.items():
            if key[:2] == (0.1, most) and not key[3]:
                value, low, high = median([record["cpu_ms"] for record in records])
                name = f"{most} tasks of 0.1 MB in flight, {key[4]} pass: driver CPU per task <= {CPU_LIMIT_MS:g} ms"
                found[name] = {"found": f"{value:.2f} [{low:.2f}, {high:.2f}] ms", "holds": value <= CPU_LIMIT_MS}
    if "memory" in parts:
        first, last = growth(parts["memory"]["rows"])
        count = len(parts["memory"]["rows"])
        name = f"memory of the driver over {count} iterations: last fifth / first fifth <= {1 + GROWTH_LIMIT}"
        text = f"{last:.1f} / {first:.1f} MB = {last / first:.4f}"
        found[name] = {"found": text, "holds": last / first <= 1 + GROWTH_LIMIT}
    return found


def growth(rows: list[dict[str, float]]) -> tuple[float, float]:
    """The driver's own memory after an iteration, MB: median over the first fifth of them, and over the last."""
    import numpy as np

    values, fifth = [row["own_mb"] for row in rows], max(1, len(rows) // 5)
    return float(np.median(values[:fifth])), float(np.median(values[-fifth:]))


def print_report(report: dict[str, Any]) -> None:
    """Markdown."""
    parts = report["parts"]
    print(f"{report['versions']}; {report['cores']} cores\n")
    for name in ("cost", "processes"):
        if name in parts:
            print_costs(name, parts[name]["records"])
    if "cost" in parts:
        print_saturation(parts["cost"]["records"])
    if any(name.startswith("memory") for name in parts):
        print_memory([part for name, part in parts.items() if name.startswith("memory")])
    for claim, result in report["claims"].items():
        print(f"{claim}: {result['found']} {'holds' if result['holds'] else 'MISSED'}")


def print_costs(name: str, records: list[dict[str, Any]]) -> None:
    """Milliseconds per task."""
    import numpy as np

    groups = grouped(records)
    speed = [record["yardstick_ms"] for record in records]
    print(f"{name}: ms per task, n = {len(next(iter(groups.values())))} iterations each, in turn; medians [95 %]\n")
    print(
        "| MB | in flight | processes | pass | driver CPU | its main thread | raylet beside it | workers' node | wall |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for (mb, tasks, processes, backlog, which), group in groups.items():
        value, low, high = median([record["cpu_ms"] for record in group])
        clocks = ("main_ms", "raylet_ms", "workers_node_ms", "wall_ms")
        others = [f"{np.median([record[clock] for record in group]):.2f}" for clock in clocks]
        row = [f"{mb:g}", f"{tasks}{', queue' if backlog else ''}", processes, which]
        print(f"| {' | '.join(map(str, [*row, f'{value:.2f} [{low:.2f}, {high:.2f}]', *others]))} |")
    print(
        f"\nA fixed piece of work took {np.median(speed):.1f} ms of CPU (median; {min(speed):.1f} to {max(speed):.1f}) "
        "meanwhile: with whom the processor is shared shows in CPU times too.\n"
    )


def print_saturation(records: list[dict[str, Any]]) -> None:
    """Derived from the costs with most tasks in flight: what one driver can do in a second, and whom it feeds."""
    import numpy as np

    groups = {key: group for key, group in grouped(records).items() if not key[3]}
    most = {mb: max(key[1] for key in groups if key[0] == mb) for mb in sorted({key[0] for key in groups})}
    for which in ("first", "later"):
        costs = {}
        for key, group in groups.items():
            if key[1] == most[key[0]] and key[4] == which:
                costs[key[0]] = median([record["cpu_ms"] for record in group])[0]
        mb, ms = np.array(list(costs)), np.array(list(costs.values()))
        line = np.linalg.lstsq(np.stack([np.ones_like(mb), mb], axis=1) / ms[:, None], np.ones_like(ms), rcond=None)[0]
        off = np.abs((line[0] + line[1] * mb) / ms - 1).max()
        print(f"{which} pass: driver CPU = {line[0]:.2f} + {line[1]:.2f} x MB ms per task (at most {off:.0%} off)\n")
        print(f"| MB | in flight | ms | tasks per s | {' | '.join(f'workers, tasks of {s:g} s' for s in SECONDS)} |")
        print(f"|---|---|---|---|{'---|' * len(SECONDS)}")
        for size, cost in costs.items():
            workers = " | ".join(f"{seconds * 1000 / cost:.0f}" for seconds in SECONDS)
            print(f"| {size:g} | {most[size]} | {cost:.2f} | {1000 / cost:.0f} | {workers} |")
        print()


def print_memory(parts: list[dict[str, Any]]) -> None:
    """MB; of the stores the largest in any iteration."""
    import numpy as np

    print("memory, MB; of the object stores the peak, and in brackets what did not fit and went to disk\n")
    head = "MB | tasks | workers | iterations | driver, first fifth | last fifth | peak | its node's store"
    print(f"| {head} | workers' store | s per iteration |\n|{'---|' * 10}")
    for part in parts:
        rows, (first, last) = part["rows"], growth(part["rows"])
        top = {name: max(row[name] for row in rows) for name in rows[0]}
        driver = f"{top['driver_store_mb']:.0f} ({top['driver_beyond_limit_mb'] + top['driver_written_mb']:.0f})"
        workers = f"{top['workers_store_mb']:.0f} ({top['workers_written_mb'] / len(rows):.0f} per iteration)"
        row = [f"{part['mb']:g}", f"{part['tasks']}{', straggler' if part['straggler'] else ''}", part["workers"]]
        row += [len(rows), f"{first:.1f}", f"{last:.1f}", f"{top['peak_own_mb']:.1f}", driver, workers]
        print(f"| {' | '.join(map(str, row))} | {np.median([row['seconds'] for row in rows]):.1f} |")
    print()


if __name__ == "__main__":
    prepare_process()
    sys.exit(main())
