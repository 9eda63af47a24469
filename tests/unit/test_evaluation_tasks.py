"""Promises of evaluation tasks: scores equal those of a public implementation, one sequence at a time."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_core.errors import CorpusError, SettingsError
from gpt_core.evaluation.evaluation import EvaluationWorker, Measured
from gpt_core.evaluation.task_items import UnusableRowError, Wording, parse_item, tokens_of
from gpt_core.evaluation.task_plan import Cut, Task, plan_task, sliding_of
from gpt_core.evaluation.task_scorer import Tasks, added, metrics_of
from gpt_core.evaluation.text_windows import Sliding, count_words
from gpt_core.exchange.huggingface import export_model
from gpt_core.tokens.tokenizer import load_tokenizer
from gpt_core.training import checkpoint
from tests.tiny_checkpoint import write_tiny_checkpoint

POSITIONS = 64
BYTES = load_tokenizer("bytes")
HELLASWAG = [
    {
        "ind": 24,
        "activity_label": "Roof shingle removal",
        "ctx_a": "A man is sitting on a roof.",
        "ctx_b": "he",
        "ctx": "A man is sitting on a roof. he",
        "endings": ["is using wrap.", "is ripping  level tiles off.", "holds a cube [step] now.", "pulls."],
        "label": 3,
    },
    {
        "ctx": "The herd walks",
        "endings": ["up.", "over the long hill slowly and grazes there until dawn."],
        "label": "1",
    },
    {"ctx": "Cows eat", "endings": ["grass.", "stones."], "label": 0},
]
LAMBADA = [{"text": "the herd went up the hill and over the hill"}, {"text": "a b c"}, {"text": "aaa aaaa"}]
CLOZE = [
    {"text": "The capital of France is ____, they say.", "choices": ["Paris", "a herd"], "answer": "Paris"},
    {"text": "____ eat grass.", "choices": ["Cows", "Stones", "Hills"], "label": 2},
]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("run"), num_positions=POSITIONS)


@pytest.fixture(scope="module")
def peer(run_folder, tmp_path_factory):
    """The same weights in the public implementation."""
    transformers = pytest.importorskip("transformers", reason="pip install transformers (a dev dependency)")
    folder = export_model(checkpoint.load(run_folder), tmp_path_factory.mktemp("hf") / "model")
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def log_probs(ids):
        return model(torch.tensor([ids])).logits[0].double().log_softmax(-1)

    return log_probs


def write_lines(path: Path, rows) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def evaluate(run_folder, folder, task, *, per_shard=2, batch=3):
    """Return metrics, rows and rejects of a task, as a job of one process makes them."""
    plan = plan_task(task, 0, Cut(BYTES, POSITIONS, per_shard))
    path = checkpoint.load(run_folder).path
    worker = EvaluationWorker(str(path), None, Tasks(str(folder), (task,), (plan.files,), POSITIONS), batch)
    found = [worker((index, cut)) for index, cut in enumerate(plan.ranges)]
    rows = [json.loads(line) for row in found for line in (folder / row["path"]).read_text().splitlines()]
    refused = [*map(asdict, plan.rejects), *(reject for row in found for reject in row["refused"])]
    return metrics_of(added(row["sums"] for row in found), plan.num_words), rows, refused


def continuation(peer, context, text):
    """Return log-likelihood and whether greedy decoding says the text, from the whole sequence at once."""
    ids = list(context.encode() + text.encode())
    target = len(text.encode())
    if not context:
        ids = [BYTES.end_of_text, *ids]
    ids = ids[-(POSITIONS + 1) :]
    table = peer(ids[:-1])[-target:]
    wanted = torch.tensor(ids[-target:])
    return table.gather(1, wanted[:, None]).sum().item(), bool((table.argmax(1) == wanted).all())


def test_hellaswag_scores_are_those_of_the_public_implementation(run_folder, peer, tmp_path):
    task = Task("h", "hellaswag", write_lines(tmp_path / "h.jsonl", HELLASWAG), Wording("hellaswag"))
    metrics, rows, refused = evaluate(run_folder, tmp_path, task)
    contexts = ["Roof shingle removal: A man is sitting on a roof. He", "The herd walks", "Cows eat"]
    right, right_by_length = 0, 0
    cleaned = ["is using wrap.", "is ripping level tiles off.", "holds a cube now.", "pulls."]
    for row, context, asked in zip(rows, contexts, HELLASWAG, strict=True):
        endings = cleaned if len(asked["endings"]) == 4 else asked["endings"]
        expected = [continuation(peer, context, f" {ending}")[0] for ending in endings]
        assert row["log_likelihoods"] == pytest.approx(expected, abs=1e-4)
        by_length = [value / len(ending) for value, ending in zip(expected, endings, strict=True)]
        right += expected.index(max(expected)) == int(asked["label"])
        right_by_length += by_length.index(max(by_length)) == int(asked["label"])
    assert not refused
    assert (metrics["acc"], metrics["acc_norm"]) == (right / 3, right_by_length / 3)
    assert [row["line"] for row in rows] == [1, 2, 3]


def test_hellaswag_in_plain_style_takes_the_texts_as_they_stand():
    item = parse_item(json.dumps(HELLASWAG[0]).encode(), Wording("hellaswag", "plain"))
    assert item.options[1].context == "A man is sitting on a roof. he"
    assert item.options[1].continuation == " is ripping  level tiles off."


def test_lambada_scores_are_those_of_the_public_implementation(run_folder, peer, tmp_path):
    task = Task("l", "lambada", write_lines(tmp_path / "l.jsonl", LAMBADA), Wording("lambada"))
    metrics, rows, _ = evaluate(run_folder, tmp_path, task)
    expected = [continuation(peer, *cut) for cut in
                [("the herd went up the hill and over the", " hill"), ("a b", " c"), ("aaa", " aaaa")]]  # fmt: skip
    assert [row["log_likelihood"] for row in rows] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert [row["is_greedy"] for row in rows] == [greedy for _, greedy in expected]
    assert metrics["perplexity"] == pytest.approx(math.exp(-sum(value for value, _ in expected) / 3), rel=1e-5)
    assert metrics["acc"] == sum(greedy for _, greedy in expected) / 3


def test_cloze_choices_are_scored_with_the_text_behind_the_blank(run_folder, peer, tmp_path):
    open_row = {"text": "over the ____ and far", "answer": "hill"}
    task = Task("c", "cloze", write_lines(tmp_path / "c.jsonl", [*CLOZE, open_row]), Wording("cloze"))
    metrics, rows, _ = evaluate(run_folder, tmp_path, task)
    first = [continuation(peer, "The capital of France is", f" {word}, they say.")[0] for word in ("Paris", "a herd")]
    second = [continuation(peer, "", f"{word} eat grass.")[0] for word in ("Cows", "Stones", "Hills")]
    assert rows[0]["log_likelihoods"] == pytest.approx(first, abs=1e-4)
    assert rows[1]["log_likelihoods"] == pytest.approx(second, abs=1e-4)
    assert (rows[0]["gold"], rows[1]["gold"]) == (0, 2)
    assert rows[2]["log_likelihood"] == pytest.approx(continuation(peer, "over the", " hill")[0], abs=1e-4)
    assert metrics["acc"] == ((max(first) == first[0]) + (max(second) == second[2])) / 2
    assert (metrics["num_items"], metrics["answer_num_items"]) == (2, 1)


def test_the_answer_of_greedy_decoding_is_right_and_another_wrong(run_folder, peer, tmp_path):
    contexts = [" ".join(("herd", "over", "hill", "dawn")[: 1 + i % 4]) + chr(97 + i % 26) for i in range(60)]
    likeliest = [peer(list(context.encode()))[-1].argmax().item() for context in contexts]
    says = {context: chr(best) for context, best in zip(contexts, likeliest, strict=True) if 33 <= best < 127}
    assert says  # some context of these is followed by a character
    rows = [{"text": f"{context}____", "answer": said} for context, said in says.items()]
    rows += [{"text": f"{context}____", "answer": "%" if said != "%" else "&"} for context, said in says.items()]
    task = Task("c", "cloze", write_lines(tmp_path / "c.jsonl", rows), Wording("cloze"))
    metrics, found, _ = evaluate(run_folder, tmp_path, task)
    assert [row["is_greedy"] for row in found] == [True] * len(says) + [False] * len(says)
    assert metrics["acc"] == 0.5


@pytest.mark.parametrize("stride", [None, 16, 1])
def test_text_is_scored_token_by_token_in_a_sliding_context(run_folder, peer, tmp_path, stride):
    texts = [
        "the herd grazes over the hill\nand the river at dawn, slowly, until the evening comes down\n\n" * 2,
        "été",
    ]
    path = write_lines(tmp_path / "t.jsonl", [{"text": text} for text in texts])
    task = Task("t", "text", path, stride_tokens=stride)
    metrics, rows, _ = evaluate(run_folder, tmp_path, task, per_shard=3)
    loss, num_tokens = 0.0, 0
    for text in texts:
        ids = [BYTES.end_of_text, *text.encode()]
        place, step = 0, POSITIONS
        while place < len(ids) - 1:
            end = min(place + step, len(ids) - 1)
            begin = max(0, end - POSITIONS)
            table = peer(ids[begin:end])[place - end :]
            loss -= table.gather(1, torch.tensor(ids[place + 1 : end + 1])[:, None]).sum().item()
            num_tokens += end - place
            place, step = end, stride or POSITIONS
    assert metrics["num_tokens"] == num_tokens == sum(len(text.encode()) for text in texts)
    assert metrics["loss"] == pytest.approx(loss / num_tokens, rel=1e-5)
    words = sum(len(text.split()) for text in texts) + sum(text.count("\n") for text in texts)
    assert metrics["word_perplexity"] == pytest.approx(math.exp(loss / words), rel=1e-4)
    assert metrics["bits_per_byte"] == pytest.approx(loss / num_tokens / math.log(2), rel=1e-5)
    assert sum(row["num_tokens"] for row in rows) == num_tokens


def test_ranges_of_any_size_give_the_same_scores(run_folder, tmp_path):
    rows = [json.dumps(row) for row in HELLASWAG * 3]
    task = Task("h", "hellaswag", write_lines(tmp_path / "h.jsonl", [*rows[:4], "", *rows[4:]]), Wording("hellaswag"))
    found = [evaluate(run_folder, tmp_path / str(n), task, per_shard=n, batch=n)[:2] for n in (1, 4, 100)]
    for metrics, lines in found[1:]:
        assert metrics == found[0][0]
        for line, first in zip(lines, found[0][1], strict=True):
            assert line["log_likelihoods"] == pytest.approx(first.pop("log_likelihoods"), abs=1e-4)
            assert line.items() >= first.items()
            first["log_likelihoods"] = line["log_likelihoods"]


def test_text_files_of_every_packing_give_the_same_windows(run_folder, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [f"herd number {index} grazes " * (index + 1) for index in range(9)]
    write_lines(tmp_path / "t.jsonl", [{"text": text} for text in texts])
    pq.write_table(pa.table({"text": texts}), tmp_path / "t.parquet")
    results = []
    for name in ("t.jsonl", "t.parquet"):
        task = Task("t", "text", str(tmp_path / name), stride_tokens=40)
        results.append(evaluate(run_folder, tmp_path / f"{name}.out", task, per_shard=2)[0])
    assert results[0] == pytest.approx(results[1], rel=1e-12)


def test_a_byte_order_mark_costs_no_document(run_folder, tmp_path):
    plain = write_lines(tmp_path / "t.jsonl", [{"text": "the herd grazes"}, {"text": "over the hill"}])
    data = Path(plain).read_bytes()
    expected, first_rows, _ = evaluate(run_folder, tmp_path / "plain", Task("t", "text", plain, stride_tokens=4))
    Path(plain).write_bytes(b"\xef\xbb\xbf" + data)
    for per_shard in (1, 100):
        task = Task("t", "text", plain, stride_tokens=4)
        metrics, rows, _ = evaluate(run_folder, tmp_path / str(per_shard), task, per_shard=per_shard)
        assert metrics == pytest.approx(expected, rel=1e-6)
        assert [row["start"] - 3 for row in rows] == [row["start"] for row in first_rows]


def test_a_text_that_lost_windows_after_planning_is_refused(run_folder, tmp_path):
    path = Path(write_lines(tmp_path / "t.jsonl", [{"text": "the herd"}, {"text": "the hill"}]))
    task = Task("t", "text", str(path))
    plan = plan_task(task, 0, Cut(BYTES, POSITIONS, 100))
    path.write_text(path.read_text().replace('{"text": "the hill"}', '{"next": "the hill"}'))
    job = Tasks(str(tmp_path), (task,), (plan.files,), POSITIONS)
    worker = EvaluationWorker(str(checkpoint.load(run_folder).path), None, job, 2)
    with pytest.raises(CorpusError, match=r"t\.jsonl: found 1 windows from byte 0; expected 2 as planned"):
        worker((0, plan.ranges[0]))


def test_bad_rows_are_set_aside_with_line_and_reason(run_folder, tmp_path):
    rows = [
        LAMBADA[0],
        "{broken",
        {"text": "oneword"},
        {"passage": "a b"},
        "[1]",
        {"text": "a " + "b" * (POSITIONS + 1)},
        "",
        LAMBADA[1],
    ]
    task = Task("l", "lambada", write_lines(tmp_path / "l.jsonl", rows), Wording("lambada"))
    metrics, kept, refused = evaluate(run_folder, tmp_path, task)
    reasons = {row["line"]: row["reason"] for row in refused}
    assert sorted(reasons) == [2, 3, 4, 5, 6]
    assert "broken JSON" in reasons[2]
    assert reasons[4] == "found no text in 'text' (fields: passage); expected one"
    assert reasons[6] == f"found a continuation of {POSITIONS + 2} tokens; expected at most {POSITIONS}"
    assert metrics["num_items"] == 2
    assert [row["line"] for row in kept] == [1, 8]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "no blank", "answer": "x"}, "0 blanks"),
        ({"text": "____ or ____", "answer": "x"}, "2 blanks"),
        ({"text": "a ____", "choices": ["b", "c"], "answer": "d"}, "found the answer 'd'"),
        ({"text": "a ____", "choices": ["b", "c"], "label": 2}, "found the label '2'"),
        ({"text": "a ____", "choices": ["b"]}, "no list of texts in 'choices'"),
    ],
)
def test_a_cloze_row_that_is_none_says_why(row, reason):
    with pytest.raises(UnusableRowError, match=reason):
        parse_item(json.dumps(row).encode(), Wording("cloze"))


@pytest.mark.parametrize(
    ("kind", "row", "absent"),
    [
        ("cloze", {"text": "a ____", "answer": "b"}, {"choices": None, "label": None}),
        ("cloze", {"text": "a ____", "choices": ["b", "c"], "label": 1}, {"answer": None}),
        ("hellaswag", {"ctx": "a", "endings": ["b", "c"], "label": 1}, {"ctx_a": None, "ctx_b": None}),
    ],
)
def test_null_is_as_good_as_absent(kind, row, absent):
    found = [parse_item(json.dumps(fields).encode(), Wording(kind)) for fields in (row, row | absent)]
    assert found[0] == found[1]


@pytest.mark.parametrize(("loss", "expected"), [(2.0, math.e**2), (710.0, math.e**700)])
def test_a_perplexity_is_a_number_that_json_has(loss, expected):
    assert Measured(1, 1, loss).perplexity == pytest.approx(expected)


def test_a_file_without_an_item_is_refused(tmp_path):
    task = Task("l", "lambada", write_lines(tmp_path / "l.jsonl", ["{}"]), Wording("lambada"))
    with pytest.raises(CorpusError, match=r"nothing to score \(1 row set aside, the first at l.jsonl:1: found no text"):
        plan_task(task, 0, Cut(BYTES, POSITIONS, 4))


def test_a_stride_beyond_the_context_is_refused():
    with pytest.raises(SettingsError, match="found 9; expected at most the context of 8"):
        sliding_of(Task("t", "text", "x", stride_tokens=9), 8)


def test_spaces_before_the_answer_belong_to_its_tokens():
    gpt2 = load_tokenizer("gpt2")
    item = parse_item(b'{"text": "Cows eat ____.", "answer": "grass"}', Wording("cloze"))
    ids, num_targets = tokens_of(item.options[0], gpt2)
    assert gpt2.decode(ids) == "Cows eat grass"
    assert gpt2.decode(ids[-num_targets:]) == " grass"


def test_wikitext_words_count_line_ends():
    assert count_words(" \n = Robert = \n \n word \n") == 4 + 4


@given(num_tokens=st.integers(1, 60), context=st.integers(1, 12), data=st.data())
def test_windows_predict_each_token_once_from_what_is_before_it(num_tokens, context, data):
    sliding = Sliding(context, data.draw(st.integers(1, context)))
    tokens = list(range(1, num_tokens + 1))
    predicted = []
    for index in range(sliding.num_windows(num_tokens)):
        ids, num_targets = sliding.window(tokens, index, 0)
        assert 1 <= num_targets < len(ids) <= context + 1
        assert ids == list(range(ids[0], ids[-1] + 1))
        predicted += ids[-num_targets:]
        assert len(ids) == min(context, ids[-1]) + 1
    assert predicted == tokens
