"""A description to a function, by examples in the prompt and by fine-tuning: exact matches and what parses.

    python -m benchmarks.applications.complete_code [--checkpoint runs/quickstart/model] [--steps 600]

The examples are small functions of the standard library: the first line of the documentation string, and the function
without it. The checkpoint, which has read the library and with it the held-out functions, is asked with 0, 1 and 4
examples before the question; beside it the same checkpoint after fine-tuning on the other functions, asked with none.
"""

import ast
import time
import warnings
from collections.abc import Iterator

from benchmarks.applications.finetuned import Pair, arguments, bench_of, split_by_hash, stdlib_files, table
from gpt_core.finetuning.templates import few_shot_prompt, find_template, stop_strings
from gpt_core.tokens.tokenizer import load_tokenizer

SHOTS = (0, 1, 4)
_NUM_HELD_OUT = 150
_MOST_TOKENS = 26
"""Of GPT-2's, description and code together: four such examples and a question fit into a context of 256."""
_NEW_TOKENS = 24


def main() -> None:
    """Ask with k examples, fine-tune, ask again, and print the table."""
    bench = bench_of(arguments(__doc__, default_steps=600, default_rate=1e-3).parse_args())
    taught, held_out = split_by_hash(list(pairs()), 0.15)
    held_out = held_out[:_NUM_HELD_OUT]
    print(f"{len(taught)} functions to learn, {len(held_out)} held out", flush=True)
    template, pretrained = find_template("completion"), bench.pretrained()
    rows = []
    for k in SHOTS:
        prompts = [few_shot_prompt(template, taught[place * k : place * k + k], ask) for place, (ask, _) in
                   enumerate(held_out)]  # fmt: skip
        try:
            texts = bench.complete(pretrained, prompts, _NEW_TOKENS, stop=stop_strings(template))
        except ValueError as error:
            rows.append(["checkpoint", str(k), "", "", str(error)])
            continue
        rows.append(["checkpoint", str(k), *scores(texts, held_out), repr(texts[0])])
    started = time.monotonic()
    done = bench.finetune("finetuned", pretrained, taught, task="completion", train={"context_tokens": 64})
    texts = bench.complete(done.checkpoint, [template.prompt(ask) for ask, _ in held_out], _NEW_TOKENS)
    rows.append([f"fine-tuned, {done.step} steps", "0", *scores(texts, held_out), repr(texts[0])])
    print(f"fine-tuned in {time.monotonic() - started:.0f} s, held-out loss {done.validation_loss:.2f}")
    print(table(["model", "examples in the prompt", "exact", "parses", "first completion"], rows))


def scores(texts: list[str], held_out: list[Pair]) -> list[str]:
    """Return the shares of completions that are the function, and that are Python and not nothing."""
    exact = sum(text == code for text, (_, code) in zip(texts, held_out, strict=True))
    return [f"{exact / len(texts):.1%}", f"{sum(map(parses, texts)) / len(texts):.1%}"]


def parses(text: str) -> bool:
    """Return whether a text is Python with something to it: one statement or more."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bool(ast.parse(text).body)
    except (SyntaxError, ValueError):
        return False


def pairs() -> Iterator[Pair]:
    """Yield (first line of the documentation, code without it) of small functions."""
    tokenizer = load_tokenizer("gpt2")
    for file in stdlib_files():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(file.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and len(node.body) > 1 and (told := ast.get_docstring(node)):
                node.body, node.decorator_list = node.body[1:], []
                summary, code = told.partition("\n")[0].strip(), ast.unparse(node)
                if summary and len(tokenizer.encode(f"{summary} {code}")) <= _MOST_TOKENS:
                    yield summary, code


if __name__ == "__main__":
    main()
