"""Promises of inspection.inspection and inspection.activations, against a float64 forward pass in NumPy."""

import base64
import functools

import numpy as np
import orjson
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_core.errors import UserError
from gpt_core.inspection.inspection import MAX_TOKENS, PARTS, TEMPERATURES, Inspector, Query, mean_and_deviation
from gpt_core.model.gpt import GPT
from gpt_core.model.presets import ModelShape
from gpt_core.tokens.tokenizer import load_tokenizer
from tests.reference import gpt2_numpy, gpt2_steps

BYTES = load_tokenizer("bytes")
# Rows past the tokenizer's 257 ids are padding; layers 1 and 3 see five positions.
SHAPE = ModelShape(4, 2, 24, num_positions=160, vocabulary_size=300, attention_band=5)
IDS = tuple(b"The cat sat on the mat")
VECTORS = ("before", "normed", "attention", "middle", "mlp", "after")
HEAD_VECTORS = ("query", "key", "value", "mixed")


@pytest.fixture(scope="module")
def weights():
    torch.set_num_threads(1)
    # Wider than training begins with, and biases that are not zero: each term then shows.
    generator = torch.Generator().manual_seed(1)
    named = GPT(SHAPE).initialise(0).named_parameters()
    return {name: t.detach() * 2 + 0.05 * torch.randn(t.shape, generator=generator) for name, t in named}


@pytest.fixture(scope="module")
def reference(weights):
    return gpt2_steps.forward(IDS, weights, SHAPE.n_layer, SHAPE.n_head, SHAPE.attention_band)


@pytest.fixture
def inspector(weights):
    return Inspector(weights, SHAPE, BYTES)


def assert_close(found, expected):
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=0, atol=1e-5)


def test_the_reference_agrees_with_the_one_that_goes_query_by_query(weights, reference):
    logits = gpt2_numpy.logits(list(IDS), weights, SHAPE.n_layer, SHAPE.n_head, SHAPE.attention_band)
    np.testing.assert_allclose(reference["lens"][-1], logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("layer", range(SHAPE.n_layer))
@pytest.mark.parametrize("head", range(SHAPE.n_head))
@pytest.mark.parametrize("position", [0, 7, len(IDS) - 1])
def test_every_number_of_a_step_is_the_reference_s(inspector, reference, layer, head, position):
    step = inspector.inspect(Query(IDS, ("step",), position, layer, head))["step"]
    expected = reference["layers"][layer]
    assert_close(step["token"], reference["token"][position])
    assert_close(step["position"], reference["position"][position])
    for name in VECTORS:
        assert_close(step[name], expected[name][position])
    for name in HEAD_VECTORS:
        assert_close(step[name], expected[name][head, position])
    assert_close(step["scores"], expected["scores"][head, position])
    assert_close(step["weights"], expected["weights"][head, position])
    seen = expected["weights"][head, position] > 0
    assert [score is not None for score in step["masked"]] == seen.tolist()
    assert_close([score for score in step["masked"] if score is not None], expected["scores"][head, position][seen])


def test_attention_is_the_reference_s_and_each_row_adds_up_to_one(inspector, reference):
    for layer in range(SHAPE.n_layer):
        rows = inspector.inspect(Query(IDS, ("attention",), layer=layer, head=1))["attention"]
        assert [len(row) for row in rows] == list(range(1, len(IDS) + 1))
        for index, row in enumerate(rows):
            assert_close(row, reference["layers"][layer]["weights"][1, index, : index + 1])
            assert sum(row.tolist()) == pytest.approx(1, abs=1e-5)


def test_small_maps_of_few_tokens_are_the_weights_in_bytes(inspector, reference):
    heads = inspector.inspect(Query(IDS, ("heads",)))["heads"]
    assert heads["cells"] == len(IDS)
    lower = np.tril_indices(len(IDS))
    for layer, packed in enumerate(heads["maps"]):
        found = np.frombuffer(base64.b64decode(packed), np.uint8).reshape(SHAPE.n_head, -1) / 255
        expected = np.stack([weights[lower] for weights in reference["layers"][layer]["weights"]])
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.5 / 255 + 1e-5)


