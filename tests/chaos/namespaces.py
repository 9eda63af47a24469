"""Stories of clusters, told by a script that runs in network and process namespaces of its own."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.command import ROOT, clean_environment

# What a node of Ray's cluster of several nodes on one machine gets.
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
needs_namespaces = pytest.mark.skipif(os.geteuid() != 0, reason="needs namespaces of its own: run as root")
_UNSHARE = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]


def run_inside(module: str, words: list[str], home: Path, log: Path, **environment: str) -> str:
    """Run a module as a script inside the namespaces and return what it printed; a failure shows the log.

    Its processes, and Ray's, run the sitecustomize.py of the home folder, if there is one.
    """
    inside = 'ip link set lo up; exec "$@"'
    with tempfile.TemporaryDirectory(prefix="herd-", ignore_cleanup_errors=True) as ray_folder:
        # RAY_worker_niceness: Ray's default of 15 would starve the workers on a busy machine.
        settings = {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": ray_folder, "RAY_worker_niceness": "0"}
        settings |= {"HOME": str(home), "PYTHONPATH": f"{home}{os.pathsep}{ROOT}"}
        done = subprocess.run(
            [*_UNSHARE, "bash", "-c", inside, "_", sys.executable, "-m", module, *words],
            env=clean_environment() | settings | environment,
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, text_of(log) + done.stdout + done.stderr
    return done.stdout


def text_of(log: Path) -> str:
    """Return what a log holds, nothing if it is not there."""
    return log.read_text() if log.exists() else ""
