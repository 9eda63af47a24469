"""What a training run needs before it is launched: compute, time, price, memory and layout of the GPUs, corpus.

Pure arithmetic without torch; `herd plan` prints it. Estimates of throughput rest on a rate the user gives, or on
an assumed share of the peak, and say which. Symbols: N parameters, D tokens, L layers, d width, V vocabulary,
T tokens of a window, b sequences of a micro-batch, t tensor, p pipeline and r data-parallel ways.
"""

import math
from dataclasses import dataclass
from typing import Literal

from gpt_core.errors import ResourceError, SettingsError
from gpt_core.model.presets import ModelShape
from gpt_core.training.step_parts import GRADIENT_BYTES, StepParts
from gpt_core.training.training_plan import TrainingPlan

Formula = Literal["6N", "palm"]

SECONDS_A_DAY = 86_400
DAYS_A_YEAR = 365.25
USABLE_MEMORY_SHARE = 0.9  # the rest is the context, the allocator's gaps and communication buffers
GPUS_A_NODE = 8  # tensor-parallel ways stay within a node
WEIGHTS_AND_GRADIENTS_BYTES = 4  # bf16 each
OPTIMIZER_BYTES = 12  # fp32 weights and two Adam moments
CHECKPOINT_BYTES = 12  # the same, as written
# `herd tokenize`, by processor time: 2-core Xeon without AMX, 2026-11-24 (benchmarks/RESULTS.md).
TEXT_BYTES_A_CORE_SECOND = {"gigatoken": 102.1e6, "tiktoken": 10.1e6}


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device: dense 16-bit peak in FLOP/s and memory in bytes, from the vendor's data sheet."""

    peak_flops: float
    memory_bytes: float


GPUS: dict[str, Gpu] = {
    "v100": Gpu(125e12, 32e9),
    "a100-40gb": Gpu(312e12, 40e9),
    "a100": Gpu(312e12, 80e9),
    "h100-pcie": Gpu(756e12, 80e9),
    "h100": Gpu(989e12, 80e9),
    "h200": Gpu(989e12, 141e9),
    "b200": Gpu(2.25e15, 180e9),
}


@dataclass(frozen=True, slots=True)
class Work:
    """The run: what is trained on how much, in which batches.

    Raises:
        SettingsError: A window longer than the model's positions.
    """

    shape: ModelShape
    num_tokens: float
    batch_tokens: float
    window_tokens: int
    micro_batch_sequences: int = 1
    ramp_start_tokens: float | None = None
    """Tokens of the first steps' batches; None = no ramp."""
    ramp_tokens: float = 0.0

    def __post_init__(self) -> None:
        if self.window_tokens > self.shape.num_positions:
            raise SettingsError(
                "context_tokens",
                f"{self.window_tokens}",
                f"at most the model's num_positions, {self.shape.num_positions}",
                "shorten the context or give the model more positions",
            )

    def flops(self, formula: Formula) -> float:
        """Return the training FLOPs: 6 N D, 2 forward and 4 backward (Kaplan et al. 2020), or PaLM's with attention."""
        if formula == "palm":
            return self.shape.flops_a_token(self.window_tokens) * self.num_tokens
        return 6.0 * self.shape.num_parameters * self.num_tokens


@dataclass(frozen=True, slots=True)
class Duration:
    """How long the run takes on so many GPUs at one rate."""

    flops: float
    num_tokens: float
    num_gpus: int
    flops_a_second: float
    """Achieved by one GPU."""

    @property
    def seconds(self) -> float:
        """FLOPs over the rate of all GPUs."""
        return self.flops / (self.num_gpus * self.flops_a_second)

    @property
    def tokens_a_second(self) -> float:
        """Over all GPUs."""
        return self.num_tokens / self.seconds

    @property
    def days(self) -> float:
        """Elapsed days."""
        return self.seconds / SECONDS_A_DAY

    @property
    def gpu_hours(self) -> float:
        """Hours of all GPUs together, what a provider bills."""
        return self.seconds * self.num_gpus / 3600

    @property
    def gpu_days(self) -> float:
        """Days one GPU would take."""
        return self.days * self.num_gpus

    @property
    def gpu_years(self) -> float:
        """Years one GPU would take."""
        return self.gpu_days / DAYS_A_YEAR


