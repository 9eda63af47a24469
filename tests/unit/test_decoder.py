"""Promises of gpt_core.generation.decoder: the same model as gpt_core.model.gpt, chunk by chunk and token by token."""

import numpy as np
import pytest
import torch

from gpt_core.generation.decode_attention import AttentionKind
from gpt_core.generation.decoder import CHUNK_TOKENS, Chunk, Decoder
from gpt_core.generation.kv_cache import KVCache
from gpt_core.generation.linear_kernels import can_compute_int8, can_pack
from gpt_core.generation.native_attention import native_attention
from gpt_core.model.presets import ModelShape
from tests.reference import gpt2_numpy
from tests.unit.tiny_engine import make_weights

CPU = torch.device("cpu")
NUM_PREFILLED = 2 * CHUNK_TOKENS + 5


def forward_all(shape, ids, *, kernel, attention: AttentionKind = "products", dtype=torch.float32, weights=None):
    """Logits of every position: the first by chunks, the rest token by token, in slot 2 of 4."""
    decoder = Decoder(weights or make_weights(shape), shape, dtype, CPU, kernel=kernel, attention=attention)
    cache = KVCache(shape, 4, shape.num_positions, dtype, CPU)
    starts = range(0, NUM_PREFILLED, CHUNK_TOKENS)
    chunks = [Chunk(2, s, tuple(ids[s : min(s + CHUNK_TOKENS, NUM_PREFILLED)])) for s in starts]
    streams = decoder.prefill(cache, chunks, 4)
    logits = torch.cat([decoder.prompt_logits(streams[i])[: len(c.ids)] for i, c in enumerate(chunks)])
    rows = [logits]
    for position in range(NUM_PREFILLED, len(ids)):
        tokens, positions = torch.tensor([0, 0, ids[position], 0]), torch.tensor([0, 0, position, 0])
        rows.append(decoder.decode(cache, tokens, positions, range(4), 128)[2:3])
    return torch.cat(rows)


@pytest.mark.parametrize("band", [None, 9])
@pytest.mark.parametrize("kernel", ["plain", "packed"])
@pytest.mark.parametrize("attention", ["native", "products", "fused"])
def test_chunks_and_single_tokens_give_the_logits_of_an_independent_forward_pass(band, kernel, attention):
    if kernel == "packed" and not can_pack(CPU, torch.float32):
        pytest.skip("this torch has no packed linear layers; the plain ones are tested")
    if attention == "native" and native_attention(torch.float32, 16) is None:
        pytest.skip("no C++ compiler that knows this machine; install g++")
    shape = ModelShape(3, 2, 32, 128, 257, attention_band=band)
    ids = torch.randint(257, (84,), generator=torch.Generator().manual_seed(0)).tolist()
    found = forward_all(shape, ids, kernel=kernel, attention=attention)
    weights = {name: tensor.numpy() for name, tensor in make_weights(shape).items()}
    expected = gpt2_numpy.logits(np.array(ids), weights, shape.n_layer, shape.n_head, band)
    np.testing.assert_allclose(found[:, :257], expected, atol=1e-4, rtol=0)


def test_ids_that_only_round_the_vocabulary_up_are_impossible():
    shape = ModelShape(3, 2, 32, 128, 257)
    found = forward_all(shape, list(range(80)), kernel="plain")
    assert found.shape == (80, 384)
    assert torch.isneginf(found[:, 257:]).all()


def test_int8_stays_near_full_precision():
    if not can_compute_int8(CPU):
        pytest.skip("int8 products are for CPUs with VNNI")
    shape = ModelShape(3, 2, 32, 128, 257)
    ids = torch.randint(257, (120,), generator=torch.Generator().manual_seed(1)).tolist()
    full, eighth = (forward_all(shape, ids, kernel=k)[:, :257] for k in ("plain", "int8"))
    distance = torch.nn.functional.kl_div(
        eighth.log_softmax(-1), full.log_softmax(-1), log_target=True, reduction="none"
    )
    assert distance.sum(-1).mean() < 1e-3
    assert (full - eighth).abs().mean() < 0.02 * full.std()
    assert (full.argmax(-1) == eighth.argmax(-1)).float().mean() > 0.9


def test_half_precision_stays_near_full_precision():
    shape = ModelShape(3, 2, 32, 128, 257)
    ids = list(range(80))
    full, half = (forward_all(shape, ids, kernel="plain", dtype=d)[:, :257] for d in (torch.float32, torch.bfloat16))
    distance = torch.nn.functional.kl_div(half.log_softmax(-1), full.log_softmax(-1), log_target=True, reduction="none")
    assert distance.sum(-1).mean() < 1e-3


def test_half_precision_keeps_what_is_left_of_logits_that_have_a_large_part_in_common():
    """As trained models have it: logits of GPT-2 lie around -35 to -100, where bf16 counts in halves."""
    shape = ModelShape(1, 2, 32, 128, 257)
    weights = {name: tensor.numpy().copy() for name, tensor in make_weights(shape).items()}
    weights["wte.weight"] += 1.0
    weights["ln_f.bias"] = weights["ln_f.bias"] - 1.5
    ids = list(range(80))
    expected = gpt2_numpy.logits(np.array(ids), weights, shape.n_layer, shape.n_head, None)
    assert expected.mean() < -35
    tensors = {name: torch.from_numpy(values) for name, values in weights.items()}
    found = forward_all(shape, ids, kernel="plain", dtype=torch.bfloat16, weights=tensors)[:, :257]
    errors = found.log_softmax(-1).double() - torch.from_numpy(expected).log_softmax(-1)
    assert errors.abs().max() < 0.1


@pytest.mark.parametrize("band", [None, 9])
def test_chunks_attended_to_together_give_what_each_gives_by_itself(band):
    # On a GPU all chunks of one start are one call; this is its code on a CPU, for a cache of one block.
    shape = ModelShape(3, 2, 32, 128, 257, attention_band=band)
    decoder = Decoder(make_weights(shape), shape, torch.float32, CPU, kernel="plain", attention="products")
    ids = torch.randint(257, (3, 96), generator=torch.Generator().manual_seed(1)).tolist()
    places = [(2, 0), (0, 0), (0, 32), (0, 64), (1, 0), (1, 32)]
    chunks = [Chunk(slot, start, tuple(ids[slot][start : start + CHUNK_TOKENS])) for slot, start in places]
    chunks[-1] = Chunk(1, 32, chunks[-1].ids[:5])
    caches = [KVCache(shape, 4, shape.num_positions, torch.float32, CPU) for _ in range(2)]
    each = decoder.prefill(caches[0], chunks, 8)
    decoder._each_chunk = decoder._alike_chunks
    together = decoder.prefill(caches[1], chunks, 8)
    assert torch.allclose(together[: len(chunks)], each[: len(chunks)], atol=1e-5)
    for old, new in zip(caches[0].blocks[0].keys, caches[1].blocks[0].keys, strict=True):
        assert torch.allclose(old, new, atol=1e-5)
