"""`herd serve`'s HTTP side over a bare engine, in this process and without Ray: for tests of the page."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn

from cluster.serving.completions_schema import ServedModel
from cluster.serving.engine_loop import EngineLoop
from cluster.serving.http_api import Admission, Api, Limits, build_app
from cluster.serving.http_guard import Access
from cluster.serving.inspect_api import InspectApi
from cluster.serving.inspecting import CheckpointInspector
from gpt_core.errors import UserError
from gpt_core.generation.engine import Engine, EngineOptions
from gpt_core.generation.request import Completion, GenerationRequest, TokenEvent
from gpt_core.inspection.inspection import Query
from gpt_core.tokens.tokenizer import load_tokenizer
from gpt_core.training import checkpoint

MAX_REQUEST_BYTES = 100_000


class BareModel:
    """Completes and inspects as the replicas of a service do.

    Args:
        run_folder: A run whose newest checkpoint is taken.
    """

    def __init__(self, run_folder: Path) -> None:
        loaded = checkpoint.load(run_folder)
        tokenizer = load_tokenizer(loaded.tokenizer["name"])
        self._loop = EngineLoop(Engine(loaded.weights, loaded.shape, tokenizer, EngineOptions(slots=4)))
        self._inspector = CheckpointInspector(str(loaded.path), tokenizer)
        self._calls = 0
        self.served = ServedModel("tiny", tokenizer, loaded.shape.num_positions, "herd-0", 7)

    async def check(self) -> None:
        """Return at once."""

    async def complete(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        """Return the samples of every request."""
        return list(await asyncio.gather(*(self._loop.complete(request) for request in self._with_ids(requests))))

    async def stream(self, requests: Sequence[GenerationRequest]) -> AsyncGenerator[list[tuple[int, TokenEvent]], None]:
        """Yield events with their request's index."""
        sent = self._with_ids(requests)
        index_of = {request.id: index for index, request in enumerate(sent)}
        async with contextlib.aclosing(self._loop.stream(sent)) as batches:
            async for batch in batches:
                yield [(index_of[event.request_id], event) for event in batch]

    async def inspect(self, query: Query) -> dict[str, Any]:
        """Return what was asked for."""
        answer = await self._inspector.inspect(query)
        if isinstance(answer, UserError):
            raise answer
        return answer

    def close(self) -> None:
        """Stop the engine's thread."""
        self._loop.close()

    def _with_ids(self, requests: Sequence[GenerationRequest]) -> list[GenerationRequest]:
        self._calls += 1
        return [replace(request, id=f"{self._calls}/{index}") for index, request in enumerate(requests)]


@contextlib.contextmanager
def serving(model: BareModel, access: Access, admission: Admission) -> Iterator[str]:
    """Serve on 127.0.0.1 while the body runs; yields the address."""
    api = Api(model.served, model, Limits(MAX_REQUEST_BYTES, 4), admission)
    pages = InspectApi(model.served, model, admission, MAX_REQUEST_BYTES).routes()
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(build_app(api, access, pages), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listening.close()
