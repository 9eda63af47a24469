"""`herd submit`: a job on a running cluster through the Ray Jobs API, followed from here.

The job's settings are loaded and checked here, packed with the code, and read there: the same
job with the same settings, whose lines appear here and whose exit code becomes ours.
"""

import contextlib
import math
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path

from cluster.progress import say
from cluster.session import OWN_RAY_SETTINGS
from cluster.submission.follower import Follower
from cluster.submission.head import Head, JobState, Nodes
from cluster.submission.head_address import address_of
from cluster.submission.job_package import SETTINGS_FILE, JobPackage, package_of
from cluster.submission.needs import needs_of, unmet
from gpt_core.credentials import without_credentials
from gpt_core.errors import ResourceError, RunFailedError
from gpt_core.settings import JobSettings

_INTERRUPTED = 130
_STOP_SECONDS = 120.0
# Set in the job and in its workers; see the same names in cluster.session.
_ENVIRONMENT = {
    "RAY_JOB_STOP_SIGNAL": "SIGINT",  # stopping is Ctrl-C: the job ends its runs and exits 130
    "RAY_JOB_STOP_WAIT_TIME_S": "90",  # a training job gives its last step and checkpoint up to a minute
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}


def submit(job: str, module: str, settings: JobSettings, *, detach: bool) -> int:
    """Run a job on the cluster of its settings and return its exit code.

    With `detach` the job is left alone once it is submitted, and 0 returned. A Ctrl-C asks
    whether to stop the job or to leave it; without a terminal it is left.

    Raises:
        ResourceError: If the address, the token, the version or the resources do not fit.
        RunFailedError: If the head refuses the job or is lost for minutes.
    """
    for name in OWN_RAY_SETTINGS:
        if (value := getattr(settings.cluster, name)) is not None:
            raise ResourceError(f"cluster.{name}", str(value), "none on a cluster", "leave it out")
    head = Head(address_of(settings.cluster.address))
    nodes = head.nodes()
    say(f"submit: {job} to {head.address} (Ray {head.ray_version}; {nodes})")
    waits_for = _to_wait_for(settings, head, nodes)
    job_id = _send(head, job, module, package_of(settings, Path.cwd(), waits_for), settings)
    say(f"submit: {job_id} is submitted; stop it with {_command('stop', head, job_id)}")
    if detach:
        say(f"submit: follow it with {_command('logs', head, job_id)} --follow")
        return 0
    return follow(head, job_id)


def follow(head: Head, job_id: str) -> int:
    """Show a job's lines until it ends and return its exit code; see :func:`submit` for Ctrl-C."""
    follower = Follower(head, job_id)
    while True:
        try:
            return exit_code_of(follower.run())
        except KeyboardInterrupt:
            if (code := _after_interrupt(head, job_id)) is not None:
                return code


def stop(head: Head, job_id: str) -> JobState:
    """Stop a job as Ctrl-C would, wait for its end and return its state.

    Raises:
        RunFailedError: If it does not end within two minutes.
    """
    state = head.job(job_id)
    if state.finished:
        return state
    head.stop(job_id)
    give_up = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < give_up:
        state = head.job(job_id)
        if state.finished:
            return state
        time.sleep(0.5)
    raise RunFailedError(
        f"job {job_id}",
        f"{state.status} {_STOP_SECONDS:g} s after it was asked to stop",
        "a job that ends",
        "look again with herd jobs status; a job that waits for resources ends when Ray gives up on it",
    )


def exit_code_of(state: JobState) -> int:
    """Return the exit code of a job that ended: its own, 130 where it was stopped, else 1."""
    if state.status == "SUCCEEDED":
        return 0
    if state.status == "STOPPED":
        say(f"{state.job_id} was stopped; submit it again to continue")
        return _INTERRUPTED
    if state.exit_code is None:
        say(f"{state.job_id} failed: {(state.message.splitlines() or ['no message'])[0]}")
        return 1
    say(f"{state.job_id} failed with exit code {state.exit_code}{_hint(state)}")
    return state.exit_code if 0 < state.exit_code < 256 else 1


def _hint(state: JobState) -> str:
    if state.exit_code == 127 or "No module named 'ray'" in state.message:
        return "; the cluster's PATH has no Python with Ray: put its environment on PATH before `ray start`"
    if "No module named" in state.message:
        return "; install the project's dependencies on the cluster (constraints.txt)"
    return ""


def _to_wait_for(settings: JobSettings, head: Head, nodes: Nodes) -> dict[str, int]:
    """Return the CPUs and GPUs the job waits for, none where they are there; refuse what would wait for ever."""
    needs = list(needs_of(settings))
    errors = [error for need in needs if (error := unmet(need, nodes))]
    if not errors:
        return {}
    if not head.can_grow(nodes):
        raise errors[0]
    cpus = max(settings.cluster.min_cpus or 0, *(math.ceil(need.cpus) for need in needs))
    gpus = max(settings.cluster.min_gpus or 0, *(math.ceil(need.gpus) for need in needs))
    say(f"submit: the job waits until nodes are added, for {cpus} CPUs and {gpus} GPUs in all")
    return {"min_cpus": cpus, **({"min_gpus": gpus} if gpus else {})}


def _send(head: Head, job: str, module: str, package: JobPackage, settings: JobSettings) -> str:
    content = package.zipped()
    for place in package.left:
        say(f"submit: {place} is not packed; the cluster reads it from there")
    job_id = f"{job}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "package.zip"
        file.write_bytes(content)
        head.submit(
            job_id,
            f"python -m jobs.{module} --config {SETTINGS_FILE}",
            {"working_dir": str(file), "env_vars": _ENVIRONMENT | _tracking_address()},
            {"herd": job, "output": str(getattr(settings, "output", ""))},
        )
    say(f"submit: packed {len(content) / 1000:,.0f} kB")
    return job_id


def _tracking_address() -> dict[str, str]:
    """Pass MLFLOW_TRACKING_URI on, except one with a password: Ray's page shows a job's environment."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri or "://" not in uri:
        return {}
    if without_credentials(uri) != uri:
        say("submit: MLFLOW_TRACKING_URI holds a password and is not passed on; set it in the cluster's environment")
        return {}
    return {"MLFLOW_TRACKING_URI": uri}


def _after_interrupt(head: Head, job_id: str) -> int | None:
    """Ask what a Ctrl-C is meant for; return the exit code, or None to go on following."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        say(f"\n{job_id} goes on; stop it with {_command('stop', head, job_id)}")
        return _INTERRUPTED
    answer = "d"
    with contextlib.suppress(KeyboardInterrupt, EOFError):
        sys.stderr.write(f"\nstop {job_id} (s), leave it running (d), or follow on (Enter)? ")
        sys.stderr.flush()
        answer = input().strip().lower()
    if answer.startswith("s"):
        return exit_code_of(stop(head, job_id)) or _INTERRUPTED
    if answer.startswith(("d", "l")):
        say(f"{job_id} goes on; follow it with {_command('logs', head, job_id)} --follow")
        return 0
    return None


def _command(verb: str, head: Head, job_id: str) -> str:
    return f"herd jobs {verb} {job_id} --cluster.address {head.address}"
