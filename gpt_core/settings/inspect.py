"""Settings of the job that writes the page for one prompt into one file."""

from gpt_core.settings.base import Index, Place, Settings


class InspectSettings(Settings):
    """Settings of `herd inspect`."""

    checkpoint: Place
    """Folder or URL of a checkpoint, or of a run whose newest whole one is taken; or MLflow's models:/NAME@ALIAS or
    models:/NAME/VERSION."""
    prompt: str
    """Text the model reads, 128 tokens at most; an empty one is the beginning of a document."""
    html: Place
    """HTML file to write; one that is there is replaced."""
    position: Index | None = None
    """Token whose way through the model is shown, from 0; null takes the last."""
