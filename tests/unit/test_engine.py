"""Promises of gpt_core.generation.engine: the same text in any company, and requests treated as they ask."""

import functools
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_core.errors import CheckpointError, ResourceError, UserError
from gpt_core.generation.engine import Engine, EngineOptions
from gpt_core.generation.linear_kernels import can_compute_int8
from gpt_core.generation.request import GenerationRequest, Sampling
from gpt_core.model.gpt import GPT
from gpt_core.model.precision import can_compute_bf16
from gpt_core.model.presets import ModelShape
from tests.unit.tiny_engine import SHAPE, TOKENIZER, make_engine, make_weights, shared_engine


def prompt(text):
    return tuple(text.encode())


def request(name="r", text="Once upon a time", **sampling):
    return GenerationRequest(name, prompt(text), Sampling(**{"max_tokens": 8, **sampling}))


def run_by_events(engine, requests, arrivals):
    """Submit ``requests[i]`` before step ``arrivals[i]`` and return (completions by key, events by key)."""
    completions, events, step = {}, {}, 0
    waiting = sorted(zip(arrivals, range(len(requests)), strict=True))
    while waiting or engine.busy:
        while waiting and waiting[0][0] <= step:
            engine.submit(requests[waiting.pop(0)[1]])
        for event in engine.step():
            key = event.request_id, event.sample
            events.setdefault(key, []).append(event)
            if event.completion:
                assert key not in completions
                completions[key] = event.completion
        step += 1
    return completions, events


samplings = st.builds(
    Sampling,
    max_tokens=st.integers(1, 12),
    temperature=st.sampled_from([0.0, 1e-30, 0.7, 1.0, 1e30]),
    top_k=st.sampled_from([None, 1, 40, 2**63, 10**30]),
    top_p=st.sampled_from([None, 0.9]),
    min_p=st.sampled_from([None, 0.02, 1.0]),
    repetition_penalty=st.sampled_from([None, 1e-3, 1.3, 100.0]),
    stop=st.sampled_from([(), ("e", "xy")]),
    n=st.sampled_from([1, 1, 3]),
    seed=st.integers(0, 3),
    logprobs=st.sampled_from([None, 0, 2]),
    echo=st.booleans(),
)
prompts = st.binary(min_size=1, max_size=110).map(tuple)


@st.composite
def request_lists(draw):
    pairs = draw(st.lists(st.tuples(prompts, samplings), min_size=1, max_size=10))
    return [GenerationRequest(f"r{i}", ids, sampling) for i, (ids, sampling) in enumerate(pairs)]


@pytest.mark.parametrize(
    "precision",
    [
        "fp32",
        pytest.param(
            "bf16",
            marks=pytest.mark.skipif(
                not can_compute_bf16(torch.device("cpu")),
                reason="this CPU has no bf16 instructions; run it where lscpu lists avx512_bf16 or amx_bf16",
            ),
        ),
    ],
)
@given(requests=request_lists(), slots=st.sampled_from([3, 8, 16, 32]), data=st.data())
@settings(max_examples=25)
def test_a_request_gets_the_same_bits_alone_and_in_any_company(precision, requests, slots, data):
    crowd = shared_engine(slots, data.draw(st.sampled_from([1, 4, 9])), precision)
    shuffled = data.draw(st.permutations(requests))
    arrivals = data.draw(st.lists(st.integers(0, 15), min_size=len(requests), max_size=len(requests)))
    together, _ = run_by_events(crowd, shuffled, arrivals)
    for lone in requests:
        for completion in shared_engine(8, precision=precision).run([lone]):
            assert together[lone.id, completion.sample] == completion


@given(requests=request_lists())
@settings(max_examples=15)
def test_events_add_up_to_the_completion(requests):
    completions, events = run_by_events(shared_engine(8), requests, [0] * len(requests))
    for key, completion in completions.items():
        parts = events[key]
        assert "".join(event.text for event in parts) == completion.text
        assert tuple(e.token_id for e in parts if e.token_id is not None) == completion.token_ids
        if completion.logprobs is not None:
            assert sum((event.logprobs for event in parts), ()) == completion.logprobs
        assert [event.completion is not None for event in parts] == [False] * (len(parts) - 1) + [True]


