"""Scores ranges of task rows and text windows, and writes one result a row; no Ray, runs in any process.

The file of a range, items/TASK/NNNNNNNN.jsonl, has one line a row of the task:

    several options   file line choice choice_by_character choice_by_token gold log_likelihoods num_tokens
    one option        file line is_greedy log_likelihood num_tokens
    text              file start window num_tokens log_likelihood    (start: where the document begins in its file)

Log-likelihoods are natural. What a range scores depends on the range alone, not on the worker.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gpt_core.digests import xxh3_128_hex
from gpt_core.documents.source_files import SourceFile
from gpt_core.evaluation.sequence_scorer import Ending, Score, SequenceScorer
from gpt_core.evaluation.task_items import Item, tokens_of
from gpt_core.evaluation.task_plan import ItemRange, SetAside, Task, TextRange, WindowReader, read_items, sliding_of
from gpt_core.storage import Storage
from gpt_core.tokens.tokenizer import Tokenizer

Numbers = dict[str, float]


@dataclass(frozen=True, slots=True)
class Tasks:
    """What the workers of one job share: the tasks, each with its files, and where results go."""

    folder: str
    tasks: tuple[Task, ...]
    files: tuple[tuple[SourceFile, ...], ...]
    context_tokens: int


class TaskScorer:
    """Scores ranges; one a worker."""

    def __init__(self, job: Tasks, scorer: SequenceScorer, tokenizer: Tokenizer, token_bytes: np.ndarray) -> None:
        self._job, self._scorer, self._tokenizer, self._token_bytes = job, scorer, tokenizer, token_bytes
        self._storage = Storage.of(job.folder)
        self._read_windows = WindowReader(tokenizer)

    def __call__(self, index: int, cut: ItemRange | TextRange) -> dict[str, Any]:
        """Write the range's file atomically and return its row: task, sums, path, digest and what was set aside."""
        task, files = self._job.tasks[cut.task], self._job.files[cut.task]
        refused: list[SetAside] = []
        if isinstance(cut, TextRange):
            rows, sums = self._text(task, files, cut)
        else:
            rows, sums = self._items(task, files, cut, refused)
        path = f"items/{task.name}/{index:08d}.jsonl"
        data = b"".join(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n" for row in rows)
        self._storage.write_atomically(self._storage.join(path), lambda file: file.write(data))
        return {
            "task": task.name,
            "path": path,
            "num_rows": len(rows),
            "num_tokens": sum(_total(row["num_tokens"]) for row in rows),
            "xxh3_128": xxh3_128_hex(data),
            "sums": sums,
            "refused": [asdict(row) for row in refused],
        }

    def _text(self, task: Task, files: tuple[SourceFile, ...], cut: TextRange) -> tuple[list[dict[str, Any]], Numbers]:
        sliding = sliding_of(task, self._job.context_tokens)
        found = list(self._read_windows(files, cut, sliding))
        endings = [Ending(*window) for _, _, window in found]
        rows = [
            {
                "file": document.file,
                "start": document.start,
                "window": index,
                "num_tokens": ending.num_targets,
                "log_likelihood": score.log_likelihood,
            }
            for (document, index, _), ending, score in zip(found, endings, self._scorer(endings), strict=True)
        ]
        num_bytes = sum(int(self._token_bytes[ending.ids[-ending.num_targets :]].sum()) for ending in endings)
        sums = {"loss": -sum(row["log_likelihood"] for row in rows), "num_bytes": float(num_bytes)}
        return rows, sums | {"num_tokens": float(sum(row["num_tokens"] for row in rows))}

    def _items(
        self, task: Task, files: tuple[SourceFile, ...], cut: ItemRange, refused: list[SetAside]
    ) -> tuple[list[dict[str, Any]], Numbers]:
        kept: list[tuple[int, Item, list[Ending]]] = []
        for line, item in read_items(task, files, cut):
            endings = [Ending(*tokens_of(option, self._tokenizer)) for option in item.options]
            if reason := self._fault(endings):
                refused.append(SetAside(task.name, files[cut.file].name, line, reason))
            else:
                kept.append((line, item, endings))
        scores = iter(self._scorer([ending for _, _, endings in kept for ending in endings]))
        rows, sums = [], []
        for line, item, endings in kept:
            row, numbers = scored(item, endings, [next(scores) for _ in endings])
            rows.append({"file": files[cut.file].name, "line": line, **row})
            sums.append(numbers)
        return rows, added(sums)

    def _fault(self, endings: list[Ending]) -> str | None:
        lengths = [ending.num_targets for ending in endings]
        if min(lengths) < 1:
            return "found a continuation that the tokenizer merges into its context; expected tokens of its own"
        if max(lengths) > self._job.context_tokens:
            return f"found a continuation of {max(lengths)} tokens; expected at most {self._job.context_tokens}"
        return None


def scored(item: Item, endings: Sequence[Ending], scores: Sequence[Score]) -> tuple[dict[str, Any], Numbers]:
    """Return an item's line of results, and what it adds to the task's sums."""
    lengths = [ending.num_targets for ending in endings]
    if item.gold is None:
        [score] = scores
        row = {"is_greedy": score.is_greedy, "log_likelihood": score.log_likelihood, "num_tokens": lengths[0]}
        return row, {"num_open": 1, "greedy": float(score.is_greedy), "open_loss": -score.log_likelihood}
    sums = np.array([score.log_likelihood for score in scores])
    characters = np.array([option.num_characters for option in item.options])
    chosen = {
        "choice": int(sums.argmax()),
        "choice_by_character": int((sums / characters).argmax()),
        "choice_by_token": int((sums / np.array(lengths)).argmax()),
    }
    row = {**chosen, "gold": item.gold, "log_likelihoods": sums.tolist(), "num_tokens": lengths}
    return row, {"num_choices": 1} | {name: float(choice == item.gold) for name, choice in chosen.items()}


def added(rows: Iterable[Numbers]) -> Numbers:
    """Return the sum of each number, in the order of the rows."""
    total: Numbers = {}
    for row in rows:
        for name, value in row.items():
            total[name] = total.get(name, 0.0) + value
    return total


def metrics_of(sums: Numbers, num_words: int) -> dict[str, float]:
    """Return a task's metrics from its sums; what each means stands in docs/evaluation.md."""
    metrics: dict[str, float] = {}
    if choices := sums.get("num_choices"):
        metrics |= _share("acc", sums["choice"], choices) | _share("acc_norm", sums["choice_by_character"], choices)
        metrics |= {"acc_by_token": sums["choice_by_token"] / choices, "num_items": choices}
    if answers := sums.get("num_open"):
        prefix = "answer_" if choices else ""
        metrics |= _share(f"{prefix}acc", sums["greedy"], answers)
        metrics |= {f"{prefix}perplexity": exponential(sums["open_loss"] / answers), f"{prefix}num_items": answers}
    if tokens := sums.get("num_tokens"):
        loss = sums["loss"]
        metrics |= {
            "loss": loss / tokens,
            "perplexity": exponential(loss / tokens),
            "word_perplexity": exponential(loss / max(num_words, 1)),
            "byte_perplexity": exponential(loss / sums["num_bytes"]),
            "bits_per_byte": loss / sums["num_bytes"] / math.log(2),
            "num_tokens": tokens,
            "num_words": float(num_words),
            "num_bytes": sums["num_bytes"],
        }
    return metrics


def _share(name: str, correct: float, count: float) -> dict[str, float]:
    """Return a share and its standard error, that of the mean of ``count`` zeros and ones."""
    share = correct / count
    return {name: share, f"{name}_stderr": math.sqrt(share * (1 - share) / max(count - 1, 1))}


def exponential(exponent: float) -> float:
    """Return e to the exponent, or to 700: JSON has no infinity, and beyond that no number means anything."""
    return math.exp(min(exponent, 700.0))


def _total(count: int | list[int]) -> int:
    return count if isinstance(count, int) else sum(count)
