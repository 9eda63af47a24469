"""The head of a running cluster, spoken to over HTTP: its version, its nodes and its jobs.

What can be wrong is found before anything is sent: whether the head answers, whether it wants
a token and takes ours, whether it runs the same Ray, and what its nodes have.
"""

import http.client
import importlib.metadata
import json
import logging
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_core.errors import ResourceError, RunFailedError, UserError

_ANSWER_SECONDS = 10.0
_FIRST_REPORT_SECONDS = 12.0
_FINISHED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


class HeadSilentError(RunFailedError):
    """The head does not answer; it may again."""


@dataclass(frozen=True, slots=True)
class JobState:
    """A job of the cluster, as its head tells it.

    Attributes:
        job_id: What the job was submitted as.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        message: Ray's own words about the status.
        exit_code: Of the job's process, where it ended by itself.
        started_seconds: Time of the submission since 1970.
        ended_seconds: Time of the end since 1970.
        metadata: What `herd submit` wrote down: job and output.
    """

    job_id: str
    status: str
    message: str
    exit_code: int | None
    started_seconds: float | None
    ended_seconds: float | None
    metadata: dict[str, str]

    @property
    def finished(self) -> bool:
        """True when nothing will change any more."""
        return self.status in _FINISHED


@dataclass(frozen=True, slots=True)
class Nodes:
    """What the living nodes of a cluster have.

    Attributes:
        ids: Ray's id of each node.
        cpus: CPUs of each node.
        gpus: GPUs of each node.
    """

    ids: tuple[str, ...]
    cpus: tuple[float, ...]
    gpus: tuple[float, ...]

    def __str__(self) -> str:
        plural = "" if len(self.cpus) == 1 else "s"
        return f"{len(self.cpus)} node{plural}, {sum(self.cpus):g} CPUs, {sum(self.gpus):g} GPUs"


