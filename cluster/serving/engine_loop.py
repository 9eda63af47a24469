"""The loop that turns an engine's steps into awaitable completions.

One thread owns the engine; requests come in from an asyncio event loop and results go back to
it. An error of the engine fails every request in flight, whatever it was, and stays: the replica
reports itself unhealthy and is replaced. Only what the engine refuses to take is a request's own error.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from gpt_core.errors import RunFailedError, UserError
from gpt_core.generation.engine import Engine, EngineStatistics
from gpt_core.generation.request import Completion, GenerationRequest, TokenEvent

_Deliver = Callable[[TokenEvent | BaseException], None]
_FIRST_TOKEN_TIMES = 4096


@dataclass(slots=True)
class _Receiver:
    """Where the events of a request go."""

    request: GenerationRequest
    deliver: _Deliver
    finals_only: bool
    """Deliver only the last event of each sample: waking the event loop for every token costs time."""
    unfinished: int
    arrived: float = field(default_factory=time.monotonic)
    has_begun: bool = False


class EngineLoop:
    """Runs an engine in a thread of its own.

    Args:
        engine: The engine; nothing else may touch it afterwards.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._inbox: deque[_Receiver] = deque()
        self._cancelled: deque[str] = deque()
        self._receivers: dict[str, _Receiver] = {}
        self._first_token_seconds: deque[float] = deque(maxlen=_FIRST_TOKEN_TIMES)
        self._wake = threading.Condition()
        self._closed = False
        self.failure: RunFailedError | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def statistics(self) -> EngineStatistics:
        """Return the engine's present numbers; a step may be going on meanwhile."""
        return self._engine.statistics()

    def take_first_token_seconds(self) -> list[float]:
        """Return, once, how long requests waited from their arrival here to their first token."""
        taken = []
        with contextlib.suppress(IndexError):
            while True:
                taken.append(self._first_token_seconds.popleft())
        return taken

    async def stream(self, requests: Sequence[GenerationRequest]) -> AsyncGenerator[list[TokenEvent], None]:
        """Yield what the engine has added to any of the requests since the last time; leaving early cancels them.

        Raises:
            UserError: The engine refuses a request; the others are cancelled.
            RunFailedError: The engine failed, in a step of any requests.
        """
        async with contextlib.aclosing(self._receive(requests, finals_only=False)) as batches:
            async for batch in batches:
                yield batch

    async def complete(self, request: GenerationRequest) -> list[Completion]:
        """Return the request's finished samples, in their order; one that says "error" if it is refused.

        Raises:
            RunFailedError: The engine failed, in a step of any requests.
        """
        finished = []
        try:
            async with contextlib.aclosing(self._receive([request], finals_only=True)) as batches:
                async for batch in batches:
                    finished += [event.completion for event in batch if event.completion]
        except UserError as error:
            return [Completion(request.id, 0, "", request.prompt_ids, (), "error", None, str(error))]
        return sorted(finished, key=lambda completion: completion.sample)

    def close(self) -> None:
        """Stop the thread; requests in flight are left unanswered."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    async def _receive(
        self, requests: Sequence[GenerationRequest], *, finals_only: bool
    ) -> AsyncGenerator[list[TokenEvent], None]:
        events: asyncio.Queue[TokenEvent | BaseException] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver(event: TokenEvent | BaseException) -> None:
            # The loop closes before this thread ends when a replica stops with requests in flight.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(events.put_nowait, event)

        unfinished = {request.id: request.sampling.n for request in requests}
        try:
            for request in requests:
                self._submit(_Receiver(request, deliver, finals_only, request.sampling.n))
            while unfinished:
                batch = [_event_or_raise(await events.get())]
                while not events.empty():
                    batch.append(_event_or_raise(events.get_nowait()))
                for event in batch:
                    _count_down(unfinished, event)
                yield batch
        finally:
            self._cancel(list(unfinished))

    def _submit(self, receiver: _Receiver) -> None:
        with self._wake:
            if self.failure:
                raise self.failure
            self._inbox.append(receiver)
            self._wake.notify()

    def _cancel(self, request_ids: list[str]) -> None:
        if request_ids:
            with self._wake:
                self._cancelled.extend(request_ids)
                self._wake.notify()

    def _run(self) -> None:
        try:
            while self._take_in():
                for event in self._engine.step():
                    self._hand_out(event)
        except BaseException as error:
            failure = _failure(error)
            with self._wake:
                self.failure = failure
                waiting = list(self._inbox)
                self._inbox.clear()
            for receiver in [*waiting, *self._receivers.values()]:
                receiver.deliver(failure)

    def _take_in(self) -> bool:
        """Move what arrived into the engine; sleep while there is nothing to do; False once closed."""
        with self._wake:
            while not (self._inbox or self._cancelled or self._engine.busy or self._closed):
                self._wake.wait()
            cancelled = list(self._cancelled)
            self._cancelled.clear()
        while self._inbox:
            receiver = self._inbox[0]  # left there until the engine has it: a failure is told to all who are in
            try:
                self._engine.submit(receiver.request)
                self._receivers[receiver.request.id] = receiver
            except UserError as error:
                receiver.deliver(error)
            self._inbox.popleft()
        for request_id in cancelled:
            if self._receivers.pop(request_id, None):
                self._engine.cancel(request_id)
        return not self._closed

    def _hand_out(self, event: TokenEvent) -> None:
        receiver = self._receivers.get(event.request_id)
        if receiver is None:
            return
        if not receiver.has_begun:
            receiver.has_begun = True
            self._first_token_seconds.append(time.monotonic() - receiver.arrived)
        if event.completion:
            receiver.unfinished -= 1
            if not receiver.unfinished:
                del self._receivers[event.request_id]
        if event.completion or not receiver.finals_only:
            receiver.deliver(event)


def _failure(error: BaseException) -> RunFailedError:
    """Return an engine's error, of whatever class, as one that is nobody's mistake."""
    failure = RunFailedError("the engine", f"{type(error).__name__}: {error}", "a step", "send the requests again")
    failure.__cause__ = error
    return failure


def _event_or_raise(event: TokenEvent | BaseException) -> TokenEvent:
    if isinstance(event, BaseException):
        raise event
    return event


def _count_down(unfinished: dict[str, int], event: TokenEvent) -> None:
    if event.completion:
        unfinished[event.request_id] -= 1
        if not unfinished[event.request_id]:
            del unfinished[event.request_id]
