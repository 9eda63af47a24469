"""Addresses can hold a user name and a password; nothing that is written or printed may."""

import re

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


def without_credentials(text: str) -> str:
    """Return the text with the user names and passwords of its addresses left out."""
    return _CREDENTIALS.sub("", text)
