"""The anatomy of a GPT, tensor by tensor, as `herd model` prints it.  Without torch.

Invariant: the counts add up to ``shape.num_parameters``, and names and sizes are the model's own.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from gpt_core.model.presets import PRESETS, ModelShape

COPIED_TABLE_NOTE = (
    "A widely copied table prints 7,085,568 parameters a block and 124,410,624 in all. It gives the MLP's "
    "first bias 768 entries instead of 3,072, twelve times, and leaves out ln_f (1,536): "
    "12 x 2,304 + 1,536 = 29,184 too few."
)


@dataclass(frozen=True, slots=True)
class Row:
    """Tensors of one kind: ``copies`` of them, one a layer where the name has a *."""

    name: str
    size: tuple[int, ...]
    copies: int
    role: str

    @property
    def num_parameters(self) -> int:
        """Parameters of all copies together."""
        return math.prod(self.size) * self.copies


def rows_of(shape: ModelShape) -> list[Row]:
    """Return the rows of a model's table, in the order data flows through it."""
    width = shape.n_embd
    return [
        Row("wte.weight", (shape.vocabulary_size, width), 1, "token embedding, and output head"),
        Row("wpe.weight", (shape.num_positions, width), 1, "position embedding"),
        *_block_rows(width, shape.n_layer),
        Row("ln_f.weight", (width,), 1, "final LayerNorm"),
        Row("ln_f.bias", (width,), 1, "final LayerNorm"),
    ]


def _block_rows(width: int, copies: int) -> Iterator[Row]:
    layers = (
        ("ln_1", (width,), "LayerNorm before attention"),
        ("attn.c_attn", (3 * width, width), "queries, keys and values"),
        ("attn.c_proj", (width, width), "attention's projection into the stream"),
        ("ln_2", (width,), "LayerNorm before the MLP"),
        ("mlp.c_fc", (4 * width, width), "MLP's first layer, then tanh GELU"),
        ("mlp.c_proj", (width, 4 * width), "MLP's projection into the stream"),
    )
    for name, size, role in layers:
        yield Row(f"h.*.{name}.weight", size, copies, role)
        yield Row(f"h.*.{name}.bias", size[:1], copies, role)


def table(shape: ModelShape) -> str:
    """Return the table as text: a line a row, the totals, and a note where others err."""
    lines = [f"{'tensor':<24}{'size':>16}{'copies':>8}{'parameters':>18}  role"]
    for row in rows_of(shape):
        size = " x ".join(f"{n}" for n in row.size)
        lines.append(f"{row.name:<24}{size:>16}{row.copies:>8}{row.num_parameters:>18,}  {row.role}")
    lines += [
        "",
        f"{'one block':<48}{shape.num_block_parameters:>18,}",
        f"{'all':<48}{shape.num_parameters:>18,}",
        f"{'fp32 weights, bytes':<48}{4 * shape.num_parameters:>18,}",
        f"{'with both AdamW moments, bytes':<48}{12 * shape.num_parameters:>18,}",
    ]
    if shape == PRESETS["gpt2"].shape:
        lines += ["", COPIED_TABLE_NOTE]
    return "\n".join(lines)