class Head:
    """A head that answered, took our token and runs our Ray.

    Args:
        address: From :func:`cluster.submission.head_address.address_of`.

    Raises:
        ResourceError: If nothing answers, it is no Ray head, it refuses our token, or its Ray is another.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._token: str | None = None
        try:
            told = self._get("/api/version")
        except HeadSilentError as error:
            raise ResourceError(*error.args) from error
        self.ray_version = str(told.get("ray_version", "")) if isinstance(told, dict) else ""
        ours = importlib.metadata.version("ray")
        if _series(self.ray_version) != _series(ours):
            raise ResourceError(
                f"cluster.address {address}",
                f"Ray {self.ray_version or '(no version told)'} on the cluster",
                f"Ray {ours}, as here",
                "install the versions of constraints.txt on both sides",
            )
        self._ray = self._client()

    def nodes(self) -> Nodes:
        """Return what the living nodes have; a head that just started lists its own within seconds."""
        give_up = time.monotonic() + _FIRST_REPORT_SECONDS
        while not (alive := self._alive()) and time.monotonic() < give_up:
            time.sleep(0.5)
        totals = [node.get("resources_total") or {} for node in alive]
        return Nodes(
            tuple(node["node_id"] for node in alive),
            tuple(total.get("CPU", 0.0) for total in totals),
            tuple(total.get("GPU", 0.0) for total in totals),
        )

    def _alive(self) -> list[dict[str, Any]]:
        listed = self._get("/api/v0/nodes?limit=10000")["data"]["result"]["result"]
        return [node for node in listed if node["state"] == "ALIVE"]

    def can_grow(self, nodes: Nodes) -> bool:
        """Tell whether an autoscaler may add nodes: False only where there is known to be none.

        Where none is configured, Ray's monitor makes up one node type a node, named after its
        id; its first report comes some seconds after the head's start.
        """
        give_up = time.monotonic() + _FIRST_REPORT_SECONDS
        while time.monotonic() < give_up:
            status = self._get("/api/cluster_status")["data"].get("clusterStatus") or {}
            if types := (status.get("autoscalerReport") or {}).get("nodeTypeMapping"):
                return any(types.get(node_id, "") != f"node_{node_id}" for node_id in nodes.ids)
            time.sleep(0.5)
        return True

    def submit(self, job_id: str, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> None:
        """Start a job: upload the package its runtime_env names and run the entrypoint in it.

        Raises:
            RunFailedError: If the head refuses it.
        """
        try:
            self._ray.submit_job(
                submission_id=job_id, entrypoint=entrypoint, runtime_env=runtime_env, metadata=metadata
            )
        except (RuntimeError, OSError) as error:
            raise RunFailedError(
                f"submit to {self.address}",
                _first_line(error),
                "a head that takes the job",
                "look at the head's dashboard and logs, then try again",
            ) from error

    def job(self, job_id: str) -> JobState:
        """Return the state of a job.

        Raises:
            UserError: If the head knows no such job, or nobody submitted it.
            HeadSilentError: If the head does not answer.
        """
        told = self._get(_path_of(job_id))
        if not isinstance(told, dict) or not told.get("submission_id"):
            raise self._unknown(job_id)
        return _state(told)

    def jobs(self) -> list[JobState]:
        """Return all submitted jobs, the oldest first."""
        states = [_state(told) for told in self._get("/api/jobs/") if told.get("submission_id")]
        return sorted(states, key=lambda state: state.started_seconds or 0.0)

    def logs(self, job_id: str) -> str:
        """Return what a job has printed so far."""
        return str(self._get(f"{_path_of(job_id)}/logs")["logs"])

    def tail(self, job_id: str) -> AsyncIterator[str]:
        """Yield what a job printed, from its start, and what it prints, in pieces, until it ends."""
        return self._ray.tail_job_logs(job_id)

    def stop(self, job_id: str) -> None:
        """Ask a job to stop; it ends cleanly within seconds."""
        self._get(f"{_path_of(job_id)}/stop", method="POST")

    def _get(self, path: str, method: str = "GET") -> Any:
        """Return the JSON a path answers with; where the head asks for a token, send ours from then on."""
        try:
            return self._answer(path, method)
        except urllib.error.HTTPError as error:
            if error.code == http.client.UNAUTHORIZED and self._token is None:
                self._token = _read_token(self.address)
                return self._get(path, method)
            raise self._refused(error, path) from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise self._mistaken("an answer that is not a Ray head's", "check host and port") from error
        except (OSError, http.client.HTTPException) as error:
            raise self._silent(error) from error

    def _answer(self, path: str, method: str) -> Any:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        request = urllib.request.Request(self.address + path, headers=headers, method=method)  # noqa: S310 - checked
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as response:  # noqa: S310
            return json.load(response)

    def _client(self) -> Any:
        """Return Ray's own client, for uploads and log streams."""
        if self._token:
            # Ray reads these when it is imported; without them its client sends no token.
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ["RAY_AUTH_TOKEN"] = self._token
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        from ray.job_submission import JobSubmissionClient

        for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.ERROR)
        try:
            return JobSubmissionClient(self.address)
        except (RuntimeError, OSError) as error:
            raise self._mistaken(_first_line(error), "check RAY_AUTH_MODE and the token") from error

    def _refused(self, error: urllib.error.HTTPError, path: str) -> Exception:
        text = error.read(2000).decode("utf-8", "replace").strip()
        if error.code in {http.client.UNAUTHORIZED, http.client.FORBIDDEN} and self._token:
            return self._mistaken(
                f"a token that it refuses (HTTP {error.code})",
                "set RAY_AUTH_TOKEN to the cluster's token; `ray get-auth-token` on its head prints it",
            )
        if error.code == http.client.FORBIDDEN:
            return self._mistaken(
                "access denied (HTTP 403)", "ask whoever runs the cluster, or check the proxy before it"
            )
        if error.code == http.client.NOT_FOUND and path.startswith("/api/jobs/"):
            return self._unknown(urllib.parse.unquote(path.split("/")[3]))
        if path == "/api/version":
            return self._mistaken(f"an answer that is not a Ray head's (HTTP {error.code})", "check host and port")
        # A head that starts, or a proxy whose head is away: neither says anything about the job.
        kind = HeadSilentError if error.code >= http.client.INTERNAL_SERVER_ERROR else RunFailedError
        return kind(f"{self.address}{path}", f"HTTP {error.code}: {text[:200]}", "an answer", "try again")

    def _unknown(self, job_id: str) -> UserError:
        return UserError(f"job {job_id}", f"no such job on {self.address}", "a job's id", "herd jobs list shows them")

    def _mistaken(self, found: str, remedy: str) -> ResourceError:
        return ResourceError(f"cluster.address {self.address}", found, "the dashboard of a running Ray head", remedy)

    def _silent(self, error: OSError | http.client.HTTPException) -> Exception:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            plain = "WRONG_VERSION" in str(reason) or "RECORD_LAYER" in str(reason)
            address = self.address.replace("https://", "http://")
            if plain:
                return self._mistaken("a head that speaks http, not https", f"write {address}")
            return self._mistaken(
                f"a certificate that cannot be checked ({reason})", "set SSL_CERT_FILE to its authority"
            )
        return HeadSilentError(
            f"cluster.address {self.address}",
            f"no answer ({_reason_text(reason)})",
            "a running Ray head",
            "check host and port, and that its dashboard is reachable from here "
            "(ray start --head --dashboard-host, or ssh -L 8265:localhost:8265 HEAD)",
        )


def _read_token(address: str) -> str:
    """Return the token Ray itself would send; ResourceError where there is none."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        token = file.read_text(encoding="utf-8").strip()
    except OSError:
        token = ""
    if not token:
        raise ResourceError(
            f"cluster.address {address}",
            f"a head that asks for a token (HTTP 401), and none in RAY_AUTH_TOKEN or {file}",
            "the cluster's token",
            f"run `ray get-auth-token` on its head and put the text into {file} or RAY_AUTH_TOKEN",
        )
    return token


def _path_of(job_id: str) -> str:
    return f"/api/jobs/{urllib.parse.quote(job_id, safe='')}"


def _state(told: dict[str, Any]) -> JobState:
    def seconds(name: str) -> float | None:
        return told[name] / 1000 if told.get(name) else None

    return JobState(
        job_id=told["submission_id"],
        status=told["status"],
        message=told.get("message") or "",
        exit_code=told.get("driver_exit_code"),
        started_seconds=seconds("start_time"),
        ended_seconds=seconds("end_time"),
        metadata=told.get("metadata") or {},
    )


def _series(version: str) -> list[str]:
    return version.split(".")[:2]


def _reason_text(reason: object) -> str:
    if isinstance(reason, TimeoutError):
        return f"{_ANSWER_SECONDS:g} s passed"
    if isinstance(reason, OSError):
        return (reason.strerror or str(reason) or type(reason).__name__).lower()
    return str(reason) or type(reason).__name__


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
