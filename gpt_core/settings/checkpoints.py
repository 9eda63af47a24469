"""Settings of the jobs that bring models in and out."""

from gpt_core.settings.base import LocalPlace, Place, Settings
from gpt_core.settings.tokenize import TokenizerName


class ExportSettings(Settings):
    """What `herd export` converts."""

    checkpoint: Place
    """Checkpoint folder or URL, or that of a run, whose newest whole checkpoint is taken."""
    output: LocalPlace
    """New folder in the Hugging Face layout."""


class ImportSettings(Settings):
    """What `herd import` converts."""

    model: LocalPlace
    """Folder in the Hugging Face layout: config.json and safetensors or .bin weights."""
    output: Place
    """New run folder or URL, whose one checkpoint evaluate, generate and serve take."""
    tokenizer: TokenizerName = "gpt2"
    """The model's tokenizer: "gpt2", "bytes", "music", or the path of a tiktoken ranks file."""
