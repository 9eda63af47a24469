"""Make a run folder of a GPT-2 model in the Hugging Face layout."""

from gpt_core.settings import ImportSettings
from jobs import cli

SETTINGS = ImportSettings
EXAMPLE = "--model downloads/gpt2 --output runs/gpt2"


def main(settings: ImportSettings) -> str:
    """Convert and return what was written."""
    from cluster.stages import check_new
    from gpt_core.exchange.huggingface import import_run

    check_new(settings.output, "folder")
    path = import_run(settings.model, settings.output, settings.tokenizer)
    return f"{path}: the weights of {settings.model}, tokenizer {settings.tokenizer}"


if __name__ == "__main__":
    cli.run_module(__file__)