def petaflops_days(flops: float) -> float:
    """Return FLOPs as days of 10^15 operations a second."""
    return flops / (1e15 * SECONDS_A_DAY)


def token_bytes(vocabulary_size: int) -> int:
    """Return the bytes of a token in the shards: two up to 65,536 ids, else four."""
    return 2 if vocabulary_size <= 1 << 16 else 4


def checkpoint_bytes(shape: ModelShape) -> int:
    """Return the bytes of a checkpoint: weights and two Adam moments in fp32, 12 N."""
    return CHECKPOINT_BYTES * shape.num_parameters


@dataclass(frozen=True, slots=True)
class Layout:
    """How the GPUs share the model, and the bytes of the fullest one."""

    tensor: int
    pipeline: int
    data: int
    recomputed: bool
    weights_bytes: float
    optimizer_bytes: float
    activations_bytes: float
    logits_bytes: float

    @property
    def memory_bytes(self) -> float:
        """All of it together."""
        return self.weights_bytes + self.optimizer_bytes + self.activations_bytes + self.logits_bytes

    def gradient_bytes(self, shape: ModelShape) -> float:
        """Return what each GPU sends a step: sums and their return, 2 (d - 1) / d of its share of the gradients."""
        share = GRADIENT_BYTES * shape.num_parameters / (self.tensor * self.pipeline)
        return 2 * (self.data - 1) / self.data * share

    def micro_batches(self, batch_sequences: int, micro_batch_sequences: int) -> int:
        """Return the micro-batches each pipeline works through in a step."""
        return batch_sequences // (self.data * micro_batch_sequences)

    def bubble_share(self, batch_sequences: int, micro_batch_sequences: int) -> float:
        """Return idle over busy time of a pipeline, (p - 1) / m (Narayanan et al. 2021, section 2.2)."""
        return (self.pipeline - 1) / self.micro_batches(batch_sequences, micro_batch_sequences)


def layout_of(work: Work, tensor: int, pipeline: int, data: int, *, recomputed: bool) -> Layout:
    """Return a layout with the memory of its fullest GPU, that of the first pipeline stage.

    Weights and gradients 4 bytes a parameter, optimizer 12 shared over the data-parallel ways (ZeRO-1, Rajbhandari
    et al. 2020, section 3). Activations with flash attention and sequence parallelism: 34 b T d a layer, or 2 b T d
    where layers are recomputed, and 1F1B keeps the micro-batches of L layers on the first stage (Korthikanti et al.
    2022, sections 4 and 5). Logits: b T V in fp32.
    """
    shape = work.shape
    embeddings = (shape.vocabulary_size + shape.num_positions) * shape.n_embd
    layers = math.ceil(shape.n_layer / pipeline)
    num_parameters = (layers * shape.num_block_parameters + embeddings) / tensor
    stream_bytes = work.micro_batch_sequences * work.window_tokens * shape.n_embd / tensor
    kept_layers = layers * pipeline
    activations = 34 * kept_layers * stream_bytes
    if recomputed:
        activations = (2 * kept_layers + 34) * stream_bytes
    return Layout(
        tensor=tensor,
        pipeline=pipeline,
        data=data,
        recomputed=recomputed,
        weights_bytes=WEIGHTS_AND_GRADIENTS_BYTES * num_parameters,
        optimizer_bytes=OPTIMIZER_BYTES * num_parameters / data,
        activations_bytes=activations,
        logits_bytes=4 * work.micro_batch_sequences * work.window_tokens * shape.vocabulary_size / tensor,
    )


