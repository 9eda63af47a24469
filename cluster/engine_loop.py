"""The loop that turns an engine's steps into awaitable completions.

One thread owns the engine; requests come in from an asyncio event loop and results go back to
it. An error of the engine fails every request in flight and stays: the replica reports itself
unhealthy and is replaced.
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable

from gpt_core.engine import Engine
from gpt_core.errors import UserError
from gpt_core.generation import Completion, GenerationRequest, TokenEvent

_Deliver = Callable[[TokenEvent | BaseException], None]


class EngineLoop:
    """Runs an engine in a thread of its own.

    Args:
        engine: The engine; nothing else may touch it afterwards.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._inbox: deque[tuple[GenerationRequest, _Deliver]] = deque()
        self._cancelled: deque[str] = deque()
        self._receivers: dict[str, tuple[_Deliver, int]] = {}
        self._wake = threading.Condition()
        self._closed = False
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Requests that are in, and not finished."""
        return len(self._inbox) + len(self._receivers)

    async def stream(self, request: GenerationRequest) -> AsyncIterator[TokenEvent]:
        """Yield the request's events as the engine computes them; leaving early cancels it."""
        events: asyncio.Queue[TokenEvent | BaseException] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self._submit(request, lambda event: loop.call_soon_threadsafe(events.put_nowait, event))
        unfinished = request.sampling.n
        try:
            while unfinished:
                event = await events.get()
                if isinstance(event, BaseException):
                    raise event
                unfinished -= event.completion is not None
                yield event
        finally:
            if unfinished:
                self._cancel(request.id)

    async def complete(self, request: GenerationRequest) -> list[Completion]:
        """Return the request's finished samples, in their order; one that says "error" if it is refused."""
        finished = []
        try:
            async with contextlib.aclosing(self.stream(request)) as events:
                async for event in events:
                    if event.completion:
                        finished.append(event.completion)
        except UserError as error:
            return [Completion(request.id, 0, "", request.prompt_ids, (), "error", None, str(error))]
        return sorted(finished, key=lambda completion: completion.sample)

    def close(self) -> None:
        """Stop the thread; requests in flight are left unanswered."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _submit(self, request: GenerationRequest, deliver: _Deliver) -> None:
        with self._wake:
            if self.failure:
                raise self.failure
            self._inbox.append((request, deliver))
            self._wake.notify()

    def _cancel(self, request_id: str) -> None:
        with self._wake:
            self._cancelled.append(request_id)
            self._wake.notify()

    def _run(self) -> None:
        try:
            while self._take_in():
                for event in self._engine.step():
                    self._hand_out(event)
        except BaseException as error:
            with self._wake:
                self.failure = error
                waiting = [deliver for _, deliver in self._inbox]
                self._inbox.clear()
            for deliver in [*waiting, *(deliver for deliver, _ in self._receivers.values())]:
                deliver(error)

    def _take_in(self) -> bool:
        """Move what arrived into the engine; sleep while there is nothing to do; False once closed."""
        with self._wake:
            while not (self._inbox or self._cancelled or self._engine.busy or self._closed):
                self._wake.wait()
            arrived = list(self._inbox)
            self._inbox.clear()
            cancelled = list(self._cancelled)
            self._cancelled.clear()
        for request, deliver in arrived:
            try:
                self._engine.submit(request)
                self._receivers[request.id] = (deliver, request.sampling.n)
            except UserError as error:
                deliver(error)
        for request_id in cancelled:
            self._receivers.pop(request_id, None)
            self._engine.cancel(request_id)
        return not self._closed

    def _hand_out(self, event: TokenEvent) -> None:
        if event.request_id not in self._receivers:
            return
        deliver, unfinished = self._receivers[event.request_id]
        if event.completion and unfinished == 1:
            del self._receivers[event.request_id]
        elif event.completion:
            self._receivers[event.request_id] = (deliver, unfinished - 1)
        deliver(event)
