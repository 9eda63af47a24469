"""A job's own Ray is the servers that the job needs, and no others."""

import psutil

from cluster.session import Cluster


def test_neither_a_dashboard_nor_monitors_run_beside_a_job(cluster: Cluster) -> None:
    words = [word for process in psutil.Process().children(recursive=True) for word in process.cmdline()]
    assert any(word.endswith("raylet/raylet") for word in words)
    assert [word for word in words if word.endswith(("/monitor.py", "/log_monitor.py", "/dashboard.py"))] == []
