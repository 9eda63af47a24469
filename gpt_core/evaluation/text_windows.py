"""How a text is cut into windows to be scored: each token once, in a context that slides over the text.

A text begins with an end-of-text token, so that its first token is predicted too. The first window predicts up to
``context_tokens`` tokens. Each later one predicts the next ``stride_tokens`` and sees as many before them as the
context holds: with stride = context that is one at least, with stride 1 all of it. The last window reaches back
as far as the context allows. These are lm-evaluation-harness's rolling windows.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sliding:
    """Tokens a window sees, and tokens by which it moves; 1 <= stride_tokens <= context_tokens."""

    context_tokens: int
    stride_tokens: int

    def num_windows(self, num_tokens: int) -> int:
        """Return the windows of a text of so many tokens, 1 or more."""
        return 1 + max(0, -(-(num_tokens - self.context_tokens) // self.stride_tokens))

    def window(self, tokens: list[int], index: int, end_of_text: int) -> tuple[list[int], int]:
        """Return the ids of a window of the text, and how many of them, at the end, it predicts."""
        first = self.context_tokens + (index - 1) * self.stride_tokens if index else 0
        last = min(self.context_tokens + index * self.stride_tokens, len(tokens))
        begin = last - self.context_tokens  # the place of the window's first id in the text led by end-of-text
        ids = [end_of_text, *tokens[:last]] if begin <= 0 else tokens[begin - 1 : last]
        return ids, last - first


def count_words(text: str) -> int:
    """Return the words between white space, plus one for each line end.

    So the authors of WikiText count: each line end is their token ``<eos>``, and WikiText-2's test split has 245,569.
    """
    return len(text.split()) + text.count("\n")
