"""A tiny run of benchmarks/scale.py measures the real driver, and what it derives is what its records say."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import scale
from scaling.workers import delay_s, first_answer, later_answer, shortest_s

from ssm_metarl.types import SharedState, Stream, TaskSpec


def test_the_quick_benchmark_measures_the_driver(tmp_path):
    command = [sys.executable, scale.__file__, "--quick", "--only", "cost", "--json", tmp_path / "scale.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "scale.json").read_text(encoding="utf-8"))
    assert {"python", "torch", "ray"} <= set(report["versions"])
    cost = report["parts"]["cost"]
    arms, iterations = scale.QUICK["cost"]["arms"], scale.QUICK["cost"]["iterations"]
    assert cost["events"] == []
    assert len(cost["records"]) == 2 * len(arms) * iterations
    for record in cost["records"]:
        assert 0 < record["main_ms"] <= record["cpu_ms"]
        assert record["processes"] == 4
    lines = [line for line in done.stdout.splitlines() if line.startswith("| 0.1 ") or line.startswith("| 1 ")]
    assert len(lines) == 2 * len(arms) + 2 * 2  # costs; saturation by size and pass
    assert len(report["claims"]) == 2 and all(claim in done.stdout for claim in report["claims"])


@pytest.mark.parametrize(("cpu_ms", "holds"), [(2.9, True), (3.1, False)])
def test_a_promise_is_judged_where_most_tasks_are_in_flight(cpu_ms, holds):
    records = [_record(count, backlog, milliseconds) for count, backlog, milliseconds in _costs(cpu_ms)]
    found = scale.claims({"cost": {"records": records}})
    assert {name.split()[0] for name in found} == {"1000"}
    assert [claim["holds"] for claim in found.values()] == [holds]


def _costs(cpu_ms):
    yield from [(10, False, 9.0), (1000, True, 1.0), (1000, False, cpu_ms - 1), (1000, False, cpu_ms)]
    yield 1000, False, cpu_ms + 1


def _record(count, backlog, milliseconds):
    record = {"mb": 0.1, "tasks": count, "processes": 4, "backlog": backlog, "pass": "first", "cpu_ms": milliseconds}
    return record | {"main_ms": 1.0, "raylet_ms": 1.0, "workers_node_ms": 1.0, "wall_ms": 1.0, "yardstick_ms": 20.0}


@pytest.mark.parametrize(("step", "holds"), [(0.0, True), (0.1, False)])
def test_memory_that_grows_is_a_promise_not_kept(step, holds):
    rows = [{"own_mb": 100.0 + step * iteration} for iteration in range(50)]
    [claim] = scale.claims({"memory": {"rows": rows}}).values()
    assert claim["holds"] == holds


def test_saturation_is_the_inverse_of_the_cost(capsys):
    records = [_record(1000, False, 2.0), {**_record(1000, False, 3.8), "mb": 1.0}]
    scale.print_saturation(records + [{**record, "pass": "later"} for record in records])
    printed = capsys.readouterr().out
    assert "first pass: driver CPU = 1.80 + 2.00 x MB ms per task (at most 0% off)" in printed
    assert "| 0.1 | 1000 | 2.00 | 500 | 100 | 500 | 5000 |" in printed


def test_simulated_tasks_take_their_time_and_answer_with_a_gradient_of_the_policys_size():
    specs = [TaskSpec(0, Stream.TRAIN, 0, index, {"goal_x": 0.0}, 1) for index in range(1000)]
    delays = np.array([delay_s(spec, shortest_s(1000)) for spec in specs])
    assert shortest_s(1000) == 4.0 and shortest_s(10) == 0.1
    assert delays.min() >= 4 and delays.max() < 8 and np.histogram(delays, 10)[0].min() >= 95
    assert delay_s(specs[0], 4.0, straggler=True) == 40.0 and delay_s(specs[1], 4.0, straggler=True) == delays[1]
    shared = SharedState(np.zeros(24_959, np.float32))
    result, kept = first_answer(shared, specs[3])
    assert result.gradient_P.nbytes == 99_836 and kept[0].nbytes == 80_000
    assert np.array_equal(later_answer(shared, specs[3]).gradient_P, result.gradient_P)
