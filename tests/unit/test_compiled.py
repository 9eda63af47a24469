"""Promises of gpt_core.model.compiled: one graph for all blocks, and the gradients of the layers as they are."""

import pytest
import torch
from torch._dynamo.utils import counters

from gpt_core.model.compiled import by_block
from gpt_core.model.gpt import GPT
from gpt_core.model.presets import ModelShape


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("recomputes", [False, True])
def test_blocks_compiled_one_by_one_share_a_graph_and_change_no_gradient(recomputes):
    model = GPT(ModelShape(n_layer=4, n_head=2, n_embd=16, num_positions=8, vocabulary_size=32)).initialise(0)
    model.recomputes_blocks = recomputes
    x = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    torch._dynamo.reset()
    counters.clear()
    found, expected = (
        torch.autograd.grad(layers(x).square().sum(), [x, *model.h.parameters()])
        for layers in (by_block(model), model.layers)
    )
    assert counters["stats"]["unique_graphs"] == 1
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)
