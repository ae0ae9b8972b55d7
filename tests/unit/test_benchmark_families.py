"""The benchmarks of rollouts and families measure what they say, in small."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import environments
import rollout

BENCHMARKS = Path(rollout.__file__).parent


def run(script, *arguments):
    command = [sys.executable, BENCHMARKS / script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_quick_benchmark_of_rollouts_prints_its_lines(tmp_path):
    printed = run("rollout.py", "--quick", "--only", "limit", "cartpole", "generic", "--json", tmp_path / "out.json")
    report = json.loads((tmp_path / "out.json").read_text())
    assert {"mujoco", "numpy", "gymnasium"} <= set(report["versions"])
    assert [line["part"] for line in report["lines"]] == ["limit"] * 3 + ["cartpole"] * 2 + ["generic"] * 3
    for line in report["lines"]:
        assert all(second > 0 for values in line["seconds"].values() for second in values)
        assert f"| {line['part']} | {line['what']} |" in printed


@pytest.mark.parametrize(("kind", "expected"), [("share", 0.5), ("times", 0.5), ("at most", 2.0), ("rate", 0.25)])
def test_figures_say_how_the_first_arm_compares_with_the_second(kind, expected):
    value, low, high = rollout.compare(kind, {"ours": [4.0, 4.0, 4.0], "other": [2.0, 2.0, 2.0]})
    assert value == low == high == expected


def test_the_replayed_physics_is_that_of_the_rollout():
    loop = rollout.ClosedLoop("mlp", 2)
    loop.ours()
    loop.physics()
    final = np.stack([np.concatenate([data.qpos, data.qvel])[1:] for data in loop.data])
    np.testing.assert_array_equal(final.astype(np.float32), loop.rollout.final_observation_BO)


def test_a_random_policy_is_measured_on_test_tasks():
    found = environments.measure("ssm_metarl/BernoulliBandit-v0", None, 5, 40)
    tasks = environments.make_family(environments.EnvConfig(id="ssm_metarl/BernoulliBandit-v0")).tasks("test", 5)
    expected = 100 * np.mean([task["probability"] for task in tasks])
    assert found["return"][0] == pytest.approx(expected, abs=4 * 100 * 0.5 / np.sqrt(100 * 5 * 40))
    assert (found["horizon"], found["observation"], found["action"]) == (100, 1, "10 discrete")


def test_halfcheetah_tables_are_of_the_runs(tmp_path):
    tiny = ["--env.horizon", "4", "--env.episodes_per_task", "2", "--iterations", "3", "--tasks_per_iteration", "2"]
    tiny += ["--eval.num_tasks", "2", "--policy.hidden_dim", "4", "--eval.num_steps", "1"]
    path = tmp_path / "runs.json"
    printed = run("halfcheetah.py", "--only", "vel", "--seeds", "2", "--json", path, "--", *tiny)
    runs = json.loads(path.read_text())
    assert [entry["seed"] for entry in runs] == [0, 1] and all(len(entry["curve"]) == 3 for entry in runs)
    assert runs[0]["curve"][-1][0] == 3 * 2 * 2 * 2 * 4
    assert "after one step - before: " in printed and run("halfcheetah.py", "--again", path) == printed
