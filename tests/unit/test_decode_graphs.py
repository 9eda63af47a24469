"""Promises of generation.decode_graphs that hold without a GPU: steps stay right where nothing can be recorded."""

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