def find_layout(work: Work, num_gpus: int, memory_bytes: float) -> Layout:
    """Return the layout that fits with the fewest GPUs a copy of the model; recomputing only where needed.

    Raises:
        ResourceError: None fits; names the least memory found.
        SettingsError: The batch has fewer sequences than the copies need.
    """
    usable = USABLE_MEMORY_SHARE * memory_bytes
    layouts = sorted(
        _layouts(work, num_gpus), key=lambda one: (one.tensor * one.pipeline, one.recomputed, one.pipeline)
    )
    fitting = [one for one in layouts if one.memory_bytes <= usable]
    if not fitting:
        more = (num_gpus << doublings for doublings in range(1, 20))
        enough = next((number for number in more if _least_bytes(work, number) <= usable), None)
        raise ResourceError(
            "gpus",
            f"at least {_least_bytes(work, num_gpus) / 1e9:.1f} GB a GPU on {num_gpus}",
            f"at most {USABLE_MEMORY_SHARE:.0%} of {memory_bytes / 1e9:.0f} GB",
            "use larger GPUs" if enough is None else f"use larger GPUs, or {enough:,} of these",
        )
    sequences = work.batch_tokens / work.window_tokens
    busy = [one for one in fitting if one.data * work.micro_batch_sequences <= sequences]
    if not busy:
        fewest = min(one.data for one in fitting) * work.micro_batch_sequences
        raise SettingsError(
            "batch_tokens",
            f"{sequences:,.0f} sequences a step",
            f"at least {fewest:,}, one micro-batch for each of the model's copies on {num_gpus:,} GPUs",
            "use fewer GPUs or a larger batch",
        )
    return busy[0]


def _least_bytes(work: Work, num_gpus: int) -> float:
    return min(one.memory_bytes for one in _layouts(work, num_gpus))


