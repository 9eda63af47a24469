"""Promises of gpt_core.training.planning and of `herd plan`; figures by hand or from the papers named beside them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_core.errors import ResourceError, SettingsError
from gpt_core.model import precision
from gpt_core.model.presets import PRESETS, ModelShape
from gpt_core.training.planning import (
    GPUS,
    CorpusNeeds,
    Duration,
    Work,
    batch_stages,
    checkpoint_bytes,
    find_layout,
    layout_of,
    petaflops_days,
)
from gpt_core.training.schedule import BatchRamp
from jobs import cli

GPT3 = Work(PRESETS["gpt3-175b"].shape, 300e9, 3.2e6, 2048)
TINY = ModelShape(2, 2, 8, 16, 100)


def test_gpt3_takes_the_published_compute_time_and_price_on_v100s():
    # 6 x 174,604,259,328 x 300e9 = 3.14287667e23; / 8.64e19 = 3,637.6
    assert petaflops_days(GPT3.flops("6N")) == pytest.approx(3637.6, abs=0.1)
    one = Duration(GPT3.flops("6N"), 300e9, 1, 28e12)  # 28 TFLOP/s, 1.5 dollars an hour
    # 3.14287667e23 / 28e12 = 1.12245595e10 s; / 31,557,600 s = 355.68 years; / 3600 x 1.5 = 4.677 million
    assert one.gpu_years == pytest.approx(355.68, abs=0.01)
    assert one.gpu_hours * 1.5 == pytest.approx(4.6769e6, abs=100)
    assert one.tokens_a_second == pytest.approx(26.727, abs=0.001)  # 300e9 / 1.12245595e10
    many = Duration(GPT3.flops("6N"), 300e9, 1024, 28e12)
    assert (many.gpu_years, many.days * 1024) == pytest.approx((one.gpu_years, one.days))


def test_the_palm_formula_adds_attention():
    # GPT-2 at 1,024 tokens: 6 x (124,439,808 - 786,432) + 12 x 12 x 768 x 1024 = 855.2e6 a token
    work = Work(PRESETS["gpt2"].shape, 1.0, 524288, 1024)
    assert work.flops("palm") == pytest.approx(855.2e6, rel=1e-4)
    assert work.flops("6N") == pytest.approx(746.6e6, rel=1e-4)


def test_layout_memory_is_the_sum_of_its_formulas():
    # Blocks: 12 x 64 + 13 x 8 = 872 each; embeddings (100 + 16) x 8 = 928: 1 layer a stage, halved by 2 tensor ways
    layout = layout_of(Work(TINY, 1e6, 64, 16, 3), 2, 2, 4, recomputed=False)
    num_parameters = (872 + 928) / 2
    assert layout.weights_bytes == 4 * num_parameters
    assert layout.optimizer_bytes == 12 * num_parameters / 4
    assert layout.activations_bytes == 34 * 2 * 3 * 16 * 8 / 2
    assert layout.logits_bytes == 4 * 3 * 16 * 100 / 2
    assert layout_of(Work(TINY, 1e6, 64, 16, 3), 2, 2, 4, recomputed=True).activations_bytes == 38 * 3 * 16 * 8 / 2
    assert layout.bubble_share(96, 3) == 1 / 8  # one of two stages idle once in 96 / (4 x 3) = 8 micro-batches


@pytest.mark.parametrize("gpu", sorted(GPUS))
def test_gpt3_fits_on_1024_of_each_gpu_in_the_layout_found(gpu):
    layout = find_layout(GPT3, 1024, GPUS[gpu].memory_bytes)
    assert layout.tensor * layout.pipeline * layout.data == 1024
    assert layout.memory_bytes <= 0.9 * GPUS[gpu].memory_bytes
    assert 96 % layout.tensor == 96 % layout.pipeline == 0


def test_a_small_model_is_not_split():
    layout = find_layout(Work(PRESETS["gpt2"].shape, 1e10, 524288, 1024), 8, 80e9)
    assert (layout.tensor, layout.pipeline, layout.data, layout.recomputed) == (1, 1, 8, False)


def test_what_does_not_fit_is_refused_with_the_memory_it_takes():
    with pytest.raises(
        ResourceError, match=r"gpus: found at least \d+\.\d GB a GPU on 8; expected at most 90% of 80 .* or 64 of these"
    ):
        find_layout(GPT3, 8, 80e9)


def test_more_copies_than_sequences_are_refused():
    with pytest.raises(SettingsError, match="batch_tokens: found 32 sequences a step; expected at least 64"):
        find_layout(Work(PRESETS["gpt2"].shape, 1e10, 32768, 1024), 1024, 80e9)  # 4 x 4 ways a copy at most


@given(st.integers(1, 40_000), st.integers(1, 12_000), st.integers(0, 5))
def test_the_batches_are_those_the_training_loop_takes(num_tokens, ramp_tokens, doublings):
    work = Work(TINY, num_tokens, 64 * 16, 16, ramp_start_tokens=64 * 16 >> doublings, ramp_tokens=ramp_tokens)
    stages = batch_stages(work, 1)
    ramp = BatchRamp(64, 64 >> doublings, ramp_tokens)
    tokens, steps = 0, []
    while tokens < num_tokens:
        steps.append(ramp.micro_batches_at(tokens))
        tokens += steps[-1] * 16
    planned = [stage.batch_sequences for stage in stages for _ in range(stage.num_steps)]
    assert planned == steps


def test_without_a_ramp_all_steps_are_full():
    (stage,) = batch_stages(Work(PRESETS["gpt2"].shape, 1e10, 524288, 1024), 8)
    assert (stage.batch_sequences, stage.num_steps) == (512, 19074)  # 1e10 / 524,288 = 19,073.5


@pytest.mark.parametrize(
    ("preset", "gigabytes"), [("gpt2", 1.49), ("gpt2-medium", 4.26), ("gpt2-large", 9.29), ("gpt2-xl", 18.7)]
)
def test_checkpoints_have_the_size_of_the_training_state(preset, gigabytes):
    assert checkpoint_bytes(PRESETS[preset].shape) / 1e9 == pytest.approx(gigabytes, rel=3e-3)


def test_a_corpus_takes_the_measured_rate_and_two_bytes_a_token():
    needs = CorpusNeeds(3.6e9, 5e6, 4.0, 50257)
    assert (needs.core_hours, needs.text_bytes, needs.shard_bytes) == (0.2, 14.4e9, 7.2e9)
    assert CorpusNeeds(1e9, 5e6, 4.0, 70_000).shard_bytes == 4e9


def test_each_gpu_sends_its_share_of_the_gradients_around_a_ring():
    # 4 bytes x (2 x 872 + 928 + the last LayerNorm's 16) parameters over 2 x 2 ways; 4 data ways send 2 x 3/4 of it
    assert layout_of(Work(TINY, 1e6, 64, 16, 3), 2, 2, 4, recomputed=False).gradient_bytes(TINY) == 1.5 * 2688
    assert layout_of(Work(TINY, 1e6, 64, 16, 3), 2, 2, 1, recomputed=False).gradient_bytes(TINY) == 0


def test_planner_and_training_know_the_same_peaks():
    named = {"a100": "A100", "h100": "H100", "h100-pcie": "H100 PCIe", "h200": "H200", "b200": "B200"}
    assert all(GPUS[ours].peak_flops == precision.PEAK_FLOPS[name] for ours, name in named.items())


def plan(capsys, *words):
    code = cli.main(["plan", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_prints_the_published_figures(capsys):
    words = "--preset gpt3-175b --tokens 300e9 --gpus 1024 --gpu v100 --tflops 28 --dollars_per_gpu_hour 1.5"
    code, out, _ = plan(capsys, *words.split())
    assert code == 0
    # 355.68 years x 365.25 = 129,912 days
    for figure in (
        "3,637.6 petaflop/s-days",
        "1.299e+05 GPU-days",
        "355.7 GPU-years",
        "4,676,900 dollars",
        "2,095.25 GB",
    ):
        assert figure in out


def test_300_billion_tokens_take_the_core_hours_of_the_rate_that_was_measured_or_given(capsys):
    # 300e9 x 4.1 bytes / 102.1e6 bytes a core-second (benchmarks/RESULTS.md, `herd tokenize`, auto) / 3600 = 3.346
    out = plan(capsys)[1]
    assert re.search(r"3\.346 core-hours +102 MB of text a core-second .*measured on another machine: benchmarks", out)
    # 300e9 / 2.5e6 / 3600 = 33.33
    assert re.search(
        r"33\.33 core-hours .*2,500,000 tokens/s a core, as given", plan(capsys, "--tokenize_rate", "2.5e6")[1]
    )


def test_a_share_of_the_peak_is_called_a_guess_unless_it_was_given(capsys):
    assert "--mfu 0.4, a guess until measured, of 989 dense" in plan(capsys)[1]
    given = plan(capsys, "--mfu", "0.45")[1]
    assert "--mfu 0.45, as given, of 989 dense" in given
    assert "guess" not in given


def test_the_networks_share_is_told_for_gradients_and_corpus(capsys):
    words = "--preset gpt2 --tokens 10e9 --gpus 8 --tokens_per_second 468000 --ramp_tokens 0"
    out = plan(capsys, *words.split())[1]
    # 2 x 7/8 x 4 x 124,439,808 = 0.87 GB; 3,744,000 / 524,288 = 7.14 steps/s: 6.22 GB/s; 2 bytes x 3.744e6 = 7.5 MB/s
    for figure in ("0.87 GB a step", "6.22 GB/s", "7.5 MB/s"):
        assert figure in out


def test_a_rate_in_tokens_gives_that_throughput_back(capsys):
    words = "--preset gpt2 --tokens 10e9 --gpus 8 --tokens_per_second 468000"
    assert "3,744,000 tokens/s" in plan(capsys, *words.split())[1]


def test_small_runs_are_told_in_small_units(capsys):
    # 6 x 124,439,808 x 1e6 FLOP at 989e12 x 0.4 a second: 1.887 s on one GPU
    words = "--preset gpt2 --gpus 1 --ramp_tokens 0 --tokens"
    out = plan(capsys, *words.split(), "1e6")[1]
    assert re.search(r"time +1\.887 seconds.*\n +1\.887 GPU-seconds", out)
    assert "0.04016 core-seconds" in out  # 1e6 x 4.1 / 102.1e6
    assert "petaflop/s-days" not in out
    assert "GPU-years" not in out
    assert "31.46 minutes" in plan(capsys, *words.split(), "1e9")[1]


def test_two_presets_are_refused(capsys):
    for job in ("plan", "model"):
        code = cli.main([job, "--preset", "gpt2", "--model.preset", "gpt3-xl"])
        assert code == 2
        assert "model.preset: found gpt3-xl; expected no other than preset, gpt2" in capsys.readouterr().err
    assert plan(capsys, "--model.preset", "gpt3-xl")[0] == 2
    assert plan(capsys, "--preset", "gpt2", "--model.preset", "gpt2", "--gpus", "1")[0] == 0


def test_a_context_beyond_the_models_positions_is_refused(capsys):
    code, _, err = plan(capsys, "--preset", "gpt2", "--context_tokens", "2048")
    assert code == 2
    assert err == (
        "context_tokens: found 2048; expected at most the model's num_positions, 1024; "
        "shorten the context or give the model more positions\n"
    )
