"""An application on Ray Serve for as long as a job needs it, and Ray Serve itself, which a cluster's jobs share.

Ray Serve ends with its last application. That no job deploys between another's look for applications and the
end of Ray Serve, which would take the new one along or drop it without a word, is kept by a lock on the cluster.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from cluster.progress import say
from cluster.session import Cluster, quiet_libraries
from gpt_core.errors import ResourceError

# No access log: it would name every request. Errors stay in the files of Ray's session folder.
QUIET_LOGGING = {"log_level": "ERROR", "enable_access_log": False}
_LOCK = "ray-serve"
_NAMESPACE = "herd"
_WAIT_SECONDS = 0.1


@contextlib.contextmanager
def deployed(application: Any, name: str, cluster: Cluster) -> Iterator[Any]:
    """Yield the handle of an application that runs, unknown to Ray Serve's HTTP proxies, and take it down afterwards.

    An application that another job has put in its place stays.

    Args:
        application: What ``bind`` of a deployment returned.
        name: Of the application; one that has it already is replaced.
        cluster: Where.
    """
    from ray import serve
    from ray.experimental.internal_kv import _internal_kv_put
    from ray.serve.context import _get_global_client

    quiet_libraries()
    with _alone(cluster):
        serve.start(proxy_location="Disabled", logging_config=QUIET_LOGGING)
        if name in applications_in_use():
            say(f"replacing {name}, which runs on this cluster already")
            serve.delete(name)
        _internal_kv_put(name, _own_job(), namespace=_NAMESPACE)
        try:
            # Others wait only until Ray Serve has the application: to run, it may need nodes that are yet to come.
            target = serve.RunTarget(application, name, None, QUIET_LOGGING)
            (handle,) = serve.run_many([target], wait_for_applications_running=False)
        except BaseException:
            _take_down(name, cluster)
            raise
    try:
        client = _get_global_client()
        assert client is not None
        client._wait_for_application_running(name)  # as serve.run does
        yield handle
    finally:
        with _alone(cluster):
            if is_own(name):
                _take_down(name, cluster)
            else:
                say(f"leaving {name} to the job that took its place")


def is_own(name: str) -> bool:
    """Return whether this job was the last to deploy an application of that name."""
    from ray.experimental.internal_kv import _internal_kv_get

    return _internal_kv_get(name, namespace=_NAMESPACE) == _own_job()


def _own_job() -> bytes:
    import ray

    return ray.get_runtime_context().get_job_id().encode()


def _take_down(name: str, cluster: Cluster) -> None:
    """Take an application down, and Ray Serve with the last one: its next user may want another address, or one at all.

    A Ray of this job's own ends with it.
    """
    from ray import serve

    serve.delete(name)
    if cluster.address is not None and not applications_in_use():
        serve.shutdown()


def applications_in_use() -> list[str]:
    """Return the names of the applications on Ray Serve, but for those whose first deployment failed."""
    from ray import serve

    found = serve.status().applications.items()
    return sorted(name for name, state in found if state.deployments or state.status != "DEPLOY_FAILED")


def require_http(place: str) -> None:
    """Raise ResourceError where Ray Serve runs without HTTP proxies, which it does not add later.

    Args:
        place: What wants them.
    """
    from ray import serve

    status = serve.status()
    names = sorted(name for name, state in status.applications.items() if state.deployments)
    if names and not status.proxies:
        raise ResourceError(
            place,
            f"a Ray Serve without HTTP on this cluster, for {', '.join(names)}",
            "one with HTTP",
            "wait for their end and try again",
        )


@contextlib.contextmanager
def _alone(cluster: Cluster) -> Iterator[None]:
    """Hold the lock of the cluster while the body runs.

    It is the name of an actor: Ray gives a name to one at a time, and takes it back from a job that dies.
    """
    import ray

    if cluster.address is None:
        yield
        return
    is_told = False
    while True:
        try:
            lock: Any = ray.remote(_Lock).options(name=_LOCK, namespace=_NAMESPACE, num_cpus=0).remote()
            break
        except ValueError:  # the name is taken
            if not is_told:
                say("waiting for another job, which starts or ends Ray Serve on this cluster")
                is_told = True
            time.sleep(_WAIT_SECONDS)
    try:
        yield
    finally:
        ray.kill(lock)


class _Lock:
    pass
