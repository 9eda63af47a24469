"""A dataset through a running service: the same samples as from the engine itself, and refusals in words."""

import contextlib
import json
import socket
import threading
import time
import uuid
from dataclasses import replace

import orjson
import pytest
import uvicorn

from cluster.serving.completions_schema import ServedModel
from cluster.serving.engine_loop import EngineLoop
from cluster.serving.generate_api import GenerateApi
from cluster.serving.http_api import Admission, Api, Limits, build_app
from cluster.serving.http_guard import Access, access_for
from cluster.serving.service_client import Service, ServiceCalls
from gpt_core.errors import CheckpointError, ResourceError, RunFailedError
from gpt_core.generation.request import GenerationRequest, Sampling
from tests.unit.tiny_engine import TOKENIZER, make_engine, shared_engine

DIGEST = "d" * 64
SAMPLINGS = [
    Sampling(max_tokens=9),
    Sampling(max_tokens=5, n=3, logprobs=2, echo=True, seed=4),
    Sampling(max_tokens=30, temperature=0.0, stop_ids=(101,), stop=("q",), stop_at_end_of_text=False),
    Sampling(max_tokens=7, top_k=None, top_p=0.9, min_p=0.01, repetition_penalty=1.2, logprobs=0),
]
REQUESTS = [GenerationRequest(f"row {i}", tuple(f"Prompt {i} ☃".encode()), SAMPLINGS[i % 4]) for i in range(8)]


class LoopCompleter:
    """What ``EngineClient`` is to a service, without Ray; streams are not asked for."""

    def __init__(self):
        self.loop = EngineLoop(make_engine(slots=4, precision="fp32"))

    async def check(self):
        return

    def stream(self, requests):
        raise NotImplementedError

    async def complete(self, requests):
        return [await self.loop.complete(replace(request, id=uuid.uuid4().hex)) for request in requests]


@contextlib.contextmanager
def serving(access, capacity=100, max_completions=16):
    """Serve a tiny model on a port of this machine; yields the address and the admission."""
    completer, admission, limits = LoopCompleter(), Admission(capacity), Limits(1 << 20, max_completions)
    model = ServedModel("tiny", TOKENIZER, 160, "herd-d", 0, DIGEST, "fp32")
    app = build_app(
        Api(model, completer, limits, admission), access, GenerateApi(completer, limits, admission).routes()
    )
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", admission
        finally:
            server.should_exit = True
            thread.join()
            completer.loop.close()


@pytest.fixture(scope="module")
def service():
    with serving(Access(None, None)) as (address, admission):
        yield Service(address), admission


def expected():
    done = shared_engine(8).run(REQUESTS)
    return [[one for one in done if one.request_id == request.id] for request in REQUESTS]


def without_ids(completions):
    return [
        [(one.sample, one.text, one.token_ids, one.finish_reason, one.logprobs) for one in many] for many in completions
    ]


def test_samples_through_a_service_are_those_of_the_engine_to_the_bit(service):
    calls = ServiceCalls(service[0], 2)
    first, second = calls.send(REQUESTS[:5]), calls.send(REQUESTS[5:])
    found = first() + second()
    assert without_ids(found) == without_ids(expected())
    assert [one[0].prompt_ids for one in found] == [request.prompt_ids for request in REQUESTS]


def test_a_full_service_is_waited_for(service):
    address, admission = service
    with contextlib.ExitStack() as held:
        held.enter_context(admission.admit(98))
        wait = ServiceCalls(address, 1).send(REQUESTS[:2])
        time.sleep(0.3)
    assert without_ids(wait()) == without_ids(expected()[:2])


@contextlib.contextmanager
def sending(*answers):
    """Yield the address of something that sends these bytes, the ones of a connection after those of another."""

    def send(listening):
        for answer in answers:
            with listening.accept()[0] as connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=send, args=(listening,))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


def answer(body, *, status="200 OK", lines="", told_bytes=None):
    length = len(body) if told_bytes is None else told_bytes
    return f"HTTP/1.0 {status}\r\nContent-Length: {length}\r\n{lines}\r\n".encode() + body


WHOLE = orjson.dumps({"completions": [[{"id": "row 0", "sample": 0, "text": "", "token_ids": [], "logprobs": None,
                                        "finish_reason": "stop", "error": None}]]})  # fmt: skip


