"""Sweeps on Ray: whatever is killed, the trials are those of the same sweep done one after the other, without Ray."""

import csv
import os
import re
import signal
import threading
from pathlib import Path

import pytest
import yaml
from processes import descendants, driver, kill, wait_until

from ssm_metarl.config import load_config
from ssm_metarl.runtime.driver import MetaTrainer
from ssm_metarl.runtime.metrics import read_metrics
from ssm_metarl.tuning.config import load_sweep
from ssm_metarl.tuning.folder import opened
from ssm_metarl.tuning.ledger import Ledger
from ssm_metarl.tuning.sweep import run_sweep
from ssm_metarl.tuning.table import to_csv
from ssm_metarl.tuning.trials import make_work

BASE = {
    "iterations": 6,
    "tasks_per_iteration": 2,
    "algorithm": "maml",
    "env": {"horizon": 60, "episodes_per_task": 4},
    "policy": {"hidden_dim": 8},
    "eval": {"every": 2, "num_tasks": 3},
    "checkpoint": {"every": 3},
}
SWEEP = {
    "base": BASE,
    "space": {"inner.lr": {"loguniform": [0.01, 1.0]}, "outer.lr": {"choice": [0.001, 0.003, 0.03]}},
    "scheduler": {"asha": {"grace_iterations": 2, "reduction_factor": 2}},
    "num_trials": 5,
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tune") / "small.yaml"
    path.write_text(yaml.safe_dump(SWEEP))
    return path


@pytest.fixture(scope="module")
def calm(path):
    """What the sweep comes to without Ray, one trial after the other."""
    sweep = load_sweep(path, {"run.dir": str(path.parent / "calm")})
    with opened(sweep, resume=False) as folder:
        ledger = Ledger(sweep, folder, print)
        while (index := ledger.next()) is not None:
            ledger.begin(index)
            work = make_work(sweep, folder, index)
            while ledger.report(index, work.advance()):
                pass
            work.close()
            ledger.leave(index)
        assert ledger.is_done
        folder.storage.write("results.csv", to_csv(ledger.record()).encode())
    return essence(Path(folder.where))


def essence(folder):
    """Per trial what must not depend on anything that happens; each iteration must stand once."""
    for trial in sorted((folder / "trials").iterdir()):
        iterations = [record["iteration"] for record in read_metrics(trial)]
        assert iterations == list(range(len(iterations)))
    rows = csv.DictReader((folder / "results.csv").read_text().splitlines())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def reports(folder):
    """How many there are in all."""
    return sum(path.read_text().count('"iteration"') for path in folder.glob("*/trials/*/results.json"))


def test_a_trial_whose_process_is_killed_goes_on_and_all_cpus_are_free_again(path, calm, tmp_path, ray_session, capsys):
    def kill_one():
        wait_until(lambda: reports(tmp_path) >= 1, 150, "a first report")
        victims.extend(it.pid for it in descendants(os.getpid()) if it.title.startswith("ray::MetaTrainable"))
        kill(victims[0])

    victims = []
    path = path.with_name("hurried.yaml")
    path.write_text(yaml.safe_dump(SWEEP | {"budget_s": 1e-6}))
    assert run_sweep(path, {"run.dir": str(tmp_path), "run.name": "small"}, resume=False) == 0
    assert "--resume goes on with them" in capsys.readouterr().out
    path = path.with_name("small.yaml")
    killer = threading.Thread(target=kill_one)
    killer.start()
    status = run_sweep(path, {"run.dir": str(tmp_path)}, resume=True)
    killer.join()
    assert status == 0 and victims
    folder = tmp_path / "small"
    assert essence(folder) == calm
    assert {row["state"] for row in calm} == {"finished", "stopped"}
    wait_until(lambda: ray_session.available_resources().get("CPU") == 4, 20, "all CPUs were free", every_s=0.2)
    out = capsys.readouterr().out
    assert re.search(r"^done: 5 trials, best trial \d{3} post \S+, ", out, re.MULTILINE)
    assert len(re.findall(r"^trial \d{3}  ", out, re.MULTILINE)) == 5 and "Traceback" not in out
    assert (folder / "report.html").stat().st_size > 5000
    config = load_config(folder / "best.yaml", {"run.dir": str(tmp_path), "run.name": "best"})
    best = re.search(r"best trial (\d{3})", out)[1]
    assert MetaTrainer(config).run().params_sha256 == calm[int(best)]["params_sha256"]


@pytest.mark.timeout(600)
def test_a_sweep_killed_stopped_and_resumed_ends_as_if_nothing_had_happened(path, calm, tmp_path, ray_session):
    # How many trials there are at a time changes nothing either.
    path = path.with_name("one.yaml")
    path.write_text(yaml.safe_dump(SWEEP | {"max_concurrent": 1}))
    settings = {"run.dir": str(tmp_path), "run.name": "small"}
    arguments = ("-m", "ssm_metarl", "tune", path, *(f"--{key}={value}" for key, value in settings.items()))
    with driver(*arguments) as program:
        wait_until(lambda: reports(tmp_path) >= 2 or program.returncode is not None, 150, "two reports")
        assert program.returncode is None
        program.signal(signal.SIGKILL)
        before = reports(tmp_path)
        # At once: what Ray has not ended yet may still hold the trials.
        with driver(*arguments, "--resume") as again:
            wait_until(lambda: reports(tmp_path) >= before + 2 or again.returncode is not None, 150, "two more reports")
            again.signal(signal.SIGTERM)
            assert again.finish(60) == 128 + signal.SIGTERM, again.stdout + again.stderr
            assert re.fullmatch(r"stopped by SIGTERM: \d of 5 trials .* --resume goes on from there\n", again.stderr)
            assert again.left(within_s=15) == []
    assert run_sweep(path, settings, resume=True) == 0
    assert essence(tmp_path / "small") == calm


def test_a_cluster_that_is_not_there_is_one_message_within_seconds(path, tmp_path):
    with driver(
        *("-m", "ssm_metarl", "tune", path, "--run.dir", tmp_path), environment={"RAY_ADDRESS": "127.0.0.1:9"}
    ) as program:
        assert program.finish(60) == 1
        assert program.stderr.startswith("error: RAY_ADDRESS = 127.0.0.1:9: no cluster answers there")
        assert program.stderr.count("\n") == 1