def _layouts(work: Work, num_gpus: int) -> list[Layout]:
    shape = work.shape
    tensors = [ways for ways in range(1, GPUS_A_NODE + 1) if GPUS_A_NODE % ways == 0 and shape.n_head % ways == 0]
    pipelines = [ways for ways in range(1, shape.n_layer + 1) if shape.n_layer % ways == 0]
    return [
        layout_of(work, tensor, pipeline, num_gpus // (tensor * pipeline), recomputed=recomputed)
        for tensor in tensors
        for pipeline in pipelines
        for recomputed in (False, True)
        if num_gpus % (tensor * pipeline) == 0
    ]


@dataclass(frozen=True, slots=True)
class BatchStage:
    """Steps in a row with batches of one number of sequences, from a number of tokens on."""

    from_tokens: int
    batch_sequences: int
    num_steps: int


def batch_stages(work: Work, ways: int) -> list[BatchStage]:
    """Return the batches of the run: doublings along GPT-3's linear ramp (``schedule.BatchRamp``), then the full one.

    The full batch is the nearest one that ``ways`` data-parallel micro-batches and the doublings divide.
    """
    full, num_doublings = _full_batch(work, ways)
    stages, tokens = [], 0
    start = full >> num_doublings
    for doubling in range(num_doublings + 1):
        sequences = start << doubling
        # The next batch is taken once the line start + (full - start) tokens / ramp_tokens has reached it.
        until: float = work.num_tokens
        if sequences < full:
            until = min(until, work.ramp_tokens * (2 * sequences - start) / (full - start))
        num_steps = max(0, math.ceil((until - tokens) / (sequences * work.window_tokens)))
        stages.append(BatchStage(tokens, sequences, num_steps))
        tokens += num_steps * sequences * work.window_tokens
    return [stage for stage in stages if stage.num_steps]


def _full_batch(work: Work, ways: int) -> tuple[int, int]:
    """Return the sequences of a full batch, and how often it doubles up to there."""
    wanted = work.batch_tokens / work.window_tokens
    num_doublings = 0
    if work.ramp_start_tokens is not None:
        num_doublings = max(0, round(math.log2(work.batch_tokens / work.ramp_start_tokens)))
    while num_doublings and math.lcm(ways, 1 << num_doublings) > wanted:
        num_doublings -= 1
    unit = math.lcm(ways, 1 << num_doublings)
    return max(1, round(wanted / unit)) * unit, num_doublings


@dataclass(frozen=True, slots=True)
class CorpusNeeds:
    """What making the corpus takes."""

    num_tokens: float
    tokens_a_core_second: float
    text_bytes_a_token: float
    vocabulary_size: int

    @property
    def core_hours(self) -> float:
        """Hours of one core at that rate."""
        return self.num_tokens / self.tokens_a_core_second / 3600

    @property
    def text_bytes(self) -> float:
        """Bytes of the source text, uncompressed."""
        return self.num_tokens * self.text_bytes_a_token

    @property
    def shard_bytes(self) -> float:
        """Bytes of the tokens in the shards."""
        return self.num_tokens * token_bytes(self.vocabulary_size)


# What `herd pretrain` expects of its own run. The share of a GPU's dense 16-bit peak is a guess, as in `herd plan`.
GPU_SHARE = 0.4
PROCESS_BYTES = 0.5e9  # an interpreter with torch and Ray, before it trains
# Values of width d that a layer keeps a token for its backward pass: the stream twice, both LayerNorms' outputs, q, k,
# v, what attention gives, and the MLP's inside before and after GELU, 4 d each.
KEPT_VALUES = 16


@dataclass(frozen=True, slots=True)
class Expected:
    """What a training run is expected to reach, said before it starts."""

    num_workers: int
    num_tokens: int
    tokens_per_second: float
    """Over all workers."""
    seconds: float
    """In steps: evaluations and checkpoints come on top."""
    worker_hours: float
    """What a provider bills, where a worker is a GPU."""
    peak_memory_bytes: float
    """Of one worker: on a GPU what is allocated there, else the process's."""
    checkpoint_bytes: int
    rate_from: str
    """Where the rate is from, for people."""


def expect(plan: TrainingPlan, num_workers: int, pace: float | StepParts, value_bytes: int) -> Expected:
    """Return what to expect of a run of `herd pretrain`.

    Args:
        plan: The run.
        num_workers: Workers it starts with.
        pace: Of a worker: a GPU's published peak in FLOP/s, or what was measured on a CPU.
        value_bytes: Of a number it computes with: 2 or 4.
    """
    if isinstance(pace, StepParts):
        step_tokens = plan.batch_sequences * plan.window_tokens
        tokens_per_second = step_tokens / pace.step_seconds(plan, num_workers, value_bytes)
        rate_from = f"a worker's {pace}, measured at the start"
    else:
        tokens_per_second = num_workers * GPU_SHARE * pace / plan.shape.flops_a_token(plan.window_tokens)
        peak = f"{pace / 1e9:,.0f} GFLOP/s a worker"
        rate_from = f"{GPU_SHARE:.0%} of {peak}, published peak, with attention's FLOPs (PaLM)"
    num_tokens = plan.tokens_after(plan.num_steps)
    seconds = num_tokens / tokens_per_second
    return Expected(
        num_workers=num_workers,
        num_tokens=num_tokens,
        tokens_per_second=tokens_per_second,
        seconds=seconds,
        worker_hours=num_workers * seconds / 3600,
        peak_memory_bytes=worker_bytes(plan, num_workers, value_bytes),
        checkpoint_bytes=checkpoint_bytes(plan.shape),
        rate_from=rate_from,
    )


def worker_bytes(plan: TrainingPlan, num_workers: int, value_bytes: int) -> float:
    """Return the memory of one worker of `herd pretrain`, by what it keeps.

    Masters and moments 12 N, over the workers where they are sharded; the weights computed with, where they are
    others, and a micro-batch's gradients; the levels of the tree that adds them; the copies that a checkpoint is
    written from, on CPUs; 16 b T d values a layer, or one and a layer's 16 where blocks are recomputed. Where all is
    sharded, a block and the embeddings are whole while they compute, and gradients are kept in fp32 once.
    """
    shape, num_parameters = plan.shape, plan.shape.num_parameters
    ways = 1 if plan.sharding == "none" else num_workers
    levels = 1 + (max(1, plan.num_micro_batches // num_workers) - 1).bit_length()
    kept = shape.n_layer * KEPT_VALUES
    if plan.activation_checkpointing:
        kept = shape.n_layer + KEPT_VALUES
    state = OPTIMIZER_BYTES * num_parameters / ways
    gradients = (value_bytes + 4 * levels) * num_parameters
    if plan.sharding == "full":
        embeddings = (shape.vocabulary_size + shape.num_positions) * shape.n_embd
        state += value_bytes * (shape.num_block_parameters + embeddings)
        gradients = 4 * num_parameters / ways
    elif value_bytes != 4 or plan.sharding == "optimizer":
        state += value_bytes * num_parameters
    activations = float(kept * value_bytes * plan.micro_batch_tokens * shape.n_embd)
    on_host = 0.0 if plan.device == "gpu" else PROCESS_BYTES + CHECKPOINT_BYTES * num_parameters
    return state + gradients + activations + on_host
