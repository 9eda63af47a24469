"""Promises of gpt_core.generation.self_check: a shape whose bits differ is found and dropped, whatever the reason."""

import pytest
import torch

from gpt_core.generation import self_check
from gpt_core.generation.decoder import Decoder
from gpt_core.generation.engine import Engine, EngineOptions
from gpt_core.generation.request import GenerationRequest, Sampling
from gpt_core.model.precision import can_compute_bf16
from tests.unit.tiny_engine import SHAPE, TOKENIZER, make_weights


def make_classes(num_slots=64):
    decoder = Decoder(make_weights(), SHAPE, torch.float32, torch.device("cpu"), kernel="plain", attention="products")
    return self_check.agreed_classes(make_weights(), decoder, 192, num_slots)


def spoil_decode(monkeypatch, is_spoilt):
    """Make decode steps of some shapes differ in the last bit, as another kernel would."""
    plain = Decoder.decode

    def decode(self, cache, tokens, positions, slots, num_keys):
        logits = plain(self, cache, tokens, positions, slots, num_keys)
        return logits * (1 + 2**-22) if is_spoilt(len(slots), num_keys) else logits

    monkeypatch.setattr(Decoder, "decode", decode)


def test_numbers_of_rows_that_change_bits_are_dropped(monkeypatch):
    spoil_decode(monkeypatch, lambda rows, num_keys: rows in {4, 8, 16})
    classes = make_classes()
    assert not {4, 8, 16} & set(classes.rows)
    assert 64 in classes.rows
    assert {"decode rows 4", "decode rows 8", "decode rows 16"} <= set(classes.dropped)
    assert classes.is_invariant


def test_padding_that_changes_bits_makes_every_step_attend_to_the_whole_cache(monkeypatch):
    spoil_decode(monkeypatch, lambda rows, num_keys: num_keys > 64)
    classes = make_classes()
    assert classes.key_step == 192
    assert {"multiples of 16 keys", "multiples of 64 keys"} <= set(classes.dropped)


def test_numbers_of_keys_between_larger_steps_are_given_up_where_only_they_change_bits(monkeypatch):
    spoil_decode(monkeypatch, lambda rows, num_keys: num_keys % 64 != 0)
    classes = make_classes()
    assert classes.key_step == 64
    assert [told for told in classes.dropped if told.startswith("multiples")] == ["multiples of 16 keys"]


def test_numbers_of_chunks_that_change_bits_are_dropped(monkeypatch):
    plain = Decoder.prefill

    def prefill(self, cache, chunks, num_chunks):
        return plain(self, cache, chunks, num_chunks) + (1e-3 if num_chunks == 1 else 0)

    monkeypatch.setattr(Decoder, "prefill", prefill)
    assert 1 not in make_classes().chunks


def test_a_result_that_depends_on_the_place_in_the_batch_is_admitted(monkeypatch):
    plain = Decoder.decode

    def decode(self, cache, tokens, positions, slots, num_keys):
        logits = plain(self, cache, tokens, positions, slots, num_keys)
        return logits * (1 + torch.arange(len(slots))[:, None] * 2**-20)

    monkeypatch.setattr(Decoder, "decode", decode)
    assert not make_classes().is_invariant


@pytest.mark.parametrize("slots", [3, 70])
def test_an_engine_left_with_one_class_still_generates(monkeypatch, slots):
    prompts = [GenerationRequest(f"{i}", (65, 66, i), Sampling(max_tokens=3)) for i in range(slots + 2)]
    expected = Engine(make_weights(), SHAPE, TOKENIZER, EngineOptions(slots=slots)).run(prompts)
    monkeypatch.setattr(self_check, "ROW_CLASSES", (64,))
    engine = Engine(make_weights(), SHAPE, TOKENIZER, EngineOptions(slots=slots))
    assert engine.classes.rows == (64,)
    assert engine.run(prompts) == expected


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_some_decoder_gives_rows_the_same_bits_in_any_company_at_any_number_of_threads(threads, dtype):
    if dtype == torch.bfloat16 and not can_compute_bf16(torch.device("cpu")):
        pytest.skip("bf16 engines are for CPUs with AMX or AVX512-BF16")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        target = self_check.Target(torch.device("cpu"), dtype)
        _, classes = self_check.checked_decoder(make_weights(), SHAPE, 192, 64, target)
    finally:
        torch.set_num_threads(before)
    assert classes.is_invariant
