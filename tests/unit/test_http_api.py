"""Promises of cluster.serving.http_api and cluster.serving.http_guard, over an engine that is a few lines of Python."""

import asyncio
import json
import logging

import pytest
from starlette.testclient import TestClient

from cluster.serving.completions_schema import ServedModel
from cluster.serving.http_api import Admission, Api, Limits, build_app
from cluster.serving.http_guard import Access, access_for, is_loopback
from gpt_core.errors import ResourceError, RunFailedError
from gpt_core.generation.request import Completion, TokenEvent
from gpt_core.tokens.tokenizer import load_tokenizer

BYTES = load_tokenizer("bytes")
MODEL = ServedModel("tiny", BYTES, window_tokens=32, fingerprint="herd-0", created=7)
OPEN = Access(None, None)
JSON = {"content-type": "application/json"}


class Echo:
    """Completes a prompt with its own text in capitals, a token an event; some prompts fail."""

    is_well = True

    def __init__(self):
        self.closed = 0

    async def check(self):
        if not self.is_well:
            await asyncio.sleep(60)

    async def complete(self, requests):
        return [[self._done(request, sample) for sample in range(request.sampling.n)] for request in requests]

    async def stream(self, requests):
        try:
            for index, request in enumerate(requests):
                for sample in range(request.sampling.n):
                    done = self._done(request, sample)
                    if done.error:
                        yield [(index, TokenEvent("", sample, None, "", (), done))]
                        continue
                    for place, token in enumerate(done.token_ids):
                        is_last = place == len(done.token_ids) - 1
                        if place == 2 and done.text.startswith("LATE"):
                            raise RuntimeError("the secret prompt")
                        yield [(index, TokenEvent("", sample, token, chr(token), (), done if is_last else None))]
        finally:
            self.closed += 1

    def _done(self, request, sample):
        text = BYTES.decode(request.prompt_ids).upper()
        if text == "ENGINE":
            raise RunFailedError("the engine", "the secret prompt", "a step", "send the requests again")
        if text == "BROKEN":
            raise RuntimeError("the secret prompt")
        error = "weights are damaged" if text == "NAN" else None
        return Completion("", sample, text, request.prompt_ids, tuple(text.encode()), "stop", None, error)


def make(access=OPEN, capacity=4, max_completions=4, max_request_bytes=2000):
    engine, admission = Echo(), Admission(capacity)
    app = build_app(Api(MODEL, engine, Limits(max_request_bytes, max_completions), admission), access)
    client = TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
    return client, engine, admission


def complete(client, **body):
    return client.post("/v1/completions", json=body)


def events_of(response):
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line.removeprefix("data: ") for line in lines]


def assert_error(response, status, code):
    assert response.status_code == status
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    return error


def test_a_completion_has_the_shape_of_openai_s():
    client, _, admission = make()
    answer = complete(client, prompt="abc", n=2).json()
    assert [choice["text"] for choice in answer["choices"]] == ["ABC", "ABC"]
    assert answer["model"] == "tiny"
    assert answer["usage"]["total_tokens"] == 9
    assert admission.in_progress == 0


