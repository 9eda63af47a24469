"""Numbers with their nouns, for people: one file, two files."""


def counted(number: int, noun: str) -> str:
    """Return "1 file" or "2,000 files"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
