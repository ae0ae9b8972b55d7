"""What Linux says of a machine and a container, from files like its own."""

import os

import pytest

from ssm_metarl.runtime import machine

GB = 2**30


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Writes files below a /proc and a /sys/fs/cgroup of this test."""
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "cgroup")

    def write(**contents):
        for name, text in contents.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    write(**{"proc/meminfo": f"MemTotal: {8 * GB // 1024} kB\nMemAvailable: {6 * GB // 1024} kB\nHugePages_Total: 0"})
    return write


def test_without_a_limit_it_is_the_machine(files):
    files(**{"proc/self/cgroup": "0::/a/b", "cgroup/a/memory.max": "max", "cgroup/a/cpu.max": "max 100000"})
    assert machine.memory() == (8 * GB, 6 * GB)
    assert machine.cpu_limit() is None


def test_version_2_the_tightest_limit_counts(files):
    files(
        **{
            "proc/self/cgroup": "0::/a/b",
            "cgroup/a/memory.max": 4 * GB,
            "cgroup/a/memory.current": 3 * GB,
            "cgroup/a/memory.stat": f"anon 5\ninactive_file {GB}",
            "cgroup/a/b/memory.max": 100 * GB,
            "cgroup/a/b/cpu.max": "400000 100000",
            "cgroup/a/cpu.max": "150000 100000",
        }
    )
    assert machine.memory() == (4 * GB, 2 * GB)
    assert machine.cpu_limit() == 1.5


def test_version_1_in_a_container_that_sees_only_its_root(files):
    files(
        **{
            "proc/self/cgroup": "5:memory:/docker/123\n4:cpu,cpuacct:/docker/123\n0::/",
            "cgroup/memory/memory.limit_in_bytes": 2 * GB,
            "cgroup/memory/memory.usage_in_bytes": GB,
            "cgroup/memory/memory.stat": f"inactive_file 0\ntotal_inactive_file {GB // 2}",
            "cgroup/cpu/cpu.cfs_quota_us": 50000,
            "cgroup/cpu/cpu.cfs_period_us": 100000,
        }
    )
    assert machine.memory() == (2 * GB, GB * 3 // 2)
    assert machine.cpu_limit() == 0.5


def test_version_1_without_limits(files):
    files(
        **{
            "proc/self/cgroup": "4:cpu:/",
            "cgroup/cpu/cpu.cfs_quota_us": -1,
            "cgroup/cpu/cpu.cfs_period_us": 100000,
        }
    )
    assert machine.cpu_limit() is None


def test_elsewhere_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "PROC", tmp_path)
    assert machine.memory() is None
    assert machine.cpu_limit() is None
    assert machine.peak_memory("ray::") is None


def test_peak_memory_is_that_of_grandchildren_of_that_name(files):
    def status(name, parent, kilobytes):
        return f"Name:\t{name}\nPPid:\t{parent}\nVmHWM:\t  {kilobytes} kB"

    files(
        **{
            "proc/10/status": status("raylet", os.getpid(), 900),
            "proc/11/status": status("ray::TaskWorker", 10, 300),
            "proc/12/status": status("ray::TaskWorker", 10, 200),
            "proc/13/status": status("ray::IDLE", 10, 500),
            "proc/14/status": status("ray::TaskWorker", 999, 700),
            "proc/15/status": "Name:\tkthread\nPPid:\t2",
        }
    )
    assert machine.peak_memory("ray::TaskWorker") == 300 * 1024