def test_a_stream_ends_in_usage_and_done():
    client, engine, admission = make()
    response = complete(client, prompt="abc", stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, done = events_of(response)
    assert "".join(json.loads(chunk)["choices"][0]["text"] for chunk in chunks) == "ABC"
    assert json.loads(usage)["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert done == "[DONE]"
    assert (admission.in_progress, engine.closed) == (0, 1)


def test_models_are_listed_by_name():
    client, _, _ = make()
    listed = client.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["tiny"]
    assert client.get("/v1/models/tiny").json() == listed["data"][0]
    assert_error(client.get("/v1/models/other"), 404, "model_not_found")


def test_tokenize_returns_ids_and_their_count():
    client, _, _ = make()
    answer = client.post("/tokenize", json={"prompt": "hi"}).json()
    assert answer == {"tokens": [104, 105], "count": 2, "max_model_len": 32}


def test_health_is_of_this_process_and_readiness_of_the_engine(monkeypatch):
    client, engine, admission = make()
    assert client.get("/health").status_code == client.get("/ready").status_code == 200
    engine.is_well = False
    monkeypatch.setattr("cluster.serving.http_api._CHECK_SECONDS", 0.01)
    assert client.get("/health").status_code == 200
    assert_error(client.get("/ready"), 503, "not_ready")
    engine.is_well, admission.is_draining = True, True
    assert_error(client.get("/ready"), 503, "shutting_down")


@pytest.mark.parametrize(
    ("request_of", "status", "code"),
    [
        (lambda c: c.post("/v1/completions", content=b"{", headers=JSON), 400, "invalid_json"),
        (lambda c: c.post("/v1/completions", content=b'{"prompt":"a"}'), 415, "content_type"),
        (lambda c: complete(c, prompt="x" * 3000), 413, "request_too_large"),
        (lambda c: complete(c, prompt="x" * 33), 400, "context_length_exceeded"),
        (lambda c: complete(c, prompt="a", stream=True, n=0), 400, None),
        (lambda c: c.get("/v1/completions"), 405, "method_not_allowed"),
        (lambda c: c.get("/v1/chat/completions"), 404, "unknown_url"),
        (lambda c: complete(c, prompt="nan"), 500, "engine_error"),
        (lambda c: complete(c, prompt="nan", stream=True), 500, "engine_error"),
        (lambda c: complete(c, prompt="broken"), 500, "internal_error"),
        (lambda c: complete(c, prompt="broken", stream=True), 500, "internal_error"),
    ],
)  # fmt: skip
def test_every_error_has_openai_s_shape(request_of, status, code):
    client, _, admission = make()
    assert_error(request_of(client), status, code)
    assert admission.in_progress == 0


def test_an_error_within_a_stream_is_its_last_event():
    client, _, admission = make()
    *_, last = events_of(complete(client, prompt="later", stream=True))
    assert json.loads(last)["error"]["code"] == "internal_error"
    assert admission.in_progress == 0


def test_no_prompt_and_no_text_of_an_error_is_logged(caplog):
    client, _, _ = make()
    with caplog.at_level(logging.DEBUG):
        complete(client, prompt="broken")
        complete(client, prompt="later", stream=True)
        complete(client, prompt="a secret", n=0)
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text


def test_a_full_service_says_when_to_try_again():
    client, _, admission = make()
    with admission.admit(3):
        assert complete(client, prompt="a").status_code == 200
        for stream in (False, True):
            response = complete(client, prompt=["a", "b"], stream=stream)
            assert assert_error(response, 429, "queue_full")["type"] == "rate_limit_error"
            assert int(response.headers["retry-after"]) >= 1
    assert complete(client, prompt=["a", "b"]).status_code == 200


def test_a_service_whose_engine_does_not_answer_yet_says_so_at_once(monkeypatch):
    client, engine, _ = make()
    engine.is_well = False
    monkeypatch.setattr("cluster.serving.http_api._CHECK_SECONDS", 0.01)
    for stream in (False, True):
        response = complete(client, prompt="a", stream=stream)
        assert assert_error(response, 503, "not_ready")["type"] == "server_error"
        assert int(response.headers["retry-after"]) >= 1
    engine.is_well = True
    assert complete(client, prompt="a").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_failed_engine_is_no_fault_of_the_client_and_is_asked_for_before_the_next_request(monkeypatch, stream):
    client, engine, admission = make()
    response = complete(client, prompt="engine", stream=stream)
    assert_error(response, 503, "engine_failed")
    assert int(response.headers["retry-after"]) >= 1
    assert "secret" not in response.text
    engine.is_well = False
    monkeypatch.setattr("cluster.serving.http_api._CHECK_SECONDS", 0.01)
    assert_error(complete(client, prompt="a", stream=stream), 503, "not_ready")
    engine.is_well = True
    assert complete(client, prompt="a", stream=stream).status_code == 200
    assert admission.in_progress == 0


def test_a_draining_service_takes_nothing_more():
    client, _, admission = make()
    admission.is_draining = True
    assert_error(complete(client, prompt="a"), 503, "shutting_down")


def test_an_address_others_can_reach_needs_a_key(monkeypatch):
    monkeypatch.delenv("HERD_API_KEY", raising=False)
    with pytest.raises(ResourceError, match="export HERD_API_KEY"):
        access_for("0.0.0.0")
    assert access_for("127.0.0.1").key_digest is None
    monkeypatch.setenv("HERD_API_KEY", "hush")
    access = access_for("0.0.0.0")
    assert access.key_digest is not None
    assert "hush" not in repr(access)


@pytest.mark.parametrize(("host", "expected"), [("127.0.0.1", True), ("::1", True), ("localhost", True),
                                                ("0.0.0.0", False), ("::", False), ("10.0.0.5", False),
                                                ("example.org", False)])  # fmt: skip
def test_loopback_is_known_from_the_address(host, expected):
    assert is_loopback(host) is expected


def test_the_key_is_asked_for_but_on_health(monkeypatch):
    monkeypatch.setenv("HERD_API_KEY", "hush")
    client, _, _ = make(access_for("127.0.0.1"))
    for header in ({}, {"Authorization": "Bearer no"}, {"Authorization": "hush"}, {"Authorization": "Basic hush"}):
        response = client.get("/v1/models", headers=header)
        assert_error(response, 401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
    assert client.get("/v1/models", headers={"Authorization": "Bearer hush"}).status_code == 200
    assert client.get("/health").status_code == 200


def test_without_a_key_only_local_names_are_answered(monkeypatch):
    monkeypatch.delenv("HERD_API_KEY", raising=False)
    client, _, _ = make(access_for("127.0.0.1"))
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000"):
        assert client.get("/health", headers={"Host": host}).status_code == 200
    assert_error(client.get("/health", headers={"Host": "evil.example:8000"}), 403, "host")
