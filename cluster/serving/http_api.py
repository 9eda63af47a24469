"""The HTTP face of a served checkpoint: an ASGI application over an engine, without Ray of its own.

    POST /v1/completions     OpenAI's completions API, streamed or not
    GET  /v1/models[/NAME]   the model
    POST /tokenize           text to token ids
    GET  /health, /ready     alive; able to answer

Too much at a time is turned away with 429 (the bound on completions in progress is reached: the client sends
less, or later), what is no fault of the client with 503 (starting, without a replica, an engine that failed and is
being replaced, shutting down); both with Retry-After.

Called by the deployment of ``cluster.serving.ingress``; tests put a fake engine behind it. No
prompt and no generated text is ever logged.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.serving.api_error import ApiError
from cluster.serving.completions_reply import Reply
from cluster.serving.completions_schema import Call, ServedModel, check_model, parse_completions, parse_tokenize
from cluster.serving.http_guard import Access, Guard, error_response, read_json
from gpt_core.errors import RunFailedError
from gpt_core.generation.request import Completion, GenerationRequest, TokenEvent

_LOG = logging.getLogger("ray.serve")
_RETRY_AFTER_SECONDS = 1
_CHECK_SECONDS = 2.0

Endpoint = Callable[[Request], Awaitable[Response]]


class Completer(Protocol):
    """What computes completions: ``cluster.serving.engine_client.EngineClient``, or a test's fake."""

    async def check(self) -> None:
        """Return when it can complete; raise or stay away otherwise."""
        ...

    async def complete(self, requests: Sequence[GenerationRequest], /) -> list[list[Completion]]:
        """Return the samples of every request; RunFailedError where the engine failed."""
        ...

    def stream(self, requests: Sequence[GenerationRequest], /) -> AsyncGenerator[list[tuple[int, TokenEvent]], None]:
        """Yield events with their request's index; closing it early cancels the requests."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what is taken in."""

    max_request_bytes: int
    max_completions: int
    """Prompts times n of one request."""


class Admission:
    """Counts the completions in progress and turns away what is too much. Used from one event loop.

    Args:
        capacity: Most completions at a time.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.in_progress = 0
        self.is_draining = False
        """True once the service takes nothing more."""

    def refuse_when_draining(self) -> None:
        """Raise ApiError 503 where nothing more is taken."""
        if self.is_draining:
            raise ApiError(503, "the service is shutting down", None, "shutting_down", _RETRY_AFTER_SECONDS)

    @contextlib.contextmanager
    def admit(self, num_completions: int) -> Iterator[None]:
        """Count the completions while the body runs.

        Raises:
            ApiError: 429 when there is no room, 503 when no more is taken.
        """
        self.refuse_when_draining()
        if self.in_progress + num_completions > self._capacity:
            message = f"the service has {self.in_progress:,} of at most {self._capacity:,} completions in progress"
            raise ApiError(429, f"{message}; try again", None, "queue_full", _RETRY_AFTER_SECONDS)
        self.in_progress += num_completions
        try:
            yield
        finally:
            self.in_progress -= num_completions


class Api:
    """The routes and what they share.

    Args:
        model: What is served.
        completer: What computes.
        limits: Bounds on requests.
        admission: Counts completions in progress.
    """

    def __init__(self, model: ServedModel, completer: Completer, limits: Limits, admission: Admission) -> None:
        self._model = model
        self._completer = completer
        self._limits = limits
        self._admission = admission
        self._has_answered = False

    def routes(self) -> list[BaseRoute]:
        """Return the routes of the API."""
        return [
            Route("/v1/completions", answering(self.completions), methods=["POST"]),
            Route("/v1/models", answering(self.models), methods=["GET"]),
            Route("/v1/models/{name:path}", answering(self.one_model), methods=["GET"]),
            Route("/tokenize", answering(self.tokenize), methods=["POST"]),
            Route("/health", answering(self.health), methods=["GET"]),
            Route("/ready", answering(self.ready), methods=["GET"]),
        ]

    async def completions(self, request: Request) -> Response:
        """Complete the prompts of a request."""
        if not self._has_answered:
            await self._require_engine()
        body = await read_json(request, self._limits.max_request_bytes)
        # In a thread: encoding long texts would hold up the other streams.
        call = await run_in_threadpool(parse_completions, body, self._model, self._limits.max_completions)
        reply = Reply(call, self._model)
        if call.stream:
            chunks = self._chunks(call, reply)
            # Waiting for the first chunk here gives what goes wrong before it a status of its own.
            return _EventStream(await anext(chunks), chunks)
        with self._admission.admit(call.num_completions), self._failure_noticed():
            completions = await self._completer.complete(call.requests)
        for done in (sample for samples in completions for sample in samples):
            _raise_failure(done)
        return Response(orjson.dumps(reply.whole(completions)), media_type="application/json")

    async def models(self, _: Request) -> Response:
        """List the one model there is."""
        return JSONResponse({"object": "list", "data": [self._describe_model()]})

    async def one_model(self, request: Request) -> Response:
        """Describe the model."""
        check_model(request.path_params["name"], self._model)
        return JSONResponse(self._describe_model())

    async def tokenize(self, request: Request) -> Response:
        """Turn a text into token ids."""
        body = await read_json(request, self._limits.max_request_bytes)
        ids = await run_in_threadpool(parse_tokenize, body, self._model)
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": self._model.window_tokens})

    async def health(self, _: Request) -> Response:
        """Say that this process answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        """Say whether a completion would be answered now."""
        self._admission.refuse_when_draining()
        await self._require_engine()
        return JSONResponse({"status": "ready", "model": self._model.name})

    async def _require_engine(self) -> None:
        try:
            await asyncio.wait_for(self._completer.check(), _CHECK_SECONDS)
        except Exception as error:
            raise ApiError(503, "no engine answers", None, "not_ready", _RETRY_AFTER_SECONDS) from error
        self._has_answered = True

    @contextlib.contextmanager
    def _failure_noticed(self) -> Iterator[None]:
        """Have the next request ask for an engine first: this one's is gone until its replica is replaced."""
        try:
            yield
        except RunFailedError:
            self._has_answered = False
            raise

    async def _chunks(self, call: Call, reply: Reply) -> AsyncGenerator[bytes, None]:
        with self._admission.admit(call.num_completions), self._failure_noticed():
            async with aclosing(self._completer.stream(call.requests)) as batches:
                async for batch in batches:
                    for chunk in _chunks_of(batch, reply):
                        yield _server_sent(chunk)
        if call.include_usage:
            yield _server_sent(reply.last_chunk())
        yield b"data: [DONE]\n\n"

    def _describe_model(self) -> dict[str, Any]:
        model = self._model
        described = {"id": model.name, "object": "model", "created": model.created, "owned_by": "gpt-herd"}
        facts = {"fingerprint": model.fingerprint, "checkpoint": model.checkpoint, "precision": model.precision}
        return {**described, "max_model_len": model.window_tokens, **facts}


