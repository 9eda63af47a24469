"""Learn a byte-level BPE vocabulary from text, for `--tokenizer.name FILE` of the other jobs."""

from collections.abc import Iterator

from gpt_core.settings import TrainTokenizerSettings
from jobs import cli

SETTINGS = TrainTokenizerSettings
EXAMPLE = "--input 'texts/*.txt' --output runs/mine/vocabulary.tiktoken"


def main(settings: TrainTokenizerSettings) -> str:
    """Train, write the ranks file atomically and return the summary for people."""
    from cluster.stages import check_new
    from gpt_core.tokens.tokenizer import load_tokenizer
    from gpt_core.tokens.train_tokenizer import train_ranks, write_ranks

    check_new(settings.output, "file")
    ranks = train_ranks(_texts(settings), settings.vocabulary_size)
    write_ranks(settings.output, ranks)
    tokenizer = load_tokenizer(settings.output)
    return f"{settings.output}: {tokenizer.vocabulary_size:,} ids, end of text included\ndigest {tokenizer.digest}"


def _texts(settings: TrainTokenizerSettings) -> Iterator[str]:
    """Yield the input's documents in order, up to the bytes allowed; those that cannot be read are left out."""
    from gpt_core.documents.document_batch import ReadingOptions
    from gpt_core.documents.reader import read_batches
    from gpt_core.documents.shard_plan import plan_shards
    from gpt_core.documents.source_files import SourceSpec, list_files

    spec = SourceSpec(
        "text", settings.input, settings.exclude, text_field=settings.text_field, separator=settings.separator
    )
    num_bytes = 0
    for plan in plan_shards(list_files(spec), 64 << 20):
        for batch in read_batches(plan, ReadingOptions(settings.max_document_bytes)):
            yield from batch.texts
            num_bytes += batch.num_bytes
            if settings.max_text_bytes is not None and num_bytes >= settings.max_text_bytes:
                return


if __name__ == "__main__":
    cli.run_module(__file__)
