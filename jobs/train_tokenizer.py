"""Learn a byte-level BPE vocabulary from text, for `--tokenizer.name FILE` of the other jobs."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gpt_core.counted import counted
from gpt_core.errors import StaleOutputError
from gpt_core.settings import TrainTokenizerSettings
from jobs import cli

if TYPE_CHECKING:
    from gpt_core.documents.document_batch import Reject

SETTINGS = TrainTokenizerSettings
EXAMPLE = "--input 'texts/*.txt' --output runs/mine/vocabulary.tiktoken"


def main(settings: TrainTokenizerSettings) -> str:
    """Train, write the ranks file atomically and return the summary for people."""
    from cluster.stages import check_new
    from gpt_core.documents.source_files import place_in
    from gpt_core.tokens.tokenizer import load_tokenizer
    from gpt_core.tokens.train_tokenizer import train_ranks, write_ranks

    check_new(settings.output, "file")
    texts = _Texts(settings)
    ranks = train_ranks(texts, settings.vocabulary_size)
    _check_same(settings.output, ranks)
    write_ranks(settings.output, ranks)
    tokenizer = load_tokenizer(settings.output)
    lines = [f"{settings.output}: {tokenizer.vocabulary_size:,} ids, end of text included"]
    if texts.first_reject is not None:
        place = place_in(texts.first_reject.file, texts.first_reject.start)
        left_out = counted(texts.num_rejects, "document")
        lines.append(f"left out {left_out}; the first, {place}: {texts.first_reject.reason}")
    return "\n".join([*lines, f"digest {tokenizer.digest}"])


def _check_same(output: str, ranks: dict[bytes, int]) -> None:
    """Refuse to write over another vocabulary: a corpus made with it may want it still."""
    from gpt_core.storage import Storage
    from gpt_core.tokens.vocabulary import read_vocabulary

    if Storage.of(output).exists(output) and (found := read_vocabulary(output)[0]) != ranks:
        sizes = (f"{len(found) + 1:,} ids of other text or settings", f"those {len(ranks) + 1:,} ids that were learned")
        raise StaleOutputError(f"{output}: vocabulary", *sizes, "choose another file, or delete it")


class _Texts:
    """The input's documents in order, up to the bytes allowed; those that cannot be read are counted."""

    def __init__(self, settings: TrainTokenizerSettings) -> None:
        self._settings = settings
        self.num_rejects = 0
        self.first_reject: Reject | None = None

    def __iter__(self) -> Iterator[str]:
        from gpt_core.documents.document_batch import ReadingOptions
        from gpt_core.documents.reader import read_batches
        from gpt_core.documents.shard_plan import plan_shards
        from gpt_core.documents.source_files import SourceSpec, find_files

        settings, num_bytes = self._settings, 0
        spec = SourceSpec(
            "text", settings.input, settings.exclude, text_field=settings.text_field, separator=settings.separator
        )
        for plan in plan_shards(find_files(spec).files, 64 << 20):
            for batch in read_batches(plan, ReadingOptions(settings.max_document_bytes)):
                if batch.rejects:
                    self.first_reject = self.first_reject or batch.rejects[0]
                    self.num_rejects += len(batch.rejects)
                yield from batch.texts
                num_bytes += batch.num_bytes
                if settings.max_text_bytes is not None and num_bytes >= settings.max_text_bytes:
                    return


if __name__ == "__main__":
    cli.run_module(__file__)
