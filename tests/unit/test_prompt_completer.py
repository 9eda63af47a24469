"""Promises of cluster.prompt_completer, with calls that are a few lines of Python instead of replicas."""

import json

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from cluster import prompt_completer
from cluster.prompt_completer import Completing, PromptCompleter
from gpt_core.errors import RunFailedError, SettingsError
from gpt_core.generation.prompts import scan_prompts
from gpt_core.generation.request import Completion, Sampling

SAMPLING = Sampling(max_tokens=4)


class Calls:
    """Completes a prompt with its number of tokens."""

    def send(self, requests):
        return lambda: [[self._done(request)] for request in requests]

    def _done(self, request):
        return Completion(request.id, 0, str(len(request.prompt_ids)), request.prompt_ids, (1,), "length")


class Answer:
    """A response of Ray Serve that raises, or returns."""

    def __init__(self, error=None):
        self.error = error

    def result(self):
        if self.error:
            raise self.error
        return "samples"


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Make a completer of the rows given, in one range, and return it with that plan."""

    def make(rows, calls, tokenizer="bytes"):
        monkeypatch.setattr(prompt_completer, "_ReplicaCalls", lambda _: calls)
        (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        scan = scan_prompts((str(tmp_path / "p.jsonl"),), SAMPLING, 100)
        job = Completing(str(tmp_path), "jsonl", "app", None, tokenizer, "d" * 64, scan.files, SAMPLING, 8)
        return PromptCompleter(job), (0, scan.ranges[0])

    return make


def test_a_prompt_the_vocabulary_cannot_say_is_set_aside_and_the_others_are_completed(make, tmp_path, monkeypatch):
    class Words:
        def encode_prompt(self, text):
            if text == "unheard":
                raise SettingsError("prompt", "the word 'unheard'", "words of the vocabulary", "correct it")
            return np.zeros(len(text), np.uint32)

    monkeypatch.setattr(prompt_completer, "load_tokenizer", lambda _: Words())
    rows = [{"prompt": "one"}, {"prompt": "unheard"}, *({"prompt": "x" * (i + 1)} for i in range(12))]
    completer, plan = make(rows, Calls())
    row = completer(plan)
    assert row["num_rows"] == 13
    assert row["refused"] == [
        {
            "file": "p.jsonl",
            "line": 2,
            "reason": "prompt: found the word 'unheard'; expected words of the vocabulary; correct it",
        }
    ]
    written = [json.loads(line) for line in (tmp_path / row["path"]).open()]
    assert [one["text"] for one in written] == ["3", *(str(i + 1) for i in range(12))]


def test_a_failed_engine_sets_no_row_aside(make):
    class Broken:
        def send(self, requests):
            def wait():
                raise RunFailedError("the engine", "it broke", "a step", "send the requests again")

            return wait

    completer, plan = make([{"prompt": "a"}, {"prompt": "b"}], Broken())
    with pytest.raises(RunFailedError, match="it broke"):
        completer(plan)


def _engine_failure():
    failure = RunFailedError("the engine", "it broke", "a step", "send the requests again")
    return RayTaskError("complete", "", failure).as_instanceof_cause()


def test_a_call_whose_engine_failed_or_whose_replica_died_is_sent_again_after_a_pause(monkeypatch):
    pauses, answers = [], [Answer(_engine_failure()), Answer(ActorDiedError()), Answer()]
    monkeypatch.setattr("time.sleep", pauses.append)
    calls = object.__new__(prompt_completer._ReplicaCalls)
    monkeypatch.setattr(calls, "_begin", lambda _: answers.pop(0), raising=False)
    assert calls.send([])() == "samples"
    assert pauses == [1.0, 2.0]


def test_an_engine_that_fails_every_time_is_no_silent_loss_and_other_errors_are_not_tried_again(monkeypatch):
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    calls = object.__new__(prompt_completer._ReplicaCalls)
    monkeypatch.setattr(calls, "_begin", lambda _: Answer(_engine_failure()), raising=False)
    with pytest.raises(RunFailedError):
        calls.send([])()
    assert sum(pauses) > 6, "longer than Ray Serve needs to notice"
    pauses.clear()
    bug = RayTaskError("complete", "", KeyError("bug")).as_instanceof_cause()
    monkeypatch.setattr(calls, "_begin", lambda _: Answer(bug), raising=False)
    with pytest.raises(KeyError):
        calls.send([])()
    assert pauses == []
