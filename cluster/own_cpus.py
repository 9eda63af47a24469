"""How many CPUs of this machine a job may use: those it may run on, within the quota of its container."""

import os
from pathlib import Path


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the CPUs this process may use, at least 1; needs no Ray, whose import reads the environment."""
    return max(1, int(min(len(os.sched_getaffinity(0)), _quota(cgroup))))


def _quota(cgroup: Path) -> float:
    """Return the CPUs whose time a container may use, as `docker --cpus` or a pod's limit says.

    The kernel has it as microseconds in a period: in one file, or, in version 1 of its control groups, in two.
    """
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            quota, period = (int(word) for file in files for word in (cgroup / file).read_text().split())
        except (OSError, ValueError):  # not there, or "max"
            continue
        if quota > 0:  # -1 is no limit
            return quota / period
    return float("inf")
