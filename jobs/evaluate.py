"""Measure a checkpoint on a corpus: loss, perplexity, bits per byte."""

from gpt_core.settings import EvaluateJob
from jobs import cli

SETTINGS = EvaluateJob


def main(settings: EvaluateJob) -> str:
    """Evaluate and return the summary for people."""
    from cluster import evaluating
    from cluster.registering import with_local_checkpoint
    from cluster.stages import run_alone

    settings = with_local_checkpoint(settings)
    measured = run_alone("evaluate", evaluating, settings)
    return (
        f"{settings.output}: loss {measured.loss:.4f}, perplexity {measured.perplexity:.2f}, "
        f"{measured.bits_per_byte:.4f} bits per byte on {measured.num_tokens:,} tokens"
    )


if __name__ == "__main__":
    cli.run_module(__file__)
