"""What the Ray pool costs against the same work in this process, on the default configuration.

    python benchmarks/overhead.py [--iterations 20] [--json FILE]

One trainer per pool (0, 1 and 2 workers), stepped in turn, so that all meet the same machine. Printed: wall seconds per
iteration (median and quartiles), the ratio to the in-process pool, iteration by iteration, and the share of an
iteration outside tasks: wall time minus the tasks' own seconds per worker. Do not expect a speed-up of 2 with 2 workers
where the machine has no 2 idle cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from ssm_metarl.runtime.process import prepare_process

WORKERS = (0, 1, 2)


class Timed:
    """A pool that adds up the seconds that its results say they took."""

    def __init__(self, pool) -> None:
        self._pool, self.num_workers, self.seconds = pool, pool.num_workers, 0.0

    def map(self, *arguments, keep: bool = False, **options):
        for answer in self._pool.map(*arguments, keep=keep, **options):
            self.seconds += (answer[0] if keep else answer).seconds
            yield answer


def main() -> None:
    import numpy as np
    import ray

    from ssm_metarl.config import load_config
    from ssm_metarl.runtime.checkpoint import versions
    from ssm_metarl.runtime.driver import MetaTrainer
    from ssm_metarl.runtime.pool import make_pool

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ray.init("local", num_cpus=sum(WORKERS), include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as folder:
        arms = []
        for count in WORKERS:
            config = load_config(None, {"workers.num_workers": count, "run.dir": folder, "run.name": f"w{count}"})
            arms.append((MetaTrainer(config), Timed(make_pool(config, print))))
        records: list[list[dict]] = [[] for _ in arms]
        for iteration in range(options.iterations + 2):
            for (trainer, pool), lines in zip(arms, records, strict=True):
                pool.seconds = 0.0
                record = trainer.step(pool)
                inside = pool.seconds / max(1, pool.num_workers)
                if iteration >= 2:  # the first ones start actors and fill caches
                    lines.append({**record, "outside_share": 1 - inside / record["iteration_s"]})
    wall = np.array([[record["iteration_s"] for record in lines] for lines in records])
    outside = np.array([[record["outside_share"] for record in lines] for lines in records])
    assert len({lines[-1]["params_sha256"] for lines in records}) == 1, "the pools must agree to the bit"
    print(f"default configuration, n = {options.iterations} iterations, interleaved; {versions()}\n")
    print("| pool | s per iteration: median [quartiles] | ratio to in-process: median [quartiles] | outside tasks |")
    print("|---|---|---|---|")
    for row, count in enumerate(WORKERS):
        ratio = wall[row] / wall[0]
        name = f"Ray, {count} worker{'s' * (count > 1)}" if count else "in process"
        print(f"| {name} | {spread(wall[row])} | {spread(ratio)} | {np.median(outside[row]):.1%} |")
    if options.json:
        options.json.write_text(json.dumps({"versions": versions(), "records": records}))
    ray.shutdown()


def spread(values) -> str:
    """Median and quartiles as text."""
    import numpy as np

    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


if __name__ == "__main__":
    prepare_process()
    main()
