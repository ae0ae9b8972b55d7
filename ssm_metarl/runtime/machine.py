"""What the operating system says of this machine: cores, memory, limits of the container, size of a process.

Linux has the answers in files; elsewhere they are None, for not known.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def num_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_limit() -> float | None:
    """CPUs that this process and its like may use at a time by the limit of their control group; None without one."""
    limits = []
    for group in _control_groups("cpu"):
        first = f"{_read(group / 'cpu.cfs_quota_us')} {_read(group / 'cpu.cfs_period_us')}"
        quota, _, period = (_read(group / "cpu.max") or first).partition(" ")
        if quota.isdigit():
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory() -> tuple[int, int] | None:
    """Total and available bytes: those of the machine, or of the control group where that has less."""
    meminfo = {words[0]: words[1] for words in map(str.split, _read(PROC / "meminfo").splitlines())}
    if "MemAvailable:" not in meminfo:
        return None
    total, available = 1024 * int(meminfo["MemTotal:"]), 1024 * int(meminfo["MemAvailable:"])
    for group in _control_groups("memory"):
        limit = _read(group / "memory.max", group / "memory.limit_in_bytes")
        if limit.isdigit() and int(limit) < total:
            used = int(_read(group / "memory.current", group / "memory.usage_in_bytes"))
            # Pages of files count as used, but the kernel gives them up when memory is wanted.
            counts = dict(line.split() for line in _read(group / "memory.stat").splitlines())
            reclaimable = int(counts.get("total_inactive_file") or counts.get("inactive_file") or 0)
            total, available = int(limit), min(available, int(limit) - used + reclaimable)
    return total, available


def peak_memory(name: str) -> int | None:
    """The most resident bytes that a grandchild of this process has had whose name begins so."""
    processes = {}
    for path in PROC.glob("[0-9]*/status"):
        fields = dict(line.split(":\t", 1) for line in _read(path).splitlines() if ":\t" in line)
        if "VmHWM" in fields:
            processes[path.parent.name] = fields
    children = {pid for pid, fields in processes.items() if fields["PPid"] == str(os.getpid())}
    peaks = [
        1024 * int(fields["VmHWM"].split()[0])
        for fields in processes.values()
        if fields["PPid"] in children and fields["Name"].startswith(name)
    ]
    return max(peaks, default=None)


def _control_groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups (version 1 and 2) that this process is in, innermost first."""
    for line in _read(PROC / "self" / "cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUP / controller if controllers else CGROUP
        # In a container the path may be that of the host: then only the root can be seen.
        folder = root / group.lstrip("/")
        yield from (path for path in (folder, *folder.parents) if path.is_relative_to(root))


def _read(*paths: Path) -> str:
    """The first of these files that can be read, else nothing."""
    for path in paths:
        with contextlib.suppress(OSError):
            return path.read_text().strip()
    return ""
