"""Promises of cluster.serving.completions_schema: what a body asks for, and what is refused."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.serving.api_error import ApiError
from cluster.serving.completions_schema import ServedModel, parse_completions, parse_tokenize
from gpt_core.generation.request import Sampling
from gpt_core.tokens.tokenizer import load_tokenizer

BYTES = load_tokenizer("bytes")
MODEL = ServedModel("tiny", BYTES, window_tokens=32, fingerprint="herd-0", created=0)
END = BYTES.end_of_text


def parse(body, max_completions=8):
    return parse_completions(body, MODEL, max_completions)


def error_of(body, **options):
    with pytest.raises(ApiError) as caught:
        parse(body, **options)
    return caught.value


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("hi", [(104, 105)]),
        (["hi", "a"], [(104, 105), (97,)]),
        ([104, 105], [(104, 105)]),
        ([[104], [105, 256]], [(104,), (105, 256)]),
        ("", [(END,)]),
        (None, [(END,)]),
        ("é", [(0xC3, 0xA9)]),
    ],
)
def test_a_prompt_is_text_texts_ids_or_lists_of_ids(prompt, expected):
    call = parse({"prompt": prompt})
    assert [request.prompt_ids for request in call.requests] == expected


def test_the_defaults_are_those_of_openai():
    call = parse({"prompt": "a", "seed": 1})
    assert call.sampling == Sampling(max_tokens=16, temperature=1.0, seed=1)
    assert (call.stream, call.include_usage) == (False, False)


def test_prompts_alike_draw_alike_with_a_seed_and_each_by_itself_without_one():
    keys = [[request.key for request in parse({"prompt": ["a", "a"], **seed}).requests] for seed in ({}, {"seed": 1})]
    assert keys[0][0] != keys[0][1]
    assert keys[1][0] == keys[1][1]


def test_null_is_as_good_as_absent():
    names = "max_tokens temperature top_p n stop echo logprobs stream top_k min_p repetition_penalty best_of suffix"
    body = {"prompt": "a", "seed": 1, **dict.fromkeys(names.split())}
    assert parse(body) == parse({"prompt": "a", "seed": 1})


def test_every_field_reaches_the_sampling():
    body = {
        "model": "tiny", "prompt": ["a", "b"], "max_tokens": 3, "temperature": 0, "top_p": 0.5, "n": 2, "seed": -4,
        "stop": ["x", "yz"], "echo": True, "logprobs": 2, "stream": True, "stream_options": {"include_usage": True},
        "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "user": "someone", "best_of": 2, "logit_bias": {},
    }  # fmt: skip
    call = parse(body)
    assert call.sampling == Sampling(
        max_tokens=3, temperature=0, top_p=0.5, n=2, seed=-4, stop=("x", "yz"), echo=True, logprobs=2, top_k=5,
        min_p=0.1, repetition_penalty=1.2,
    )  # fmt: skip
    assert (call.stream, call.include_usage, call.num_completions, call.prompt_tokens) == (True, True, 4, 2)


def test_draws_are_keyed_by_the_seed_alone_and_without_one_by_chance():
    one, two = parse({"prompt": "a", "seed": 5}), parse({"prompt": ["b", "a"], "seed": 5})
    assert {request.key for call in (one, two) for request in call.requests} == {one.requests[0].key}
    assert parse({"prompt": "a"}).sampling.seed != parse({"prompt": "a"}).sampling.seed


def test_the_body_of_an_evaluation_harness_is_understood():
    body = {
        "model": "tiny", "prompt": [[1, 2, 3], [4, 5]], "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234,
        "echo": True,
    }  # fmt: skip
    call = parse(body)
    assert len(call.requests) == 2
    assert call.sampling.echo
    assert call.sampling.logprobs == 1


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"prompt": []}, "prompt", "expected a text"),
        ({"prompt": 5}, "prompt", "expected a text"),
        ({"prompt": ["a", 5]}, "prompt", "expected a text"),
        ({"prompt": [True]}, "prompt", "expected a text"),
        ({"prompt": [[]]}, "prompt", "no token ids"),
        ({"prompt": [257]}, "prompt", "token id 257; expected ids of 0 to 256"),
        ({"prompt": [-1]}, "prompt", "token id -1"),
        ({"prompt": "a", "max_tokens": "4"}, "max_tokens", "valid integer"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens", "valid integer"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens", "found -1"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "echo"),
        ({"prompt": "a", "temperature": -0.5}, "temperature", "found -0.5"),
        ({"prompt": "a", "top_p": 1.5}, "top_p", "at most 1"),
        ({"prompt": "a", "n": 0}, "n", "found 0"),
        ({"prompt": "a", "n": 9}, "n", "8 completions"),
        ({"prompt": ["a"] * 9}, "prompt", "8 completions"),
        ({"prompt": "a", "stop": ""}, "stop", "none of them empty"),
        ({"prompt": "a", "stop": [5]}, "stop", "list of strings"),
        ({"prompt": "a", "stop": ["x"] * 17}, "stop", "at most 16"),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "at most 20"),
        ({"prompt": "a", "logprobs": True}, "logprobs", "valid integer"),
        ({"prompt": "a", "best_of": 3}, "best_of", "only the value of n"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "not supported"),
        ({"prompt": "a", "frequency_penalty": 0.5}, "frequency_penalty", "not supported"),
        ({"prompt": "a", "logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options", "stream true"),
        ({"prompt": "a", "max_token": 4}, "max_token", "no such field"),
        ([], None, "the body"),
        ("text", None, "the body"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_the_name_of_its_field(body, param, words):
    error = error_of(body)
    assert (error.status, error.param) == (400, param)
    assert words in error.message


def test_a_prompt_over_the_window_is_refused_with_openai_s_code():
    for prompt in ("a" * 33, [1] * 33, ["b", "a" * 33], "a" * 100_000):
        error = error_of({"prompt": prompt})
        assert (error.status, error.code) == (400, "context_length_exceeded")
    assert len(parse({"prompt": "a" * 32}).requests[0].prompt_ids) == 32


def test_another_model_is_not_found():
    error = error_of({"model": "davinci", "prompt": "a"})
    assert (error.status, error.code) == (404, "model_not_found")


def test_a_long_value_is_not_sent_back_whole():
    assert len(error_of({"model": "x" * 10_000, "prompt": "a"}).message) <= 400


def test_end_of_text_written_out_stays_text():
    assert parse_tokenize({"prompt": "<|endoftext|>"}, MODEL) == list(b"<|endoftext|>")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["prompt", "n", "stop", "seed"]), inner),
    )
)
def test_any_json_value_is_understood_or_refused(value):
    with contextlib.suppress(ApiError):
        assert 1 <= parse(json.loads(json.dumps(value))).num_completions <= 8