def test_int8_gives_the_same_bits_alone_and_in_company_and_needs_a_cpu_that_can():
    if not can_compute_int8(torch.device("cpu")):
        with pytest.raises(ResourceError, match="a CPU with VNNI"):
            make_engine(precision="int8")
        return
    requests = [request(f"{i}", "many words " * i + "x", n=1 + i % 2, logprobs=2, echo=True) for i in range(9)]
    together = make_engine(slots=16, precision="int8").run(requests)
    lone = make_engine(slots=3, precision="int8")
    assert lone.classes.is_invariant
    assert [done for wanted in requests for done in lone.run([wanted])] == together
    assert together != shared_engine(8).run(requests)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; run it where there is one")
@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_a_gpu_gives_the_same_bits_alone_and_in_company(precision):
    requests = [request(f"{i}", "many words " * i + "x", n=1 + i % 2, logprobs=2, echo=True) for i in range(12)]
    together = make_engine(slots=16, precision=precision, device="cuda").run(requests)
    lone = make_engine(slots=3, precision=precision, device="cuda")
    assert lone.classes.is_invariant
    assert [done for wanted in requests for done in lone.run([wanted])] == together


@functools.cache
def engine_ahead(slots):
    """An engine that begins steps ahead, as it does on a GPU."""
    engine = make_engine(slots=slots)
    engine._goes_ahead = True
    return engine


@given(requests=request_lists(), slots=st.sampled_from([3, 8]), data=st.data())
@settings(max_examples=25)
def test_steps_begun_ahead_give_the_bits_and_the_events_of_those_that_wait(requests, slots, data):
    arrivals = data.draw(st.lists(st.integers(0, 6), min_size=len(requests), max_size=len(requests)))
    assert run_by_events(engine_ahead(slots), requests, arrivals) == run_by_events(
        shared_engine(slots), requests, arrivals
    )


def test_a_step_begun_ahead_serves_those_that_stay_and_those_that_join_are_in_the_next(monkeypatch):
    engine, steps = engine_ahead(8), []
    decode = engine._decode
    monkeypatch.setattr(
        engine, "_decode", lambda rows: steps.append([row[0].request.id for row in rows]) or decode(rows)
    )
    lengths = {"a": 6, "b": 2, "c": 6, "d": 3}
    asked = [request(name, max_tokens=n, top_k=20, stop_at_end_of_text=False) for name, n in lengths.items()]
    found, events = run_by_events(engine, asked, [0, 0, 0, 4])
    # d joins before the fifth step, which was begun without it, and draws from the sixth on.
    assert ["".join(step) for step in steps] == ["abc", "abc", "ac", "ac", "ac", "acd", "d", "d"]
    assert [len(events[name, 0]) for name in lengths] == list(lengths.values())
    assert list(found.values()) == shared_engine(8).run([asked[i] for i in (1, 0, 2, 3)])


def test_a_step_begun_ahead_that_is_not_finite_ends_its_sample_alone():
    weights = dict(make_weights())
    weights["wpe.weight"] = weights["wpe.weight"].clone()
    weights["wpe.weight"][60] = torch.nan
    engine = Engine(weights, SHAPE, TOKENIZER, EngineOptions(slots=3, precision="fp32"))
    engine._goes_ahead = True
    asked = [
        request(name, "y" * 8, top_k=9, max_tokens=max_tokens, stop_at_end_of_text=False)
        for name, max_tokens in (("a", 50), ("b", 70))
    ]
    sound, bad = engine.run(asked)
    assert [sound] == shared_engine(8).run(asked[:1])
    assert (bad.finish_reason, len(bad.token_ids)) == ("error", 60 - 7)  # positions 7 to 59 are sound
    assert engine.run(asked[:1]) == [sound]