def test_a_cell_of_a_small_map_of_many_tokens_is_the_highest_weight_it_stands_for(weights, inspector):
    ids = tuple(np.random.default_rng(0).integers(0, 256, 100).tolist())
    heads = inspector.inspect(Query(ids, ("heads",)))["heads"]
    cells, lines = heads["cells"], [index * heads["cells"] // 100 for index in range(100)]
    exact = gpt2_steps.forward(ids, weights, SHAPE.n_layer, SHAPE.n_head, SHAPE.attention_band)["layers"][2]["weights"]
    found = np.frombuffer(base64.b64decode(heads["maps"][2]), np.uint8).reshape(SHAPE.n_head, -1)
    expected = np.zeros((SHAPE.n_head, cells, cells))
    for i in range(100):
        for j in range(i + 1):
            expected[:, lines[i], lines[j]] = np.maximum(expected[:, lines[i], lines[j]], exact[:, i, j])
    rows, columns = np.tril_indices(cells)
    np.testing.assert_allclose(found / 255, expected[:, rows, columns], rtol=0, atol=0.5 / 255 + 1e-5)


@pytest.mark.parametrize("position", [3, None])
def test_next_tokens_and_the_lens_are_the_reference_s_without_padding(inspector, reference, position):
    answer = inspector.inspect(Query(IDS, ("next", "lens"), position))
    place = len(IDS) - 1 if position is None else position
    stages = [logits[place, : BYTES.vocabulary_size] for logits in reference["lens"]]
    for candidate in answer["next"]["candidates"]:
        assert_close(candidate["logit"], stages[-1][candidate["id"]])
        assert_close(candidate["probability"], gpt2_numpy.softmax(stages[-1])[candidate["id"]])
    ranked = [candidate["id"] for candidate in answer["next"]["candidates"]]
    assert ranked == np.argsort(-stages[-1], kind="stable")[: len(ranked)].tolist()
    chosen = int(stages[-1].argmax())
    for stage, logits in zip(answer["lens"], stages, strict=True):
        assert stage["top"][0]["id"] == int(logits.argmax())
        assert_close(stage["top"][0]["probability"], gpt2_numpy.softmax(logits).max())
        assert (stage["chosen"]["id"], stage["chosen"]["rank"]) == (chosen, 1 + int((logits > logits[chosen]).sum()))
        assert_close(stage["chosen"]["probability"], gpt2_numpy.softmax(logits)[chosen])


def test_what_is_sent_gives_every_probability_at_any_temperature_sent(inspector, reference):
    sent = inspector.inspect(Query(IDS))["next"]
    logits = reference["lens"][-1][-1, : BYTES.vocabulary_size]
    assert sent["rest"]["count"] + len(sent["candidates"]) == BYTES.vocabulary_size
    for temperature, rest in zip(TEMPERATURES, sent["rest"]["logsumexp"], strict=True):
        whole = sum(np.exp(c["logit"] / temperature - 40) for c in sent["candidates"]) + np.exp(rest - 40)
        exact = gpt2_numpy.softmax(logits / temperature)
        for candidate in sent["candidates"][:20]:
            found = np.exp(candidate["logit"] / temperature - 40) / whole
            assert found == pytest.approx(exact[candidate["id"]], rel=1e-4)


def test_looking_again_at_a_prompt_gives_the_same_bytes(weights, inspector):
    query = Query(IDS, PARTS, layer=2, head=1)
    answers = [inspector.inspect(query), inspector.inspect(query), Inspector(weights, SHAPE, BYTES).inspect(query)]
    sent = {orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY) for answer in answers}
    assert len(sent) == 1


def test_anatomy_names_every_tensor_once_with_its_own_numbers(weights, inspector):
    anatomy = inspector.inspect(Query(IDS, ("anatomy",)))["anatomy"]
    rows = {row["name"]: row for row in anatomy["tensors"]}
    assert len(rows) == len(anatomy["tensors"])
    assert {name: tuple(row["size"]) for name, row in rows.items()} == {n: tuple(t.shape) for n, t in weights.items()}
    assert sum(row["num_parameters"] for row in rows.values()) == anatomy["num_parameters"] == SHAPE.num_parameters
    numbers = weights["h.1.mlp.c_fc.weight"].double().numpy()
    assert rows["h.1.mlp.c_fc.weight"]["mean"] == pytest.approx(numbers.mean(), abs=1e-6)
    assert rows["h.1.mlp.c_fc.weight"]["deviation"] == pytest.approx(numbers.std(ddof=1), rel=1e-5)


