"""The connection to Ray: one started for this job on loopback, or a cluster that is running already.

Every job module enters through :func:`connect`. Errors that cross Ray come back through
:func:`cause_of`, so that a user sees the first worker's own sentence.
"""

import contextlib
import functools
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import interrupts
from cluster.own_cpus import usable_cpus
from cluster.progress import say
from cluster.scaling import wait_for_nodes
from gpt_core.errors import HerdError, ResourceError, RunFailedError, full_disk
from gpt_core.settings import ClusterSettings

# Ray reads these when it is first imported or when it starts its processes.
_TOLD_CHARACTERS = 300
_QUIET_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else a worker's print appears twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # report() waits for this poll
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # cluster.fitting watches for nodes that leave
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # native code prints into the job's own output otherwise
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default; unset it warns
    "TOKENIZERS_PARALLELISM": "false",
}
# Ray's own switch for desktop systems makes every one of its servers bind 127.0.0.1;
# without it they listen on all interfaces. Read when ray is imported.
_LOOPBACK_RAY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0"}
_MISTAKES_IN_CODE = (TypeError, AttributeError, NameError, ImportError, AssertionError, NotImplementedError)
OWN_RAY_SETTINGS = ("num_cpus", "object_store_bytes")
"""Settings of the job's own Ray: those of a running cluster are not a job's to choose."""

_UNUSED_SERVERS = ("start_monitor", "start_log_monitor", "start_api_server")
_OBJECT_STORE_BYTES = 268_435_456
_NOISY_LOGGERS = ("ray", "ray.data", "ray.train", "ray.serve", "ray.tune")


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a connected job may count on.

    Attributes:
        address: Address of the cluster, None for a Ray of the job's own.
        num_cpus: CPUs of all nodes.
        num_gpus: GPUs of all nodes.
    """

    address: str | None
    num_cpus: int
    num_gpus: int

    def require_cpus(self, needed: float, setting: str) -> None:
        """Raise ResourceError, naming the setting, where the cluster has fewer CPUs than needed."""
        self._require(needed, self.num_cpus, "CPUs", setting)

    def require_gpus(self, needed: float, setting: str) -> None:
        """Raise ResourceError, naming the setting, where the cluster has fewer GPUs than needed."""
        self._require(needed, self.num_gpus, "GPUs", setting)

    def _require(self, needed: float, found: int, what: str, setting: str) -> None:
        if needed > found:
            raise ResourceError(
                setting,
                f"a need of {needed:g} {what}",
                f"at most the {found} {what} of {self.address or 'this machine'}",
                "lower it, or join a larger cluster with --cluster.address",
            )


def address_of(settings: ClusterSettings) -> str | None:
    """Return the address of the cluster to join, None for a Ray of the job's own.

    Raises:
        ResourceError: A setting of the job's own Ray is given together with an address.
    """
    address = settings.address or os.environ.get("RAY_ADDRESS") or None
    origin = "cluster.address" if settings.address else "the environment variable RAY_ADDRESS"
    for name in OWN_RAY_SETTINGS:
        value = getattr(settings, name)
        if address and value is not None:
            expected = f"none together with an address, and {origin} is {address}"
            raise ResourceError(f"cluster.{name}", str(value), expected, "leave out one of the two")
    return address


def require_own_cpus(settings: ClusterSettings, needed: float, setting: str) -> None:
    """Raise ResourceError where a Ray of the job's own, not started yet, would have fewer CPUs than needed."""
    if address_of(settings) is None:
        Cluster(None, _own_cpus(settings), 0).require_cpus(needed, setting)


def _own_cpus(settings: ClusterSettings) -> int:
    return settings.num_cpus or usable_cpus()


@contextlib.contextmanager
def connect(settings: ClusterSettings) -> Iterator[Cluster]:
    """Connect to the cluster of the settings, or start a Ray of the job's own and stop it at the end.

    Raises:
        ResourceError: If the address does not answer, or there is less than the settings ask for.
        HerdError: Any error of the body, unwrapped from Ray's own exceptions.
    """
    address = address_of(settings)
    _prepare_environment(embedded=address is None)
    with interrupts.held():
        import ray

        quiet_libraries()
        with _signals_kept():
            _start(settings, address)
    try:
        if address:
            wait_for_nodes(settings)
        resources = ray.cluster_resources()
        cluster = Cluster(address, int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))
        cluster.require_cpus(settings.min_cpus or 0, "cluster.min_cpus")
        cluster.require_gpus(settings.min_gpus or 0, "cluster.min_gpus")
        yield cluster
    except HerdError:
        raise
    except Exception as error:
        raise cause_of(error) from error
    finally:
        with interrupts.held():
            ray.shutdown()


def _prepare_environment(*, embedded: bool) -> None:
    for name, value in (_QUIET_RAY | (_LOOPBACK_RAY if embedded else {})).items():
        os.environ.setdefault(name, value)
    # Workers import the project from where this process has it, also from a plain checkout.
    root = str(Path(__file__).resolve().parent.parent)
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != root]
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *paths])


