"""Promises of cluster.serving.engine_loop: an engine's steps as awaitable completions."""

import asyncio
import contextlib

import pytest
import torch

from cluster.serving.engine_loop import EngineLoop
from gpt_core.errors import RunFailedError, SettingsError, UserError
from gpt_core.generation.engine import Engine, EngineOptions
from gpt_core.generation.request import GenerationRequest, Sampling
from gpt_core.model.gpt import GPT
from gpt_core.model.presets import ModelShape
from gpt_core.tokens.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer("bytes")
SHAPE = ModelShape(1, 1, 8, num_positions=256, vocabulary_size=TOKENIZER.vocabulary_size)


def make_engine():
    torch.set_num_threads(1)
    weights = {name: tensor.detach() for name, tensor in GPT(SHAPE).initialise(0).named_parameters()}
    return Engine(weights, SHAPE, TOKENIZER, EngineOptions(slots=2, precision="fp32"))


@pytest.fixture
def loop():
    made = EngineLoop(make_engine())
    yield made
    made.close()


def ask(name, max_tokens=6, **sampling):
    return GenerationRequest(name, (97, 98), Sampling(max_tokens=max_tokens, seed=3, **sampling))


async def _until_idle(loop):
    async with asyncio.timeout(10):
        while loop.statistics().num_slots_in_use + loop.statistics().num_waiting:
            await asyncio.sleep(0.01)


def test_completions_are_those_of_the_bare_engine(loop):
    requests = [ask("one", n=3), ask("two")]

    async def both():
        return await asyncio.gather(*map(loop.complete, requests))

    assert [done for samples in asyncio.run(both()) for done in samples] == make_engine().run(requests)


def test_the_events_of_a_stream_add_up_to_the_completions(loop):
    requests = [ask("one", n=2), ask("two")]
    texts, done = {}, {}

    async def collect():
        async for batch in loop.stream(requests):
            for event in batch:
                key = event.request_id, event.sample
                texts[key] = texts.get(key, "") + event.text
                done[key] = event.completion

    asyncio.run(collect())
    assert texts == {key: completion.text for key, completion in done.items()}
    assert len(texts) == 3
    assert len(loop.take_first_token_seconds()) == 2
    assert loop.take_first_token_seconds() == []


def test_leaving_a_stream_early_frees_the_slots(loop):
    async def leave():
        async with contextlib.aclosing(loop.stream([ask("one", 200), ask("two", 200), ask("three", 200)])) as batches:
            await anext(batches)
        await _until_idle(loop)

    asyncio.run(leave())
    assert loop.statistics().drawn_tokens < 400
    assert not loop._receivers


def test_a_refused_request_is_an_error_of_its_own(loop):
    long = GenerationRequest("long", (97,) * 300, Sampling(seed=0))

    async def both():
        return await asyncio.gather(loop.complete(long), loop.complete(ask("one")))

    (refused,), (fine,) = asyncio.run(both())
    assert "300 tokens" in refused.error
    assert fine.error is None

    async def stream():
        return [batch async for batch in loop.stream([ask("two"), long])]

    with pytest.raises(UserError, match="300 tokens"):
        asyncio.run(stream())


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("step", RuntimeError("broken")),
        ("step", SettingsError("sampling", "broken", "whole", "mend it")),
        ("submit", TypeError("broken")),
    ],
)
def test_a_failed_engine_fails_what_is_there_and_what_comes_and_refuses_nobody(loop, monkeypatch, place, error):
    async def fail():
        monkeypatch.setattr(loop._engine, place, lambda *_: (_ for _ in ()).throw(error))
        for name in ("there", "later"):
            with pytest.raises(RunFailedError, match="broken"):
                await loop.complete(ask(name))

    asyncio.run(fail())
    assert loop.failure.__cause__ is error
