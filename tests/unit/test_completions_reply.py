"""Promises of cluster.serving.completions_reply: the objects of OpenAI's API, the same streamed or not."""

from cluster.serving.completions_reply import ChoiceLogprobs, Reply
from cluster.serving.completions_schema import ServedModel, parse_completions
from gpt_core.generation.request import Completion, TokenEvent, TokenLogprob
from gpt_core.tokens.tokenizer import load_tokenizer

BYTES = load_tokenizer("bytes")
MODEL = ServedModel("tiny", BYTES, window_tokens=32, fingerprint="herd-0", created=0)


def test_logprobs_are_four_arrays_over_prompt_and_completion():
    entries = [
        TokenLogprob(104, None),
        TokenLogprob(105, -2.5, ((97, -0.5), (98, -1.0))),
        TokenLogprob(97, -0.25, ((97, -0.25), (98, -1.5))),
    ]
    assert ChoiceLogprobs(BYTES).write(entries) == {
        "tokens": ["h", "i", "a"],
        "token_logprobs": [None, -2.5, -0.25],
        "top_logprobs": [None, {"a": -0.5, "b": -1.0, "i": -2.5}, {"a": -0.25, "b": -1.5}],
        "text_offset": [0, 1, 2],
    }


def test_tokens_of_half_a_character_keep_names_and_offsets_of_their_own():
    written = ChoiceLogprobs(BYTES).write([TokenLogprob(byte, -1.0) for byte in "é!".encode()])
    assert written["tokens"] == ["bytes:\\xc3", "bytes:\\xa9", "!"]
    assert written["text_offset"] == [0, 0, 1]


def test_pieces_of_a_choice_add_up_to_its_arrays():
    entries = [TokenLogprob(byte, -float(byte)) for byte in "aé€b".encode()]
    whole = ChoiceLogprobs(BYTES).write(entries)
    pieces = ChoiceLogprobs(BYTES)
    parts = [pieces.write([entry]) for entry in entries]
    assert {name: [value for part in parts for value in part[name]] for name in whole} == whole


def _call(**body):
    return parse_completions({"prompt": ["a", "b"], "n": 2, "seed": 0, "logprobs": 1, **body}, MODEL, 8)


def _completion(prompt, sample):
    text = f"{prompt}{sample}"
    ids = tuple(text.encode())
    entries = tuple(TokenLogprob(token, -1.0, ((token, -1.0),)) for token in ids)
    return Completion(str(prompt), sample, text, (97,), ids, "length", entries)


def _events(done):
    for token, character, entry in zip(done.token_ids, done.text, done.logprobs, strict=True):
        is_last = token == done.token_ids[-1] and character == done.text[-1]
        yield TokenEvent(done.request_id, done.sample, token, character, (entry,), done if is_last else None)


def test_choices_are_numbered_by_prompt_then_sample():
    reply = Reply(_call(), MODEL).whole([[_completion(p, s) for s in range(2)] for p in range(2)])
    assert [(choice["index"], choice["text"]) for choice in reply["choices"]] == [
        (0, "00"),
        (1, "01"),
        (2, "10"),
        (3, "11"),
    ]
    assert reply["usage"] == {"prompt_tokens": 2, "completion_tokens": 8, "total_tokens": 10}
    assert reply["object"] == "text_completion"


def test_chunks_put_end_to_end_are_the_unstreamed_choices():
    done = [[Completion("0", 0, "xy", (97,), (120, 121), "stop", _completion(0, 0).logprobs)]]
    call = _call(prompt="a", n=1, stream=True, stream_options={"include_usage": True})
    whole = Reply(call, MODEL).whole(done)
    reply = Reply(call, MODEL)
    chunks = [reply.chunk(0, [event]) for event in _events(done[0][0])]
    choices = [chunk["choices"][0] for chunk in chunks if chunk]
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
    for name, values in whole["choices"][0]["logprobs"].items():
        assert [value for choice in choices for value in choice["logprobs"][name]] == values
    assert [choice["finish_reason"] for choice in choices] == [None, "stop"]
    assert reply.last_chunk()["usage"] == whole["usage"]
    assert reply.last_chunk()["choices"] == []
    assert {chunk["id"] for chunk in chunks if chunk} == {reply.last_chunk()["id"]}


def test_events_that_show_nothing_make_no_chunk():
    reply = Reply(_call(prompt="a", n=1, logprobs=None), MODEL)
    assert reply.chunk(0, [TokenEvent("0", 0, 0xC3, "")]) is None
