"""Estimate memory, layout, time and price of a training run before it is launched."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gpt_core.counted import in_largest_unit
from gpt_core.settings import PlanSettings
from jobs import cli

if TYPE_CHECKING:
    from gpt_core.training.planning import BatchStage, Duration, Layout, Work

SETTINGS = PlanSettings
EXAMPLE = "--preset gpt3-13b --gpus 64 --gpu h100 --mfu 0.4"
Row = tuple[str, str, str]
_LEAST_TOLD = 0.01  # of units there is a smaller one of


def main(settings: PlanSettings) -> str:
    """Return the plan as a table: what, how much, by which formula or from which source."""
    from gpt_core.training.planning import GPUS, Duration, batch_stages, find_layout

    work = _work(settings)
    gpu = GPUS[settings.gpu]
    rate, origin = _rate(settings, work)
    duration = Duration(work.flops(settings.flops_formula), work.num_tokens, settings.gpus, rate)
    layout = find_layout(work, settings.gpus, gpu.memory_bytes)
    stages = batch_stages(work, layout.data * work.micro_batch_sequences)
    rows = [
        *_compute_rows(settings, work),
        ("rate a GPU", f"{rate / 1e12:,.1f} TFLOP/s", origin),
        *_time_rows(settings, duration),
        *_layout_rows(settings, layout, stages[-1].batch_sequences),
        *_batch_rows(work, stages),
        *_network_rows(work, duration, layout, stages[-1].batch_sequences),
        *_storage_rows(settings, work),
    ]
    title = f"{settings.preset}: {work.shape.num_parameters:,} parameters, {work.num_tokens:,.0f} tokens"
    return "\n".join([f"{title}, {settings.gpus:,} x {settings.gpu}", "", *_table(rows), "", *_remarks(layout)])


def _work(settings: PlanSettings) -> "Work":
    from gpt_core.model.presets import GPT2_VOCABULARY_SIZE, PRESETS
    from gpt_core.training.planning import Work

    shape = settings.model.with_preset(settings.preset).shape(GPT2_VOCABULARY_SIZE)
    return Work(
        shape=shape,
        num_tokens=settings.tokens,
        batch_tokens=settings.batch_tokens or PRESETS[settings.preset].batch_tokens or 524_288,
        window_tokens=settings.context_tokens or shape.num_positions,
        micro_batch_sequences=settings.micro_batch_sequences,
        ramp_start_tokens=settings.ramp_start_tokens if settings.ramp_tokens else None,
        ramp_tokens=settings.ramp_tokens,
    )


def _rate(settings: PlanSettings, work: "Work") -> tuple[float, str]:
    """Return the FLOP/s of one GPU and where they come from."""
    from gpt_core.training.planning import GPUS

    if settings.tflops is not None:
        return settings.tflops * 1e12, "as given by --tflops"
    if settings.tokens_per_second is not None:
        flops = work.flops(settings.flops_formula) / work.num_tokens * settings.tokens_per_second
        return flops, f"--tokens_per_second {settings.tokens_per_second:,.0f} a GPU x FLOP a token"
    peak = GPUS[settings.gpu].peak_flops
    given = "as given" if "mfu" in settings.model_fields_set else "a guess until measured"
    return settings.mfu * peak, f"--mfu {settings.mfu:g}, {given}, of {peak / 1e12:g} dense 16-bit peak"


def _compute_rows(settings: PlanSettings, work: "Work") -> Iterator[Row]:
    from gpt_core.training.planning import petaflops_days

    formulas = {"6N": "6 N D (Kaplan et al. 2020)", "palm": "(6 N + 12 L d T) D (Chowdhery et al. 2022, app. B)"}
    for formula in ("6N", "palm"):
        flops = work.flops(formula)
        used = ", used below" if formula == settings.flops_formula else ""
        yield "compute", f"{flops:.3g} FLOP", formulas[formula] + used
        if used and petaflops_days(flops) >= _LEAST_TOLD:
            yield "", f"{petaflops_days(flops):,.5g} petaflop/s-days", "FLOP / (1e15 x 86,400)"


def _told(of: str, seconds: float) -> str:
    number, unit = in_largest_unit(seconds)
    return f"{number:,.4g} {of}{unit}"


def _time_rows(settings: PlanSettings, duration: "Duration") -> Iterator[Row]:
    yield "throughput", f"{duration.tokens_a_second:,.0f} tokens/s", "D / time"
    yield "time", _told("", duration.seconds), "FLOP / (GPUs x rate)"
    yield "", _told("GPU-", duration.seconds * duration.num_gpus), "GPUs x time"
    if duration.gpu_years >= _LEAST_TOLD:
        yield "", f"{duration.gpu_years:,.4g} GPU-years", "of 365.25 days"
    if settings.dollars_per_gpu_hour is None:
        yield "price", "not known", "give --dollars_per_gpu_hour"
    else:
        dollars = duration.gpu_hours * settings.dollars_per_gpu_hour
        origin = f"{duration.gpu_hours:,.0f} GPU-hours x {settings.dollars_per_gpu_hour:g}"
        yield "price", f"{dollars:,.0f} dollars", origin


def _layout_rows(settings: PlanSettings, layout: "Layout", batch_sequences: int) -> Iterator[Row]:
    from gpt_core.training.planning import GPUS

    ways = f"{layout.tensor} tensor x {layout.pipeline} pipeline x {layout.data} data"
    yield "layout", ways, "fewest GPUs a copy that fit in 90% of the memory"
    micro = settings.micro_batch_sequences
    if layout.pipeline > 1:
        share = layout.bubble_share(batch_sequences, micro)
        yield "", f"{share:.1%} pipeline bubble", "(p - 1) / m (Narayanan et al. 2021, 2.2); part of the rate above"
    memory = GPUS[settings.gpu].memory_bytes
    yield "memory a GPU", f"{layout.memory_bytes / 1e9:,.1f} of {memory / 1e9:g} GB", "the sum of these"
    yield "  weights, grads", f"{layout.weights_bytes / 1e9:,.1f} GB", "4 bytes a parameter: both in 16 bits"
    zero = "12 bytes a parameter over the data ways (ZeRO-1, Rajbhandari et al. 2020)"
    yield "  optimizer", f"{layout.optimizer_bytes / 1e9:,.1f} GB", zero
    kept = "(2 L + 34) b T d / t, layers recomputed" if layout.recomputed else "34 L b T d / t"
    yield "  activations", f"{layout.activations_bytes / 1e9:,.1f} GB", f"{kept} (Korthikanti et al. 2022)"
    yield "  logits", f"{layout.logits_bytes / 1e9:,.1f} GB", "4 b T V / t"


def _batch_rows(work: "Work", stages: "list[BatchStage]") -> Iterator[Row]:
    total = sum(stage.num_steps for stage in stages)
    yield "steps", f"{total:,}", "the ramp's and the full batches' (Brown et al. 2020, app. B)"
    for stage in stages:
        value = f"{stage.num_steps:,} of {stage.batch_sequences * work.window_tokens:,} tokens"
        yield "", value, f"{stage.batch_sequences:,} sequences, from token {stage.from_tokens:,} on"


def _network_rows(work: "Work", duration: "Duration", layout: "Layout", batch_sequences: int) -> Iterator[Row]:
    from gpt_core.training.planning import token_bytes

    sent = layout.gradient_bytes(work.shape)
    steps_a_second = duration.tokens_a_second / (batch_sequences * work.window_tokens)
    formula = "2 (d - 1) / d x 4 N / (t p): fp32 sums over d data ways and back"
    yield "gradients", f"{sent / 1e9:,.2f} GB a step", f"sent by each GPU, {formula}"
    yield "", f"{sent * steps_a_second / 1e9:,.2f} GB/s", "of each GPU, at full batches"
    read = duration.tokens_a_second * token_bytes(work.shape.vocabulary_size)
    yield "corpus read", f"{read / 1e6:,.1f} MB/s", "throughput x bytes of a token in the shards, all GPUs together"


def _tokenize_rate(settings: PlanSettings) -> tuple[float, str]:
    """Return the tokens/s of a core and where they come from."""
    from gpt_core.training.planning import TEXT_BYTES_A_CORE_SECOND

    if settings.tokenize_rate is not None:
        return settings.tokenize_rate, f"--tokenize_rate {settings.tokenize_rate:,.0f} tokens/s a core, as given"
    rates = TEXT_BYTES_A_CORE_SECOND
    told = f"{rates['gigatoken'] / 1e6:.0f} MB of text a core-second with gigatoken ({rates['tiktoken'] / 1e6:.0f} with"
    origin = f"{told} tiktoken), measured on another machine: benchmarks/RESULTS.md, 2026-11-24"
    return rates["gigatoken"] / settings.text_bytes_per_token, origin


def _storage_rows(settings: PlanSettings, work: "Work") -> Iterator[Row]:
    from gpt_core.training.planning import CorpusNeeds, checkpoint_bytes

    size = checkpoint_bytes(work.shape) / 1e9
    yield "checkpoint", f"{size:,.2f} GB", "12 N: weights and two moments in fp32"
    rate, origin = _tokenize_rate(settings)
    needs = CorpusNeeds(work.num_tokens, rate, settings.text_bytes_per_token, work.shape.vocabulary_size)
    yield "corpus", f"{needs.text_bytes / 1e9:,.1f} GB text", f"{settings.text_bytes_per_token:g} bytes a token"
    yield "", f"{needs.shard_bytes / 1e9:,.1f} GB shards", "2 bytes a token to 65,536 ids, else 4; places come on top"
    hours = needs.core_hours
    yield "", f"{hours:,.4g} core-hours" if hours >= 1 else _told("core-", 3600 * hours), origin


def _table(rows: list[Row]) -> list[str]:
    names, values = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"{name:<{names}}  {value:>{values}}  {source}".rstrip() for name, value, source in rows]


def _remarks(layout: "Layout") -> list[str]:
    remarks = ["N counts all parameters; D tokens, L layers, d width, T window, b micro-batch, V vocabulary."]
    if layout.data > 1:
        whole = layout.optimizer_bytes * layout.data
        remarks.append(
            f"The optimizer is sharded as by train.sharding optimizer; without it each GPU keeps {whole / 1e9:,.1f} GB."
        )
    if layout.tensor * layout.pipeline > 1:
        remarks.append("herd pretrain itself splits the batch only: tensor and pipeline ways need another trainer.")
    return remarks


if __name__ == "__main__":
    cli.run_module(__file__)
