"""The jobs of a cluster share one Ray Serve."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import ray
from ray import serve

from cluster.serving.application import deployed, is_gone, is_own, require_http
from cluster.session import Cluster
from gpt_core.errors import ResourceError


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Answer:
    def __call__(self) -> str:
        return "here"


def test_a_job_deploys_after_another_has_ended_ray_serve_not_meanwhile(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = replace(cluster, address="auto")
    is_ending, starting = threading.Event(), threading.Event()
    order = []
    shutdown, start = serve.shutdown, serve.start

    def shut_down_slowly() -> None:
        monkeypatch.setattr(serve, "shutdown", shutdown)
        is_ending.set()
        assert not starting.wait(1.5), "another job started Ray Serve while this one ended it"
        shutdown()
        order.append("ended")

    def start_noticing(**options: Any) -> None:
        starting.set()
        order.append("started")
        start(**options)

    def second() -> str:
        assert is_ending.wait(60)
        monkeypatch.setattr(serve, "start", start_noticing)
        with deployed(Answer.bind(), "second", shared) as handle:
            return handle.remote().result(timeout_s=30)

    serve.shutdown()  # of the tests before
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(second)
        with deployed(Answer.bind(), "first", shared):
            monkeypatch.setattr(serve, "shutdown", shut_down_slowly)
        assert answer.result(60) == "here"
    assert order == ["ended", "started"]


def test_an_application_for_ray_serves_proxies_is_refused_while_a_job_has_none(cluster: Cluster) -> None:
    serve.shutdown()
    with (
        deployed(Answer.bind(), "herd-generate-1", cluster),
        pytest.raises(ResourceError, match=r"without HTTP on this cluster, for herd-generate-1; .* wait for their end"),
    ):
        require_http("serve deploy", cluster)
    with pytest.raises(ResourceError, match=r"for a job that has died; .* run `serve shutdown` and try again"):
        require_http("serve deploy", cluster)
    serve.shutdown()


@pytest.mark.parametrize("take_down", [lambda: serve.delete("herd-taken"), serve.shutdown])
def test_an_application_that_somebody_took_down_is_known_to_be_gone(
    cluster: Cluster, take_down: Callable[[], None]
) -> None:
    with deployed(Answer.bind(), "herd-taken", replace(cluster, address="auto")):
        assert not is_gone("herd-taken")
        ray.get(ray.remote(num_cpus=0)(take_down).remote())
        give_up = time.monotonic() + 30  # Ray Serve ends a moment after its word
        while not is_gone("herd-taken"):
            assert time.monotonic() < give_up
            time.sleep(0.1)
    assert not is_own("herd-taken")
