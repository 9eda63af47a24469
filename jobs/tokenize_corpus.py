"""Tokenize text into a corpus of Arrow shards with a manifest."""

from gpt_core.counted import counted
from gpt_core.settings import TokenizeJob
from jobs import cli

SETTINGS = TokenizeJob
EXAMPLE = "--input 'texts/*.jsonl.zst' --output runs/mine/corpus --validation_fraction 0.01"


def main(settings: TokenizeJob) -> str:
    """Tokenize and return the summary for people."""
    from cluster import tokenizing
    from cluster.stages import run_alone
    from cluster.tracking import page_line

    corpus = run_alone("tokenize", tokenizing, settings)
    return (
        f"{settings.output}: {corpus.num_tokens:,} tokens of {counted(corpus.num_documents, 'document')} in "
        f"{counted(corpus.num_shards, 'shard')}, {corpus.num_rejected:,} set aside\nroot digest {corpus.root_digest}"
        f"{page_line(settings.tracking, settings.output)}"
    )


if __name__ == "__main__":
    cli.run_module(__file__)
