"""Measure a checkpoint on a corpus or in tasks: loss, perplexity, bits per byte, accuracy."""

from gpt_core.settings import EvaluateJob
from jobs import cli

SETTINGS = EvaluateJob
EXAMPLE = "--checkpoint runs/mine/model --corpus runs/mine/corpus --output runs/mine/evaluation"


def main(settings: EvaluateJob) -> str:
    """Evaluate and return the summary for people."""
    from cluster import evaluating
    from cluster.registering import with_local_checkpoint
    from cluster.stages import run_alone
    from cluster.tracking import page_line

    settings = with_local_checkpoint(settings)
    evaluated = run_alone("evaluate", evaluating, settings)
    lines = "\n".join(f"{settings.output}: {line}" for line in evaluated.lines())
    return f"{lines}{page_line(settings.tracking, settings.output)}"


if __name__ == "__main__":
    cli.run_module(__file__)
