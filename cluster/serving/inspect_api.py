"""``POST /v1/inspect`` and the page that shows what it says, beside the routes of ``cluster.serving.http_api``."""

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from cluster.serving.api_error import ApiError, invalid
from cluster.serving.completions_schema import Body, ServedModel, check_model, checked, parse_prompt
from cluster.serving.http_api import Admission, answering
from cluster.serving.http_guard import read_json
from cluster.serving.inspecting import MAX_INSPECTIONS
from cluster.serving.page_files import HEADERS, FileOfPage, read_page
from gpt_core.errors import UserError
from gpt_core.inspection.inspection import Query

_RETRY_AFTER_SECONDS = 1


class Inspects(Protocol):
    """What looks into the model: ``cluster.serving.inspecting.InspectClient``, or a test's own."""

    async def inspect(self, query: Query, /) -> dict[str, Any]:
        """Return what was asked for; raise UserError for a mistake in the query."""
        ...


class InspectBody(Body):
    """The JSON body of an inspect request; null is as good as absent."""

    model: str | None = None
    prompt: Any = None
    show: list[str] | None = None
    position: int | None = None
    layer: int | None = None
    head: int | None = None


class InspectApi:
    """The routes of the page.

    Args:
        model: What is served.
        inspector: What computes.
        admission: Counts an inspection as one completion in progress.
        max_request_bytes: Bytes of a request's body at most.
    """

    def __init__(self, model: ServedModel, inspector: Inspects, admission: Admission, max_request_bytes: int) -> None:
        self._model = model
        self._inspector = inspector
        self._admission = admission
        self._max_request_bytes = max_request_bytes
        self._in_progress = 0

    def routes(self) -> list[BaseRoute]:
        """Return the routes: the question, the page, and the page's files."""
        pages = [_file_route(path, file) for path, file in read_page().items()]
        return [Route("/v1/inspect", answering(self.inspect), methods=["POST"]), *pages]

    async def inspect(self, request: Request) -> Response:
        """Say what the model computes for a prompt."""
        body = await read_json(request, self._max_request_bytes)
        query = await run_in_threadpool(parse_inspect, body, self._model)
        with self._admission.admit(1), self._one_of_few():
            try:
                answer = await self._inspector.inspect(query)
            except UserError as error:
                raise _refused(error) from error
        whole = {"object": "inspection", "name": self._model.name, "fingerprint": self._model.fingerprint, **answer}
        return Response(orjson.dumps(whole, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")

    @contextlib.contextmanager
    def _one_of_few(self) -> Iterator[None]:
        if self._in_progress >= MAX_INSPECTIONS:
            message = f"the service looks into {MAX_INSPECTIONS} prompts already, the most at a time; try again"
            raise ApiError(503, message, None, "overloaded", _RETRY_AFTER_SECONDS)
        self._in_progress += 1
        try:
            yield
        finally:
            self._in_progress -= 1


def parse_inspect(value: object, model: ServedModel) -> Query:
    """Return what a JSON body asks for; the model's sizes are checked where the model is.

    Raises:
        ApiError: 404 for another model's name, else 400, naming the field.
    """
    body = checked(InspectBody, value)
    check_model(body.model, model)
    parts = ("next",) if body.show is None else tuple(body.show)
    try:
        return Query(parse_prompt(body.prompt, model), parts, body.position, body.layer or 0, body.head or 0)
    except UserError as error:
        raise _refused(error) from error


def _refused(error: UserError) -> ApiError:
    return invalid(error.where, str(error))


def _file_route(path: str, file: FileOfPage) -> Route:
    async def answer(_: Request) -> Response:
        return Response(file.content, media_type=file.media_type, headers=HEADERS)

    return Route(path, answer, methods=["GET"])