def test_a_step_begun_ahead_leaves_a_slot_finite_whose_sample_has_stopped():
    weights = dict(make_weights())
    weights["wpe.weight"] = weights["wpe.weight"].clone()
    weights["wpe.weight"][60] = torch.nan
    engine = Engine(weights, SHAPE, TOKENIZER, EngineOptions(slots=1, precision="fp32"))
    engine._goes_ahead = True
    made = []
    for seed in range(40):
        asked = request("a", "y" * 8, top_k=9, max_tokens=60 - 7, stop_at_end_of_text=False, seed=seed)
        text = engine.run([asked])[0].text
        # Where it stops at the last token, position 60 is computed ahead.
        stopping = replace(asked, sampling=replace(asked.sampling, max_tokens=70, stop=(text[-2:],)))
        (completion,) = engine.run([stopping])
        made.append(len(completion.token_ids))
        block, row = engine._cache.block_of(0)
        assert all(torch.isfinite(tensor[row]).all() for tensor in (*block.keys, *block.values))
    assert 60 - 7 in made


def test_a_cancelled_neighbour_leaves_no_trace():
    engine = shared_engine(8)
    expected = engine.run([request("a", n=2), request("b", top_k=5)])
    engine.submit(request("loud", "x" * 100, n=5, max_tokens=30))
    engine.submit(request("a", n=2))
    for _ in range(3):
        engine.step()
    engine.submit(request("b", top_k=5))
    assert engine.cancel("loud")
    assert not engine.cancel("loud")
    assert engine.statistics().num_slots_in_use == 2
    found = []
    while engine.busy:
        found += [event.completion for event in engine.step() if event.completion]
    assert {(c.request_id, c.sample): c for c in found} == {(c.request_id, c.sample): c for c in expected}


def test_samples_of_one_prompt_share_its_prefill_and_get_the_bits_they_get_alone():
    shared, lone = make_engine(slots=8), make_engine(slots=1)
    wanted = request(text="A prompt of more than one chunk of tokens, " * 2, n=6, echo=True, logprobs=1)
    assert shared.run([wanted]) == lone.run([wanted])
    num_to_prefill = len(wanted.prompt_ids) - 1
    assert shared.statistics().prefilled_tokens == num_to_prefill
    assert shared.statistics().copied_tokens == 5 * num_to_prefill


def test_a_sample_admitted_after_its_sibling_drew_tokens_takes_over_the_prompt_alone():
    engine = make_engine(slots=3)
    late = request("late", "ab", n=3, max_tokens=3, logprobs=0, stop_at_end_of_text=False)
    crowd = [request("a", max_tokens=1), request("b", max_tokens=1), late]
    assert engine.run(crowd)[2:] == make_engine(slots=4).run([late])
    assert engine.statistics().copied_tokens == 2


def test_samples_seeds_and_requests_draw_differently_and_a_key_stands_for_the_id():
    engine = shared_engine(8)
    texts = [c.text for c in engine.run([request("a", n=2), request("b"), request("c", seed=1)])]
    assert len(set(texts)) == 4
    keyed = GenerationRequest("z", prompt("Once upon a time"), Sampling(max_tokens=8), key="b")
    assert engine.run([keyed])[0].text == texts[2]


def test_a_damaged_cache_row_of_a_former_request_is_never_read():
    engine = make_engine(slots=4)
    expected = engine.run([request(text="short")])
    engine.run([request(str(i), "z" * 140, max_tokens=21) for i in range(4)])
    assert engine.run([request(text="short")]) == expected


