"""A GPT's layers compiled for training.

Used by the learner. On a CPU, and for up to 24 layers, as one graph, in which what ends a layer is computed together
with what begins the next. Compiling takes time by the layer, though: before any code is written 48 layers as one graph
take 55 s, and one block's graph for all of them 4.5 (one core of an EPYC, 2026-11-30). A GPU loses by it a pass or two
over the stream a layer.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gpt_core.model.gpt import GPT

MOST_LAYERS_A_GRAPH = 24


def compiled_layers(model: GPT, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return ``model.layers``, compiled when it is first called."""
    if device.type == "cpu" or model.shape.n_layer <= MOST_LAYERS_A_GRAPH:
        return torch.compile(model.layers)
    return by_block(model)


def by_block(model: GPT) -> Callable[[Tensor], Tensor]:
    """Return the same with one graph for all blocks that are alike."""
    blocks = [torch.compile(block) for block in model.h]
    return lambda x_BTC: model.layers(x_BTC, blocks)
