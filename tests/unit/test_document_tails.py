"""Promises of gpt_core.documents.document_tails, and of the shards made with it."""

from hypothesis import given
from hypothesis import strategies as st

from gpt_core.corpus.shards import ShardReader
from gpt_core.corpus.tokenize_shard import ShardTokenizer, TokenizeOptions
from gpt_core.documents.document_batch import DocumentBatch
from gpt_core.documents.document_tails import cut_tails
from gpt_core.documents.shard_plan import plan_shards
from gpt_core.documents.source_files import SourceSpec, list_files


def batch_of(*texts):
    batch = DocumentBatch()
    for text in texts:
        batch.add(text, "a.txt", 100, 100 + len(text.encode()))
    return batch


def test_the_last_tenth_of_a_text_is_cut_off_with_its_own_place():
    heads, tails = cut_tails(batch_of("0123456789" * 3), 0.1)
    assert (heads.texts, heads.starts, heads.ends) == (["0123456789" * 2 + "0123456"], [100], [127])
    assert (tails.texts, tails.starts, tails.ends) == (["789"], [127], [130])


@given(st.lists(st.text(min_size=1), max_size=4), st.floats(0.0, 0.99))
def test_no_character_is_lost_split_or_moved(texts, share):
    heads, tails = cut_tails(batch_of(*texts), share)
    ends = {end: text for text, end in zip(tails.texts, tails.ends, strict=True)} if len(texts) == 1 else {}
    assert len(heads.texts) == len(texts)
    assert sum(len(part.encode()) for part in heads.texts + tails.texts) == sum(len(t.encode()) for t in texts)
    if len(texts) == 1:
        assert heads.texts[0] + "".join(ends.values()) == texts[0]
    assert all(len(tail.encode()) <= share * max(len(t.encode()) for t in texts) for tail in tails.texts)


def test_a_row_whose_text_is_only_part_of_its_record_keeps_the_whole_record_as_its_place():
    batch = DocumentBatch()
    batch.add("0123456789", "a.jsonl", 5, 40)
    heads, tails = cut_tails(batch, 0.5)
    assert (heads.starts, heads.ends, tails.starts, tails.ends) == ([5], [40], [5], [40])


def test_a_tokenized_file_ends_in_the_validation_split(tmp_path):
    text = "".join(chr(97 + number % 26) for number in range(1000))
    (tmp_path / "book.txt").write_text(text)
    plans = plan_shards(list_files(SourceSpec(name="text", paths=(str(tmp_path / "book.txt"),))), 1 << 20)
    options = TokenizeOptions(str(tmp_path / "corpus"), tokenizer="bytes", validation_tail=0.1)
    row = ShardTokenizer(options)(plans[0])
    kept = {file["split"]: file["stats"]["num_tokens"] for file in row["files"]}
    assert kept == {"train": 901, "validation": 101}  # with an end-of-text token each
    assert [row[f"num_{name}"] for name in ("documents_in", "documents_kept", "rejected", "tails")] == [1, 1, 0, 1]
    reader = ShardReader(tmp_path / "corpus" / "validation" / "00000000.arrow")
    assert bytes(reader.tokens(0, 100).astype("uint8")).decode() == text[900:]
