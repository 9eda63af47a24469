"""Serve a checkpoint over HTTP: OpenAI's completions API, on this machine only unless an API key is set."""

from gpt_core.settings import ServeJob
from jobs import cli

SETTINGS = ServeJob
EXAMPLE = "--checkpoint runs/mine/model"


def main(settings: ServeJob) -> str:
    """Serve until stopped and return the summary for people."""
    from cluster.registering import with_local_checkpoint
    from cluster.serving import service

    return service.serve_until_stopped(with_local_checkpoint(settings))


if __name__ == "__main__":
    cli.run_module(__file__)
