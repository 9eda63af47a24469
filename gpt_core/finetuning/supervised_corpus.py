"""A corpus of packed examples as trainers read it: a window a pack, what is not learnt masked.

``open_corpus`` returns it for a folder whose manifest says so, and a plain ``Corpus`` for any other.
"""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_core.corpus import manifest
from gpt_core.corpus.corpus import DEFAULT_OPEN_SHARDS, Corpus, SourceIndex, Span
from gpt_core.corpus.order import Cells
from gpt_core.corpus.shard_cache import ShardCache
from gpt_core.corpus.shards import ShardReader
from gpt_core.errors import SettingsError
from gpt_core.finetuning.masked_windows import masked
from gpt_core.finetuning.packing import target_mask

PACKED = "pack_tokens"
"""The manifest's setting that says that a corpus holds packs, and of how many tokens."""


def open_corpus(folder: str, split: str = "train", cache: ShardCache | None = None) -> Corpus:
    """Return a split of a corpus, of documents or of packed examples; see ``Corpus`` for the cache.

    Raises:
        CorpusError: See ``Corpus``.
    """
    kind = SupervisedCorpus if PACKED in manifest.read(folder).settings else Corpus
    return kind(folder, split, cache=cache)


class SupervisedCorpus(Corpus):
    """One split of packed examples; a corpus whose windows are its packs, so that none crosses a border.

    The mask of a shard, a byte a token, is made when a window first needs it; as many are kept as shards are mapped.
    """

    def __init__(
        self,
        folder: str,
        split: str = "train",
        max_open_shards: int = DEFAULT_OPEN_SHARDS,
        cache: ShardCache | None = None,
    ) -> None:
        super().__init__(folder, split, max_open_shards, cache)
        self.indexes = tuple(_PackIndex(index.rows, np.diff(index.bounds)) for index in self.indexes)
        self._is_target = functools.lru_cache(max_open_shards)(self._read_mask)

    def windows(self, cells: Cells, window_tokens: int) -> NDArray[np.int64]:
        """Return packs and, last, a token that stands for the next pack's first: [n, window_tokens + 1], masked.

        Raises:
            SettingsError: The packs have another length.
        """
        packed: Any = self.manifest.settings[PACKED]
        if window_tokens != packed:
            remedy = "use this context, or another output folder"
            raise SettingsError("train.context_tokens", str(window_tokens), f"{packed}, that of the packs", remedy)
        tokens = np.full((len(cells), window_tokens + 1), self.manifest.tokenizer.end_of_text, np.int64)
        is_target = np.zeros(tokens.shape, bool)
        places = self.coordinates(cells, window_tokens)
        for row, (shard, start) in enumerate(zip(places.shards.tolist(), places.offsets.tolist(), strict=True)):
            tokens[row, :-1] = self.reader(shard).tokens(start, window_tokens)
            is_target[row, :-1] = self._is_target(shard)[start : start + window_tokens]
        return masked(tokens, is_target)

    def _read_mask(self, shard: int) -> NDArray[np.bool_]:
        reader, end = self.reader(shard), self.manifest.tokenizer.end_of_text
        return np.concatenate([_batch_mask(reader, index, end) for index in range(reader.num_batches)])


class _PackIndex(SourceIndex):
    """The stream of a source that consists of packs.

    Windows overlap by one token, so that the last pack needs one behind it: it counts, and is not there.
    """

    @property
    def num_tokens(self) -> int:
        return int(self.bounds[-1]) + 1

    def spans(self, start: int, count: int) -> list[Span]:
        return super().spans(start, min(count, int(self.bounds[-1]) - start))


def _batch_mask(reader: ShardReader, index: int, end_of_text: int) -> NDArray[np.bool_]:
    prompts = reader.batch(index).column("prompt_tokens").to_numpy()
    return target_mask(reader.batch_tokens(index), reader.document_offsets(index), prompts, end_of_text)