def make_hugging_face():
    transformers = pytest.importorskip("transformers", reason="pip install transformers (a dev dependency)")
    config = transformers.GPT2Config(
        vocab_size=SHAPE.vocabulary_size,
        n_positions=SHAPE.num_positions,
        n_embd=SHAPE.n_embd,
        n_layer=SHAPE.n_layer,
        n_head=SHAPE.n_head,
        bos_token_id=TOKENIZER.end_of_text,
        eos_token_id=TOKENIZER.end_of_text,
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    is_conv1d = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    state = {
        f"transformer.{name}": tensor.T if name.endswith(is_conv1d) else tensor
        for name, tensor in make_weights().items()
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"]
    assert not unexpected
    model.tie_weights()
    return model


def test_greedy_output_and_logprobs_equal_those_of_hugging_face():
    model, engine = make_hugging_face(), shared_engine(8)
    requests = [request(f"{i}", "The quick brown fox jumps. " * (i + 1), top_k=1, max_tokens=20) for i in range(5)]
    requests = [
        GenerationRequest(r.id, r.prompt_ids, Sampling(max_tokens=20, top_k=1, echo=True, logprobs=1)) for r in requests
    ]
    for wanted, found in zip(requests, engine.run(requests), strict=True):
        ids = torch.tensor([wanted.prompt_ids])
        with torch.no_grad():
            theirs = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=20,
                pad_token_id=TOKENIZER.end_of_text,
            )[0]
            logprobs = model(theirs[None]).logits[0].log_softmax(-1)
        assert (*wanted.prompt_ids, *found.token_ids) == tuple(theirs.tolist())
        assert found.logprobs is not None
        for position, entry in enumerate(found.logprobs[1:]):
            assert entry.logprob == pytest.approx(logprobs[position, entry.token_id].item(), abs=1e-4)
            assert entry.top[0][0] == logprobs[position].argmax().item()


def test_echo_without_new_tokens_scores_the_prompt():
    engine = shared_engine(8)
    wanted = request(text="To be or not", echo=True, logprobs=0, max_tokens=0)
    completion = engine.run([wanted])[0]
    assert completion.text == "To be or not"
    assert completion.token_ids == ()
    assert completion.finish_reason == "length"
    assert completion.logprobs is not None
    assert completion.logprobs[0].logprob is None
    with torch.no_grad():
        model = GPT(SHAPE)
        model.load_state_dict(make_weights())
        expected = model(torch.tensor([wanted.prompt_ids]))[0].log_softmax(-1)
    for position, entry in enumerate(completion.logprobs[1:]):
        assert entry.logprob == pytest.approx(expected[position, entry.token_id].item(), abs=1e-4)


def test_a_prompt_of_one_token_can_be_echoed_with_logprobs():
    completion = shared_engine(8).run([request(text="T", echo=True, logprobs=1, max_tokens=1)])[0]
    assert completion.text.startswith("T")
    assert completion.logprobs is not None
    assert [entry.logprob is None for entry in completion.logprobs] == [True, False]


def find_greedy(**sampling):
    return shared_engine(8).run([request(top_k=1, **sampling)])[0]


def test_text_is_cut_before_a_stop_string_found_over_token_borders():
    whole = find_greedy(max_tokens=30)
    start = 3
    stop = whole.text[start : start + 3]
    found = find_greedy(max_tokens=30, stop=("never there", stop))
    assert found.finish_reason == "stop"
    assert found.text == whole.text[: whole.text.index(stop)]
    assert found.token_ids == whole.token_ids[: len(found.token_ids)]
    assert len(found.token_ids) < 30


def test_a_stop_id_ends_the_sample_and_is_not_in_its_text():
    whole = find_greedy(max_tokens=30)
    stop_id = whole.token_ids[4]
    first = whole.token_ids.index(stop_id)
    found = find_greedy(max_tokens=30, stop_ids=(stop_id,))
    assert found.finish_reason == "stop"
    assert found.token_ids == whole.token_ids[: first + 1]
    assert found.text == TOKENIZER.decode(whole.token_ids[:first])


@pytest.mark.parametrize("stops", [True, False])
def test_end_of_text_ends_a_sample_unless_told_otherwise(stops):
    weights = dict(make_weights())
    weights["wte.weight"] = weights["wte.weight"].clone()
    weights["ln_f.weight"] = torch.zeros(SHAPE.n_embd)
    weights["ln_f.bias"] = torch.ones(SHAPE.n_embd)
    weights["wte.weight"][TOKENIZER.end_of_text] = 9.0
    engine = Engine(weights, SHAPE, TOKENIZER, EngineOptions(slots=2))
    found = engine.run([request(top_k=1, stop_at_end_of_text=stops, max_tokens=3)])[0]
    assert found.finish_reason == ("stop" if stops else "length")
    assert found.token_ids == (TOKENIZER.end_of_text,) * (1 if stops else 3)
    assert stops == (found.text == "")


def test_the_repetition_penalty_acts_on_prompt_and_output():
    plain = find_greedy(max_tokens=40)
    penalised = find_greedy(max_tokens=40, repetition_penalty=50.0)
    assert len(set(penalised.token_ids)) > len(set(plain.token_ids)) or plain.token_ids != penalised.token_ids
    assert len(set(penalised.token_ids)) == 40
    assert not set(penalised.token_ids) & set(prompt("Once upon a time"))


@pytest.mark.parametrize(("num_prompt", "expected"), [(160, 1), (150, 11), (100, 50)])
def test_output_is_clipped_to_the_window_whose_last_token_needs_no_position(num_prompt, expected):
    found = shared_engine(8).run([request(text="y" * num_prompt, max_tokens=50, stop_at_end_of_text=False)])[0]
    assert len(found.token_ids) == expected
    assert found.finish_reason == "length"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ((), "request 'r': found a prompt of 0 tokens; expected 1 to 160, the model's window; "),
        ((1,) * 161, "request 'r': found a prompt of 161 tokens; expected 1 to 160, the model's window; "),
        ((1, 257), "request 'r': found token id 257; expected ids of 0 to 256; "),
        ((-1,), "request 'r': found token id -1; expected ids of 0 to 256; "),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_refused_and_stops_no_other(ids, message):
    engine = shared_engine(8)
    bad = GenerationRequest("r", ids)
    with pytest.raises(UserError) as caught:
        engine.submit(bad)
    assert str(caught.value).startswith(message)
    assert not engine.busy
    first, failed, last = engine.run([request("a"), bad, request("b")])
    assert (failed.finish_reason, failed.error) == ("error", str(caught.value))
    assert [first, last] == engine.run([request("a"), request("b")])


def test_an_id_in_progress_is_refused_and_free_again_afterwards():
    engine = make_engine(slots=2)
    engine.submit(request("a"))
    with pytest.raises(UserError, match="the same id as a request in progress"):
        engine.submit(request("a"))
    while engine.busy:
        engine.step()
    engine.submit(request("a"))


def test_requests_start_in_the_order_they_came():
    engine = make_engine(slots=2)
    _, events = run_by_events(engine, [request(f"{i}", max_tokens=i % 3 + 1) for i in range(9)], [0] * 9)
    assert list(events) == [(f"{i}", 0) for i in range(9)]


def test_a_long_prompt_does_not_stall_a_sample_in_progress():
    engine = make_engine(slots=4, prefill_chunks=1)
    engine.submit(request("talking", max_tokens=20, stop_at_end_of_text=False))
    engine.step()
    engine.submit(request("long", "w" * 150))
    for _ in range(4):
        events = engine.step()
        assert [event.request_id for event in events] == ["talking"]
    assert {event.request_id for event in engine.step()} == {"talking", "long"}


def test_statistics_follow_the_work():
    engine = make_engine(slots=2)
    for i in range(3):
        engine.submit(request(f"{i}", "four", max_tokens=2, stop_at_end_of_text=False))
    engine.step()
    now = engine.statistics()
    assert (now.num_waiting, now.num_slots, now.num_slots_in_use) == (1, 2, 2)
    assert (now.num_steps, now.prefilled_tokens, now.drawn_tokens) == (1, 6, 2)
    while engine.busy:
        engine.step()
    assert (engine.statistics().num_slots_in_use, engine.statistics().drawn_tokens) == (0, 6)


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"logprobs": 2},
        {"logprobs": 0, "top_k": 1},
        {"repetition_penalty": 1.3, "top_p": 0.9},
        {"echo": True, "logprobs": 1, "n": 3},
        {"echo": True, "logprobs": 1, "max_tokens": 0},
    ],
)
def test_damaged_weights_end_a_sample_with_an_error_and_not_the_engine(sampling):
    weights = {**make_weights(), "ln_f.bias": torch.full((SHAPE.n_embd,), torch.nan)}
    engine = Engine(weights, SHAPE, TOKENIZER, EngineOptions(slots=2))
    for found in engine.run([request(**sampling)]):
        assert found.finish_reason == "error"
        assert found.error == "the model's logits are not finite; its weights are damaged"
        assert found.logprobs is None
    assert not engine.busy