@pytest.mark.parametrize(("num_numbers", "centre"), [(100_003, 0.0), (100_003, 30.0), (2, 1.0)])
def test_mean_and_deviation_are_those_of_float64(num_numbers, centre):
    numbers = torch.from_numpy(np.random.default_rng(0).normal(centre, 0.02, num_numbers).astype(np.float32))
    mean, deviation = mean_and_deviation(numbers)
    assert mean == pytest.approx(numbers.double().numpy().mean(), abs=1e-6 + 1e-7 * centre)
    assert deviation == pytest.approx(numbers.double().numpy().std(ddof=1), rel=1e-4)
    assert mean_and_deviation(torch.tensor([3.0])) == (3.0, None)


def test_numbers_at_the_width_of_gpt2_are_the_reference_s():
    shape = ModelShape(2, 12, 768, num_positions=64, vocabulary_size=257)
    weights = {name: tensor.detach() for name, tensor in GPT(shape).initialise(5).named_parameters()}
    ids = tuple(np.random.default_rng(1).integers(0, 256, 64).tolist())
    expected = gpt2_steps.forward(ids, weights, 2, 12, None)
    wide = Inspector(weights, shape, BYTES)
    for layer, at in enumerate(expected["layers"]):
        answer = wide.inspect(Query(ids, ("step", "attention"), 63, layer, 11))
        for name in VECTORS:
            assert_close(answer["step"][name], at[name][63])
        for name in HEAD_VECTORS:
            assert_close(answer["step"][name], at[name][11, 63])
        for index, row in enumerate(answer["attention"]):
            assert_close(row, at["weights"][11, index, : index + 1])
    logits = expected["lens"][-1][63]
    for candidate in wide.inspect(Query(ids))["next"]["candidates"]:
        assert_close(candidate["logit"], logits[candidate["id"]])
        assert_close(candidate["probability"], gpt2_numpy.softmax(logits)[candidate["id"]])


def test_tokens_are_named_whole_or_by_their_bytes(inspector):
    answer = inspector.inspect(Query(tuple("aé".encode()), ()))
    assert answer["tokens"] == [
        {"id": 97, "text": "a"},
        {"id": 195, "text": "\\xc3", "partial": True},
        {"id": 169, "text": "\\xa9", "partial": True},
    ]
    assert answer["text"] == "aé"
    assert "next" not in answer


@pytest.mark.parametrize(
    ("query", "field"),
    [
        (lambda: Query(()), "prompt"),
        (lambda: Query((1,) * (MAX_TOKENS + 1)), "prompt"),
        (lambda: Query((BYTES.vocabulary_size,)), "prompt"),
        (lambda: Query(IDS, position=len(IDS)), "position"),
        (lambda: Query(IDS, layer=SHAPE.n_layer), "layer"),
        (lambda: Query(IDS, head=-1), "head"),
        (lambda: Query(IDS, ("logits",)), "show"),
    ],
)
def test_what_cannot_be_looked_at_is_refused_by_name(inspector, query, field):
    with pytest.raises(UserError) as caught:
        inspector.inspect(query())
    assert caught.value.where == field


def test_a_model_with_fewer_positions_takes_no_more_tokens_than_those(weights):
    short = ModelShape(4, 2, 24, num_positions=8, vocabulary_size=300, attention_band=5)
    inspector = Inspector({**weights, "wpe.weight": weights["wpe.weight"][:8]}, short, BYTES)
    assert inspector.inspect(Query((1,) * 8))["max_tokens"] == 8
    with pytest.raises(UserError, match="1 to 8"):
        inspector.inspect(Query((1,) * 9))


@given(ids=st.lists(st.integers(0, 256), min_size=1, max_size=40), place=st.integers(0, 39))
def test_what_follows_a_token_changes_nothing_before_it(ids, place):
    place %= len(ids)
    inspector = _small()
    whole = inspector.inspect(Query(tuple(ids), ("next", "step"), place))
    cut = inspector.inspect(Query(tuple(ids[: place + 1]), ("next", "step")))
    assert_close(whole["step"]["after"], np.asarray(cut["step"]["after"], np.float64))
    assert_close(whole["step"]["weights"][: place + 1], np.asarray(cut["step"]["weights"], np.float64))
    assert_close(whole["next"]["logsumexp"], cut["next"]["logsumexp"])


@functools.cache
def _small():
    torch.set_num_threads(1)
    shape = ModelShape(2, 2, 16, num_positions=40, vocabulary_size=257)
    model = GPT(shape).initialise(3)
    return Inspector({name: t.detach() * 3 for name, t in model.named_parameters()}, shape, BYTES)
