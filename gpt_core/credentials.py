"""Addresses can hold a user name and a password; nothing that is written or printed may."""

import re

_ADDRESS = re.compile(r"([A-Za-z][\w+.-]*://)([^/\s]\S*)")


def without_credentials(text: str) -> str:
    """Return the text with the user names and passwords of its addresses left out.

    People write passwords with an @ and keys with a / unescaped, so whatever stands before the last @ counts as one.
    """
    return _ADDRESS.sub(_bare, text)


def _bare(address: re.Match[str]) -> str:
    scheme, rest = address.groups()
    authority = rest.partition("/")[0]
    port = authority.partition(":")[2]
    if "@" not in authority and (not port or (scheme.startswith("http") and port.isdecimal())):
        return address.group()  # an @ after this is one of the path
    return scheme + rest.rpartition("@")[2]