@pytest.mark.parametrize("sampling", [{}, {"logprobs": 1}, {"logprobs": 1, "echo": True}, {"top_k": 5, "n": 2}])
def test_a_request_whose_logits_are_not_finite_ends_alone_and_leaves_its_slot_clean(sampling):
    weights = dict(make_weights())
    weights["wpe.weight"] = weights["wpe.weight"].clone()
    weights["wpe.weight"][60] = torch.nan  # met by a sequence that comes this far
    engine = Engine(weights, SHAPE, TOKENIZER, EngineOptions(slots=3, precision="fp32"))
    sound = [request("a", logprobs=1), request("b", n=2), request("c", "x" * 20, logprobs=0)]
    bad = request("bad", "y" * 70, **sampling)
    found = engine.run([sound[0], bad, *sound[1:], *[request(text, text) for text in "xyz"]])
    assert {c.finish_reason for c in found if c.request_id == "bad"} == {"error"}
    assert [c for c in found if c.request_id in {"a", "b", "c"}] == shared_engine(8).run(sound)
    assert "error" not in {c.finish_reason for c in found if c.request_id != "bad"}
    assert engine.run(sound) == shared_engine(8).run(sound)


def test_a_long_sequence_makes_its_own_block_of_slots_grow_while_it_lasts_and_no_other():
    engine = make_engine(slots=64)
    sizes = [engine.statistics().cache_bytes]
    long = request("long", "z" * 100, max_tokens=20, stop_at_end_of_text=False)
    short = [request(f"{i}", max_tokens=20, stop_at_end_of_text=False) for i in range(63)]
    found = {}
    for asked in (long, *short):
        engine.submit(asked)
    while engine.busy:
        events = engine.step()
        found |= {event.request_id: event.completion for event in events if event.completion}
        sizes.append(engine.statistics().cache_bytes)
    assert max(sizes) == sizes[0] * 5 // 4  # one of four blocks has twice the positions
    assert sizes[-1] == sizes[0]
    assert [found["long"]] == shared_engine(8).run([long])
    assert [found[f"{i}"] for i in range(4)] == shared_engine(8).run(short[:4])


