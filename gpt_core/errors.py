"""The errors a user can cause or meet, each a sentence that says what to do next.

Every class takes the same four positional arguments and hands them all to
``super().__init__``: an exception raised in a Ray worker crosses to the driver by
pickle, and one with keyword-only arguments would arrive without type or message.
"""

import errno


class HerdError(Exception):
    """An error with a place, a finding, an expectation and a remedy.

    Args:
        where: The file, line, setting or object the error is about.
        found: What is there.
        expected: What should be there, limit included.
        remedy: What the user can do about it.
    """

    exit_code = 1

    def __init__(self, where: str, found: str, expected: str, remedy: str) -> None:
        super().__init__(where, found, expected, remedy)
        self.where = where
        self.found = found
        self.expected = expected
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.where}: found {self.found}; expected {self.expected}; {self.remedy}"


class UserError(HerdError):
    """A mistake the user can mend; printed without a traceback, exit code 2."""

    exit_code = 2


class SettingsError(UserError):
    """One mistake in a settings file, a flag or a settings object."""


class CorpusError(UserError):
    """Input text or a corpus folder that cannot be used as it is."""


class CheckpointError(UserError):
    """A checkpoint that is damaged, of another shape, or of another run."""


class ResourceError(UserError):
    """CPUs, GPUs, memory, disk or an address that the job needs and does not get."""


class StaleOutputError(UserError):
    """An output folder made with other settings or from other input."""


class RunFailedError(HerdError):
    """A job that started and could not finish; exit code 1."""


def full_disk(error: BaseException) -> ResourceError | None:
    """Return what a user is told of a full disk or quota, None of any other error."""
    if not isinstance(error, OSError) or error.errno not in {errno.ENOSPC, errno.EDQUOT}:
        return None
    place = str(error.filename or "the job's files")
    return ResourceError(place, str(error.strerror), "a place with room to write", "free space and run it again")
