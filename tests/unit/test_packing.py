"""Promises of packs and their readers: no example is cut, no window crosses, targets alone are learnt."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_core.corpus import manifest
from gpt_core.corpus.manifest import ManifestContents, ShardEntry, TokenizerEntry
from gpt_core.corpus.shards import ShardReader, ShardWriter
from gpt_core.corpus.trace import trace_cell
from gpt_core.errors import SettingsError
from gpt_core.finetuning.masked_windows import is_masked, masked, num_targets, target_rows, unmasked
from gpt_core.finetuning.packing import PackWriter, target_mask
from gpt_core.finetuning.supervised_corpus import SupervisedCorpus, open_corpus

END = 9
EXAMPLES = [([1, 2], [3]), ([4], [5, 6]), ([7], [8])]  # of 4, 4 and 3 tokens, end of text included


def write_packs(path, examples, pack_tokens):
    """Pack (prompt, target) pairs into a shard and return its stats."""
    with PackWriter(ShardWriter(path, np.uint16, with_prompts=True), pack_tokens, END) as packs:
        for row, (prompt, target) in enumerate(examples):
            packs.add(np.array(prompt, np.uint16), np.array(target, np.uint16), ("f", row, row + 1))
        return packs.close()


def build(folder, splits, pack_tokens):
    """Write a corpus of packed examples by split and return its folder."""
    entries = []
    for split, shards in splits.items():
        for index, examples in enumerate(shards):
            path = f"{split}/{index:08}.arrow"
            entries.append(
                ShardEntry(split, "examples", index, path, write_packs(folder / path, examples, pack_tokens))
            )
    tokenizer = TokenizerEntry("bytes", "00" * 32, 10, END)
    count = sum(len(examples) for shards in splits.values() for examples in shards)
    settings = {"pack_tokens": pack_tokens}
    contents = ManifestContents(settings, "made up", {"examples": 1.0}, tokenizer, entries, [], count)
    manifest.write(str(folder), contents)
    return str(folder)


def test_examples_fill_packs_as_written_down_here(tmp_path):
    stats = write_packs(tmp_path / "s.arrow", EXAMPLES, 10)
    reader = ShardReader(tmp_path / "s.arrow")
    assert reader.tokens(0, stats.num_tokens).tolist() == [1, 2, 3, 9, 4, 5, 6, 9, 9, 9, 7, 8, 9, 9, 9, 9, 9, 9, 9, 9]
    assert reader.document_offsets(0).tolist() == [0, 4, 10, 20]
    assert reader.batch(0).column("prompt_tokens").to_pylist() == [2, 1, 1]
    assert reader.batch(0).column("file").to_pylist() == ["f"] * 3
    assert stats.num_documents == 3


def test_the_mask_is_targets_and_the_first_end_of_text_behind_each():
    tokens = np.array([1, 2, 3, 9, 4, 5, 6, 9, 9, 9, 7, 8, 9, 9, 9, 9, 9, 9, 9, 9])
    mask = target_mask(tokens, np.array([0, 4, 10, 20]), [2, 1, 1], END)
    assert np.flatnonzero(mask).tolist() == [2, 3, 5, 6, 7, 11, 12]
    assert target_mask(tokens[:0], np.array([0]), [], END).tolist() == []


def test_an_example_longer_than_a_pack_is_a_mistake_of_the_caller(tmp_path):
    with pytest.raises(ValueError, match="11 tokens in a pack of 10"):
        write_packs(tmp_path / "s.arrow", [([1] * 5, [2] * 5)], 10)
    assert not list(tmp_path.iterdir())


def test_windows_are_packs_with_what_is_not_learnt_below_zero(tmp_path):
    folder = build(tmp_path, {"train": [EXAMPLES]}, 10)
    corpus = open_corpus(folder)
    assert isinstance(corpus, SupervisedCorpus)
    cells = corpus.every_window(10)
    windows = corpus.windows(cells, 10)
    assert windows.tolist() == [
        [~1, ~2, 3, 9, ~4, 5, 6, 9, ~9, ~9, ~9],
        [~7, 8, 9, ~9, ~9, ~9, ~9, ~9, ~9, ~9, ~9],
    ]
    with pytest.raises(SettingsError, match=r"train.context_tokens: found 5; expected 10, that of the packs"):
        corpus.windows(cells, 5)


def test_a_traced_row_names_the_examples_of_its_pack(tmp_path):
    corpus = open_corpus(build(tmp_path, {"train": [EXAMPLES]}, 10))
    order = corpus.order(seed=0, window_tokens=10, sequences_per_step=2)
    traced = {trace_cell(corpus, order, 0, row).window: trace_cell(corpus, order, 0, row).parts for row in (0, 1)}
    assert [(part.start, part.num_tokens) for part in traced[0]] == [(0, 4), (1, 6), (2, 1)]
    assert [(part.start, part.num_tokens) for part in traced[1]] == [(2, 10)]


ids = st.lists(st.integers(0, END - 1), max_size=4)
examples = st.lists(st.tuples(ids, ids.filter(bool)), min_size=1, max_size=30)


@given(shards=st.lists(examples, min_size=1, max_size=3), pack_tokens=st.integers(9, 20))
def test_every_target_is_learnt_once_and_follows_its_own_prompt(tmp_path_factory, shards, pack_tokens):
    folder = build(tmp_path_factory.mktemp("packs"), {"train": shards}, pack_tokens)
    corpus = open_corpus(folder)
    windows = corpus.windows(corpus.every_window(pack_tokens), pack_tokens)
    assert (windows[:, -1] == ~END).all()
    found = [pair for window in windows for pair in _examples_of(window)]
    assert found == [(prompt, target) for shard in shards for prompt, target in shard]


def _examples_of(window):
    """Read the (prompt, target) pairs off a masked pack, end of text closing each."""
    pairs, prompt, target = [], [], []
    for token in window[:-1].tolist():
        if token == ~END:
            assert not prompt
            break
        if token == END:
            pairs.append((prompt, target))
            prompt, target = [], []
        elif token < 0:
            prompt.append(~token)
        else:
            target.append(token)
    return pairs


def test_masked_windows_go_back_to_their_tokens():
    tokens = np.array([[0, 1, 2, 3]])
    windows = masked(tokens, np.array([[False, True, False, True]]))
    assert windows.tolist() == [[-1, 1, -3, 3]]
    assert unmasked(windows).tolist() == tokens.tolist()
    assert (is_masked(windows), is_masked(tokens)) == (True, False)
    assert (num_targets(windows), num_targets(tokens)) == (2, 3)
    assert np.array_equal(target_rows(windows), [0, 2])  # pyright: ignore[reportCallIssue, reportArgumentType]
    assert target_rows(tokens) is None
