"""An application on Ray Serve for as long as a job needs it, and Ray Serve itself, which a cluster's jobs share.

Ray Serve ends with its last application. That no job deploys between another's look for applications and the
end of Ray Serve, which would take the new one along or drop it without a word, is kept by a lock on the cluster.
Beside it the cluster notes which job deployed an application: one whose job was killed is taken down by the next.
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
_OURS = "herd-"
_WAIT_SECONDS = 0.1
_ANSWER_SECONDS = 5.0


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
        _take_down_of_dead_jobs(cluster)
        serve.start(proxy_location="Disabled", logging_config=QUIET_LOGGING)
        # Before the one it replaces is gone, whose job would else look for the reason.
        _internal_kv_put(name, _own_job(), namespace=_NAMESPACE)
        try:
            if name in applications_in_use():
                say(f"replacing {name}, which runs on this cluster already")
                serve.delete(name)
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


def is_gone(name: str) -> bool:
    """Return whether Ray Serve has ended, or has no such application; RayError where it does not answer."""
    import ray
    from ray.exceptions import ActorDiedError
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None
    try:
        ingress = client._controller.get_ingress_deployment_name.remote(name)
        return ray.get(ingress, timeout=_ANSWER_SECONDS) is None
    except ActorDiedError:
        return True


def _take_down(name: str, cluster: Cluster) -> None:
    """Take an application down, and Ray Serve with the last one: its next user may want another address, or one at all.

    A Ray of this job's own ends with it.
    """
    from ray import serve
    from ray.exceptions import ActorDiedError
    from ray.experimental.internal_kv import _internal_kv_del
    from ray.serve.exceptions import RayServeException

    _internal_kv_del(name, namespace=_NAMESPACE)
    with contextlib.suppress(ActorDiedError, RayServeException):  # Ray Serve has ended already
        serve.delete(name)
        if cluster.address is not None and not applications_in_use():
            serve.shutdown()


def _take_down_of_dead_jobs(cluster: Cluster) -> None:
    """Take down what jobs left on the cluster that were killed, or whose machine was taken away."""
    import ray
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list

    names = [name.decode() for name in _internal_kv_list(_OURS, namespace=_NAMESPACE)]
    if not names:
        return
    dead = ray.get(ray.remote(num_cpus=0, max_calls=1)(_dead_jobs).remote())
    for name in names:
        if _internal_kv_get(name, namespace=_NAMESPACE) in dead:
            say(f"taking down {name}, whose job has died")
            _take_down(name, cluster)


def _dead_jobs() -> set[bytes]:
    """Return the jobs whose drivers have ended. To be called on the cluster: a client of it is not told."""
    from ray._private.state import state

    return {job["JobID"].encode() for job in state.job_table() if job["IsDead"]}


def applications_in_use() -> list[str]:
    """Return the names of the applications on Ray Serve, but for those whose first deployment failed."""
    from ray import serve

    found = serve.status().applications.items()
    return sorted(name for name, state in found if state.deployments or state.status != "DEPLOY_FAILED")


def require_http(place: str, cluster: Cluster) -> None:
    """Raise ResourceError where Ray Serve runs without HTTP proxies, which it does not add later.

    Args:
        place: What wants them.
        cluster: Where; what jobs left on it that have died is taken down first.
    """
    import ray
    from ray import serve
    from ray.serve.context import _get_global_client

    with _alone(cluster):
        _take_down_of_dead_jobs(cluster)
    client = _get_global_client()
    assert client is not None
    if ray.get(client._controller.get_proxy_location.remote()) == "Disabled":
        found = serve.status().applications.items()
        names = sorted(name for name, state in found if state.deployments or name.startswith(_OURS))
        raise ResourceError(
            place,
            f"a Ray Serve without HTTP on this cluster, for {', '.join(names) or 'a job that has died'}",
            "one with HTTP",
            f"{'wait for their end' if names else 'run `serve shutdown`'} and try again",
        )


@contextlib.contextmanager
def _alone(cluster: Cluster) -> Iterator[None]:
    """Hold the lock of the cluster while the body runs.

    It is the name of an actor: Ray gives a name to one at a time, and takes it back from a job that dies.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if cluster.address is None:
        yield
        return
    # Held from elsewhere the lock would be free when that node dies, while this job still deploys.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"name": _LOCK, "namespace": _NAMESPACE, "num_cpus": 0, "scheduling_strategy": here}
    is_told = False
    while True:
        try:
            lock: Any = ray.remote(_Lock).options(**options).remote()
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