def build_app(api: Api, access: Access, pages: Sequence[BaseRoute] = ()) -> ASGIApp:
    """Return the whole application.

    Args:
        api: The routes of the API.
        access: Who may call.
        pages: Further routes, such as the page at ``/``.
    """
    app = Starlette(routes=[*api.routes(), *pages], exception_handlers={HTTPException: _answer_http_error})
    return Guard(app, access)


def answering(endpoint: Endpoint) -> Endpoint:
    """Return the endpoint with its errors turned into answers; Starlette would pass unforeseen ones on into logs."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Exception as error:
            return error_response(_as_api_error(error))

    return answer


class _EventStream(StreamingResponse):
    """Server-sent events; the engine stops when the client has left."""

    def __init__(self, first: bytes, chunks: AsyncGenerator[bytes, None]) -> None:
        self._chunks = chunks
        super().__init__(_all_chunks(first, chunks), media_type="text/event-stream")
        self.headers["Cache-Control"] = "no-cache"
        self.headers["X-Accel-Buffering"] = "no"  # proxies pass every event on at once

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._chunks):
            await super().__call__(scope, receive, send)


async def _all_chunks(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    yield first
    try:
        async for chunk in rest:
            yield chunk
    except Exception as error:
        # The status is sent already: the stream itself says that it is not whole, and does not end in [DONE].
        yield _server_sent(_as_api_error(error).body)


def _chunks_of(batch: Sequence[tuple[int, TokenEvent]], reply: Reply) -> Iterator[dict[str, Any]]:
    """Yield a chunk for each sample that a batch of events is about."""
    by_sample: dict[tuple[int, int], list[TokenEvent]] = {}
    for prompt, event in batch:
        by_sample.setdefault((prompt, event.sample), []).append(event)
    for (prompt, _), events in by_sample.items():
        if events[-1].completion:
            _raise_failure(events[-1].completion)
        if chunk := reply.chunk(prompt, events):
            yield chunk


def _raise_failure(done: Completion) -> None:
    if done.error is not None:
        raise ApiError(500, f"the engine failed: {done.error}", None, "engine_error")


def _server_sent(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


async def _answer_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
    return error_response(ApiError(error.status_code, error.detail, None, code))


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RunFailedError):
        message = "the engine failed and is being replaced; try again"
        return ApiError(503, message, None, "engine_failed", _RETRY_AFTER_SECONDS)
    # Only the type is logged: the text of an error may quote a prompt.
    _LOG.error("a request failed: %s", type(error).__name__)
    return ApiError(500, f"the service failed: {type(error).__name__}", None, "internal_error")