def test_ids_that_pad_the_vocabulary_are_never_drawn():
    shape = ModelShape(2, 2, 32, 160, 384)
    padded = dict(make_weights())
    spare = torch.full((384 - SHAPE.vocabulary_size, SHAPE.n_embd), 3.0)
    padded["wte.weight"] = torch.cat([padded["wte.weight"], spare])
    found = Engine(padded, shape, TOKENIZER, EngineOptions(slots=8, precision="fp32")).run([request(n=3, logprobs=2)])
    assert found == shared_engine(8).run([request(n=3, logprobs=2)])


def test_a_model_with_fewer_ids_than_the_tokenizer_is_refused():
    small = ModelShape(2, 2, 32, 160, 200)
    with pytest.raises(CheckpointError, match=r"found 200 ids; expected 257 \(tokenizer 'bytes'\)"):
        Engine({}, small, TOKENIZER)


def test_options_below_one_are_refused():
    with pytest.raises(UserError, match=r"engine.slots: found 0; expected 1 or more"):
        EngineOptions(slots=0)
    with pytest.raises(UserError, match=r"engine.prefill_chunks: found -1; expected 1 or more"):
        EngineOptions(prefill_chunks=-1)
    with pytest.raises(UserError, match=r"engine.window_tokens: found 0; expected 1 or more"):
        EngineOptions(window_tokens=0)


def test_a_smaller_window_than_the_model_s_changes_no_text():
    narrow = make_engine(slots=8, window_tokens=64)
    assert narrow.window_tokens == 64
    assert narrow.run([request(n=2)]) == shared_engine(8).run([request(n=2)])


@pytest.mark.slow
def test_hundreds_of_requests_give_the_same_bits_with_one_slot_and_with_many():
    generator = random.Random(5)
    requests = [
        GenerationRequest(
            f"{i}",
            tuple(generator.randrange(256) for _ in range(generator.randrange(1, 150))),
            Sampling(max_tokens=generator.randrange(1, 30), top_k=generator.choice([None, 1, 40]), logprobs=1, seed=i),
        )
        for i in range(200)
    ]
    assert make_engine(slots=70).run(requests) == make_engine(slots=1).run(requests)
