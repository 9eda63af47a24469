"""The jobs of a cluster share one Ray Serve."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from ray import serve

from cluster.serving.application import deployed
from cluster.serving.http_guard import Access
from cluster.serving.service import resolve, running
from cluster.session import Cluster
from gpt_core.errors import ResourceError
from gpt_core.settings import ServeSettings
from tests.tiny_checkpoint import write_tiny_checkpoint


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Answer:
    def __call__(self) -> str:
        return "here"


def without_http() -> None:
    serve.start(proxy_location="Disabled")


def test_a_job_deploys_after_another_has_ended_ray_serve_not_meanwhile(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = replace(cluster, address="auto")
    is_ending, starting = threading.Event(), threading.Event()
    order = []
    shutdown = serve.shutdown

    def shut_down_slowly() -> None:
        monkeypatch.setattr(serve, "shutdown", shutdown)
        is_ending.set()
        assert not starting.wait(1.5), "another job started Ray Serve while this one ended it"
        shutdown()
        order.append("ended")

    def start() -> None:
        starting.set()
        order.append("started")
        without_http()

    def second() -> str:
        assert is_ending.wait(60)
        with deployed(Answer.bind(), "second", None, shared, start) as handle:
            return handle.remote().result(timeout_s=30)

    serve.shutdown()  # of the tests before
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(second)
        with deployed(Answer.bind(), "first", None, shared, without_http):
            monkeypatch.setattr(serve, "shutdown", shut_down_slowly)
        assert answer.result(60) == "here"
    assert order == ["ended", "started"]


def test_a_service_says_that_it_gets_no_http_while_a_job_has_none(cluster: Cluster, tmp_path: Path) -> None:
    serve.shutdown()
    settings = ServeSettings(checkpoint=str(write_tiny_checkpoint(tmp_path)))
    with (
        deployed(Answer.bind(), "herd-generate-1", None, cluster, without_http),
        pytest.raises(ResourceError, match=r"without HTTP on this cluster, for herd-generate-1; .* wait for their end"),
        running(settings, resolve(settings), Access(None, None), cluster),
    ):
        pass
    serve.shutdown()
