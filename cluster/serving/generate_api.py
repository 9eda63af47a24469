"""``POST /v1/generate``: whole generation requests over HTTP, for `herd generate --address`.

OpenAI's completions API says neither what random draws are keyed by nor which token ids were drawn; this
does, so that a dataset made through a service has the bytes of one made without. Requests and samples are the
fields of ``gpt_core.generation.request``; both sides of the wire are here.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from cluster.serving.api_error import invalid, refused
from cluster.serving.completions_schema import Body, checked
from cluster.serving.http_api import Admission, Completer, Limits, answering
from cluster.serving.http_guard import read_json
from gpt_core.errors import UserError
from gpt_core.generation.request import Completion, GenerationRequest, Sampling, TokenLogprob, sampling_with

PATH = "/v1/generate"


class RequestBody(Body):
    """One prompt, what its draws are keyed by, and the fields of ``Sampling``."""

    prompt_ids: list[int]
    key: str
    sampling: dict[str, Any]


class GenerateBody(Body):
    """The JSON body: many prompts."""

    requests: list[RequestBody]


class GenerateApi:
    """The route.

    Args:
        completer: What computes.
        limits: Bounds on requests.
        admission: Counts completions in progress.
    """

    def __init__(self, completer: Completer, limits: Limits, admission: Admission) -> None:
        self._completer = completer
        self._limits = limits
        self._admission = admission

    def routes(self) -> list[BaseRoute]:
        """Return the route."""
        return [Route(PATH, answering(self.generate), methods=["POST"])]

    async def generate(self, request: Request) -> Response:
        """Complete prompts; one that cannot be completed has a sample that says why."""
        body = await read_json(request, self._limits.max_request_bytes)
        requests = await run_in_threadpool(parse_requests, body, self._limits.max_completions)
        with self._admission.admit(sum(asked.sampling.n for asked in requests)):
            completions = await self._completer.complete(requests)
        return Response(orjson.dumps(write_completions(completions)), media_type="application/json")


def parse_requests(value: object, max_completions: int) -> list[GenerationRequest]:
    """Return the requests of a JSON body.

    Raises:
        ApiError: 400 for a field of the wrong kind, or more completions than one request may ask for.
    """
    try:
        requests = [
            GenerationRequest(str(index), tuple(one.prompt_ids), sampling_with(Sampling(), one.sampling), one.key)
            for index, one in enumerate(checked(GenerateBody, value).requests)
        ]
    except UserError as error:
        raise refused(error) from error
    asked = sum(request.sampling.n for request in requests)
    if asked > max_completions:
        message = f"requests: found {asked} completions; expected at most {max_completions}"
        raise invalid("requests", message, "too_many_completions")
    return requests


def write_requests(requests: Sequence[GenerationRequest]) -> bytes:
    """Return the JSON body that ``parse_requests`` takes."""
    written = [
        {"prompt_ids": one.prompt_ids, "key": one.id if one.key is None else one.key, "sampling": asdict(one.sampling)}
        for one in requests
    ]
    return orjson.dumps({"requests": written})


def write_completions(completions: Sequence[Sequence[Completion]]) -> dict[str, Any]:
    """Return the answer's JSON object; the prompt, which the caller knows, is left out."""
    return {"completions": [[_written(done) for done in samples] for samples in completions]}


def parse_completions(value: Any, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
    """Return what ``write_completions`` wrote of these requests; ValueError for anything else."""
    try:
        return [
            [_parsed(done, request) for done in samples]
            for samples, request in zip(value["completions"], requests, strict=True)
        ]
    except (KeyError, TypeError) as error:
        raise ValueError("no completions of these requests") from error


def _written(done: Completion) -> dict[str, Any]:
    logprobs = (
        None if done.logprobs is None else [[entry.token_id, entry.logprob, entry.top] for entry in done.logprobs]
    )
    return {
        "id": done.request_id,
        "sample": done.sample,
        "text": done.text,
        "token_ids": done.token_ids,
        "finish_reason": done.finish_reason,
        "logprobs": logprobs,
        "error": done.error,
    }


def _parsed(done: dict[str, Any], request: GenerationRequest) -> Completion:
    logprobs = done["logprobs"]
    if logprobs is not None:
        logprobs = tuple(TokenLogprob(token, own, tuple(map(tuple, top))) for token, own, top in logprobs)
    return Completion(
        done["id"],
        done["sample"],
        done["text"],
        request.prompt_ids,
        tuple(done["token_ids"]),
        done["finish_reason"],
        logprobs,
        done["error"],
    )
