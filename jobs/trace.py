"""Trace a training step's row to its documents and source bytes, or a document to the steps that read it."""

import math
from typing import TYPE_CHECKING, Any

from gpt_core.counted import counted
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
    plan = _plan_of(settings.run) if settings.run else None
    order = corpus.order(**_order_settings(settings, plan))
    last_step = plan["num_steps"] if plan else math.inf
    if settings.document is not None:
        return _document_table(settings, corpus, order, last_step)
    return _cell_table(settings, corpus, order, last_step)


def _order_settings(settings: TraceSettings, plan: dict[str, Any] | None) -> dict[str, Any]:
    """Return what decides the order, by the names of ``Corpus.order``: the run's, or the settings' own."""
    if plan is None:
        return {
            "seed": settings.seed,
            "window_tokens": settings.context_tokens,
            "sequences_per_step": settings.batch_sequences,
            "block_windows": settings.block_windows,
        }
    return {
        "seed": plan["seed"],
        "window_tokens": plan["window_tokens"],
        "sequences_per_step": plan["batch_sequences"],
        "block_windows": plan.get("block_windows"),
    }


def _plan_of(run: str) -> dict[str, Any]:
    from gpt_core.training.checkpoint import list_paths, read_description

    paths = list_paths(run)
    if not paths:
        raise SettingsError("run", f"no checkpoint in {run}", "the folder of a training run", "name another")
    return read_description(paths[-1]).settings


def _cell_table(settings: TraceSettings, corpus: "Corpus", order: "Order", last_step: float) -> str:
    from gpt_core.corpus.trace import trace_cell
    from gpt_core.documents.source_files import counts_rows

    assert settings.step is not None
    assert settings.row is not None
    if settings.row >= order.sequences_per_step:
        raise SettingsError("row", str(settings.row), f"0 to {order.sequences_per_step - 1}", "name a row of the step")
    found = trace_cell(corpus, order, settings.step - 1, settings.row)
    head = f"step {settings.step}, row {found.row}: source {found.source}, epoch {found.epoch}, window {found.window}"
    if settings.step > last_step:
        head += f"; the run ends at step {last_step}, a longer one would read"
    lines = [head]
    lines += [
        f"  {part.id}  {found.paths.get(part.file, part.file)} "
        f"{'rows' if counts_rows(part.file) else 'bytes'} {part.start}..{part.end}, "
        f"tokens {part.first_token}..{part.first_token + part.num_tokens} of {part.document_tokens}"
        for part in found.parts
    ]
    return "\n".join(lines)


def _document_table(settings: TraceSettings, corpus: "Corpus", order: "Order", last_step: float) -> str:
    from gpt_core.corpus.trace import trace_document

    assert settings.document is not None
    readings = trace_document(corpus, order, settings.document, settings.epoch)
    lines = [f"{settings.document} is read by {counted(len(readings), 'row')} of epoch {settings.epoch}"]
    if num_beyond := sum(reading.step >= last_step for reading in readings):
        lines[0] += f"; the run ends at step {last_step}, before {num_beyond:,} of them"
    lines += [
        f"  step {reading.step + 1}, row {reading.row}: "
        f"tokens {reading.first_token}..{reading.first_token + reading.num_tokens}"
        for reading in readings
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run_module(__file__)
