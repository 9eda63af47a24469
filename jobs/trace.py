"""Trace a training step's row to its documents and source bytes, or a document to the steps that read it."""

from typing import TYPE_CHECKING, Any

from gpt_core.errors import SettingsError
from gpt_core.settings import TraceSettings
from jobs import cli

if TYPE_CHECKING:
    from gpt_core.corpus.corpus import Corpus
    from gpt_core.corpus.order import Order

SETTINGS = TraceSettings
EXAMPLE = "--corpus runs/mine/corpus --run runs/mine/model --step 7 --row 0"


def main(settings: TraceSettings) -> str:
    """Return the answer as a table for people."""
    from gpt_core.finetuning.supervised_corpus import open_corpus

    corpus = open_corpus(settings.corpus, "train")
    order = corpus.order(**_order_settings(settings))
    if settings.document is not None:
        return _document_table(settings, corpus, order)
    return _cell_table(settings, corpus, order)


def _order_settings(settings: TraceSettings) -> dict[str, Any]:
    """Return what decides the order, by the names of ``Corpus.order``: the run's, or the settings' own."""
    if settings.run is None:
        return {
            "seed": settings.seed,
            "window_tokens": settings.context_tokens,
            "sequences_per_step": settings.batch_sequences,
            "block_windows": settings.block_windows,
        }
    from gpt_core.training.checkpoint import list_paths, read_description

    paths = list_paths(settings.run)
    if not paths:
        raise SettingsError("run", f"no checkpoint in {settings.run}", "the folder of a training run", "name another")
    plan = read_description(paths[-1]).settings
    return {
        "seed": plan["seed"],
        "window_tokens": plan["window_tokens"],
        "sequences_per_step": plan["batch_sequences"],
        "block_windows": plan.get("block_windows"),
    }


def _cell_table(settings: TraceSettings, corpus: "Corpus", order: "Order") -> str:
    from gpt_core.corpus.trace import trace_cell
    from gpt_core.documents.source_files import counts_rows

    assert settings.step is not None
    assert settings.row is not None
    if settings.row >= order.sequences_per_step:
        raise SettingsError("row", str(settings.row), f"0 to {order.sequences_per_step - 1}", "name a row of the step")
    found = trace_cell(corpus, order, settings.step - 1, settings.row)
    lines = [
        f"step {settings.step}, row {found.row}: source {found.source}, epoch {found.epoch}, window {found.window}"
    ]
    lines += [
        f"  {part.id}  {found.paths.get(part.file, part.file)} "
        f"{'rows' if counts_rows(part.file) else 'bytes'} {part.start}..{part.end}, "
        f"tokens {part.first_token}..{part.first_token + part.num_tokens} of {part.document_tokens}"
        for part in found.parts
    ]
    return "\n".join(lines)


def _document_table(settings: TraceSettings, corpus: "Corpus", order: "Order") -> str:
    from gpt_core.corpus.trace import trace_document

    assert settings.document is not None
    readings = trace_document(corpus, order, settings.document, settings.epoch)
    lines = [f"{settings.document} is read by {len(readings)} row(s) of epoch {settings.epoch}"]
    lines += [
        f"  step {reading.step + 1}, row {reading.row}: "
        f"tokens {reading.first_token}..{reading.first_token + reading.num_tokens}"
        for reading in readings
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run_module(__file__)
