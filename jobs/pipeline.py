"""Run all stages of a settings file: text to corpus, checkpoint, evaluation and generated text."""

from typing import TYPE_CHECKING

from gpt_core.counted import counted
from gpt_core.settings import PipelineJob
from jobs import cli

if TYPE_CHECKING:
    from cluster.pipeline import PipelineResult

SETTINGS = PipelineJob
EXAMPLE = "--config jobs/configs/quickstart.yaml"


def main(settings: PipelineJob) -> str:
    """Run the stages and return the summary for people."""
    from cluster.pipeline import run_pipeline
    from cluster.registering import serving_line
    from cluster.tracking import page_line

    result = run_pipeline(settings)
    return "\n".join(
        [
            "",
            *_stage_lines(settings, result),
            "",
            *_sample_lines(result),
            serving_line(settings.pretrain.register, settings.tracking, settings.output)
            + page_line(settings.tracking, settings.output),
        ]
    )


def _stage_lines(job: PipelineJob, result: "PipelineResult") -> list[str]:
    corpus, model, generated = result.corpus, result.model, result.generated
    held_out = "nothing held out" if model.validation_loss is None else f"{model.validation_loss:.2f} held out"
    facts = {
        "tokenize": (
            f"{corpus.num_tokens:,} tokens of {counted(corpus.num_documents, 'document')} in "
            f"{counted(corpus.num_shards, 'shard')}, {corpus.num_rejected:,} set aside"
            f"{_rate(corpus.num_tokens, result.seconds['tokenize'])}"
        ),
        "pretrain": (
            f"{model.num_parameters:,} parameters, {counted(model.num_steps, 'step')}, "
            f"loss {model.untrained_loss:.2f} expected untrained, {held_out}"
            f"{_rate(model.tokens_trained, result.seconds['pretrain'])}"
        ),
        "evaluate": "; ".join(result.evaluation.lines()),
        "generate": (
            f"{counted(generated.num_rows, 'row')}, {generated.num_tokens:,} tokens, "
            f"{generated.num_rejects:,} set aside{_rate(generated.num_tokens, result.seconds['generate'])}"
        ),
    }
    lines = []
    for stage, fact in facts.items():
        seconds = result.seconds[stage]
        took = "skipped" if seconds is None else f"{seconds:.0f} s"
        lines += [f"{stage:<9} {took:>8}  {getattr(job, stage).output}", f"{'':<19} {fact}"]
    return lines


def _rate(num_tokens: int, seconds: float | None) -> str:
    return "" if seconds is None else f", {num_tokens / seconds:,.0f} tokens/s with start-up"


def _sample_lines(result: "PipelineResult") -> list[str]:
    lines = [f"generated samples after {result.model.num_steps:,} steps (prompt | completion):"]
    for row in result.generated.samples[:3]:
        lines += [f"  {row['prompt']!r} | {row['text']!r}"]
    return lines


if __name__ == "__main__":
    cli.run_module(__file__)
