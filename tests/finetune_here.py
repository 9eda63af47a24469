"""Fine-tuning in this process, without Ray: what `herd finetune` is to make, whoever makes it."""

import random
from pathlib import Path

import orjson

from cluster import finetuning
from cluster.finetuning import Finetuned
from gpt_core.corpus import manifest
from gpt_core.finetuning.tokenize_examples import ExampleTokenizer
from gpt_core.settings import FinetuneSettings
from gpt_core.training.loop import train

_WORDS = {"red": "rouge", "blue": "bleu", "cat": "chat", "dog": "chien", "sun": "soleil", "moon": "lune"}


def write_examples(path: Path, count: int = 120) -> Path:
    """Write pairs of English words and French ones, numbered so that none comes twice, and three unusable lines."""
    draw = random.Random(0)
    lines = []
    for number in range(count):
        words = draw.choices(sorted(_WORDS), k=2)
        target = " ".join(_WORDS[word] for word in words)
        lines.append(orjson.dumps({"source": f"{' '.join(words)} {number}", "target": target}).decode())
    lines += ['{"source": "no target"}', "no json", orjson.dumps({"source": "y" * 99, "target": "too long"}).decode()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def finetune_here(settings: FinetuneSettings) -> Finetuned:
    """Pack, train and return the result, all in this process."""
    inputs = finetuning.resolve(settings)
    worker = ExampleTokenizer(finetuning.options_for(settings, inputs))
    rows = [{"index": plan.index, **worker(plan)} for plan in inputs.plans]
    manifest.write(inputs.plan.corpus, finetuning.contents_of(inputs, rows))
    train(inputs.plan)
    return finetuning.summary_of(inputs)
