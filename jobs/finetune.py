"""Teach a checkpoint a task by examples, into checkpoints."""

from gpt_core.counted import counted
from gpt_core.settings import FinetuneJob
from jobs import cli

SETTINGS = FinetuneJob
EXAMPLE = "--checkpoint runs/mine/model --examples pairs.jsonl --task translate --output runs/mine/translator"


def main(settings: FinetuneJob) -> str:
    """Fine-tune and return the summary for people."""
    from cluster import finetuning
    from cluster.registering import serving_line, with_local_checkpoint
    from cluster.stages import run_alone
    from cluster.tracking import page_line

    settings = with_local_checkpoint(settings)
    done = run_alone("finetune", finetuning, settings)
    held_out = "nothing held out" if done.validation_loss is None else f"loss {done.validation_loss:.3f} on held-out"
    return (
        f"{settings.output}: {counted(done.num_examples, 'example')}, {done.num_rejected:,} set aside, "
        f"{counted(done.num_steps, 'step')}\n"
        f"best checkpoint {done.checkpoint}: step {done.step:,}, {held_out}\n"
        f"weights digest {done.weights_digest}"
        f"{serving_line(settings.register, settings.tracking, settings.output)}"
        f"{page_line(settings.tracking, settings.output)}"
    )


if __name__ == "__main__":
    cli.run_module(__file__)
