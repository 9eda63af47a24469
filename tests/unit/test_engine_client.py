"""Promises of cluster.serving.engine_client, over a handle that is a few lines of Python."""

import asyncio
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError

from cluster.serving.engine_client import EngineClient
from gpt_core.errors import RunFailedError
from gpt_core.generation.request import Completion, GenerationRequest, TokenEvent

REQUEST = GenerationRequest("mine", (97,))


class Handle:
    """A deployment whose first replicas die under a call, after the first event of a stream."""

    def __init__(self, num_deaths):
        self.num_deaths = num_deaths
        self.complete = SimpleNamespace(remote=self._complete)
        self.stream = SimpleNamespace(remote=self._stream)

    def options(self, stream):
        return self

    async def _complete(self, requests):
        self._die()
        return [[Completion(request.id, 0, "ab", (97,), (97, 98), "stop")] for request in requests]

    def _stream(self, requests):
        return _Response(self._events(requests[0].id))

    async def _events(self, request_id):
        yield [TokenEvent(request_id, 0, 97, "a")]
        self._die()
        yield [TokenEvent(request_id, 0, 98, "b")]

    def _die(self):
        self.num_deaths -= 1
        if self.num_deaths >= 0:
            raise ActorDiedError


class _Response:
    def __init__(self, events):
        self._events = events

    def __aiter__(self):
        return self._events

    def cancel(self):
        pass


async def _streamed(client):
    return "".join([event.text async for batch in client.stream([REQUEST]) for _, event in batch])


def test_a_replica_that_dies_under_a_call_costs_nothing():
    (samples,) = asyncio.run(EngineClient(Handle(2)).complete([REQUEST]))
    assert samples[0].text == "ab"
    assert asyncio.run(_streamed(EngineClient(Handle(2)))) == "ab"


def test_replicas_that_die_one_after_the_other_are_a_failed_run():
    with pytest.raises(RunFailedError, match="3 replicas that died"):
        asyncio.run(EngineClient(Handle(3)).complete([REQUEST]))
    with pytest.raises(RunFailedError, match="3 replicas that died"):
        asyncio.run(_streamed(EngineClient(Handle(3))))


class HalfBroken(Handle):
    """A deployment that fails at one of its calls, and computes the others without end."""

    def __init__(self):
        super().__init__(0)
        self.cancelled = []
        self.complete = SimpleNamespace(remote=self._call)

    def _call(self, requests):
        return _Endless(self.cancelled, fails=any(request.prompt_ids == (0,) for request in requests))


class _Endless:
    def __init__(self, cancelled, fails):
        self._cancelled, self._fails = cancelled, fails

    def __await__(self):
        return self._answer().__await__()

    async def _answer(self):
        await asyncio.sleep(0 if self._fails else 60)
        raise RunFailedError("an engine", "a failure", "none", "restart it")

    def cancel(self):
        self._cancelled.append(self)


def test_the_calls_beside_one_that_failed_are_cancelled():
    handle = HalfBroken()

    async def fail():
        with pytest.raises(RunFailedError, match="found a failure"):
            await EngineClient(handle).complete([GenerationRequest("bad", (0,)), *[REQUEST] * 40])
        await asyncio.sleep(0)  # the cancelled calls have their turn
        return len(handle.cancelled)

    assert asyncio.run(asyncio.wait_for(fail(), 20)) == 2
