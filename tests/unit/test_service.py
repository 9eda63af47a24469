"""Promises of cluster.serving.service, without Ray: why a service ends, and in which order."""

import contextlib
import threading
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError

from cluster.serving import service
from cluster.session import Cluster
from gpt_core.errors import RunFailedError
from gpt_core.settings import ServeJob
from tests.tiny_checkpoint import write_tiny_checkpoint


def says(*answers):
    """Return a function that gives these answers, or raises them, one a call."""
    left = list(answers)

    def answer(_):
        given = left.pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    return answer


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(service, "_WAKE_SECONDS", 0)


def test_a_service_that_is_gone_ends_in_an_error_and_one_whose_ray_is_silent_goes_on(monkeypatch):
    monkeypatch.setattr(service, "is_own", says(True, GetTimeoutError("the head"), True))
    monkeypatch.setattr(service, "is_gone", says(GetTimeoutError("the controller"), False, False, True))
    with pytest.raises(RunFailedError, match="herd-serve-1: found no such application any more"):
        service._wait_for_end("herd-serve-1", threading.Event())


def test_a_service_that_another_job_replaced_is_not_taken_for_gone(monkeypatch):
    monkeypatch.setattr(service, "is_own", says(False))
    monkeypatch.setattr(service, "is_gone", says(True))
    assert service._wait_for_end("herd-serve-1", threading.Event()) == "another job took its place"


@pytest.mark.parametrize("error", [ActorDiedError(), TimeoutError()])
def test_a_drain_that_fails_leaves_the_end_as_it_was(monkeypatch, capsys, error):
    monkeypatch.setattr(service, "is_own", says(True))
    monkeypatch.setattr(service, "is_gone", says(False))
    answer = SimpleNamespace(result=Mock(side_effect=error))
    handle = SimpleNamespace(drain=SimpleNamespace(remote=lambda seconds: answer))
    service._drain("herd-serve-1", handle, 1)
    assert f"is not known: {type(error).__name__}" in capsys.readouterr().err


def test_the_drain_waits_for_no_link(monkeypatch, tmp_path):
    order = []

    @contextlib.contextmanager
    def around(name, value=None):
        yield value
        order.append(name)

    monkeypatch.setattr(service, "connect", lambda _: around("Ray", Cluster("auto", 1, 0)))
    monkeypatch.setattr(service, "running", lambda *_: around("drain", "http://127.0.0.1:8000"))
    monkeypatch.setattr(service, "_linked", lambda *_: around("link"))
    monkeypatch.setattr(service, "_head_name", lambda: "head")
    monkeypatch.setattr(service, "_wait_for_end", lambda *_: "it was stopped")
    service.serve_until_stopped(ServeJob(checkpoint=str(write_tiny_checkpoint(tmp_path))))
    assert order == ["drain", "link", "Ray"]


@pytest.mark.parametrize(("head", "said"), [
    ("elsewhere", "listening on http://127.0.0.1:8000 at elsewhere (that machine only)"),
    (service.socket.gethostname(), "listening on http://127.0.0.1:8000 (this machine only)"),
])  # fmt: skip
def test_the_machine_that_listens_is_named_where_it_is_another(capsys, head, said):
    served = service.Served("model", {})
    service._announce(ServeJob(checkpoint="model"), served, "http://127.0.0.1:8000", Cluster("auto", 1, 0), head)
    assert said in capsys.readouterr().err
