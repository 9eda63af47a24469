"""Complete prompts with a checkpoint, in batches, into a dataset."""

from gpt_core.counted import counted
from gpt_core.settings import GenerateJob
from jobs import cli

SETTINGS = GenerateJob
EXAMPLE = "--checkpoint runs/mine/model --prompts prompts.txt --output runs/mine/generated"


def main(settings: GenerateJob) -> str:
    """Generate and return the summary for people."""
    from cluster import generating
    from cluster.registering import with_local_checkpoint
    from cluster.stages import run_alone
    from cluster.tracking import page_line
    from gpt_core.storage import Storage

    settings = with_local_checkpoint(settings)
    generated = run_alone("generate", generating, settings)
    midi = Storage.of(settings.output).join("midi")
    music = f"\nmusic in {midi}" if Storage.of(midi).exists(midi) else ""
    return (
        f"{settings.output}: {counted(generated.num_rows, 'row')}, {generated.num_tokens:,} tokens, "
        f"{generated.num_rejects:,} set aside\nroot digest {generated.root_digest}{music}"
        f"{page_line(settings.tracking, settings.output)}"
    )


if __name__ == "__main__":
    cli.run_module(__file__)
