"""Promises of cluster.serving.engine_metrics and of the reports that replicas are scaled by."""

import asyncio
from types import SimpleNamespace

import pytest

from cluster.serving import engine_metrics
from cluster.serving.deployment import Generator
from cluster.serving.engine_loop import EngineLoop
from cluster.serving.replica_scaling import SAMPLES, SlotScaling
from gpt_core.generation.request import GenerationRequest, Sampling
from tests.unit.tiny_engine import make_engine

SLOTS = 2


class Metric:
    """What Ray would export."""

    def __init__(self, name, description, boundaries=()):
        self.value, self.observed = 0.0, []
        EXPORTED[name.removeprefix("herd_engine_")] = self

    def set(self, value):
        self.value = value

    def inc(self, value):
        assert value > 0, "Ray's counters refuse to be increased by nothing"
        self.value += value

    def observe(self, value):
        self.observed.append(value)


EXPORTED = {}


@pytest.fixture
def loop():
    made = EngineLoop(make_engine(slots=SLOTS, precision="fp32"))
    yield made
    made.close()


@pytest.fixture
def reporter(loop, monkeypatch):
    for kind in ("Gauge", "Counter", "Histogram"):
        monkeypatch.setattr(engine_metrics, kind, Metric)
    return engine_metrics._Reporter(loop)


def _ask(number):
    sampling = Sampling(max_tokens=5, temperature=0, stop_at_end_of_text=False)
    return GenerationRequest(f"r{number}", (97,) * 40, sampling)


async def _complete(loop, count):
    return await asyncio.gather(*(loop.complete(_ask(number)) for number in range(count)))


def test_exported_numbers_are_what_requests_cost(loop, reporter):
    for _ in range(2):
        asyncio.run(_complete(loop, 3))
        reporter._report()
        reporter._report()  # a second without work
    assert {name: metric.value for name, metric in EXPORTED.items() if not metric.observed} == {
        "waiting": 0,
        "slots": SLOTS,
        "slots_in_use": 0,
        "drawn_tokens": 2 * 3 * 5,
        "prefilled_tokens": 2 * 3 * 39,  # the last token of a prompt goes through the first decode step
    }
    assert len(EXPORTED["first_token_seconds"].observed) == 6
    assert all(seconds > 0 for seconds in EXPORTED["first_token_seconds"].observed)


def test_the_queue_of_the_engine_is_exported_and_moves_the_number_of_replicas(loop, reporter):
    generator = object.__new__(Generator)
    generator._loop = loop

    def wanted():
        report = asyncio.run(generator.record_autoscaling_stats())
        context = SimpleNamespace(aggregated_metrics={SAMPLES: {"replica": report[SAMPLES]}}, policy_state={})
        return SlotScaling(SLOTS)(context)[0]

    def hold(requests):
        """Submit while the engine stands still, and look at what it reports."""
        for request in requests:
            loop._engine.submit(request)
        loop._engine.step()
        reporter._report()
        return wanted(), EXPORTED["waiting"].value, EXPORTED["slots_in_use"].value

    assert wanted() == 1
    assert hold([_ask(number) for number in range(7)]) == (4, 7 - SLOTS, SLOTS)  # 7 samples, 2 a replica
    assert hold([_ask(number) for number in range(7, 9)]) == (5, 9 - SLOTS, SLOTS)
    loop._engine.run([])
    reporter._report()
    assert (wanted(), EXPORTED["waiting"].value, EXPORTED["slots_in_use"].value) == (1, 0, 0)
