"""Write what a model computes for a prompt, attention and all, as a page in one HTML file."""

from gpt_core.settings import InspectSettings
from jobs import cli

SETTINGS = InspectSettings
EXAMPLE = "--checkpoint runs/mine/model --prompt 'The river' --html river.html"


def main(settings: InspectSettings) -> str:
    """Write the file and return the summary for people."""
    from cluster.registering import with_local_checkpoint
    from cluster.serving import inspecting
    from cluster.stages import check_new

    check_new(settings.html, "file")
    written = inspecting.write_page(with_local_checkpoint(settings))
    return (
        f"{settings.html}: {written.num_tokens} tokens, {written.num_bytes:,} bytes, complete in itself\n"
        f"after them the model expects {written.expected!r} with probability {written.probability:.3g}"
    )


if __name__ == "__main__":
    cli.run_module(__file__)
