"""A decode step that a GPU computes while the tokens of the one before are still handed out.

Made and taken by the engine. Invariant: what is taken from it are the bits that a step begun later gives. A sample that
has left since is passed over, and the engine clears its slot.
"""

from dataclasses import dataclass

from torch import Tensor

from gpt_core.generation.sequence import Sequence

NO_TOKEN = -1
Row = tuple[Sequence, int, int]
"""A sample, its last token, and the position where a step stores it."""


@dataclass(frozen=True, slots=True)
class StepAhead:
    """Rows of a step and what they draw."""

    rows: list[Row]
    tokens: Tensor
    """[R], on the device; NO_TOKEN where logits are not finite."""

    def __contains__(self, sequence: Sequence) -> bool:
        """Say whether a row is this sample's."""
        return any(row[0] is sequence for row in self.rows)

    def tokens_by_sample(self) -> dict[Sequence, int | None]:
        """Wait for the device and return each sample's token, None where its logits are not finite."""
        pairs = zip(self.rows, self.tokens.tolist(), strict=True)
        return {row[0]: None if token == NO_TOKEN else token for row, token in pairs}
