"""Examples packed into contexts: how a corpus for fine-tuning lies on disk, and which tokens its loss counts.

A pack is ``window_tokens`` tokens of a shard: whole examples one after the other, each with an end of text behind it,
and end-of-text ids up to the border. An example that does not fit into what is left of a pack begins the next one
(next-fit, in the order of the input); none is ever cut. Window w of a source's stream is its pack w.

The loss counts an example's target and the first end of text behind it. Prompts and padding are read and not learnt.
Within a pack attention is causal and nothing else, as it is over the documents of a corpus: an example sees those
before it in its pack, never those of another, and the first of a pack stands as a prompt stands alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from gpt_core.corpus.shards import ShardStats, ShardWriter
from gpt_core.tokens.tokenizer import Ids

_WAITING_TOKENS = 1 << 16


@dataclass(slots=True)
class _Rows:
    """Examples of whole packs on their way to the shard."""

    tokens: list[Ids] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)


class PackWriter:
    """Writes a shard of packed examples; a context manager that abandons the file on an exception.

    Args:
        writer: A shard with prompts.
        window_tokens: Tokens of a pack.
        end_of_text: The id between examples, and of the padding.
    """

    def __init__(self, writer: ShardWriter, window_tokens: int, end_of_text: int) -> None:
        self._writer = writer
        self._window_tokens = window_tokens
        self._end = end_of_text
        self._rows = _Rows()
        self._room_tokens = window_tokens
        self._num_waiting_tokens = 0

    def add(self, prompt: Ids, target: Ids, place: tuple[str, int, int]) -> None:
        """Pack an example that lies at (file, start, end) of the input.

        Raises:
            ValueError: It is longer than a pack, its end of text included.
        """
        tokens = np.concatenate([prompt, target, np.array([self._end], target.dtype)])
        if len(tokens) > self._window_tokens:
            raise ValueError(f"{len(tokens)} tokens in a pack of {self._window_tokens}")
        if len(tokens) > self._room_tokens:
            self._end_pack()
        self._rows.tokens.append(tokens)
        for column, value in zip((self._rows.files, self._rows.starts, self._rows.ends), place, strict=True):
            column.append(value)  # pyright: ignore[reportArgumentType]
        self._rows.prompt_tokens.append(len(prompt))
        self._room_tokens -= len(tokens)
        self._num_waiting_tokens += len(tokens)

    def close(self) -> ShardStats:
        """Fill the last pack and make the shard durable under its name."""
        if self._rows.tokens:
            self._end_pack()
            self._hand_over()
        return self._writer.close()

    def __enter__(self) -> Self:
        self._writer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)

    def _end_pack(self) -> None:
        """Fill the pack behind its last example; hand whole packs over when there are many."""
        last = self._rows.tokens[-1]
        self._rows.tokens[-1] = np.concatenate([last, np.full(self._room_tokens, self._end, last.dtype)])
        self._room_tokens = self._window_tokens
        if self._num_waiting_tokens >= _WAITING_TOKENS:
            self._hand_over()

    def _hand_over(self) -> None:
        rows = self._rows
        offsets = np.concatenate([[0], np.cumsum([len(tokens) for tokens in rows.tokens])])
        self._writer.append(
            np.concatenate(rows.tokens), offsets, rows.files, rows.starts, rows.ends, rows.prompt_tokens
        )
        self._rows, self._num_waiting_tokens = _Rows(), 0


def target_mask(
    tokens: np.ndarray, offsets: np.ndarray, prompt_tokens: Sequence[int] | np.ndarray, end_of_text: int
) -> NDArray[np.bool_]:
    """Return which tokens of packed examples the loss counts: targets, each with the end of text behind it.

    Args:
        tokens: Flat ids of n examples, padding included.
        offsets: int [n + 1] into ``tokens``.
        prompt_tokens: int [n], tokens of each example's prompt.
        end_of_text: The id of end of text, which stands in no prompt and in no target.
    """
    if len(offsets) == 1:
        return np.zeros(0, bool)
    starts = np.asarray(offsets[:-1], np.int64) + prompt_tokens
    ends_of_text = np.flatnonzero(tokens == end_of_text)
    ends = ends_of_text[np.searchsorted(ends_of_text, starts)]
    steps = np.zeros(len(tokens) + 1, np.int8)
    steps[starts] += 1
    steps[ends + 1] -= 1
    return np.cumsum(steps[:-1], dtype=np.int8).astype(bool)
