"""Settings of the job that serves a checkpoint over HTTP."""

from typing import Annotated

from pydantic import Field

from gpt_core.settings.base import ClusterSettings, Count, Place, Positive, Settings
from gpt_core.settings.generate import EngineSettings


class ServeSettings(Settings):
    """What `herd serve` serves."""

    checkpoint: Place
    """Folder or URL of a checkpoint, or of a run whose newest whole one is taken; or MLflow's models:/NAME@ALIAS or
    models:/NAME/VERSION."""
    host: str = "127.0.0.1"
    """Address to listen on; any but loopback needs an API key in HERD_API_KEY."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """TCP port to listen on."""
    model_name: str = "gpt-herd"
    """Name the service gives the model."""
    max_queued_completions: Count = 256
    """Completions (prompts times n) that wait for a slot before new requests are turned away with status 429."""
    max_completions: Count = 128
    """Completions (prompts times n) of one request at most."""
    max_request_bytes: Count = 4_194_304
    """Bytes of one request's body at most."""
    drain_seconds: Positive = 20.0
    """Seconds that requests in progress get to finish when the service is stopped."""
    page: bool = True
    """Serve the page at / and POST /v1/inspect, which show what the model computes; false keeps its numbers in."""
    engine: EngineSettings = EngineSettings()


class ServeJob(ServeSettings):
    """Settings of `herd serve`."""

    cluster: ClusterSettings = ClusterSettings()