def quiet_libraries() -> None:
    """Silence Ray's loggers; called again after an import of a Ray library, which sets them anew."""
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"ray\..*")


def _start(settings: ClusterSettings, address: str | None) -> None:
    import ray._private.auto_init_hook
    import ray._private.ray_constants
    import ray._private.worker

    ray._private.worker.print_to_stdstream = _tell
    # A thread of Ray Data that outlives Ctrl-C would else start another Ray, which listens on all interfaces.
    ray._private.auto_init_hook.enable_auto_connect = False
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    if address is None:
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = False  # as in _LOOPBACK_RAY, for a ray imported before
        with _native_code_silenced(), _unused_servers_left_out(), _in_groups_of_their_own():
            ray.init(
                address="local",
                num_cpus=_own_cpus(settings),
                include_dashboard=False,
                object_store_memory=settings.object_store_bytes or _OBJECT_STORE_BYTES,
                **options,
            )
        return
    # Ray switches token authentication on by itself only for "auto"; an explicit address fails after 20 s without it.
    if Path.home().joinpath(".ray", "auth_token").exists() or os.environ.get("RAY_AUTH_TOKEN"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        with _native_code_silenced():
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ResourceError(
            f"cluster.address {address}",
            first_line,
            "a running Ray head that accepts this client",
            "check the address (HOST:6379, ray://HOST:10001 or auto) and the token (RAY_AUTH_MODE, RAY_AUTH_TOKEN)",
        ) from error


@contextlib.contextmanager
def _unused_servers_left_out() -> Iterator[None]:
    """Start a node without servers of Ray's that do nothing for a job's own Ray, yet take seconds to start and to end.

    They are the autoscaler's monitor, the one that brings workers' prints to the driver, and the dashboard's, which
    Ray starts even where there is no dashboard.
    """
    import ray._private.node

    node = ray._private.node.Node
    kept = {name: getattr(node, name) for name in _UNUSED_SERVERS}
    try:
        for name in kept:
            setattr(node, name, lambda _node, **_options: None)
        yield
    finally:
        for name, start in kept.items():
            setattr(node, name, start)


@contextlib.contextmanager
def _in_groups_of_their_own() -> Iterator[None]:
    """Start Ray's processes outside of this command's group, whose signals, as from timeout, would end them first."""
    from ray._private import services

    plain = services.ConsolePopen
    services.ConsolePopen = functools.partial(plain, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = plain


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Put back what the signals do in this process: Ray makes SIGTERM an exit without a word, code 15."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _native_code_silenced() -> Iterator[None]:
    """Send what native code prints on standard error nowhere; what goes wrong comes as an exception."""
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _tell(message: dict[str, Any], **_: object) -> None:
    """Say what Ray tells a driver, such as a worker killed for its memory; Ray itself would on standard output.

    That calls to Ray Serve's controller fail when it is shut down is nothing to tell; nor is a message without lines,
    as it has come when Ray went down at Ctrl-C.
    """
    told = str(next(iter(message.get("lines", ())), "")).partition("\n")[0][:_TOLD_CHARACTERS]
    if told and "ServeController" not in told:
        say(f"Ray: {told}")


def cause_of(error: BaseException) -> HerdError:
    """Return the project's own error inside Ray's wrappers, else a RunFailedError that names the innermost."""
    own = own_error_in(error)
    if own is not None:
        return own
    *_, innermost = _inside(error)
    text = str(innermost).strip().splitlines()
    return RunFailedError(
        type(innermost).__name__,
        text[-1] if text else "no message",
        "a job that runs to its end",
        "run with --traceback for the whole story; a rerun continues where this one stopped",
    )


def own_error_in(error: BaseException) -> HerdError | None:
    """Return the first error of this project inside Ray's wrappers, a full disk as one; None where there is none."""
    for inner in _inside(error):
        if full := full_disk(inner):
            return full
        # Ray's own copies of an error are of both classes and have their text changed.
        if isinstance(inner, HerdError) and not hasattr(inner, "as_instanceof_cause"):
            return inner
    return None


def is_mistake_in_code(error: BaseException) -> bool:
    """Tell whether a mistake in the program is inside Ray's wrappers: it would only come again."""
    return any(isinstance(inner, _MISTAKES_IN_CODE) for inner in _inside(error))


def _inside(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and what it wraps, outermost first."""
    seen: set[int] = set()
    queue: list[BaseException] = [error]
    while queue:
        current = queue.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        failures = getattr(current, "worker_failures", None)
        if isinstance(failures, dict):
            queue += [failures[rank] for rank in sorted(failures)]
        for inner in (
            getattr(current, "cause", None),
            getattr(current, "controller_failure", None),
            current.__cause__,
        ):
            if isinstance(inner, BaseException):
                queue.append(inner)
