"""The error an HTTP client gets, in the shape of OpenAI's API.

Raised anywhere between the request's bytes and the engine; ``cluster.serving.http_api`` turns it into the answer.
The message may quote the client's own values; it goes to the client and into no log.
"""

from typing import Any

from gpt_core.errors import UserError

_KINDS = {401: "authentication_error", 429: "rate_limit_error"}
MESSAGE_CHARACTERS = 400
"""A message that quotes a value is cut here: a prompt given in the wrong place is not sent back whole."""


class ApiError(Exception):
    """An HTTP status and what goes with it.

    Args:
        status: HTTP status code.
        message: A sentence for the client.
        param: Name of the field at fault.
        code: Word a program can act on.
        retry_after_seconds: Sent as the header Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(status, message, param, code, retry_after_seconds)
        self.status = status
        self.message = message if len(message) <= MESSAGE_CHARACTERS else message[: MESSAGE_CHARACTERS - 3] + "..."
        self.param = param
        self.code = code
        self.retry_after_seconds = retry_after_seconds

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object of the answer."""
        kind = "server_error" if self.status >= 500 else _KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """The headers beyond the usual ones."""
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        if self.retry_after_seconds is not None:
            headers["Retry-After"] = str(self.retry_after_seconds)
        return headers


def invalid(param: str | None, message: str, code: str | None = None) -> ApiError:
    """Return the error of a field that cannot be used."""
    return ApiError(400, message, param, code)


def refused(error: UserError) -> ApiError:
    """Return a mistake found by the engine's own checks as the client's error."""
    place, _, field = error.where.partition(".")
    text = f"found {error.found}; expected {error.expected}; {error.remedy}"
    if place == "sampling" and field:
        return invalid(field, f"{field}: {text}")
    return invalid("prompt", f"prompt: {text}")
