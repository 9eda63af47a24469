"""Documentation strings of the standard library, body to first line: a table of ROUGE on held-out ones.

    pip install rouge-score
    python -m benchmarks.applications.summarize [--checkpoint runs/quickstart/model] [--steps 200]

A summary is the first line of a documentation string, its article what follows, cut at 300 characters. Trained on 1%,
10% and all of the examples, from scratch and from the checkpoint, beside the lead: the article's own first sentence.
What the checkpoint is worth is the distance of the two columns. A model that has read the standard library has read
the held-out strings too, once each among the rest; that favours it.
"""

import ast
import re
import time
import warnings
from collections.abc import Iterator, Sequence

from benchmarks.applications.finetuned import Pair, arguments, bench_of, split_by_hash, stdlib_files, table
from gpt_core.finetuning.templates import find_template

SHARES = (0.01, 0.1, 1.0)
_NUM_HELD_OUT = 200
_ARTICLE_CHARACTERS = 300
_NEW_TOKENS = 24
_METRICS = ("rouge1", "rouge2", "rougeL")


def main() -> None:
    """Fine-tune for every share of the examples and print the table."""
    bench = bench_of(arguments(__doc__, default_steps=200, default_rate=1e-3).parse_args())
    taught, held_out = split_by_hash(list(pairs()), 0.1)
    pretrained = bench.pretrained()
    prompts = [find_template("summarize").prompt(article) for article, _ in held_out]
    fits = bench.fits(pretrained, prompts, _NEW_TOKENS)
    held_out = [pair for pair, does_fit in zip(held_out, fits, strict=True) if does_fit][:_NUM_HELD_OUT]
    print(f"{len(taught)} examples to learn, {len(held_out)} held out", flush=True)
    starts = {"from scratch": bench.untrained(), "from the checkpoint": pretrained}
    rows = [["lead", "", *rouge([lead(article) for article, _ in held_out], held_out), ""]]
    prompts = [find_template("summarize").prompt(article) for article, _ in held_out]
    for share in SHARES:
        part = taught[: round(share * len(taught))]
        for name, start in starts.items():
            started = time.monotonic()
            settings = {"batch_sequences": min(16, 1 << (len(part) // 8).bit_length() >> 1)}
            settings |= {"micro_batch_sequences": min(4, settings["batch_sequences"])}
            done = bench.finetune(
                f"{name}-{share}".replace(" ", "-"), start, part,
                task="summarize", validation_fraction=0.1, train=settings,
            )  # fmt: skip
            texts = bench.complete(done.checkpoint, prompts, _NEW_TOKENS, stop=("\n",))
            told = f"{done.validation_loss:.2f} after {done.step} steps, {time.monotonic() - started:.0f} s"
            rows.append([name, f"{share:.0%} ({len(part)})", *rouge(texts, held_out), told])
            print(rows[-1], flush=True)
    print(table(["", "examples", *(f"{name} F1" for name in _METRICS), "held-out loss"], rows))


def rouge(texts: Sequence[str], held_out: Sequence[Pair]) -> list[str]:
    """Return the mean F1 of each metric in percent."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(_METRICS, use_stemmer=True)
    scores = [scorer.score(summary, text) for text, (_, summary) in zip(texts, held_out, strict=True)]
    return [f"{100 * sum(score[name].fmeasure for score in scores) / len(scores):.1f}" for name in _METRICS]


def lead(article: str) -> str:
    """Return the first sentence of an article."""
    return re.split(r"(?<=[.!?])\s", article, maxsplit=1)[0]


def pairs() -> Iterator[Pair]:
    """Yield (article, summary) of every documentation string that has both."""
    for file in stdlib_files():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(file.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                summary, _, article = (ast.get_docstring(node) or "").partition("\n")
                article = " ".join(article.split())[:_ARTICLE_CHARACTERS]
                if len(summary.split()) > 2 and len(article.split()) > 8:
                    yield article, summary.strip()


if __name__ == "__main__":
    main()
