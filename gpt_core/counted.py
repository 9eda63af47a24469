"""Numbers with their nouns and units, for people: one file, two files."""


def counted(number: int, noun: str) -> str:
    """Return "1 file" or "2,000 files"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def in_largest_unit(seconds: float) -> tuple[float, str]:
    """Return a time in days, hours, minutes or seconds, the largest of which it is one or more, and that unit."""
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return seconds / length, unit
    return seconds, "seconds"
