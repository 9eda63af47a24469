"""English to French, from message catalogues and names: a table of BLEU on held-out strings.

    pip install django babel sacrebleu
    python -m benchmarks.applications.translate [--checkpoint runs/quickstart/model] [--steps 1500]

The pairs are Django's own French messages and the names of languages, countries, scripts, currencies and variants
that Babel carries from CLDR, each English string once; a tenth, by a hash, is held out. Copying the source is the
score to beat: names are often the same in both languages. BLEU is sacreBLEU's, with the signature it asks to be
quoted.
"""

import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.applications.finetuned import Pair, bench_of, split_by_hash, table
from gpt_core.finetuning.templates import find_template

_NAMES = ("languages", "territories", "scripts", "currencies", "variants")
_LONGEST_CHARACTERS = 120


def main() -> None:
    """Fine-tune from scratch and from the checkpoint and print the table."""
    import sacrebleu

    bench = bench_of(__doc__, default_steps=1500, default_rate=3e-3)
    taught, held_out = split_by_hash([*catalogue_pairs(), *name_pairs()], 0.1)
    sources, references = [source for source, _ in held_out], [target for _, target in held_out]
    print(f"{len(taught)} pairs to learn, {len(held_out)} held out", flush=True)
    pretrained = bench.pretrained()
    answers = {"copying the source": (sources, "")}
    for name, start in (("from scratch", bench.untrained()), ("from the checkpoint", pretrained)):
        started = time.monotonic()
        done = bench.finetune(name.replace(" ", "-"), start, taught, task="translate", train={"context_tokens": 64})
        prompts = [find_template("translate").prompt(source) for source in sources]
        told = f"{done.validation_loss:.3f} after {done.step} steps, {time.monotonic() - started:.0f} s"
        answers[name] = (bench.complete(done.checkpoint, prompts, 40), told)
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
    rows = []
    for name, (texts, told) in answers.items():
        exact = sum(text == reference for text, reference in zip(texts, references, strict=True))
        scores = [bleu.corpus_score(texts, [references]).score, chrf.corpus_score(texts, [references]).score]
        rows.append([name, *(f"{score:.1f}" for score in scores), f"{exact / len(references):.0%}", told])
    print(table(["", "BLEU", "chrF", "exactly right", "held-out loss"], rows))
    print(bleu.get_signature(), chrf.get_signature(), sep="\n")
    for source, text, reference in list(zip(sources, answers["from the checkpoint"][0], references, strict=True))[:8]:
        print(f"  {source!r} -> {text!r} ({reference!r})")


def catalogue_pairs() -> Iterator[Pair]:
    """Yield Django's messages and their French, those without plurals."""
    import django
    from babel.messages.mofile import read_mo

    for path in sorted(Path(django.__file__).parent.rglob("locale/fr/LC_MESSAGES/*.mo")):
        with path.open("rb") as file:
            for message in read_mo(file):
                if isinstance(message.id, str) and isinstance(message.string, str):
                    yield from _usable(message.id, message.string)


def name_pairs() -> Iterator[Pair]:
    """Yield the English and French names of CLDR."""
    from babel import Locale

    english, french = Locale("en"), Locale("fr")
    for kind in _NAMES:
        names = getattr(french, kind)
        for code, name in getattr(english, kind).items():
            if code in names:
                yield from _usable(name, names[code])


def _usable(source: str, target: str) -> Iterator[Pair]:
    source, target = source.strip(), target.strip()
    if source and target and max(len(source), len(target)) <= _LONGEST_CHARACTERS and "\n" not in source + target:
        yield source, target


if __name__ == "__main__":
    main()
