"""Promises of training.samples and of what the loop and a run's records make of it."""

from contextlib import closing
from dataclasses import replace

import pytest
import torch

from cluster import training
from gpt_core.errors import SettingsError
from gpt_core.model.presets import ModelShape
from gpt_core.tokens.tokenizer import load_tokenizer
from gpt_core.tokens.train_tokenizer import write_ranks
from gpt_core.training.learner import Learner
from gpt_core.training.loop import train
from gpt_core.training.samples import Samples
from gpt_core.training.schedule import Recipe
from tests.unit import tiny_corpus
from tests.unit.tiny_run import NUM_STEPS, Recorder, digest_of, tiny_plan

BYTES = load_tokenizer("bytes")


def certain_of(text):
    """Next logits that leave no choice: the text, letter by letter, then the end of the document."""
    ids = [*BYTES.encode(text).tolist(), BYTES.end_of_text]

    def next_logits(seen):
        logits_V = torch.full((BYTES.vocabulary_size,), -torch.inf)
        logits_V[ids[(len(seen) - 1) % len(ids)]] = 0.0
        return logits_V

    return next_logits


def test_a_sample_goes_on_until_its_document_ends():
    assert Samples(BYTES, ("", "ab"), 0).take(1, certain_of("abcdef")) == [("", "abcdef"), ("ab", "cdef")]


def test_the_special_tokens_of_a_prompt_are_those_the_model_was_trained_with(tmp_path):
    write_ranks(tmp_path / "v.tiktoken", {bytes([byte]): byte for byte in range(256)}, ("<to-fr>",))
    seen = []

    def next_logits(ids):
        seen.append(ids.tolist())
        return certain_of("")(ids[:1])

    Samples(load_tokenizer(str(tmp_path / "v.tiktoken")), ("a<to-fr>",), 0).take(1, next_logits)
    assert seen == [[256, ord("a"), 257]]  # behind the 256 bytes and the end of text


def test_a_prompt_that_is_no_music_is_refused_before_the_first_step():
    with pytest.raises(SettingsError, match="the word 'hello'; expected events such as v16"):
        Samples(load_tokenizer("music"), ("on60 hello",), 0)


def test_a_sample_depends_on_the_step_and_not_on_when_it_is_taken():
    learner = Learner(ModelShape(1, 1, 8, 16, 257), Recipe(), 0).initialise()
    one, again, later = (Samples(BYTES, ("x",), 0).take(step, learner.next_logits) for step in (1, 1, 2))
    assert one == again != later


@pytest.fixture
def plan(tmp_path):
    tokenizer = tiny_corpus.TokenizerEntry("bytes", "ee" * 32, 1000, 999)
    return tiny_plan(tiny_corpus.build(tmp_path / "corpus", tokenizer=tokenizer).folder, tmp_path / "run")


def test_samples_are_taken_every_so_many_steps_and_change_no_bit(plan, tmp_path):
    taken = []

    class Reader(Recorder):
        def on_sample(self, step, prompt, text):
            taken.append((step, prompt))

    train(replace(plan, sample_every_steps=4, sample_prompts=("a", "b")), observer=Reader())
    assert taken == [(4, "a"), (4, "b"), (NUM_STEPS, "a"), (NUM_STEPS, "b")]
    other = replace(plan, output=str(tmp_path / "other"))
    train(other)
    assert digest_of(plan.output) == digest_of(other.output)


def test_a_runs_table_has_each_prompt_once_a_step(plan):
    plan.folder.mkdir()
    with closing(training._Reporter(plan, 0)) as reporter:
        for step, text in ((4, "old"), (2, "first"), (4, "new")):
            reporter.on_sample(step, "a", text)
    rows = training.samples_of(plan.folder)
    assert [(row["step"], row["text"]) for row in rows] == [(2, "first"), (4, "new")]


def test_samples_of_a_model_that_no_worker_has_whole_are_refused(plan):
    with pytest.raises(SettingsError, match="4 with sharding full; expected none"):
        replace(plan, sharding="full", reduction="fast", sample_every_steps=4)
