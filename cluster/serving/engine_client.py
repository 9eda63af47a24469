"""Calls to the replicas of the Generator deployment from another deployment.

A replica that dies under a call is no error here: the call goes to another replica, which computes
the same tokens, and a stream goes on behind the event it had reached. A call that loses one replica after
the other is a RunFailedError, as one whose engine failed. Leaving a call early cancels it in the engine.
"""

import asyncio
import contextlib
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

from gpt_core.errors import RunFailedError
from gpt_core.generation.request import Completion, GenerationRequest, TokenEvent

_TRIES = 3
_REQUESTS_PER_CALL = 16
"""One call costs about 4 ms; more requests go out as several calls, which spread over the replicas."""

Batch = list[tuple[int, TokenEvent]]
"""Events, each with the index of its request."""


class EngineClient:
    """Completes requests through a deployment handle.

    Args:
        handle: The handle of the Generator deployment.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._streaming_handle = handle.options(stream=True)

    async def check(self) -> None:
        """Return when a replica has answered, and its engine has not failed."""
        await self._handle.check_health.remote()

    async def complete(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        """Return the finished samples of every request, in order."""
        starts = range(0, len(requests), _REQUESTS_PER_CALL)
        parts = [requests[start : start + _REQUESTS_PER_CALL] for start in starts]
        calls = [asyncio.ensure_future(self._complete_part(part)) for part in parts]
        try:
            answers = await asyncio.gather(*calls)
        finally:
            for call in calls:  # those beside one that failed are waited for by nobody
                call.cancel()
        return [samples for answer in answers for samples in answer]

    async def stream(self, requests: Sequence[GenerationRequest]) -> AsyncGenerator[Batch, None]:
        """Yield what was added to the requests since the last time, each event with its request's index."""
        from ray.exceptions import RayActorError

        seen: Counter[tuple[int, int]] = Counter()
        for last in (*[False] * (_TRIES - 1), True):
            try:
                async with contextlib.aclosing(self._stream_once(requests)) as batches:
                    skip = _Skip(seen)
                    async for batch in batches:
                        if unseen := skip.unseen(batch):
                            seen.update((index, event.sample) for index, event in unseen)
                            yield unseen
            except RayActorError as error:
                if last:
                    raise _lost() from error
            else:
                return

    async def _complete_part(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        from ray.exceptions import RayActorError

        for _ in range(_TRIES - 1):
            with contextlib.suppress(RayActorError):
                return await self._complete_once(requests)
        try:
            return await self._complete_once(requests)
        except RayActorError as error:
            raise _lost() from error

    async def _complete_once(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        return await answer_or_cancel(self._handle.complete.remote(_with_new_ids(requests)))

    async def _stream_once(self, requests: Sequence[GenerationRequest]) -> AsyncGenerator[Batch, None]:
        sent = _with_new_ids(requests)
        index_of = {request.id: index for index, request in enumerate(sent)}
        response = self._streaming_handle.stream.remote(sent)
        try:
            async for events in response:
                yield [(index_of[event.request_id], event) for event in events]
        finally:
            response.cancel()


async def answer_or_cancel(response: Any) -> Any:
    """Return the answer to a call of a replica; whoever stops waiting for it cancels it there."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise


class _Skip:
    """Leaves out, from a stream begun anew, the events that were there already."""

    def __init__(self, seen: Counter[tuple[int, int]]) -> None:
        self._left = seen.copy()

    def unseen(self, batch: Batch) -> Batch:
        kept = []
        for index, event in batch:
            if self._left[index, event.sample] > 0:
                self._left[index, event.sample] -= 1
            else:
                kept.append((index, event))
        return kept


def _lost() -> RunFailedError:
    return RunFailedError("a call", f"{_TRIES} replicas that died under it", "one that answers", "send it again")


def _with_new_ids(requests: Sequence[GenerationRequest]) -> list[GenerationRequest]:
    """Give each call ids of its own: one sent again may meet the first one still running."""
    return [replace(request, id=uuid.uuid4().hex) for request in requests]
