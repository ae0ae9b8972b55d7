"""The scenarios of benchmarks/reliability.py, small: nothing may break a promise."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import faults
import pytest
from processes import descendants, driver, wait_until

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from scenarios import common, disks, drivers, workers  # noqa: E402

faults.prepare()  # now, because the Ray of the session passes its environment on to its workers


def assert_kept(record):
    assert record.failures == [], "\n".join(record.failures)
    assert record.n > 0 and record.detail


def test_one_hash_for_any_number_of_workers(ray_session, tmp_path):
    """Fewer than three workers: tests/runtime/test_sameness.py."""
    assert_kept(workers.sameness(tmp_path, counts=(0, 3), seeds=(1,), presets=("maml",)))


def test_killed_workers_change_nothing(ray_session, tmp_path):
    """Between passes: tests/runtime/test_sameness.py; at work, while starting: tests/runtime/test_pool.py."""
    assert_kept(workers.killed_workers(tmp_path, 1, places=("sending",)))


def test_a_fault_that_strikes_once_changes_nothing(ray_session, tmp_path):
    """More kinds of faults: tests/runtime/test_pool.py."""
    assert_kept(workers.faults_once(tmp_path, kinds=("hang",)))


def test_a_fault_that_always_strikes_ends_the_run_and_names_the_task(ray_session, tmp_path):
    assert_kept(workers.faults_always(tmp_path, kinds=("ragged",)))


def test_a_driver_that_is_killed_goes_on_where_it_was(tmp_path):
    assert_kept(drivers.killed_drivers(tmp_path, 2, kills=1, every=(1,), wait_for_agents=False))


def test_a_signal_ends_a_run_in_good_order(tmp_path):
    """Ctrl-C. SIGTERM: below, and in tests/unit/test_signals.py."""
    assert_kept(drivers.stopped_while_hung(tmp_path, names=("SIGINT",)))


def test_sigterm_while_ray_starts_leaves_nothing_behind(tmp_path):
    """Ray's own handler of it would exit in the midst of its start."""
    settings = {"workers.num_workers": 1, "iterations": 50}
    with driver(*common.command(tmp_path, "early", settings)) as program:
        wait_until(lambda: any("gcs_server" in each.title for each in descendants(program.pid)), 90, "Ray starts")
        program.signal(signal.SIGTERM)
        assert program.finish(60) == 143, program.stderr
        assert "stopped by SIGTERM after 0 of 50 iterations; nothing saved yet" in program.stderr
        assert program.left(10.0) == []


def test_a_save_that_is_killed_leaves_a_state(tmp_path):
    assert_kept(disks.killed_saves(tmp_path, 2))


def test_no_damaged_checkpoint_is_loaded(tmp_path):
    assert_kept(disks.damaged_checkpoints(tmp_path, 200))


def test_lost_disks_are_told_in_one_line(tmp_path):
    cases = ("full disk of checkpoints", "full disk of runs", "deleted run with its checkpoints")
    assert_kept(disks.lost_disks(tmp_path, cases))


def test_a_full_disk_may_be_emptied_in_time(tmp_path):
    record = disks.full_for_a_while(tmp_path)
    if record.n == 0:
        pytest.skip(record.detail)
    assert_kept(record)


def test_the_script_writes_its_table(tmp_path):
    """And growth over time, which needs a process without the session's Ray. (A node dies in test_cluster.py.)"""
    command = [sys.executable, ROOT / "benchmarks" / "reliability.py", "--quick"]
    path = tmp_path / "records.json"
    words = [*command, "--only", "endurance", "--json", path]
    done = subprocess.run(words, capture_output=True, text=True, timeout=250, check=False, env=dict(os.environ))
    assert path.exists(), done.stderr
    records = json.loads(path.read_text(encoding="utf-8"))["records"]
    assert [record["failures"] for record in records] == [[]] and done.returncode == 0
    unknown = subprocess.run([*command, "--only", "nothing"], capture_output=True, text=True, timeout=60, check=False)
    assert unknown.returncode == 2 and "no scenario nothing; there are sameness, " in unknown.stderr
