"""A small model with lively weights over the byte tokenizer, and engines on it."""

import functools

import torch

from gpt_core.generation.engine import Engine, EngineOptions
from gpt_core.model.gpt import GPT
from gpt_core.model.presets import ModelShape
from gpt_core.tokens.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer("bytes")
SHAPE = ModelShape(n_layer=2, n_head=2, n_embd=32, num_positions=160, vocabulary_size=TOKENIZER.vocabulary_size)


@functools.cache
def make_weights(shape=SHAPE):
    """Weights whose every tensor matters, and whose distributions are neither flat nor certain."""
    generator = torch.Generator().manual_seed(7)
    model = GPT(shape).initialise(seed=3)
    return {
        name: parameter.detach() + torch.randn(parameter.shape, generator=generator) * 0.15
        for name, parameter in model.named_parameters()
    }


def make_engine(shape=SHAPE, **options):
    """An engine in fp32 unless another precision is asked for: what "auto" takes differs between machines."""
    return Engine(make_weights(shape), shape, TOKENIZER, EngineOptions(**{"precision": "fp32", **options}))


@functools.cache
def shared_engine(slots, prefill_chunks=4, precision="fp32"):
    """An engine used by many tests, one after the other: what it did before must not matter, either."""
    return make_engine(slots=slots, prefill_chunks=prefill_chunks, precision=precision)
