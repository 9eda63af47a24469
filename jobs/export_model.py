"""Write a checkpoint in the Hugging Face layout, tokenizer files included."""

from gpt_core.settings import ExportSettings
from jobs import cli

SETTINGS = ExportSettings
EXAMPLE = "--checkpoint runs/mine/model --output runs/mine/exported"


def main(settings: ExportSettings) -> str:
    """Convert and return what was written."""
    from cluster.stages import check_new
    from gpt_core.exchange.huggingface import export_model
    from gpt_core.training import checkpoint

    found = checkpoint.load(settings.checkpoint)
    check_new(settings.output, "folder")
    folder = export_model(found, settings.output)
    return f"{folder}: {found.shape.num_parameters:,} parameters of step {found.step:,}, from {found.path}"


if __name__ == "__main__":
    cli.run_module(__file__)
