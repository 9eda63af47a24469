"""Check every digest of a corpus and name what is damaged."""

from gpt_core.counted import counted
from gpt_core.errors import CorpusError
from gpt_core.settings import VerifySettings
from jobs import cli

SETTINGS = VerifySettings
ARGUMENT = "folder"
EXAMPLE = "runs/mine/corpus"


def main(settings: VerifySettings) -> str:
    """Return what was found whole; CorpusError lists the damage."""
    from gpt_core.corpus import manifest
    from gpt_core.corpus.verify import verify

    damage = verify(settings.folder, settings.num_threads)
    if damage:
        print("\n".join(map(str, damage)))
        raise CorpusError(
            settings.folder,
            f"{counted(len(damage), 'damaged place')}, the first in {damage[0].file}",
            "every bit as it was written",
            "restore these files from a copy, or delete the corpus and tokenize again",
        )
    found = manifest.read(settings.folder)
    num_bytes = sum(split.num_bytes for split in found.splits.values())
    sizes = f"{counted(found.shards.num_rows, 'file')}, {num_bytes:,} bytes"
    return f"{settings.folder}: whole, {sizes}\nroot digest {found.root_digest}"


if __name__ == "__main__":
    cli.run_module(__file__)
