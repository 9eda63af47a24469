"""Promises of generation.decode_graphs that hold without a GPU: steps stay right where nothing can be recorded."""

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from unittest.mock import Mock

import pytest
import torch

from gpt_core.generation.decode_graphs import DecodeGraphs
from gpt_core.generation.decoder import Decoder
from gpt_core.generation.kv_cache import KVCache
from tests.unit.tiny_engine import SHAPE, make_weights

CPU = torch.device("cpu")
ROWS = torch.tensor([5, 6, 7, 8]), torch.tensor([0, 3, 2, 1])


def make_decoder():
    return Decoder(make_weights(), SHAPE, torch.float32, CPU, kernel="plain", attention="products")


def make_cache():
    return KVCache(SHAPE, 4, SHAPE.num_positions, torch.float32, CPU)


def test_steps_are_computed_kernel_by_kernel_where_no_graph_can_be_recorded(caplog):
    if torch.cuda.is_available():
        pytest.skip("this is about machines without a GPU")
    graphs = DecodeGraphs(make_decoder())
    expected = make_decoder().decode(make_cache(), *ROWS, range(4), 64)
    cache = make_cache()
    assert torch.equal(graphs.decode(cache, *ROWS, range(4), 64), expected)
    assert graphs.failure
    assert graphs.failure in caplog.text
    assert torch.equal(graphs.decode(cache, *ROWS, range(4), 64), expected)


class Graph:
    """Stands for a CUDA graph: a replay computes the step again from the memory that was recorded, into the same."""

    num_made = num_replayed = 0
    logits: torch.Tensor
    compute: Callable[[], torch.Tensor]

    def __init__(self):
        Graph.num_made += 1

    def replay(self):
        Graph.num_replayed += 1
        self.logits.copy_(self.compute())


@pytest.fixture
def graphs(monkeypatch):
    """A decoder's steps recorded by ``Graph``."""
    decoder, recording = make_decoder(), []
    decode_rows = decoder.decode_rows

    @contextmanager
    def record(graph, capture_error_mode):
        assert capture_error_mode == "thread_local"  # the default forbids other threads to allocate
        recording.append(graph)
        yield
        recording.clear()

    def recorded_rows(*step):
        logits = decode_rows(*step)
        for graph in recording:
            graph.compute, graph.logits = lambda: decode_rows(*step), logits
        return logits

    monkeypatch.setattr(decoder, "decode_rows", recorded_rows)
    fakes = {"Stream": Mock, "current_stream": Mock, "stream": nullcontext, "CUDAGraph": Graph, "graph": record}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(Graph, "num_made", 0)
    monkeypatch.setattr(Graph, "num_replayed", 0)
    return DecodeGraphs(decoder)


def test_a_step_is_recorded_once_for_each_number_of_keys_and_again_when_the_cache_has_grown(graphs):
    plain, caches = make_decoder(), [make_cache() for _ in range(2)]
    made = []
    for position in (0, 1, 2, 70, 71, 3, 4):
        rows = ROWS[0] + position, torch.full((4,), position)
        expected = plain.decode(caches[0], *rows, range(4), 64)
        assert torch.equal(graphs.decode(caches[1], *rows, range(4), 64), expected)
        made.append(Graph.num_made)
    # By products a step attends to all there is memory for: 128 positions from the fourth on.
    assert made == [1, 1, 1, 2, 2, 2, 2]
    assert Graph.num_replayed == 7  # each recording is tried once
    assert graphs.failure is None


def test_a_graph_is_dropped_when_the_cache_has_grown_and_come_back_to_its_size_and_place(graphs):
    cache = make_cache()
    rows = ROWS[0], torch.zeros(4, dtype=torch.long)
    graphs.decode(cache, *rows, range(4), 64)
    (block,) = cache.blocks
    tensors = [list(block.keys), list(block.values)]
    block.reserve(65)
    block.trim(1)
    block.keys[:], block.values[:] = tensors  # as an allocator may do
    graphs.decode(cache, *rows, range(4), 64)
    assert Graph.num_made == 2


def test_steps_of_other_slots_are_graphs_of_their_own_and_leave_each_others_logits(graphs):
    plain, caches = make_decoder(), [make_cache() for _ in range(2)]
    for token in (9, 10, 11):
        rows = torch.tensor([token, token + 1]), torch.tensor([token, 3])
        expected = [plain.decode(caches[0], *rows, slots, 64) for slots in (range(2), range(2, 4))]
        found = [graphs.decode(caches[1], *rows, slots, 64) for slots in (range(2), range(2, 4))]
        assert all(map(torch.equal, found, expected))
    assert Graph.num_made == 2


def test_a_graph_that_gives_other_bits_is_never_used_again(graphs, monkeypatch):
    monkeypatch.setattr(Graph, "replay", lambda graph: graph.logits.add_(1.0))
    expected = make_decoder().decode(make_cache(), *ROWS, range(4), 64)
    for _ in range(2):
        assert torch.equal(graphs.decode(make_cache(), *ROWS, range(4), 64), expected)
    assert graphs.failure == "a replayed step gave other bits"
    assert Graph.num_made == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; run it where there is one")
def test_a_recorded_step_gives_the_bits_of_one_run_kernel_by_kernel():
    device = torch.device("cuda")
    plain = Decoder(make_weights(), SHAPE, torch.bfloat16, device, kernel="plain", attention="products")
    graphs = DecodeGraphs(plain)
    caches = [KVCache(SHAPE, 4, SHAPE.num_positions, torch.bfloat16, device) for _ in range(2)]
    for position in (0, 1, 2, 70, 71, 3):  # grows in between
        rows = torch.tensor([5, 6, 7, 8]) + position, torch.full((4,), position)
        expected = plain.decode(caches[0], *rows, range(4), 64)
        assert torch.equal(graphs.decode(caches[1], *rows, range(4), 64), expected)
    assert graphs.failure is None
