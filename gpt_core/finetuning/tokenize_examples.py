"""The worker that turns one plan of example files into one shard of packs; no Ray, runs in any process.

What it writes depends on the plan's input and the options alone.
"""

import dataclasses
from contextlib import ExitStack
from typing import Any

from gpt_core.corpus.rejects import RejectWriter
from gpt_core.corpus.shards import ShardWriter
from gpt_core.corpus.tokenize_shard import held_out_documents
from gpt_core.documents.document_batch import Reject
from gpt_core.documents.shard_plan import ShardPlan
from gpt_core.finetuning.examples import Example, Fields, read_examples
from gpt_core.finetuning.packing import PackWriter
from gpt_core.finetuning.templates import Template
from gpt_core.storage import Storage
from gpt_core.tokens.tokenizer import Ids, load_tokenizer

_SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True, slots=True)
class ExampleOptions:
    """What decides a shard's bytes, besides its plan, and where it goes.

    Args:
        output: Folder or URL of the corpus.
        tokenizer: Name or ranks file, special tokens of the template included.
        template: How examples become tokens.
        fields: Where source and target stand in a record.
        pack_tokens: Tokens of a pack; a longer example is rejected.
        validation_fraction: Share of examples held out by a hash of their source, so that equal sources fall on
            one side.
        split_seed: Key of that hash.
    """

    output: str
    tokenizer: str
    template: Template
    fields: Fields
    pack_tokens: int
    validation_fraction: float = 0.0
    split_seed: int = 0


class ExampleTokenizer:
    """Reads, tokenizes, packs and commits shards, one after the other."""

    def __init__(self, options: ExampleOptions) -> None:
        self._options = options
        self._tokenizer = load_tokenizer(options.tokenizer)
        self._storage = Storage.of(options.output)

    def __call__(self, plan: ShardPlan) -> dict[str, Any]:
        """Write the plan's packs and rejects, each file atomically, and return one row about them.

        The row is JSON: index, source, num_documents_in = num_documents_kept + num_rejected, num_tokens, and a
        list of files, each with split ("train", "validation" or "rejects"), path in the corpus and stats.

        Raises:
            CorpusError: An input file has gone or changed.
        """
        paths = {split: f"{split}/{plan.index:08}.arrow" for split in _SPLITS}
        paths["rejects"] = f"rejects/{plan.index:08}.jsonl"
        with ExitStack() as stack:
            packs = {split: stack.enter_context(self._pack_writer(paths[split])) for split in _SPLITS}
            rejects = stack.enter_context(RejectWriter(self._storage.join(paths["rejects"])))
            for found in read_examples(plan, self._options.fields):
                reject = found if isinstance(found, Reject) else self._add(packs, found)
                if reject is not None:
                    rejects.append(plan.source, [reject])
            stats = {split: writer.close() for split, writer in {**packs, "rejects": rejects}.items()}
        counts = {split: found.num_documents for split, found in stats.items()}
        return {
            "index": plan.index,
            "source": plan.source,
            "num_documents_in": sum(counts.values()),
            "num_documents_kept": counts["train"] + counts["validation"],
            "num_rejected": counts["rejects"],
            "num_tokens": sum(found.num_tokens for found in stats.values()),
            "files": [
                {"split": split, "path": paths[split], "stats": dataclasses.asdict(found)}
                for split, found in stats.items()
                if found.num_documents
            ],
        }

    def _pack_writer(self, path: str) -> PackWriter:
        writer = ShardWriter(self._storage.join(path), self._tokenizer.dtype, with_prompts=True)
        return PackWriter(writer, self._options.pack_tokens, self._tokenizer.end_of_text)

    def _add(self, packs: dict[str, PackWriter], example: Example) -> Reject | None:
        """Pack an example, or return why it cannot be."""
        prompt, target = self._options.template.encode(self._tokenizer, example.source, example.target)
        if reason := _too_long(prompt, target, self._options.pack_tokens):
            return Reject(example.file, None, example.start, reason)
        held_out = held_out_documents([example.source], self._options.validation_fraction, self._options.split_seed)
        packs[_SPLITS[int(held_out[0])]].add(prompt, target, (example.file, example.start, example.end))
        return None


def _too_long(prompt: Ids, target: Ids, pack_tokens: int) -> str | None:
    num_tokens = len(prompt) + len(target) + 1
    if num_tokens <= pack_tokens:
        return None
    parts = f"{len(prompt)} of prompt, {len(target)} of target, end of text"
    return f"found an example of {num_tokens} tokens ({parts}); expected at most the context's {pack_tokens}"
