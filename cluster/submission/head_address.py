"""The address of a running cluster's head, as users write it: ``http://HEAD:8265``."""

import os
import re
from urllib.parse import urlsplit

from gpt_core.errors import ResourceError

_DASHBOARD_PORT = 8265


def address_of(setting: str | None) -> str:
    """Return the head's HTTP address without a final slash.

    Without a setting, Ray's own RAY_API_SERVER_ADDRESS counts, then a RAY_ADDRESS that is an HTTP address.

    Raises:
        ResourceError: If there is none, or it is of another form; the remedy is the address to write.
    """
    around = (os.environ.get("RAY_API_SERVER_ADDRESS"), os.environ.get("RAY_ADDRESS"))
    setting = setting or next((value for value in around if value and value.startswith("http")), None)
    if not setting:
        raise ResourceError(
            "cluster.address",
            "none",
            "the HTTP address of a running Ray head",
            f"add --cluster.address http://HEAD:{_DASHBOARD_PORT}",
        )
    address = setting.rstrip("/")
    if mistake := _mistake_in(address):
        found, remedy = mistake
        raise ResourceError(f"cluster.address {setting}", found, f"http://HEAD:{_DASHBOARD_PORT}", remedy)
    return address


def _mistake_in(address: str) -> tuple[str, str] | None:
    """Return what is wrong with the form of an address and what to write instead, or None."""
    if address in {"auto", "local"}:
        return "a word for this machine's own Ray", f"write http://127.0.0.1:{_DASHBOARD_PORT}"
    if "://" not in address:
        host = address.partition(":")[0]
        return "no http:// before the host", f"write http://{host}:{_DASHBOARD_PORT}, the port of Ray's dashboard"
    parts = urlsplit(address)
    host = parts.hostname or "HEAD"
    if parts.scheme not in {"http", "https"}:
        return f"a {parts.scheme}:// address", f"write http://{host}:{_DASHBOARD_PORT}; jobs go through Ray's dashboard"
    if not parts.hostname or re.search(r"\s", address):
        return "no host", f"write http://HEAD:{_DASHBOARD_PORT}"
    return _mistake_in_port(address)


def _mistake_in_port(address: str) -> tuple[str, str] | None:
    parts = urlsplit(address)
    try:
        port = parts.port
    except ValueError:
        return "a port that is no number from 0 to 65535", f"write http://{parts.hostname}:{_DASHBOARD_PORT}"
    if port is None and parts.scheme == "http":
        return "no port", f"write http://{parts.hostname}:{_DASHBOARD_PORT}, or :80 where a proxy listens there"
    return None
