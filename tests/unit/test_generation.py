"""Promises of gpt_core.generation.request: settings that exist are valid, and mistakes name their field."""

import pickle

import pytest

from gpt_core.errors import UserError
from gpt_core.generation.request import GenerationRequest, Sampling, sampling_with


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "1"),
        ("temperature", 1e-46),
        ("temperature", 9e-31),
        ("temperature", 1e39),
        ("temperature", 10**400),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("repetition_penalty", 1e-40),
        ("repetition_penalty", 101),
        ("n", 0),
        ("n", 1025),
        ("seed", 2**63),
        ("logprobs", -1),
        ("stop", ["a"]),
        ("stop", ("a", "")),
        ("stop_ids", [1]),
        ("echo", 1),
    ],
)
def test_a_value_out_of_range_is_refused_by_the_name_of_its_field(field, value):
    with pytest.raises(UserError) as caught:
        Sampling(**{field: value})
    assert caught.value.where == f"sampling.{field}"
    assert caught.value.found == repr(value)


@pytest.mark.parametrize("stop_ids", [(-1,), (3, "a"), (True,)])
def test_a_stop_id_that_is_no_token_id_is_refused(stop_ids):
    with pytest.raises(UserError, match=r"^sampling\.stop_ids: found .* expected a whole number of 0 or more"):
        Sampling(stop_ids=stop_ids)


def test_the_message_tells_found_and_expected():
    with pytest.raises(UserError) as caught:
        Sampling(top_p=1.5)
    assert str(caught.value) == (
        "sampling.top_p: found 1.5; expected a finite number over 0, at most 1; correct the value"
    )


def test_no_token_may_be_asked_for_where_the_prompt_is_echoed():
    assert Sampling(max_tokens=0, echo=True).max_tokens == 0


def test_fields_of_a_json_object_are_put_over_defaults():
    base = Sampling(max_tokens=7, top_k=40)
    found = sampling_with(base, {"stop": "x", "stop_ids": [1, 2], "temperature": 1, "seed": None})
    assert found == Sampling(max_tokens=7, top_k=40, stop=("x",), stop_ids=(1, 2), temperature=1)


def test_an_unknown_field_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"found field 'temprature'; expected one of max_tokens, temperature"):
        sampling_with(Sampling(), {"temprature": 1.0})


def test_requests_cross_processes():
    request = GenerationRequest("a", (1, 2), Sampling(stop=("x",)), key="k")
    assert pickle.loads(pickle.dumps(request)) == request
