"""Print the anatomy of a model, tensor by tensor, with its parameters."""

from gpt_core.settings import AnatomySettings
from jobs import cli

SETTINGS = AnatomySettings
EXAMPLE = "--preset gpt2-xl"


def main(settings: AnatomySettings) -> str:
    """Return the table."""
    from gpt_core.model.anatomy import table
    from gpt_core.model.presets import GPT2_VOCABULARY_SIZE

    return table(settings.model.with_preset(settings.preset).shape(GPT2_VOCABULARY_SIZE))


if __name__ == "__main__":
    cli.run_module(__file__)
