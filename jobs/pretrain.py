"""Train a GPT on a corpus, data-parallel, into checkpoints."""

from gpt_core.settings import PretrainJob
from jobs import cli

SETTINGS = PretrainJob
EXAMPLE = "--corpus runs/mine/corpus --output runs/mine/model --model.preset gpt2 --train.num_workers 2"


def main(settings: PretrainJob) -> str:
    """Train and return the summary for people."""
    from cluster import training
    from cluster.registering import serving_line
    from cluster.stages import run_alone
    from cluster.tracking import page_line

    model = run_alone("pretrain", training, settings)
    held_out = "nothing held out" if model.validation_loss is None else f"{model.validation_loss:.2f} held out"
    return (
        f"{model.checkpoint}: {model.num_parameters:,} parameters, {model.num_steps:,} steps, "
        f"loss {model.untrained_loss:.2f} expected untrained, {held_out}\n"
        f"weights digest {model.weights_digest}"
        f"{serving_line(settings.register, settings.tracking, settings.output)}"
        f"{page_line(settings.tracking, settings.output)}"
    )


if __name__ == "__main__":
    cli.run_module(__file__)
