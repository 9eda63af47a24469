"""Promises of fine-tuning that need no Ray: what is refused, what is set aside, what the new checkpoint is."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from cluster import evaluating, finetuning
from gpt_core.corpus import manifest
from gpt_core.documents.document_batch import Reject
from gpt_core.documents.shard_plan import plan_shards
from gpt_core.errors import CheckpointError, CorpusError, HerdError, SettingsError, StaleOutputError
from gpt_core.evaluation.evaluation import CorpusPart, EvaluationWorker, WindowRange, summed
from gpt_core.finetuning.examples import Example, Fields, list_example_files, read_examples
from gpt_core.finetuning.supervised_corpus import open_corpus
from gpt_core.generation.engine import Engine, EngineOptions
from gpt_core.generation.request import GenerationRequest, Sampling
from gpt_core.settings import EvaluateSettings, FinetuneSettings
from gpt_core.tokens.tokenizer import load_tokenizer
from gpt_core.training import checkpoint
from gpt_core.training.starting_weights import grown, load_starting_weights
from tests.finetune_here import finetune_here, write_examples
from tests.reference.gpt2_numpy import logits
from tests.tiny_checkpoint import write_tiny_checkpoint

FRENCH, END = 257, 256


@pytest.fixture
def settings(tmp_path):
    """Give settings of a run of a second; further ones take the place of these."""
    write_tiny_checkpoint(tmp_path / "base", num_positions=64)
    write_examples(tmp_path / "pairs.jsonl")

    def make(train=None, **changes):
        values = {
            "checkpoint": str(tmp_path / "base"),
            "examples": [str(tmp_path / "pairs.jsonl")],
            "task": "translate",
            "output": str(tmp_path / "tuned"),
            "validation_fraction": 0.2,
            "recipe": {"learning_rate": 3e-3},
        }
        steps = {"num_steps": 6, "batch_sequences": 8, "evaluate_every_steps": 2, "checkpoint_every_steps": None}
        return FinetuneSettings.model_validate(values | changes | {"train": steps | (train or {})})

    return make


def test_new_rows_of_the_embedding_are_the_mean_and_nothing_else_changes(settings):
    base = checkpoint.load(settings().checkpoint)
    weights = grown(base.weights, 259)
    old = base.weights["wte.weight"].double().numpy()
    assert weights["wte.weight"].shape == (259, 32)
    assert np.array_equal(weights["wte.weight"][:257].numpy(), old.astype(np.float32))
    assert weights["wte.weight"][257:].numpy() == pytest.approx(np.stack([old.mean(0)] * 2), abs=1e-7)
    assert all(weights[name] is base.weights[name] for name in weights if name != "wte.weight")
    assert torch.equal(grown(base.weights, 257)["wte.weight"], base.weights["wte.weight"])


def test_a_start_that_is_no_longer_the_one_begun_with_is_refused(settings):
    path = settings().checkpoint
    with pytest.raises(CheckpointError, match="the 00 this run began with"):
        load_starting_weights(path, "00", 258)


def test_the_new_checkpoint_carries_its_special_token_and_answers_prompts_that_spell_it(settings):
    done = finetune_here(settings())
    found = checkpoint.load(done.checkpoint)
    assert found.shape.vocabulary_size == 258
    assert sorted(path.name for path in Path(str(found.path)).iterdir())[-2:] == [
        "vocabulary.tiktoken",
        "weights.safetensors",
    ]
    tokenizer = load_tokenizer(found.tokenizer["name"])
    assert (tokenizer.specials, tokenizer.digest) == (("<to-fr>",), found.tokenizer["digest"])
    prompt = tuple(tokenizer.encode_prompt("sun dog <to-fr>").tolist())
    assert prompt[-1] == FRENCH
    engine = Engine(found.weights, found.shape, tokenizer, EngineOptions(slots=1))
    (answer,) = engine.run([GenerationRequest("0", prompt, Sampling(max_tokens=4, temperature=0.0))])
    assert answer.error is None
    assert answer.token_ids


def test_what_cannot_be_an_example_is_set_aside_with_its_reason_and_counted(settings, tmp_path):
    done = finetune_here(settings())
    assert (done.num_examples, done.num_rejected) == (120, 3)
    rejects = (tmp_path / "tuned/examples/rejects/00000000.jsonl").read_text(encoding="utf-8").splitlines()
    reasons = [json.loads(line)["reason"] for line in rejects]
    assert [reason.partition(";")[0] for reason in reasons] == [
        "found no field 'target' (fields: source)",
        "found broken JSON (invalid literal, expected 'null': line 1 column 1 (char 0))",
        "found an example of 111 tokens (101 of prompt, 9 of target, end of text)",
    ]


def test_each_source_is_on_one_side_and_every_target_is_learnt(settings):
    job = settings()
    finetune_here(job)
    targets = {}
    for split in ("train", "validation"):
        corpus = open_corpus(f"{job.output}/examples", split)
        windows = corpus.windows(corpus.every_window(64), 64)
        targets[split] = int((windows[:, :-1] == FRENCH).sum() + (windows[:, :-1] == ~FRENCH).sum())
        assert not (windows == FRENCH).any()
        assert int((windows == END).sum()) == targets[split]
    assert sum(targets.values()) == 120
    assert 10 < targets["validation"] < 40


def test_an_evaluation_of_held_out_examples_counts_their_targets_alone(settings):
    job = settings()
    path = finetune_here(job).checkpoint
    packs = f"{job.output}/examples"
    given = {"checkpoint": str(path), "corpus": packs, "output": f"{job.output}/evaluated"}
    inputs = evaluating.resolve(EvaluateSettings.model_validate(given))
    corpus, loaded = open_corpus(packs, "validation"), checkpoint.load(path)
    num_packs = len(corpus.every_window(64))
    part = CorpusPart(packs, "validation", inputs.window_tokens)
    worker = EvaluationWorker(str(path), part, None, batch_sequences=3)
    measured = summed([{"index": 0, **worker((0, WindowRange(0, num_packs)))}])

    (shard,) = Path(packs, "validation").glob("*.arrow")
    with pa.ipc.open_file(shard) as file:
        ids_BT = file.read_all().column("tokens").combine_chunks().values.to_numpy().reshape(num_packs, 64)
    weights = {name: value.numpy() for name, value in loaded.weights.items()}
    losses, num_bytes = [], 0
    for ids in ids_BT.astype(int):
        logits_TV = logits(ids, weights, loaded.shape.n_layer, loaded.shape.n_head)
        is_target = False
        for place, token in enumerate(ids[1:].tolist()):
            is_target = is_target or ids[place] == FRENCH
            if is_target:
                losses.append(np.logaddexp.reduce(logits_TV[place]) - logits_TV[place, token])
                num_bytes += token != END
            is_target = is_target and token != END
    assert measured.num_tokens == len(losses)
    assert measured.num_bytes == num_bytes
    assert measured.loss == pytest.approx(np.mean(losses), abs=1e-5)

    with pytest.raises(SettingsError, match="context_tokens: found 32; expected 64"):
        evaluating.resolve(EvaluateSettings.model_validate(given | {"context_tokens": 32}))


def test_held_out_loss_falls_and_the_best_checkpoint_is_named(settings):
    done = finetune_here(settings({"num_steps": 24, "evaluate_every_steps": 4}))
    described = [checkpoint.read_description(path) for path in checkpoint.list_paths(settings().output)]
    losses = {found.step: found.metrics.get("validation_loss") for found in described}
    assert done.validation_loss == min(loss for loss in losses.values() if loss is not None) == losses[done.step]
    assert done.validation_loss is not None
    assert done.validation_loss < 5


def test_training_ends_when_the_held_out_loss_has_not_fallen_for_as_long_as_patience(settings, tmp_path):
    hopeless = {"recipe": {"learning_rate": 0.5}, "train": {"num_steps": 40, "patience_evaluations": 2}}
    done = finetune_here(settings(**hopeless))
    assert done.num_steps == done.step + 4 < 40
    last = checkpoint.load_newest(settings().output)
    assert last is not None
    assert last.description.metrics["evaluations_since_best"] == 2
    assert finetuning.finished(settings(**hopeless), finetuning.resolve(settings(**hopeless))) == done


def test_a_run_stopped_and_taken_up_ends_at_the_same_step_with_the_same_weights(settings, tmp_path):
    hopeless = {"recipe": {"learning_rate": 0.5}, "train": {"num_steps": 40, "patience_evaluations": 2}}
    calm = finetune_here(settings(**hopeless))
    other = settings(**hopeless, output=str(tmp_path / "other"))
    from gpt_core.training.loop import Silence, train

    class Stopping(Silence):
        asked = 0

        def should_stop(self):
            self.asked += 1
            return self.asked % 3 == 0

    inputs = finetuning.resolve(other)
    worker = finetuning.ExampleTokenizer(finetuning.options_for(other, inputs))
    manifest.write(inputs.plan.corpus, finetuning.contents_of(inputs, [{"index": 0, **worker(inputs.plans[0])}]))
    while train(inputs.plan, observer=Stopping()).stopped:
        pass
    found = finetuning.summary_of(inputs)
    assert replace(found, checkpoint=calm.checkpoint) == calm


def test_a_parquet_file_gives_the_examples_of_the_json_lines(tmp_path):
    rows = [("a", "b"), ("", "x"), ("c", None), ("é", "ü")]
    (tmp_path / "x.jsonl").write_text(
        "".join(json.dumps({"question": s, "answer": t, "more": 1}) + "\n" for s, t in rows), encoding="utf-8"
    )
    columns = {"question": [s for s, _ in rows], "answer": [t for _, t in rows], "more": [1] * len(rows)}
    pq.write_table(pa.table(columns), tmp_path / "y.parquet")
    found = {}
    for name in ("x.jsonl", "y.parquet"):
        (plan,) = plan_shards(list_example_files((str(tmp_path / name),)), 1 << 20)
        read = list(read_examples(plan, Fields("question", "answer")))
        found[name] = [(e.source, e.target) if isinstance(e, Example) else e.reason for e in read]
    assert found["x.jsonl"] == found["y.parquet"]
    assert found["x.jsonl"][0] == ("a", "b")
    assert found["x.jsonl"][1] == "found an empty text in 'question'; expected at least one character"
    assert found["x.jsonl"][2] == "found None in 'answer'; expected a text"
    assert found["x.jsonl"][3] == ("é", "ü")


def test_a_table_whose_column_names_are_damaged_is_one_reject(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"source": ["a"], "target": ["b"]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"source", b"s\xffurce"))
    (plan,) = plan_shards(list_example_files((str(path),)), 1 << 20)
    (reject,) = read_examples(plan, Fields())
    assert isinstance(reject, Reject)
    assert "found unreadable data from row 0 ('utf-8' codec can't decode byte 0xff" in reject.reason


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["source", "answer"], "found no field 'target' (fields: answer, source); expected a text in 'target'"),
        (["source", "target", "source"], "found 2 columns 'source'; expected one"),
    ],
)
def test_every_row_of_a_table_with_other_columns_says_which_there_are(tmp_path, names, reason):
    table = pa.table([["a", "b", "c"]] * len(names), names=names)
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    (plan,) = plan_shards(list_example_files((str(tmp_path / "t.parquet"),)), 1 << 20)
    assert list(read_examples(plan, Fields())) == [Reject("t.parquet", None, row, reason) for row in range(3)]


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"checkpoint": "/nowhere"}, CheckpointError, "/nowhere: found no whole checkpoint"),
        ({"examples": ["/nowhere.jsonl"]}, CorpusError, "/nowhere.jsonl: found no such file"),
        ({"separator": " "}, SettingsError, "separator: found ' '"),
        ({"validation_fraction": 0.0}, ValidationError, "validation_fraction: found 0 with train.patience_evaluations"),
        ({"train": {"context_tokens": 65}}, SettingsError, "train.context_tokens: found 65; expected at most"),
    ],
)
def test_mistakes_are_found_before_any_work(settings, changes, error, text):
    with pytest.raises(error, match=text):
        finetuning.resolve(settings(**changes))


def test_a_checkpoint_whose_embedding_is_not_its_tokenizers_is_refused(settings, tmp_path):
    base = checkpoint.load(settings().checkpoint)
    odd = replace(base.description, tokenizer={"name": "gpt2"})
    checkpoint.write(tmp_path / "odd", odd, base.weights, {})
    with pytest.raises(CheckpointError, match="an embedding of 257 rows; expected 50257"):
        finetuning.resolve(settings(checkpoint=str(tmp_path / "odd")))


def test_other_examples_in_the_output_folder_are_refused_naming_what_differs(settings, tmp_path):
    finetune_here(settings())
    with pytest.raises(StaleOutputError, match=r"examples: template.separator: found examples packed with '<to-fr>'"):
        finetuning.resolve(settings(separator="<to-de>"))
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(pairs.read_text(encoding="utf-8").replace("rouge", "ROUGE"), encoding="utf-8")
    with pytest.raises(StaleOutputError, match="examples: contents: found examples packed with"):
        finetuning.resolve(settings())


def test_another_checkpoint_to_begin_with_is_refused(settings, tmp_path):
    finetune_here(settings())
    write_tiny_checkpoint(tmp_path / "second", seed=1, num_positions=64)
    with pytest.raises(CheckpointError, match="found a run begun with checkpoint '"):
        finetuning.resolve(settings(checkpoint=str(tmp_path / "second")))


def test_a_checkpoint_can_be_taught_a_second_task(settings, tmp_path):
    first = finetune_here(settings())
    again = settings(checkpoint=str(first.checkpoint), output=str(tmp_path / "again"), task="completion")
    done = finetune_here(again)
    tokenizer = load_tokenizer(checkpoint.load(done.checkpoint).tokenizer["name"])
    assert tokenizer.specials == ("<to-fr>", "[example]", "[toCode]")


@pytest.mark.parametrize("task", ["summarize", "plain"])
def test_tasks_without_special_tokens_keep_the_vocabulary(settings, task):
    done = finetune_here(settings(task=task, train={"num_steps": 1}))
    found = checkpoint.load(done.checkpoint)
    assert found.tokenizer["name"] == "bytes"
    assert found.shape.vocabulary_size == 257


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"train": {"batch_sequences": 256}}, "packs of 64 tokens; expected at least a batch, 256"),
        ({"max_reject_share": 0.01}, "max_reject_share: found 3 of 123 examples set aside"),
        ({"target_field": "translation"}, r"found no example to train on \(123 of 123 set aside\)"),
    ],
)
def test_examples_that_are_too_few_or_too_bad_are_refused(settings, changes, text):
    job = settings(**changes)
    inputs = finetuning.resolve(job)
    worker = finetuning.ExampleTokenizer(finetuning.options_for(job, inputs))
    written = manifest.write(
        inputs.plan.corpus, finetuning.contents_of(inputs, [{"index": 0, **worker(inputs.plans[0])}])
    )
    with pytest.raises(HerdError, match=text):
        finetuning._check_examples(job, inputs, written)
