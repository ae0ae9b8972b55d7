"""One hash, whatever the number of workers: through the command line as a user runs it, and from Python."""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ssm_metarl.config import load_config
from ssm_metarl.runtime import pool as pool_module
from ssm_metarl.runtime.driver import MetaTrainer
from ssm_metarl.runtime.metrics import read_metrics
from ssm_metarl.runtime.pool import RayPool

ROOT = Path(__file__).parents[2]
# 400 rows in one product: OpenBLAS splits those over threads where it may, and other threads give other bits.
SETTINGS = {
    "iterations": 2,
    "tasks_per_iteration": 3,
    "env.horizon": 4,
    "env.episodes_per_task": 400,
    "eval.num_tasks": 2,
    "eval.every": 0,
    "policy.hidden_dim": 64,
}


def command_line(folder, name, **settings):
    options = {**SETTINGS, "run.dir": folder, "run.name": name, **settings}
    argv = [
        sys.executable,
        "run_local.py",
        *(str(word) for key, value in options.items() for word in (f"--{key}", value)),
    ]
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_THREADS")}
    return subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")

    def train(workers):
        return command_line(folder, f"w{workers}", **{"workers.num_workers": workers})

    # Most of a short run is Ray's start, and waiting.
    with ThreadPoolExecutor(2) as two:
        return folder, dict(zip((0, 2), two.map(train, (0, 2)), strict=True))


def test_the_hash_does_not_depend_on_the_number_of_workers(outputs):
    _, results = outputs
    for result in results.values():
        assert result.returncode == 0, result.stderr
    last = [result.stdout.strip().splitlines()[-1] for result in results.values()]
    pattern = r"done: pre (-?[\d.e+]+) post (-?[\d.e+]+) params_sha256 ([0-9a-f]{64}) run (.+)"
    found = [re.fullmatch(pattern, line) for line in last]
    assert all(found), last
    assert len({match.group(1, 2, 3) for match in found}) == 1, last


def test_killed_workers_change_nothing(ray_session, tmp_path, monkeypatch):
    """One actor dies in a first pass, another in a later one; the parameters are those of the run in this process."""
    settings = {
        "iterations": 2,
        "tasks_per_iteration": 4,
        "env.horizon": 10,
        "eval.num_tasks": 2,
        "run.dir": str(tmp_path),
    }
    undisturbed = MetaTrainer(load_config(None, {**settings, "workers.num_workers": 0})).run()
    pools = []

    class Killer(RayPool):
        def map(self, method, shared, specs, handles=None, keep=False):
            pools.append((self, method))
            for number, result in enumerate(super().map(method, shared, specs, handles, keep)):
                if number == 0 and [name for _, name in pools].count(method) == 1 and method != "evaluate":
                    actors = [*self._actors.idle, *(running.actor for running in self._running.values())]
                    ray_session.kill(actors[-1].handle)
                yield result

    monkeypatch.setattr(pool_module, "RayPool", Killer)
    config = load_config(None, {**settings, "workers.num_workers": 2, "workers.cpus_per_worker": 0.5})
    disturbed = MetaTrainer(config).run()
    assert {method for _, method in pools} == {"adapt_and_collect", "revisit", "evaluate"}
    assert disturbed.params_sha256 == undisturbed.params_sha256
    assert (disturbed.pre, disturbed.post) == (undisturbed.pre, undisturbed.post)
    assert [record["respawns"] for record in read_metrics(disturbed.folder)] == [2, 0]


# A worker of Meta-World takes long to start.
@pytest.mark.parametrize(
    ("env_id", "counts"), [("ssm_metarl/HalfCheetahVel-v0", (0, 1, 2)), ("ssm_metarl/ML1-v0", (0, 2))]
)
def test_simulated_robots_and_normalised_inputs_depend_on_no_worker(env_id, counts, ray_session, tmp_path):
    settings = {
        "env.id": env_id,
        "env.horizon": 12,
        "env.episodes_per_task": 2,
        "env.normalize_observations": True,
        "env.normalize_rewards": True,
        "policy.inputs": ["observation", "previous_action", "previous_reward"],
        "iterations": 2,
        "tasks_per_iteration": 3,
        "eval.num_tasks": 2,
        "eval.strategies": ["meta"],
        "run.dir": str(tmp_path),
    }
    found = []
    for workers in counts:
        config = load_config(None, {**settings, "workers.num_workers": workers, "run.name": f"w{workers}"})
        summary = MetaTrainer(config).run()
        found.append((summary.params_sha256, summary.pre, summary.post))
    assert len(set(found)) == 1, found
    means = [record["return_post_adaptation"] for record in read_metrics(summary.folder)]
    assert np.isfinite(means).all() and means[0] != means[1]


def test_a_run_leaves_what_it_promises(outputs):
    folder, _ = outputs
    run = folder / "w2"
    assert {path.name for path in run.iterdir()} >= {
        "config.yaml",
        "metrics.jsonl",
        "tb",
        "checkpoints",
        "eval.json",
        "report.html",
    }
    evaluation = json.loads((run / "eval.json").read_text())
    meta = evaluation["strategies"]["meta"]
    assert len(meta["returns"]) == 2 and len(meta["mean"]) == 4
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["workers"] for record in records] == [2, 2]


def test_a_quiet_terminal(outputs):
    """Our lines on stdout, nothing on stderr."""
    _, results = outputs
    for workers, result in results.items():
        assert result.stderr == "", f"{workers} workers wrote to stderr: {result.stderr}"
        progress, *tables, end = result.stdout.strip().split("\n\n")
        assert all(line.startswith(("iteration ", "held-out tasks ")) for line in progress.splitlines()), progress
        # What was evaluated and how, mean returns, and differences, for k = 0 .. 3.
        assert [len(table.splitlines()) for table in tables] == [2, 6, 6]
        assert [line.split()[0] for line in end.splitlines()] == ["report:", "done:"]
