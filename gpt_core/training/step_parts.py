"""How long a training step takes on CPUs, from how fast a worker does its parts.

Pure arithmetic without torch; ``measure_parts`` measures the rates. Symbols: N parameters, L layers, d width,
V vocabulary, T tokens of a window, n tokens of a micro-batch, v bytes of a number computed with, W workers.
"""

from dataclasses import dataclass

from gpt_core.training.training_plan import TrainingPlan

GRADIENT_BYTES = 4  # as summed: fp32
# Of the summed gradient: read for its norm, read and written for the clip, read by AdamW, which reads and writes the
# weight and both moments.
STATE_BYTES = 4 + 8 + 4 + 3 * 8
# A worker sends so much while it receives as much: 10 Gbit/s between machines. Between two processes of one machine
# gloo reached 1.2 GB/s (Xeon, 2026-11-24) and 1.7 (EPYC, 2026-11-28).
SENT_BYTES_A_SECOND = 1.25e9


@dataclass(frozen=True, slots=True)
class StepParts:
    """How fast a worker does the parts of a step."""

    layer_flops_a_second: float
    """Forward and backward of a layer, all in it: products, attention, LayerNorm, GELU."""
    head_flops_a_second: float
    """The head's products with the softmax and both gradients."""
    moved_bytes_a_second: float
    """Read and written by a copy."""

    def __str__(self) -> str:
        """Name the rates for people."""
        rates = (self.layer_flops_a_second, self.head_flops_a_second, self.moved_bytes_a_second)
        return "layers at {:,.0f} GFLOP/s, head at {:,.0f}, copies at {:,.0f} GB/s".format(*(r / 1e9 for r in rates))

    def step_seconds(self, plan: TrainingPlan, num_workers: int, value_bytes: int) -> float:
        """Return the seconds of a full step.

        Each of a worker's k micro-batches: n (L (72 d^2 + 12 d T) / layer rate + 6 V d / head rate), and its gradient
        read and added in fp32, (v + 8) N bytes. Once a step: 40 N bytes for norm, clip and AdamW, where the weights
        computed with are others (4 + v) N more to bring them up to date, and 2 (W - 1) / W 4 N sent.
        """
        shape, num_parameters = plan.shape, plan.shape.num_parameters
        layers = shape.n_layer * layer_flops_a_token(shape.n_embd, plan.window_tokens) / self.layer_flops_a_second
        head = 6.0 * shape.vocabulary_size * shape.n_embd / self.head_flops_a_second
        num_micro_batches = plan.num_micro_batches / num_workers
        ways = 1 if plan.sharding == "none" else num_workers
        copied = 0 if value_bytes == GRADIENT_BYTES else GRADIENT_BYTES + value_bytes
        moved = num_micro_batches * (value_bytes + 2 * GRADIENT_BYTES) + STATE_BYTES / ways + copied / ways
        sent = 2 * (num_workers - 1) / num_workers * GRADIENT_BYTES
        return (
            num_micro_batches * plan.micro_batch_tokens * (layers + head)
            + moved * num_parameters / self.moved_bytes_a_second
            + sent * num_parameters / SENT_BYTES_A_SECOND
        )


def layer_flops_a_token(width: int, window_tokens: int) -> float:
    """Return the training FLOPs of a layer by the PaLM convention: 6 x 12 d^2 + 12 d T."""
    return 72.0 * width**2 + 12.0 * width * window_tokens