@pytest.mark.parametrize(
    "first",
    [
        answer(WHOLE[:-9], told_bytes=len(WHOLE)),
        answer(b"<html>"),
        answer(b"[]"),
        answer(b'{"completions": []}'),
        answer(b'{"completions": [["text"]]}'),
        answer(b"", status="503 Busy", lines="Retry-After: Wed, 21 Oct 2026 07:28:00 GMT\r\n"),
    ],
)
def test_an_answer_that_broke_off_or_is_another_is_asked_for_again(first, monkeypatch):
    monkeypatch.setattr("cluster.serving.service_client._PAUSE_SECONDS", 0.01)
    with sending(first, answer(WHOLE)) as address:
        ((done,),) = ServiceCalls(Service(address), 1).send(REQUESTS[:1])()
    assert (done.prompt_ids, done.finish_reason) == (REQUESTS[0].prompt_ids, "stop")


def test_a_refusal_that_does_not_say_why_ends_the_run():
    with (
        sending(answer(b"<html>", status="413 Too Large")) as address,
        pytest.raises(RunFailedError, match="found the answer 413, which does not say why"),
    ):
        ServiceCalls(Service(address), 1).send(REQUESTS[:1])()


@pytest.mark.parametrize("body", [b"[]", b"1", b"{}", b'{"data": []}', b'{"data": [1]}', b'{"data": [{"id": "gpt"}]}'])
def test_another_service_is_told_from_a_herd_serve(body):
    with sending(answer(body)) as address, pytest.raises(ResourceError, match="another service; expected a herd serve"):
        Service(address).require(DIGEST, "fp32")


def test_an_address_or_a_key_that_http_does_not_know_is_named():
    with pytest.raises(ResourceError, match="Invalid IPv6 URL; expected a herd serve"):
        Service("http://[::1").require(DIGEST, "fp32")
    for key in ("ключ", "hush\nhush"):
        with pytest.raises(ResourceError, match="HERD_API_KEY: found a key that HTTP cannot carry"):
            Service("http://127.0.0.1:9", key).require(DIGEST, "fp32")


def test_an_address_that_is_mute_is_named_soon(monkeypatch):
    monkeypatch.setattr("cluster.serving.service_client._GREETING_SECONDS", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        pytest.raises(ResourceError, match="found timed out; expected a herd serve that answers"),
    ):
        Service(f"http://127.0.0.1:{mute.getsockname()[1]}").require(DIGEST, "fp32")


def test_a_request_the_service_refuses_fails_alone(service):
    long = GenerationRequest("long", (65,) * 161, Sampling(max_tokens=2))
    many = GenerationRequest("many", (65,), Sampling(max_tokens=2, n=17))
    good, refused, over = ServiceCalls(service[0], 1).send([REQUESTS[0], long, many])()
    assert without_ids([good]) == without_ids(expected()[:1])
    assert "a prompt of 161 tokens" in str(refused[0].error)
    assert "found 17 completions; expected at most 16" in str(over[0].error)


def test_other_weights_and_another_precision_are_refused(service):
    assert [service[0].require(DIGEST, asked) for asked in ("fp32", "auto")] == ["fp32", "fp32"]
    with pytest.raises(CheckpointError, match=r"a service of other weights \(dddd.*name the checkpoint"):
        service[0].require("e" * 64, "fp32")
    with pytest.raises(ResourceError, match="a service that computes in fp32; expected int8"):
        service[0].require(DIGEST, "int8")


def test_the_key_opens_the_service_and_is_shown_nowhere(monkeypatch):
    monkeypatch.setenv("HERD_API_KEY", "hush")
    with serving(access_for("127.0.0.1")) as (address, _):
        with pytest.raises(ResourceError, match="the answer 401; expected a herd serve; export HERD_API_KEY"):
            Service(address, "wrong").require(DIGEST, "fp32")
        keyed = Service(address, "hush")
        keyed.require(DIGEST, "fp32")
        assert without_ids(ServiceCalls(keyed, 1).send(REQUESTS[:1])()) == without_ids(expected()[:1])
        assert "hush" not in repr(keyed)


def test_a_silent_address_is_named():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ResourceError, match="a herd serve that answers"):
            Service(address).require(DIGEST, "fp32")


@pytest.mark.parametrize("body", [[], {"requests": 1}, {"requests": [{"prompt_ids": ["a"], "key": "", "sampling": {}}]},
                                  {"requests": [{"prompt_ids": [1], "key": "", "sampling": {"heat": 1}}]}])  # fmt: skip
def test_a_body_of_another_shape_is_a_mistake_of_the_client(service, body):
    import urllib.error

    with pytest.raises(urllib.error.HTTPError) as caught:
        service[0].ask("/v1/generate", json.dumps(body).encode())
    assert caught.value.code == 400
