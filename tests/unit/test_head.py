"""What answers at the address of a head, and what is said when it is no head of ours."""

import http.server
import io
import json
import threading
import urllib.error
from collections.abc import Callable, Iterator
from email.message import Message
from typing import Any

import pytest

from cluster.submission.head import Head, HeadSilentError
from gpt_core.errors import ResourceError, UserError

Answer = tuple[int, str]


@pytest.fixture
def serving() -> Iterator[Callable[[Callable[[str | None], Answer]], str]]:
    """Return a function that serves what another one answers to a request's Authorization header."""
    servers: list[http.server.HTTPServer] = []

    def start(answer: Callable[[str | None], Answer]) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, text = answer(self.headers.get("Authorization"))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

        servers.append(http.server.HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def no_token(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def refusal(address: str) -> str:
    with pytest.raises(ResourceError) as caught:
        Head(address)
    return str(caught.value)


@pytest.mark.parametrize("answer", [(200, "<html>a router's page</html>"), (404, "nothing here"), (500, "oh")])
def test_a_server_that_is_no_head_is_told_from_one(serving, answer):
    assert "found an answer that is not a Ray head's" in refusal(serving(lambda token: answer))


def test_another_series_of_ray_is_refused_before_anything_is_sent(serving):
    told = refusal(serving(lambda token: (200, json.dumps({"ray_version": "2.10.3"}))))
    assert "found Ray 2.10.3 on the cluster; expected Ray 2." in told
    assert told.endswith("install the versions of constraints.txt on both sides")


def test_a_token_is_sent_only_to_a_head_that_asks_for_one(serving, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    seen: list[str | None] = []

    def open_head(token: str | None) -> Answer:
        seen.append(token)
        return 200, json.dumps({"ray_version": "1.0.0"})

    refusal(serving(open_head))
    assert seen == [None]

    def closed_head(token: str | None) -> Answer:
        seen.append(token)
        return (403, "Forbidden") if token else (401, "Unauthorized")

    told = refusal(serving(closed_head))
    assert seen == [None, None, "Bearer secret"]
    assert "found a token that it refuses (HTTP 403)" in told
    assert "secret" not in told


@pytest.mark.parametrize("text", [None, "", "\n"])
def test_a_missing_or_empty_token_is_named_with_the_file(serving, text, tmp_path):
    if text is not None:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text(text)
    told = refusal(serving(lambda token: (401, "Unauthorized")))
    assert f"and none in RAY_AUTH_TOKEN or {tmp_path}/.ray/auth_token; expected the cluster's token" in told


def test_a_proxy_that_forbids_is_not_taken_for_a_wrong_token(serving):
    assert "found access denied (HTTP 403)" in refusal(serving(lambda token: (403, "no")))


def test_a_name_nobody_knows_and_a_silent_host_are_named(serving, monkeypatch):
    assert "found no answer (" in refusal("http://no-such-host.invalid:8265")
    monkeypatch.setattr("cluster.submission.head._ANSWER_SECONDS", 0.2)
    forever = threading.Event()

    def silent(token: str | None) -> Answer:
        forever.wait(2)
        return 200, "{}"

    assert "found no answer (0.2 s passed)" in refusal(serving(silent))
    forever.set()


class OpenHead(Head):
    """A head that answered before, and answers so to every path from now on."""

    def __init__(self, answer: Any) -> None:
        self.address, self._token = "http://head:8265", None
        self.answer, self.paths = answer, []

    def _answer(self, path: str, method: str) -> Any:
        self.paths.append(path)
        if isinstance(self.answer, int):
            raise urllib.error.HTTPError(self.address, self.answer, "", Message(), io.BytesIO(b"told"))
        return self.answer


@pytest.mark.parametrize("code", [500, 502, 503, 504])
def test_a_head_that_starts_or_is_behind_a_proxy_alone_may_answer_later(code):
    with pytest.raises(HeadSilentError, match=f"found HTTP {code}: told"):
        OpenHead(code).job("job-1")


@pytest.mark.parametrize(
    ("job_id", "answer", "path"),
    [
        ("a b/c?d", 404, "/api/jobs/a%20b%2Fc%3Fd"),
        ("é", 404, "/api/jobs/%C3%A9"),
        ("02000000", {"type": "DRIVER", "job_id": "02000000", "submission_id": None}, "/api/jobs/02000000"),
        ("", [], "/api/jobs/"),
    ],
    ids=["of marks", "of letters", "a driver's", "none"],
)
def test_an_id_that_no_submitted_job_has_is_named_as_it_was_typed(job_id, answer, path):
    head = OpenHead(answer)
    with pytest.raises(UserError) as caught:
        head.job(job_id)
    assert str(caught.value).startswith(f"job {job_id}: found no such job on http://head:8265;")
    assert head.paths == [path]
